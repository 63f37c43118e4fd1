"""What a check found: one line each, ok, warn or fail, with what was measured and what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table

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


def table(findings: Iterable[Finding]) -> Table:
    """The findings as lines to print."""
    from rich.table import Column, Table
    from rich.text import Text

    lines = Table("", Column("", no_wrap=True), Column("", overflow="fold"), box=None, show_header=False)
    for finding in findings:
        lines.add_row(Text(finding.level, COLOURS[finding.level]), finding.name, Text(finding.text))
    return lines


def show(*parts: Any, soft_wrap: bool = False) -> None:
    """Print text and tables as they are, as wide as the terminal; 200 columns into a file or a pipe."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    Console(width=width, markup=False, highlight=False).print(*parts, soft_wrap=soft_wrap)
