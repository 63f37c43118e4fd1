"""Sim2sim: prove that what was handed over does what training measured, before it meets a robot.

One plain MuJoCo simulation (`simrobot.py`, not the environment of training), the control loop and the safety kernel of
the robot, and the policy from a bundle, or over the socket. Episodes start as in training, on the nominal model.

The kernel's soft start takes part: for `safety.ramp_s` after the start, speed is limited to a growing share of each
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly import __version__, render, stats
from deftly.console import progress
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.evaluate import report
from deftly.evaluate.evaluate import check_gate
from deftly.evaluate.source import PolicySource
from deftly.files import write_json
from deftly.policy.protocol import Policy
from deftly.twin.loop import FAULT, LoopArgs, Outcome, run_episode

if TYPE_CHECKING:
    from deftly.tasks import Task
    from deftly.twin.robot import SimRobot

SCHEMA = "deftly.sim2sim/1"
METRICS = ("steps", "seconds", "success_seconds", "clipped", "faults", "violation", "agrees")
METRICS += tuple(
    f"{name}_{part}" for name in ("infer_ms", "tick_ms") for part in ("p50", "p99", "max")
)
"""What a gate may name beside `success`, `broken_physics` and the task's own figures."""
SLACK = 1e-9
"""rad/s (m/s) by which rounding alone may exceed a top speed."""


def measure(
    robot: SimRobot, policy: Policy, args: LoopArgs, hooks: Sequence[Callable[[], None]] = ()
) -> list[Outcome]:
    """Run the episodes; the hooks are called at the start of each and after every tick."""

    def each() -> None:
        for hook in hooks:
            hook()

    episodes = progress(range(args.episodes), "driving the simulated robot")
    return [run_episode(robot, policy, args.safety, i, each=each) for i in episodes]


def summarize(
    task: Task, args: LoopArgs, origin: PolicySource, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """What `sim2sim.json` holds; its success and figures are laid out as those of `eval.json`."""
    contract = task.contract()
    success = np.array([o.success for o in outcomes])
    steps = np.array([o.steps for o in outcomes], float)
    rows = {
        name: np.concatenate([o.rows[name] for o in outcomes]) for name in ("infer_ms", "tick_ms")
    }
    driven = np.isfinite(rows["infer_ms"])
    own = {name: np.array([o.figures[name] for o in outcomes]) for name in outcomes[0].figures}
    clipped = np.array([o.clipped for o in outcomes], float)
    seconds = steps / contract.rate
    figures = {
        "steps": steps,
        "seconds": seconds,
        "success_seconds": np.where(success, seconds, np.nan),
    }
    endpoint = origin.label if origin.loaded is None else None
    result = {
        "schema": SCHEMA,
        "task": task.name,
        "robot": contract.robot.name,
        "contract": contract.hash,
        "policy": {
            "label": origin.label,
            "sha256": origin.sha256,
            "endpoint": endpoint,
        },
        "episodes": len(outcomes),
        "seed": args.seed,
        "preset": args.sim.preset,
        "disturbances": {"noise": args.noise, "latency_ms": args.latency_ms},
        "safety": asdict(args.safety),
        "success": stats.proportion(success),
        "figures": {
            k: stats.summarize(v) for k, v in {**figures, "clipped": clipped, **own}.items()
        },
        "ends": dict(Counter(o.end for o in outcomes).most_common()),
        "reasons": dict(
            Counter(f"{o.end}: {o.reason}" for o in outcomes if o.reason).most_common(10)
        ),
        "broken_physics": sum(o.end == "failed/physics" for o in outcomes),
        "violation": max(violation(contract, o.rows) for o in outcomes),
        "timing": {name: stats.percentiles(values[driven]) for name, values in rows.items()},
        "version": __version__,
    }
    return {**result, "eval": agreement(result["success"], len(outcomes), origin.report)}


def violation(contract: PolicyContract, rows: Mapping[str, np.ndarray]) -> float:
    """By how much, at most, a command was beyond a limit (rad or m), or too fast (rad/s or m/s); 0 if none was."""
    joints, command = contract.joints, rows["command"]
    lower, upper, speed = np.array([(j.lower, j.upper, j.velocity) for j in joints]).T
    beyond = np.maximum(lower - command, command - upper)
    fast = np.abs(np.diff(command, axis=0)) / np.diff(rows["now"])[:, None] - speed - SLACK
    both = np.concatenate((beyond, fast))
    return float(np.max(both, initial=0.0, where=np.isfinite(both)))


def agreement(
    success: Mapping[str, Any], total: int, measured: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Whether a success rate is that of an `eval.json`, and why; None if there is none.

    It is if it lies within the 95 % interval of `eval`, or if the two intervals overlap and Fisher's p is 0.05 or more.
    """
    if measured is None:
        return None
    theirs, episodes = measured["success"], measured["episodes"]
    (low, high), (ours_low, ours_high) = theirs["wilson95"], success["wilson95"]
    p = stats.fisher(success["count"], total, theirs["count"], episodes)
    within = agrees = low <= success["rate"] <= high
    how = "the rate lies within its interval"
    if not within:
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


def judge(gates: Sequence[str], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What became of the gates: besides the figures' means they may name faults, violation, agrees and the timing."""
    held = result["eval"]
    extra = {
        "faults": sum(count for end, count in result["ends"].items() if end.startswith(FAULT)),
        "violation": result["violation"],
        "agrees": None if held is None else float(held["agrees"]),
        **{
            f"{name}_{key}": v
            for name, timing in result["timing"].items()
            for key, v in timing.items()
        },
    }
    figures = {**result["figures"], **{name: {"mean": value} for name, value in extra.items()}}
    return [check_gate(text, {**result, "figures": figures}) for text in gates]


def require_metrics(gates: Sequence[str], robot: SimRobot) -> None:
    """Raise DeftlyError, before any episode, if a gate names what `judge` will not know."""
    robot.reset(0)
    robot.task.update(robot.view)  # a task has its figures from its first look on
    figures = {name: {"mean": None} for name in (*METRICS, *robot.figures)}
    for text in gates:
        check_gate(text, {"success": {"rate": None}, "broken_physics": None, "figures": figures})


def save(folder: Path | None, result: Mapping[str, Any]) -> None:
    """Write `sim2sim.json`, if there is a folder for it."""
    if folder:
        write_json(folder / "sim2sim.json", result)


def text(result: Mapping[str, Any]) -> list[str]:
    """The lines that are printed."""
    figures, timing, safety = result["figures"], result["timing"], result["safety"]
    noise = "on" if result["disturbances"]["noise"] else "off"
    where = f" at {result['policy']['endpoint']}" if result["policy"]["endpoint"] else ""
    lines = [
        report.headline(result),
        f"policy: {result['policy']['label']}{where}; noise {noise}, "
        f"latency {result['disturbances']['latency_ms']:g} ms, soft start {safety['ramp_s']:g} s",
        f"episodes: {figures['steps']['mean']:.1f} steps ({figures['seconds']['mean']:.2f} s) on average; "
        + ", ".join(f"{end} {count}" for end, count in result["ends"].items()),
        f"safety: {figures['clipped']['mean']:.1f} ticks an episode cut back; "
        f"largest violation of a limit {result['violation']:.3g}",
        *(f"  {count} x {reason}" for reason, count in result["reasons"].items()),
    ]
    for name, what in (("infer_ms", "infer"), ("tick_ms", "tick")):
        if timing[name]["p50"] is not None:
            lines.append(
                f"{what}: p50 {timing[name]['p50']:.2f} ms, p99 {timing[name]['p99']:.2f} ms"
            )
    if held := result["eval"]:
        verdict = "agrees" if held["agrees"] else "DIFFERS"
        share, (low, high) = held["success"]["rate"], held["success"]["wilson95"]
        lines.append(
            f"eval: {share:.1%} of {held['episodes']} ({low:.1%} to {high:.1%}): {verdict}, {held['how']}"
        )
    return lines + [f"gate {report.verdict(gate)}" for gate in result["gates"]]


@contextlib.contextmanager
def window(robot: SimRobot, camera: str | None) -> Iterator[Callable[[], None]]:
    """A window of MuJoCo's viewer; what it yields shows the robot and waits for the time to pass."""
    if not render.has_display():
        raise DeftlyError(
            "no display for --render: leave it out, or write a video with --video FILE.mp4"
        )
    import mujoco
    from mujoco import viewer

    index, due = render.camera_index(robot.model, camera), [time.perf_counter()]
    with viewer.launch_passive(robot.model, robot.data) as shown:
        if camera:
            shown.cam.type, shown.cam.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, index

        def show() -> None:
            if not shown.is_running():
                raise KeyboardInterrupt  # closing the window is the user's way to end
            shown.sync()
            due[0] = max(due[0] + 1 / robot.contract.rate, time.perf_counter() - 0.2)
            time.sleep(max(0.0, due[0] - time.perf_counter()))

        yield show
