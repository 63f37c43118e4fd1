"""Measure a policy on held out episodes, with confidence intervals, gates and a report."""

from __future__ import annotations

import copy
import operator
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge, Lt
from typing_extensions import Doc

from deftly import __version__, stats
from deftly.config import SEEDS, EnvConfig, Settings, SimConfig, suggest
from deftly.errors import DeftlyError
from deftly.evaluate import report
from deftly.evaluate.source import PolicySource, of_checkpoint

if TYPE_CHECKING:
    from deftly.evaluate.rollout import OnStep
    from deftly.learn.checkpoint import Checkpoint
    from deftly.tasks import Task

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
GATE = re.compile(
    r"\s*([\w./-]+?)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(%?)\s*"
)
SERVER_S = 10.0
"""Longest wait for the decisions of a server, s; simulated time stands still meanwhile."""
Result = dict[str, Any]  # what `eval.json` holds
Figures = dict[
    str, np.ndarray
]  # of the episodes by name, `(episodes,)` each; NaN where an episode has none


@dataclass(frozen=True)
class EvalSettings(Settings):
    """Which episodes a policy is measured on."""

    episodes: Annotated[
        int, Ge(1), Doc("Episodes to run, one in each environment, so env.num-envs is not used.")
    ] = 200
    seed: Annotated[
        int,
        Ge(0),
        Lt(SEEDS),
        Doc("Decides which episodes; the same seed gives the same report, bit for bit."),
    ] = 0
    stochastic: Annotated[
        bool, Doc("Draw actions from the policy's distribution instead of taking its mean.")
    ] = False
    wider: Annotated[
        float,
        Ge(1),
        Doc(
            "How many times as wide the ranges of the task's randomization are as in the task, 1 or more."
        ),
    ] = 1.0
    only_outside: Annotated[
        bool, Doc("With wider: draw nothing that lies in the task's own ranges.")
    ] = False
    sim: Annotated[SimConfig, Doc("The physics engine; as in the training unless set.")] = field(
        default_factory=SimConfig
    )
    env: Annotated[EnvConfig, Doc("What disturbs the episodes.")] = field(default_factory=EnvConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.env.device != "cpu":
            raise DeftlyError(
                f"env.device is {self.env.device}, but evaluation runs on the CPU so far: use cpu"
            )
        if self.only_outside and self.wider == 1:
            raise DeftlyError(
                "--only-outside draws what --wider adds to the ranges: add --wider 1.5"
            )


def measure(
    task: Task,
    found: PolicySource | Checkpoint,
    settings: EvalSettings,
    on_step: OnStep | None = None,
    keys: Path | None = None,
) -> tuple[Result, Figures]:
    """What `eval.json` holds, and the metrics of each episode, of any policy on held out episodes.

    `keys` are those of a server. Raises DeftlyError if the contract is not the task's, if the policy has no
    distribution to draw from, or if there is nothing to widen.
    """
    from deftly.evaluate.rollout import EVALUATE, run_episodes

    source = found if isinstance(found, PolicySource) else of_checkpoint(found)
    contract = task.contract()
    source.require(contract, task.name)
    task = _widened(task, settings)
    policy = source.open(contract, stochastic=settings.stochastic, timeout=SERVER_S, keys=keys)
    ran = run_episodes(
        task,
        policy,
        settings.episodes,
        seed=settings.seed,
        purpose=EVALUATE,
        env_cfg=settings.env,
        sim_cfg=settings.sim,
        on_step=on_step,
        what="evaluating",
    )
    policy.close()
    values = {name: value.numpy() for name, value in ran.values.items()}
    seconds, success = values["steps"] / ran.rate, values["success"]
    times = {"seconds": seconds, "success_seconds": np.where(success > 0, seconds, np.nan)}
    values = {"success": success, "steps": values["steps"]} | times | values
    disturbances = {name: getattr(settings.env, name) for name in ("randomize", "noise", "pushes")}
    disturbances["latency_ms"] = list(settings.env.latency_ms)
    if settings.wider > 1:
        disturbances |= {"wider": settings.wider, "only_outside": settings.only_outside}
    measured = {
        "path": source.label,
        "sha256": source.sha256,
        "iteration": source.iteration,
        "task": source.task or task.name,
    }
    who = {
        "task": task.name,
        "robot": contract.robot.name,
        "contract": contract.hash,
        "checkpoint": measured,
    }
    how: dict[str, Any] = {
        "episodes": len(ran),
        "seed": settings.seed,
        "stochastic": settings.stochastic,
    }
    how |= {"preset": settings.sim.preset, "engine": settings.sim.engine}
    how |= {
        "disturbances": disturbances,
        "wall_seconds": round(ran.seconds, 3),
        "version": __version__,
    }
    figures = {name: stats.summarize(value) for name, value in values.items() if name != "success"}
    outcome = {
        "success": stats.proportion(success),
        "figures": figures,
        **report.divide(values, task),
    }
    outcome["broken_physics"] = int(values["failed/physics"].sum())
    return {"schema": report.SCHEMA, **who, **how, **outcome}, values


def _widened(task: Task, settings: EvalSettings) -> Task:
    """A task whose randomization is as wide as the settings want it; the task itself if they want nothing."""
    from deftly.sim.randomize import widen

    if settings.wider == 1:
        return task
    entries = tuple(
        widen(entry, settings.wider, settings.only_outside) for entry in task.randomize()
    )
    if not entries or not settings.env.randomize:
        raise DeftlyError(
            f"--wider has nothing to widen: {task.name} is evaluated without randomization"
        )
    wide = copy.copy(task)
    wide.randomize = lambda: entries
    return wide


def read_gate(text: str) -> tuple[str, str, float]:
    """Metric, sign and number of a condition such as `success>=0.9`; the number may be a percentage."""
    if not (match := GATE.fullmatch(text)):
        raise DeftlyError(
            f"cannot read the gate '{text}': write METRIC>=NUMBER (or <=, >, <), as 'success>=0.9'"
        )
    metric, sign, number, percent = match.groups()
    return metric, sign, float(number) / (100 if percent else 1)


def check_gate(text: str, result: Result) -> dict[str, Any]:
    """Whether a condition on a figure's mean holds, and the measured value; what no episode has holds nothing."""
    metric, sign, wanted = read_gate(text)
    means = report.means(result)
    if metric not in means:
        near = suggest(metric, means) or f"; known are {', '.join(means)}"
        raise DeftlyError(f"--gate names the unknown metric '{metric}'{near}")
    holds = (value := means[metric]) is not None and bool(OPERATORS[sign](value, wanted))
    return {"gate": f"{metric}{sign}{wanted:g}", "measured": value, "holds": holds}
