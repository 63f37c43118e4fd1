"""What a check found: one line each, ok, warn or fail, with what was measured and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

Level = Literal["ok", "warn", "fail"]
COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of a check."""

    name: str
    level: Level
    text: str
    """What was measured, what was expected, what to do."""


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
