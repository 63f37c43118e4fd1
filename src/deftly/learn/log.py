"""Where a training's figures go: a live table, `metrics.csv`, TensorBoard, and wandb if asked."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from deftly.errors import DeftlyError

Row = dict[str, float]


class Csv:
    """`metrics.csv`: a row an iteration, flushed when written. A resumed run keeps the rows up to its checkpoint."""

    def __init__(self, path: Path, columns: list[str], resume_at: int):
        self._columns = columns
        kept = _rows_up_to(path, resume_at) if resume_at and path.is_file() else []
        scratch = path.with_name(f".tmp-{path.name}")
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(scratch, path)
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, extrasaction="ignore", restval="")

    def write(self, row: Row) -> None:
        """Append a row; columns without a figure stay empty."""
        self._writer.writerow({k: f"{v:.6g}" for k, v in row.items() if not math.isnan(v)})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rows_up_to(path: Path, iteration: int) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [
            row
            for row in csv.DictReader(file)
            if row.get("iteration", "").isdigit() and int(row["iteration"]) <= iteration
        ]


class TensorBoard:
    """TensorBoard scalars against environment steps."""

    def __init__(self, folder: Path, resume_steps: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resume_steps + 1 if resume_steps else None)

    def write(self, row: Row) -> None:
        """Write every figure."""
        for name, value in row.items():
            if not math.isnan(value):
                self._writer.add_scalar(name, value, int(row["steps"]))

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Wandb:
    """Weights & Biases, for who has it installed and asks for it."""

    def __init__(self, folder: Path, config: dict[str, Any], project: str):
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError:
            raise DeftlyError("--wandb needs the wandb package: pip install wandb, or leave --wandb out") from None
        self._run = wandb.init(project=project, name=folder.name, dir=str(folder), config=config, resume="allow")

    def write(self, row: Row) -> None:
        """Write every figure."""
        self._run.log({k: v for k, v in row.items() if not math.isnan(v)}, step=int(row["steps"]))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Progressed:
    """The live table on a terminal; elsewhere one line every tenth iteration."""

    def __init__(self, console: Console, title: str, iterations: int, level: str = "info"):
        self._console, self._title, self._level = console, title, level
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), console=console)
        self._task = self._bar.add_task("", total=iterations)
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._eval = math.nan
        self._show = console.is_terminal and level == "info"
        if self._show:
            self._live.start()

    def write(self, row: Row) -> None:
        """Show an iteration."""
        self._eval = self._eval if math.isnan(row.get("eval_success", math.nan)) else row["eval_success"]
        if self._level == "warning":
            return
        if self._show:
            self._bar.update(self._task, completed=row["iteration"], description=self._title)
            self._live.update(Group(self._table(row), self._bar))
        elif self._level == "debug" or row["iteration"] % 10 == 0 or not math.isnan(row.get("eval_success", math.nan)):
            self._console.print(self._line(row), soft_wrap=True)

    def close(self) -> None:
        """Leave the last table standing."""
        self._live.stop()

    def _line(self, row: Row) -> str:
        return (
            f"iteration {row['iteration']:.0f}  {row['steps'] / 1e6:.2f} M steps  {_clock(row['seconds'])}  "
            f"{row['steps_per_second']:.0f} steps/s  success {_share(row.get('success', math.nan))}  "
            f"evaluated {_share(self._eval)}  return {row.get('return', math.nan):.2f}"
        )

    def _table(self, row: Row) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 2))
        terms = [(k.removeprefix("reward/"), f"{v:+.3f}") for k, v in row.items() if k.startswith("reward/")]
        left = [
            ("iteration", f"{row['iteration']:.0f}"),
            ("environment steps", f"{row['steps'] / 1e6:.2f} M"),
            ("steps/s", f"{row['steps_per_second']:.0f}"),
            ("elapsed / left at most", f"{_clock(row['seconds'])} / {_clock(row['seconds_left'])}"),
            ("success in training", _share(row.get("success", math.nan))),
            ("success evaluated", _share(self._eval)),
            ("episode steps", f"{row.get('episode_steps', math.nan):.1f}"),
            ("return", f"{row.get('return', math.nan):.3f}"),
            ("exploration std", f"{row['std']:.3f}"),
        ]
        for i in range(max(len(left), len(terms))):
            a, b = left[i] if i < len(left) else ("", ""), terms[i] if i < len(terms) else ("", "")
            table.add_row(f"[bold]{a[0]}[/]", a[1], f"reward {b[0]}" if b[0] else "", b[1])
        return table


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
