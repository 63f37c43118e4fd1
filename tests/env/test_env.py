import mujoco
import pytest
import torch

from deftly.config import EnvConfig, SimConfig
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.sim.guard import replay
from deftly.sim.randomize import Randomize
from deftly.sim.sensors import Noise
from deftly.tasks import load

BUSY = {
    "noise": Noise(uniform=0.01, gaussian=0.01, bias=0.02, delay=2, dropout=0.2),
    "randomize": (
        Randomize("mass", 0.5, 2.0),
        Randomize("kp", 0.8, 1.2),
        Randomize("damping", 0.5, 2),
    ),
    "push": 5.0,
    "env": {"latency_ms": (0.0, 80.0)},
}


def actions(env: Env, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(count, env.num_envs, env.contract.action_size, generator=generator) - 1


def play(env: Env, moves: torch.Tensor) -> list[torch.Tensor]:
    """Everything that comes out of an environment, step by step."""
    out = []
    for move in moves:
        step = env.step(move)
        out += [
            *step.obs.values(),
            step.reward,
            step.terminated,
            step.truncated,
            *step.final_obs.values(),
        ]
    return [value.clone() for value in out]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------ episodes


def test_shapes_and_dtypes(slider):
    env = slider(3)
    step = env.step(torch.zeros(3, 2))
    assert {k: tuple(v.shape) for k, v in step.obs.items()} == {"policy": (3, 8), "critic": (3, 11)}
    assert {v.dtype for v in (*step.obs.values(), step.reward)} == {torch.float32}
    assert {v.dtype for v in (step.terminated, step.truncated, step.success)} == {torch.bool}
    with pytest.raises(DeftlyError, match=r"action has shape \(3, 3\), but slider takes \(3, 2\)"):
        env.step(torch.zeros(3, 3))


def test_time_up_is_truncation_and_nothing_else(slider):
    env = slider(4, goal=0.0)
    for i in range(1, 41):
        step = env.step(torch.zeros(4, 2))
        assert step.truncated.all() == step.truncated.any() == (i % 20 == 0)
        assert not step.terminated.any()


def test_success_and_failure_terminate(slider):
    env = slider(3, start=0.0, goal=0.01)
    env.state.joint_pos[:, 0] = torch.tensor([0.0, 0.95, 0.5], dtype=torch.float64)
    env.state.joint_vel[1, 0] = 3.0
    step = env.step(torch.zeros(3, 2))
    assert step.terminated.tolist() == [True, True, False]
    assert step.success.tolist() == [True, False, False]
    assert not step.truncated.any()
    assert env.ended["env"].tolist() == [0, 1]
    assert env.ended["failed/far"].tolist() == [0, 1]
    assert env.ended["success"].tolist() == [1, 0]


def test_task_may_go_on_after_success(slider):
    env = slider(2, start=0.0, goal=0.5, stop_on_success=False)
    for i in range(1, 21):
        step = env.step(torch.zeros(2, 2))
        assert step.success.all()
        assert step.truncated.all() == (i == 20)
        assert not step.terminated.any()


def test_termination_wins_on_the_last_step(slider):
    env = slider(2, start=0.0, goal=0.0, episode_steps=1)
    env.state.joint_pos[0, 0], env.state.joint_vel[0, 0] = 0.95, 3.0
    step = env.step(torch.zeros(2, 2))
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]


def test_final_obs_is_the_old_episodes_and_obs_the_new_ones(slider):
    env = slider(2, goal=0.0, episode_steps=3)
    env.state.steps[0] = 1  # the first environment ends a step early
    env.step(torch.ones(2, 2))
    old = env.step(torch.ones(2, 2))
    assert old.truncated.tolist() == [True, False]
    assert torch.equal(old.obs["policy"][1], old.final_obs["policy"][1])
    assert torch.equal(
        old.obs["policy"][0, :4].view(2, 2)[0], old.obs["policy"][0, :4].view(2, 2)[1]
    )
    assert old.obs["policy"][0, 4:].tolist() == [0, 0, 0, 0]
    assert (old.final_obs["policy"][0, 6:] > 0.9).all()
    assert torch.allclose(old.obs["policy"][0, 2:4].double(), env.state.joint_pos[0], atol=1e-6)
    assert env.state.steps.tolist() == [0, 2]


def test_a_task_starts_the_environments_that_start_and_no_others(slider):
    env = slider(3, goal=0.0, episode_steps=3)
    seen = []
    for name in ("reset", "start", "privileged"):
        verb = getattr(env.task, name)

        def watched(s, *mask, name=name, verb=verb):
            seen.append((name, s.num_envs))
            return verb(s, *mask)

        setattr(env.task, name, watched)
    env.state.steps[1] = 2
    env.step(torch.ones(3, 2))
    assert seen == [("privileged", 3), ("reset", 1), ("start", 1), ("privileged", 1)]


def test_without_auto_reset_the_last_state_stays(slider):
    env = slider(2, goal=0.0, episode_steps=2)
    env.auto_reset = False
    play(env, actions(env, 1))
    step = env.step(torch.ones(2, 2))
    assert step.truncated.all()
    assert torch.equal(step.obs["policy"], step.final_obs["policy"])
    assert torch.allclose(step.obs["policy"][:, 2:4].double(), env.state.joint_pos, atol=1e-6)


def test_store_and_action_start_anew_with_the_episode(slider):
    env = slider(2, goal=0.0, episode_steps=2)
    play(env, actions(env, 2))
    assert not env.state.store["travel"].any()
    assert not env.state.action.any()
    assert torch.allclose(env.state.command, env.state.joint_pos.float())


def test_statistics_are_means_over_ended_episodes(slider):
    env = slider(4, goal=0.0)
    total = sum(env.step(torch.ones(4, 2)).reward for _ in range(20))
    assert env.ended["return"] == pytest.approx(total)
    parts = env.ended["reward/near"] + env.ended["reward/moved"]
    assert parts == pytest.approx(total, abs=1e-4)
    assert set(env.ended) >= {
        "travel",
        "failed/far",
        "failed/physics",
        "time_out",
        "steps",
        "action_change",
    }
    means = env.progress()
    assert means["return"] == pytest.approx(float(total.mean()), rel=1e-5)
    assert means["time_out"] == 1
    assert means["steps"] == 20
    assert "travel" not in means
    assert env.progress() == {}


def test_a_robot_stands_ready_for_as_long_as_was_drawn(slider):
    at_once, later = slider(64), slider(64, ready_s=(0.0, 0.2))
    assert not at_once.sim.bind("time").any()
    assert set((20 * later.sim.bind("time")).round().flatten().int().tolist()) == {0, 1, 2, 3, 4}
    assert not later.state.steps.any()
    assert torch.allclose(later.state.command, later.state.joint_pos.float(), atol=1e-4)


def test_a_robot_that_stood_ready_was_held_where_it_is_not_where_it_was_measured(slider):
    noisy = {"noise": Noise(bias=0.1)}
    for env, apart in (
        (slider(64, **noisy), True),
        (slider(64, **noisy, ready_s=(0.05, 0.05)), False),
    ):
        assert bool((env.state.command - env.state.joint_pos).abs().max() > 0.05) is apart


def test_weights_scale_the_rewards(slider):
    env = slider(2, start=0.3, goal=0.0)
    near = torch.exp(-env.state.joint_pos[:, 0].square())
    env.state.scale["near"] = 10.0
    assert env.step(torch.zeros(2, 2)).reward == pytest.approx(10 * near, rel=1e-2)


# ------------------------------------------------------------------ draws


def test_same_seed_same_episodes(slider):
    a, b = slider(4, seed=7, **BUSY), slider(4, seed=7, **BUSY)
    assert same([*a.obs.values()], [*b.obs.values()])
    moves = actions(a, 30)
    assert same(play(a, moves), play(b, moves))


def test_other_seed_or_purpose_other_episodes(slider):
    starts = [
        slider(2, seed=s, purpose=p).obs["policy"]
        for s, p in ((1, "train"), (2, "train"), (1, "validate"), (1, "evaluate"))
    ]
    assert len({tuple(x.flatten().tolist()) for x in starts}) == 4


def test_seed_and_reset_give_what_a_new_environment_gives(slider):
    env, fresh = slider(3, seed=1, **BUSY), slider(3, seed=5, **BUSY)
    play(env, actions(env, 30))
    env.seed(5)
    env.reset()
    assert same([*env.obs.values()], [*fresh.obs.values()])
    moves = actions(env, 25, seed=1)
    assert same(play(env, moves), play(fresh, moves))


def test_threads_do_not_change_results(slider):
    one, three = slider(7, threads=1, **BUSY), slider(7, threads=3, **BUSY)
    moves = actions(one, 30)
    assert same(play(one, moves), play(three, moves))


def test_torch_computes_on_one_thread_within_a_step_and_as_before_outside(slider, monkeypatch):
    env, within = slider(3), []
    monkeypatch.setattr(env, "on_step", lambda: within.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        env.step(torch.zeros(3, 2))
        with pytest.raises(DeftlyError):
            env.step(torch.zeros(3, 3))
        assert (within, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_environments_draw_their_own_starts(slider):
    assert len(set(slider(8).state.joint_pos[:, 0].tolist())) == 8


# ------------------------------------------------------------------ save and restore


def test_restored_environment_continues_to_the_bit(slider):
    env = slider(5, **BUSY)
    play(env, actions(env, 13))
    env.state.scale["near"] = 0.5
    saved = env.state_dict()
    assert all(isinstance(v, torch.Tensor) for v in saved.values())
    fresh = slider(5, seed=99, **BUSY)
    fresh.load_state_dict(saved)
    assert same([*fresh.obs.values()], [*env.obs.values()])
    moves = actions(env, 30, seed=2)
    assert same(play(env, moves), play(fresh, moves))
    assert env.progress()["return"] == fresh.progress()["return"]


def test_restored_pick_cube_continues_to_the_bit():
    cls = load("jaka-pick-cube")

    def make(seed: int) -> Env:
        config = EnvConfig(num_envs=3, episode_steps=25, latency_ms=(10, 60))
        return Env(cls(cls.Config()), config, SimConfig(threads=1), seed)

    env, fresh = make(0), make(1)
    play(env, actions(env, 12))
    fresh.load_state_dict(env.state_dict())
    moves = actions(env, 30, seed=2)
    assert same(play(env, moves), play(fresh, moves))


def test_saved_state_is_a_copy(slider):
    env = slider(2)
    saved = env.state_dict()
    before = {k: v.clone() for k, v in saved.items()}
    play(env, actions(env, 5))
    assert all(torch.equal(saved[k], before[k]) for k in saved)


def test_state_of_another_batch_is_refused(slider):
    with pytest.raises(DeftlyError, match="use the saved configuration"):
        slider(3).load_state_dict(slider(2).state_dict())


# ------------------------------------------------------------------ physics that breaks


@pytest.mark.parametrize(
    ("field", "value"), [("qvel", torch.nan), ("qvel", 1e15), ("qpos", torch.inf)]
)
def test_broken_environment_is_reset_alone_and_counted(slider, field, value):
    env, healthy = slider(4, goal=0.0), slider(4, goal=0.0)
    for round_ in (1, 2):
        env.sim.bind(field)[2, 0] = value
        move = torch.ones(4, 2)
        step, want = env.step(move), healthy.step(move)
        assert step.terminated.tolist() == [False, False, True, False]
        assert env.ended["failed/physics"].tolist() == [1]
        assert env.broken_count == round_
        others = [0, 1, 3]
        assert torch.equal(step.obs["policy"][others], want.obs["policy"][others])
        assert all(
            torch.isfinite(v).all()
            for v in (*step.obs.values(), *step.final_obs.values(), step.reward)
        )
        assert step.reward[2] == 0
        assert not step.success[2]
    for _ in range(5):
        assert not env.step(torch.zeros(4, 2)).terminated.any()


def test_broken_environment_is_dumped_for_replay(slider, tmp_path):
    env = slider(3, dump_dir=tmp_path / "dumps", goal=0.0)
    env.step(torch.zeros(3, 2))
    env.state.joint_vel[1, 0] = 1e15
    env.step(torch.zeros(3, 2))
    (path,) = (tmp_path / "dumps").iterdir()
    data = replay(path)
    assert sum(w.number for w in data.warning) > 0
    env.step(torch.zeros(3, 2))
    assert len(list((tmp_path / "dumps").iterdir())) == 1


def test_something_else_is_no_dump(tmp_path):
    path = tmp_path / "x.npz"
    path.write_text("no")
    with pytest.raises(DeftlyError, match="as a dump of a broken environment"):
        replay(path)


def test_nan_action_counts_as_zero(slider):
    a, b = slider(2, goal=0.0), slider(2, goal=0.0)
    nan = torch.tensor([[torch.nan, 0.5], [torch.inf, -torch.inf]])
    plain = torch.tensor([[0.0, 0.5], [1.0, -1.0]])
    for _ in range(3):
        assert same(play(a, nan[None]), play(b, plain[None]))


def test_contract_joint_without_actuator_is_named(slider):
    cls = type(slider(1).task)

    class NoActuator(cls):
        def scene(self):
            s = super().scene()
            s.delete(s.actuator("y"))
            s.delete(s.keys[0])
            return s

    with pytest.raises(DeftlyError, match="no actuator 'y'"):
        Env(NoActuator(cls.Config()), EnvConfig(num_envs=1))


def test_model_has_the_contracts_period(slider):
    env = slider(1)
    assert env.model.opt.timestep * env.substeps == pytest.approx(1 / env.contract.rate)
    assert env.model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
