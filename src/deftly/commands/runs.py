"""`deftly runs`: list, compare and pin runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from deftly import workspace
from deftly.config import OUTPUT_FILE, RunsConfig, Settings, Suffix, parse
from deftly.console import show
from deftly.errors import DeftlyError


@dataclass(frozen=True)
class RunsArgs(Settings):
    """List the runs, newest first, or compare, pin and unpin them."""

    compare: Annotated[tuple[str, ...], Doc("Runs to compare (names or parts of them).")] = ()
    column: Annotated[str, Doc("Column of metrics.csv to compare.")] = "eval_success"
    out: Annotated[
        Path, Suffix(".png"), OUTPUT_FILE, Doc("Where to write the comparison's plot.")
    ] = Path("compare.png")
    pin: Annotated[str | None, Doc("Run to keep in view in runs/pinned/.")] = None
    name: Annotated[str | None, Doc("Name to pin the run under; unset: its own.")] = None
    unpin: Annotated[str | None, Doc("Pinned name to remove; the run itself stays.")] = None
    runs: Annotated[RunsConfig, Doc("Where the runs are.")] = field(default_factory=RunsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = [flag for flag in ("compare", "pin", "unpin") if getattr(self, flag)]
        if len(asked) > 1:
            raise DeftlyError(f"--{asked[0]} and --{asked[1]} are two things: do one at a time")
        if self.name and not self.pin:
            raise DeftlyError("--name is what a run is pinned as: give --pin RUN too")


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
