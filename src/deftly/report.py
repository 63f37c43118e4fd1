"""A report of an evaluation: its statistics, its comparison with another, and its page, which needs no network."""

import base64
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from deftly.errors import DeftlyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = Mapping[str, Any]  # what `eval.json` holds
SCHEMA = "deftly.eval/1"
CONDITIONS = ("task", "contract", "seed", "episodes", "preset", "disturbances", "stochastic")  # of a fair comparison
COLUMNS = ("mean", "std", "min", "p5", "p50", "p95", "max", "count")  # `count` is how many episodes have a value
MAX_INLINE_VIDEO = 8_000_000  # bytes up to which a video is put into the page itself


def summarize(values: np.ndarray) -> dict[str, float | int | None]:
    """Mean, spread and percentiles of the values that are numbers; None where there are none."""
    known = values[np.isfinite(values)]
    spread = (known.mean(), known.std(), *np.percentile(known, (0, 5, 50, 95, 100))) if len(known) else ()
    counts = {"count": len(known), "missing": len(values) - len(known)}
    return dict.fromkeys(COLUMNS) | dict(zip(COLUMNS, map(float, spread))) | counts


def means(report: Report) -> dict[str, float | None]:
    """Every metric that a gate or a comparison can name."""
    figures = {name: figure["mean"] for name, figure in report["figures"].items()}
    return {"success": report["success"]["rate"], "broken_physics": report["broken_physics"], **figures}


def two_proportions(count_a: int, total_a: int, count_b: int, total_b: int) -> float:
    """p-value, two-sided, of the hypothesis that two proportions are equal: the pooled z-test."""
    pooled = (count_a + count_b) / (total_a + total_b)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / total_a + 1 / total_b))
    return math.erfc(abs(count_a / total_a - count_b / total_b) / spread / math.sqrt(2)) if spread else 1.0


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
    side = Table("metric", "before", "now", "difference", box=None)
    before, now = means(old), means(new)
    for name in (name for name in now if name in before):
        a, b = before[name], now[name]
        side.add_row(name, number(a), number(b), "" if a is None or b is None else f"{b - a:+.4g}")
    sides = ((name, str(old[name])[:24], str(new[name])[:24]) for name in CONDITIONS if old[name] != new[name])
    lines = [f"warning: {name} differs, {was} before and {is_now} now" for name, was, is_now in sides]
    p = two_proportions(old["success"]["count"], old["episodes"], new["success"]["count"], new["episodes"])
    lines += [f"before: {headline(old)}", f"now: {headline(new)}"]
    return side, [*lines, f"success {'differs' if p < 0.05 else 'cannot be told apart'} at the 5 % level, p = {p:.2g}"]


def number(value: float | int | None, digits: int = 4) -> str:
    """A figure with so many digits; nothing for None and NaN."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def headline(report: Report) -> str:
    """The success rate with its interval, in one line."""
    success = report["success"]
    low, high = success["wilson95"]
    count = f"{success['count']} of {report['episodes']}"
    return f"{report['task']}: success {success['rate']:.1%} ({count}), 95 % interval {low:.1%} to {high:.1%}"


def verdict(gate: Mapping[str, Any]) -> str:
    """What became of a gate."""
    value, outcome = number(gate["measured"]) or "no value", "holds" if gate["holds"] else "FAILED"
    return f"{gate['gate']}: measured {value}, {outcome}"


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
    rate, low, high = (f"{share:.1%}" for share in (report["success"]["rate"], *report["success"]["wilson95"]))
    actions = "drawn from the distribution" if report["stochastic"] else "mean of the distribution"
    disturbances = ", ".join(name for name, value in report["disturbances"].items() if value is True) or "none"
    texts = {**report["success"], **report["checkpoint"], **report, "rate": rate, "low": low, "high": high}
    texts |= {"actions": actions, "disturbances": disturbances, "latency": report["disturbances"]["latency_ms"]}
    gates = (("good" if gate["holds"] else "bad", escape(verdict(gate))) for gate in report.get("gates", ()))
    rows = ["".join(f"<th>{name}</th>" for name in ("figure", *COLUMNS))]
    for name, figure in report["figures"].items():
        cells = "".join(f"<td>{number(figure[column])}</td>" for column in COLUMNS)
        rows.append(f"<td>{escape(name)}<div class=soft>{escape(meaning(name))}</div></td>{cells}")
    source = escape(video.name) if video else ""
    if video and video.stat().st_size < MAX_INLINE_VIDEO:
        source = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
    player = f'<video controls muted loop playsinline preload=auto src="{source}"></video>'
    parts = {
        "gates": "".join(f'<span class="gate {kind}">{text}</span>' for kind, text in gates),
        "video": f"<section class=card><h2>The first episodes, in real time</h2>{player}</section>" if video else "",
        "plots": _plots(report, values),
        "figures": "".join(f"<tr>{row}</tr>" for row in rows),
    }
    page = Template(Path(__file__).with_name("report.html").read_text())
    return page.substitute({name: escape(str(text)) for name, text in texts.items()} | parts)


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
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub("|".join(PAINT), lambda match: PAINT[match[0]], file.getvalue().partition("<svg")[2])
    cards.append(f"<section class=card><h2>{escape(title)}</h2><svg{svg}</section>")


def _plots(report: Report, values: Mapping[str, np.ndarray]) -> str:
    cards, success = [], values["success"] > 0
    step = values["seconds"][0] / values["steps"][0]
    for name, title in (("seconds", "Episode length, s"), ("time_to_grasp", "Time to the first grip, s")):
        times = values.get(name, np.full(len(success), np.nan))
        known = np.isfinite(times)
        if known.any():  # successes apart from failures, in bins of whole control steps
            low, high = round(times[known].min() / step), round(times[known].max() / step)
            width = math.ceil((high - low + 1) / 30)
            bins = (step * np.arange(low - 0.5, high + width, width)).tolist()
            parts, names = [times[known & success], times[known & ~success]], ["success", "failure"]
            with _plot(cards, title) as axes:
                axes.hist(parts, bins, stacked=True, color=[ACCENT, BAD], label=names, rwidth=0.92)
                axes.set_ylabel("episodes")
                if len(parts[1]):
                    axes.legend()
    if "start_x" in values and "start_y" in values:
        with _plot(cards, "Success by start position, m") as axes:
            for mask, paint, label in ((success, GOOD, "success"), (~success, BAD, "failure")):
                axes.scatter(values["start_x"][mask], values["start_y"][mask], s=12, color=paint, label=label)
            axes.set(xlabel="x", ylabel="y", aspect="equal")
            axes.legend(loc="upper right", bbox_to_anchor=(1, 1.2), ncols=2)
    terms = {name[7:]: figure["mean"] or 0.0 for name, figure in report["figures"].items() if name[:7] == "reward/"}
    with _plot(cards, "Mean return by reward term") as axes:
        names, sizes = list(terms)[::-1], list(terms.values())[::-1]
        axes.barh(names, sizes, color=[ACCENT if size >= 0 else BAD for size in sizes], height=0.65)
        axes.axvline(0, color="black", linewidth=0.8)
    return "".join(cards)
