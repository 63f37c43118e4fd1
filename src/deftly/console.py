"""What a check found: one line each, ok, warn or fail, with what was measured and what to do."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

Level = Literal["ok", "warn", "fail"]
COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


class Finding(NamedTuple):
    """One line of a check; its text is what was measured, what was expected, what to do."""

    name: str
    level: Level
    text: str


def judge(name: str, problems: Iterable[str], fine: str, level: Level = "fail") -> Finding:
    """`ok` with the text `fine` if there are no problems, else `level` with the first three of them."""
    found = list(problems)
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return Finding(name, level, "; ".join(found[:3]) + more) if found else Finding(name, "ok", fine)


def failed(findings: Iterable[Finding]) -> bool:
    """Whether any of the findings is a failure."""
    return any(finding.level == "fail" for finding in findings)


def report(findings: Iterable[Finding]) -> int:
    """Print the findings, one a line; the exit status, 1 if any is a failure."""
    from rich.table import Column, Table
    from rich.text import Text

    found = list(findings)
    lines = Table("", Column("", no_wrap=True), Column("", overflow="fold"), box=None, show_header=False)
    for finding in found:
        lines.add_row(Text(finding.level, COLOURS[finding.level]), finding.name, Text(finding.text))
    show(lines)
    return int(failed(found))


def printable(text: object, limit: int = 300) -> str:
    """Text of a file, a peer or an error that may quote one, as one short line that does nothing to a terminal.

    Every run of white space becomes a space, every other character that cannot be printed (escapes, controls, marks of
    direction) a `?`; what is longer than `limit` characters ends in `...`.
    """
    try:
        words = str(text)[: 4 * limit].split()
    except Exception:  # an object of a user's code
        words = [type(text).__name__]
    line = "".join(c if c.isprintable() else "?" for c in " ".join(words))
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def show(*parts: Any, soft_wrap: bool = False) -> None:
    """Print text and tables as they are, as wide as the terminal; 200 columns into a file or a pipe."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    Console(width=width, markup=False, highlight=False).print(*parts, soft_wrap=soft_wrap)


def table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> Any:
    """Lines of text in columns: a `rich.table.Table`, which is imported only here."""
    from rich.table import Column, Table

    found = Table(*(Column(name, overflow="fold") for name in columns), box=None)
    for line in lines:
        found.add_row(*line)
    return found
