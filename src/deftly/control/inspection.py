"""A log of `deftly run` or `deftly record` in words and as a plot, replayed bit for bit."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deftly.console import printable
from deftly.contract import JOINT_POS, ContractError, PolicyContract
from deftly.control.drivers import Reading
from deftly.control.log import Log
from deftly.control.safety import Fault, Kernel, Missing, SafetyConfig, SafetyError, State
from deftly.errors import DeftlyError
from deftly.files import FileError, parse_json
from deftly.policy import bundle
from deftly.policy.protocol import OneRobot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

COLOURS = {
    "init": "#d9d9d9",
    "ready": "#c6dbef",
    "active": "#d5eeca",
    "hold": "#fdd0a2",
    "stop": "#f4b6b6",
}
"""Background of the plot while the kernel is in a state."""
FAULT = "#b30000"
CSV_COLUMNS = (
    "episode",
    "state",
    "fault",
    "event",
    "decided",
    "written",
    "tick_ms",
    "infer_ms",
)
JOINT_COLUMNS = {"measured": f"signal/{JOINT_POS}", "target": "targets", "command": "command"}
"""Columns of a CSV that have one for each joint, and the rows of the log that they show."""


# ------------------------------------------------------------------------ replay


@np.errstate(all="ignore")  # a log may hold any number
def replay(found: Log) -> tuple[str, list[np.ndarray | None]]:
    """The first tick at which a safety kernel, given what came in, does otherwise than the log says; empty if none.

    And for each tick up to there the command that the policy was told, None if it was not asked. Every episode of a
    recording has a kernel of its own. Raises DeftlyError if the log does not say with which bounds it ran.
    """
    safety = _safety(found)
    asked: list[np.ndarray | None] = []
    begins = _begins(found)
    kernel = Kernel(found.robot, found.contract.rate, safety)
    for tick, row in enumerate(_ticks(found)):
        if begins[tick]:
            kernel = Kernel(found.robot, found.contract.rate, safety)
        snapshot = found.snapshot(tick)
        is_first = snapshot is None and (tick == 0 or begins[tick])
        has_reading = not np.isnan(row["at"])
        if is_first and has_reading and row["state"] != State.INIT:
            first = Reading(found.signals(tick), float(row["at"]))
            kernel.stood_still(float(row["now"]), first)
        if snapshot is not None:
            kernel.restore(snapshot)
        try:
            _repeat_events(kernel, row)
        except (SafetyError, KeyError) as error:
            event = printable(row["event"], 60)
            impossible = f"the operator's '{event}' is not possible ({printable(error)})"
            return f"tick {tick} differs: {impossible}", asked
        reading = None
        if has_reading:
            reading = Reading(found.signals(tick), float(row["at"]))
        asks_policy = kernel.wants_policy and reading is not None
        asked.append(kernel.command if asks_policy else None)
        difference = _tick_difference(kernel, reading, row)
        if difference:
            return f"tick {tick} differs: {difference}", asked
    return "", asked


def _repeat_events(kernel: Kernel, row: Mapping[str, Any]) -> None:
    """Ask of the kernel what the operator asked before a tick."""
    for event in str(row["event"]).split("+"):
        if event:
            _OPERATOR[event](kernel)


def _tick_difference(kernel: Kernel, reading: Reading | None, row: Mapping[str, Any]) -> str:
    """What a kernel's tick does otherwise than a row of the log says; empty if nothing."""
    targets = row["targets"] if row["decided"] else None
    writes_at = None if np.isnan(row["writes_at"]) else float(row["writes_at"])
    heard_at = None if np.isnan(row["heard_at"]) else float(row["heard_at"])
    missing = None
    if row["read_fault"]:
        missing = Missing(_fault(row["read_fault"]), "the robot could not be read")
    now = float(row["now"])
    command = kernel.tick(now, reading or missing, targets, writes_at, heard_at)
    if not row["written"]:
        kernel.hold("the robot took no command", _fault(row["write_fault"]))
    outcome = (("state", kernel.state), ("fault", kernel.fault))
    for name, value in outcome:
        if value != row[name]:
            return f"{name} is '{printable(row[name], 60)}' in the log, '{value}' in the replay"
    if command is None:
        command = np.full_like(row["command"], np.nan)
    if not same(command, row["command"]):
        return f"the command, by {_distance(command, row['command'])}"
    return ""


def _fault(text: str) -> Fault:
    """The fault of this name; what a file may say beside is one of the driver."""
    return next((fault for fault in Fault if fault == text), Fault.DRIVER)


def _require_same_policy(own: PolicyContract, logged: PolicyContract) -> None:
    """Raise ContractError unless both contracts are the same, but for what guards the robot in one of them."""
    try:
        logged.require_policy_of(own, "the bundle")
    except ContractError:
        own.require_policy_of(logged, "the log")


@np.errstate(all="ignore")
def replay_policy(found: Log, asked: Sequence[np.ndarray | None], path: Path) -> str:
    """The first tick at which the bundle's policy decides otherwise than the log says; empty if none.

    An episode is followed from its start to the first tick at which the policy was asked and gave no answer: what it
    remembers of that tick cannot be known. Raises DeftlyError if the bundle is of another contract, or the log holds
    no start of an episode.
    """
    loaded = bundle.load(path)
    _require_same_policy(loaded.contract, found.contract)
    _require_numbers(found)
    policy = None
    compared = 0
    for tick, row in enumerate(_ticks(found)):
        if "start" in str(row["event"]).split("+"):
            policy = OneRobot(loaded.policy())
        if tick >= len(asked) or asked[tick] is None or policy is None:
            continue
        if not row["decided"]:
            policy = None
            continue
        signals = found.signals(tick, images=True)
        decision = policy.infer(signals, asked[tick], found.inputs(tick))
        compared += 1
        for name, value in decision._asdict().items():
            if not same(value, row[name].astype(np.float32)):
                return f"tick {tick} differs: the {name}, by {_distance(value, row[name])}"
    if not compared:
        incomparable = f"nothing in it can be compared with {path}"
        raise DeftlyError(f"the log holds no start of an episode: {incomparable}")
    return ""


def _require_numbers(found: Log) -> None:
    """Raise DeftlyError if the policy saw what this log does not keep."""
    sees_images = any(signal.is_image for signal in found.robot.signals)
    images = sees_images and not found.has_images
    texts = any(given.is_text for given in found.contract.inputs)
    if images or texts:
        what = "images, which 'deftly run --log' writes beside it" if images else "texts"
        raise DeftlyError(
            f"the log keeps no {what}: the decisions of this policy cannot be replayed"
        )


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal bit for bit."""
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


_OPERATOR = {"start": Kernel.start, "hold": Kernel.hold, "resume": Kernel.resume}


def _ticks(found: Log) -> Iterator[dict[str, Any]]:
    for i in range(len(found)):
        yield {name: column[i] for name, column in found.rows.items()}


def _begins(found: Log) -> np.ndarray:
    """Where an episode follows another, (T,) bool."""
    episode = found.rows["episode"]
    return np.diff(episode, prepend=episode[:1]) != 0


@np.errstate(all="ignore")
def timeline(found: Log) -> np.ndarray:
    """Time since the first tick, (T,), s. Each episode's clock is its own: it begins a period after the one before."""
    now = found.rows["now"]
    period = 1.0 / found.contract.rate
    gaps = np.diff(now, prepend=now[:1]) - period
    between_episodes = np.where(_begins(found), gaps, 0.0)
    return now - now[0] - np.cumsum(between_episodes)


def _safety(found: Log) -> SafetyConfig:
    try:
        bounds = parse_json(str(found.facts["safety"]), "the bounds of a safety kernel")
        return SafetyConfig(**bounds)
    except (DeftlyError, KeyError, TypeError, ValueError) as error:
        unknown = "the log does not say the bounds of its safety kernel"
        raise DeftlyError(f"{unknown}: {printable(error)}") from None


def _distance(a: np.ndarray, b: np.ndarray) -> str:
    largest = np.abs(a.astype(float) - b).max()
    return f"{largest:.3g} at most"


# ----------------------------------------------------------------------- summary


@np.errstate(all="ignore")
def summary(found: Log) -> list[Any]:
    """Lines and tables that say what a log holds."""
    lines: list[Any] = [_title_line(found), _rate_line(found), _states_line(found)]
    for tick, at, fault, reason in faults(found):
        when = f"at {at:.2f} s, tick {tick}"
        lines.append(f"fault {when}: {printable(fault)}{reason}")
    return [*lines, _times_table(found), _joints_table(found)]


def _title_line(found: Log) -> str:
    """Robot and contract, and the facts that identify a run."""
    robot = printable(found.robot.name, 60)
    parts = [f"{robot}, contract {found.contract.hash[:12]}"]
    for name in ("task", "policy", "driver", "began"):
        fact = found.facts.get(name)
        if fact is not None and not np.ndim(fact) and str(fact):
            parts.append(f"{name} {printable(fact, 100)}")
    return ", ".join(parts)


def _rate_line(found: Log) -> str:
    """Number of ticks, their mean rate, and how many were late."""
    now = timeline(found)
    nominal = found.contract.rate
    duration = now[-1]
    rate = f"{nominal:g} Hz"
    if duration > 0:
        mean_rate = (len(now) - 1) / duration
        rate = f"{mean_rate:.2f} Hz of {nominal:g}"
    periods = np.diff(now) * nominal
    late = int((periods > 1.5).sum())
    ticks = f"{len(now)} ticks in {duration:.2f} s"
    return f"{ticks}, {rate}; {late} ticks came half a period late"


def _states_line(found: Log) -> str:
    times = [f"{printable(state)} {seconds:.2f} s" for state, seconds in durations(found).items()]
    return "states: " + ", ".join(times)


def _times_table(found: Log) -> Table:
    """Quantiles of the times of a tick and of the policy, ms."""
    from rich.table import Table

    table = Table("", "p50", "p99", "max", box=None)
    for name in ("tick_ms", "infer_ms"):
        times = found.rows[name]
        times = times[np.isfinite(times)]
        cells = []
        if len(times):
            median, p99 = np.percentile(times, (50, 99))
            cells = [f"{median:.3f}", f"{p99:.3f}", f"{times.max():.3f}"]
        table.add_row(name, *cells)
    return table


def _joints_table(found: Log) -> Table:
    """Range and largest step of each joint's command."""
    from rich.table import Table

    table = Table(
        "joint", "command from", "to", "units", "largest step", "of the allowed", box=None
    )
    command = found.rows["command"]  # (T, num_joints)
    within_episode = ~_begins(found)[1:]
    steps = np.abs(np.diff(command, axis=0))[within_episode]
    for i, joint in enumerate(found.robot.joints):
        commanded = command[:, i]
        commanded = commanded[np.isfinite(commanded)]
        moved = steps[:, i]
        moved = moved[np.isfinite(moved)]
        lowest, highest = "", ""
        if len(commanded):
            lowest = f"{commanded.min():.4f}"
            highest = f"{commanded.max():.4f}"
        largest = moved.max() if len(moved) else 0.0
        of_allowed = largest * found.contract.rate / joint.velocity
        name = printable(joint.name, 60)
        units = printable(joint.units, 60)
        table.add_row(name, lowest, highest, units, f"{largest:.5f}", f"{of_allowed:.1%}")
    return table


@np.errstate(all="ignore")
def durations(found: Log) -> dict[str, float]:
    """Time in each state, s, in the order in which they came; a tick counts until the next."""
    period = 1.0 / found.contract.rate
    steps = [*np.diff(timeline(found)).tolist(), period]
    times: dict[str, float] = {}
    for state, seconds in zip(found.rows["state"].tolist(), steps):
        times[state] = times.get(state, 0.0) + seconds
    return times


def faults(found: Log) -> list[tuple[int, float, str, str]]:
    """Tick, time since the log's first, fault and `: reason` (if the log knows it) of each fault that was latched."""
    reasons = _fault_reasons(found)
    now = found.rows["now"].tolist()
    seconds = timeline(found).tolist()
    none = str(Fault.NONE)
    latched = []
    values = found.rows["fault"].tolist()
    for tick, (before, after) in enumerate(pairwise([none, *values])):
        if after not in (before, none):
            reason = reasons.get(now[tick], "")
            latched.append((tick, seconds[tick], after, reason))
    return latched


def _fault_reasons(found: Log) -> dict[float, str]:
    """`: reason` of each fault that the log gives one for, by the time of its tick, s."""
    reasons: dict[float, str] = {}
    with suppress(FileError, TypeError, ValueError, OverflowError):
        known = parse_json(str(found.facts.get("faults", "[]")), "the faults of a log")
        for now, _, reason in known:
            reasons[float(now)] = f": {printable(reason)}"
    return reasons


# ------------------------------------------------------------------------ files


def rows_csv(found: Log) -> str:
    """A row for each tick: times, state, and each joint's measured position, target and command."""
    columns: dict[str, Any] = {"tick": range(len(found)), "seconds": timeline(found)}
    for name in CSV_COLUMNS:
        columns[name] = found.rows[name]
    for title, key in JOINT_COLUMNS.items():
        for i, joint in enumerate(found.robot.joint_names):
            columns[f"{title}/{joint}"] = found.rows[key][:, i]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*[list(column) for column in columns.values()]))
    return file.getvalue()


def plot(found: Log, title: str) -> bytes:
    """A PNG: each joint measured, as a target and as commanded, the states behind, and the time of the ticks.

    Raises DeftlyError if the log's numbers are such that nothing can be drawn.
    """
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _draw(found, title)
    except (ArithmeticError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        reason = printable(error, 100) or type(error).__name__
        raise DeftlyError(f"the numbers of this log cannot be plotted: {reason}") from None


def _draw(found: Log, title: str) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    joints = found.robot.joints
    columns = 1 if len(joints) <= 4 else 2
    rows = -(-len(joints) // columns)
    figure = plt.figure(figsize=(8 * columns, 1.6 * rows + 2.4), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns)
    tick_axis = figure.add_subplot(grid[rows, :])
    axes = []
    for i in range(len(joints)):
        axis = figure.add_subplot(grid[i % rows, i // rows], sharex=tick_axis)
        _plot_joint(axis, found, i)
        axis.tick_params(labelbottom=(i % rows == rows - 1), labelsize=7)
        axes.append(axis)
    _plot_tick_times(tick_axis, found)
    for axis in [*axes, tick_axis]:
        _mark_states(axis, found)
    _label_faults(tick_axis, found)
    handles = axes[0].get_legend_handles_labels()[0] + _state_patches(found)
    where = {"loc": "outside upper center", "ncols": len(handles)}
    figure.legend(handles=handles, fontsize=8, title=_label(title), **where)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
    return file.getvalue()


def _label(text: object) -> str:
    """Text of a file in a plot: one short line, in which matplotlib sees no formula."""
    return printable(text, 60).replace("$", r"\$")


def _plot_joint(axis: Axes, found: Log, i: int) -> None:
    """One joint over time: measured, target and command."""
    now = timeline(found)
    joint = found.robot.joints[i]
    measured = found.rows[f"signal/{JOINT_POS}"][:, i]
    targets = found.rows["targets"][:, i]
    command = found.rows["command"][:, i]
    axis.plot(now, measured, color="#3182bd", lw=3, alpha=0.6, label="measured")
    axis.plot(now, targets, color="#000000", lw=0.7, label="target")
    axis.plot(now, command, color="#d94801", lw=1.2, label="command")
    name = f"{_label(joint.name)}\n{_label(joint.units)}"
    axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)


def _plot_tick_times(axis: Axes, found: Log) -> None:
    axis.plot(timeline(found), found.rows["tick_ms"], color="#54278f", lw=0.8, label="tick")
    axis.set_ylabel("tick\nms", rotation=0, ha="right", va="center", fontsize=8)
    axis.set_xlabel("seconds")


def _mark_states(axis: Axes, found: Log) -> None:
    """Colour the background by state, and mark the faults."""
    now = timeline(found)
    state = found.rows["state"]
    is_change = state[1:] != state[:-1]
    changes = np.flatnonzero(is_change) + 1
    edges = [0, *changes.tolist(), len(now)]
    end_of_log = float(now[-1]) + 1.0 / found.contract.rate
    seconds = [*now.tolist(), end_of_log]
    for start, end in pairwise(edges):
        colour = COLOURS.get(str(state[start]), "white")
        axis.axvspan(seconds[start], seconds[end], color=colour, lw=0, zorder=0)
    for _, at, _, _ in faults(found):
        axis.axvline(at, color=FAULT, lw=1.2)
    axis.margins(x=0)


def _label_faults(axis: Axes, found: Log) -> None:
    style = {"rotation": 90, "ha": "right", "va": "top", "fontsize": 7, "color": FAULT}
    for _, at, fault, _ in faults(found):
        axis.text(at, 0.97, _label(fault), transform=axis.get_xaxis_transform(), **style)


def _state_patches(found: Log) -> list[Any]:
    """The legend's entries of the states that the log has."""
    from matplotlib.patches import Patch

    states = [state for state in durations(found) if state in COLOURS]
    return [Patch(color=COLOURS[state], label=state) for state in states]
