"""The run workspace: `runs_all/` keeps every run for ever, `runs/` links the newest, `runs/pinned/` the best.

Which run is the latest is read from the runs themselves, not from the links or their names: each `run.json` has an
`order` (s since 1970) that is later than that of every run before it, also where the clock was set back.

Where a file system has no symbolic links, a text file stands in for each: `deftly.link/1 ../runs_all/NAME`.
"""

import csv
import fcntl
import io
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from deftly import __version__
from deftly.config import RunsConfig, suggest
from deftly.console import printable, table
from deftly.errors import DeftlyError
from deftly.files import (
    KB,
    MB,
    FileError,
    WriteError,
    atomic_write,
    read_bytes,
    read_json,
    read_text,
    remove_folder,
    scratch_for,
    sweep,
    write_json,
    write_text,
)

Kind = Literal["train", "test"]
WEIGHTS, FACTS, METRICS, LOCK = "weights.safetensors", "run.json", "metrics.csv", ".lock"
LATEST: dict[str, Kind] = {"latest": "train", "latest_train": "train", "latest_test": "test"}
FOREIGN = (".pth", ".pt", ".pkl", ".zip", ".ckpt")
"""Endings of other systems' checkpoints."""
UNPACKED = re.compile(r"(\.\./)*[\w.-]+(/[\w.-]+)*")
"""What a file holds that an archive held as a link, where the unpacking made no link of it."""
REPORT = "a report of 'deftly eval'"
POINTER = "deftly.link/1 "
"""First words of the text file that stands in for a link."""
ELSEWHERE = "choose another place with --runs.root DIR"
LAST_ORDER = 1e11
"""Largest `order` that is believed: the year 5138."""
LONGEST_NAME = 120
"""Characters of a run's name; what is written beside a file of that name fits into 255 bytes."""
MAX_METRICS = 64 * MB
"""Largest `metrics.csv` that is read."""
MAX_ROWS, MAX_LINE = 200_000, 64 * KB
"""Most iterations in one, and most characters of a line."""
NAME = re.compile(
    r"(?P<task>.+?)_(?P<kind>train|test)_(.+_)?(?P<stamp>\d{8}_\d{6})(_(?P<again>\d+))?"
)


@dataclass(frozen=True)
class Run:
    """One run folder, and what its `run.json` says; of a run from elsewhere, what its name and age say."""

    path: Path
    task: str
    kind: str
    created: datetime
    order: float
    """Greater than that of every earlier run; s since 1970."""
    pinned: bool
    damaged: str = ""
    """Why its `run.json` cannot be read; empty if it can, or if there is none."""

    def metrics(self) -> tuple[float | None, float | None, float | None]:
        """Iterations so far, success rate (0 to 1; the highest evaluated) and minutes; None where there is none yet."""
        rows = read_metrics(self.path / METRICS)
        columns = [_curve(rows, name, name) for name in ("iteration", EVALUATED, "seconds")]
        iterations, success, seconds = (
            max((x for x, _ in column), default=None) for column in columns
        )
        if not rows:
            success, seconds = _evaluated(self.path)
        return iterations, success, None if seconds is None else seconds / 60


def create(task: str, kind: Kind, cfg: RunsConfig, name: str | None = None) -> Path:
    """Make the folder of a new run and link it; safe when several start in the same second.

    Raises DeftlyError for a name that no run can have, and WriteError, leaving no run, where the system does not let
    it be written.
    """
    now = time.strftime("%Y%m%d_%H%M%S")
    stem = "_".join(part for part in (task, kind, name, now) if part)
    _check_name(stem)
    _sweep(cfg)
    run: Path | None = None
    try:
        parent = "runs_all" if cfg.workspace else "runs"
        run = _new_folder(cfg.root / parent, stem)
        _describe(run, task, kind, cfg)
    except (FileError, OSError) as error:
        if run is not None:
            discard(run, kind, cfg)
        raise WriteError(f"{_what_failed(error, cfg.root)}; {ELSEWHERE}") from error
    return run


def discard(run: Path, kind: Kind, cfg: RunsConfig) -> None:
    """Delete a run that could not be begun, as on a full disk; the links show the one before it again."""
    with suppress(FileError, OSError):
        remove_folder(run)
    if not cfg.workspace:
        return
    before = [other.path for other in list_runs(cfg) if other.kind == kind and other.path != run]
    for name in (run.name, *_latest(kind)):
        place = cfg.root / "runs" / name
        if follow(place) != follow(run):
            continue
        with suppress(FileError, OSError):
            place.unlink(missing_ok=True)
            if name != run.name and before:
                link(place, before[0])


def _latest(kind: Kind) -> list[str]:
    """Names of the links to the latest run of a kind."""
    return [name for name, of in LATEST.items() if of == kind]


def _describe(run: Path, task: str, kind: Kind, cfg: RunsConfig) -> None:
    """Write what is known of a new run, link it as the newest, and delete the runs that are too many."""
    facts: dict[str, Any] = {
        "task": task,
        "kind": kind,
        "created": datetime.now().astimezone().isoformat(),
        "order": _next_order(cfg),
        "command": sys.argv,
        "version": __version__,
        "commit": _commit(),
    }
    write_json(run / FACTS, facts)
    if cfg.workspace:
        for name in (run.name, *_latest(kind)):
            link(cfg.root / "runs" / name, run)
        _prune(kind, cfg)


def _what_failed(error: Exception, root: Path) -> str:
    if isinstance(error, OSError):
        return f"cannot write '{error.filename or root}': {error.strerror}"
    return str(error)


def _sweep(cfg: RunsConfig) -> None:
    """Delete what killed processes left among the runs, also in those that nobody will write again."""
    for name in ("runs", "runs/pinned", "runs_all"):
        sweep(cfg.root / name)
    for run in set(_folders(cfg).values()):
        sweep(run)
        sweep(run / "checkpoints")


def _next_order(cfg: RunsConfig) -> float:
    """The time now, or just after the latest run if the clock was set back since."""
    latest = max((run.order for run in list_runs(cfg)), default=0.0)
    return max(time.time(), math.nextafter(latest, math.inf))


def _check_name(name: str) -> None:
    if not re.fullmatch(rf"\w[\w.-]{{,{LONGEST_NAME - 1}}}", name):
        allowed = f"up to {LONGEST_NAME} letters, digits, '_', '-' and '.'"
        raise DeftlyError(f"'{printable(name, 80)}' cannot name a run: use {allowed}")


def _new_folder(parent: Path, stem: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    numbered = (f"{stem}_{number}" for number in range(1, 1000))
    for name in (stem, *numbered):
        with suppress(FileExistsError):  # of several processes, mkdir lets one have the name
            (parent / name).mkdir()
            return parent / name
    raise DeftlyError(f"'{parent}' holds a thousand runs named '{stem}': try again in a second")


def _commit() -> str | None:
    """The git commit of the working folder, `-dirty` if changed; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    return None


def link(place: Path, target: Path) -> None:
    """Make `place` a relative link to `target`, or point the link that is there at it, in one step.

    Where there are no symbolic links it becomes a text file that `follow` understands. A folder at `place` is the
    user's and stays, unless it is a checkpoint: in a run that was copied with its links followed, `last` and `best`
    are folders, and make way.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        if not (place / WEIGHTS).is_file():
            return
        remove_folder(place)
    relative = os.path.relpath(target.resolve(), place.parent.resolve())
    scratch = scratch_for(place)
    try:
        scratch.symlink_to(relative)
    except OSError:  # each file system without links says so with another number
        write_text(place, f"{POINTER}{relative}\n")
    else:
        os.replace(scratch, place)


def follow(place: Path) -> Path:
    """Where a link leads, be it symbolic or the text file that stands in for one; other paths lead to themselves."""
    target = _target(place)
    return Path(os.path.realpath(place if target is None else target))


def _target(place: Path) -> Path | None:
    """What a link names, whether or not it is there; None for what is no link."""
    with suppress(OSError, FileError):
        if place.is_symlink():
            return place.parent / os.readlink(place)
        if place.is_file() and place.stat().st_size < 4096:
            text = read_text(place, "a link", 4096).rstrip("\n")
            if text.startswith(POINTER) and text.isprintable():
                return place.parent / text.removeprefix(POINTER)
            is_name = text.isprintable() and UNPACKED.fullmatch(text)
            if is_name and (place.parent / text).is_dir():
                return place.parent / text
    return None


@contextmanager
def lock(run: Path, what: str = "") -> Iterator[None]:
    """Keep a run folder to this process while the block runs: two trainings that write one run destroy it.

    `what` it is called in the message; unset: a run of its name.

    Raises DeftlyError if another process has it. The lock ends with the process, however it ends. A file system
    without locks (some network mounts) cannot keep anybody out.
    """
    try:
        handle = os.open(
            run / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666
        )
    except OSError as error:
        raise DeftlyError(f"cannot write '{run / LOCK}': {error.strerror}") from error
    try:
        _take(handle, what or f"run '{run.name}'")
        yield
    finally:
        os.close(handle)


def _take(handle: int, what: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = printable(os.read(handle, 100).decode(errors="replace")) or "another process"
        raise DeftlyError(
            f"{what} is being written by {holder}: wait until it ends, or stop it"
        ) from None
    except OSError:  # no locks here
        return
    with suppress(OSError):  # a full disk: it is locked all the same
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _prune(kind: Kind, cfg: RunsConfig) -> None:
    limit = cfg.max_train_runs if kind == "train" else cfg.max_test_runs
    orders = {run.path: run.order for run in list_runs(cfg)}
    named = [
        link
        for link in (cfg.root / "runs").iterdir()
        if _target(link) and _kind_of(link.name) == kind
    ]
    ordered = sorted(named, key=lambda link: (orders.get(follow(link), 0.0), link.name))
    for link in ordered[:-limit]:
        link.unlink(missing_ok=True)


def _kind_of(name: str) -> str | None:
    """The kind of run that a folder's name says; None if it is no run's name."""
    match = NAME.fullmatch(name)
    return match["kind"] if match else None


def find_checkpoint(
    spec: str | Path, task: str | None, cfg: RunsConfig, wanted: str = "best"
) -> Path:
    """Resolve what a user typed after `checkpoint=` to the folder of a complete checkpoint, or raise `DeftlyError`.

    `spec` is a name of `LATEST` (the newest run of `task`, or of any task if None, that has a checkpoint), a run,
    checkpoint or file path, or part of a run's name, each with an optional `:last` or `:iter_000123`; else `wanted`.
    """
    head, _, tail = str(spec).rpartition(":")
    text, name = str(spec), None
    if head and re.fullmatch(r"[\w-]+", tail):
        text, name = head, tail
    path = _existing(text, cfg)
    end = follow(path) if path else None
    folder = end.parent if end and end.is_file() else end
    if folder and not name and (folder / WEIGHTS).is_file():
        return folder
    run = find_run(text, task, cfg, complete=True)
    found = _checkpoints(run)
    if not found:
        raise DeftlyError(
            f"run '{run.name}' has no complete checkpoint; 'deftly runs' lists the others"
        )
    if name and name not in found:
        raise DeftlyError(
            f"run '{run.name}' has no checkpoint '{name}'; it has {', '.join(sorted(found))}"
        )
    if name:
        return found[name]
    preferred = [kept for kept in (wanted, "last") if kept in found]
    return found[preferred[0] if preferred else list(found)[-1]]


def tested_policy(task: str | None, cfg: RunsConfig) -> str:
    """What the newest test run of a task, or of any task, measured, as it is typed after --policy."""
    run = find_run("latest_test", task, cfg)
    try:
        label = read_json(run / "eval.json", REPORT, 4 * MB)["policy"]["label"]
    except (FileError, KeyError, TypeError):
        label = None
    if not isinstance(label, str):
        raise DeftlyError(
            f"the newest test run '{run.name}' does not say which policy it measured: name a run"
        )
    return label


def _existing(text: str, cfg: RunsConfig) -> Path | None:
    with suppress(OSError, ValueError):  # a name that is too long, or holds a null byte
        places = (Path(text), cfg.root / text)
        return next((path for path in places if path.exists()), None)
    return None


def _checkpoints(run: Path) -> dict[str, Path]:
    """The complete checkpoints of a run by name, oldest first."""
    found: dict[str, tuple[float, Path]] = {}
    for entry in run.glob("checkpoints/[!.]*"):
        folder = entry if entry.is_dir() else follow(entry)
        with suppress(OSError):
            if (folder / WEIGHTS).is_file():
                found[entry.name] = ((folder / WEIGHTS).stat().st_mtime, folder)
    return {
        name: folder for name, (_, folder) in sorted(found.items(), key=lambda item: item[1][0])
    }


def find_run(
    spec: str | Path, task: str | None, cfg: RunsConfig, *, complete: bool = False
) -> Path:
    """Resolve `latest`, `latest_train`, `latest_test` (of `task`), a path or part of a name to a run folder.

    `complete` passes over runs without a checkpoint. Raises `DeftlyError` when none or several fit.
    """
    text = str(spec)
    if text in LATEST:
        kind = LATEST[text]
        runs = [run for run in list_runs(cfg) if run.kind == kind]
        for run in runs:
            is_of_task = task in (None, run.task)
            if is_of_task and (not complete or _checkpoints(run.path)):
                return run.path
        having = " with a checkpoint" if complete else ""
        what = f"no {kind} run of {task or 'any task'}{having}"
        tasks = sorted({run.task for run in runs})
        others = ", ".join(tasks[:5]) or "no task"
        raise DeftlyError(
            f"{what} in '{cfg.root}' (runs of {others}); start one: deftly train {task or 'TASK'}"
        )
    path = _existing(text, cfg)
    end = follow(path) if path else None
    for folder in (end, *end.parents) if end else ():
        if _is_run(folder):
            return folder
    folders = _folders(cfg)
    part = re.sub("^runs(_all)?/", "", text)  # typed with its folder, but no longer linked there
    found = {name: folder for name, folder in folders.items() if part in name}
    if part in folders:
        found = {part: folders[part]}
    elif complete:
        trained = {name: folder for name, folder in found.items() if _checkpoints(folder)}
        found = trained or found
    if not found:
        near = suggest(part, [*folders, "shipped", "latest"]) or "; see 'deftly runs'"
        if Path(part).suffix in FOREIGN:
            near = f"; a checkpoint is a folder: name the run, or RUN:iter_000100{suggest(part, folders)}"
        if path is not None:
            raise DeftlyError(f"'{text}' is neither a run nor a checkpoint{near}")
        raise DeftlyError(f"no run or checkpoint '{text}' in '{cfg.root}'{near}")
    if len(set(found.values())) > 1:
        raise DeftlyError(
            f"'{text}' fits {len(found)} runs, type more of the name: {', '.join(sorted(found)[:5])}"
        )
    return next(iter(found.values()))


def _folders(cfg: RunsConfig) -> dict[str, Path]:
    """Every run folder (links followed) by each of its names."""
    for pinned in (cfg.root / "runs/pinned").glob("[!.]*"):
        _mend(pinned, cfg)
    found: dict[str, Path] = {}
    for place in ("runs_all", "runs", "runs/pinned"):
        for path in (cfg.root / place).glob("[!.]*"):
            end = follow(path)
            if path.name not in LATEST and _is_run(end):
                found[path.name] = end
    return found


def _mend(pinned: Path, cfg: RunsConfig) -> None:
    """Point a link that was moved here with `mv`, which breaks a relative link, at its run again."""
    target = _target(pinned)
    if target is None or target.exists():
        return
    run = cfg.root / "runs_all" / target.name
    with suppress(OSError, FileError):
        if run.is_dir():
            link(pinned, run)


def _is_run(path: Path) -> bool:
    return path.is_dir() and (
        os.path.lexists(path / FACTS) or NAME.fullmatch(path.name) is not None
    )


def list_runs(cfg: RunsConfig) -> list[Run]:
    """Every run in `runs/`, `runs/pinned/` and `runs_all/`, newest first."""
    pins = {follow(path) for path in (cfg.root / "runs/pinned").glob("*")}
    folders = set(_folders(cfg).values())
    runs = [_read_run(path, path in pins) for path in folders]
    return sorted(runs, key=lambda run: (run.order, run.path), reverse=True)


def _read_run(path: Path, pinned: bool) -> Run:
    """What a run's `run.json` says of it; else what its name and age say."""
    damaged = ""
    if os.path.lexists(path / FACTS):
        try:
            return _from_facts(path, read_json(path / FACTS, "what a run says of itself"), pinned)
        except FileError as error:
            damaged = str(error)
        except (
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            OSError,
        ) as error:  # of dates: many kinds
            damaged = f"'{path / FACTS}' is not what a run says of itself: {printable(error)}"
    match = NAME.fullmatch(path.name)
    created = _at(path.stat().st_mtime)
    task, kind = path.name, "train"
    if match:
        task, kind = match["task"], match["kind"]
    return Run(path, task, kind, created, created.timestamp(), pinned, damaged)


def _from_facts(path: Path, facts: Any, pinned: bool) -> Run:
    task, kind = facts["task"], facts["kind"]
    if not isinstance(task, str) or kind not in ("train", "test"):
        raise TypeError("task or kind")
    created = datetime.fromisoformat(facts["created"]).astimezone()
    order = facts.get("order")
    known = type(order) is float and 0.0 <= order < LAST_ORDER
    return Run(path, task, kind, created, order if known else created.timestamp(), pinned)


def _at(seconds: float) -> datetime:
    """A time of the file system, which may be any number."""
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(seconds).astimezone()
    return datetime.fromtimestamp(0).astimezone()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv` by column, the first `MAX_ROWS`; none of a file that is none.

    A row that a killed process cut off has what it got; lines that are too long are left out.
    """
    try:
        data = read_bytes(path, "the metrics of a training", MAX_METRICS)
        text = io.StringIO(data.decode(errors="replace"), newline="")
        lines = (line for line in text if len(line) < MAX_LINE)
        table = csv.DictReader(lines)
        rows = list(islice(table, MAX_ROWS))
    except (FileError, csv.Error):
        return []
    return [{name: value for name, value in row.items() if name and value} for row in rows]


def _evaluated(run: Path) -> tuple[float | None, float | None]:
    """Success rate and seconds of the evaluation in a test run; None for what its report does not say."""
    with suppress(FileError, KeyError, TypeError):
        report = read_json(run / "eval.json", REPORT, 4 * MB)
        found = (report["success"]["rate"], report.get("wall_seconds"))
        rate, seconds = (
            float(x) if type(x) in (int, float) and abs(x) < 1e9 else None for x in found
        )
        return rate, seconds
    return None, None


def _curve(rows: list[dict[str, str]], x: str, y: str) -> list[tuple[float, float]]:
    """The points of two columns where both hold finite numbers."""
    points: list[tuple[float, float]] = []
    for row in rows:
        with suppress(TypeError, ValueError):
            point = (float(row.get(x) or "nan"), float(row.get(y) or "nan"))
            points.append(point)
    return [point for point in points if all(map(math.isfinite, point))]


def pin(spec: str, new_name: str | None, cfg: RunsConfig) -> Path:
    """Link a run in `runs/pinned/`, where it stays in view; returns the link."""
    run = find_run(spec, None, cfg)
    name = new_name or run.name
    _check_name(name)
    if name in LATEST:
        raise DeftlyError(f"'{name}' means the newest run: choose another --name NAME")
    place = cfg.root / "runs/pinned" / name
    if os.path.lexists(place):
        raise DeftlyError(
            f"'{place}' exists; choose another with --name NAME or first --unpin {place.name}"
        )
    link(place, run)
    return place


def unpin(name: str, cfg: RunsConfig) -> None:
    """Remove a link from `runs/pinned/`; the run itself stays."""
    _check_name(name)
    link = cfg.root / "runs/pinned" / name
    if _target(link) is None:
        names = [path.name for path in link.parent.glob("*") if _target(path)]
        raise DeftlyError(f"no pinned link '{link}'{suggest(name, names)}")
    link.unlink()


EVALUATED = "eval_success"
"""Column of `metrics.csv` that only some of its rows have."""


def compare(specs: Sequence[str], column: str, out_png: Path, cfg: RunsConfig) -> Any:
    """Plot a column of the runs' `metrics.csv` against steps into `out_png`; returns a summary table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines: list[tuple[str, ...]] = []
    for run in [find_run(spec, None, cfg) for spec in specs]:
        rows = read_metrics(run / METRICS)
        points = _curve(rows, "steps", column)
        if not points:
            raise DeftlyError(_without_numbers(run, rows, column))
        steps, values = zip(*points)
        axes.plot(steps, values, label=run.name)
        lines.append(
            (
                run.name,
                *(f"{value:.6g}" for value in (steps[-1], values[-1], min(values), max(values))),
            )
        )
    axes.set(xlabel="steps", ylabel=column)
    axes.legend()
    with atomic_write(out_png) as scratch:
        figure.savefig(scratch, format=out_png.suffix.lstrip(".") or "png")
    return table(("run", "steps", f"last {column}", "min", "max"), lines)


def _without_numbers(run: Path, rows: Sequence[Mapping[str, Any]], column: str) -> str:
    """Why a column of a run cannot be drawn, and what to type instead."""
    known = [*rows[0]] if rows else []
    if column == EVALUATED and "success" in known:
        return f"no evaluation has ended in '{run}' yet: give --column success"
    return f"'{run / METRICS}' has no numbers in column '{column}'{suggest(column, known)}"


def overview(cfg: RunsConfig) -> Any:
    """Every run with its metrics, newest first."""
    lines = [_line(run) for run in list_runs(cfg)]
    if not lines:
        return f"no runs in '{cfg.root}' yet; start one: deftly train TASK"
    return table(("run", "task", "started", "pinned", "iterations", "success", "minutes"), lines)


def _line(run: Run) -> tuple[str, ...]:
    iterations, success, minutes = run.metrics()
    return (
        run.path.name,
        f"{run.task} (damaged {FACTS})" if run.damaged else run.task,
        f"{run.created:%Y-%m-%d %H:%M}",
        "*" if run.pinned else "",
        "" if iterations is None else f"{iterations:.0f}",
        "" if success is None else f"{success:.1%}",
        "" if minutes is None else f"{minutes:.1f}",
    )
