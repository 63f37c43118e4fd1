"""`deftly record`: record episodes of the simulated robot, in the format of the robot's own log."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge
from typing_extensions import Doc

from deftly.config import OUTPUT_FILE, Suffix
from deftly.console import printable
from deftly.control import log
from deftly.data import record
from deftly.errors import DeftlyError
from deftly.evaluate.source import prepare
from deftly.twin.loop import LoopArgs


@dataclass(frozen=True)
class RecordArgs(LoopArgs):
    """Record episodes of a simulated robot that a policy drives."""

    out: Annotated[Path | None, Suffix(".npz"), OUTPUT_FILE, Doc("File to write, FILE.npz.")] = None
    episodes: Annotated[int, Ge(1), Doc("Episodes to record.")] = 1
    num_steps: Annotated[
        int,
        Ge(0),
        Doc("Record so many steps instead, of as many episodes as it takes; the last is cut off."),
    ] = 0


def main(argv: list[str]) -> int:
    """Run `deftly record`."""
    task, args, origin = prepare(RecordArgs, "record", argv, "bundle")
    assert origin is not None
    if args.out is None:
        raise DeftlyError("record needs a file to write: --out FILE.npz")
    from deftly.twin.robot import SimRobot

    robot = SimRobot(task, args.sim, args.seed, args.noise, args.latency_ms)
    policy = origin.open(robot.contract, timeout=1e-3 * args.timeout_ms, keys=args.keys)
    try:
        results = record.run(
            robot, policy, args.safety, episodes=args.episodes, num_steps=args.num_steps
        )
    finally:
        policy.close()
    for i, o in enumerate(results):
        reason = f" ({printable(o.reason)})" if o.reason else ""
        print(f"episode {i}: {o.end} after {o.steps} steps{reason}")
    rows = {name: np.concatenate([o.rows[name] for o in results]) for name in results[0].rows}
    replaced = ", which replaces what was there" if args.out.exists() else ""
    log.write(args.out, robot.contract, rows, record.facts(task, args, origin, results))
    print(f"recording: {args.out}, {len(rows['now'])} ticks{replaced}")
    done, what = len(results), "episodes"
    if args.num_steps:
        done, what = sum(o.steps for o in results), "steps"
    wanted = args.num_steps or args.episodes
    if done < wanted:
        raise DeftlyError(
            f"the recording has {done} of {wanted} {what}: it was interrupted, or holds no more; for others type "
            "another --seed and --out"
        )
    return 0
