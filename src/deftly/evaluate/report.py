"""A report of an evaluation: its statistics, its comparison with another, and its page, which needs no network."""

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.files import FileError, read_json
from deftly.stats import SUMMARY, fisher, proportion, summarize
from deftly.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = Mapping[str, Any]  # what `eval.json` holds
Values = Mapping[str, np.ndarray]  # the figures of the episodes by name, each (episodes,)
SCHEMA = "deftly.eval/1"
CONDITIONS = (
    "task",
    "contract",
    "seed",
    "episodes",
    "preset",
    "disturbances",
    "stochastic",
)  # of a fair comparison
MAX_INLINE_VIDEO = 8_000_000  # bytes up to which a video is put into the page itself


def divide(values: Values, task: Task | type[Task]) -> dict[str, Any]:
    """What `eval.json` has of a task's `breakdown`: by bin, success and the means of the figures that the task names.

    A bin holds what is `low` or more and less than `high`. What is beyond the edges is in bins without `low` or `high`.
    Nothing of a task without a breakdown; raises DeftlyError if it names an unknown figure.
    """
    if not task.report.breakdown:
        return {}
    metric, edges = task.report.breakdown
    if metric not in values:
        raise DeftlyError(
            f"{task.name} breaks its report down by '{metric}', which none of its figures is"
        )
    place = np.where(np.isfinite(values[metric]), np.digitize(values[metric], edges), -1)
    own, bins = (
        [name for name in values if name in {**task.report.metrics, **dict(task.report.plots)}],
        [],
    )
    for i, (low, high) in enumerate(pairwise((None, *edges, None))):
        inside = place == i
        if inside.any() or None not in (low, high):
            figures = {name: summarize(values[name][inside])["mean"] for name in own}
            bounds = {"low": low, "high": high, "episodes": int(inside.sum())}
            bins.append(
                {**bounds, "success": proportion(values["success"][inside]), "figures": figures}
            )
    return {"breakdown": {"metric": metric, "bins": bins}}


def means(report: Report) -> dict[str, float | None]:
    """Every metric that a gate or a comparison can name."""
    figures = {name: figure["mean"] for name, figure in report["figures"].items()}
    return {
        "success": report["success"]["rate"],
        "broken_physics": report["broken_physics"],
        **figures,
    }


def read_report(path: Path) -> Report:
    """Read an `eval.json`, or that of a folder. Raises DeftlyError for anything else."""
    path = path / "eval.json" if path.is_dir() else path
    what, advice = "a report of 'deftly eval'", "give the eval.json of a test run"
    report = read_json(path, what, advice=advice)
    try:
        if report["schema"] != SCHEMA:
            raise ValueError(f"its schema is {report['schema']!r}, this Deftly reads {SCHEMA!r}")
        compare(report, report)  # it has all that a comparison needs
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path} is not {what}: {printable(error)}; {advice}") from None
    return report


def compare(old: Report, new: Report) -> tuple[Table, list[str]]:
    """Two reports side by side, and what can be said about them: warnings, and whether success differs."""
    side = Table("metric", "before", "now", "difference", box=None)
    before, now = means(old), means(new)
    for name in (name for name in now if name in before):
        a, b = before[name], now[name]
        side.add_row(name, number(a), number(b), "" if a is None or b is None else f"{b - a:+.4g}")
    apart = (name for name in CONDITIONS if old[name] != new[name])
    lines = [
        f"warning: {name} differs, {old[name]!s:.120} before and {new[name]!s:.120} now"
        for name in apart
    ]
    p = fisher(old["success"]["count"], old["episodes"], new["success"]["count"], new["episodes"])
    lines += [f"before: {headline(old)}", f"now: {headline(new)}"]
    return side, [
        *lines,
        f"success {'differs' if p < 0.05 else 'cannot be told apart'} at the 5 % level, p = {p:.2g}",
    ]


def number(value: float | int | None, digits: int = 4) -> str:
    """A figure with so many digits; nothing for None and NaN."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def headline(report: Report) -> str:
    """The success rate with its interval, in one line."""
    success = report["success"]
    low, high = success["wilson95"]
    count = f"{success['count']} of {report['episodes']}"
    return f"{report['task']}: success {success['rate']:.1%} ({count}), 95 % interval {low:.1%} to {high:.1%}"


def figures_table(report: Report) -> list[tuple[str, ...]]:
    """The figures, a row each below a head."""
    rows = (
        (name, *(number(figure[key]) for key in SUMMARY))
        for name, figure in report["figures"].items()
    )
    return [("metric", *SUMMARY), *rows]


def bins_table(report: Report) -> list[tuple[str, ...]]:
    """The breakdown: a head with the range of each bin, then a row for each figure; nothing if it has none."""
    if "breakdown" not in report:
        return []
    metric, bins = report["breakdown"]["metric"], report["breakdown"]["bins"]
    rates, ranges = [b["success"]["rate"] for b in bins], [b["success"]["wilson95"] for b in bins]
    return [
        (metric, *(f"{number(b['low'])} to {number(b['high'])}".strip() for b in bins)),
        ("episodes", *(str(b["episodes"]) for b in bins)),
        ("success", *("" if rate is None else f"{rate:.1%}" for rate in rates)),
        ("95 % interval", *(f"{low:.0%} to {high:.0%}" for low, high in ranges)),
        *((name, *(number(b["figures"][name]) for b in bins)) for name in bins[0]["figures"]),
    ]


def verdict(gate: Mapping[str, Any]) -> str:
    """What became of a gate."""
    value, outcome = number(gate["measured"]) or "no value", "holds" if gate["holds"] else "FAILED"
    return f"{gate['gate']}: measured {value}, {outcome}"


MEANING = {
    "steps": "length of an episode in control steps",
    "seconds": "length of an episode, s",
    "success_seconds": "time a successful episode took, s",
    "time_out": "share of episodes cut off by the clock",
    "return": "sum of weighted rewards",
    "reward_per_step": "return divided by steps",
    "action_change": "mean change of the action in a step; less is smoother",
    "failed/physics": "share of episodes whose simulation broke",
    "failed/": "share of episodes that failed by ",
    "reward/": "weighted sum of the reward term ",
}


def meaning(name: str, task: Task | type[Task] = Task) -> str:
    """What a figure is, in a few words; nothing for what the task does not explain."""
    kind, slash, rest = name.partition("/")
    return {**MEANING, **task.report.metrics}.get(name) or (
        MEANING.get(kind + slash, "") + rest if slash else ""
    )


def html(
    report: Report, values: Values, video: Path | None = None, task: Task | type[Task] = Task
) -> str:
    """The page of a report: `values` are the figures of each episode, `video` lies beside it, `task` explains them."""
    rate, low, high = (
        f"{share:.1%}" for share in (report["success"]["rate"], *report["success"]["wilson95"])
    )
    actions = "drawn from the distribution" if report["stochastic"] else "mean of the distribution"
    texts = {
        **report["success"],
        **report["checkpoint"],
        **report,
        "rate": rate,
        "low": low,
        "high": high,
    }
    disturbances = ", ".join(f"{name} {value}" for name, value in report["disturbances"].items())
    texts |= {"actions": actions, "disturbances": disturbances}
    gates = (
        ("good" if gate["holds"] else "bad", escape(verdict(gate)))
        for gate in report.get("gates", ())
    )
    tables = {"Figures": figures_table(report), "By parts": bins_table(report)}
    source = escape(video.name) if video else ""
    if video and video.stat().st_size < MAX_INLINE_VIDEO:
        source = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
    player = f'<video controls muted loop playsinline preload=auto src="{source}"></video>'
    parts = {
        "gates": "".join(f'<span class="gate {kind}">{text}</span>' for kind, text in gates),
        "video": f"<section class=card><h2>The first episodes, in real time</h2>{player}</section>"
        if video
        else "",
        "plots": _plots(report, values, task),
        "tables": "".join(_table(title, rows, task) for title, rows in tables.items() if rows),
    }
    page = Template(Path(__file__).with_name("report.html").read_text())
    return page.substitute({name: escape(str(text)) for name, text in texts.items()} | parts)


def _table(title: str, rows: Sequence[Sequence[str]], task: Task | type[Task]) -> str:
    """A card of the page: the first row is the head, the first cell of each other row a figure's name."""
    head, *body = rows
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    for name, *cells in body:
        first = f"<td>{escape(name)}<div class=soft>{escape(meaning(name, task))}</div></td>"
        lines.append(first + "".join(f"<td>{escape(cell)}</td>" for cell in cells))
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<section class=card><h2>{escape(title)}</h2><div class=wide><table>{table}</table></div></section>"


ACCENT, GOOD, BAD = "#2f6fde", "#1a8f4c", "#cc3a34"
PAINT = {"#000000": "currentColor", ACCENT: "var(--accent)", GOOD: "var(--good)", BAD: "var(--bad)"}
"""Colours of the plots, and what the page has in their place, so that they follow its theme."""
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "legend.frameon": False}
STYLE |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)


@contextmanager
def _plot(cards: list[str], title: str) -> "Iterator[Axes]":
    """Axes to draw on, which become a card of the page."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure, file = Figure(figsize=(4.4, 2.7), layout="constrained"), io.StringIO()
        yield figure.subplots()
        figure.savefig(
            file, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    svg = re.sub(
        "|".join(PAINT), lambda match: PAINT[match[0]], file.getvalue().partition("<svg")[2]
    )
    cards.append(f"<section class=card><h2>{escape(title)}</h2><svg{svg}</section>")


def _plots(report: Report, values: Values, task: Task | type[Task]) -> str:
    cards: list[str] = []
    success = values["success"] > 0
    for name, title in task.report.plots:
        _histogram(
            cards,
            title,
            values.get(name, np.empty(0)),
            success,
            values["seconds"][0] / values["steps"][0],
        )
    if "start_x" in values and "start_y" in values:
        with _plot(cards, "Success by start position, m") as axes:
            for mask, paint, label in ((success, GOOD, "success"), (~success, BAD, "failure")):
                axes.scatter(
                    values["start_x"][mask], values["start_y"][mask], s=12, color=paint, label=label
                )
            axes.set(xlabel="x", ylabel="y", aspect="equal")
            axes.legend(loc="upper right", bbox_to_anchor=(1, 1.2), ncols=2)
    if "breakdown" in report:
        _by_bin(cards, report["breakdown"], task)
    terms = {
        name[7:]: figure["mean"] or 0.0
        for name, figure in report["figures"].items()
        if name[:7] == "reward/"
    }
    with _plot(cards, "Mean return by reward term") as axes:
        names, sizes = list(terms)[::-1], list(terms.values())[::-1]
        axes.barh(names, sizes, color=[ACCENT if size >= 0 else BAD for size in sizes], height=0.65)
        axes.axvline(0, color="black", linewidth=0.8)
    return "".join(cards)


def _histogram(
    cards: list[str], title: str, figure: np.ndarray, success: np.ndarray, step: float
) -> None:
    """Successes apart from failures; times, which are whole control steps (`step`, s), in bins of whole steps."""
    known = np.isfinite(figure)
    if not known.any():
        return
    least, most = float(figure[known].min()), float(figure[known].max())
    if np.allclose(figure[known] / step, np.rint(figure[known] / step)):
        low, high = round(least / step), round(most / step)
        width = math.ceil((high - low + 1) / 30)
        bins = (step * np.arange(low - 0.5, high + width, width)).tolist()
    else:
        bins = np.linspace(least, most, 25).tolist() if most - least > 1e-9 else 1
    parts, names = [figure[known & success], figure[known & ~success]], ["success", "failure"]
    with _plot(cards, title) as axes:
        axes.hist(parts, bins, stacked=True, color=[ACCENT, BAD], label=names, rwidth=0.92)
        axes.set_ylabel("episodes")
        if len(parts[1]):
            axes.legend()


def _by_bin(cards: list[str], breakdown: Mapping[str, Any], task: Task | type[Task]) -> None:
    """Success with its interval, and the mean of the task's first figure, by bin; ticks are the edges of the bins."""
    bins, (name, title) = breakdown["bins"], task.report.plots[0]
    what = meaning(breakdown["metric"], task) or breakdown["metric"]
    places = np.arange(len(bins)) + 0.5
    edges = [number(edge) for edge in (*(b["low"] for b in bins), bins[-1]["high"])]
    rates = np.array([b["success"]["rate"] for b in bins], float)
    low, high = np.array([b["success"]["wilson95"] for b in bins]).T
    with _plot(cards, f"Success by {what}") as axes:
        axes.vlines(places, low, high, color=ACCENT, linewidth=2)
        axes.plot(places, rates, "o", color=ACCENT)
        axes.set(ylim=(-0.03, 1.03), xticks=range(len(edges)), xticklabels=edges)
    with _plot(cards, f"{title}, mean by {what}") as axes:
        axes.bar(
            places, np.array([b["figures"].get(name) for b in bins], float), 0.85, color=ACCENT
        )
        axes.set(xticks=range(len(edges)), xticklabels=edges)
