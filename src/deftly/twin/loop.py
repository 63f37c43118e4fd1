"""What `sim2sim`, `record` and `replay` share: which policy, in which scene, and one episode of the whole chain.

The chain is the robot's own: signals -> policy -> safety kernel -> driver. Only time is simulated, in lock-step, so a
slow policy is not a late one. The robot stands in READY, held by its servos, for a control period, or as long as the
task's `ready_s` says; then the operator starts, and with the first decision of the policy the episode's clock.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from deftly.config import SEEDS, RunsConfig, Settings, SimConfig, parse, split_task, with_task
from deftly.config.parsing import typed_settings
from deftly.console import Progress
from deftly.contract import PolicyContract
from deftly.control.log import Ring
from deftly.control.loop import Runner
from deftly.control.safety import Kernel, SafetyConfig, State
from deftly.errors import DeftlyError
from deftly.files import sha256
from deftly.policy.protocol import LocalPolicy, Policy

if TYPE_CHECKING:
    from deftly.learn.checkpoint import Checkpoint
    from deftly.tasks import Task
    from deftly.twin.robot import SimRobot

CUT_OFF, FAULT = "cut_off", "fault/"
APPROACH_S = 600.0
"""Longest approach to home for which a log keeps all ticks."""


@dataclass(frozen=True)
class SceneArgs(Settings):
    """Which simulation, and whose settings it has."""

    bundle: Annotated[
        Path | None,
        Doc("Bundle that brings the settings, and the policy if one is wanted; unset: the shipped one brings both."),
    ] = None
    checkpoint: Annotated[
        str | None, Doc("Checkpoint instead of a bundle: latest, a run, a checkpoint folder or shipped.")
    ] = None
    seed: Annotated[int, Ge(0), Lt(SEEDS), Doc("Decides how episodes start and what the sensors' noise is.")] = 0
    noise: Annotated[bool, Doc("Apply the task's sensor noise, delay and dropout.")] = False
    latency_ms: Annotated[
        float, Ge(0), Lt(10_000), Doc("Simulated time from a command until the servos get it, ms.")
    ] = 0.0
    sim: Annotated[SimConfig, Doc("The physics engine; as in the training unless set.")] = field(
        default_factory=SimConfig
    )
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bundle and self.checkpoint:
            raise DeftlyError("give --bundle or --checkpoint, not both")


@dataclass(frozen=True)
class LoopArgs(SceneArgs):
    """A policy in the simulated robot's control loop."""

    server_endpoint: Annotated[
        str | None,
        Doc("Ask the server at tcp://HOST:PORT; a bundle or checkpoint then gives the settings alone."),
    ] = None
    keys: Annotated[Path | None, Doc("The robot's folder of keys, for a server that has them.")] = None
    timeout_ms: Annotated[
        float, Gt(0), Le(1e6), Doc("Longest wait for the server's decision, ms; simulated time stands still meanwhile.")
    ] = 1000.0
    episodes: Annotated[int, Ge(1), Doc("Episodes to run.")] = 50
    safety: Annotated[SafetyConfig, Doc("The safety kernel, as on the robot.")] = field(default_factory=SafetyConfig)


@dataclass(frozen=True)
class Origin:
    """Where a policy comes from, and the settings under which it was made."""

    task: str
    label: str
    sha256: str
    """Of the weights or of the bundle's manifest; empty if a server keeps them."""
    settings: Mapping[str, Any]
    """Sections `task` and `sim`."""
    report: Mapping[str, Any] | None
    """Its `eval.json`, if it has one."""
    local: Callable[[], LocalPolicy] | None
    """Makes the policy in this process; None if only a server has it."""

    def open(self, args: LoopArgs, contract: PolicyContract) -> Policy:
        """The policy. Raises DeftlyError unless it was made under this contract."""
        if args.server_endpoint:
            from deftly.serving.client import Client

            return Client(args.server_endpoint, contract, 1e-3 * args.timeout_ms, args.keys)
        assert self.local is not None
        policy = self.local()
        contract.require(policy.contract, self.label)
        return policy


def prepare(stage: type[Any], verb: str, argv: Sequence[str]) -> tuple[Task, Any, Origin]:
    """Task, arguments and origin of the policy of `deftly VERB [TASK] ...`.

    What the user gives, in files or typed, overrides the settings with which the policy was made.
    """
    name, flags = split_task(argv)
    prog = f"deftly {verb} {name or '[TASK]'}"
    folder = _value(flags, "bundle")
    if name is None and folder is None:
        args = parse(stage, flags, prog=prog)  # answers --help
        why = "a policy server names its robot, not the task: " if getattr(args, "server_endpoint", None) else ""
        raise DeftlyError(f"{why}{verb} needs a task: deftly {verb} TASK, or --bundle DIR; 'deftly tasks' lists tasks")
    origin = _from_bundle(Path(folder)) if folder else None
    from deftly.evaluate.handover import load_task

    cls = load_task(name, origin.task if origin else "", f"bundle {folder}")
    stage = with_task(stage, cls.Config)
    args = parse(stage, flags, prog=prog)
    origin = origin or _find(cls.name, args)
    if origin.task != cls.name:  # a shipped or configured bundle: the one typed was looked at above
        raise DeftlyError(f"{origin.label} was made for the task {origin.task}, not for {cls.name}")
    args = parse(stage, flags, prog=prog, filed=origin.settings, origin=f"the settings of {origin.label}")
    return cls(args.task), args, origin


def _value(flags: Sequence[str], name: str) -> str | None:
    """The last value of a flag, however it is written."""
    found = [setting.words for setting in typed_settings(flags) if setting.key.removeprefix("--") == name]
    return os.path.expanduser(" ".join(found[-1])) if found else None


def _find(task: str, args: SceneArgs) -> Origin:
    if args.bundle:
        return _from_bundle(args.bundle)
    if args.checkpoint is None and (not isinstance(args, LoopArgs) or args.server_endpoint):
        return Origin(task, "the server's policy", "", {}, None, None)  # the settings are the task's own
    if args.checkpoint is None:
        from deftly.policy import bundle

        if shipped := bundle.shipped(task):
            return _from_bundle(shipped)
    from deftly.evaluate.rollout import find_policy
    from deftly.learn import checkpoint

    return _from_checkpoint(checkpoint.load(find_policy(args.checkpoint, task, args.runs)), task)


def _from_bundle(path: Path) -> Origin:
    from deftly.policy import bundle

    found = bundle.load(path)
    sha = sha256(path / bundle.MANIFEST, "the manifest of a bundle")
    label = "the shipped bundle" if path == bundle.shipped(found.task) else f"bundle {path}"
    return Origin(found.task, label, sha, found.manifest["settings"], _measured(label, found.report), found.policy)


def _measured(label: str, report: Mapping[str, Any]) -> Mapping[str, Any]:
    """A bundle's report. Raises DeftlyError, before any episode, if no success rate can be held against it."""
    try:
        success, episodes = report["success"], report["episodes"]
        count, shares = success["count"], (success["rate"], *success["wilson95"])
        whole = type(count) is type(episodes) is int and 0 <= count <= episodes and 0 < episodes <= 1_000_000
        if whole and len(shares) == 3 and all(0 <= share <= 1 for share in shares):
            return report
    except (KeyError, TypeError):
        pass
    raise DeftlyError(f"eval.json of {label} is no report of an evaluation: export the bundle again")


def _from_checkpoint(found: Checkpoint, task: str) -> Origin:
    from deftly import workspace
    from deftly.evaluate import report

    def local() -> LocalPolicy:
        import torch

        network = found.policy()
        return LocalPolicy(found.contract, lambda obs: network(torch.from_numpy(obs)).numpy())

    sections = ("task", "sim") if found.task == task else ("sim",)
    settings = {name: found.config[name] for name in sections if name in found.config}
    sha = sha256(found.path / workspace.WEIGHTS, "the weights of a checkpoint")
    beside = [folder / "eval.json" for folder in (found.path, found.path.parent) if found.label == "shipped"]
    measured = next((report.read_report(path) for path in beside if path.is_file()), None)
    return Origin(task, f"checkpoint {found.label}", sha, settings, measured, local)


class Outcome(NamedTuple):
    """What became of an episode."""

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
    figures: dict[str, float]
    """The task's own."""


def run_episode(
    robot: SimRobot,
    policy: Policy,
    safety: SafetyConfig,
    episode: int,
    *,
    limit: int = 0,
    state: np.ndarray | None = None,
    each: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run an episode of the chain; `limit` cuts it off (0 does not), `each` is called at its start and after each tick.

    A fault ends it as a failure. `state` is one to start from instead of the task's own.
    """
    robot.reset(episode, state)
    contract, state0, end = robot.contract, robot.state, ""
    approach = math.ceil(APPROACH_S * contract.rate) if safety.approach_s else 0
    ring = Ring(contract, 1 + robot.ready + robot.task.cfg.episode_steps + approach)
    kernel = Kernel(contract.robot, contract.rate, safety)
    runner = Runner(policy, kernel, robot, ring)
    runner.episode = episode
    each()
    for _ in range(robot.ready):
        runner.step(robot.now)
        robot.advance(judge=False)
    if kernel.state is State.READY:
        runner.start()
    while kernel.state is State.ACTIVE and not end and not robot.broken:
        driven = kernel.wants_policy
        runner.step(robot.now)
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
        robot.task.update(robot.view)  # a task has its figures from its first look on
    return Outcome(end, reason, success, robot.steps, kernel.clipped, state0, ring.rows(), robot.figures)


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
        """The episodes one after the other, each with its last picture held for half a second."""
        from deftly.render import pose

        model, hold = self._robot.model, round(self._robot.contract.rate / 2)
        kept = self._states[: self._episodes]
        total = sum(len(states) + hold for states in kept)
        with self._renderer as renderer, Progress(total, "rendering") as shown:
            for states in kept:
                for state in [*states, *states[-1:] * hold]:
                    yield renderer.picture(model, pose(model, state))
                    shown.advance()
