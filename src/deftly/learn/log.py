"""Where a training's metrics go: a live table, `metrics.csv`, TensorBoard, Weights & Biases, a sweep."""

import csv
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import zip_longest
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from deftly.errors import DeftlyError
from deftly.files import atomic_write
from deftly.learn.learner import Metrics
from deftly.workspace import read_metrics


def _nothing() -> None:
    pass


class Writer(NamedTuple):
    """One place that metrics go to. A sweep gives the function that reports to it: `Writer(tune.report)`."""

    write: Callable[[Metrics], None]
    close: Callable[[], None] = _nothing


def sturdy(writer: Writer, what: str) -> Writer:
    """A writer that a full disk, or a terminal that was closed, does not end: it says so once and writes no more.

    The training goes on.
    """
    working = True

    def guard(action: Callable[[], None]) -> None:
        nonlocal working
        if not working:
            return
        try:
            action()
        except OSError as error:
            working = False
            reason = error.strerror or error
            with suppress(OSError):  # nobody may be there to read it
                print(f"warning: {what} is not written any more: {reason}", file=sys.stderr)

    return Writer(lambda row: guard(lambda: writer.write(row)), lambda: guard(writer.close))


def metrics(path: Path, columns: list[str], resume_at: int) -> Writer:
    """`metrics.csv`: a row an iteration, flushed when written. A resumed run keeps the rows up to its checkpoint."""
    known = {str(iteration) for iteration in range(1, resume_at + 1)}
    rows = read_metrics(path) if resume_at else []
    kept = [row for row in rows if row.get("iteration") in known]
    with atomic_write(path) as scratch:
        file = scratch.open("w", newline="")
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(kept)
        file.flush()

    def write(row: Metrics) -> None:
        writer.writerow({k: f"{v:.6g}" for k, v in row.items()})
        file.flush()

    return Writer(write, file.close)


def tensorboard(folder: Path, resume_steps: int) -> Writer:
    """TensorBoard scalars against environment steps. Of a resumed run, what came after its checkpoint is hidden.

    The event file is written here and now: TensorBoard's own writer has a thread for it, which prints a traceback
    where the disk is full.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
    file = (folder / name).open("xb")
    records = RecordWriter(file)

    def add(**content: Any) -> None:
        records.write(Event(wall_time=time.time(), **content).SerializeToString())

    def write(row: Metrics) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        add(step=int(row["steps"]), summary=Summary(value=values))
        file.flush()

    add(file_version="brain.Event:2")
    if resume_steps:
        add(step=resume_steps + 1, session_log=SessionLog(status=SessionLog.START))
    file.flush()
    return Writer(write, file.close)


def require_wandb() -> None:
    """Raise DeftlyError if Weights & Biases is not installed; called before a run is made."""
    if importlib.util.find_spec("wandb") is None:
        raise DeftlyError(
            "--wandb needs the wandb package: pip install wandb, or leave --wandb out"
        )


def wandb(folder: Path, config: dict[str, Any]) -> Writer:
    """Weights & Biases, for who has it installed and asks for it."""
    import wandb  # type: ignore[import-not-found]

    run = wandb.init(
        project="deftly", name=folder.name, dir=str(folder), config=config, resume="allow"
    )
    return Writer(lambda row: run.log(row, step=int(row["steps"])), run.finish)


def progress(console: Console, title: str, iterations: int, level: str, every: int = 10) -> Writer:
    """A live table on a terminal; elsewhere a line each `every` iterations, or each if the level is `debug`."""
    if console.is_terminal and level == "info":
        return _live_table(console, title, iterations)
    return _lines(console, every=1 if level == "debug" else every)


def _live_table(console: Console, title: str, iterations: int) -> Writer:
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), console=console
    )
    task = bar.add_task(title, total=iterations)
    live = Live(console=console)
    live.start()
    evaluated: Metrics = {}

    def write(row: Metrics) -> None:
        evaluated.update(_evaluation(row))
        bar.update(task, completed=row["iteration"])
        live.update(Group(_table({**evaluated, **row}), bar))

    return Writer(write, live.stop)


def _lines(console: Console, every: int) -> Writer:
    evaluated: Metrics = {}

    def write(row: Metrics) -> None:
        newest = _evaluation(row)
        evaluated.update(newest)
        if newest or row["iteration"] % every == 0:
            console.print(_line({**evaluated, **row}), soft_wrap=True)

    return Writer(write)


def _evaluation(row: Metrics) -> Metrics:
    """What an evaluation came to, if there was one in this iteration."""
    return {name: value for name, value in row.items() if name.startswith("eval_")}


def _line(row: Metrics) -> str:
    parts = [
        f"iteration {row['iteration']:.0f}",
        f"{row['steps'] / 1e6:.2f} M steps",
        _clock(row["seconds"]),
        f"{row['steps_per_second']:.0f} steps/s",
        f"success {_percent(row.get('success', nan))}",
        f"evaluated {_percent(row.get('eval_success', nan))}",
        f"return {_number(row.get('return', nan))}",
        *_troubles(row),
    ]
    return "  ".join(parts)


def _troubles(row: Metrics) -> list[str]:
    """What should be nothing: numbers that are not finite in rewards and signals, and physics that broke."""
    kinds = {"nan": "values not finite", "broken": "environments broken"}
    return [f"{row[name]:.0f} {what}" for name, what in kinds.items() if row.get(name, 0) > 0]


def _table(row: Metrics) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    terms = [
        (name.replace("/", " ", 1), f"{value:+.3f}")
        for name, value in row.items()
        if name.startswith("reward/")
    ]
    lines = [
        ("iteration", f"{row['iteration']:.0f}"),
        ("environment steps", f"{row['steps'] / 1e6:.2f} M"),
        ("steps/s", f"{row['steps_per_second']:.0f}"),
        ("elapsed / left at most", f"{_clock(row['seconds'])} / {_clock(row['seconds_left'])}"),
        ("success in training", _percent(row.get("success", nan))),
        ("success evaluated", _percent(row.get("eval_success", nan))),
        ("episode steps", _number(row.get("episode_steps", nan))),
        ("return", _number(row.get("return", nan))),
        ("exploration std", _number(row.get("std", nan))),
        *(("trouble", text) for text in _troubles(row)),
    ]
    for (name, value), (term, mean) in zip_longest(lines, terms, fillvalue=("", "")):
        table.add_row(f"[bold]{name}[/]", value, term, mean)
    return table


def _percent(value: float) -> str:
    return "-" if isnan(value) else f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return "-" if isnan(value) else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
