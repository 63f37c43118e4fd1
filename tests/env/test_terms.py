"""What a task gives is checked by name; what is not finite is counted; statistics can be added up over processes."""

import pytest
import torch

from deftly.config import EnvConfig, SimConfig
from deftly.env import Env, means
from deftly.errors import DeftlyError


@pytest.fixture
def change(slider):
    """Makes an environment of the toy task with some of its methods replaced: `change(rewards=lambda s: ...)`."""
    cls = type(slider(1).task)

    def make(num_envs=4, config=None, cfg=None, **methods) -> Env:
        changed = type(
            "Changed", (cls,), {name: lambda self, s, f=f: f(s) for name, f in methods.items()}
        )
        task = changed(cls.Config(**{"goal": 0.0, **(cfg or {})}))
        return Env(task, EnvConfig(num_envs=num_envs, **(config or {})), SimConfig(threads=1))

    return make


def ones(s, *size) -> torch.Tensor:
    return torch.ones(s.num_envs, *size)


def refusal(env: Env, steps: int = 20) -> str:
    with pytest.raises(DeftlyError) as error:
        for _ in range(steps):
            env.step(torch.zeros(env.num_envs, 2))
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------- shapes and names


def test_a_reward_of_the_wrong_shape_is_named(change):
    env = change(rewards=lambda s: {"near": ones(s, 1), "moved": ones(s)})
    assert "reward term 'near' has shape (4, 1)" in refusal(env, 1)


@pytest.mark.parametrize(("value", "kind"), [(1.0, "float"), (True, "bool"), (None, "NoneType")])
def test_a_reward_that_is_no_tensor_is_named(change, value, kind):
    env = change(rewards=lambda s: {"near": ones(s), "moved": value})
    assert f"reward term 'moved' is a {kind}, but a task gives a tensor" in refusal(env, 1)


def test_a_term_without_a_weight_and_a_weight_without_a_term_are_named(change):
    more = change(rewards=lambda s: {"near": ones(s), "moved": ones(s), "far": ones(s)})
    assert "reward term 'far' has no weight" in refusal(more, 1)
    less = change(rewards=lambda s: {"near": ones(s)})
    assert "weight 'moved' has no reward term" in refusal(less, 1)


@pytest.mark.parametrize(
    "name",
    [
        "success",
        "steps",
        "return",
        "time_out",
        "env",
        "episodes",
        "failed/far",
        "reward/near",
        "nan",
    ],
)
def test_a_metric_may_not_replace_one_of_the_environments_own(change, name):
    assert f"metric '{name}' has a name of the environment's own" in refusal(
        change(metrics=lambda s: {name: ones(s)}), 1
    )


def test_a_metric_of_the_wrong_size_is_named(change):
    assert "metric 'travel' has shape (2,)" in refusal(
        change(metrics=lambda s: {"travel": torch.ones(2)})
    )


def test_conditions_are_booleans_for_each_environment(change):
    assert "failure 'far' is of torch.float32" in refusal(
        change(failed=lambda s: {"far": 0 * ones(s)}), 1
    )
    assert "`success` has shape (4, 1)" in refusal(change(success=lambda s: ones(s, 1) > 2), 1)
    with pytest.raises(DeftlyError, match="failure 'physics' is the environment's own"):
        change(failed=lambda s: {"physics": ones(s) > 2}).step(torch.zeros(4, 2))


def test_signals_are_those_of_the_contract(change):
    for signals, text in (
        (
            lambda s: {"joint_pos": s.joint_pos},
            r"`signals` gives \['joint_pos'\], but the contract names",
        ),
        (
            lambda s: {"joint_pos": s.joint_pos, "joint_vel": s.joint_vel[:, :1]},
            "signal 'joint_vel' has shape",
        ),
    ):
        with pytest.raises(DeftlyError, match=text):
            change(signals=signals)


def test_privileged_is_a_row_for_each_environment(change):
    with pytest.raises(DeftlyError, match=r"`privileged` has shape \(4,\)"):
        change(privileged=ones)


@pytest.mark.parametrize("shape", [(2,), (1, 2), (4, 1), (4, 3)])
def test_actions_are_not_broadcast(slider, shape):
    with pytest.raises(DeftlyError, match=r"action has shape .*, but slider takes \(4, 2\)"):
        slider(4).step(torch.zeros(shape))


# ------------------------------------------------------------------- numbers that are not finite


def test_a_reward_that_is_not_finite_counts_as_zero_and_is_counted(change):
    def rewards(s):
        near = ones(s)
        near[1], near[2] = torch.nan, torch.inf
        return {"near": near, "moved": 0 * ones(s)}

    env = change(rewards=rewards)
    assert env.step(torch.zeros(4, 2)).reward.tolist() == [1, 0, 0, 1]
    env.step(torch.zeros(4, 2))
    assert env.nan_counts == {"reward/near": 4}
    assert means(env.statistics()) == {"nan": 4.0}
    assert means(env.statistics()) == {}


def test_a_signal_that_is_not_finite_is_counted(change):
    def signals(s):
        pos = s.joint_pos.clone()
        pos[3, 1] = torch.nan
        return {"joint_pos": pos, "joint_vel": s.joint_vel}

    env = change(signals=signals)
    assert env.nan_counts == {"signal/joint_pos": 1}
    step = env.step(torch.zeros(4, 2))
    assert step.signals["joint_pos"][3, 1] == 0
    assert all(value.isfinite().all() for value in step.obs.values())
    assert env.nan_counts == {"signal/joint_pos": 2}


def test_broken_physics_is_no_fault_of_the_task(slider):
    env = slider(4, goal=0.0)
    env.sim.bind("qvel")[2] = torch.nan
    assert env.step(torch.zeros(4, 2)).terminated.tolist() == [False, False, True, False]
    assert env.nan_counts == {}
    assert env.broken_count == 1


# ------------------------------------------------------------------- signals


def test_signals_are_handed_out_as_the_observation_was_made_of_them(slider):
    env = slider(4, goal=0.0, episode_steps=2)
    for _ in range(4):
        seen = env.signals
        assert torch.equal(env.obs["policy"][:, 2:4], seen["joint_pos"])
        step = env.step(torch.ones(4, 2))
        assert step.signals is env.signals
        assert torch.equal(step.obs["policy"][:, 2:4], step.signals["joint_pos"])


# ------------------------------------------------------------------- statistics


def play(env: Env, steps: int) -> None:
    for _ in range(steps):
        env.step(torch.zeros(env.num_envs, 2))


def test_statistics_have_the_same_names_whatever_happened(slider):
    env = slider(4, goal=0.0)
    before = env.statistics()
    play(env, 20)
    after = env.statistics()
    assert [*before] == [*after]
    assert not any(before.values())
    assert float(after["episodes"]) == 4
    assert {value.dtype for value in after.values()} == {torch.float64}
    assert all(value.ndim == 0 for value in after.values())


def test_statistics_of_two_processes_add_up_to_those_of_one(slider):
    few, many = slider(2, goal=0.0, seed=1), slider(6, goal=0.0, seed=2)
    for env in (few, many):
        play(env, 20)
    a, b = few.statistics(), many.statistics()
    both = means({name: a[name] + b[name] for name in a})
    assert both["return"] == pytest.approx((2 * means(a)["return"] + 6 * means(b)["return"]) / 8)
    assert both["steps"] == 20


def test_the_curriculum_adapts_to_the_means_it_is_given(slider):
    cls = type(slider(1).task)
    seen = []

    class Adapting(cls):
        def curriculum(self, s, progress):
            seen.append(progress)
            s.scale["near"] = 1.0 + progress["success"]

    env = Env(Adapting(cls.Config(goal=0.0)), EnvConfig(num_envs=2), SimConfig(threads=1))
    env.adapt({})
    assert seen == []
    env.adapt({"success": 0.5, "nan": 0.0})
    assert env.state.scale == {"near": 1.5}
    play(env, 20)
    found = env.progress()
    assert seen[-1] is found
    assert set(env.metric_names) == {"episode_steps" if name == "steps" else name for name in found}


# ------------------------------------------------------------------- the start of an episode


def test_physics_that_breaks_while_a_robot_settles_ends_the_episode_in_its_first_step(slider):
    """It was stepped on from MuJoCo's own reset before."""
    cls = type(slider(1).task)

    class Broken(cls):
        broken = False

        def reset(self, s, mask):
            super().reset(s, mask)
            if self.broken:
                s.sim.bind("qvel")[1] = torch.inf

    env = Env(
        Broken(cls.Config(goal=0.0, ready_s=(0.1, 0.1))),
        EnvConfig(num_envs=3),
        SimConfig(threads=1),
    )
    env.task.broken = True
    env.reset()
    env.task.broken = False
    step = env.step(torch.zeros(3, 2))
    assert step.terminated.tolist() == [False, True, False]
    assert env.ended["failed/physics"].tolist() == [1]
    assert not env.step(torch.zeros(3, 2)).terminated.any()


def test_robots_that_have_settled_wait_for_the_others(slider):
    env = slider(64, ready_s=(0.0, 0.2), goal=0.0)
    time = (20 * env.sim.bind("time")).round().flatten()
    assert set(time.int().tolist()) == {0, 1, 2, 3, 4}
    env.step(torch.zeros(64, 2))
    assert torch.equal((20 * env.sim.bind("time")).round().flatten(), time + 1)
