"""Logs as tables of text: a line of column names, then a line for each sample."""

from __future__ import annotations

import io
import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.files import read_text

SUFFIXES = (".csv", ".tsv", ".txt")
MAX_BYTES = 128 << 20
MAX_SAMPLES = 4_000_000
"""Most lines that are read: half an hour at 2,000 Hz."""
MAX_COLUMNS = 1000
DELIMITERS = ("\t", ";", ",")
MISSING = {"", "nan", "na", "n/a", "null", "none", "-"}
"""What stands where there is no value, in small letters."""
TIME_WORDS = {"time", "times", "timestamp", "timestamps", "stamp", "t", "now"}
CMD_WORDS = {
    *("cmd", "command", "commands", "commanded", "target", "targets", "goal", "goals"),
    *("ctrl", "control", "desired", "des", "action", "actions", "reference", "ref", "setpoint"),
}
STATE_WORDS = {
    *("state", "states", "pos", "position", "positions", "measured", "measurement", "meas"),
    *("actual", "act", "feedback", "present", "qpos", "q"),
}
OTHER_WORDS = {
    *("vel", "velocity", "qvel", "acc", "acceleration", "current", "effort", "torque", "force"),
    *("pwm", "voltage", "temperature", "temp", "error"),
}
"""A column with one of these is neither a command nor a position."""
SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "usec", "\u00b5s", "\u03bcs", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ns", "nsec", "nanosecond", "nanoseconds"), 1e-9),
}
TICK = 2 * np.pi / 4096
"""Step of the encoders of Dynamixel servos, rad (ROBOTIS e-manual, XC330-M288-T)."""
RADIANS = {
    **dict.fromkeys(("rad", "rads", "radian", "radians"), 1.0),
    **dict.fromkeys(("deg", "degs", "degree", "degrees", "\u00b0"), np.pi / 180),
    **dict.fromkeys(("tick", "ticks", "counts", "pulse", "pulses"), TICK),
}
UNITS = {*SECONDS, *RADIANS, ""}
"""Of which a line of units below the names consists."""


class Column(NamedTuple):
    """What the name of a column says."""

    kind: str
    """`time`, `cmd`, `state`, or empty: neither."""
    joint: str
    """A joint's name, or its number from 0 or 1, or empty."""
    scale: float | None
    """s or rad of one unit; None if the name has no unit."""


class Table(NamedTuple):
    """The arrays of a log, T samples of joints in the order wanted; rad and s where the names say their units."""

    cmd: np.ndarray
    state: np.ndarray
    time: np.ndarray | None
    angles_named: bool
    """Whether the names have units of angles."""
    largest: float | None = None
    """Largest size of an angle as it stands in the file, where the names have other units than radians."""


class Angles(NamedTuple):
    """The columns of commands, or of positions, in the order of the joints."""

    order: list[int]
    scales: list[float]
    """rad of one unit; empty if the names have no units."""

    @property
    def named(self) -> bool:
        """Whether the names have units."""
        return bool(self.scales)

    def of(self, values: np.ndarray) -> np.ndarray:
        """These columns of all values (T, columns), (T, joints)."""
        return values[:, self.order] * np.array(self.scales or [1.0])

    def largest(self, values: np.ndarray) -> float:
        """Largest size of these columns as they stand in the file."""
        sizes = np.abs(values[:, self.order])
        return float(sizes.max(where=np.isfinite(sizes), initial=0.0))


def read(path: Path, joints: list[str]) -> Table:
    """Read commands and positions of joints, and time stamps if there are any.

    A column is found by its name, in any order: `time_ms`, `cmd_if_mcp`, `if_mcp position [deg]`, `hand_state_0`.
    Raises DeftlyError, one line, if a joint has no column, or two.
    """
    lines = _lines(path, read_text(path, "a log as text", MAX_BYTES))
    names, delimiter, lines = _header(path, lines)
    columns = [_column(name, joints) for name in names]
    cmd = _angles(path, names, columns, "cmd", joints)
    state = _angles(path, names, columns, "state", joints)
    if cmd.named != state.named:
        raise DeftlyError(
            f"{path}: some columns of angles have a unit, some none: name all or none"
        )
    stamps = [i for i, column in enumerate(columns) if column.kind == "time"]
    if len(stamps) > 1:
        found = ", ".join(f"'{names[i]}'" for i in stamps)
        raise DeftlyError(f"{path} has {len(stamps)} columns of time, {found}: leave one")
    values = _values(path, lines, delimiter, len(names))
    time = None
    if stamps:
        time = values[:, stamps[0]] * (columns[stamps[0]].scale or 1.0)
    largest = None
    if any(scale != 1.0 for scale in (*cmd.scales, *state.scales)):
        largest = max(cmd.largest(values), state.largest(values))
    return Table(cmd.of(values), state.of(values), time, cmd.named, largest)


def _lines(path: Path, text: str) -> list[str]:
    """The lines that are not empty, so many at most: each takes ten times its length in memory."""
    text_lines = io.StringIO(text.lstrip("\ufeff"), newline=None)
    found = [line for line in islice(text_lines, MAX_SAMPLES) if line.strip()]
    if text_lines.readline():
        raise DeftlyError(f"{path} has more than {MAX_SAMPLES} lines: cut it into parts")
    return found


def _header(path: Path, lines: list[str]) -> tuple[list[str], str | None, list[str]]:
    """The names of the columns, what separates them (None: spaces), and the lines of numbers."""
    comments = 0
    while comments < len(lines) and lines[comments].lstrip().startswith("#"):
        comments += 1
    named = comments  # the last comment may be the names, as numpy.savetxt writes them
    if comments and (comments == len(lines) or _has_numbers(lines[comments])):
        named = comments - 1
    first = lines[named].lstrip("# ") if lines else ""
    delimiter = _delimiter(first)
    if first.count(delimiter or " ") >= MAX_COLUMNS:
        raise DeftlyError(f"{path} has more than {MAX_COLUMNS} columns: give those of the joints")
    names = _cells(first, delimiter)
    rest = lines[named + 1 :]
    if len(names) < 2 or any(_is_number(name) for name in names):
        raise DeftlyError(
            f"{path} begins without names of columns: its first line should be "
            "time,cmd_JOINT,...,state_JOINT,... separated by commas"
        )
    units = _cells(rest[0], delimiter) if rest else []
    if len(units) == len(names) and set(units) <= UNITS:
        names = [f"{name} {unit}" for name, unit in zip(names, units)]
        rest = rest[1:]
    return names, delimiter, rest


def _delimiter(line: str) -> str | None:
    found = max(DELIMITERS, key=line.count)
    return found if found in line else None


def _cells(line: str, delimiter: str | None) -> list[str]:
    return [printable(cell.strip().strip("\"'"), 60) for cell in line.split(delimiter)]


def _has_numbers(line: str) -> bool:
    cells = _cells(line, _delimiter(line))
    return any(_is_number(cell.replace(",", ".")) for cell in cells)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _values(path: Path, lines: list[str], delimiter: str | None, columns: int) -> np.ndarray:
    """The numbers of all lines, (T, columns); NaN where one is missing."""
    if not lines:
        raise DeftlyError(f"{path} has names of columns, but no samples")
    try:
        values = np.loadtxt(
            lines,
            delimiter=delimiter,
            ndmin=2,
            comments=None,
            quotechar='"',
            converters=_number,
            encoding=None,
        )
    except ValueError as error:
        reason = _unreadable(lines, delimiter, columns) or printable(error, 160)
        raise DeftlyError(f"{path}: {reason}") from None
    if values.shape[1] != columns:
        raise DeftlyError(
            f"{path}: {columns} names of columns, but {values.shape[1]} numbers in a line"
        )
    return values


def _unreadable(lines: list[str], delimiter: str | None, columns: int) -> str:
    """What is wrong with the first line that is not of numbers; empty if all are."""
    for number, line in enumerate(lines, 1):
        cells = _cells(line, delimiter)
        if len(cells) != columns:
            return (
                f"sample {number}, '{printable(line, 40)}', has {len(cells)} numbers, and there are {columns} "
                "names of columns"
            )
        for cell in cells:
            try:
                _number(cell)
            except ValueError:
                return f"sample {number} has '{cell}', which is no number"
    return ""


def _number(text: str) -> float:
    """A number, of decimal point or comma; NaN where it is missing."""
    text = text.strip()
    if text.lower() in MISSING:
        return np.nan
    return float(text.replace(",", "."))


def _column(name: str, joints: list[str]) -> Column:
    words = _words(name)
    joint = ""
    for candidate in sorted(joints, key=len, reverse=True):
        rest = _without(words, _words(candidate))
        if rest is not None:
            words, joint = rest, candidate
            break
    kind = _kind(words)
    units = SECONDS if kind == "time" else RADIANS
    scales = [units[word] for word in words if word in units]
    if not joint:
        numbers = re.findall(r"\d+", name)
        joint = str(int(numbers[-1])) if numbers else ""
    return Column(kind, joint, scales[0] if scales else None)


def _words(name: str) -> list[str]:
    """A name's words, in small letters: `Goal Position_3 [deg]` has goal, position, 3 and deg."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    return re.findall(r"[^\W\d_]+|\d+|\u00b0", spaced.lower())


def _without(words: list[str], part: list[str]) -> list[str] | None:
    """The words before and after a part of them; None if they do not have it."""
    for i in range(len(words) - len(part) + 1):
        if words[i : i + len(part)] == part:
            return words[:i] + words[i + len(part) :]
    return None


def _kind(words: list[str]) -> str:
    found = set(words)
    if found & OTHER_WORDS:
        return ""
    if found & CMD_WORDS:
        return "cmd"
    if found & STATE_WORDS:
        return "state"
    return "time" if found & TIME_WORDS else ""


def _angles(
    path: Path,
    names: list[str],
    columns: list[Column],
    kind: str,
    joints: list[str],
) -> Angles:
    """The columns of one kind."""
    places: dict[str, int] = {}
    for i, column in enumerate(columns):
        if column.kind != kind:
            continue
        if column.joint in places:
            raise DeftlyError(
                f"{path} has two columns of {kind} of '{column.joint}', '{names[places[column.joint]]}' and "
                f"'{names[i]}': leave one"
            )
        places[column.joint] = i
    wanted = joints
    if not set(places) & set(joints):
        first = 0 if "0" in places else 1
        wanted = [str(first + i) for i in range(len(joints))]
    missing = [joint for joint, word in zip(joints, wanted) if word not in places]
    if missing:
        raise DeftlyError(
            f"{path} has no column of {kind} of {', '.join(missing)}, it has {_listed(names)}: "
            f"name them {kind}_{missing[0]} and so on, or number them"
        )
    order = [places[word] for word in wanted]
    scales = [columns[i].scale for i in order]
    named = [scale for scale in scales if scale is not None]
    if named and len(named) < len(scales):
        raise DeftlyError(
            f"{path}: some columns of {kind} have a unit, some none: name all or none"
        )
    return Angles(order, named)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 6 else shown
