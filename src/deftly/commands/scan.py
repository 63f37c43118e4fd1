"""`deftly scan FILE... --out DIR`: objects for simulation from point clouds and meshes."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typing_extensions import Doc

from deftly.config import OUTPUT_FOLDER, parse, split_word
from deftly.console import clean, printable, progress, report, show
from deftly.errors import DeftlyError
from deftly.files import why_unreadable
from deftly.scan.settings import ScanSettings

if TYPE_CHECKING:
    from deftly.scan.ingest import Ingested


@dataclass(frozen=True, kw_only=True)
class ScanArgs(ScanSettings):
    """Make objects for simulation from point clouds and meshes: `deftly scan FILE... --out DIR`."""

    out: Annotated[
        Path,
        OUTPUT_FOLDER,
        Doc("Folder to write into: each object gets a folder of its own in it."),
    ]


def main(argv: list[str]) -> int:
    """Run `deftly scan`. The exit status is 1 if an object is not accepted, 2 if a file makes none."""
    from deftly import render

    files, rest = _split(argv)
    args = parse(ScanArgs, rest, prog="deftly scan FILE...")
    _require(files)
    render.choose_gl()  # before MuJoCo is imported
    from deftly.scan import ingest

    for name in map(ingest.name_of, (file.stem for file in files)):
        ingest.require_place(args.out / name)
    status = 0
    for file in progress(files, "scanning"):
        try:
            made = ingest.ingest(file, args)
        except DeftlyError as error:
            if len(files) == 1:
                raise
            show(f"error: {printable(error, 2000)}")
            status = 2
            continue
        for one in made:
            status = max(status, _write(one, args.out))
    return status


def _split(argv: list[str]) -> tuple[list[Path], list[str]]:
    """The files, and the settings after them."""
    files = []
    name, rest = split_word(argv)
    while name is not None:
        files.append(Path(name))
        name, rest = split_word(rest)
    return files, rest


def _require(files: list[Path]) -> None:
    """Raise DeftlyError before any work for files that cannot be read, or would be written into one folder."""
    if not files:
        raise DeftlyError(
            "scan needs files: deftly scan FILE... --out DIR; .pcd, .ply, .stl, .obj or .xyz"
        )
    for file in files:
        if problem := why_unreadable(file):
            raise DeftlyError(f"cannot read '{printable(file)}': {problem}")
    name, count = Counter(file.stem for file in files).most_common(1)[0]
    if count > 1:
        raise DeftlyError(
            f"{count} files are called '{printable(name)}': scan each with an --out of its own"
        )


def _write(made: "Ingested", out: Path) -> int:
    """Write an object and say what was found; 1 if it is not accepted."""
    from deftly.scan import ingest

    folder = ingest.write(made, out)
    record = made.record
    show(
        f"{made.name}: {clean(record['source'])} in {record['units']}, surface by {record['method']}"
    )
    for note in record["notes"]:
        show(f"note: {printable(note)}")
    status = report(made.findings)
    show(f"wrote {folder}: report.html, object.json, object.xml\n")
    return status
