"""A report of an evaluation: its statistics, its comparison with another, and its page to look at.

The page is one HTML file that needs no network: style, plots and a small video are inside it.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly.errors import DeftlyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

SCHEMA = "deftly.eval/1"
Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution: 95 % lies within plus and minus this."""
MAX_INLINE_VIDEO = 2_000_000
"""Bytes up to which a video is put into the page itself."""

# ------------------------------------------------------------------ statistics


def wilson(count: int, total: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion, 95 % by default.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
    (1927) 209-212. Unlike the textbook interval it stays within 0 and 1 and is right near them.
    """
    rate, weight = count / total, z * z / total
    centre = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(rate * (1 - rate) / total + weight / (4 * total))
    return (0.0 if count == 0 else centre - half), (1.0 if count == total else centre + half)


def two_proportions(count_a: int, total_a: int, count_b: int, total_b: int) -> float:
    """p-value, two-sided, of the hypothesis that two proportions are equal: the pooled z-test."""
    pooled = (count_a + count_b) / (total_a + total_b)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / total_a + 1 / total_b))
    if spread == 0:
        return 1.0
    return math.erfc(abs(count_a / total_a - count_b / total_b) / spread / math.sqrt(2))


def summarize(values: np.ndarray) -> dict[str, float | int | None]:
    """Mean, spread and percentiles of the values that are numbers; None where there are none."""
    known = values[np.isfinite(values)]
    counts: dict[str, float | int | None] = {"count": len(known), "missing": len(values) - len(known)}
    names = ("mean", "std", "min", "max", "p5", "p50", "p95")
    if not len(known):
        return dict.fromkeys(names) | counts
    spread = (known.mean(), known.std(), known.min(), known.max(), *np.percentile(known, (5, 50, 95)))
    return dict(zip(names, map(float, spread))) | counts


def means(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Every metric that a gate or a comparison can name."""
    figures = {name: figure["mean"] for name, figure in report["figures"].items()}
    return {"success": report["success"]["rate"], "broken_physics": report["broken_physics"], **figures}


def read_report(path: Path) -> dict[str, Any]:
    """Read an `eval.json`. Raises DeftlyError for anything else."""
    path = path / "eval.json" if path.is_dir() else path
    try:
        report = json.loads(path.read_text())
        if report["schema"] != SCHEMA:
            raise DeftlyError(f"{path} has schema {report['schema']!r}, this Deftly reads {SCHEMA!r}")
        means(report)
        wilson(int(report["success"]["count"]), int(report["episodes"]))
    except OSError as error:
        raise DeftlyError(
            f"cannot read the report {path}: {error.strerror}; give the eval.json of a test run"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise DeftlyError(f"{path} is no report of 'deftly eval': give the eval.json of a test run") from None
    return report


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Table, list[str]]:
    """Two reports side by side, and what can be said about them: warnings, and whether success differs."""
    from rich.table import Table

    table = Table("metric", "before", "now", "difference", box=None)
    before, now = means(old), means(new)
    for name in [name for name in now if name in before]:
        a, b = before[name], now[name]
        both = a is not None and b is not None
        table.add_row(name, number(a), number(b), f"{b - a:+.4g}" if both else "")  # type: ignore[operator]
    names = ("task", "contract", "seed", "episodes", "preset", "disturbances", "stochastic")
    lines = [
        f"warning: {name} differs, {_short(old.get(name))} before and {_short(new[name])} now"
        for name in names
        if old.get(name) != new[name]
    ]
    return table, [*lines, _significance(old, new)]


def _significance(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    a, b = old["success"]["count"], new["success"]["count"]
    (low_a, high_a), (low_b, high_b) = wilson(a, old["episodes"]), wilson(b, new["episodes"])
    p = two_proportions(a, old["episodes"], b, new["episodes"])
    overlap = "overlap" if low_a <= high_b and low_b <= high_a else "do not overlap"
    verdict = "differ" if p < 0.05 else "cannot be told apart"
    return (
        f"success {a / old['episodes']:.1%} [{low_a:.1%}, {high_a:.1%}] before, "
        f"{b / new['episodes']:.1%} [{low_b:.1%}, {high_b:.1%}] now: the intervals {overlap}, p = {p:.2g}, "
        f"they {verdict} at the 5 % level"
    )


def _short(value: object) -> str:
    return str(value)[:24]


def number(value: float | int | None) -> str:
    """A figure with four digits; nothing for None."""
    return "" if value is None else f"{value:.4g}"


def table(report: Mapping[str, Any]) -> Table:
    """The figures of a report, as printed."""
    from rich.table import Table

    names = ("mean", "std", "min", "p5", "p50", "p95", "max")
    out = Table("metric", *names, "episodes", box=None)
    for name, figure in report["figures"].items():
        out.add_row(name, *(number(figure[column]) for column in names), str(figure["count"]))
    return out


def headline(report: Mapping[str, Any]) -> str:
    """The success rate with its interval, in one line."""
    low, high = report["success"]["wilson95"]
    count, total = report["success"]["count"], report["episodes"]
    rate = report["success"]["rate"]
    return f"{report['task']}: success {rate:.1%} ({count} of {total}), 95 % interval {low:.1%} to {high:.1%}"


# ------------------------------------------------------------------------ page

MEANING = {
    "steps": "length of an episode in control steps",
    "seconds": "length of an episode, s",
    "success_seconds": "time a successful episode took, s",
    "time_to_grasp": "time until the first grip, s",
    "slips": "times the object slipped out in the air",
    "time_out": "share of episodes cut off by the clock",
    "return": "sum of weighted rewards",
    "reward_per_step": "return divided by steps",
    "action_change": "mean change of the action in a step; less is smoother",
    "failed/physics": "share of episodes whose simulation broke",
}
INK, ACCENT, GOOD, BAD = "#0a0b0c", "#0a0b0d", "#0a0b0e", "#0a0b0f"
PAINT = {INK: "currentColor", ACCENT: "var(--accent)", GOOD: "var(--good)", BAD: "var(--bad)"}
"""Placeholder colours of the plots, and what the page has in their place, so that they follow its theme."""
STYLE = """
:root { --page:#f6f7f9; --card:#fff; --ink:#1b1f27; --soft:#667085; --line:#e3e6eb; --accent:#2f6fde;
  --good:#1a8f4c; --bad:#cc3a34; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --page:#12151a; --card:#1b2027; --ink:#e6e9ee; --soft:#98a2b3;
  --line:#2c333d; --accent:#6ea3ff; --good:#45c27b; --bad:#ff7a70 } }
* { box-sizing: border-box }
body { margin:0; background:var(--page); color:var(--ink); font:16px/1.5 system-ui, sans-serif }
main { max-width:1040px; margin:0 auto; padding:28px 16px 48px; display:grid; gap:16px }
h1 { font-size:1.35rem; margin:0 } h2 { font-size:1rem; margin:0 0 10px }
.soft { color:var(--soft); font-size:.875rem }
.card { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:18px; min-width:0 }
.rate { font-size:3.25rem; font-weight:650; line-height:1.1; font-variant-numeric:tabular-nums }
.bar { position:relative; height:10px; border-radius:5px; background:var(--line); margin:14px 0 4px }
.bar i { position:absolute; top:0; bottom:0; border-radius:5px; background:var(--accent); opacity:.45;
  min-width:4px }
.bar b { position:absolute; top:-3px; bottom:-3px; width:4px; margin-left:-2px; border-radius:2px;
  background:var(--accent) }
.ends { display:flex; justify-content:space-between }
.gate { display:inline-block; margin:10px 8px 0 0; padding:3px 12px; border-radius:99px; border:1px solid;
  font-size:.875rem }
.good { color:var(--good) } .bad { color:var(--bad) }
.plots { display:grid; grid-template-columns:repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap:16px }
svg, video { display:block; width:100%; height:auto }
video { max-width:720px; margin:0 auto; border-radius:8px }
.wide { overflow-x:auto } table { border-collapse:collapse; width:100%; font-size:.9rem }
th, td { padding:6px 10px; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap;
  font-variant-numeric:tabular-nums }
th { color:var(--soft); font-weight:500 } tr:last-child td { border-bottom:0 }
th:first-child, td:first-child { text-align:left; white-space:normal; min-width:11rem; padding-left:0 }
pre { margin:0; padding:12px; border-radius:8px; background:var(--page); white-space:pre-wrap;
  overflow-wrap:anywhere; font-size:.85rem }
dl { display:grid; grid-template-columns:max-content 1fr; gap:4px 16px; margin:14px 0 0; font-size:.9rem }
dt { color:var(--soft) } dd { margin:0; overflow-wrap:anywhere }
"""


def html(report: Mapping[str, Any], values: Mapping[str, np.ndarray], video: Path | None = None) -> str:
    """The page of a report.

    Args:
        report: what `eval.json` holds.
        values: figures of the episodes by name, `(episodes,)`.
        video: an mp4 that lies beside the page.
    """
    title = escape(f"{report['task']}: {report['success']['rate']:.1%} success")
    cards = [_hero(report), _video(video), _plots(report, values), _figures(report), _facts(report)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>{''.join(cards)}</main></body></html>\n"
    )


def _hero(report: Mapping[str, Any]) -> str:
    success = report["success"]
    low, high = success["wilson95"]
    gates = "".join(_pill(gate) for gate in report.get("gates", []))
    return (
        f"<header><h1>{escape(report['task'])}</h1>"
        f"<div class=soft>{escape(report['robot'])}, evaluated on {report['episodes']} episodes "
        "that no training has seen</div></header>"
        f"<section class=card><div class=rate>{success['rate']:.1%}</div>"
        f"<div>success, {success['count']} of {report['episodes']} episodes; "
        f"95 % interval {low:.1%} to {high:.1%}</div>"
        f'<div class=bar><i style="left:{low:.2%};width:{high - low:.2%}"></i>'
        f'<b style="left:{success["rate"]:.2%}"></b></div>'
        f'<div class="ends soft"><span>0 %</span><span>100 %</span></div>{gates}</section>'
    )


def _pill(gate: Mapping[str, Any]) -> str:
    kind, word = ("good", "holds") if gate["holds"] else ("bad", "failed")
    measured = number(gate["measured"]) or "no value"
    return f'<span class="gate {kind}">{escape(gate["gate"])} {word}: {measured}</span>'


def _video(video: Path | None) -> str:
    if video is None:
        return ""
    source = escape(video.name)
    if video.stat().st_size < MAX_INLINE_VIDEO:
        source = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
    return (
        "<section class=card><h2>The first episodes, in real time</h2>"
        f'<video controls muted loop playsinline preload=auto src="{source}"></video></section>'
    )


def _figures(report: Mapping[str, Any]) -> str:
    columns = ("mean", "std", "p5", "p50", "p95", "min", "max", "count")
    heads = ("mean", "std", "5 %", "median", "95 %", "min", "max", "episodes")
    rows = "".join(_row(name, figure, columns) for name, figure in report["figures"].items())
    head = "".join(f"<th>{name}</th>" for name in ("figure", *heads))
    body = f"<div class=wide><table><tr>{head}</tr>{rows}</table></div>"
    return f"<section class=card><h2>Figures</h2>{body}</section>"


def _row(name: str, figure: Mapping[str, Any], columns: tuple[str, ...]) -> str:
    cells = "".join(f"<td>{number(figure[column])}</td>" for column in columns)
    return f"<tr><td>{escape(name)}<div class=soft>{escape(_meaning(name))}</div></td>{cells}</tr>"


def _meaning(name: str) -> str:
    kind, _, rest = name.partition("/")
    made = {
        "reward": f"weighted reward term {rest}, summed",
        "failed": f"share of episodes that failed by {rest}",
    }
    return MEANING.get(name) or (made.get(kind, "") if rest else "")


def _facts(report: Mapping[str, Any]) -> str:
    found, disturbed = report["checkpoint"], report["disturbances"]
    active = [name for name, value in disturbed.items() if value is True]
    facts = {
        "policy": f"{found['path']}, iteration {found['iteration']}",
        "weights": f"sha256 {found['sha256']}",
        "contract": report["contract"],
        "robot": report["robot"],
        "actions": "drawn from the distribution" if report["stochastic"] else "mean of the distribution",
        "disturbances": f"{', '.join(active) or 'none'}; latency {disturbed['latency_ms']} ms",
        "physics": f"preset {report['preset']}, broken in {report['broken_physics']} episodes",
        "seed": report["seed"],
        "took": f"{report['wall_seconds']:.1f} s",
        "deftly": report["version"],
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    command = escape(report.get("command", ""))
    return f"<section class=card><h2>Measure it again</h2><pre>{command}</pre><dl>{rows}</dl></section>"


# ----------------------------------------------------------------------- plots


def _plots(report: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> str:
    plots = [
        _plot(title, lambda axes, name=name: _histogram(axes, values[name], values))
        for name, title in (("seconds", "Episode length, s"), ("time_to_grasp", "Time to the first grip, s"))
        if np.isfinite(values.get(name, np.array([]))).any()
    ]
    if "start_x" in values and "start_y" in values:
        plots.append(_plot("Success by start position, m", lambda axes: _starts(axes, values)))
    terms = {name[7:]: f["mean"] for name, f in report["figures"].items() if name.startswith("reward/")}
    if terms:
        plots.append(_plot("Mean return by reward term", lambda axes: _terms(axes, terms)))
    return f"<div class=plots>{''.join(plots)}</div>"


def _plot(title: str, draw: Any) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif", "font.size": 9}
    ink = dict.fromkeys(("axes.edgecolor", "text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context({**style, **ink}):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", text[text.index("<svg") :], count=2)
    svg = re.sub("|".join(PAINT), lambda match: PAINT[match[0]], svg)
    return f"<section class=card><h2>{escape(title)}</h2>{svg}</section>"


def _histogram(axes: Axes, seconds: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
    """Episodes over a time, in bins of whole control steps, and successes apart from failures."""
    known, success = np.isfinite(seconds), values["success"]
    step = float(values["seconds"][0] / values["steps"][0])
    low, high = seconds[known].min() / step, seconds[known].max() / step
    width = max(1, math.ceil((high - low) / 30))
    bins = [step * (round(low) + width * i - 0.5) for i in range(math.ceil((high - low + 1) / width) + 1)]
    parts = [seconds[known & (success > 0)], seconds[known & (success == 0)]]
    axes.hist(parts, bins=bins, stacked=True, color=[ACCENT, BAD], label=["success", "failure"], rwidth=0.92)
    axes.set_ylabel("episodes")
    if len(parts[1]):
        axes.legend(frameon=False)


def _starts(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    for done, paint, label in ((1, GOOD, "success"), (0, BAD, "failure")):
        mask = values["success"] == done
        axes.scatter(values["start_x"][mask], values["start_y"][mask], s=12, color=paint, label=label)
    axes.set(xlabel="x", ylabel="y", aspect="equal")
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 1.2), ncols=2)


def _terms(axes: Axes, terms: Mapping[str, float | None]) -> None:
    names = list(terms)[::-1]
    sizes = [terms[name] or 0.0 for name in names]
    axes.barh(names, sizes, color=[ACCENT if size >= 0 else BAD for size in sizes], height=0.65)
    axes.axvline(0, color=INK, linewidth=0.8)
