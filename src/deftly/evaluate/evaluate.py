"""Measure a policy on held out episodes: one evaluation for every policy and every world, with gates and a report."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge, Le, Lt
from typing_extensions import Doc

from deftly import __version__, stats
from deftly.config import SEEDS, EnvConfig, Settings, SimConfig, Widened, draw_seed
from deftly.errors import DeftlyError
from deftly.evaluate import report
from deftly.evaluate.gates import check_gate, require_metric
from deftly.evaluate.source import PolicySource, of_checkpoint

if TYPE_CHECKING:
    from deftly.evaluate.rollout import Episodes, OnStep, World
    from deftly.learn.checkpoint import Checkpoint
    from deftly.policy.protocol import Policy
    from deftly.tasks import Task

SERVER_S = 10.0
"""Longest wait for the decisions of a server, s; simulated time stands still meanwhile."""
DERIVED = ("seconds", "success_seconds")
"""Metrics that the evaluation computes from `steps`."""
Result = dict[str, Any]
"""What `eval.json` and `sim2sim.json` hold: schema `deftly.eval/2`."""
Metrics = dict[str, np.ndarray]
"""Metrics of the episodes by name, `(episodes,)` each; NaN where an episode has none."""


@dataclass(frozen=True)
class EvalSettings(Settings):
    """Which episodes a policy is measured on."""

    episodes: Annotated[
        int, Ge(1), Doc("Episodes to run, one in each environment, so env.num-envs is not used.")
    ] = 200
    seed: Annotated[
        int,
        Ge(-1),
        Lt(SEEDS),
        Doc("Decides which episodes; the same gives the same report, bit for bit; -1 draws one."),
    ] = 0
    stochastic: Annotated[
        bool, Doc("Draw actions from the policy's distribution instead of taking its mean.")
    ] = False
    samples: Annotated[
        int,
        Ge(1),
        Le(1000),
        Doc(
            "How often each start is run, of a policy that draws its actions; intervals allow for it."
        ),
    ] = 1
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
    widened: Annotated[
        Widened, Doc("With wider: all ranges, those of the physics, or of what images show.")
    ] = "all"
    sim: Annotated[SimConfig, Doc("The physics engine; as in the training unless set.")] = field(
        default_factory=SimConfig
    )
    env: Annotated[EnvConfig, Doc("What disturbs the episodes.")] = field(default_factory=EnvConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        draw_seed(self)
        if self.env.device != "cpu":
            raise DeftlyError(
                f"env.device is {self.env.device}, but evaluation runs on the CPU so far: use cpu"
            )
        if self.only_outside and self.wider == 1:
            raise DeftlyError(
                "--only-outside draws what --wider adds to the ranges: add --wider 1.5"
            )
        if self.widened != "all" and self.wider == 1:
            raise DeftlyError("--widened says which ranges --wider widens: add --wider 1.5")


class EnvWorld:
    """The environment of training, with its randomization, on episodes that no training sees."""

    name = "env"

    def __init__(self, task: Task, settings: EvalSettings, on_step: OnStep | None = None):
        self.task = _widened(task, settings)
        self.seed = settings.seed
        self._settings = settings
        self._on_step = on_step

    @property
    def conditions(self) -> dict[str, Any]:
        """Physics and disturbances, as a report has them."""
        settings = self._settings
        disturbances: dict[str, Any] = {
            "randomize": settings.env.randomize,
            "noise": settings.env.noise,
            "pushes": settings.env.pushes,
            "latency_ms": list(settings.env.latency_ms),
        }
        if settings.wider > 1:
            disturbances |= {"wider": settings.wider, "only_outside": settings.only_outside}
            if settings.widened != "all":
                disturbances["widened"] = settings.widened
        return {
            "preset": settings.sim.preset,
            "engine": settings.sim.engine,
            "disturbances": disturbances,
        }

    def metric_names(self) -> list[str]:
        """The metrics of its episodes, known before one has run."""
        import torch

        from deftly.env import Env
        from deftly.evaluate.rollout import EVALUATE

        one = replace(self._settings.env, num_envs=1)
        env = Env(self.task, one, self._settings.sim, self.seed, EVALUATE)
        env.step(torch.zeros(1, env.contract.action_size))
        common = set(env.metric_names) - {"episode_steps", "nan"}
        return ["steps", *sorted(common), *self.task.metrics(env.state)]

    def run(self, policy: Policy, episodes: int) -> Episodes:
        """Run so many episodes, each start several times if asked; DeftlyError if these would be the same."""
        from deftly.evaluate.rollout import repeated

        samples = self._settings.samples
        if samples > 1 and policy.deterministic:
            raise DeftlyError(
                "--samples runs each start again, which gives the same with a policy that draws nothing: "
                "add --stochastic, or leave it out"
            )
        return repeated([self._once(policy, episodes, sample) for sample in range(samples)])

    def _once(self, policy: Policy, episodes: int, sample: int) -> Episodes:
        from deftly.evaluate.rollout import EVALUATE, run_episodes

        return run_episodes(
            self.task,
            policy,
            episodes,
            seed=self.seed,
            purpose=EVALUATE,
            env_cfg=self._settings.env,
            sim_cfg=self._settings.sim,
            on_step=None if sample else self._on_step,
            what=f"evaluating, sample {sample + 1}" if self._settings.samples > 1 else "evaluating",
            sample=sample,
        )


def measure(
    task: Task,
    found: PolicySource | Checkpoint,
    settings: EvalSettings,
    on_step: OnStep | None = None,
    keys: Path | None = None,
    gates: Sequence[str] = (),
) -> tuple[Result, Metrics]:
    """The report of any policy in the environment of training, and the metrics of each episode; see `evaluate`."""
    source = found if isinstance(found, PolicySource) else of_checkpoint(found)
    world = EnvWorld(task, settings, on_step)
    return evaluate(
        world,
        source,
        settings.episodes,
        stochastic=settings.stochastic,
        timeout=SERVER_S,
        keys=keys,
        gates=gates,
    )


def evaluate(
    world: World,
    source: PolicySource,
    episodes: int,
    *,
    stochastic: bool = False,
    timeout: float = SERVER_S,
    keys: Path | None = None,
    gates: Sequence[str] = (),
) -> tuple[Result, Metrics]:
    """Run episodes of a policy in a world and report on them.

    Args:
        world: Where the episodes run.
        source: The policy.
        episodes: How many.
        stochastic: Draw actions from the policy's distribution.
        timeout: Longest wait for a server's decision, s.
        keys: The robot's folder of keys, for a server that has them.
        gates: Conditions such as `success>=0.9`; see `check_gate`.

    Returns:
        What `eval.json` holds, and the metrics of each episode.

    Raises DeftlyError before the first episode if a gate names no metric of this world, the policy's contract is not
    the task's, or it has no distribution to draw from.
    """
    task = world.task
    contract = task.contract()
    source.require(contract, task.name)
    if gates:
        known = gated_metrics(world)
        for gate in gates:
            require_metric(gate, known)
    policy = source.open(contract, stochastic=stochastic, timeout=timeout, keys=keys)
    try:
        ran = world.run(policy, episodes)
    finally:
        policy.close()
    values = _metrics(ran)
    result = _report(world, source, stochastic, ran, values)
    result["gates"] = [check_gate(gate, report.means(result)) for gate in gates]
    return result, values


def gated_metrics(world: World) -> list[str]:
    """The metrics that a gate may name, known before an episode has run."""
    return [*world.metric_names(), *DERIVED, "success", "broken_physics"]


def _report(
    world: World, source: PolicySource, stochastic: bool, ran: Episodes, values: Metrics
) -> Result:
    """What `eval.json` holds, before the gates."""
    task = world.task
    contract = task.contract()
    statistics: dict[str, dict[str, Any]] = {
        name: stats.summarize(value) for name, value in values.items() if name != "success"
    }
    clusters = None
    if ran.samples > 1:
        clusters = np.arange(len(ran)) % (len(ran) // ran.samples)
    for name, summary in statistics.items():
        if clusters is None:
            summary["mean95"] = stats.mean_interval(summary)
        else:
            summary["mean95"] = stats.clustered_interval(values[name], clusters)
    repeats = {} if clusters is None else {"samples": ran.samples}
    return {
        "schema": report.SCHEMA,
        "world": world.name,
        "task": task.name,
        "robot": contract.robot.name,
        "contract": contract.hash,
        "policy": report.policy_facts(source, task.name),
        "episodes": len(ran),
        **repeats,
        "seed": world.seed,
        "stochastic": stochastic,
        **world.conditions,
        "wall_seconds": round(ran.seconds, 3),
        "version": __version__,
        "success": stats.proportion(values["success"], clusters),
        "metrics": statistics,
        **report.divide(values, task, clusters),
        "broken_physics": int(values["failed/physics"].sum()),
        **ran.sections,
    }


def _metrics(ran: Episodes) -> Metrics:
    """The metrics of the episodes, with those in seconds; what every episode has comes first."""
    values = {name: value.numpy() for name, value in ran.values.items()}
    seconds = values["steps"] / ran.rate
    first = {
        "success": values["success"],
        "steps": values["steps"],
        "seconds": seconds,
        "success_seconds": np.where(values["success"] > 0, seconds, np.nan),
    }
    return first | values


def _widened(task: Task, settings: EvalSettings) -> Task:
    """A task whose randomization is as wide as the settings want it; the task itself if they want nothing."""
    from deftly.sim.randomize import is_of, widen

    if settings.wider == 1:
        return task
    chosen = [is_of(entry, settings.widened) for entry in task.randomize()]
    if not any(chosen) or not settings.env.randomize:
        kind = "" if settings.widened == "all" else f" ({settings.widened})"
        raise DeftlyError(
            f"--wider has nothing to widen: {task.name} is evaluated without randomization{kind}"
        )
    entries = tuple(
        widen(entry, settings.wider, settings.only_outside) if wide else entry
        for entry, wide in zip(task.randomize(), chosen)
    )
    other = copy.copy(task)
    other.randomize = lambda: entries
    return other
