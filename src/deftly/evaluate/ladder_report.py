"""What a ladder found: tables for the terminal, the comparison with another ladder, and the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.evaluate import ladder
from deftly.evaluate.comparison import JUDGED, require_metrics
from deftly.evaluate.report import (
    ACCENT,
    card,
    gate_mark,
    number,
    page,
    plot_card,
    verdict,
)
from deftly.files import write_text
from deftly.stats import fisher, welch_difference

if TYPE_CHECKING:
    from deftly.tasks import Task

Result = Mapping[str, Any]
"""What `ladder.json` holds."""
Entry = Mapping[str, Any]
"""A rung of it."""
Condition = Mapping[str, Any]
"""What was measured on a rung, or at one of its levels."""
Rows = list[tuple[str, ...]]
"""A table: a head, and lines."""
CURVE_POINTS = 200


def write(folder: Path, result: Result, task: Task | type[Task]) -> Path:
    """Write a ladder into a folder, `ladder.json` and `ladder.html`; returns the page."""
    text = json.dumps(result, indent=1, allow_nan=False)
    write_text(folder / ladder.FILE, text + "\n")
    write_text(folder / ladder.PAGE, html(result, task))
    return folder / ladder.PAGE


# ------------------------------------------------------------------------- text


def rate(success: Mapping[str, Any]) -> str:
    """A success rate with its interval."""
    low, high = success["wilson95"]
    return f"{success['rate']:.1%} ({low:.0%} to {high:.0%})"


def half(entry: Entry) -> str:
    """The level at which half succeed, with its interval; of a rung with levels."""
    level = entry["half"]
    if level is None:
        last = entry["conditions"][-1]["success"]["rate"]
        how_many = "more" if last >= 0.5 else "fewer"
        return f"{how_many} than half succeed at every level"
    low, high = entry["interval95"]
    first = number(low, 3) or "beyond"
    last = number(high, 3) or "beyond"
    at = _with_unit(level, entry)
    return f"half succeed at {at} ({first} to {last})"


def place(entry: Entry, condition: Condition) -> str:
    """A condition: the name of its rung, and its level."""
    level = condition["level"]
    name = entry["name"]
    return name if level is None else f"{name} {_with_unit(level, entry)}"


def _with_unit(level: float, entry: Entry) -> str:
    unit = entry["unit"]
    return f"{level:.3g} {unit}".strip()


def conditions_table(entries: Sequence[Entry], task: Task | type[Task]) -> Rows:
    """A head, and a row for each condition: episodes, success, and the means of the metrics that the task plots."""
    names = [name for name, _ in task.report.plots]
    rows: Rows = [("condition", "episodes", "success (95 %)", *names)]
    for entry in entries:
        for found in entry["conditions"]:
            metrics = found["metrics"]
            means = []
            for name in names:
                mean = metrics[name]["mean"] if name in metrics else None
                means.append(number(mean, 3))
            success = rate(found["success"])
            episodes = str(found["episodes"])
            rows.append((place(entry, found), episodes, success, *means))
    return rows


def conclusion(result: Result) -> list[str]:
    """The lines in which a ladder ends: what was skipped, where half succeed, and the gates."""
    skipped = []
    halves = []
    gates = []
    for entry in result["rungs"]:
        name = entry["name"]
        if entry["skipped"]:
            skipped.append(f"{name}: skipped, {entry['skipped']}")
        if "half" in entry:
            halves.append(f"{name}: {half(entry)}")
        gates += [f"gate {name}: {verdict(gate)}" for gate in entry["gates"]]
    return [*skipped, *halves, *gates]


# ------------------------------------------------------------------------- comparison


def require_comparable(old: Result, rungs: Sequence[str], by: Sequence[str]) -> None:
    """Raise DeftlyError unless an earlier ladder has one of these rungs, and all metrics that are to be judged."""
    measured = [entry for entry in old["rungs"] if entry["conditions"]]
    before = {str(entry["name"]): entry["conditions"] for entry in measured}
    if not before.keys() & set(rungs):
        has = printable(", ".join(before), 200) or "nothing"
        raise DeftlyError(
            f"--compare: the earlier ladder measured {has}, and this one does {', '.join(rungs)}: nothing is in both"
        )
    known = dict.fromkeys(name for found in before.values() for name in found[0]["metrics"])
    require_metrics(by, known)


def compare(old: Result, new: Result, by: Sequence[str] = ()) -> tuple[Table, list[str]]:
    """Two ladders side by side, condition by condition, by success and by metrics; of samples taken as independent.

    Args:
        old: The earlier one.
        new: The later one.
        by: Metrics; none given: `JUDGED`.
    """
    judged = by or JUDGED
    side = Table("condition", "before", "now", "p", *judged, box=None)
    before = dict(_conditions(old))
    differing = []
    for name, now in _conditions(new):
        if name not in before:
            continue
        was = before[name]
        p = _p_value(was, now)
        if p < 0.05:
            differing.append(printable(name, 60))
        rates = (rate(was["success"]), rate(now["success"]))
        changes = [_change(was, now, metric) for metric in judged]
        side.add_row(printable(name, 60), *rates, f"{p:.2g}", *changes)
    what = ", ".join(differing) or "under no condition"
    warnings = [*_warnings(old, new), *_left_out(before, dict(_conditions(new)))]
    return side, [*warnings, f"success differs at the 5 % level: {what}"]


def _left_out(before: Mapping[str, Condition], now: Mapping[str, Condition]) -> Iterator[str]:
    """The conditions that only one of two ladders has, and that are not compared."""
    for when, names in (
        ("before", before.keys() - now.keys()),
        ("now", now.keys() - before.keys()),
    ):
        if names:
            yield f"only {when}: {printable(', '.join(sorted(names)), 200)}"


def _conditions(result: Result) -> Iterator[tuple[str, Condition]]:
    """The conditions of a ladder by name."""
    for entry in result["rungs"]:
        for found in entry["conditions"]:
            yield place(entry, found), found


def _p_value(was: Condition, now: Condition) -> float:
    """Of the hypothesis that success is alike."""
    before = was["success"]["count"]
    after = now["success"]["count"]
    return fisher(before, was["episodes"], after, now["episodes"])


def _warnings(old: Result, new: Result) -> Iterator[str]:
    """What should be alike in both, and is not."""
    for key in ("task", "contract", "seed", "preset"):
        if old[key] != new[key]:
            before = printable(old[key], 120)
            now = printable(new[key], 120)
            yield f"warning: {key} differs, {before} before and {now} now"


def _change(was: Condition, now: Condition, metric: str) -> str:
    """The difference of a metric's means with its 95 % interval; empty where it is not known."""
    before = was["metrics"].get(metric)
    after = now["metrics"].get(metric)
    if not before or not after:
        return ""
    if before["mean"] is None or after["mean"] is None:
        return ""
    found = welch_difference(before, after)
    if found is None:
        return ""
    interval = f"{found.low:+.3g} to {found.high:+.3g}"
    return f"{found.mean:+.3g} ({interval})"


# ------------------------------------------------------------------------- page


def html(result: Result, task: Task | type[Task]) -> str:
    """The page of a ladder, one file that needs no network."""
    plain = []
    leveled = []
    plots: list[str] = []
    for entry in result["rungs"]:
        if "half" in entry:
            leveled.append(entry)
            _level_plot(plots, entry)
        elif entry["conditions"]:
            plain.append(entry)
    tables = {
        "Metrics: mean and 95 % interval": metrics_table(plain),
        "Levels": conditions_table(leveled, task),
    }
    parts = {
        "conditions": _rung_card(result["rungs"]),
        "plots": "".join(plots),
        "tables": "".join(card(t, rows, task) for t, rows in tables.items() if len(rows) > 1),
    }
    seconds = round(result["wall_seconds"])
    texts = {"command": "", **result["policy"], **result, "wall_seconds": seconds}
    return page(ladder.PAGE, texts, parts)


def metrics_table(entries: Sequence[Entry]) -> Rows:
    """A row for each metric below a head of rungs without levels: the mean with its interval."""
    found = [entry["conditions"][0]["metrics"] for entry in entries]
    rungs = [entry["name"] for entry in entries]
    rows: Rows = [("metric", *rungs)]
    names = dict.fromkeys(name for metrics in found for name in metrics)
    for name in names:
        means = [_mean(metrics.get(name)) for metrics in found]
        rows.append((name, *means))
    return rows


def _mean(summary: Mapping[str, Any] | None) -> str:
    """A mean with its interval; empty where there is none."""
    if summary is None or summary["mean"] is None:
        return ""
    mean = number(summary["mean"], 3)
    if summary["mean95"] is None:
        return mean
    low, high = summary["mean95"]
    return f"{mean} ({number(low, 3)} to {number(high, 3)})"


def _rung_card(entries: Sequence[Entry]) -> str:
    """A card with a row for each rung: name and condition, success as a bar or where half succeed, and its gates."""
    rows = ["<tr><th>condition</th><th>episodes</th><th>success, 95 % interval</th></tr>"]
    for entry in entries:
        episodes, outcome = _outcome(entry)
        cells = f"<td>{_named(entry)}</td><td>{episodes}</td><td>{outcome}</td>"
        rows.append(f"<tr>{cells}</tr>")
    table = "".join(rows)
    title = "<h2>Conditions</h2>"
    return f"<section class=card>{title}<div class=wide><table>{table}</table></div></section>"


def _named(entry: Entry) -> str:
    """The name of a rung, its condition and its gates."""
    name = escape(entry["name"])
    what = escape(entry["what"])
    gates = "".join(map(gate_mark, entry["gates"]))
    return f"{name}<div class=soft>{what}, {entry['seconds']:g} s</div>{gates}"


def _outcome(entry: Entry) -> tuple[str, str]:
    """Episodes of a rung, and what came of them."""
    if entry["skipped"]:
        return "", f"skipped: {escape(entry['skipped'])}"
    first = entry["conditions"][0]
    episodes = str(first["episodes"])
    if "half" in entry:
        return f"{episodes} a level", escape(half(entry))
    return episodes, _bar(first["success"])


def _bar(success: Mapping[str, Any]) -> str:
    """A success rate as a bar, on which its interval is shaded."""
    low, high = success["wilson95"]
    interval = f'<i style="left:{low:.1%};right:{1 - high:.1%}"></i>'
    middle = f'<b style="left:{success["rate"]:.1%}"></b>'
    return f"{rate(success)}<div class=bar>{interval}{middle}</div>"


def _level_plot(cards: list[str], entry: Entry) -> None:
    """Success with its interval over the level, the fitted curve, and where half succeed."""
    found = entry["conditions"]
    levels = np.array([one["level"] for one in found])
    rates = [one["success"]["rate"] for one in found]
    intervals = np.array([one["success"]["wilson95"] for one in found])
    low, high = intervals.T
    name = entry["name"]
    label = f"{name}, {entry['unit']}" if entry["unit"] else name
    with plot_card(cards, f"{name}: {half(entry)}") as axes:
        if entry["half"] is not None:
            _draw_curve(axes, entry, levels)
        axes.vlines(levels, low, high, color=ACCENT, linewidth=2)
        axes.plot(levels, rates, "o", color=ACCENT)
        axes.set(ylim=(-0.03, 1.03), xlabel=label, ylabel="success")


def _draw_curve(axes: Any, entry: Entry, levels: np.ndarray) -> None:
    """The logistic curve, and the interval of the level at which half succeed as a band."""
    least, most = levels.min(), levels.max()
    x = np.linspace(least, most, CURVE_POINTS)
    severity = (x - entry["half"]) / entry["width"]
    if levels[0] > levels[-1]:
        severity = -severity
    curve = np.exp(-np.logaddexp(0.0, severity))
    axes.plot(x, curve, color=ACCENT, linewidth=1)
    low, high = entry["interval95"]
    first = least if low is None else low
    last = most if high is None else high
    axes.axvspan(first, last, color=ACCENT, alpha=0.15, linewidth=0)
