"""A report of an evaluation: its metrics, and its page, which needs no network."""

import base64
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from html import escape
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.files import FileError, read_json, write_text
from deftly.objects.scanned import RECORD
from deftly.policy.bundle import MANIFEST, REPORT_SCHEMA
from deftly.stats import SUMMARY, proportion, summarize
from deftly.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from deftly.evaluate.source import PolicySource

Report = Mapping[str, Any]
"""What `eval.json` and `sim2sim.json` hold."""
Values = Mapping[str, np.ndarray]
"""Metrics of the episodes by name, `(episodes,)` each."""
SCHEMA = REPORT_SCHEMA
REPORTS = {"env": "eval.json", "twin": "sim2sim.json"}
"""Name of a report's file, by the world in which was evaluated."""
FAILED = "failed"
"""What a report calls a video of episodes that failed."""
EPISODES = "episodes.csv"
"""The metrics of each episode, beside a report."""
MAX_INLINE_VIDEO = 8_000_000
"""Bytes up to which a video is put into the page itself."""


def divide(
    values: Values, task: Task | type[Task], clusters: np.ndarray | None = None
) -> dict[str, Any]:
    """What a report has of a task's `breakdown`: by bin, success and the means of the metrics that the task names.

    A bin holds what is `low` or more and less than `high`. What is beyond the edges is in bins without `low` or `high`.
    One of the task's `kinds` has a `name` too. Nothing of a task without a breakdown; raises DeftlyError if it names an
    unknown metric. Episodes of a cluster, `(episodes,)`, have the same start.
    """
    if not task.report.breakdown:
        return {}
    metric, edges = task.report.breakdown
    kinds = task.report.kinds
    numbers = range(len(kinds) + 1)
    edges = edges or tuple(float(number) for number in numbers)
    if metric not in values:
        raise DeftlyError(
            f"{task.name} breaks its report down by '{metric}', which none of its metrics is"
        )
    explained = {**task.report.metrics, **dict(task.report.plots)}
    own = [name for name in values if name in explained]
    known = np.isfinite(values[metric])
    bin_of_episode = np.where(known, np.digitize(values[metric], edges), -1)
    bins = []
    ends = (None, *edges, None)
    for index, (low, high) in enumerate(pairwise(ends)):
        inside = bin_of_episode == index
        is_outermost = low is None or high is None
        if is_outermost and not inside.any():
            continue
        has_name = low is not None and index <= len(kinds)
        kind = {"name": kinds[index - 1]} if has_name else {}
        together = None if clusters is None else clusters[inside]
        bins.append(
            {
                **kind,
                "low": low,
                "high": high,
                "episodes": int(inside.sum()),
                "success": proportion(values["success"][inside], together),
                "metrics": {name: summarize(values[name][inside])["mean"] for name in own},
            }
        )
    return {"breakdown": {"metric": metric, "bins": bins}}


def policy_facts(source: "PolicySource", task: str) -> dict[str, Any]:
    """What a report says of the policy that was measured in a task of this name."""
    return {
        "label": source.label,
        "kind": source.kind,
        "sha256": source.sha256,
        "iteration": source.iteration,
        "task": source.task or task,
    }


def means(report: Report) -> dict[str, float | None]:
    """Every metric that a gate or a comparison can name."""
    found = {
        "success": report["success"]["rate"],
        "broken_physics": report["broken_physics"],
    }
    for name, statistics in report["metrics"].items():
        found[name] = statistics["mean"]
    if "twin" in report:
        found |= _means_of_twin(report["twin"])
    return found


def _means_of_twin(section: Mapping[str, Any]) -> dict[str, float | None]:
    """What only the control loop on the simulated robot can measure."""
    agreement = section["eval"]
    found: dict[str, float | None] = {
        "faults": section["faults"],
        "violation": section["violation"],
        "missed": section.get("missed"),
        "agrees": None if agreement is None else float(agreement["agrees"]),
    }
    for name, percentiles in section["timing"].items():
        for key, value in percentiles.items():
            found[f"{name}_{key}"] = value
    return found


def number(value: float | int | None, digits: int = 4) -> str:
    """A number with so many digits; nothing for None and NaN."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.{digits}g}"


def headline(report: Report) -> str:
    """The success rate with its interval, in one line."""
    success = report["success"]
    low, high = success["wilson95"]
    count = f"{success['count']} of {report['episodes']}"
    if samples := report.get("samples"):
        count += f": {samples} samples of {report['episodes'] // samples} starts"
    task = printable(report["task"], 60)
    rate = f"success {success['rate']:.1%} ({count})"
    return f"{task}: {rate}, 95 % interval {low:.1%} to {high:.1%}"


def metrics_table(report: Report) -> list[tuple[str, ...]]:
    """Statistics of the metrics, a row each below a head."""
    rows: list[tuple[str, ...]] = [("metric", "mean", "95 % interval", *SUMMARY[1:])]
    for name, statistics in report["metrics"].items():
        mean, *others = (number(statistics[key]) for key in SUMMARY)
        rows.append((name, mean, _interval(statistics), *others))
    return rows


def _interval(statistics: Mapping[str, Any]) -> str:
    """That of a metric's mean; empty in a report from before there were any, and of fewer than two episodes."""
    ends = statistics.get("mean95")
    if not ends:
        return ""
    low, high = ends
    return f"{number(low)} to {number(high)}"


def bins_table(report: Report) -> list[tuple[str, ...]]:
    """The breakdown: a head with the range of each bin, then a row for each metric; nothing if it has none."""
    if "breakdown" not in report:
        return []
    bins = report["breakdown"]["bins"]
    rates = [b["success"]["rate"] for b in bins]
    intervals = [b["success"]["wilson95"] for b in bins]
    ranges = [_range(b) for b in bins]
    rows: list[tuple[str, ...]] = [
        (report["breakdown"]["metric"], *ranges),
        ("episodes", *(str(b["episodes"]) for b in bins)),
        ("success", *("" if rate is None else f"{rate:.1%}" for rate in rates)),
        ("95 % interval", *(f"{low:.0%} to {high:.0%}" for low, high in intervals)),
    ]
    for name in bins[0]["metrics"]:
        cells = [number(b["metrics"][name]) for b in bins]
        rows.append((name, *cells))
    return rows


def _range(found: Mapping[str, Any]) -> str:
    """The name of a bin, or its edges."""
    low = number(found["low"])
    high = number(found["high"])
    return found.get("name") or f"{low} to {high}".strip()


HOLDS = {
    MANIFEST: "a bundle",
    "checkpoint.json": "a checkpoint",
    RECORD: "a scanned object",
    "checkpoints": "a training",
    "meta/info.json": "a data set",
}
"""What a folder is that holds a file of this name; a report in it would replace other files of that."""


def require_place(folder: Path, task: str, compared: Path | None = None) -> None:
    """Raise DeftlyError if a report in this folder would replace parts of something else.

    Args:
        folder: Where it is to be written.
        task: The task of which it will be. An earlier report of the same task is replaced.
        compared: A report with which it is to be compared: that one must stay.
    """
    for name, what in HOLDS.items():
        if (folder / name).exists():
            raise DeftlyError(
                f"'{printable(folder)}' is {what}, of which a report would replace files: name another --out"
            )
    is_replaced = False
    if compared is not None:
        place = compared.resolve()
        is_replaced = folder.resolve() in (place, place.parent)
    if is_replaced:
        raise DeftlyError(
            f"'{printable(folder)}' holds the report to compare with, which would be replaced: name another --out"
        )
    for name in REPORTS.values():
        earlier = _task_of(folder / name)
        if earlier not in (None, task):
            raise DeftlyError(
                f"'{printable(folder)}' holds a report of {printable(earlier, 60)}, which would be replaced: "
                "name another --out"
            )


def _task_of(file: Path) -> str | None:
    """The task of a report, None if there is none that can be read."""
    with suppress(FileError):
        report = read_json(file, "a report")
        if isinstance(report, dict) and isinstance(report.get("task"), str):
            return report["task"]
    return None


def write(
    folder: Path,
    report: Report,
    values: Values,
    task: Task | type[Task] = Task,
    video: Path | None = None,
) -> Path:
    """Write a report into a folder: `eval.json` or `sim2sim.json`, `episodes.csv` and `report.html`.

    Returns:
        The report itself, the JSON file.
    """
    texts = {
        "report.html": html(report, values, video, task),
        EPISODES: _episodes(values),
        REPORTS[report["world"]]: json.dumps(report, indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():  # the report last: on a full disk the earlier one stays
        write_text(folder / name, text)
    return folder / REPORTS[report["world"]]


def _episodes(values: Values) -> str:
    """The metrics of each episode as CSV; nothing where an episode has none."""
    columns = [[number(x, 6) for x in column] for column in values.values()]
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["episode", *values])
    table.writerows(zip(range(len(values["steps"])), *columns))
    return file.getvalue()


def verdict(gate: Mapping[str, Any]) -> str:
    """What became of a gate."""
    value = number(gate["measured"]) or "no value"
    outcome = "holds" if gate["holds"] else "FAILED"
    return f"{gate['gate']}: measured {value}, {outcome}"


def conclusion(report: Report) -> list[str]:
    """The lines in which a report ends: broken physics, the success rate, the gates."""
    broken = report["broken_physics"]
    warning = f"warning: the physics broke in {broken} episodes, counted as failed"
    gates = [f"gate {verdict(gate)}" for gate in report["gates"]]
    warnings = [warning] if broken else []
    return [*warnings, headline(report), *gates]


WORLDS = {
    "env": "evaluated on {} episodes that no training has seen",
    "twin": "driven by its control loop and safety kernel in {} episodes of a simulation of its own",
}
"""Where was evaluated, in words."""
MEANING = {
    "steps": "length of an episode in control steps",
    "seconds": "length of an episode, s",
    "success_seconds": "time a successful episode took, s",
    "time_out": "fraction of episodes truncated by the time limit",
    "return": "sum of weighted rewards",
    "reward_per_step": "return divided by steps",
    "action_change": "mean change of the action in a step; less is smoother",
    "clipped": "control steps in which the safety kernel clipped a target",
    "fault": "fraction of episodes that a fault of the safety kernel ended",
    "failed/physics": "fraction of episodes whose simulation broke",
    "failed/": "fraction of episodes that failed by ",
    "reward/": "weighted sum of the reward term ",
}


def meaning(name: str, task: Task | type[Task] = Task) -> str:
    """What a metric is, in a few words; nothing for what the task does not explain."""
    kind, slash, rest = name.partition("/")
    return {**MEANING, **task.report.metrics}.get(name) or (
        MEANING.get(kind + slash, "") + rest if slash else ""
    )


def html(
    report: Report, values: Values, video: Path | None = None, task: Task | type[Task] = Task
) -> str:
    """The page of a report, one file that needs no network.

    Args:
        report: What `evaluate` gave.
        values: The metrics of each episode.
        video: A video that lies beside the page, or None.
        task: Explains its metrics.
    """
    success = report["success"]
    low, high = success["wilson95"]
    texts = {
        **success,
        **report["policy"],
        **report,
        "rate": f"{success['rate']:.1%}",
        "low": f"{low:.1%}",
        "high": f"{high:.1%}",
        "actions": "drawn from the distribution" if report["stochastic"] else "the policy's mean",
        "disturbances": ", ".join(
            f"{name} {value}" for name, value in report["disturbances"].items()
        ),
        "where": WORLDS[report["world"]].format(report["episodes"]),
    }
    tables = {"Metrics": metrics_table(report), "By parts": bins_table(report)}
    parts = {
        "gates": "".join(gate_mark(gate) for gate in report.get("gates", ())),
        "video": _player(video, report) if video else "",
        "plots": _plots(report, values, task),
        "tables": "".join(card(title, rows, task) for title, rows in tables.items() if rows),
        "twin": _twin(report["twin"]) if "twin" in report else "",
    }
    return page("report.html", texts, parts)


def page(template: str, texts: Mapping[str, Any], parts: Mapping[str, str]) -> str:
    """A page of this folder's template, with texts, which are escaped, and parts that are HTML."""
    folder = Path(__file__).parent
    plain = {name: escape(str(text)) for name, text in texts.items()}
    style = (folder / "report.css").read_text()
    source = (folder / template).read_text()
    return Template(source).substitute({**plain, **parts, "style": style})


def gate_mark(gate: Mapping[str, Any]) -> str:
    """A pill of the page that says what became of a gate."""
    kind = "good" if gate["holds"] else "bad"
    return f'<span class="gate {kind}">{escape(verdict(gate))}</span>'


def _player(video: Path, report: Report) -> str:
    """The video, inside the page if it is small."""
    source = escape(video.name)
    if video.stat().st_size < MAX_INLINE_VIDEO:
        source = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
    player = f'<video controls muted loop playsinline preload=auto src="{source}"></video>'
    which = "Episodes that failed" if report.get("video") == FAILED else "The first episodes"
    return f"<section class=card><h2>{which}, in real time</h2>{player}</section>"


def _twin(section: Mapping[str, Any]) -> str:
    """A card of what only the control loop on the simulated robot can measure."""
    rows = [
        ("largest violation of a limit", number(section["violation"], 3)),
        ("episodes ended by a fault", str(section["faults"])),
        *((f"ended with {end}", str(count)) for end, count in section["ends"].items()),
        *((f"reason: {reason}", str(count)) for reason, count in section["reasons"].items()),
    ]
    for name, percentiles in section["timing"].items():
        texts = (f"{key} {number(value, 3)} ms" for key, value in percentiles.items())
        rows.append((name.removesuffix("_ms"), ", ".join(texts)))
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows
    )
    title = "Control loop and safety kernel"
    return f"<section class=card><h2>{title}</h2><div class=wide><table>{lines}</table></div></section>"


def card(title: str, rows: Sequence[Sequence[str]], task: Task | type[Task]) -> str:
    """A card of the page: the first row is the head, the first cell of each other row a metric's name."""
    head, *body = rows
    heads = [f"<th>{escape(cell)}</th>" for cell in head]
    lines = ["".join(heads)]
    for name, *cells in body:
        explained = escape(meaning(name, task))
        first = f"<td>{escape(name)}<div class=soft>{explained}</div></td>"
        others = [f"<td>{escape(cell)}</td>" for cell in cells]
        lines.append(first + "".join(others))
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<section class=card><h2>{escape(title)}</h2><div class=wide><table>{table}</table></div></section>"


ACCENT, GOOD, BAD = "#2f6fde", "#1a8f4c", "#cc3a34"
PAINT = {"#000000": "currentColor", ACCENT: "var(--accent)", GOOD: "var(--good)", BAD: "var(--bad)"}
"""Colours of the plots, and what the page has in their place, so that they follow its theme."""
FEWEST_BINS = 15
"""Bins that have room on the axis of a histogram, even if there are fewer."""
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "legend.frameon": False}
STYLE |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
MARGINS = {"left": 0.15, "right": 0.97, "bottom": 0.12, "top": 0.96}
"""Ends of the axes of a plot whose labels are numbers, as fractions of its card."""


@contextmanager
def plot_card(
    cards: list[str], title: str, margins: Mapping[str, float] | None = None
) -> "Iterator[Axes]":
    """Axes to draw on, which become a card of the page. Without margins, matplotlib draws it once more to find them."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.4, 2.7), layout=None if margins else "constrained")
        if margins:
            figure.subplots_adjust(**margins)
        file = io.StringIO()
        yield figure.subplots()
        figure.savefig(
            file, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    _, _, drawn = file.getvalue().partition("<svg")
    svg = re.sub("|".join(PAINT), lambda match: PAINT[match[0]], drawn)
    cards.append(f"<section class=card><h2>{escape(title)}</h2><svg{svg}</section>")


def _plots(report: Report, values: Values, task: Task | type[Task]) -> str:
    cards: list[str] = []
    success = values["success"] > 0
    most_steps = max(1.0, values["steps"].max())
    step = values["seconds"].max() / most_steps or 1.0  # control period, s
    for name, title in task.report.plots:
        metric = values.get(name, np.empty(0))
        _histogram(cards, title, metric, success, step)
    if "start_x" in values and "start_y" in values:
        _starts(cards, values, success)
    if "breakdown" in report:
        _by_bin(cards, report["breakdown"], task)
    _reward_terms(cards, report)
    return "".join(cards)


def _starts(cards: list[str], values: Values, success: np.ndarray) -> None:
    """Where episodes started, successes and failures in two colours."""
    with plot_card(cards, "Success by start position, m") as axes:
        parts = ((success, GOOD, "success"), (~success, BAD, "failure"))
        for mask, paint, label in parts:
            x = values["start_x"][mask]
            y = values["start_y"][mask]
            axes.scatter(x, y, s=12, color=paint, label=label)
        axes.set(xlabel="x", ylabel="y", aspect="equal")
        axes.legend(loc="upper right", bbox_to_anchor=(1, 1.2), ncols=2)


def _reward_terms(cards: list[str], report: Report) -> None:
    """The mean return by reward term; nothing of a world without rewards."""
    prefix = "reward/"
    terms = {
        name.removeprefix(prefix): statistics["mean"] or 0.0
        for name, statistics in report["metrics"].items()
        if name.startswith(prefix)
    }
    if not terms:
        return
    with plot_card(cards, "Mean return by reward term") as axes:
        names = list(reversed(terms))
        sizes = [terms[name] for name in names]
        colours = [ACCENT if size >= 0 else BAD for size in sizes]
        axes.barh(names, sizes, color=colours, height=0.65)
        axes.axvline(0, color="black", linewidth=0.8)


def _histogram(
    cards: list[str], title: str, metric: np.ndarray, success: np.ndarray, step: float
) -> None:
    """Successes apart from failures; see `_bins`."""
    known = np.isfinite(metric)
    if not known.any():
        return
    edges = _bins(metric[known], step)
    succeeded = metric[known & success]
    failed = metric[known & ~success]
    parts = [succeeded, failed]
    names = ["success", "failure"]
    with plot_card(cards, title, MARGINS) as axes:
        axes.hist(parts, edges, stacked=True, color=[ACCENT, BAD], label=names, rwidth=0.92)
        axes.set_xlim(*_limits(edges))
        axes.set_ylabel("episodes")
        if len(failed):
            axes.legend()


def _bins(values: np.ndarray, step: float) -> list[float]:
    """Edges of a histogram's bins; times, which are whole control steps (`step`, s), are in bins of whole steps."""
    least = float(values.min())
    most = float(values.max())
    steps = values / step
    if np.allclose(steps, np.rint(steps)):
        low = round(least / step)
        high = round(most / step)
        width = math.ceil((high - low + 1) / 30)
        edges = step * np.arange(low - 0.5, high + width, width)
        return edges.tolist()
    if most - least > 1e-9 * max(1.0, abs(most)):
        return np.linspace(least, most, 25).tolist()
    half = 0.01 * max(1.0, abs(most))
    return [least - half, most + half]


def _limits(edges: list[float]) -> tuple[float, float]:
    """Ends of a histogram's axis: of all bins, or wider, so that a constant is a bar and not one block."""
    width = edges[1] - edges[0]
    missing = max(0.0, FEWEST_BINS - len(edges))
    margin = missing * width / 2
    return edges[0] - margin, edges[-1] + margin


def _by_bin(cards: list[str], breakdown: Mapping[str, Any], task: Task | type[Task]) -> None:
    """Success with its interval, and the mean of the task's first metric, by bin."""
    bins = breakdown["bins"]
    name, title = task.report.plots[0]
    metric = breakdown["metric"]
    what = metric if task.report.kinds else meaning(metric, task) or metric
    places = np.arange(len(bins)) + 0.5
    edges = [*(b["low"] for b in bins), bins[-1]["high"]]
    labels = [number(edge) for edge in edges]
    ticks: dict[str, Any] = {"xticks": range(len(edges)), "xticklabels": labels}
    margins = MARGINS
    if names := [printable(b["name"], 20) for b in bins if "name" in b]:
        margins = None
        ticks = {"xticks": places[: len(names)], "xticklabels": names}
    rates = np.array([b["success"]["rate"] for b in bins], float)
    intervals = np.array([b["success"]["wilson95"] for b in bins])
    low, high = intervals.T
    means = np.array([b["metrics"].get(name) for b in bins], float)
    with plot_card(cards, f"Success by {what}", margins) as axes:
        axes.vlines(places, low, high, color=ACCENT, linewidth=2)
        axes.plot(places, rates, "o", color=ACCENT)
        axes.set(ylim=(-0.03, 1.03), **ticks)
    with plot_card(cards, f"{title}, mean by {what}", margins) as axes:
        axes.bar(places, means, 0.85, color=ACCENT)
        axes.set(**ticks)
