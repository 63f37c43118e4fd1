"""What the stages that hand over share: a policy that drives an environment from signals, and a bundle's task."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deftly.config import SimConfig, parse, with_task
from deftly.env import Env, Obs
from deftly.errors import DeftlyError
from deftly.policy.protocol import Decision, OneRobot, Policy, Signals
from deftly.tasks import Task, load, shipped


def drive(env: Env, policy: Policy, seed: int) -> Iterator[tuple[Signals, Obs, Decision]]:
    """Drive one episode of one environment as a robot is driven: by a policy that is given signals and inputs alone.

    Yields after each step what the policy was given and decided, and in between the observation (1, ...) by group
    that training would have shown it; `env.ended` tells how the episode ended.
    """
    env.auto_reset = False
    env.seed(seed)
    env.reset()
    robot = OneRobot(policy)
    robot.reset()
    applied = env.state.command[0].numpy()  # where the robot was held until now
    while True:
        signals = _of_first(env.signals)
        obs = env.obs
        inputs = _of_first(env.inputs)
        decision = robot.infer(signals, applied, inputs)
        applied = None
        env.step(torch.from_numpy(decision.action)[None])
        yield signals, obs, decision
        if env.ended:
            return


def _of_first(values: Mapping[str, Tensor]) -> Signals:
    """The newest readings or inputs of the first environment, by name: (size,) float32."""
    return {name: value[0].numpy().copy() for name, value in values.items()}


@dataclass(frozen=True)
class Settings:
    """What a simulation is built from."""

    sim: SimConfig = field(default_factory=SimConfig)


def load_task(given: str | None, named: str, what: str) -> type[Task]:
    """The task class that the user gives, else one of Deftly's that a file `what` names: it must not name code to run.

    Raises DeftlyError if there is none, or the two differ.
    """
    if given is None and named not in shipped():
        raise DeftlyError(
            f"{what} was made for the task {named!r:.60}, none of Deftly's: give the file of that task"
        )
    cls = load(given or named)
    if named and cls.name != named:
        raise DeftlyError(f"{what} was made for the task {named!r:.60}, not for {cls.name}")
    return cls


def rebuild(
    given: str | None, settings: Mapping[str, Any], named: str = "", what: str = "the bundle"
) -> tuple[Task, SimConfig]:
    """The task (see `load_task`) and physics of the settings of `what`. DeftlyError if the task has others now."""
    cls = load_task(given, named, what)
    try:
        args: Any = parse(
            with_task(Settings, cls.Config), [], prog="deftly", filed=settings, origin=what
        )
    except DeftlyError as error:
        raise DeftlyError(
            f"the settings of {what} do not fit {cls.name} as it is now: {error}"
        ) from None
    return cls(args.task), args.sim
