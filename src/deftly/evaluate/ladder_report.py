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
from deftly.evaluate import ladder
from deftly.evaluate.comparison import JUDGED
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
CURVE_POINTS = 200


def write(folder: Path, result: Result, task: Task | type[Task]) -> Path:
    """Write a ladder into a folder, `ladder.json` and `ladder.html`; returns the page."""
    write_text(folder / ladder.FILE, json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_text(folder / ladder.PAGE, html(result, task))
    return folder / ladder.PAGE


# ------------------------------------------------------------------------- text


def rate(success: Mapping[str, Any]) -> str:
    """A success rate with its interval."""
    low, high = success["wilson95"]
    return f"{success['rate']:.1%} ({low:.0%} to {high:.0%})"


def half(entry: Entry) -> str:
    """The level at which half succeed, with its interval; of a rung with levels."""
    unit = f" {entry['unit']}" if entry["unit"] else ""
    last = entry["conditions"][-1]
    if entry["half"] is None:
        lives = last["success"]["rate"] >= 0.5
        return f"{'more' if lives else 'fewer'} than half succeed at every level"
    low, high = (number(end, 3) or "beyond" for end in entry["interval95"])
    return f"half succeed at {entry['half']:.3g}{unit} ({low} to {high})"


def place(entry: Entry, condition: Mapping[str, Any]) -> str:
    """A condition: the name of its rung, and its level."""
    level = condition["level"]
    return entry["name"] if level is None else f"{entry['name']} {level:g} {entry['unit']}".strip()


def shown_metrics(task: Task | type[Task]) -> list[str]:
    """The metrics in a table that has no room for all: those that the task plots."""
    return [name for name, _ in task.report.plots]


def conditions_table(entries: Sequence[Entry], task: Task | type[Task]) -> list[tuple[str, ...]]:
    """A head, and a row for each condition: episodes, success, and the means of the metrics that the task plots."""
    names = shown_metrics(task)
    rows: list[tuple[str, ...]] = [("condition", "episodes", "success (95 %)", *names)]
    for entry in entries:
        for found in entry["conditions"]:
            cells = (number(found["metrics"].get(name, {}).get("mean"), 3) for name in names)
            rows.append(
                (place(entry, found), str(found["episodes"]), rate(found["success"]), *cells)
            )
    return rows


def conclusion(result: Result) -> list[str]:
    """The lines in which a ladder ends: what was skipped, where half succeed, and the gates."""
    entries = result["rungs"]
    return [
        *(f"{e['name']}: skipped, {printable(e['skipped'])}" for e in entries if e["skipped"]),
        *(f"{e['name']}: {half(e)}" for e in entries if "half" in e),
        *(f"gate {e['name']}: {verdict(gate)}" for e in entries for gate in e["gates"]),
    ]


# ------------------------------------------------------------------------- comparison


def compare(old: Result, new: Result, by: Sequence[str] = ()) -> tuple[Table, list[str]]:
    """Two ladders side by side, condition by condition, by success and by metrics; of samples taken as independent.

    Args:
        old: The earlier one.
        new: The later one.
        by: Metrics; none given: `JUDGED`.
    """
    judged = by or JUDGED
    side = Table("condition", "before", "now", "p", *judged, box=None)
    before = {place(entry, found): found for entry, found in _conditions(old)}
    differing = []
    for entry, now in _conditions(new):
        name = place(entry, now)
        if name not in before:
            continue
        was = before[name]
        counts = [(one["success"]["count"], one["episodes"]) for one in (was, now)]
        p = fisher(*counts[0], *counts[1])
        differing += [name] if p < 0.05 else []
        changes = (_change(was, now, metric) for metric in judged)
        side.add_row(
            printable(name, 60), rate(was["success"]), rate(now["success"]), f"{p:.2g}", *changes
        )
    warnings = (
        f"warning: {key} differs, {printable(old[key], 120)} before and {printable(new[key], 120)} now"
        for key in ("task", "contract", "seed", "preset")
        if old[key] != new[key]
    )
    what = ", ".join(printable(name, 60) for name in differing) or "under no condition"
    return side, [*warnings, f"success differs at the 5 % level: {what}"]


def _conditions(result: Result) -> Iterator[tuple[Entry, Mapping[str, Any]]]:
    return ((entry, found) for entry in result["rungs"] for found in entry["conditions"])


def _change(was: Mapping[str, Any], now: Mapping[str, Any], metric: str) -> str:
    """The difference of a metric's means with its 95 % interval; empty where it is not known."""
    summaries = [one["metrics"].get(metric) for one in (was, now)]
    if not all(one and one["mean"] is not None for one in summaries):
        return ""
    found = welch_difference(*summaries)
    return f"{found.mean:+.3g} ({found.low:+.3g} to {found.high:+.3g})" if found else ""


# ------------------------------------------------------------------------- page


def html(result: Result, task: Task | type[Task]) -> str:
    """The page of a ladder, one file that needs no network."""
    entries = result["rungs"]
    plain = [entry for entry in entries if "half" not in entry]
    leveled = [entry for entry in entries if "half" in entry]
    cards: list[str] = []
    for entry in leveled:
        _level_plot(cards, entry)
    metrics = metrics_table([entry for entry in plain if entry["conditions"]])
    levels = conditions_table(leveled, task)
    parts = {
        "conditions": _rung_card(entries),
        "plots": "".join(cards),
        "tables": "".join(
            card(title, rows, task)
            for title, rows in (("Metrics: mean and 95 % interval", metrics), ("Levels", levels))
            if len(rows) > 1
        ),
    }
    texts = {"command": "", **result["policy"], **result}
    return page(ladder.PAGE, {**texts, "wall_seconds": round(result["wall_seconds"])}, parts)


def metrics_table(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """A row for each metric below a head of rungs without levels: the mean with its interval."""
    found = [entry["conditions"][0]["metrics"] for entry in entries]
    names = list(dict.fromkeys(name for metrics in found for name in metrics))
    rows = ((name, *(_mean(metrics.get(name)) for metrics in found)) for name in names)
    return [("metric", *(entry["name"] for entry in entries)), *rows]


def _mean(summary: Mapping[str, Any] | None) -> str:
    if summary is None or summary["mean"] is None:
        return ""
    ends = summary["mean95"]
    between = f" ({number(ends[0], 3)} to {number(ends[1], 3)})" if ends else ""
    return f"{number(summary['mean'], 3)}{between}"


def _rung_card(entries: Sequence[Entry]) -> str:
    """A card with a row for each rung: name and condition, success as a bar or where half succeed, and its gates."""
    rows = "".join(f"<tr>{_rung_row(entry)}</tr>" for entry in entries)
    head = "<tr><th>condition</th><th>episodes</th><th>success, 95 % interval</th></tr>"
    title = "<h2>Conditions</h2>"
    return f"<section class=card>{title}<div class=wide><table>{head}{rows}</table></div></section>"


def _rung_row(entry: Entry) -> str:
    what = f"{escape(entry['what'])}, {entry['seconds']:g} s"
    gates = "".join(map(gate_mark, entry["gates"]))
    first = f"<td>{escape(entry['name'])}<div class=soft>{what}</div>{gates}</td>"
    if entry["skipped"]:
        return f"{first}<td></td><td class=soft>skipped: {escape(entry['skipped'])}</td>"
    if "half" in entry:
        each = entry["conditions"][0]["episodes"]
        return f"{first}<td>{each} a level</td><td>{escape(half(entry))}</td>"
    found = entry["conditions"][0]
    return f"{first}<td>{found['episodes']}</td><td>{_bar(found['success'])}</td>"


def _bar(success: Mapping[str, Any]) -> str:
    """A success rate as a bar, on which its interval is shaded."""
    low, high = success["wilson95"]
    interval = f'<i style="left:{low:.1%};right:{1 - high:.1%}"></i>'
    return (
        f'{rate(success)}<div class=bar>{interval}<b style="left:{success["rate"]:.1%}"></b></div>'
    )


def _level_plot(cards: list[str], entry: Entry) -> None:
    """Success with its interval over the level, the fitted curve, and where half succeed."""
    found = entry["conditions"]
    levels = np.array([one["level"] for one in found])
    low, high = np.array([one["success"]["wilson95"] for one in found]).T
    unit = f", {entry['unit']}" if entry["unit"] else ""
    with plot_card(cards, f"{entry['name']}: {half(entry)}") as axes:
        if entry["half"] is not None:
            _draw_curve(axes, entry, levels)
        axes.vlines(levels, low, high, color=ACCENT, linewidth=2)
        axes.plot(levels, [one["success"]["rate"] for one in found], "o", color=ACCENT)
        axes.set(ylim=(-0.03, 1.03), xlabel=f"{entry['name']}{unit}", ylabel="success")


def _draw_curve(axes: Any, entry: Entry, levels: np.ndarray) -> None:
    """The logistic curve, and the interval of the level at which half succeed as a band."""
    x = np.linspace(levels.min(), levels.max(), CURVE_POINTS)
    falling = -1.0 if len(levels) < 2 or levels[0] < levels[-1] else 1.0
    exponent = -falling * (x - entry["half"]) / entry["width"]
    axes.plot(x, np.exp(-np.logaddexp(0.0, exponent)), color=ACCENT, linewidth=1)
    first, last = entry["interval95"]
    ends = (levels.min() if first is None else first, levels.max() if last is None else last)
    axes.axvspan(*ends, color=ACCENT, alpha=0.15, linewidth=0)
