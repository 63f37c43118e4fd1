"""Several objects in a scene: those that were not drawn are parked, asleep, and nothing else changes by it."""

import mujoco
import torch

from deftly.config import EnvConfig, SimConfig
from deftly.env import Env
from deftly.env import env as env_module
from deftly.objects.assortment import PARKED
from deftly.sim.scene import let_sleep, sleeps
from deftly.tasks import load

OBJECTS = ("cube", "sphere", "pawn")
N = 6


def make(*objects: str, threads: int = 1) -> Env:
    cls = load("panda-pick-place")
    cfg = cls.Config(objects=objects or OBJECTS)
    return Env(cls(cfg), EnvConfig(num_envs=N), SimConfig(threads=threads), 3)


def actions(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(8, N, 9, generator=generator) - 1


def heights(env: Env) -> torch.Tensor:
    """Of all objects, `(num_envs, objects)`, m."""
    return env.state.bodies(env.task.things.bodies)[..., 2]


def parked(env: Env) -> torch.Tensor:
    """Which objects were not drawn, `(num_envs, objects)`."""
    things = env.task.things
    return things.drawn(env.state)[:, None] != torch.arange(len(things))


def test_what_is_parked_sleeps_and_what_was_drawn_does_not():
    env = make()
    for action in actions():
        env.step(action)
        asleep = env.sim.batch.bind("tree_asleep")[:, -len(OBJECTS) :] >= 0
        assert torch.equal(torch.from_numpy(asleep), parked(env))
    assert not env.sim.bind("xfrc_applied").any()


def test_one_object_alone_changes_nothing_of_the_engine():
    env = make("cube")
    assert not sleeps(env.model)
    assert not env.sim.batch.persistent


def test_an_object_that_was_parked_again_stays_there():
    """Each environment goes through all objects; what it leaves behind does not fall."""
    env = make()
    env.auto_reset = False
    everywhere = torch.ones(N, dtype=torch.bool)
    seen = set()
    for _ in range(8):
        env.reset(everywhere)
        for action in actions():
            env.step(action)
        seen |= set(env.task.things.drawn(env.state).tolist())
        assert (heights(env)[parked(env)] == PARKED).all()
        assert (heights(env)[~parked(env)] > 0).all()
    assert seen == {0, 1, 2}


def test_a_state_put_back_finds_the_same_objects_asleep():
    """Also where another object had been drawn since, which was awake."""
    env = make()
    env.step(actions()[0])
    saved = env.state_dict()
    first = [env.step(action).obs["critic"] for action in actions(1)]
    env.reset()
    env.step(actions()[0])
    env.load_state_dict(saved)
    again = [env.step(action).obs["critic"] for action in actions(1)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert (heights(env)[parked(env)] == PARKED).all()


def test_a_state_continues_in_a_new_environment_to_the_bit():
    first, second = make(), make(threads=2)
    first.step(actions()[0])
    second.load_state_dict(first.state_dict())
    for action in actions(1):
        assert torch.equal(first.step(action).obs["critic"], second.step(action).obs["critic"])


def test_objects_move_as_where_nothing_sleeps(monkeypatch):
    """In an engine that lets nothing sleep a force holds what is parked; what was drawn moves alike."""
    asleep = make()
    monkeypatch.setattr(env_module, "let_sleep", lambda spec, engine: let_sleep(spec, "warp"))
    awake = make()
    assert not sleeps(awake.model)
    known_to_warp = awake.model.tree_sleep_policy < mujoco.mjtSleepPolicy.mjSLEEP_NEVER.value
    assert known_to_warp.all()
    assert awake.sim.bind("xfrc_applied").any()
    for action in actions():
        seen, expected = asleep.step(action), awake.step(action)
        assert torch.allclose(seen.obs["critic"], expected.obs["critic"], atol=1e-5)
        assert torch.allclose(seen.reward, expected.reward, atol=1e-5)
    assert torch.allclose(heights(awake)[parked(awake)], torch.tensor(PARKED).double(), atol=1e-6)
