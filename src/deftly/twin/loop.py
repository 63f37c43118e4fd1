"""What `sim2sim`, `record` and `replay` share: which policy, in which scene, and one episode of the whole chain.

The chain is the robot's own: signals -> policy -> safety kernel -> driver. Only time is simulated, in lock-step, so a
slow policy is not a late one. The robot stands in READY, held by its servos, for a control period, or as long as the
task's `ready_s` says; then the operator starts, and with the first decision of the policy the episode's clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from deftly.config import SEEDS, RunsConfig, SimConfig
from deftly.console import Progress
from deftly.control.drivers import Driver
from deftly.control.drivers.faults import Faulty, FaultyPolicy, Injection, Saboteur
from deftly.control.log import LogBuffer
from deftly.control.loop import Runner, Tick
from deftly.control.operator import Operator
from deftly.control.safety import SAFE, Kernel, SafetyConfig, State
from deftly.evaluate.source import PolicyArgs
from deftly.policy.protocol import Policy

if TYPE_CHECKING:
    from deftly.twin.robot import SimRobot

CUT_OFF, FAULT = "cut_off", "fault/"
APPROACH_S = 600.0
"""Longest approach to home for which a log keeps all ticks."""


@dataclass(frozen=True)
class SceneArgs(PolicyArgs):
    """Which policy, which simulation, and whose settings it has."""

    seed: Annotated[
        int, Ge(0), Lt(SEEDS), Doc("Decides how episodes start and what the sensors' noise is.")
    ] = 0
    noise: Annotated[bool, Doc("Apply the task's sensor noise, delay and dropout.")] = False
    latency_ms: Annotated[
        float, Ge(0), Lt(10_000), Doc("Simulated time from a command until the servos get it, ms.")
    ] = 0.0
    sim: Annotated[SimConfig, Doc("The physics engine; as in the training unless set.")] = field(
        default_factory=SimConfig
    )
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)


@dataclass(frozen=True)
class LoopArgs(SceneArgs):
    """A policy in the simulated robot's control loop."""

    timeout_ms: Annotated[
        float,
        Gt(0),
        Le(1e6),
        Doc("Longest wait for the server's decision, ms; simulated time stands still meanwhile."),
    ] = 1000.0
    episodes: Annotated[int, Ge(1), Doc("Episodes to run.")] = 50
    safety: Annotated[SafetyConfig, Doc("The safety kernel, as on the robot.")] = field(
        default_factory=SafetyConfig
    )


class EpisodeResult(NamedTuple):
    """How an episode of the chain went."""

    end: str
    """`success`, `failed/NAME`, `time_out`, `fault/NAME` or `cut_off`."""
    reason: str
    """Of a fault, in words."""
    success: bool
    steps: int
    """Control periods since the policy's first decision."""
    clipped: int
    """Of them, how often the safety kernel cut a target back."""
    state0: np.ndarray
    """The simulation's state before the first tick."""
    rows: dict[str, np.ndarray]
    """Its ticks, as in a log."""
    metrics: dict[str, float]
    """The task's own."""
    injected: Injected | None = None
    """What came of the fault that was injected; None: none was, or the episode was over before."""


class Injected(NamedTuple):
    """What came of a fault that was injected."""

    name: str
    fault: str
    """What the safety kernel called it; empty if it did not see it."""
    periods: int
    """Control periods from the first in which it could be seen until no policy drove any more, or the episode ended."""


class Injector:
    """Gives an episode one fault, from a time on.

    Args:
        robot: The simulated robot.
        injection: Which fault, and when; None: none.
        operator: Who says what the policy's inputs are; None: the task.
    """

    def __init__(
        self, robot: SimRobot, injection: Injection | None, operator: Operator | None = None
    ):
        self._operator = operator
        self.injection = injection or Injection("", math.inf)
        rate = robot.contract.rate
        self._robot = robot
        self._due = self.injection.at * rate - 0.5
        name = self.injection.name
        self._saboteur = Saboteur(robot.contract.robot, rate, name, self._stand_still)
        self._struck = 0

    def _stand_still(self, seconds: float) -> None:
        """Let the loop's time pass, while physics goes on."""
        periods = max(1, round(seconds * self._robot.contract.rate))
        self._robot.step(periods * self._robot.substeps)

    def driver(self) -> Driver:
        """The robot with its fault."""
        return Faulty(self._robot, self._saboteur) if self.injection.name else self._robot

    def policy(self, policy: Policy) -> Policy:
        """A policy with its fault."""
        return FaultyPolicy(policy, self._saboteur) if self.injection.name else policy

    def step(self, runner: Runner) -> Tick:
        """One control period, with the fault if it is due."""
        name = self.injection.name
        if not name:
            self._listen(runner)
            return runner.step(self._robot.now)
        self._saboteur.strikes = self._robot.steps >= self._due and runner.kernel.wants_policy
        strikes = self._saboteur.strikes
        self._struck += strikes and self._shows(runner)
        if not (strikes and name == "mute"):
            self._listen(runner)
        if strikes and name == "hold":
            runner.hold()
        if strikes and name == "stall":
            self._stand_still(5 / self._robot.contract.rate)
        back = 1.0 if strikes and name == "clock" else 0.0
        return runner.step(self._robot.now - back)

    def _listen(self, runner: Runner) -> None:
        """Let the policy hear the operator, and let the task judge by him."""
        if not runner.policy.contract.inputs:
            return
        if self._operator is None:
            runner.hear(self._robot.now, **self._robot.said())
            return
        for word in self._operator.words():
            if word == "h":
                runner.hold()
            if word == "q":
                raise KeyboardInterrupt
        said = self._operator.hear(self._robot.now, runner.kernel.wants_policy)
        if said is not None:
            runner.hear(self._robot.now, **said)
            self._robot.hear(runner.inputs)
        elif runner.heard_at is None:
            runner.hear(self._robot.now)  # he is expected from now on

    def _shows(self, runner: Runner) -> bool:
        """Whether it can be seen: that an operator is not heard, only after the time that he may be silent for."""
        if self.injection.name != "mute":
            return True
        heard_at = runner.heard_at or 0.0
        return self._robot.now - heard_at > runner.kernel.cfg.input_s

    def result(self, kernel: Kernel) -> Injected | None:
        """What came of it; None if it did not strike."""
        if not self._struck:
            return None
        seen = kernel.fault if kernel.state in SAFE else ""
        return Injected(self.injection.name, str(seen), self._struck)


def longest_episode(robot: SimRobot, safety: SafetyConfig) -> int:
    """The most ticks that an episode can have, from before the robot is ready to its end."""
    approach = math.ceil(APPROACH_S * robot.contract.rate) if safety.approach_s else 0
    return 1 + robot.ready + robot.task.cfg.episode_steps + approach


def run_episode(
    robot: SimRobot,
    policy: Policy,
    safety: SafetyConfig,
    episode: int,
    *,
    limit: int = 0,
    state: np.ndarray | None = None,
    each: Callable[[], None] = lambda: None,
    injection: Injection | None = None,
    operator: Operator | None = None,
) -> EpisodeResult:
    """Run an episode of the chain; `limit` cuts it off (0 does not), `each` is called at its start and after each tick.

    A fault ends it as a failure. `state` is one to start from instead of the task's own, `injection` a fault to inject,
    `operator` who says the policy's inputs instead of the task.
    """
    robot.reset(episode, state)
    contract, state0, end = robot.contract, robot.state, ""
    buffer = LogBuffer(contract, longest_episode(robot, safety))
    kernel = Kernel(contract.robot, contract.rate, safety)
    kernel.stood_still(robot.now, robot.read())
    injector = Injector(robot, injection, operator)
    runner = Runner(injector.policy(policy), kernel, injector.driver(), buffer)
    runner.episode = episode
    each()
    for _ in range(robot.ready):
        runner.step(robot.now)
        robot.advance(judge=False)
    if kernel.state is State.READY:
        runner.start()
    while kernel.state is State.ACTIVE and not end and not robot.broken:
        driven = kernel.wants_policy
        injector.step(runner)
        if kernel.state is State.ACTIVE:
            robot.advance(judge=driven)
            each()
            if driven:
                end = robot.end or (CUT_OFF if robot.steps == limit else "")
    if robot.broken:  # then the kernel met the numbers of MuJoCo's reset
        end = robot.end
    reason = "" if end else "; ".join(filter(None, (kernel.reason, runner.problem)))
    success, end = bool(end) and robot.success, end or f"{FAULT}{kernel.fault}"
    if not robot.steps:
        robot.task.update(robot.view)  # a task has its metrics from its first update on
    return EpisodeResult(
        end,
        reason,
        success,
        robot.steps,
        kernel.clipped,
        state0,
        buffer.rows(),
        robot.metrics,
        injector.result(kernel),
    )


class Film:
    """Keeps the states of the first episodes, and renders them; without OpenGL it raises at once."""

    def __init__(self, robot: SimRobot, episodes: int, camera: str | None):
        from deftly.render import Renderer

        self._robot, self._episodes = robot, episodes
        self._renderer = Renderer(robot.model, camera)
        self._states: list[list[np.ndarray]] = []

    def watch(self) -> None:
        """Keep the state of now."""
        if self._robot.now == 0.0:
            self._states.append([])
        if len(self._states) <= self._episodes:
            self._states[-1].append(self._robot.state)

    def frames(self) -> Iterator[np.ndarray]:
        """The episodes one after the other, each with its last frame held for half a second."""
        from deftly.render import pose

        model, hold = self._robot.model, round(self._robot.contract.rate / 2)
        kept = self._states[: self._episodes]
        total = sum(len(states) + hold for states in kept)
        with self._renderer as renderer, Progress(total, "rendering") as shown:
            for states in kept:
                for state in [*states, *states[-1:] * hold]:
                    yield renderer.image(model, pose(model, state))
                    shown.advance()
