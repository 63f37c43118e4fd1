"""The run workspace: `runs_all/` keeps every run for ever, `runs/` links the newest, `runs/pinned/` the best."""

import csv
import fcntl
import json
import math
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from deftly import __version__
from deftly.config import RunsConfig, suggest
from deftly.console import printable, table
from deftly.errors import DeftlyError
from deftly.files import write_json

Kind = Literal["train", "test"]
WEIGHTS, LOCK = "weights.safetensors", ".lock"
LATEST: dict[str, Kind] = {"latest": "train", "latest_train": "train", "latest_test": "test"}
NAME = re.compile(r"(?P<task>.+?)_(?P<kind>train|test)_(.+_)?(?P<stamp>\d{8}_\d{6})(_(?P<again>\d+))?")


@dataclass(frozen=True)
class Run:
    """One run folder, and what its `run.json` says; of a run from elsewhere, what its name and age say."""

    path: Path
    task: str
    kind: str
    created: datetime
    pinned: bool

    def figures(self) -> tuple[float | None, float | None, float | None]:
        """Iterations so far, highest evaluated success rate (0 to 1) and minutes; None where there is none yet."""
        rows, names = _metrics(self.path), ("iteration", "eval_success", "seconds")
        iterations, success, seconds = (max((x for x, _ in _curve(rows, n, n)), default=None) for n in names)
        return iterations, success, seconds and seconds / 60


def create(task: str, kind: Kind, cfg: RunsConfig, name: str | None = None) -> Path:
    """Make the folder of a new run and link it; safe when several start in the same second."""
    stem = "_".join(filter(None, (task, kind, name, time.strftime("%Y%m%d_%H%M%S"))))
    _check_name(stem)
    try:
        run = _new_folder(cfg.root / ("runs_all" if cfg.workspace else "runs"), stem)
        facts = {"task": task, "kind": kind, "created": datetime.now().astimezone().isoformat()}
        facts |= {"command": sys.argv, "version": __version__, "commit": _commit()}
        write_json(run / "run.json", facts)
        if cfg.workspace:
            for name in (run.name, *(latest for latest, of in LATEST.items() if of == kind)):
                place = cfg.root / "runs" / name
                if place.is_symlink() or not place.is_dir():  # a real folder of that name is the user's and stays
                    link(place, run)
            _prune(kind, cfg)
    except OSError as error:
        text = f"cannot write '{error.filename or cfg.root}': {error.strerror}"
        raise DeftlyError(f"{text}; choose another place with --runs.root DIR") from error
    return run


def _check_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise DeftlyError(f"'{name}' cannot name a run: use letters, digits, '_', '-' and '.'")


def _new_folder(parent: Path, stem: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for name in (stem, *(f"{stem}_{number}" for number in range(1, 1000))):
        with suppress(FileExistsError):  # of several processes, mkdir lets one have the name
            (parent / name).mkdir()
            return parent / name
    raise DeftlyError(f"'{parent}' holds a thousand runs named '{stem}': try again in a second")


def _commit() -> str | None:
    """The git commit of the working folder, `-dirty` if changed; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return None


def link(place: Path, target: Path) -> None:
    """Make `place` a relative link to `target`, or point the link that is there at it, in one step."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".tmp-{secrets.token_hex(4)}")
    temporary.symlink_to(os.path.relpath(target.resolve(), place.parent.resolve()))
    os.replace(temporary, place)


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Keep a run folder to this process while the block runs: two trainings that write one run destroy it.

    Raises DeftlyError if another process has it. The lock ends with the process, however it ends. A file system
    without locks (some network mounts) cannot keep anybody out.
    """
    try:
        handle = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DeftlyError(f"cannot write '{run / LOCK}': {error.strerror}") from error
    try:
        _take(handle, run)
        yield
    finally:
        os.close(handle)


def _take(handle: int, run: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = printable(os.read(handle, 100).decode(errors="replace")) or "another process"
        raise DeftlyError(f"run '{run.name}' is being written by {holder}: wait until it ends, or stop it") from None
    except OSError:  # no locks here
        return
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _prune(kind: Kind, cfg: RunsConfig) -> None:
    limit = cfg.max_train_runs if kind == "train" else cfg.max_test_runs
    links = [(NAME.fullmatch(link.name), link) for link in (cfg.root / "runs").iterdir() if link.is_symlink()]
    mine = [(m["stamp"], int(m["again"] or 0), link) for m, link in links if m and m["kind"] == kind]
    for _, _, link in sorted(mine)[:-limit]:
        link.unlink(missing_ok=True)


def find_checkpoint(spec: str | Path, task: str | None, cfg: RunsConfig, wanted: str = "best") -> Path:
    """Resolve what a user typed after `checkpoint=` to the folder of a complete checkpoint, or raise `DeftlyError`.

    `spec` is a name of `LATEST` (the newest run of `task`, or of any task if None, that has a checkpoint), a run,
    checkpoint or file path, or part of a run's name, each with an optional `:last` or `:iter_000123`; else `wanted`.
    """
    head, _, tail = str(spec).rpartition(":")
    text, name = (head, tail) if head and re.fullmatch(r"[\w-]+", tail) else (str(spec), None)
    path = _existing(text, cfg)
    folder = path.parent if path and path.is_file() else path
    if folder and not name and (folder / WEIGHTS).is_file():
        return folder.resolve()
    run = find_run(text, task, cfg, complete=True)
    found = _checkpoints(run)
    if not found:
        raise DeftlyError(f"run '{run.name}' has no complete checkpoint; 'deftly runs' lists the others")
    if name and name not in found:
        raise DeftlyError(f"run '{run.name}' has no checkpoint '{name}'; it has {', '.join(sorted(found))}")
    return found[name or next((name for name in (wanted, "last") if name in found), list(found)[-1])]


def _existing(text: str, cfg: RunsConfig) -> Path | None:
    return next((path for path in (Path(text), cfg.root / text) if path.exists()), None)


def _checkpoints(run: Path) -> dict[str, Path]:
    """The complete checkpoints of a run by name, oldest first."""
    weights = sorted(run.glob(f"checkpoints/[!.]*/{WEIGHTS}"), key=lambda path: path.stat().st_mtime)
    return {path.parent.name: path.parent for path in weights}


def find_run(spec: str | Path, task: str | None, cfg: RunsConfig, *, complete: bool = False) -> Path:
    """Resolve `latest`, `latest_train`, `latest_test` (of `task`), a path or part of a name to a run folder.

    `complete` passes over runs without a checkpoint. Raises `DeftlyError` when none or several fit.
    """
    text = str(spec)
    if text in LATEST:
        kind = LATEST[text]
        runs = [run for run in list_runs(cfg) if run.kind == kind]
        for run in runs:
            if task in (None, run.task) and (not complete or _checkpoints(run.path)):
                return run.path
        what = f"no {kind} run of {task or 'any task'}{' with a checkpoint' if complete else ''}"
        others = ", ".join(sorted({run.task for run in runs})[:5]) or "no task"
        raise DeftlyError(f"{what} in '{cfg.root}' (runs of {others}); start one: deftly train {task or 'TASK'}")
    path = _existing(text, cfg)
    for folder in (path.resolve(), *path.resolve().parents) if path else ():
        if _is_run(folder):
            return folder
    folders = _folders(cfg)
    part = re.sub("^runs(_all)?/", "", text)  # typed with its folder, but no longer linked there
    found = {name: folder for name, folder in folders.items() if part in name}
    if part in folders:
        found = {part: folders[part]}
    elif complete:
        found = {name: folder for name, folder in found.items() if _checkpoints(folder)} or found
    if not found:
        near = suggest(part, folders) or "; see 'deftly runs'"
        raise DeftlyError(f"no run or checkpoint '{text}' in '{cfg.root}'{near}")
    if len(set(found.values())) > 1:
        raise DeftlyError(f"'{text}' fits {len(found)} runs, type more of the name: {', '.join(sorted(found)[:5])}")
    return next(iter(found.values()))


def _folders(cfg: RunsConfig) -> dict[str, Path]:
    """Every run folder (links followed) by each of its names."""
    with suppress(OSError):
        for pinned in (cfg.root / "runs/pinned").glob("*"):
            if pinned.is_symlink() and not pinned.exists():  # moved here with `mv`, which breaks a relative link
                target = cfg.root / "runs_all" / Path(os.readlink(pinned)).name
                if target.is_dir():
                    link(pinned, target)
    found = [path for place in ("runs_all", "runs", "runs/pinned") for path in (cfg.root / place).glob("[!.]*")]
    return {path.name: path.resolve() for path in found if path.name not in LATEST and _is_run(path)}


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file() or (path.is_dir() and NAME.fullmatch(path.name) is not None)


def list_runs(cfg: RunsConfig) -> list[Run]:
    """Every run in `runs/`, `runs/pinned/` and `runs_all/`, newest first."""
    pins, runs = {path.resolve() for path in (cfg.root / "runs/pinned").glob("*")}, []
    for path in set(_folders(cfg).values()):
        try:
            facts = json.loads((path / "run.json").read_text())
            task, kind, created = facts["task"], facts["kind"], datetime.fromisoformat(facts["created"]).astimezone()
        except (OSError, ValueError, KeyError, TypeError):
            match, created = NAME.fullmatch(path.name), datetime.fromtimestamp(path.stat().st_mtime).astimezone()
            task, kind = (match["task"], match["kind"]) if match else (path.name, "train")
        runs.append(Run(path, task, kind, created, path in pins))
    return sorted(runs, key=lambda run: (run.created, run.path), reverse=True)


def _metrics(run: Path) -> list[dict[str, str]]:
    with suppress(OSError, csv.Error), (run / "metrics.csv").open(newline="", errors="replace") as file:
        return list(csv.DictReader(file))
    return []


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
    place = cfg.root / "runs/pinned" / (new_name or run.name)
    _check_name(place.name)
    if os.path.lexists(place):
        raise DeftlyError(f"'{place}' exists; choose another with --name NAME or first --unpin {place.name}")
    link(place, run)
    return place


def unpin(name: str, cfg: RunsConfig) -> None:
    """Remove a link from `runs/pinned/`; the run itself stays."""
    link = cfg.root / "runs/pinned" / name
    if not link.is_symlink():
        names = [path.name for path in link.parent.glob("*") if path.is_symlink()]
        raise DeftlyError(f"no pinned link '{link}'{suggest(name, names)}")
    link.unlink()


def compare(specs: Sequence[str], column: str, out_png: Path, cfg: RunsConfig) -> Any:
    """Plot a column of the runs' `metrics.csv` against steps into `out_png`; returns a summary table."""
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
        lines.append((run.name, *(f"{value:.6g}" for value in (steps[-1], values[-1], min(values), max(values)))))
    axes.set(xlabel="steps", ylabel=column)
    axes.legend()
    figure.savefig(out_png)
    return table(("run", "steps", f"last {column}", "min", "max"), lines)


def overview(cfg: RunsConfig) -> Any:
    """Every run with its figures, newest first."""
    lines = []
    for run in list_runs(cfg):
        figures = zip(("{:.0f}", "{:.1%}", "{:.1f}"), run.figures())
        texts = ["" if value is None else form.format(value) for form, value in figures]
        lines.append((run.path.name, run.task, f"{run.created:%Y-%m-%d %H:%M}", "*" * run.pinned, *texts))
    columns = ("run", "task", "started", "pinned", "iterations", "best success", "minutes")
    return table(columns, lines) if lines else f"no runs in '{cfg.root}' yet; start one: deftly train TASK"
