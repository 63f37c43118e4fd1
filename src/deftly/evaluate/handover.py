"""What the stages that hand over share: a policy that drives an environment from signals, and a bundle's task."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deftly.config import SimConfig, parse, with_task
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.policy.protocol import Decision, Policy, Signals
from deftly.tasks import Task, load, shipped


class Listener:
    """Takes the place of an environment's sensors and keeps what they gave: the signals that the contract reads."""

    def __init__(self, env: Env):
        self.sensors, self.state = env._sensors, env._sensors.state
        self.signals: dict[str, np.ndarray] = {}
        """Of the first environment, by signal name: (size,) float32."""

    def read(self, signals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The readings of one step."""
        return self._keep(self.sensors.read(signals))

    def reset(self, signals: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """The first readings of an episode."""
        return self._keep(self.sensors.reset(signals, ids))

    def _keep(self, readings: dict[str, Tensor]) -> dict[str, Tensor]:
        self.signals = {name: value[0].numpy().copy() for name, value in readings.items()}
        return readings


def drive(env: Env, policy: Policy, seed: int) -> Iterator[tuple[Signals, Tensor, Decision]]:
    """Drive one episode of one environment as a robot is driven: by a policy that is given signals and nothing else.

    Yields after each step what the policy was given and decided, and in between the observation (1, obs_size) that
    training would have shown it; `env.ended` tells how the episode ended.
    """
    listener = Listener(env)
    env._sensors, env.auto_reset = listener, False  # type: ignore[assignment]
    try:
        env.seed(seed)
        env.reset()
        policy.reset(listener.signals)
        applied = env.state.command[0].numpy()  # where the robot was held until now
        while True:
            signals, obs = listener.signals, env.obs["policy"]
            decision, applied = policy.infer(signals, applied), None
            env.step(torch.from_numpy(decision.action)[None])
            yield signals, obs, decision
            if env.ended:
                return
    finally:
        env._sensors = listener.sensors


@dataclass(frozen=True)
class Settings:
    """What a simulation is built from."""

    sim: SimConfig = field(default_factory=SimConfig)


def load_task(given: str | None, named: str, what: str) -> type[Task]:
    """The task class that the user gives, else one of Deftly's that a file `what` names: it must not name code to run.

    Raises DeftlyError if there is none, or the two differ.
    """
    if given is None and named not in shipped():
        raise DeftlyError(f"{what} was made for the task {named!r:.60}, none of Deftly's: give the file of that task")
    cls = load(given or named)
    if named and cls.name != named:
        raise DeftlyError(f"{what} was made for the task {named!r:.60}, not for {cls.name}")
    return cls


def rebuild(given: str | None, settings: Mapping[str, Any], named: str = "") -> tuple[Task, SimConfig]:
    """The task (see `load_task`) and physics of a bundle's settings. Raises DeftlyError if the task has others now."""
    cls = load_task(given, named, "the bundle")
    try:
        args: Any = parse(with_task(Settings, cls.Config), [], prog="deftly", filed=settings, origin="the bundle")
    except DeftlyError as error:
        raise DeftlyError(f"the settings of the bundle do not fit {cls.name} as it is now: {error}") from None
    return cls(args.task), args.sim
