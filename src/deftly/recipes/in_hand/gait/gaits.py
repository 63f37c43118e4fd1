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
FREQUENCIES = (0.01, 100.0)
"""Slowest and fastest gait of a file, Hz: a period has so many steps of the control loop."""
SCHEMA = "deftly.gait/2"
SCALE = (0.15, 0.15, 0.15, 0.05, 0.05)
"""What 1 stands for in a parameter vector, rad: of the centre, sine and cosine, and of their second harmonic."""
CYCLES = 20
"""Periods through which commands are followed, of which the first is left out."""


@dataclass(frozen=True)
class Gaits:
    """Several gaits side by side: joint targets are a centre and two harmonics of the phase, rad."""

    frequency: Tensor
    """(n,) Hz."""
    shape: Tensor
    """(n, 5, num_joints) rad: centre; sine and cosine of the phase, then of twice the phase."""

    @classmethod
    def decode(cls, parameters: np.ndarray, home: Tensor, frequency: float) -> Gaits:
        """Gaits of one frequency, Hz, and of vectors `(n, 5 * num_joints)` near zero; zero stands at home."""
        vectors = torch.from_numpy(np.asarray(parameters)).float()
        scale = torch.tensor(SCALE)[:, None]
        parts = vectors.reshape(len(vectors), len(SCALE), -1)
        shape = scale * parts
        shape[:, 0] += home
        frequencies = torch.full((len(vectors),), frequency)
        return cls(frequencies, shape)

    def encode(self, home: Tensor) -> np.ndarray:
        """The vectors that `decode` takes."""
        shape = self.shape.clone()
        shape[:, 0] -= home
        scale = torch.tensor(SCALE)[:, None]
        return (shape / scale).flatten(1).double().numpy()

    def timed(self, frequency: float | None) -> Gaits:
        """The same paths at one frequency, Hz; unset: at the mean of their own."""
        mean = float(self.frequency.log().mean().exp())
        common = torch.full_like(self.frequency, frequency or mean)
        return Gaits(common, self.shape)

    def targets(self, phase: Tensor) -> Tensor:
        """Joint targets `(n, num_joints)` at phases `(n,)`, rad."""
        waves = (
            torch.ones_like(phase),
            phase.sin(),
            phase.cos(),
            (2 * phase).sin(),
            (2 * phase).cos(),
        )
        weights = torch.stack(waves, -1)[..., None]
        return (self.shape * weights).sum(1)

    def repeat(self, times: int) -> Gaits:
        """Each gait so many times, one after the other."""
        frequency = self.frequency.repeat_interleave(times)
        shape = self.shape.repeat_interleave(times, 0)
        return Gaits(frequency, shape)

    def at(self, context: Tensor) -> Gaits:
        """A mixture for each context (n,): the first gait at -1, the last at 1."""
        weight = (1 + context) / 2
        first = self.frequency[0] ** (1 - weight)
        last = self.frequency[-1] ** weight
        first_shape = self.shape[0]
        last_shape = self.shape[-1]
        shape = torch.lerp(first_shape, last_shape, weight[:, None, None])
        return Gaits(first * last, shape)

    def cycle(self, contract: PolicyContract) -> tuple[Tensor, Tensor]:
        """Commands (m, num_joints) through which the first gait goes, each with the one after it, rad.

        They are not its targets: an action changes a command by so much and no more.
        """
        delta = torch.tensor(contract.act_terms[0].scale)
        lower = torch.tensor([joint.lower for joint in contract.joints])
        upper = torch.tensor([joint.upper for joint in contract.joints])
        period = float(contract.rate / self.frequency[0])  # steps
        command = self._first_targets(0.0)
        commands = []
        for step in range(round(CYCLES * period)):
            phase = 2 * math.pi * step / period
            target = self._first_targets(phase)
            change = (target - command).clip(-delta, delta)
            command = (command + change).clip(lower, upper)
            commands.append(command)
        settled = torch.cat(commands)[round(period) :]
        return settled[:-1], settled[1:]

    def _first_targets(self, phase: float) -> Tensor:
        """Joint targets (1, num_joints) of the first gait at a phase, rad."""
        phases = torch.full_like(self.frequency, phase)
        return self.targets(phases)[:1]

    def save(self, path: Path, task: Task) -> None:
        """Write the gaits atomically."""
        arrays = {
            "schema": SCHEMA,
            "task": task.name,
            "joint_names": np.array(task.contract().joint_names),
            "frequency": self.frequency.numpy(),
            "shape": self.shape.numpy(),
        }
        write_npz(path, arrays)

    @classmethod
    def load(cls, path: Path, task: Task) -> Gaits:
        """Read what `save` wrote. Raises DeftlyError if it is no gait of this task's joints."""
        advice = "give the gait.npz of a run of 'deftly gait'"
        numbers, texts = {"frequency": 1, "shape": 3}, {"schema": 0, "joint_names": 1}
        found = read_npz(path, "a gait", MAX_BYTES, numbers=numbers, texts=texts, advice=advice)
        joint_names = tuple(str(name) for name in found["joint_names"])
        wanted = tuple(task.contract().joint_names)
        if str(found["schema"]) != SCHEMA or joint_names != wanted:
            raise DeftlyError(
                f"{path} is no gait of this task's joints: search for one, deftly gait {task.name}"
            )
        frequency = torch.from_numpy(found["frequency"]).float()
        shape = torch.from_numpy(found["shape"]).float()
        size = (*frequency.shape, len(SCALE), len(joint_names))
        if len(frequency) not in (1, 2) or shape.shape != size:
            raise DeftlyError(f"{path} is corrupt: its shape has the size {tuple(shape.shape)}")
        slowest, fastest = FREQUENCIES
        if not ((frequency >= slowest) & (frequency <= fastest)).all():
            raise DeftlyError(f"{path} is corrupt: a gait has {slowest:g} to {fastest:g} Hz")
        return cls(frequency, shape)
