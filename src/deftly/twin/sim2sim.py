"""Sim2sim: prove that what was handed over does what training measured, before it meets a robot.

One plain MuJoCo simulation (`twin.robot`, not the environment of training), the control loop and the safety kernel of
the robot, and the policy from a bundle, or over the socket. Episodes start as in training, on the nominal model. It is
one of the worlds of `evaluate.evaluate`: the report is that of `deftly eval`, with a section `twin` of what only the
control loop can measure.

The kernel's soft start takes part: for `safety.ramp_s` after the start, speed is limited to a growing fraction of each
joint's top speed, and the policy is told what was really commanded. So episodes last a few ticks longer than in `eval`,
while success is held against the same bound. An episode lasts as many ticks as in training, counted from the policy's
first decision. A fault of the kernel, a start pose outside its envelope among them, is a failed episode.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deftly import render, stats
from deftly.console import progress
from deftly.contract import PolicyContract
from deftly.control.drivers import faults
from deftly.control.drivers.faults import Injection
from deftly.control.operator import Operator
from deftly.errors import DeftlyError
from deftly.evaluate import report
from deftly.evaluate.evaluate import Metrics, Result, evaluate
from deftly.evaluate.rollout import Episodes
from deftly.evaluate.source import PolicySource
from deftly.policy.protocol import Policy
from deftly.twin.loop import FAULT, EpisodeResult, LoopArgs, run_episode
from deftly.twin.robot import FAILED, TIME_OUT

if TYPE_CHECKING:
    from deftly.twin.robot import SimRobot

TIMINGS = ("infer_ms", "tick_ms")
MEASURED = ("faults", "violation", "agrees", "missed")
MEASURED += tuple(f"{name}_{part}" for name in TIMINGS for part in ("p50", "p99", "max"))
"""What a gate may name beside the metrics of the episodes."""
ANY = ("any", "random")
"""Of `--fault`: in each episode another one, at another time."""
SLACK = 1e-9
"""rad/s (m/s) by which rounding alone may exceed a top speed."""


class TwinWorld:
    """The simulated robot with the control loop and the safety kernel, one episode after the other.

    Args:
        robot: The simulated robot.
        args: Its disturbances, and the limits of the safety kernel.
        measured: The policy's report of `deftly eval`, with which this one should agree, unless a fault is injected or
            an operator gives other commands; None if it has none.
        hooks: Called at the start of each episode and after every tick.
        fault: `NAME` or `NAME@seconds` of a fault to inject, or `any`; empty: none.
        operator: Who says what the policy's inputs are; None: the task.
    """

    name = "twin"

    def __init__(
        self,
        robot: SimRobot,
        args: LoopArgs,
        measured: Mapping[str, Any] | None = None,
        hooks: Sequence[Callable[[], None]] = (),
        fault: str = "",
        operator: Operator | None = None,
    ):
        self.robot = robot
        self._operator = operator
        self._fault = fault
        if fault and fault not in ANY:
            faults.parse(fault, robot.contract)
        self.task = robot.task
        self.seed = args.seed
        self._args = args
        # With a fault, or another operator's words, episodes are not those that `deftly eval` measured.
        self._measured = None if fault or operator else measured
        self._hooks = hooks

    @property
    def conditions(self) -> dict[str, Any]:
        """Physics and disturbances, as a report has them."""
        args = self._args
        disturbances = {
            "randomize": False,
            "noise": args.noise,
            "pushes": False,
            "latency_ms": [args.latency_ms, args.latency_ms],
        }
        return {"preset": args.sim.preset, "engine": "mj_step", "disturbances": disturbances}

    def metric_names(self) -> list[str]:
        """The metrics of its episodes, and of the control loop."""
        self.robot.reset(0)
        self.task.update(self.robot.view)  # a task has its metrics from its first update on
        failed = [FAILED + name for name in self.robot.failures]
        return ["steps", TIME_OUT, *failed, "fault", "clipped", *self.robot.metrics, *MEASURED]

    def run(self, policy: Policy, episodes: int) -> Episodes:
        """Run exactly so many episodes."""
        began = time.perf_counter()
        shown = progress(range(episodes), "driving the simulated robot")
        results = [self._episode(policy, episode) for episode in shown]
        return Episodes(
            values={name: torch.tensor(v) for name, v in self._values(results).items()},
            rate=self.robot.contract.rate,
            seconds=time.perf_counter() - began,
            sections={"twin": self._section(results)},
        )

    def _episode(self, policy: Policy, episode: int) -> EpisodeResult:
        injection = self._injection(episode)
        return run_episode(
            self.robot,
            policy,
            self._args.safety,
            episode,
            each=self._after_tick,
            injection=injection,
            operator=self._operator,
        )

    def _injection(self, episode: int) -> Injection | None:
        """The fault of an episode."""
        contract = self.robot.contract
        if not self._fault:
            return None
        if self._fault not in ANY:
            return faults.parse(self._fault, contract)
        rng = np.random.default_rng([self.seed, episode])
        seconds = 0.5 * self.task.cfg.episode_steps / contract.rate
        name = str(rng.choice(faults.names(contract)))
        at = float(rng.uniform(0.0, seconds))
        return Injection(name, at)

    def _after_tick(self) -> None:
        for hook in self._hooks:
            hook()

    def _values(self, results: Sequence[EpisodeResult]) -> dict[str, list[float]]:
        """The metrics by name, one number for each episode."""
        failed = {
            FAILED + name: [float(r.end == FAILED + name) for r in results]
            for name in self.robot.failures
        }
        own = {name: [r.metrics[name] for r in results] for name in results[0].metrics}
        return {
            "success": [float(r.success) for r in results],
            "steps": [float(r.steps) for r in results],
            TIME_OUT: [float(r.end == TIME_OUT) for r in results],
            **failed,
            "fault": [float(r.end.startswith(FAULT)) for r in results],
            "clipped": [float(r.clipped) for r in results],
            **own,
        }

    def _section(self, results: Sequence[EpisodeResult]) -> dict[str, Any]:
        """What only the control loop can measure: the section `twin` of a report."""
        ends = Counter(r.end for r in results)
        reasons = Counter(f"{r.end}: {r.reason}" for r in results if r.reason)
        success = stats.proportion(np.array([r.success for r in results]))
        return {
            "safety": asdict(self._args.safety),
            "ends": dict(ends.most_common()),
            "reasons": dict(reasons.most_common(10)),
            "faults": sum(count for end, count in ends.items() if end.startswith(FAULT)),
            "violation": max(violation(self.robot.contract, r.rows) for r in results),
            **_injected(results),
            "timing": {name: _timing(results, name) for name in TIMINGS},
            "eval": agreement(success, len(results), self._measured),
        }


def run_sim2sim(
    robot: SimRobot,
    source: PolicySource,
    args: LoopArgs,
    *,
    gates: Sequence[str] = (),
    hooks: Sequence[Callable[[], None]] = (),
    fault: str = "",
    operator: Operator | None = None,
) -> tuple[Result, Metrics]:
    """Evaluate a policy on the simulated robot: the report, and the metrics of each episode.

    Raises DeftlyError before the first episode if the policy's own report is none, a gate names no metric, or there is
    no such fault.
    """
    world = TwinWorld(robot, args, source.report, hooks, fault, operator)
    timeout = 1e-3 * args.timeout_ms
    return evaluate(world, source, args.episodes, timeout=timeout, keys=args.keys, gates=gates)


def _injected(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """What came of the faults that were injected, by name; empty if none was."""
    struck = [result.injected for result in results if result.injected]
    if not struck:
        return {}
    by_name = {}
    for name in sorted({each.name for each in struck}):
        some = [each for each in struck if each.name == name]
        seen = [each for each in some if each.fault]
        by_name[name] = {
            "struck": len(some),
            "safe": len(seen),
            "faults": dict(Counter(each.fault for each in seen).most_common()),
            "periods_max": max((each.periods for each in seen), default=None),
        }
    # A fault that shows in motion only may never show; every other one must.
    must = [each for each in struck if each.name not in faults.BY_MOTION]
    missed = sum(not each.fault for each in must)
    return {"injected": by_name, "missed": missed}


def _timing(results: Sequence[EpisodeResult], name: str) -> dict[str, float | None]:
    """Percentiles of a duration over the ticks in which the policy was asked, ms."""
    values = np.concatenate([r.rows[name] for r in results])
    finite = [np.isfinite(r.rows["infer_ms"]) for r in results]
    asked = np.concatenate(finite)
    return stats.percentiles(values[asked])


def violation(contract: PolicyContract, rows: Mapping[str, np.ndarray]) -> float:
    """By how much, at most, a command was beyond a limit (rad or m), or too fast (rad/s or m/s); 0 if none was."""
    command = rows["command"]
    limits = np.array([(joint.lower, joint.upper, joint.velocity) for joint in contract.joints])
    lower, upper, speed = limits.T
    beyond = np.maximum(lower - command, command - upper)
    way = np.abs(np.diff(command, axis=0))
    velocity = way / np.diff(rows["now"])[:, None]
    excess = np.concatenate((beyond, velocity - speed - SLACK))
    return float(np.max(excess, initial=0.0, where=np.isfinite(excess)))


def agreement(
    success: Mapping[str, Any], total: int, measured: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Whether a success rate is that of an `eval.json`, and why; None if there is none.

    It is if it lies within the 95 % interval of `eval`, or if the two intervals overlap and Fisher's p is 0.05 or more.
    """
    if measured is None:
        return None
    theirs, episodes = measured["success"], measured["episodes"]
    low, high = theirs["wilson95"]
    ours_low, ours_high = success["wilson95"]
    p = stats.fisher(success["count"], total, theirs["count"], episodes)
    within = low <= success["rate"] <= high
    if within:
        agrees = True
        how = "the rate lies within its interval"
    else:
        agrees = low <= ours_high and ours_low <= high and p >= 0.05
        where = "intervals overlap" if agrees else "rate lies outside its interval"
        how = f"the {where}, and p = {p:.2g} (Fisher)"
    return {
        "agrees": agrees,
        "within_interval": within,
        "how": how,
        "p": p,
        "success": theirs,
        "episodes": episodes,
    }


def text(result: Mapping[str, Any]) -> list[str]:
    """The lines that are printed, before the conclusion of every report."""
    metrics = result["metrics"]
    twin = result["twin"]
    noise = "on" if result["disturbances"]["noise"] else "off"
    latency = result["disturbances"]["latency_ms"][0]
    counts = [f"{end} {count}" for end, count in twin["ends"].items()]
    ends = ", ".join(counts)
    steps = metrics["steps"]["mean"]
    seconds = metrics["seconds"]["mean"]
    lines = [
        f"noise {noise}, latency {latency:g} ms, soft start {twin['safety']['ramp_s']:g} s",
        f"episodes: {steps:.1f} steps ({seconds:.2f} s) on average; {ends}",
        f"safety: clipped in {metrics['clipped']['mean']:.1f} ticks an episode; "
        f"largest violation of a limit {twin['violation']:.3g}",
        *(f"  {count} x {reason}" for reason, count in twin["reasons"].items()),
        *_text_of_faults(twin.get("injected", {})),
    ]
    for name in TIMINGS:
        timing = twin["timing"][name]
        p50 = timing["p50"]
        p99 = timing["p99"]
        if p50 is not None:
            lines.append(f"{name.removesuffix('_ms')}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    if held := twin["eval"]:
        verdict = "agrees" if held["agrees"] else "DIFFERS"
        low, high = held["success"]["wilson95"]
        lines.append(
            f"eval: {held['success']['rate']:.1%} of {held['episodes']} "
            f"({low:.1%} to {high:.1%}): {verdict}, {held['how']}"
        )
    return [*lines, *report.conclusion(result)]


def _text_of_faults(injected: Mapping[str, Any]) -> list[str]:
    """A line for each fault that was injected."""
    lines = []
    for name, found in injected.items():
        counts = [f"{fault} {count}" for fault, count in found["faults"].items()]
        words = ", ".join(counts)
        caught = f"safe in {found['safe']} of {found['struck']} episodes"
        lines.append(f"fault {name}: {caught}, {found['periods_max']} periods at most ({words})")
    return lines


@contextlib.contextmanager
def window(robot: SimRobot, camera: str | None) -> Iterator[Callable[[], None]]:
    """A window of MuJoCo's viewer; what it yields shows the robot and waits for the time to pass."""
    if not render.has_display():
        raise DeftlyError(
            "no display for --render: leave it out, or write a video with --video FILE.mp4"
        )
    import mujoco
    from mujoco import viewer

    index = render.camera_index(robot.model, camera)
    due = [time.perf_counter()]
    with viewer.launch_passive(robot.model, robot.data) as shown:
        if camera and index >= 0:
            shown.cam.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
            shown.cam.fixedcamid = index

        def show() -> None:
            if not shown.is_running():
                raise KeyboardInterrupt  # closing the window is the user's way to end
            shown.sync()
            next_step = due[0] + 1 / robot.contract.rate
            due[0] = max(next_step, time.perf_counter() - 0.2)
            time.sleep(max(0.0, due[0] - time.perf_counter()))

        yield show
