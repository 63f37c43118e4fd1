"""Where a training's figures go: a live table, `metrics.csv`, TensorBoard, and wandb if asked."""

import csv
from collections.abc import Callable
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

Row = dict[str, float]  # an iteration's figures by name; for the writers, one that is not known is missing, not NaN


class Writer(NamedTuple):
    """One place that figures go to."""

    write: Callable[[Row], None]
    close: Callable[[], None]


def metrics(path: Path, columns: list[str], resume_at: int) -> Writer:
    """`metrics.csv`: a row an iteration, flushed when written. A resumed run keeps the rows up to its checkpoint."""
    kept = []
    if resume_at and path.is_file():
        with path.open(newline="") as old:
            rows = [row for row in csv.DictReader(old) if row.get("iteration", "").isdigit()]
            kept = [row for row in rows if int(row["iteration"]) <= resume_at]
    with atomic_write(path) as scratch:
        file = scratch.open("w", newline="")
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(kept)
        file.flush()

    def write(row: Row) -> None:
        writer.writerow({k: f"{v:.6g}" for k, v in row.items()})
        file.flush()

    return Writer(write, file.close)


def tensorboard(folder: Path, resume_steps: int) -> Writer:
    """TensorBoard scalars against environment steps."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=resume_steps + 1 if resume_steps else None)

    def write(row: Row) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, int(row["steps"]))

    return Writer(write, writer.close)


def wandb(folder: Path, config: dict[str, Any]) -> Writer:
    """Weights & Biases, for who has it installed and asks for it."""
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        raise DeftlyError("--wandb needs the wandb package: pip install wandb, or leave --wandb out") from None
    run = wandb.init(project="deftly", name=folder.name, dir=str(folder), config=config, resume="allow")
    return Writer(lambda row: run.log(row, step=int(row["steps"])), run.finish)


def progress(console: Console, title: str, iterations: int, level: str) -> Writer:
    """A live table on a terminal; elsewhere one line every tenth iteration, or each if the level is `debug`."""
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), console=console)
    task = bar.add_task(title, total=iterations)
    live, evaluated = Live(console=console), nan
    if console.is_terminal and level == "info":
        live.start()

    def write(row: Row) -> None:
        nonlocal evaluated
        evaluated = row.get("eval_success", evaluated)
        if live.is_started:
            bar.update(task, completed=row["iteration"])
            live.update(Group(_table(row, evaluated), bar))
        elif level == "debug" or row["iteration"] % 10 == 0 or "eval_success" in row:
            text = f"iteration {row['iteration']:.0f}  {row['steps'] / 1e6:.2f} M steps  {_clock(row['seconds'])}  "
            text += f"{row['steps_per_second']:.0f} steps/s  success {_share(row.get('success', nan))}  "
            text += f"evaluated {_share(evaluated)}  return {row.get('return', nan):.2f}"
            console.print(text, soft_wrap=True)

    return Writer(write, live.stop)


def _table(row: Row, evaluated: float) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    terms = [(k.replace("/", " ", 1), f"{v:+.3f}") for k, v in row.items() if k.startswith("reward/")]
    figures = [
        ("iteration", f"{row['iteration']:.0f}"),
        ("environment steps", f"{row['steps'] / 1e6:.2f} M"),
        ("steps/s", f"{row['steps_per_second']:.0f}"),
        ("elapsed / left at most", f"{_clock(row['seconds'])} / {_clock(row['seconds_left'])}"),
        ("success in training", _share(row.get("success", nan))),
        ("success evaluated", _share(evaluated)),
        ("episode steps", f"{row.get('episode_steps', nan):.1f}"),
        ("return", f"{row.get('return', nan):.3f}"),
        ("exploration std", f"{row['std']:.3f}"),
    ]
    for (name, value), (term, mean) in zip_longest(figures, terms, fillvalue=("", "")):
        table.add_row(f"[bold]{name}[/]", value, term, mean)
    return table


def _share(value: float) -> str:
    return "-" if isnan(value) else f"{100 * value:.1f} %"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
