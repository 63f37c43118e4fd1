"""`deftly runs`: list, compare and pin runs."""

from dataclasses import dataclass, field
from pathlib import Path

from deftly import workspace
from deftly.config import RunsConfig, parse
from deftly.console import show


@dataclass(frozen=True)
class RunsArgs:
    """List the runs, newest first, or compare, pin and unpin them."""

    compare: tuple[str, ...] = ()  # Runs to compare (names or parts of them).
    column: str = "eval_success"  # Column of metrics.csv to compare.
    out: Path = Path("compare.png")  # Where to write the comparison's plot.
    pin: str | None = None  # Run to keep in view in runs/pinned/.
    name: str | None = None  # Name to pin the run under; unset: its own.
    unpin: str | None = None  # Pinned name to remove; the run itself stays.
    runs: RunsConfig = field(default_factory=RunsConfig)  # Where the runs are.


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
