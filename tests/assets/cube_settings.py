"""Settings of a made-up command and task, for the tests of the configuration."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge
from typing_extensions import Doc

from deftly.config import (
    EnvConfig,
    PPOConfig,
    Repeatable,
    RunsConfig,
    Settings,
    SimConfig,
    TaskConfig,
    parse,
    with_task,
)


@dataclass(frozen=True)
class Weights:
    """Plain, as users write: its text is beside or below its fields."""

    object_height: float = 1.0
    """Reward per metre of lift."""


@dataclass(frozen=True)
class CubeConfig(TaskConfig):
    """Settings of a made-up task."""

    rate: float = 50.0
    reward_weights: Weights = Weights()
    """Reward weights."""
    ranges: dict[str, float] = field(default_factory=lambda: {"cube_x": 0.1, "yaw": 3.0})
    """Half width of each reset range, m or rad."""
    grasps: str | None = None  # File of grasps.
    tolerance: Annotated[float, Ge(0), Doc("How far off counts, m.")] = 0.01


@dataclass(frozen=True)
class Args(Settings):
    """A command with every section."""

    sim: Annotated[SimConfig, Doc("Physics.")] = field(default_factory=SimConfig)
    env: Annotated[EnvConfig, Doc("Environments.")] = field(default_factory=EnvConfig)
    task: Annotated[TaskConfig, Doc("The task's own settings.")] = field(default_factory=TaskConfig)
    train: Annotated[PPOConfig, Doc("Learning.")] = field(default_factory=PPOConfig)
    runs: Annotated[RunsConfig, Doc("Run folders.")] = field(default_factory=RunsConfig)
    policy: Annotated[str | None, Doc("Where to start from.")] = None
    render: Annotated[bool | None, Doc("Open a viewer; unset: only in test mode.")] = None
    test: Annotated[bool, Doc("Evaluate instead of training.")] = False
    reload: Annotated[float, Doc("Seconds between reloads.")] = 0.0
    video: Annotated[bool, Doc("Record a video.")] = False
    log_level: Annotated[str, Doc("How much to print.")] = "info"
    log_every: Annotated[int, Doc("Iterations between lines.")] = 10
    episodes: Annotated[int, Doc("Episodes to play.")] = 0
    viewer: Annotated[str, Doc("What shows them.")] = "auto"
    name: Annotated[str | None, Doc("Name of the run.")] = None
    gate: Annotated[tuple[str, ...], Repeatable(), Doc("Conditions.")] = ()


CubeArgs = with_task(Args, CubeConfig)


def read(*argv: str, cls: type = CubeArgs):
    """What `deftly train ARGV` would read."""
    return parse(cls, argv, prog="deftly train")
