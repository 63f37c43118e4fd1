"""A log of `deftly run` or `deftly record` in words and as a plot, replayed bit for bit."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly.console import printable
from deftly.contract import JOINT_POS
from deftly.control.drivers import Reading
from deftly.control.log import Log
from deftly.control.safety import Fault, Kernel, SafetyConfig, SafetyError
from deftly.errors import DeftlyError
from deftly.files import FileError, parse_json
from deftly.policy import bundle
from deftly.policy.protocol import OneRobot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "init": "#d9d9d9",
    "ready": "#c6dbef",
    "active": "#d5eeca",
    "hold": "#fdd0a2",
    "stop": "#f4b6b6",
}
"""Background of the plot while the kernel is in a state."""
FAULT = "#b30000"


# ------------------------------------------------------------------------ replay


def replay(found: Log) -> tuple[str, list[np.ndarray | None]]:
    """The first tick at which a safety kernel, given what came in, does otherwise than the log says; empty if none.

    And for each tick up to there the command that the policy was told, None if it was not asked. Every episode of a
    recording has a kernel of its own. Raises DeftlyError if the log does not say with which bounds it ran.
    """
    cfg, asked = _safety(found), []
    kernel, begins = Kernel(found.robot, found.contract.rate, cfg), _begins(found)
    for tick, row in enumerate(_ticks(found)):
        if begins[tick]:
            kernel = Kernel(found.robot, found.contract.rate, cfg)
        if (snapshot := found.snapshot(tick)) is not None:
            kernel.restore(snapshot)
        try:
            for event in filter(None, str(row["event"]).split("+")):
                _OPERATOR[event](kernel)
        except (SafetyError, KeyError) as error:
            return (
                f"tick {tick} differs: the operator's '{row['event']}' is not possible ({error})",
                asked,
            )
        reading = None if np.isnan(row["at"]) else Reading(found.signals(tick), float(row["at"]))
        asked.append(kernel.command if kernel.wants_policy and reading is not None else None)
        command = kernel.tick(
            float(row["now"]), reading, row["targets"] if row["decided"] else None
        )
        if not row["written"]:
            kernel.hold("the robot took no command", Fault.DRIVER)
        for name, value in (("state", kernel.state), ("fault", kernel.fault)):
            if value != row[name]:
                return (
                    f"tick {tick} differs: {name} is '{row[name]}' in the log, '{value}' in the replay",
                    asked,
                )
        command = np.full_like(row["command"], np.nan) if command is None else command
        if not same(command, row["command"]):
            return (
                f"tick {tick} differs: the command, by {_distance(command, row['command'])}",
                asked,
            )
    return "", asked


def replay_policy(found: Log, asked: Sequence[np.ndarray | None], path: Path) -> str:
    """The first tick at which the bundle's policy decides otherwise than the log says; empty if none.

    An episode is followed from its start to the first tick at which the policy was asked and gave no answer: what it
    remembers of that tick cannot be known. Raises DeftlyError if the bundle is of another contract, or the log holds
    no start of an episode.
    """
    loaded, policy, compared = bundle.load(path), None, 0
    loaded.contract.require(found.contract, "the log")
    if any(s.is_image for s in found.robot.signals) or any(
        i.is_text for i in found.contract.inputs
    ):
        raise DeftlyError(
            "a log keeps neither images nor texts: the decisions of this policy cannot be replayed"
        )
    for tick, row in enumerate(_ticks(found)):
        if "start" in str(row["event"]).split("+"):
            policy = OneRobot(loaded.policy())
        if tick >= len(asked) or asked[tick] is None or policy is None:
            continue
        if not row["decided"]:
            policy = None
            continue
        signals, inputs = found.signals(tick), found.inputs(tick)
        decision, compared = policy.infer(signals, asked[tick], inputs), compared + 1
        for name, value in decision._asdict().items():
            if not same(value, row[name].astype(np.float32)):
                return f"tick {tick} differs: the {name}, by {_distance(value, row[name])}"
    if not compared:
        raise DeftlyError(
            f"the log holds no start of an episode: nothing in it can be compared with {path}"
        )
    return ""


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal bit for bit."""
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


_OPERATOR = {"start": Kernel.start, "hold": Kernel.hold, "resume": Kernel.resume}


def _ticks(found: Log) -> Iterator[dict[str, Any]]:
    for i in range(len(found)):
        yield {name: column[i] for name, column in found.rows.items()}


def _begins(found: Log) -> np.ndarray:
    """Where an episode follows another, (T,) bool."""
    return np.diff(found.rows["episode"], prepend=found.rows["episode"][:1]) != 0


def timeline(found: Log) -> np.ndarray:
    """Time since the first tick, (T,), s. Each episode's clock is its own: it begins a period after the one before."""
    now = found.rows["now"]
    gaps = np.diff(now, prepend=now[:1]) - 1.0 / found.contract.rate
    return now - now[0] - np.cumsum(np.where(_begins(found), gaps, 0.0))


def _safety(found: Log) -> SafetyConfig:
    try:
        return SafetyConfig(
            **parse_json(str(found.facts["safety"]), "the bounds of a safety kernel")
        )
    except (DeftlyError, KeyError, TypeError, ValueError) as error:
        raise DeftlyError(
            f"the log does not say the bounds of its safety kernel: {printable(error)}"
        ) from None


def _distance(a: np.ndarray, b: np.ndarray) -> str:
    return f"{np.abs(a.astype(float) - b).max():.3g} at most"


# ----------------------------------------------------------------------- summary


def summary(found: Log) -> list[Any]:
    """Lines and tables that say what a log holds."""
    from rich.table import Table

    rows, contract = found.rows, found.contract
    now, facts = (
        timeline(found),
        {k: printable(v, 100) for k, v in found.facts.items() if not np.ndim(v) and str(v)},
    )
    span = now[-1]
    gaps = np.diff(now) * contract.rate
    rate = (
        f"{(len(now) - 1) / span:.2f} Hz of {contract.rate:g}"
        if span > 0
        else f"{contract.rate:g} Hz"
    )
    known = ", ".join(
        f"{name} {facts[name]}" for name in ("task", "policy", "driver", "began") if name in facts
    )
    lines: list[Any] = [f"{found.robot.name}, contract {contract.hash[:12]}{known and ', '}{known}"]
    lines.append(
        f"{len(now)} ticks in {span:.2f} s, {rate}; {int((gaps > 1.5).sum())} ticks came half a period late"
    )
    lines += [
        "states: "
        + ", ".join(f"{printable(state)} {s:.2f} s" for state, s in durations(found).items())
    ]
    for tick, at, fault, reason in faults(found):
        lines.append(f"fault at {at:.2f} s, tick {tick}: {printable(fault)}{reason}")
    times = Table("", "p50", "p99", "max", box=None)
    for name in ("tick_ms", "infer_ms"):
        value = rows[name][np.isfinite(rows[name])]
        figures = (*np.percentile(value, (50, 99)), value.max()) if len(value) else ()
        times.add_row(name, *(f"{figure:.3f}" for figure in figures))
    joints = Table(
        "joint", "command from", "to", "units", "largest step", "of the allowed", box=None
    )
    steps = np.abs(np.diff(rows["command"], axis=0))[~_begins(found)[1:]]
    for i, joint in enumerate(found.robot.joints):
        column, step = rows["command"][:, i], steps[:, i][np.isfinite(steps[:, i])]
        seen, most = column[np.isfinite(column)], step.max() if len(step) else 0.0
        ends = (f"{seen.min():.4f}", f"{seen.max():.4f}") if len(seen) else ("", "")
        joints.add_row(
            joint.name,
            *ends,
            joint.units,
            f"{most:.5f}",
            f"{most * contract.rate / joint.velocity:.1%}",
        )
    return [*lines, times, joints]


def durations(found: Log) -> dict[str, float]:
    """Time in each state, s, in the order in which they came; a tick counts until the next."""
    step = [*np.diff(timeline(found)).tolist(), 1.0 / found.contract.rate]
    times: dict[str, float] = {}
    for state, seconds in zip(found.rows["state"].tolist(), step):
        times[state] = times.get(state, 0.0) + seconds
    return times


def faults(found: Log) -> list[tuple[int, float, str, str]]:
    """Tick, time since the log's first, fault and `: reason` (if the log knows it) of each fault that was latched."""
    known: dict[float, str] = {}
    with suppress(FileError, TypeError, ValueError, OverflowError):
        for now, _, reason in parse_json(
            str(found.facts.get("faults", "[]")), "the faults of a log"
        ):
            known[float(now)] = f": {printable(reason)}"
    fault, now, seconds = (
        a.tolist() for a in (found.rows["fault"], found.rows["now"], timeline(found))
    )
    found_faults = []
    for tick, (before, after) in enumerate(pairwise([str(Fault.NONE), *fault])):
        if after not in (before, str(Fault.NONE)):
            found_faults.append((tick, seconds[tick], after, known.get(now[tick], "")))
    return found_faults


# ------------------------------------------------------------------------ files


def rows_csv(found: Log) -> str:
    """A row for each tick: times, state, and each joint's measured position, target and command."""
    rows, names = found.rows, found.robot.joint_names
    columns: dict[str, Any] = {"tick": range(len(found)), "seconds": timeline(found)}
    columns |= {
        k: rows[k]
        for k in ("episode", "state", "fault", "event", "decided", "written", "tick_ms", "infer_ms")
    }
    for title, key in (
        ("measured", f"signal/{JOINT_POS}"),
        ("target", "targets"),
        ("command", "command"),
    ):
        columns |= {f"{title}/{name}": rows[key][:, i] for i, name in enumerate(names)}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(list(column) for column in columns.values())))
    return file.getvalue()


def plot(found: Log, title: str) -> bytes:
    """A PNG: each joint measured, as a target and as commanded, the states behind, and the time of the ticks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    rows, joints = found.rows, found.robot.joints
    wide = 1 if len(joints) <= 4 else 2
    high = -(-len(joints) // wide)
    now = timeline(found)
    figure = plt.figure(figsize=(8 * wide, 1.6 * high + 2.4), layout="constrained")
    grid = figure.add_gridspec(high + 1, wide)
    below = figure.add_subplot(grid[high, :])
    axes = [figure.add_subplot(grid[i % high, i // high], sharex=below) for i in range(len(joints))]
    for i, (axis, joint) in enumerate(zip(axes, joints)):
        axis.plot(
            now,
            rows[f"signal/{JOINT_POS}"][:, i],
            color="#3182bd",
            lw=3,
            alpha=0.6,
            label="measured",
        )
        axis.plot(now, rows["targets"][:, i], color="#000000", lw=0.7, label="target")
        axis.plot(now, rows["command"][:, i], color="#d94801", lw=1.2, label="command")
        axis.set_ylabel(
            f"{joint.name}\n{joint.units}", rotation=0, ha="right", va="center", fontsize=8
        )
        axis.tick_params(labelbottom=(i % high == high - 1), labelsize=7)
    below.plot(now, rows["tick_ms"], color="#54278f", lw=0.8, label="tick")
    below.set_ylabel("tick\nms", rotation=0, ha="right", va="center", fontsize=8)
    below.set_xlabel("seconds")
    for axis in [*axes, below]:
        _bands(axis, found)
    states = [
        Patch(color=COLOURS[state], label=state) for state in durations(found) if state in COLOURS
    ]
    for _, at, fault, _ in faults(found):
        style = {"rotation": 90, "ha": "right", "va": "top", "fontsize": 7, "color": FAULT}
        below.text(at, 0.97, fault, transform=below.get_xaxis_transform(), **style)
    handles = [*axes[0].get_legend_handles_labels()[0], *states]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8, title=title
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
    return file.getvalue()


def _bands(axis: Axes, found: Log) -> None:
    """Colour the background by state, and mark the faults."""
    now = timeline(found)
    state = found.rows["state"]
    edges = [0, *(np.flatnonzero(state[1:] != state[:-1]) + 1).tolist(), len(now)]
    ends = [*now.tolist(), float(now[-1]) + 1.0 / found.contract.rate]
    for start, end in pairwise(edges):
        axis.axvspan(
            ends[start], ends[end], color=COLOURS.get(str(state[start]), "white"), lw=0, zorder=0
        )
    for _, at, _, _ in faults(found):
        axis.axvline(at, color=FAULT, lw=1.2)
    axis.margins(x=0)
