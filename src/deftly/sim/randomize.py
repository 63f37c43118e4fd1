"""Randomization of the model: what differs between episodes, described as data and drawn at reset."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import mujoco
import torch
from torch import Tensor

from deftly.errors import DeftlyError
from deftly.sim import Sim

Quantity = Literal[
    "mass", "com", "friction", "damping", "armature", "frictionloss", "kp", "kd", "gravity", "size", "latency"
]


@dataclass(frozen=True)
class Randomize:
    """One figure of the model, drawn uniformly for each episode.

    Quantities and what `names` name: mass (with the inertia), com (m) of bodies; friction (sliding), size of geoms
    (boxes, spheres, capsules; the mass stays); damping, armature, frictionloss of joints; kp, kd and latency (s)
    of actuators; gravity (its magnitude; no names). `op` says whether the draw scales the model's figure or is
    added to it; what is added to a mass, a first half extent, a kp, kd or gravity scales the figures that go with it.
    No names means all. The names share one draw if `shared`.
    """

    quantity: Quantity
    low: float
    high: float
    names: tuple[str, ...] = ()
    op: Literal["scale", "add"] = "scale"
    shared: bool = False


# quantity -> (what names name, the fields it draws with the columns that change, whether constants follow)
_FIELDS: dict[str, tuple[str, list[tuple[str, slice]], bool]] = {
    "mass": ("body", [("body_mass", slice(None)), ("body_inertia", slice(None))], True),
    "com": ("body", [("body_ipos", slice(None))], True),
    "friction": ("geom", [("geom_friction", slice(0, 1))], False),
    "size": ("geom", [("geom_size", slice(None)), ("geom_rbound", slice(None)), ("geom_aabb", slice(3, 6))], False),
    "damping": ("joint", [("dof_damping", slice(None))], False),
    "armature": ("joint", [("dof_armature", slice(None))], True),
    "frictionloss": ("joint", [("dof_frictionloss", slice(None))], False),
    "kp": ("actuator", [("actuator_gainprm", slice(0, 1)), ("actuator_biasprm", slice(1, 2))], False),
    "kd": ("actuator", [("actuator_biasprm", slice(2, 3))], False),
    "latency": ("actuator", [("actuator_delay", slice(None))], False),
    "gravity": ("", [("opt.gravity", slice(None))], False),
}

_TOGETHER = ("mass", "size", "kp", "kd", "gravity")  # several figures of one size


def prepare(s: mujoco.MjSpec, entries: tuple[Randomize, ...], timestep: float) -> None:
    """Make room for the draws before the scene compiles: past commands for latency, full inertias for com."""
    for entry in entries:
        if entry.quantity == "latency":
            samples = math.ceil(entry.high / timestep - 1e-9) + 1
            for actuator in (a for a in s.actuators if a.name in entry.names or not entry.names):
                actuator.nsample = max(actuator.nsample, samples)
        if entry.quantity == "com":
            for body in (b for b in s.bodies if b.name in entry.names or not entry.names):
                body.simple = 0


class PastCommands:
    """Buffers from which delayed actuators read; an episode starts as if its first command had always been there."""

    def __init__(self, sim: Sim):
        model = sim.model
        delayed = [i for i in range(model.nu) if model.actuator_historyadr[i] >= 0]
        counts = [int(model.actuator_history[i, 0]) for i in delayed]
        starts = [int(model.actuator_historyadr[i]) + 2 + n for i, n in zip(delayed, counts)]  # 2 + n: cursor, times
        self._columns = torch.tensor([a + k for a, n in zip(starts, counts) for k in range(n)], dtype=torch.long)
        self._actuators = torch.tensor([i for i, n in zip(delayed, counts) for _ in range(n)], dtype=torch.long)
        self._ctrl, self._history = sim.bind("ctrl"), sim.bind("history") if delayed else torch.zeros(0)

    def reset(self, ids: Tensor) -> None:
        """Fill the buffers of some environments with their command of now."""
        if len(self._columns):
            self._history[ids[:, None], self._columns] = self._ctrl[ids[:, None], self._actuators]


class Randomizer:
    """Draws a task's `Randomize` entries for the environments that reset."""

    def __init__(self, sim: Sim, entries: tuple[Randomize, ...]):
        self.sim = sim
        self.constants = any(_FIELDS[e.quantity][2] for e in entries)
        self._draws = [_bind(sim, entry) for entry in entries]
        self.fields = {name: sim.expand(name) for e in entries for name, _ in _FIELDS[e.quantity][1]}

    def draw(self, ids: Tensor, generator: torch.Generator) -> None:
        """New figures for the environments `ids`."""
        for draw in self._draws:
            draw(ids, generator)
        if self.constants and len(ids):
            self.sim.set_const(ids)


def _bind(sim: Sim, entry: Randomize) -> Callable[[Tensor, torch.Generator], None]:
    kind, fields, _ = _FIELDS[entry.quantity]
    rows = _rows(sim.model, kind, entry)
    targets = []
    for name, columns in fields:
        live = sim.expand(name)
        flat = live.view(len(live), 1, -1) if rows is None else live.view(*live.shape[:2], -1)
        which = torch.zeros(1, dtype=torch.long) if rows is None else rows
        targets.append((flat, which, columns, flat[0, which, columns].clone()))
    first = targets[0][3]
    size = first.norm(dim=-1, keepdim=True) if entry.quantity == "gravity" else first[:, :1].abs()

    def draw(ids: Tensor, generator: torch.Generator) -> None:
        count = 1 if entry.shared or rows is None else len(rows)
        axes = 3 if entry.quantity == "com" else 1
        u = torch.rand(len(ids), count, axes, generator=generator, dtype=torch.float64)
        value = entry.low + (entry.high - entry.low) * u
        if entry.op == "add" and entry.quantity in _TOGETHER:
            value = torch.where(size > 0, 1 + value / size, 1.0)
        scale = entry.op == "scale" or entry.quantity in _TOGETHER
        for flat, which, columns, nominal in targets:
            flat[ids[:, None], which, columns] = nominal * value if scale else nominal + value

    return draw


def _rows(model: mujoco.MjModel, kind: str, entry: Randomize) -> Tensor | None:
    if not kind:
        return None
    count = {"body": model.nbody, "geom": model.ngeom, "joint": model.njnt, "actuator": model.nu}[kind]
    known = [getattr(model, kind)(i).name for i in range(count)]
    unknown = [n for n in entry.names if n not in known]
    if unknown:
        raise DeftlyError(f"randomize {entry.quantity}: no {kind} '{unknown[0]}' in the scene, it has {known}")
    ids = [known.index(n) for n in entry.names] or [i for i, n in enumerate(known) if n != "world"]
    if kind != "joint":
        return torch.tensor(ids)
    dofs = [int(model.jnt_dofadr[i]) + k for i in ids for k in range(_DOFS[int(model.jnt_type[i])])]
    return torch.tensor(dofs)


_DOFS = {0: 6, 1: 3, 2: 1, 3: 1}  # free, ball, slide, hinge
