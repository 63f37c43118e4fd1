"""What commands print: text, tables, what a check found, and how far a long command is.

Text from files and peers never moves the cursor, colours the terminal or makes lines of its own: see `printable`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TextIO, TypeVar

T = TypeVar("T")
CELL, FINDING = 500, 2000
"""Most characters in a cell of a table, and in what a check found."""
QUIET_SECONDS, REDRAW_SECONDS, LINE_SECONDS = 2.0, 0.2, 10.0
"""How long progress is silent at first, and between two lines on a terminal and elsewhere."""

LogLevel = Literal["debug", "info", "warning"]
"""How much commands print: also their settings; what they do; only results and problems."""
Level = Literal["ok", "warn", "fail"]
COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


class _Chosen:
    """The level that the command was told."""

    level: LogLevel = "info"


def set_log_level(level: LogLevel) -> None:
    """Choose how much commands print from now on."""
    _Chosen.level = level


def say(line: str) -> None:
    """Print what a command does, unless only results and problems are wanted."""
    if _Chosen.level != "warning":
        print(line, flush=True)


def debug(line: Callable[[], str]) -> None:
    """Print what helps to find out why something does not work as it should; asked for only if that is wanted."""
    if _Chosen.level == "debug":
        print(printable(line(), FINDING), file=sys.stderr, flush=True)


class Finding(NamedTuple):
    """One line of a check, `ok`, `warn` or `fail`; its text is what was measured, what was expected, what to do."""

    name: str
    level: Level
    text: str


def judge(name: str, problems: Iterable[str], fine: str, level: Level = "fail") -> Finding:
    """`ok` with the text `fine` if there are no problems, else `level` with the first three of them."""
    found = list(problems)
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    if not found:
        return Finding(name, "ok", fine)
    return Finding(name, level, "; ".join(found[:3]) + more)


def failed(findings: Iterable[Finding]) -> bool:
    """Whether any of the findings is a failure."""
    return any(finding.level == "fail" for finding in findings)


def report(findings: Iterable[Finding]) -> int:
    """Print the findings, one a line; the exit status, 1 if any is a failure."""
    from rich.table import Column, Table
    from rich.text import Text

    found = list(findings)
    lines = Table(
        "", Column("", no_wrap=True), Column("", overflow="fold"), box=None, show_header=False
    )
    for finding in found:
        level = Text(finding.level, COLOURS[finding.level])
        name = Text(printable(finding.name))
        text = Text(printable(finding.text, FINDING))
        lines.add_row(level, name, text)
    show(lines)
    return int(failed(found))


def clean(text: str) -> str:
    """Text whose characters do nothing to a terminal but print and end lines; the others become `?`."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def printable(text: object, limit: int = 300) -> str:
    """Text of a file, a peer or an error that may quote one, as one short line that does nothing to a terminal.

    White space becomes one space; escapes, controls and marks of direction become `?`; what is longer than `limit`
    characters ends in `...`.
    """
    try:
        words = str(text)[: 4 * limit].split()
    except Exception:  # an object of a user's code
        words = [type(text).__name__]
    line = clean(" ".join(words))
    if len(line) <= limit:
        return line
    return f"{line[: limit - 3]}..."


def show(*parts: Any, soft_wrap: bool = False) -> None:
    """Print text and tables as they are, as wide as the terminal; 200 columns into a file or a pipe.

    Text is cleaned of what a terminal would obey. A text from outside may still hold line ends: give it through
    `printable` first.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    said = (clean(part) if isinstance(part, str) else part for part in parts)
    Console(width=width, markup=False, highlight=False).print(*said, soft_wrap=soft_wrap)


def print_unless_stuck(line: str, wait_s: float = 0.5) -> None:
    """Print a line, but do not wait for a terminal that was halted or a pipe that is full: a robot must not."""

    def write() -> None:
        with suppress(OSError, ValueError):  # nobody reads any more
            print(clean(line), flush=True)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(wait_s)


def table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> Any:
    """Lines of text in columns: a `rich.table.Table`, which is imported only here. A cell is one line, and clean."""
    from rich.table import Column, Table

    heads = [Column(printable(name), overflow="fold") for name in columns]
    found = Table(*heads, box=None)
    for line in lines:
        found.add_row(*(printable(cell, CELL) for cell in line))
    return found


class Progress:
    """How far a long command is, and the time left: a line that is written over on a terminal, else one each 10 s.

    It goes to the standard error, so that what a command prints can be piped. Nothing appears in the first two
    seconds, and nothing stays on a terminal.
    """

    def __init__(
        self,
        total: float,
        what: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] | None = None,
    ):
        """Args: `total` of what `advance` counts; `what` is done, in one or two words; stream and clock for tests."""
        self.total = max(float(total), 1e-9)
        self.done = 0.0
        self._what = what
        self._stream = stream or sys.stderr
        self._clock = clock or time.monotonic
        self._is_terminal = self._stream.isatty()
        self._began = self._clock()
        delay = QUIET_SECONDS if self._is_terminal else LINE_SECONDS
        self._next = self._began + delay
        self._shown = False

    def advance(self, count: float = 1.0) -> None:
        """Count what was done since the last call."""
        self.reach(self.done + count)

    def reach(self, done: float) -> None:
        """Say how much is done in all."""
        self.done = min(done, self.total)
        now = self._clock()
        if now < self._next or _Chosen.level == "warning":
            return
        self._next = now + (REDRAW_SECONDS if self._is_terminal else LINE_SECONDS)
        self._write(self.line(now))

    def line(self, now: float) -> str:
        """What is shown: `evaluating: 40 %, 1:05 left`."""
        fraction = self.done / self.total
        spent = now - self._began
        left = (
            f", {duration(spent / fraction - spent)} left"
            if fraction > 0
            else f", {duration(spent)} so far"
        )
        return f"{self._what}: {fraction:.0%}{left}"

    def close(self) -> None:
        """Wipe the line off a terminal."""
        if self._shown and self._is_terminal:
            self._put("\r\x1b[K")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: str) -> None:
        self._shown = True
        self._put(f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n")

    def _put(self, text: str) -> None:
        with suppress(OSError, ValueError):  # the terminal is gone: no reason to end the work
            self._stream.write(text)
            self._stream.flush()


def progress(items: Iterable[T], what: str, total: float | None = None) -> Iterator[T]:
    """The items, one by one, while a line says how far it is; `total` for items that have no length."""
    count = total if total is not None else len(items) if isinstance(items, Sized) else 0
    with Progress(count, what) as shown:
        for item in items:
            yield item
            shown.advance()


def duration(seconds: float) -> str:
    """Seconds as `0:07`, `12:30` or `1:02:03`."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}"
