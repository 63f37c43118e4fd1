"""Fine-tune a model on demonstrations: one loop, the same for every model, that can be killed and go on.

What a step draws depends on the seed and its number alone: its rows, and torch's own draws. A training that was
interrupted and resumed is thus the training uninterrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deftly.console import duration, printable, say
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.learn import log, optimizers
from deftly.vla import checkpoint, models
from deftly.vla.checkpoint import VlaCheckpoint
from deftly.vla.frames import Frames
from deftly.vla.models import Model
from deftly.vla.statistics import Statistics, digest, require_same

NEWEST, METRICS, EVENTS = "checkpoint", "metrics.csv", "tensorboard"
COLUMNS = ["iteration", "steps", "loss", "learning_rate", "grad_norm", "seconds", "eval_success"]
WARMUP = 200
"""Steps over which the learning rate rises from 0, at most a tenth of the training."""
CLIP = 10.0
"""Largest norm of the gradients, as LeRobot has it for these models."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and how long."""

    kind: str
    task: str
    settings: Mapping[str, Any]
    """Of task and physics, as data."""
    contract: PolicyContract
    layout: str
    statistics: Statistics
    dataset: str
    prompts: tuple[str, ...]
    """What the robot was told in it."""
    base: str
    """Pretrained weights: a folder or a repository of the hub; empty: random ones."""
    base_sha256: str
    """Of their file."""
    lora: int
    chunk: int
    executed: int
    steps: int
    batch: int
    learning_rate: float
    seed: int

    @property
    def about(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return {
            "task": self.task,
            "model": self.kind,
            "base": self.base,
            "base_sha256": self.base_sha256,
            "lora": self.lora,
            "layout": self.layout,
            "executed": self.executed,
            "settings": dict(self.settings),
            "dataset": self.dataset,
            "prompts": list(self.prompts),
            "statistics_sha256": digest(self.statistics),
            "training": {
                "steps": self.steps,
                "batch": self.batch,
                "chunk": self.chunk,
                "learning_rate": self.learning_rate,
                "seed": self.seed,
            },
        }


def require_place(plan: Plan, folder: Path, resume: bool) -> None:
    """Raise DeftlyError, before a model is built, unless a training may write there, or can go on there."""
    if resume:
        earlier(plan, folder)
    elif (folder / NEWEST).exists():
        raise DeftlyError(
            f"'{folder}' holds a training: go on with it, --resume, or choose another --out"
        )


def earlier(plan: Plan, folder: Path) -> VlaCheckpoint:
    """The checkpoint with which a training goes on. Raises DeftlyError if there is none, or it is of another plan."""
    place = folder / NEWEST
    if not checkpoint.is_one(place):
        raise DeftlyError(f"'{folder}' holds no training to go on with: leave out --resume")
    found = checkpoint.load(place)
    plan.contract.require(found.contract, str(place))
    require_same(plan.statistics, found.statistics, str(place))
    wanted = plan.about
    for name in ("model", "base", "base_sha256", "lora", "layout", "executed", "training"):
        if found.about.get(name, wanted[name]) != wanted[name]:
            raise DeftlyError(
                f"'{place}' was trained with {name} {found.about.get(name)}, this is {wanted[name]}: resume with the "
                "same settings, or start anew with another --out"
            )
    return found


class Training:
    """A training on its way.

    Args:
        plan: What is trained.
        model: The model, built under the plan.
        frames: The data set.
        folder: Where checkpoint and metrics go.
        resume: Go on from the folder's checkpoint. Raises DeftlyError if it is of another plan.
    """

    def __init__(
        self, plan: Plan, model: Model, frames: Frames, folder: Path, resume: bool = False
    ):
        self.plan = plan
        self.model = model
        self.frames = frames
        self.folder = folder
        self.step = 0
        """Steps done."""
        self._parameters = [p for p in model.network.parameters() if p.requires_grad]
        # Fused: on a CPU a third of the time of the loop over tensors, a sixth of a whole step of ACT.
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=plan.learning_rate,
            weight_decay=1e-4,
            betas=(0.9, 0.95),
            fused=True,
        )
        if resume:
            self._resume()
        elif not plan.base:
            batch = frames.batch(self._rows(0), plan.chunk)
            models.calibrate(model.network, model, batch)

    def _resume(self) -> None:
        found = earlier(self.plan, self.folder)
        found.load_into(self.model)
        try:
            optimizers.unpack(self._optimizer, found.optimizer_state())
        except (KeyError, ValueError) as error:
            raise DeftlyError(
                f"'{found.path}' has the state of another optimizer: {printable(error, 100)}"
            ) from None
        self.step = found.iteration

    def _rows(self, step: int) -> np.ndarray:
        """The frames of a step's batch."""
        rng = np.random.default_rng([self.plan.seed, step])
        return rng.integers(0, len(self.frames), self.plan.batch)

    def rate(self, step: int) -> float:
        """Learning rate of a step: a linear rise, then half a cosine to a tenth (Loshchilov & Hutter 2017)."""
        warmup = max(1, min(WARMUP, self.plan.steps // 10))
        rise = min(1.0, (step + 1) / warmup)
        decaying = max(1, self.plan.steps - warmup)
        done = max(0.0, (step - warmup) / decaying)
        cosine = np.cos(np.pi * min(1.0, done))
        return self.plan.learning_rate * rise * (0.55 + 0.45 * cosine)

    def advance(self) -> dict[str, float]:
        """One step of the optimizer; its loss, and what else is known of it."""
        torch.manual_seed(1_000_003 * self.plan.seed + self.step)
        rate = self.rate(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.model.network.train()
        batch = self.frames.batch(self._rows(self.step), self.plan.chunk)
        loss, _ = self.model.loss(batch)
        if not torch.isfinite(loss):
            raise DeftlyError(
                f"the loss is {float(loss)} in step {self.step}: lower --learning-rate; the last checkpoint is whole"
            )
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        self.step += 1
        return {"loss": float(loss.detach()), "learning_rate": rate, "grad_norm": float(norm)}

    def save(self) -> Path:
        """Write the checkpoint; what was there is replaced in one step."""
        place = self.folder / NEWEST
        state: dict[str, Tensor] = {
            name: value.clone() for name, value in optimizers.pack(self._optimizer).items()
        }
        about = {**self.plan.about, "step": self.step}
        plan = self.plan
        checkpoint.write(place, self.model, plan.contract, plan.statistics, about, state)
        return place

    def run(
        self,
        save_every: int,
        eval_every: int = 0,
        evaluate: Callable[[Path], float] | None = None,
        log_every: int = 50,
    ) -> Path:
        """Train to the end; the folder of the checkpoint.

        Args:
            save_every: Steps between checkpoints.
            eval_every: Steps between evaluations; 0: none.
            evaluate: Success rate of the policy of a checkpoint's folder, in simulation.
            log_every: Steps between lines of metrics, which are means.
        """
        total, begun = self.plan.steps, time.monotonic()
        writers = [
            log.sturdy(log.metrics(self.folder / METRICS, COLUMNS, self.step), METRICS),
            log.sturdy(log.tensorboard(self.folder / EVENTS, self.step), EVENTS),
        ]
        rows: list[dict[str, float]] = []
        first = self.step
        try:
            while self.step < total:
                rows.append(self.advance())
                row: dict[str, float] = {}
                if self.step % log_every == 0 or self.step == total:
                    row = {key: float(np.mean([each[key] for each in rows])) for key in rows[0]}
                    rows.clear()
                if self.step % save_every == 0 or self.step == total:
                    self.save()
                if evaluate and eval_every and self.step % eval_every == 0:
                    row["eval_success"] = evaluate(self.save())
                if row:
                    seconds = time.monotonic() - begun
                    row |= {"iteration": self.step, "steps": self.step, "seconds": seconds}
                    for writer in writers:
                        writer.write(row)
                    left = seconds / (self.step - first) * (total - self.step)
                    say(_line(row, total, left))
        finally:
            for writer in writers:
                writer.close()
        return self.folder / NEWEST


def _line(row: Mapping[str, float], total: int, left: float) -> str:
    """The line of a step on the terminal."""
    parts = [f"step {row['steps']:.0f} of {total}"]
    if "loss" in row:
        parts.append(f"loss {row['loss']:.4f}")
    if "eval_success" in row:
        parts.append(f"success {100 * row['eval_success']:.0f} %")
    return ", ".join([*parts, f"{duration(left)} left"])
