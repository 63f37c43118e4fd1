"""The run workspace: `runs_all/` keeps every run for ever, `runs/` links the newest, `runs/pinned/` the best.

`deftly runs` lists, compares and pins them.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deftly import __version__
from deftly.config import RunsConfig, parse, suggest
from deftly.errors import DeftlyError

if TYPE_CHECKING:
    from rich.table import Table

Kind = Literal["train", "test"]

WEIGHTS = "weights.safetensors"
LATEST: dict[str, Kind] = {"latest": "train", "latest_train": "train", "latest_test": "test"}
NAME = re.compile(r"(?P<task>.+?)_(?P<kind>train|test)_(.+_)?(?P<stamp>\d{8}_\d{6})(_(?P<again>\d+))?")


@dataclass(frozen=True)
class Run:
    """One run folder and what its `run.json` and `metrics.csv` say; None where they say nothing yet."""

    path: Path
    name: str
    task: str
    kind: str
    created: datetime
    pinned: bool
    iterations: int | None = None
    best_success: float | None = None
    """Highest evaluated success rate, 0 to 1."""
    minutes: float | None = None


def create(task: str, kind: Kind, cfg: RunsConfig, name: str | None = None) -> Path:
    """Make the folder of a new run and link it; safe when several start in the same second.

    Raises `DeftlyError` when the folder cannot be written or a name cannot be part of a folder's name.
    """
    stem = "_".join(filter(None, (task, kind, name, time.strftime("%Y%m%d_%H%M%S"))))
    _check_name(stem)
    with _writing(cfg.root):
        run = _new_folder(cfg.root / ("runs_all" if cfg.workspace else "runs"), stem)
        _write_facts(run, task, kind)
        if cfg.workspace:
            _show(run, kind, cfg)
    return run


def _show(run: Path, kind: Kind, cfg: RunsConfig) -> None:
    links = cfg.root / "runs"
    links.mkdir(parents=True, exist_ok=True)
    for name in (run.name, *(latest for latest, of in LATEST.items() if of == kind)):
        _link(links / name, run)
    _mend_pinned(cfg)
    _prune(kind, cfg)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise DeftlyError(f"'{name}' cannot name a run: use letters, digits, '_', '-' and '.'")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"cannot write '{error.filename or path}': {error.strerror}"
        raise DeftlyError(f"{text}; choose another place with --runs.root DIR") from error


def _new_folder(parent: Path, stem: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for name in (stem, *(f"{stem}_{number}" for number in range(1, 1000))):
        with suppress(FileExistsError):  # of several processes, mkdir lets one have the name
            (parent / name).mkdir()
            return parent / name
    raise DeftlyError(f"'{parent}' holds a thousand runs named '{stem}': try again in a second")


def _write_facts(run: Path, task: str, kind: Kind) -> None:
    facts: dict[str, Any] = {"task": task, "kind": kind, "created": datetime.now().astimezone().isoformat()}
    facts |= {"command": sys.argv, "version": __version__, "commit": _commit()}
    temporary = run / ".tmp-run.json"
    temporary.write_text(json.dumps(facts, indent=2) + "\n")
    os.replace(temporary, run / "run.json")


def _commit() -> str | None:
    """The git commit of the working folder, `-dirty` if changed; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return None


def _link(link: Path, target: Path) -> None:
    """Point `link` at `target` in one step; a real folder of that name is the user's and stays."""
    if link.is_dir() and not link.is_symlink():
        return
    temporary = link.with_name(f".tmp-{secrets.token_hex(4)}")
    temporary.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))
    os.replace(temporary, link)


def _prune(kind: Kind, cfg: RunsConfig) -> None:
    limit = cfg.max_train_runs if kind == "train" else cfg.max_test_runs
    links = [(match, link) for link in (cfg.root / "runs").iterdir() if (match := NAME.fullmatch(link.name))]
    mine = [(match, link) for match, link in links if match["kind"] == kind and link.is_symlink()]
    mine.sort(key=lambda item: (item[0]["stamp"], int(item[0]["again"] or 0)), reverse=True)
    for _, link in mine[limit:]:
        link.unlink(missing_ok=True)


def _mend_pinned(cfg: RunsConfig) -> None:
    """Repair links that were pinned with `mv runs/X runs/pinned/`: a relative link breaks when it moves."""
    for link in (cfg.root / "runs/pinned").glob("*"):
        target = cfg.root / "runs_all" / Path(os.readlink(link)).name if link.is_symlink() else link
        if not link.exists() and target.is_dir():
            _link(link, target)


def find_checkpoint(spec: str | Path, task: str | None, cfg: RunsConfig) -> Path:
    """Resolve what a user typed after `checkpoint=` to the folder of a complete checkpoint.

    `spec` is `latest`, `latest_train`, `latest_test` (the newest run of `task`, or of any task if None, that
    has a checkpoint), a run, checkpoint or file path, or part of a run's name, each with an optional `:best`,
    `:last` or `:iter_000123`. Raises `DeftlyError` that says what there is instead.
    """
    head, _, tail = str(spec).rpartition(":")
    text, name = (head, tail) if head and re.fullmatch(r"[\w-]+", tail) else (str(spec), None)
    if (named := _existing(text, cfg)) and named.is_file():
        text = str(named.parent)
    folder = _existing(text, cfg)
    if text in LATEST or folder is None or not (folder / WEIGHTS).is_file():
        return _pick(find_run(text, task, cfg, complete=True), name)
    if folder.name.startswith(".tmp-"):
        raise DeftlyError(f"'{folder}' is only half written; name a finished checkpoint beside it")
    return _pick(folder.resolve().parent.parent, name) if name else folder.resolve()


def _existing(text: str, cfg: RunsConfig) -> Path | None:
    return next((path for path in (Path(text), cfg.root / text) if path.exists()), None)


def _pick(run: Path, name: str | None) -> Path:
    found = _checkpoints(run)
    if not found:
        raise DeftlyError(f"run '{run.name}' has no complete checkpoint; 'deftly runs' lists the others")
    if name and name not in found:
        raise DeftlyError(f"run '{run.name}' has no checkpoint '{name}'; it has {', '.join(sorted(found))}")
    return found[name or next((best for best in ("best", "last") if best in found), list(found)[-1])]


def _checkpoints(run: Path) -> dict[str, Path]:
    """The complete checkpoints of a run by name, oldest first."""
    weights = [path for path in run.glob(f"checkpoints/[!.]*/{WEIGHTS}") if path.is_file()]
    weights.sort(key=lambda path: (path.stat().st_mtime, path.parent.name))
    return {path.parent.name: path.parent for path in weights}


def find_run(spec: str | Path, task: str | None, cfg: RunsConfig, *, complete: bool = False) -> Path:
    """Resolve `latest`, `latest_train`, `latest_test` (of `task`), a path or part of a name to a run folder.

    `complete` passes over runs without a checkpoint. Raises `DeftlyError` when none or several fit.
    """
    text = str(spec)
    with suppress(OSError):
        _mend_pinned(cfg)
    path = _existing(text, cfg)
    if text in LATEST:
        return _newest(LATEST[text], task, cfg, complete)
    if path is not None and path.name == "checkpoints":
        path = path.parent
    return path.resolve() if path is not None and _is_run(path) else _named(text, cfg, complete)


def _newest(kind: Kind, task: str | None, cfg: RunsConfig, complete: bool) -> Path:
    runs = [run for run in _identities(cfg) if run.kind == kind]
    for run in runs:
        if task in (None, run.task) and (not complete or _checkpoints(run.path)):
            return run.path
    what = f"no {kind} run of {task or 'any task'}{' with a checkpoint' if complete else ''}"
    others = ", ".join(sorted({run.task for run in runs})[:5]) or "no task"
    raise DeftlyError(f"{what} in '{cfg.root}' (runs of {others}); start one: deftly train {task or 'TASK'}")


def _named(text: str, cfg: RunsConfig, complete: bool) -> Path:
    folders = _folders(cfg)
    part = Path(text).name if text.startswith(("runs/", "runs_all/")) else text
    if part in folders:
        return folders[part]
    found = {name: path for name, path in folders.items() if part in name}
    found = {name: path for name, path in found.items() if not complete or _checkpoints(path)} or found
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    if not found:
        near = suggest(part, folders) or "; see 'deftly runs'"
        raise DeftlyError(f"no run or checkpoint '{text}' in '{cfg.root}'{near}")
    some = ", ".join(sorted(found)[:5])
    raise DeftlyError(f"'{text}' fits {len(found)} runs, type more of the name: {some}")


def _folders(cfg: RunsConfig) -> dict[str, Path]:
    """Every run folder (links followed) by each of its names."""
    places = ("runs_all", "runs", "runs/pinned")
    found = [path for place in places for path in (cfg.root / place).glob("[!.]*")]
    return {path.name: path.resolve() for path in found if path.name not in LATEST and _is_run(path)}


def _is_run(path: Path) -> bool:
    known = (path / "run.json").is_file() or (path / "checkpoints").is_dir()
    return known or (path.is_dir() and NAME.fullmatch(path.name) is not None)


def _identities(cfg: RunsConfig) -> list[Run]:
    """Every run once, newest first, without its metrics."""
    pins = {path.resolve() for path in (cfg.root / "runs/pinned").glob("*")}
    runs = [Run(path, path.name, *_identity(path), path in pins) for path in set(_folders(cfg).values())]
    return sorted(runs, key=lambda run: (run.created, run.name), reverse=True)


def _identity(path: Path) -> tuple[str, str, datetime]:
    try:
        facts = json.loads((path / "run.json").read_text())
        return facts["task"], facts["kind"], datetime.fromisoformat(facts["created"]).astimezone()
    except (OSError, ValueError, KeyError, TypeError):  # a run from elsewhere: its name and age must do
        created = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        match = NAME.fullmatch(path.name)
        return (match["task"], match["kind"], created) if match else (path.name, "train", created)


def list_runs(cfg: RunsConfig) -> list[Run]:
    """Every run in `runs/`, `runs/pinned/` and `runs_all/`, newest first."""
    with suppress(OSError):
        _mend_pinned(cfg)
    return [_measured(run) for run in _identities(cfg)]


def _measured(run: Run) -> Run:
    rows = _metrics(run.path)
    iterations, seconds, success = (_column(rows, name) for name in ("iteration", "seconds", "eval_success"))
    return replace(
        run,
        iterations=int(iterations[-1]) if iterations else None,
        best_success=max(success, default=None),
        minutes=seconds[-1] / 60 if seconds else None,
    )


def _metrics(run: Path) -> list[dict[str, str]]:
    with suppress(OSError, csv.Error), (run / "metrics.csv").open(newline="", errors="replace") as file:
        return list(csv.DictReader(file))
    return []


def _column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [value for value, _ in _curve(rows, name, name)]


def _curve(rows: list[dict[str, str]], x: str, y: str) -> list[tuple[float, float]]:
    """The points of two columns where both hold finite numbers."""
    points: list[tuple[float, float]] = []
    for row in rows:
        with suppress(TypeError, ValueError):
            points.append((float(row.get(x) or "nan"), float(row.get(y) or "nan")))
    return [point for point in points if all(map(math.isfinite, point))]


def pin(spec: str, new_name: str | None, cfg: RunsConfig) -> Path:
    """Link a run in `runs/pinned/`, where it stays in view; returns the link."""
    run = find_run(spec, None, cfg)
    link = cfg.root / "runs/pinned" / (new_name or run.name)
    _check_name(link.name)
    if os.path.lexists(link):
        raise DeftlyError(f"'{link}' exists; choose another with --name NAME or first --unpin {link.name}")
    with _writing(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        _link(link, run)
    return link


def unpin(name: str, cfg: RunsConfig) -> None:
    """Remove a link from `runs/pinned/`; the run itself stays."""
    link = cfg.root / "runs/pinned" / name
    if not link.is_symlink():
        names = [path.name for path in (cfg.root / "runs/pinned").glob("*") if path.is_symlink()]
        raise DeftlyError(f"no pinned link '{link}'{suggest(name, names)}")
    with _writing(link):
        link.unlink()


def compare(specs: Sequence[str], column: str, out_png: Path, cfg: RunsConfig) -> Table:
    """Plot a column of the runs' `metrics.csv` against steps into `out_png`; returns a summary table.

    Raises `DeftlyError` for a column that one of the runs lacks.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines: list[tuple[str, ...]] = []
    for run in (find_run(spec, None, cfg) for spec in specs):
        rows = _metrics(run)
        points = _curve(rows, "steps", column)
        if not points:
            near = suggest(column, rows[0] if rows else [])
            raise DeftlyError(f"'{run / 'metrics.csv'}' has no figures in column '{column}'{near}")
        steps, values = zip(*points)
        axes.plot(steps, values, label=run.name)
        figures = (steps[-1], values[-1], min(values), max(values))
        lines.append((run.name, *(f"{value:.6g}" for value in figures)))
    axes.set(xlabel="steps", ylabel=column)
    axes.legend()
    with _writing(out_png):
        figure.savefig(out_png)
    return _table(("run", "steps", f"last {column}", "min", "max"), lines)


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    from rich.table import Column, Table

    table = Table(Column(columns[0], overflow="fold"), *columns[1:], box=None)
    for line in lines:
        table.add_row(*line)
    return table


def _overview(cfg: RunsConfig) -> Table | str:
    columns = ("run", "task", "started", "pinned", "iterations", "best success", "minutes")
    lines = [_line(run) for run in list_runs(cfg)]
    return _table(columns, lines) if lines else f"no runs in '{cfg.root}' yet; start one: deftly train TASK"


def _line(run: Run) -> tuple[str, ...]:
    figures = (("{}", run.iterations), ("{:.1%}", run.best_success), ("{:.1f}", run.minutes))
    texts = ["" if value is None else form.format(value) for form, value in figures]
    return run.name, run.task, f"{run.created:%Y-%m-%d %H:%M}", "*" if run.pinned else "", *texts


@dataclass(frozen=True)
class RunsArgs:
    """List the runs, newest first, or compare, pin and unpin them."""

    compare: tuple[str, ...] = ()
    """Runs to compare (names or parts of them)."""
    column: str = "eval_success"
    """Column of metrics.csv to compare."""
    out: Path = Path("compare.png")
    """Where to write the comparison's plot."""
    pin: str | None = None
    """Run to keep in view in runs/pinned/."""
    name: str | None = None
    """Name to pin the run under; unset: its own."""
    unpin: str | None = None
    """Pinned name to remove; the run itself stays."""
    runs: RunsConfig = field(default_factory=RunsConfig)
    """Where the runs are."""


def main(argv: list[str]) -> int:
    """Run `deftly runs`."""
    from rich.console import Console

    args = parse(RunsArgs, argv, prog="deftly runs")
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    if args.pin:
        console.print(f"pinned as {pin(args.pin, args.name, args.runs)}")
    elif args.unpin:
        unpin(args.unpin, args.runs)
    elif args.compare:
        console.print(compare(args.compare, args.column, args.out, args.runs), f"plot: {args.out}")
    else:
        console.print(_overview(args.runs))
    return 0
