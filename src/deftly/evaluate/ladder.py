"""A robustness evaluation: the same policy under one condition after the other, the rungs of its task's ladder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deftly import __version__
from deftly.config import Rung, suggest, with_changes
from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.evaluate import report
from deftly.evaluate.evaluate import EnvWorld, EvalSettings, gated_metrics, measure
from deftly.evaluate.gates import Means, check_gate, read_gate
from deftly.files import FileError, read_json
from deftly.policy.bundle import Bundle
from deftly.stats import half_level

if TYPE_CHECKING:
    from deftly.evaluate.source import PolicySource
    from deftly.tasks import Task

SCHEMA = "deftly.ladder/1"
FILE = "ladder.json"
PAGE = "ladder.html"
MAX_BYTES = 16 << 20
"""Of a file of a ladder."""
COMMON = ("seconds", "reward_per_step")
"""Metrics of every episode that a ladder keeps beside the task's own."""
KEPT = ("mean", "mean95", "std", "min", "p5", "p50", "p95", "max", "count")
"""Statistics that a ladder keeps of each metric."""
HOPELESS = 0.1
"""Success rate below which no severer level is tried."""
LEVEL_METRICS = ("half",)
"""What a gate may name of a rung with levels: the level at which half succeed."""
Result = dict[str, Any]
"""What `ladder.json` holds."""


class Condition(NamedTuple):
    """A task and settings under which episodes are run."""

    task: Task
    settings: EvalSettings


@dataclass(frozen=True)
class Ladder:
    """A policy, and the rungs on which it is measured.

    Raises DeftlyError, one line, if the policy's contract is not the task's, a rung has a setting that the task lacks,
    or a gate names a metric that it does not have.
    """

    task: Task
    source: PolicySource
    settings: EvalSettings
    """Episodes, seed and physics of every rung; its `env` and the task's settings are those of the first."""
    rungs: tuple[Rung, ...]
    gates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Conditions by the name of a rung."""
    keys: Path | None = None

    def __post_init__(self) -> None:
        for rung in self.rungs:
            for level in rung.levels or (None,):
                task, _ = self._condition(rung, level)
                self.source.require(task.contract(), task.name)
        if self.gates:
            known = gated_metrics(EnvWorld(self.task, self.settings))
            for rung in self.rungs:
                require_gates(self.gates.get(rung.name, ()), rung, known)

    def climb(self) -> Iterator[Result]:
        """Measure one rung after the other; yields the report so far after each, the same that then grows."""
        contract = self.task.contract()
        result: Result = {
            "schema": SCHEMA,
            "task": self.task.name,
            "robot": contract.robot.name,
            "contract": contract.hash,
            "policy": report.policy_facts(self.source, self.task.name),
            "seed": self.settings.seed,
            "preset": self.settings.sim.preset,
            "engine": self.settings.sim.engine,
            "version": __version__,
            "wall_seconds": 0.0,
            "rungs": [],
        }
        for rung in self.rungs:
            entry = self._entry(rung, contract.rate)
            result["rungs"].append(entry)
            result["wall_seconds"] += sum(one["wall_seconds"] for one in entry["conditions"])
            yield result

    def _entry(self, rung: Rung, rate: float) -> Result:
        """What a report has of a rung."""
        skipped = self._obstacle(rung)
        found: list[Result] = []
        means: Means = {}
        for level, measured in () if skipped else self._measured(rung):
            found.append(_shortened(measured, level, self.task))
            means = report.means(measured)
        entry: Result = {
            "name": rung.name,
            "what": rung.what,
            "seconds": rung.seconds or self._steps() / rate,
            "stochastic": rung.stochastic,
            "unit": rung.unit,
            "skipped": skipped,
            "conditions": found,
        }
        if rung.levels and found:
            entry |= _half_of(found)
            means = level_means(entry)
        gates = self.gates.get(rung.name, ())
        entry["gates"] = [judge(gate, means) for gate in gates]
        return entry

    def _steps(self) -> int:
        return self.settings.env.episode_steps or self.task.cfg.episode_steps

    def _obstacle(self, rung: Rung) -> str:
        """Why a rung cannot be climbed by this policy, or in this task; empty if it can."""
        source = self.source
        has_no_spread = source.loaded is None or isinstance(source.loaded, Bundle)
        if rung.stochastic and (has_no_spread or source.kind == "model"):
            return f"{printable(self.source.label, 80)} gives its mean action alone"
        from deftly.sim.randomize import is_of  # it imports MuJoCo

        entries = self.task.randomize()
        is_widened = any(is_of(entry, rung.widened) for entry in entries)
        if rung.wider > 1 and not is_widened:
            what = "of what images show" if rung.widened == "visual" and entries else ""
            return f"the task has no randomization {what}".strip()
        return ""

    def _measured(self, rung: Rung) -> Iterator[tuple[float | None, Mapping[str, Any]]]:
        """The levels of a rung, as far as there is hope, or None alone, each with its evaluation."""
        for level in rung.levels or (None,):
            task, settings = self._condition(rung, level)
            found, _ = measure(task, self.source, settings, keys=self.keys)
            yield level, found
            if found["success"]["rate"] < HOPELESS:
                return

    def _condition(self, rung: Rung, level: float | None) -> Condition:
        """The task and the settings of a rung, or of one of its levels. Raises DeftlyError for an unknown setting."""
        given = self.settings
        cfg, env = self.task.cfg, given.env
        of_level = {} if level is None else rung.levels[level]
        for sections in (rung.settings, of_level):
            where = f"the rung '{rung.name}': task"
            cfg = with_changes(cfg, sections.get("task", {}), where)
            env = with_changes(env, sections.get("env", {}), where.replace("task", "env"))
        if rung.seconds:
            env = replace(env, episode_steps=round(rung.seconds * cfg.rate))
        settings = EvalSettings(
            episodes=min(given.episodes, rung.most_episodes or given.episodes),
            seed=given.seed,
            stochastic=rung.stochastic,
            wider=rung.wider,
            only_outside=rung.only_outside,
            widened=rung.widened,
            sim=given.sim,
            env=env,
        )
        return Condition(type(self.task)(cfg), settings)


def choose(rungs: Sequence[Rung], names: Sequence[str]) -> tuple[Rung, ...]:
    """The rungs of these names, all if none is given. Raises DeftlyError for an unknown one."""
    known = {rung.name: rung for rung in rungs}
    for name in names:
        if name not in known:
            near = suggest(name, known) or ""
            raise DeftlyError(f"no rung '{name}'{near}; the rungs are {', '.join(known)}")
    return tuple(rung for rung in rungs if not names or rung.name in names)


def require_gates(gates: Sequence[str], rung: Rung, metrics: Sequence[str]) -> None:
    """Raise DeftlyError if a gate of a rung names a metric that it does not have."""
    known = LEVEL_METRICS if rung.levels else metrics
    for gate in gates:
        metric, _, _ = read_gate(gate)
        if metric not in known:
            near = suggest(metric, known) or f"; known are {', '.join(known)}"
            raise DeftlyError(
                f"a gate of the rung '{rung.name}' names the unknown metric '{metric}'{near}"
            )


def judge(gate: str, means: Means) -> dict[str, Any]:
    """Whether a gate holds; none of a rung that was skipped does."""
    metric, _, _ = read_gate(gate)
    return check_gate(gate, {metric: None, **means})


def level_means(entry: Mapping[str, Any]) -> Means:
    """What gates may name of a rung with levels, see `LEVEL_METRICS`.

    Where more than half succeed at the severest level, that counts, on the safe side; there is no value where fewer do
    at the mildest.
    """
    if not entry["conditions"]:
        return {"half": None}
    last = entry["conditions"][-1]
    beyond = last["level"] if last["success"]["rate"] >= 0.5 else None
    return {"half": beyond if entry["half"] is None else entry["half"]}


def _half_of(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where half succeed, from the conditions of a rung with levels; see `stats.half_level`."""
    counts = [one["success"]["count"] for one in found]
    totals = [one["episodes"] for one in found]
    return half_level([one["level"] for one in found], counts, totals)


def _shortened(found: Mapping[str, Any], level: float | None, task: Task) -> Result:
    """What a ladder keeps of a report."""
    own = task.report.metrics
    names = [name for name in found["metrics"] if name in own or name in COMMON]
    metrics = {}
    for name in names:
        statistics = found["metrics"][name]
        metrics[name] = {key: statistics[key] for key in KEPT}
    kept = ("episodes", "success", "disturbances", "broken_physics", "wall_seconds")
    return {"level": level, **{key: found[key] for key in kept}, "metrics": metrics}


def passed(result: Mapping[str, Any]) -> bool:
    """Whether all gates of a ladder hold."""
    gates = [gate for rung in result["rungs"] for gate in rung["gates"]]
    return all(gate["holds"] for gate in gates)


def read(path: Path) -> Mapping[str, Any]:
    """Read a `ladder.json`, or that of a folder. Raises DeftlyError for anything else."""
    what, advice = "a report of 'deftly eval --ladder'", f"give the {FILE} of a test run"
    path = path / FILE if path.is_dir() else path
    found = read_json(path, what, MAX_BYTES, advice=advice)
    try:
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']!r}, this Deftly reads {SCHEMA!r}")
        from deftly.evaluate.ladder_report import compare

        compare(found, found)  # it has all that a comparison needs
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise FileError(f"{path} is not {what}: {printable(error)}; {advice}") from None
    return found
