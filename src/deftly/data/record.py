"""`deftly record`: keep episodes of the simulated robot, tick by tick, in the format of the robot's own log.

Beside the rows of `deftly.log/1` the file says how they came about, and from which state of the simulation each episode
started, so that `deftly replay` starts alike.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from deftly import __version__
from deftly.config import to_yaml
from deftly.control import log
from deftly.errors import DeftlyError
from deftly.policy.protocol import Policy
from deftly.twin.loop import LoopArgs, Origin, Outcome, prepare, run_episode

if TYPE_CHECKING:
    from deftly.tasks import Task
    from deftly.twin.robot import SimRobot


@dataclass(frozen=True)
class RecordArgs(LoopArgs):
    """Record episodes of a simulated robot that a policy drives."""

    out: Path | None = None
    """File to write, FILE.npz."""
    episodes: int = 1
    """Episodes to record."""
    num_steps: int = 0
    """Record so many steps instead, of as many episodes as it takes; the last is cut off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < 0:
            raise DeftlyError(f"num-steps is {self.num_steps}, but it must be 0 (whole episodes) or more")
        if self.out is not None and self.out.suffix != ".npz":
            raise DeftlyError(f"a recording is an .npz file: --out {self.out.with_suffix('.npz')}, not {self.out}")


def run(robot: SimRobot, policy: Policy, args: RecordArgs) -> list[Outcome]:
    """Run the episodes, or the steps."""
    outcomes: list[Outcome] = []
    while (left := args.num_steps - sum(o.steps for o in outcomes)) > 0 or not args.num_steps:
        if len(outcomes) == args.episodes and not args.num_steps:
            break
        outcome = run_episode(robot, policy, args.safety, len(outcomes), limit=max(0, left))
        outcomes.append(outcome)
        if args.num_steps and not outcome.steps:
            raise DeftlyError(f"episode {len(outcomes) - 1} ended before its first step, {outcome.end}")
    return outcomes


def facts(task: Task, args: RecordArgs, origin: Origin, outcomes: list[Outcome]) -> dict[str, Any]:
    """What a recording says beside its rows; arrays lead with the episodes."""
    settings = {name: yaml.safe_load(to_yaml(part)) for name, part in (("task", task.cfg), ("sim", args.sim))}
    rate = task.contract().rate
    return {
        "task": task.name,
        "seed": args.seed,
        "noise": args.noise,
        "latency_ms": args.latency_ms,
        "rate": rate,
        "step_dt": 1.0 / rate,
        "num_steps": sum(o.steps for o in outcomes),
        "safety": json.dumps(asdict(args.safety)),
        "settings": json.dumps(settings),
        "policy": f"{origin.label} at {args.server_endpoint}" if args.server_endpoint else origin.label,
        "policy_sha256": origin.sha256,
        "success": np.array([o.success for o in outcomes]),
        "end": np.array([o.end for o in outcomes]),
        "steps": np.array([o.steps for o in outcomes]),
        "state0": np.stack([o.state0 for o in outcomes]),
        "deftly": __version__,
    }


def main(argv: list[str]) -> int:
    """Run `deftly record`."""
    task, args, origin = prepare(RecordArgs, "record", argv)
    if args.out is None:
        raise DeftlyError("record needs a file to write: --out FILE.npz")
    from deftly.twin.robot import SimRobot

    robot = SimRobot(task, args.sim.preset, args.seed, args.noise, args.latency_ms)
    policy = origin.open(args, robot.contract)
    try:
        outcomes = run(robot, policy, args)
    finally:
        policy.close()
    rows = {name: np.concatenate([o.rows[name] for o in outcomes]) for name in outcomes[0].rows}
    log.write(args.out, robot.contract, rows, facts(task, args, origin, outcomes))
    for i, o in enumerate(outcomes):
        print(f"episode {i}: {o.end} after {o.steps} steps{f' ({o.reason})' if o.reason else ''}")
    print(f"recording: {args.out}, {len(rows['now'])} ticks")
    return 0
