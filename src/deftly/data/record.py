"""Keep episodes of the simulated robot, tick by tick, in the format of the robot's own log.

Beside the rows of `deftly.log/1` the file says how they came about, and from which state of the simulation each episode
started, so that `deftly replay` starts alike.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from deftly import __version__
from deftly.config import to_yaml
from deftly.console import Progress
from deftly.control.log import max_ticks
from deftly.control.safety import SafetyConfig
from deftly.errors import DeftlyError
from deftly.evaluate.source import PolicySource
from deftly.policy.protocol import Policy
from deftly.twin.loop import EpisodeResult, LoopArgs, longest_episode, run_episode

if TYPE_CHECKING:
    from deftly.tasks import Task
    from deftly.twin.robot import SimRobot


def run(
    robot: SimRobot, policy: Policy, safety: SafetyConfig, *, episodes: int = 1, num_steps: int = 0
) -> list[EpisodeResult]:
    """Run so many episodes; or, if `num_steps` is not 0, so many steps, the last episode of which is cut off.

    An interrupt (Ctrl-C) ends it after the last whole episode, if there is one; so does a recording that is full, of
    which more could not be read back. The caller sees both by the number of episodes, or of steps.

    Raises DeftlyError, before anything is run, for more than a recording can hold.
    """
    results: list[EpisodeResult] = []
    done, total, ticks = 0, num_steps or episodes, 0
    most = max_ticks(robot.contract)
    if total > most:
        what = "steps" if num_steps else "episodes"
        raise DeftlyError(
            f"a recording holds {most:,} steps, and these are {total:,} {what}: ask for fewer"
        )
    longest = longest_episode(robot, safety)
    if longest > most:
        raise DeftlyError(
            f"a recording holds {most:,} steps, and an episode has up to {longest:,}: make the task's "
            "`episode_steps` fewer"
        )
    with Progress(total, "recording") as shown:
        while done < total and ticks + longest_episode(robot, safety) <= most:
            limit = num_steps - done if num_steps else 0
            try:
                result = run_episode(robot, policy, safety, len(results), limit=limit)
            except KeyboardInterrupt:
                if not results:
                    raise
                break
            results.append(result)
            if num_steps and not result.steps:
                raise DeftlyError(
                    f"episode {len(results) - 1} ended before its first step, {result.end}"
                )
            ticks += len(result.rows["now"])
            done += result.steps if num_steps else 1
            shown.reach(done)
    return results


def facts(
    task: Task, args: LoopArgs, origin: PolicySource, results: list[EpisodeResult]
) -> dict[str, Any]:
    """What a recording says beside its rows; arrays lead with the episodes."""
    settings = {
        name: yaml.safe_load(to_yaml(part))
        for name, part in (("task", task.cfg), ("sim", args.sim))
    }
    rate = task.contract().rate
    return {
        "task": task.name,
        "seed": args.seed,
        "noise": args.noise,
        "latency_ms": args.latency_ms,
        "rate": rate,
        "step_dt": 1.0 / rate,
        "num_steps": sum(o.steps for o in results),
        "safety": json.dumps(asdict(args.safety)),
        "settings": json.dumps(settings),
        "policy": origin.label,
        "policy_sha256": origin.sha256,
        "success": np.array([o.success for o in results]),
        "end": np.array([o.end for o in results]),
        "steps": np.array([o.steps for o in results]),
        "state0": np.stack([o.state0 for o in results]),
        "deftly": __version__,
    }
