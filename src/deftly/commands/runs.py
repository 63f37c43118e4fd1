"""`deftly runs`: list, compare and pin runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from deftly import workspace
from deftly.config import RunsConfig, Settings, parse
from deftly.console import show


@dataclass(frozen=True)
class RunsArgs(Settings):
    """List the runs, newest first, or compare, pin and unpin them."""

    compare: Annotated[tuple[str, ...], Doc("Runs to compare (names or parts of them).")] = ()
    column: Annotated[str, Doc("Column of metrics.csv to compare.")] = "eval_success"
    out: Annotated[Path, Doc("Where to write the comparison's plot.")] = Path("compare.png")
    pin: Annotated[str | None, Doc("Run to keep in view in runs/pinned/.")] = None
    name: Annotated[str | None, Doc("Name to pin the run under; unset: its own.")] = None
    unpin: Annotated[str | None, Doc("Pinned name to remove; the run itself stays.")] = None
    runs: Annotated[RunsConfig, Doc("Where the runs are.")] = field(default_factory=RunsConfig)


def main(argv: list[str]) -> int:
    """Run `deftly runs`."""
    args = parse(RunsArgs, argv, prog="deftly runs")
    if args.pin:
        show(f"pinned as {workspace.pin(args.pin, args.name, args.runs)}")
    elif args.unpin:
        workspace.unpin(args.unpin, args.runs)
    elif args.compare:
        show(workspace.compare(args.compare, args.column, args.out, args.runs), f"plot: {args.out}")
    else:
        show(workspace.overview(args.runs))
    return 0
