"""Gaits: each joint follows two harmonics of one frequency."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.files import read_npz, write_npz
from deftly.tasks import Task

MAX_BYTES = 1 << 20
"""Largest file of gaits that is read."""
SCHEMA = "deftly.gait/2"
SPREAD = (
    0.15,
    0.15,
    0.15,
    0.05,
    0.05,
)  # by which numbers count: rad of centre, sine and cosine, their second harmonic
CYCLES = 20  # of which the first is left out: periods at which a gait is looked at


@dataclass(frozen=True)
class Gaits:
    """Several gaits side by side: joint targets are a centre and two harmonics of the phase, rad."""

    frequency: Tensor  # (n,) Hz
    shape: (
        Tensor  # (n, 5, num_joints): centre; sine and cosine of the phase, then of twice the phase
    )

    @classmethod
    def decode(cls, numbers: np.ndarray, home: Tensor, frequency: float) -> Gaits:
        """Gaits of one frequency, Hz, and of vectors `(n, 5 * num_joints)` near zero; zero stands at home."""
        x = torch.from_numpy(np.asarray(numbers)).float()
        shape = torch.tensor(SPREAD)[:, None] * x.reshape(len(x), len(SPREAD), -1)
        shape[:, 0] += home
        return cls(torch.full((len(x),), frequency), shape)

    def encode(self, home: Tensor) -> np.ndarray:
        """The vectors that `decode` takes."""
        shape = self.shape.clone()
        shape[:, 0] -= home
        return (shape / torch.tensor(SPREAD)[:, None]).flatten(1).double().numpy()

    def timed(self, frequency: float | None) -> Gaits:
        """The same paths at one frequency, Hz; unset: at the mean of their own."""
        own = float(self.frequency.log().mean().exp())
        return Gaits(torch.full_like(self.frequency, frequency or own), self.shape)

    def targets(self, phase: Tensor) -> Tensor:
        """Joint targets `(n, num_joints)` at phases `(n,)`, rad."""
        waves = torch.stack(
            (
                torch.ones_like(phase),
                phase.sin(),
                phase.cos(),
                (2 * phase).sin(),
                (2 * phase).cos(),
            ),
            -1,
        )
        return (self.shape * waves[..., None]).sum(1)

    def repeat(self, times: int) -> Gaits:
        """Each gait so many times, one after the other."""
        return Gaits(
            self.frequency.repeat_interleave(times), self.shape.repeat_interleave(times, 0)
        )

    def at(self, context: Tensor) -> Gaits:
        """A mixture for each context (n,): the first gait at -1, the last at 1."""
        part = (1 + context) / 2
        frequency = self.frequency[0] ** (1 - part) * self.frequency[-1] ** part
        return Gaits(frequency, torch.lerp(self.shape[0], self.shape[-1], part[:, None, None]))

    def cycle(self, contract: PolicyContract) -> tuple[Tensor, Tensor]:
        """Commands (m, num_joints) through which the first gait goes, each with the one after it, rad.

        They are not its targets: an action changes a command by so much and no more.
        """
        delta = torch.tensor(contract.act_terms[0].scale)
        lower, upper = torch.tensor([(j.lower, j.upper) for j in contract.joints]).T
        period = float(contract.rate / self.frequency[0])
        command, seen = self.targets(torch.zeros_like(self.frequency))[:1], []
        for k in range(round(CYCLES * period)):
            wanted = self.targets(2 * math.pi * k / period * torch.ones_like(self.frequency))[:1]
            command = (command + (wanted - command).clip(-delta, delta)).clip(lower, upper)
            seen.append(command)
        settled = torch.cat(seen)[round(period) :]
        return settled[:-1], settled[1:]

    def save(self, path: Path, task: Task) -> None:
        """Write the gaits atomically."""
        names = np.array(task.contract().joint_names)
        parts = {name: value.numpy() for name, value in vars(self).items()}
        write_npz(path, {"schema": SCHEMA, "task": task.name, "joint_names": names, **parts})

    @classmethod
    def load(cls, path: Path, task: Task) -> Gaits:
        """Read what `save` wrote. Raises DeftlyError if it is no gait of this task's joints."""
        names = ("schema", "joint_names", *cls.__dataclass_fields__)
        advice = "give the gait.npz of a run of 'deftly gait'"
        found = read_npz(path, "a gait", MAX_BYTES, names=names, advice=advice)
        if str(found["schema"]) != SCHEMA or [*map(str, found["joint_names"])] != [
            *task.contract().joint_names
        ]:
            raise DeftlyError(
                f"{path} is no gait of this task's joints: search for one, deftly gait {task.name}"
            )
        gait = cls(*(torch.from_numpy(found[name]).float() for name in cls.__dataclass_fields__))
        if len(gait.frequency) not in (1, 2) or gait.shape.shape != (
            *gait.frequency.shape,
            len(SPREAD),
            len(found["joint_names"]),
        ):
            raise DeftlyError(
                f"{path} is corrupt: its shape has the size {tuple(gait.shape.shape)}"
            )
        return gait
