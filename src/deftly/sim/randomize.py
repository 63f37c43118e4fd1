"""Randomization of the model: what differs between episodes, described as data and drawn at reset."""

from __future__ import annotations

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
    added to it. No names means all. The names share one draw if `shared`.
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
        nominal = live[0].clone()
        targets.append((live, nominal, columns))

    def draw(ids: Tensor, generator: torch.Generator) -> None:
        count = 1 if entry.shared or rows is None else len(rows)
        axes = 3 if entry.quantity == "com" else 1
        u = torch.rand(len(ids), count, axes, generator=generator, dtype=torch.float64)
        value = entry.low + (entry.high - entry.low) * u
        for live, nominal, columns in targets:
            _write(live, nominal, columns, ids, rows, value, entry)

    return draw


def _write(
    live: Tensor, nominal: Tensor, columns: slice, ids: Tensor, rows: Tensor | None, value: Tensor, entry: Randomize
) -> None:
    """Write `value`, `(ids, rows, 1 or 3)`, times or plus the nominal figures to the environments `ids`."""
    if rows is None:  # a field of the whole model
        live[ids] = nominal * value[:, 0] if entry.op == "scale" else nominal + value[:, 0]
        return
    base = nominal[rows].reshape(len(rows), -1)
    new = base.expand(len(ids), *base.shape).clone()
    part = new[..., columns]
    new[..., columns] = part * value if entry.op == "scale" else part + value
    live[ids[:, None], rows] = new.reshape(len(ids), len(rows), *nominal.shape[1:]).to(live.dtype)


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
