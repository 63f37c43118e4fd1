"""panda-pick-place with several objects: who has which, where the others are, and what is made of it."""

import mujoco
import numpy as np
import pytest
import torch

from deftly.config import EnvConfig, SimConfig, TrainArgs, parse, with_task
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.evaluate import report
from deftly.objects import assortment
from deftly.sim import looks
from deftly.tasks import load
from deftly.tasks.panda_pick_place import SHAPE_ERRORS

OBJECTS = ("cube", "sphere", "pawn")


def make(num_envs=24, plain=True, seed=3, **task) -> Env:
    cls = load("panda-pick-place")
    quiet = {"randomize": False, "noise": False} if plain else {}
    made = cls(cls.Config(objects=OBJECTS, **task))
    return Env(made, EnvConfig(num_envs=num_envs, **quiet), SimConfig(threads=1), seed)


@pytest.fixture(scope="module")
def env():
    return make(plain=False)


def test_every_environment_has_one_and_the_others_hang_still(env):
    s, things = env.state, env.task.things
    for _ in range(10):
        env.step(torch.zeros(24, 9))
    drawn = things.drawn(s)
    assert sorted(drawn.unique().tolist()) == [0, 1, 2]
    for i, body in enumerate(things.bodies):
        height, speed = s.body(body)[:, 2], s.velocity(body)[:, :3].norm(dim=-1)
        mine = drawn == i
        assert torch.allclose(height[mine], things.numbers(s, "height")[mine], atol=0.004)
        assert torch.allclose(height[~mine], torch.tensor(assortment.PARKED).double(), atol=1e-6)
        assert float(speed[~mine].max()) < 1e-6


def test_what_is_seen_is_the_object_that_was_drawn():
    env = make()
    env.step(torch.zeros(24, 9))
    obs, s, things = env.obs["policy"], env.state, env.task.things
    assert torch.allclose(obs[:, 7:10], things.position(s).float(), atol=1e-6)
    codes = torch.tensor([item.code for item in things.items])[things.drawn(s)]
    assert torch.allclose(obs[:, 25:32] * 0.04, codes[:, :7].float(), atol=1e-6)
    assert torch.allclose(obs[:, 32], codes[:, 7].float())


def test_what_is_said_of_a_shape_errs_by_as_much_as_is_asked_for():
    """By another error in each environment, the same through an episode; the grasp point stays where it is."""
    env = make(shape_error=0.01)
    s, things = env.state, env.task.things
    error = env.inputs["shape"] - things.numbers(s, "code").float()
    most = 0.01 * torch.tensor(SHAPE_ERRORS)
    assert (error.abs() <= most + 1e-6).all()
    assert (error.abs().amax(0) > 0.7 * most).all()
    env.step(torch.zeros(24, 9))
    again = env.inputs["shape"] - things.numbers(s, "code").float()
    assert torch.allclose(again, error, atol=1e-7)
    assert torch.allclose(env.obs["policy"][:, 7:10], things.position(s).float(), atol=1e-6)
    env.reset()
    other = env.inputs["shape"] - things.numbers(s, "code").float()
    assert (other - error).abs().amax(1).min() > 1e-4


def test_a_new_episode_has_another_object_and_the_old_one_hangs_again():
    env = make(num_envs=8)
    env.auto_reset = False
    s, things = env.state, env.task.things
    one = torch.zeros(8, dtype=torch.bool)
    one[0] = True
    others = things.drawn(s)[1:].clone()
    seen = set()
    for _ in range(12):
        env.reset(one)
        mine = int(things.drawn(s)[0])
        seen.add(mine)
        heights = [float(s.body(body)[0, 2]) for body in things.bodies]
        assert [height > 0 for height in heights] == [i == mine for i in range(3)]
    assert seen == {0, 1, 2}
    assert torch.equal(things.drawn(s)[1:], others)


def test_a_state_that_is_restored_goes_on_with_the_same_objects():
    first, second = make(num_envs=6, plain=False), make(num_envs=6, plain=False, seed=4)
    action = torch.full((6, 9), 0.3)
    first.step(action)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.task.things.drawn(second.state), first.task.things.drawn(first.state))
    assert torch.equal(first.step(action).obs["critic"], second.step(action).obs["critic"])


def test_goals_stand_above_where_the_object_rests(env):
    s, things = env.state, env.task.things
    env.reset()
    least = s.zeros("goal", 3)[:, 2] - things.numbers(s, "height")
    assert float(least.min()) >= 0


@pytest.mark.parametrize(
    "typed",
    [
        ["task.objects=cube,pawn,out/milk/"],
        ["task.objects=[cube, pawn, out/milk/]"],
        ["--task.objects", "cube,pawn,out/milk/"],
        ["--task.objects", "cube", "pawn", "out/milk/"],
    ],
)
def test_objects_are_named_as_lists_are(typed):
    args = parse(with_task(TrainArgs, load("panda-pick-place").Config), typed, prog="train")
    assert args.task.objects == ("cube", "pawn", "out/milk/")


def test_objects_that_cannot_be_used_are_refused_before_anything_is_built():
    cls = load("panda-pick-place")
    with pytest.raises(DeftlyError, match="no object 'kube'"):
        cls(cls.Config(objects=("kube",))).require()


def test_the_contract_does_not_depend_on_the_objects():
    cls = load("panda-pick-place")
    one, several = (
        cls(cls.Config(objects=("cube",))),
        cls(cls.Config(objects=OBJECTS, object_half=0.02)),
    )
    assert one.contract().hash == several.contract().hash


def test_pictures_do_not_show_what_is_parked(env):
    data = mujoco.MjData(env.model)
    state = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(env.model, data, env.sim.state_of(0), state.value)
    mujoco.mj_kinematics(env.model, data)
    assert looks.corners(env.model, data)[:, 2].min() > -0.75


# ------------------------------------------------------------------ the report


def test_success_by_object():
    task = make(num_envs=1).task
    objects = np.array([0.0, 0, 1, 2, 2, 2])
    values = {"success": np.array([1.0, 0, 1, 1, 1, 0]), "object": objects, "seconds": objects}
    found = report.divide(values, task)
    bins = found["breakdown"]["bins"]
    assert [(b["name"], b["episodes"], b["success"]["count"]) for b in bins] == [
        ("cube", 2, 1),
        ("sphere", 1, 1),
        ("pawn", 3, 2),
    ]
    head, *rows = report.bins_table(found)
    assert head == ("object", "cube", "sphere", "pawn")
    assert ("success", "50.0%", "100.0%", "66.7%") in rows


def test_one_object_has_no_parts():
    cls = load("panda-pick-place")
    assert report.divide({}, cls(cls.Config(objects=("cube",)))) == {}


# ------------------------------------------------------------------ the curriculum


def reaches(env):
    """Distances of goal and start in the plane and in height, and the objects that were drawn."""
    env.reset()
    s, things = env.state, env.task.things
    away = s.zeros("goal", 3) - things.position(s)
    return away[:, :2].norm(dim=-1), away[:, 2], things.drawn(s).clone()


def test_the_curriculum_climbs_with_success_and_only_if_it_is_wanted():
    env = make(num_envs=1, curriculum=True)
    for _ in range(3):
        env.adapt({"success": 0.9})
    assert env.state.scale["difficulty"] == pytest.approx(0.06)
    env.adapt({"success": 0.5})
    assert env.state.scale["difficulty"] == pytest.approx(0.06)
    for _ in range(5):
        env.adapt({"success": 0.1})
    assert env.state.scale["difficulty"] == 0
    plain = make(num_envs=1)
    plain.adapt({"success": 0.9})
    assert plain.state.scale == {}


def test_an_easy_episode_has_a_near_low_goal_and_an_easy_object():
    env = make(num_envs=100, curriculum=True)
    full_way, full_height, every = reaches(env)  # as in evaluation: nothing set a difficulty
    env.state.scale["difficulty"] = 0.0
    way, height, easy = reaches(env)
    least = env.task.cfg.least_way
    assert float(way.max()) <= least + 1e-6 < float(full_way.max())
    assert float(height.mean()) < 0.02 < float(full_height.mean())
    assert float((way.square() + height.square()).sqrt().min()) >= least - 0.002
    assert every.unique().numel() == 3
    easiest = min(env.task.things.items, key=lambda item: item.difficulty)
    assert easy.unique().tolist() == [env.task.things.items.index(easiest)]
