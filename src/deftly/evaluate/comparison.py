"""Two evaluations side by side: differences of their metrics with intervals, paired where the episodes are the same."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from deftly.config import suggest
from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.evaluate.report import (
    EPISODES,
    REPORTS,
    SCHEMA,
    Report,
    Values,
    conclusion,
    headline,
    means,
    number,
)
from deftly.files import FileError, read_json, read_text
from deftly.stats import (
    Difference,
    fisher,
    mcnemar,
    paired_difference,
    summarize,
    welch_difference,
)

CONDITIONS = (
    "world",
    "task",
    "contract",
    "seed",
    "episodes",
    "preset",
    "disturbances",
    "stochastic",
)
"""What should be alike where two reports are compared."""
SAME_EPISODES = ("world", "task", "seed", "episodes", "samples")
"""What is alike where the episodes of two reports start alike, one by one."""
JUDGED = ("reward_per_step",)
"""Metrics that a comparison judges, besides success, unless it is told others."""
MAX_EPISODES_BYTES = 64 << 20
"""Of a table of episodes."""


class Side(NamedTuple):
    """One of the two: a report, and the metrics of each episode if they are known."""

    report: Report
    values: Values | None = None


def read_report(path: Path) -> Report:
    """Read an `eval.json` or `sim2sim.json`, or that of a folder. Raises DeftlyError for anything else."""
    path = _file_of(path)
    what, advice = "a report of 'deftly eval'", "give the eval.json of a test run"
    report = read_json(path, what, advice=advice)
    try:
        if report["schema"] != SCHEMA:
            raise ValueError(f"its schema is {report['schema']!r}, this Deftly reads {SCHEMA!r}")
        compare(Side(report), Side(report))  # it has all that a comparison needs,
        conclusion(report)  # and all that is said of one
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise FileError(f"{path} is not {what}: {printable(error)}; {advice}") from None
    return report


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    places = [path / name for name in REPORTS.values()]
    return next((place for place in places if place.is_file()), places[0])


def read_side(path: Path) -> Side:
    """A report, and the episodes from the table beside it, if there is one. Raises DeftlyError if one is damaged."""
    report = read_report(path)
    table = _file_of(path).with_name(EPISODES)
    return Side(report, _read_episodes(table, report) if table.exists() else None)


def _read_episodes(path: Path, report: Report) -> dict[str, np.ndarray]:
    """The metrics of each episode by name, `(episodes,)` each; NaN where an episode has none."""
    what, advice = "the episodes of a report", "evaluate again, or leave it out"
    text = read_text(path, what, MAX_EPISODES_BYTES, advice=advice)
    rows = csv.reader(io.StringIO(text))
    try:
        names, *lines = rows
        numbers = [[float(cell or "nan") for cell in line] for line in lines]
        table = np.array(numbers).reshape(report["episodes"], len(names))
    except (ValueError, csv.Error) as error:
        raise FileError(f"{path} is not {what}: {printable(error)}; {advice}") from None
    return dict(zip(names, table.T))


def require_metrics(by: Sequence[str], known: Collection[str]) -> None:
    """Raise DeftlyError if a comparison is to judge a metric that is not among those of the earlier report."""
    for name in by:
        if name not in known:
            near = suggest(name, known) or f"; it has {', '.join(known)}"
            raise DeftlyError(f"--by names the metric '{name}', which the report lacks{near}")


def compare(old: Side, new: Side, by: Sequence[str] = ()) -> tuple[Table, list[str]]:
    """Two reports side by side, and what can be said about them.

    Where both have the metrics of each episode, on the same episodes, tests are paired: an episode of either starts
    with the same draws. Otherwise they are those of independent samples.

    Args:
        old: The earlier one.
        new: The later one.
        by: Metrics that are judged beside success; none given: `JUDGED`.

    Returns:
        A table of all metrics, and lines: warnings, then which of success and the metrics differ.
    """
    before = means(old.report)
    now = means(new.report)
    shared = [name for name in now if name in before]
    differences = {name: difference(old, new, name) for name in shared}
    side = Table("metric", "before", "now", "difference", "95 % interval", box=None)
    for name in shared:
        cells = _cells(differences[name])
        row = (number(before[name]), number(now[name]), *cells)
        side.add_row(printable(name, 60), *row)
    judged = by or [name for name in JUDGED if name in shared]
    return side, [
        *(_warning(name, old, new) for name in CONDITIONS if old.report[name] != new.report[name]),
        f"before: {headline(old.report)}",
        f"now: {headline(new.report)}",
        *(verdict(name, differences.get(name), _are_paired(old, new, name)) for name in judged),
        _success(old, new),
    ]


def _warning(name: str, old: Side, new: Side) -> str:
    before = printable(old.report[name], 120)
    now = printable(new.report[name], 120)
    return f"warning: {name} differs, {before} before and {now} now"


def difference(old: Side, new: Side, name: str) -> Difference | None:
    """Of a metric's means, with its interval; None of what has no spread, such as a count of faults."""
    if _are_paired(old, new, name):
        return paired_difference(_values(old)[name], _values(new)[name])
    before = _summary(old, name)
    now = _summary(new, name)
    if before is None or now is None:
        return None
    return welch_difference(before, now)


def _are_paired(old: Side, new: Side, name: str) -> bool:
    same = all(old.report.get(key) == new.report.get(key) for key in SAME_EPISODES)
    return same and name in _values(old) and name in _values(new)


def _values(side: Side) -> Values:
    return side.values or {}


def _summary(side: Side, name: str) -> Mapping[str, Any] | None:
    """Mean, standard deviation and count of a metric; None if the report lacks one of them."""
    if name in _values(side):
        return summarize(_values(side)[name])
    found = side.report["metrics"].get(name, {})
    needed = [found.get(key) for key in ("mean", "std", "count")]
    known = all(value is not None for value in needed)
    return found if known else None


def _cells(found: Difference | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    interval = f"{found.low:+.4g} to {found.high:+.4g}"
    return f"{found.mean:+.4g}", interval


def verdict(name: str, found: Difference | None, paired: bool) -> str:
    """Whether a metric's means differ, in one line."""
    if found is None:
        return f"{name}: too little is known to tell"
    change, interval = _cells(found)
    how = ", paired" if paired else ""
    return f"{name}: {change} (95 % interval {interval}{how}), {_differs(found.p)}"


def _success(old: Side, new: Side) -> str:
    """Whether the success rates differ: McNemar's test of the same episodes, else Fisher's."""
    if _are_paired(old, new, "success"):
        p = mcnemar(_values(old)["success"], _values(new)["success"])
    else:
        counts = []
        for side in (old, new):
            counts += [side.report["success"]["count"], side.report["episodes"]]
        p = fisher(*counts)
    return f"success {_differs(p)}"


def _differs(p: float) -> str:
    outcome = "differs" if p < 0.05 else "cannot be told apart"
    return f"{outcome} at the 5 % level, p = {p:.2g}"
