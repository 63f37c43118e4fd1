"""A report of an evaluation: its statistics, its comparison with another, and its page to look at.

The page is one HTML file that needs no network: style, plots and a small video are inside it.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly.errors import DeftlyError
from deftly.intervals import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

Report = Mapping[str, Any]
"""What `eval.json` holds."""
SCHEMA = "deftly.eval/1"
CONDITIONS = ("task", "contract", "seed", "episodes", "preset", "disturbances", "stochastic")
"""What should be the same where two reports are compared."""
COLUMNS = ("mean", "std", "min", "p5", "p50", "p95", "max", "count")
"""Of the table of figures; `count` is how many episodes have a value."""
MAX_INLINE_VIDEO = 8_000_000
"""Bytes up to which a video is put into the page itself."""


def success(values: np.ndarray) -> dict[str, Any]:
    """The success rate of episodes and its 95 % interval."""
    count, total = int(values.sum()), len(values)
    return {"rate": count / total, "count": count, "wilson95": list(wilson(count, total))}


def summarize(values: np.ndarray) -> dict[str, float | int | None]:
    """Mean, spread and percentiles of the values that are numbers; None where there are none."""
    known = values[np.isfinite(values)]
    names = ("mean", "std", "min", "max", "p5", "p50", "p95")
    spread = (
        (known.mean(), known.std(), known.min(), known.max(), *np.percentile(known, (5, 50, 95))) if len(known) else ()
    )
    counts = {"count": len(known), "missing": len(values) - len(known)}
    return dict.fromkeys(names) | dict(zip(names, map(float, spread))) | counts


def means(report: Report) -> dict[str, float | None]:
    """Every metric that a gate or a comparison can name."""
    figures = {name: figure["mean"] for name, figure in report["figures"].items()}
    return {"success": report["success"]["rate"], "broken_physics": report["broken_physics"], **figures}


def two_proportions(count_a: int, total_a: int, count_b: int, total_b: int) -> float:
    """p-value, two-sided, of the hypothesis that two proportions are equal: the pooled z-test."""
    pooled = (count_a + count_b) / (total_a + total_b)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / total_a + 1 / total_b))
    if spread == 0:
        return 1.0
    return math.erfc(abs(count_a / total_a - count_b / total_b) / spread / math.sqrt(2))


def read_report(path: Path) -> Report:
    """Read an `eval.json`, or that of a folder. Raises DeftlyError for anything else."""
    path = path / "eval.json" if path.is_dir() else path
    try:
        report = json.loads(path.read_text())
        if report["schema"] != SCHEMA:
            raise ValueError(f"its schema is {report['schema']!r}, this Deftly reads {SCHEMA!r}")
        compare(report, report)  # it has all that a comparison needs
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise DeftlyError(f"{path} is no report of 'deftly eval' ({error}): give the eval.json of a test run") from None
    return report


def compare(old: Report, new: Report) -> tuple[Table, list[str]]:
    """Two reports side by side, and what can be said about them: warnings, and whether success differs."""
    from rich.table import Table

    side = Table("metric", "before", "now", "difference", box=None)
    before, now = means(old), means(new)
    for name in (name for name in now if name in before):
        a, b = before[name], now[name]
        side.add_row(name, number(a), number(b), "" if a is None or b is None else f"{b - a:+.4g}")
    lines = [
        f"warning: {name} differs, {str(old[name])[:24]} before and {str(new[name])[:24]} now"
        for name in CONDITIONS
        if old[name] != new[name]
    ]
    p = two_proportions(old["success"]["count"], old["episodes"], new["success"]["count"], new["episodes"])
    lines += [f"before: {headline(old)}", f"now: {headline(new)}"]
    return side, [*lines, f"success {'differs' if p < 0.05 else 'cannot be told apart'} at the 5 % level, p = {p:.2g}"]


def number(value: float | int | None) -> str:
    """A figure with four digits; nothing for None."""
    return "" if value is None else f"{value:.4g}"


def table(report: Report) -> Table:
    """The figures of a report, as printed."""
    from rich.table import Table

    out = Table("metric", *COLUMNS, box=None)
    for name, figure in report["figures"].items():
        out.add_row(name, *(number(figure[column]) for column in COLUMNS))
    return out


def headline(report: Report) -> str:
    """The success rate with its interval, in one line."""
    success = report["success"]
    low, high = success["wilson95"]
    count = f"{success['count']} of {report['episodes']}"
    return f"{report['task']}: success {success['rate']:.1%} ({count}), 95 % interval {low:.1%} to {high:.1%}"


def verdict(gate: Mapping[str, Any]) -> str:
    """What became of a gate."""
    return (
        f"{gate['gate']}: measured {number(gate['measured']) or 'no value'}, {'holds' if gate['holds'] else 'FAILED'}"
    )


MEANING = {
    "steps": "length of an episode in control steps",
    "seconds": "length of an episode, s",
    "success_seconds": "time a successful episode took, s",
    "time_to_grasp": "time until the first grip, s",
    "slips": "times the object slipped out in the air",
    "peak_press": "largest force of the fingers on the table, N",
    "time_out": "share of episodes cut off by the clock",
    "return": "sum of weighted rewards",
    "reward_per_step": "return divided by steps",
    "action_change": "mean change of the action in a step; less is smoother",
    "failed/physics": "share of episodes whose simulation broke",
    "failed/": "share of episodes that failed by ",
    "reward/": "weighted sum of the reward term ",
}


def meaning(name: str) -> str:
    """What a figure is, in a few words; nothing for what only the task knows."""
    kind, slash, rest = name.partition("/")
    return MEANING.get(name) or (MEANING.get(kind + slash, "") + rest if slash else "")


def html(report: Report, values: Mapping[str, np.ndarray], video: Path | None = None) -> str:
    """The page of a report, with the figures of each episode by name and an mp4 that lies beside the page."""
    low, high = report["success"]["wilson95"]
    disturbances = [name for name, value in report["disturbances"].items() if value is True]
    texts = {
        **report["success"],
        **report["checkpoint"],
        **report,
        "rate": f"{report['success']['rate']:.1%}",
        "low": f"{low:.1%}",
        "high": f"{high:.1%}",
        "width": f"{high - low:.1%}",
        "actions": "drawn from the distribution" if report["stochastic"] else "mean of the distribution",
        "disturbances": ", ".join(disturbances) or "none",
        "latency": report["disturbances"]["latency_ms"],
    }
    parts = {
        "gates": "".join(map(_pill, report.get("gates", []))),
        "video": _video(video) if video else "",
        "plots": "".join(_plots(report, values)),
        "figures": _figures(report),
    }
    page = Template(Path(__file__).with_name("report.html").read_text())
    return page.substitute({name: escape(str(text)) for name, text in texts.items()} | parts)


def _pill(gate: Mapping[str, Any]) -> str:
    return f'<span class="gate {"good" if gate["holds"] else "bad"}">{escape(verdict(gate))}</span>'


def _video(video: Path) -> str:
    source = escape(video.name)
    if video.stat().st_size < MAX_INLINE_VIDEO:
        source = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
    player = f'<video controls muted loop playsinline preload=auto src="{source}"></video>'
    return f"<section class=card><h2>The first episodes, in real time</h2>{player}</section>"


def _figures(report: Report) -> str:
    rows = ["".join(f"<th>{name}</th>" for name in ("figure", *COLUMNS))]
    for name, figure in report["figures"].items():
        cells = "".join(f"<td>{number(figure[column])}</td>" for column in COLUMNS)
        rows.append(f"<td>{escape(name)}<div class=soft>{escape(meaning(name))}</div></td>{cells}")
    return "".join(f"<tr>{row}</tr>" for row in rows)


ACCENT, GOOD, BAD = "#2f6fde", "#1a8f4c", "#cc3a34"
PAINT = {"#000000": "currentColor", ACCENT: "var(--accent)", GOOD: "var(--good)", BAD: "var(--bad)"}
"""Colours of the plots, and what the page has in their place, so that they follow its theme."""
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "legend.frameon": False}
STYLE |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)


def _plots(report: Report, values: Mapping[str, np.ndarray]) -> Iterator[str]:
    for name, title in (("seconds", "Episode length, s"), ("time_to_grasp", "Time to the first grip, s")):
        if np.isfinite(values.get(name, np.nan)).any():
            yield _plot(title, _histogram, values[name], values)
    if "start_x" in values and "start_y" in values:
        yield _plot("Success by start position, m", _starts, values)
    terms = {name[7:]: f["mean"] or 0.0 for name, f in report["figures"].items() if name.startswith("reward/")}
    yield _plot("Mean return by reward term", _terms, terms)


def _plot(title: str, draw: Callable[..., None], *data: Any) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        draw(figure.subplots(), *data)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    svg = re.sub("|".join(PAINT), lambda match: PAINT[match[0]], text[text.index("<svg") :])
    return f"<section class=card><h2>{escape(title)}</h2>{svg}</section>"


def _histogram(axes: Axes, seconds: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
    """Episodes over a time, in bins of whole control steps, and successes apart from failures."""
    known, success = np.isfinite(seconds), values["success"] > 0
    step = values["seconds"][0] / values["steps"][0]
    low, high = round(seconds[known].min() / step), round(seconds[known].max() / step)
    width = math.ceil((high - low + 1) / 30)
    bins = (step * np.arange(low - 0.5, high + width, width)).tolist()
    parts = [seconds[known & success], seconds[known & ~success]]
    axes.hist(parts, bins, stacked=True, color=[ACCENT, BAD], label=["success", "failure"], rwidth=0.92)
    axes.set_ylabel("episodes")
    if len(parts[1]):
        axes.legend()


def _starts(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    for done, paint, label in ((1, GOOD, "success"), (0, BAD, "failure")):
        mask = values["success"] == done
        axes.scatter(values["start_x"][mask], values["start_y"][mask], s=12, color=paint, label=label)
    axes.set(xlabel="x", ylabel="y", aspect="equal")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 1.2), ncols=2)


def _terms(axes: Axes, terms: Mapping[str, float]) -> None:
    names, sizes = list(terms)[::-1], list(terms.values())[::-1]
    axes.barh(names, sizes, color=[ACCENT if size >= 0 else BAD for size in sizes], height=0.65)
    axes.axvline(0, color="black", linewidth=0.8)
