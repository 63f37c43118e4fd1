"""Randomization of the model: what differs between episodes, described as data and drawn at reset."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import mujoco
import numpy as np
import torch
from torch import Tensor

from deftly.errors import DeftlyError
from deftly.sim.cpu import CpuSim

Quantity = Literal[
    "mass", "com", "friction", "size", "damping", "armature", "frictionloss", "kp", "kd", "torque", "latency", "gravity"
]


@dataclass(frozen=True)
class Randomize:
    """One figure of the model, drawn uniformly for each episode.

    Quantities and what `names` name: mass (with the inertia), com (m) of bodies; friction (sliding), size of geoms
    (boxes, spheres, capsules; the mass stays); damping, armature, frictionloss of joints; kp, kd, torque (limit) and
    latency (s) of actuators; gravity (its magnitude; no names). What is added to a mass, a first half extent, a kp, kd
    or gravity scales the figures that go with it.
    """

    quantity: Quantity
    low: float
    high: float
    names: tuple[str, ...] = ()  # none means all
    op: Literal["scale", "add"] = "scale"  # the draw scales the model's figure, or is added to it
    shared: bool = False  # whether the names share one draw
    without: tuple[float, float] | None = None  # part of the range that is never drawn


def widen(entry: Randomize, factor: float, only_outside: bool = False) -> Randomize:
    """An entry whose range is `factor` (1 or more) times as wide about its middle; or only what that adds to the range.

    A scale stays positive: its `low` falls no further than to `low / factor`. A latency stays 0 or more.
    """
    middle, half = (entry.low + entry.high) / 2, factor * (entry.high - entry.low) / 2
    lowest = entry.low / factor if entry.op == "scale" else 0.0 if entry.quantity == "latency" else -math.inf
    without = (entry.low, entry.high) if only_outside else None
    return replace(entry, low=max(lowest, middle - half), high=middle + half, without=without)


_ALL = slice(None)
# quantity -> (what names name, whether constants follow, the fields it draws with the columns that change)
_FIELDS: dict[str, tuple[str, bool, dict[str, slice]]] = {
    "mass": ("body", True, {"body_mass": _ALL, "body_inertia": _ALL}),
    "com": ("body", True, {"body_ipos": _ALL}),
    "friction": ("geom", False, {"geom_friction": slice(0, 1)}),
    "size": ("geom", False, {"geom_size": _ALL, "geom_rbound": _ALL, "geom_aabb": slice(3, 6)}),
    "damping": ("joint", False, {"dof_damping": _ALL}),
    "armature": ("joint", True, {"dof_armature": _ALL}),
    "frictionloss": ("joint", False, {"dof_frictionloss": _ALL}),
    "kp": ("actuator", False, {"actuator_gainprm": slice(0, 1), "actuator_biasprm": slice(1, 2)}),
    "kd": ("actuator", False, {"actuator_biasprm": slice(2, 3)}),
    "torque": ("actuator", False, {"actuator_forcerange": _ALL}),
    "latency": ("actuator", False, {"actuator_delay": _ALL}),
    "gravity": ("", False, {"opt.gravity": _ALL}),
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


def hold_commands(sim: CpuSim, ids: Tensor) -> None:
    """Fill what delayed actuators read in some environments as if the command of now had always been there."""
    history, ctrl = sim.bind("history"), sim.bind("ctrl")
    for i in np.flatnonzero(sim.model.actuator_historyadr >= 0).tolist():
        count = sim.model.actuator_history[i, 0]
        start = sim.model.actuator_historyadr[i] + 2 + count  # 2 + count: cursor, times
        history[ids, start : start + count] = ctrl[ids, i][:, None]


class Randomizer:
    """Draws a task's `Randomize` entries for the environments that reset."""

    def __init__(self, sim: CpuSim, entries: tuple[Randomize, ...]):
        self.sim = sim
        self.constants = any(_FIELDS[e.quantity][1] for e in entries)
        self._draws = [_bind(sim, entry) for entry in entries]
        self.fields = {name: sim.expand(name) for e in entries for name in _FIELDS[e.quantity][2]}

    def draw(self, ids: Tensor, generator: torch.Generator) -> None:
        """New figures for the environments `ids`."""
        for draw in self._draws:
            draw(ids, generator)
        if self.constants and len(ids):
            self.sim.set_const(ids)


def _bind(sim: CpuSim, entry: Randomize) -> Callable[[Tensor, torch.Generator], None]:
    kind, _, fields = _FIELDS[entry.quantity]
    rows = _rows(sim.model, kind, entry)
    targets = []
    for name, columns in fields.items():
        live = sim.expand(name)
        table = live.view(len(live), live.shape[1] if kind else 1, -1)
        targets.append((table, columns, table[0, rows, columns].clone()))
    first = targets[0][2]
    size = first.norm(dim=-1, keepdim=True) if entry.quantity == "gravity" else first[:, :1].abs()
    shape = (1 if entry.shared else len(rows), 3 if entry.quantity == "com" else 1)
    together = entry.quantity in _TOGETHER
    if entry.op == "add" and together and len(short := size[(size > 0) & (size + entry.low <= 0)]):
        raise DeftlyError(f"randomize {entry.quantity}: adding {entry.low:g} to {short[0]:g} leaves nothing")
    low, high = entry.without or (0.0, 0.0)

    def draw(ids: Tensor, generator: torch.Generator) -> None:
        u = torch.rand(len(ids), *shape, generator=generator, dtype=torch.float64)
        value = entry.low + (entry.high - entry.low - (high - low)) * u
        if entry.without:
            value = torch.where(value < low, value, value + (high - low))
        if entry.op == "add" and together:
            value = torch.where(size > 0, 1 + value / size, 1.0)
        for table, columns, nominal in targets:
            table[ids[:, None], rows, columns] = nominal * value if together or entry.op == "scale" else nominal + value

    return draw


def _rows(model: mujoco.MjModel, kind: str, entry: Randomize) -> Tensor:
    if not kind:
        return torch.tensor([0])
    count = {"body": model.nbody, "geom": model.ngeom, "joint": model.njnt, "actuator": model.nu}[kind]
    known = [getattr(model, kind)(i).name for i in range(count)]
    if unknown := [n for n in entry.names if n not in known]:
        raise DeftlyError(f"randomize {entry.quantity}: no {kind} '{unknown[0]}' in the scene, it has {known}")
    ids = [known.index(n) for n in entry.names] or [i for i, n in enumerate(known) if n != "world"]
    if kind == "joint":  # its figures are those of its degrees of freedom
        ids = [dof for i in ids for dof in np.flatnonzero(model.dof_jntid == i).tolist()]
    return torch.tensor(ids)
