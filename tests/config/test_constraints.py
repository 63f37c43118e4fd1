from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt
from cube_settings import CubeConfig, read
from typing_extensions import Doc

from deftly.config import (
    EnvConfig,
    Must,
    Settings,
    SimConfig,
    Suffix,
    TaskConfig,
    TrainArgs,
    check,
    field_docs,
)
from deftly.config.constraints import hints_of, limits, violated
from deftly.config.sections import Activation
from deftly.errors import DeftlyError

EVEN = Must("even", lambda x: x % 2 == 0)


@pytest.mark.parametrize(
    ("hint", "good", "bad", "wanted"),
    [
        (Annotated[int, Ge(1)], 1, 0, "1 or more"),
        (Annotated[float, Gt(0)], 0.1, 0.0, "above 0"),
        (Annotated[int, Le(3)], 3, 4, "at most 3"),
        (Annotated[int, Lt(3)], 2, 3, "below 3"),
        (Annotated[float, Ge(0), Le(1)], 1.0, 1.1, "0 or more and at most 1"),
        (Annotated[int, EVEN], 2, 3, "even"),
        (
            Annotated[Path, Suffix(".npz")],
            Path("a.npz"),
            Path("a.txt"),
            "a .npz file, such as a.npz",
        ),
        (Annotated[int | None, Ge(1)], None, 0, "1 or more"),
        (Annotated[int, Ge(1)] | None, None, 0, "1 or more"),
        (tuple[Annotated[int, Ge(1)], ...], (1, 2), (1, 0), "1 or more"),
        (tuple[float, Annotated[float, Gt(0)]], (0.0, 1.0), (1.0, 0.0), "above 0"),
        (float, 1.0, float("nan"), "a finite number"),
        (float, 1e12, -1.1e12, "at most 1e+12 in size"),
        (int, -(10**12), 10**30, "at most 1e+12 in size"),
        (float | None, None, float("inf"), "a finite number"),
        (tuple[float, float], (1.0, 2.0), (1.0, float("-inf")), "a finite number"),
    ],
)
def test_every_kind_of_constraint(hint, good, bad, wanted):
    assert violated(hint, good) == ""
    assert violated(hint, bad) == wanted


def test_settings_are_checked_however_they_are_built():
    with pytest.raises(DeftlyError, match=r"^env.num-envs is 0, but it must be 1 or more"):
        EnvConfig(num_envs=0)
    with pytest.raises(DeftlyError, match=r"^task.tolerance is -1, but it must be 0 or more$"):
        CubeConfig(tolerance=-1)


def test_a_new_default_keeps_the_constraint_of_the_field():
    @dataclass(frozen=True)
    class Slow(TaskConfig):
        rate: float = 5.0

    with pytest.raises(DeftlyError, match=r"task.rate is 0, but it must be above 0"):
        Slow(rate=0)


def test_a_field_declared_again_keeps_its_constraints_and_may_bring_its_text():
    @dataclass(frozen=True)
    class Slow(TaskConfig):
        rate: Annotated[float, Le(10), Doc("Not faster than the motors.")] = 5.0

    assert field_docs(Slow)["rate"] == "Not faster than the motors."
    for wrong in (0, 11):
        with pytest.raises(
            DeftlyError, match=f"task.rate is {wrong}, but it must be at most 10 and above 0"
        ):
            Slow(rate=wrong)


def test_plain_dataclasses_inside_are_checked():
    @dataclass(frozen=True)
    class Inner:
        width: Annotated[float, Gt(0)] = 1.0

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = Inner(-1.0)

    with pytest.raises(DeftlyError, match=r"^inner.width is -1.0, but it must be above 0$"):
        check(Outer())


def test_a_default_is_checked_too():
    @dataclass(frozen=True)
    class Wrong(Settings):
        width: Annotated[float, Gt(0)] = 0.0

    with pytest.raises(DeftlyError, match="width is 0"):
        Wrong()


@pytest.mark.parametrize(
    "word",
    [
        "env.num_envs=0",
        "env.episode_steps=-1",
        "env.latency_ms=5,1",
        "env.latency_ms=nan,1",
        "env.device=tpu",
        "env.device=cuda:x",
        "sim.threads=-1",
        "sim.dt=0",
        "sim.substeps=0",
        "sim.engine=gpu",
        "sim.preset=quick",
        "train.gamma=0",
        "train.gamma=1.01",
        "train.gamma=nan",
        "train.lam=-0.1",
        "train.seed=-2",
        "train.seed=99999999999999999999",
        "train.epochs=0",
        "train.hidden=[0]",
        "train.hidden=[-3]",
        "train.activation=foo",
        "train.learning_rate=0",
        "train.entropy=-1",
        "task.rate=0",
        "task.rate=inf",
        "task.ready_s=2,1",
        "task.episode_steps=0",
        "task.tolerance=-1",
        "task.reward_weights.object_height=nan",
        "task.ranges.yaw=inf",
        "runs.max_train_runs=0",
        "runs.max_test_runs=0",
    ],
)
def test_values_out_of_range_are_one_line_that_names_the_flag(word):
    with pytest.raises(DeftlyError) as error:
        read(word)
    flag, _, value = word.partition("=")
    assert str(error.value).startswith(flag.replace("_", "-") + " is ")
    assert "must be" in str(error.value)
    assert "\n" not in str(error.value)
    assert value.strip("[]").partition(",")[0] in str(error.value)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["train.minibatches=33", "env.num_envs=2", "train.steps=16"],
            "a rollout has only 32 samples",
        ),
        (["sim.dt=0.003"], r"sim.dt is 0.003 s, .* such as 0.00294"),
        (["sim.dt=0.005", "sim.substeps=10000"], "sim.substeps is 10000 in each sim.dt of 0.005 s"),
        (["sim.dt=1e-9"], "whole multiple"),
        (["env.device=cuda"], "--sim.engine warp"),
        (["resume=a", "init=b"], "give one of them"),
    ],
)
def test_settings_that_do_not_go_together(words, text):
    with pytest.raises(DeftlyError, match=text):
        read(*words, cls=TrainArgs)


def test_substeps():
    assert SimConfig().substeps_at(15.0) == 10
    assert SimConfig("accurate").substeps_at(15.0) == 34
    assert SimConfig(dt=0.005).substeps_at(20.0) == 10
    assert SimConfig(substeps=7).substeps_at(20.0) == 7
    assert SimConfig(dt=1 / 150).substeps_at(15.0) == 10
    assert SimConfig(dt=0.01, substeps=8).substeps_at(50.0) == 16  # as in Isaac Gym


def test_activations_are_those_of_the_networks():
    from deftly.learn.networks import ACTIVATIONS

    assert get_args(Activation) == tuple(ACTIVATIONS)


def test_a_subclass_does_not_say_a_constraint_twice():
    @dataclass(frozen=True)
    class Base(Settings):
        episodes: Annotated[int, Ge(1), Doc("Episodes.")] = 200

    @dataclass(frozen=True)
    class Other(Settings):
        policy: Annotated[str, Doc("Policy.")] = ""

    @dataclass(frozen=True)
    class Both(Other, Base):
        pass

    assert limits(get_args(hints_of(Both)["episodes"])[1:]) == ">= 1"
