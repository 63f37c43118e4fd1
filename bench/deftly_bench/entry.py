"""How every program of this package begins and ends: its words in, an exit status out, one line for what went wrong."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from deftly.commands.main import guarded
from deftly.errors import DeftlyError


def start(main: Callable[[list[str]], int]) -> NoReturn:
    """End with the exit status of `main`, as `deftly` does: 2 for what the user can mend, 130 for Ctrl-C."""
    sys.exit(guarded(_name(), lambda: main(sys.argv[1:])))


def no_program() -> NoReturn:
    """End with one line: what was started is a part of other programs."""

    def main(_: list[str]) -> int:
        raise DeftlyError(
            f"{_name()} does nothing by itself: 'deftly bench --help' shows what does"
        )

    start(main)


def _name() -> str:
    """What was started, as it is typed after `python -m`."""
    return f"deftly_bench.{Path(sys.argv[0]).stem}"
