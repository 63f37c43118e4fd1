"""`deftly inspect`: a log of `deftly run` or `deftly record` in words and as a plot, replayed bit for bit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from deftly.config import INPUT_FOLDER, OUTPUT_FILE, Settings, Suffix, parse, split_word
from deftly.console import printable, show
from deftly.control import inspection, log
from deftly.errors import DeftlyError
from deftly.files import write_bytes, write_text


@dataclass(frozen=True)
class InspectArgs(Settings):
    """Summarize a log, replay it bit for bit, and plot it: `deftly inspect LOG.npz`."""

    bundle: Annotated[
        Path | None, INPUT_FOLDER, Doc("Bundle of the policy that drove: replay its decisions too.")
    ] = None
    png: Annotated[
        Path | None, Suffix(".png"), OUTPUT_FILE, Doc("Plot the joints over time to this file.")
    ] = None
    csv: Annotated[
        Path | None, Suffix(".csv"), OUTPUT_FILE, Doc("Write a row for each tick to this file.")
    ] = None


def main(argv: list[str]) -> int:
    """Run `deftly inspect`. The exit status is 1 if the log does not replay bit for bit."""
    name, flags = split_word(argv)
    args = parse(InspectArgs, flags, prog="deftly inspect LOG.npz")
    if name is None:
        raise DeftlyError(
            "inspect needs a log: deftly inspect LOG.npz; 'deftly run ... --log LOG.npz' writes it"
        )
    found = log.read(Path(name))
    if not len(found):
        raise DeftlyError(f"{name} holds no ticks: there is nothing to inspect")
    for part in inspection.summary(found):
        show(part)
    problem, asked = inspection.replay(found)
    problems = [problem] + (
        [inspection.replay_policy(found, asked, args.bundle)] if args.bundle else []
    )
    for what, problem in zip(("safety kernel", "policy"), problems):
        show(f"{what}: {printable(problem) or 'replays bit for bit'}")
    if args.csv:
        write_text(args.csv, inspection.rows_csv(found))
    if args.png:
        write_bytes(args.png, inspection.plot(found, Path(name).name))
    return 1 if any(problems) else 0
