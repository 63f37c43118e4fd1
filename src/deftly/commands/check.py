"""`deftly check`: hold a bundle against its contract, its golden vectors, and the policy from which it was made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from deftly.config import parse, split_word
from deftly.console import report
from deftly.errors import DeftlyError
from deftly.evaluate.check import CheckSettings, examine
from deftly.policy import bundle


@dataclass(frozen=True)
class CheckArgs(CheckSettings):
    """Check a bundle: `deftly check BUNDLE`. The exit status is 1 if anything fails."""

    bundle: Annotated[
        Path | None,
        Doc(
            "The bundle's folder, as an alternative to the bare word, which may also be a task whose bundle is shipped."
        ),
    ] = None


def main(argv: list[str]) -> int:
    """Run `deftly check`."""
    word, flags = split_word(argv)
    args = parse(CheckArgs, flags, prog="deftly check [BUNDLE]")
    if (word is None) == (args.bundle is None):
        raise DeftlyError("check needs one bundle: deftly check FOLDER; 'deftly export TASK' makes it")
    return show(bundle.find(word) if word else args.bundle or Path(), args)


def show(folder: Path, settings: CheckSettings) -> int:
    """Check a bundle and print what was found; 1 if anything failed."""
    failed = report(examine(folder, settings))
    print(f"{folder} {'fails' if failed else 'is fine'}")
    return failed
