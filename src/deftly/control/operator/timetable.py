"""A file of commands: what an operator says, and when.

CSV, a column for each input (or each of its numbers), in any order:

    time,speed,turn
    0,0.3,0
    4,0.3,0.2
    8,0,0

YAML, the same as a list: `- {time: 0, speed: 0.3, turn: 0}`, with a list for an input of several numbers. A row holds
until the time of the next, s since the policy's first decision; before the first, and where an input has no column, its
default does. The last row holds on.
"""

from __future__ import annotations

import bisect
import csv
import io
import math
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from deftly.console import printable
from deftly.contract import PolicyContract
from deftly.control.operator.words import OperatorError, Words
from deftly.files import MB, read_text, read_yaml

TIME = "time"
MAX_BYTES = 8 * MB
MAX_ROWS = 100_000
"""Most rows: half an hour of a command in each period of 50 Hz."""
WHAT = "a file of commands"


class Row(NamedTuple):
    """What is said from a time on."""

    where: str
    """`line 3` or `row 3`."""
    time: float
    said: dict[str, Any]


class Timetable:
    """An operator who says what a file says.

    Args:
        path: The file, .csv or .yaml.
        contract: Of the policy that is spoken to.

    Raises OperatorError, one line that names the row, if it is no such file.
    """

    starts = False
    hint = ""

    def __init__(self, path: Path, contract: PolicyContract):
        self._words = Words(contract)
        read = _csv_rows if path.suffix.lower() == ".csv" else _yaml_rows
        rows = list(islice(read(path, self._words), MAX_ROWS + 1))
        if not rows:
            raise OperatorError(f"{path} has no commands: each row is a time and what is said then")
        if len(rows) > MAX_ROWS:
            raise OperatorError(f"{path} has more than {MAX_ROWS} rows: give fewer, each holds on")
        self._times = [row.time for row in rows]
        self._said = [self._checked(path, row) for row in rows]
        _require_rising(path, rows)
        self._require_rest(path, rows[-1])
        self._began: float | None = None

    def hear(self, now: float, driving: bool) -> Mapping[str, Any]:
        """What the file says, since the policy drives; the defaults before."""
        if not driving:
            self._began = None
            return self._words.defaults()
        if self._began is None:
            self._began = now
        return self.at(now - self._began)

    def at(self, seconds: float) -> dict[str, Any]:
        """What is said so long after the policy's first decision."""
        index = bisect.bisect_right(self._times, seconds + 1e-9) - 1
        said = self._said[index] if index >= 0 else {}
        return self._words.defaults() | said

    def words(self) -> list[str]:
        """None: a file starts nothing."""
        return []

    def notes(self) -> list[str]:
        """What was beyond its range."""
        return self._words.take_notes()

    def close(self) -> None:
        """Nothing is held."""

    def _checked(self, path: Path, row: Row) -> dict[str, Any]:
        try:
            return self._words.checked(row.said)
        except OperatorError as error:
            raise OperatorError(f"{path}, {row.where}: {error}") from None

    def _require_rest(self, path: Path, last: Row) -> None:
        """The last row holds on: it must not drive the robot for ever."""
        said = self.at(math.inf)
        for element in self._words.elements:
            value = float(said[element.name][element.place])
            if element.is_rate and value != element.default:
                raise OperatorError(
                    f"{path}, {last.where}: {element.label} is not {element.default:g} {element.units} in the last "
                    f"row, which holds on: end with one in which it is"
                )


def _require_rising(path: Path, rows: list[Row]) -> None:
    for before, row in pairwise(rows):
        if row.time <= before.time:
            raise OperatorError(
                f"{path}, {row.where}: its time, {row.time:g} s, is not after {before.time:g} s of the row before"
            )


# ------------------------------------------------------------------------ CSV


def _csv_rows(path: Path, words: Words) -> Iterator[Row]:
    lines = _csv_lines(path)
    _, names = next(lines, ("", []))
    names = [name.strip() for name in names]
    _require_columns(path, names, words)
    for where, cells in lines:
        if len(cells) != len(names):
            raise OperatorError(
                f"{path}, {where} has {len(cells)} values, but there are {len(names)} columns"
            )
        yield _csv_row(path, where, dict(zip(names, cells)), words)


def _csv_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Place and cells of each line that is not empty."""
    text = read_text(path, WHAT, MAX_BYTES).removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""))
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise OperatorError(f"{path}, line {reader.line_num}: {printable(error)}") from None
        if any(cell.strip() for cell in cells):
            yield f"line {reader.line_num}", cells


def _require_columns(path: Path, names: list[str], words: Words) -> None:
    labels = [element.label for element in words.elements]
    known = [TIME, *labels, *_texts(words)]
    example = ",".join(known[:8])
    if TIME not in names:
        raise OperatorError(f"{path}: its first line should name the columns, such as {example}")
    if len(set(names)) != len(names):
        raise OperatorError(f"{path} has two columns of a name: leave one")
    for name in names:
        if name not in known:
            raise OperatorError(
                f"{path} has a column '{printable(name, 60)}', which is no input: name them as in {example}"
            )


def _csv_row(path: Path, where: str, cells: Mapping[str, str], words: Words) -> Row:
    said: dict[str, Any] = {name: cells[name] for name in _texts(words) if name in cells}
    given = {each.name for each in words.elements if each.label in cells}
    values = [each.default for each in words.elements]
    for i, element in enumerate(words.elements):
        if element.label in cells:
            cell = cells[element.label]
            values[i] = _number(path, where, element.label, cell)
    numbers = words.values(values)
    said |= {name: value for name, value in numbers.items() if name in given}
    return Row(where, _time(path, where, cells[TIME]), said)


def _texts(words: Words) -> list[str]:
    return [name for name, given in words.inputs.items() if given.is_text]


# ------------------------------------------------------------------------ YAML


def _yaml_rows(path: Path, words: Words) -> Iterator[Row]:
    found = read_yaml(path, WHAT, MAX_BYTES)
    if not isinstance(found, list):
        raise OperatorError(
            f"{path} holds no list: write '- {{time: 0, {_example(words)}}}' for each"
        )
    for number, row in enumerate(found, 1):
        where = f"row {number}"
        if not isinstance(row, dict) or TIME not in row:
            raise OperatorError(
                f"{path}, {where} is {printable(row, 60)}, expected {{time: 0, {_example(words)}}}"
            )
        said = {str(name): value for name, value in row.items() if name != TIME}
        yield Row(where, _time(path, where, row[TIME]), said)


def _example(words: Words) -> str:
    """An input and a value."""
    name, given = next(iter(words.inputs.items()))
    if given.is_text:
        return f"{name}: go"
    zero = 0 if given.size == 1 else [0] * given.size
    return f"{name}: {zero}"


# ------------------------------------------------------------------------ numbers


def _time(path: Path, where: str, value: object) -> float:
    seconds = _number(path, where, TIME, value)
    if seconds < 0:
        raise OperatorError(f"{path}, {where}: its time is {seconds:g} s, but it must be 0 or more")
    return seconds


def _number(path: Path, where: str, name: str, value: object) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # pyright: ignore
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise OperatorError(
            f"{path}, {where}: {name} is '{printable(value, 60)}', expected a finite number"
        )
    return number
