"""Randomization of the model: what differs between episodes, described as data and drawn at reset."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import mujoco
import numpy as np
import torch
from torch import Tensor

from deftly.config import Widened
from deftly.errors import DeftlyError
from deftly.sim.protocol import Sim
from deftly.sim.rows import Rows, wide

Quantity = Literal[
    "mass",
    "com",
    "friction",
    "restitution",
    "size",
    "damping",
    "armature",
    "frictionloss",
    "joint_offset",
    "kp",
    "kd",
    "torque",
    "latency",
    "backlash",
    "gravity",
    "light",
    "light_direction",
    "color",
    "material",
    "pattern",
    "camera_position",
    "camera_rotation",
    "fovy",
]
VISUAL = frozenset(
    (
        *("light", "light_direction", "color", "material", "pattern"),
        *("camera_position", "camera_rotation", "fovy"),
    )
)
"""Quantities that images show and the physics does not."""


@dataclass(frozen=True)
class Randomize:
    """One parameter of the model, drawn uniformly for each episode.

    Quantities and what `names` name: mass (with the inertia), com (m) of bodies; friction (sliding), restitution, size
    of geoms (boxes, spheres, cylinders, capsules; the mass stays); damping, armature, frictionloss of joints, and
    joint_offset (rad or m: by how much the link is off where sensor and servo of the joint have it); kp, kd, torque
    (limit) and latency (s) of actuators; backlash (rad or m) of the contract's joints, see `deftly.sim.backlash`;
    gravity (its magnitude; no names). What is added to a mass, a first half extent, a kp, kd or gravity scales the
    numbers that go with it.

    MuJoCo has no coefficient of restitution; what is drawn is the damping ratio z of contacts (`solref[1]`, 1 unless
    the scene says otherwise). Things bounce back with a fraction exp(-2 z atan(w / z) / w) of the speed at which they
    hit, w = sqrt(1 - z2): 0.14 at 1, 0.25 at 0.6, 0.45 at 0.3, if both geoms have the same; MuJoCo takes the mean.

    What images alone show: light (diffuse red, green, blue) and light_direction (of a unit vector) of lights; color
    (red, green, blue) of geoms, and the same as material of materials; pattern (how often the texture of one repeats);
    camera_position (m, in the frame of the body), camera_rotation (rad, a rotation vector in the camera's frame) and
    fovy (degrees) of cameras. Each component is drawn by itself; colours stay within 0 .. 1.
    """

    quantity: Quantity
    low: float
    high: float
    names: tuple[str, ...] = ()  # none means all
    op: Literal["scale", "add"] = "scale"  # the draw scales the model's value, or is added to it
    shared: bool = False  # whether the names share one draw
    without: tuple[float, float] | None = None  # part of the range that is never drawn

    def uniform(
        self, rows: Rows, generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        """Draws of the range without the part that is left out, `(rows.count, *shape)`."""
        low, high = self.without or (0.0, 0.0)
        gap = high - low
        drawn = rows.draw(generator, *shape, dtype=dtype)
        value = self.low + (self.high - self.low - gap) * drawn
        if self.without:
            value = torch.where(value < low, value, value + gap)
        return value


def widen(entry: Randomize, factor: float, only_outside: bool = False) -> Randomize:
    """An entry whose range is `factor` (1 or more) times as wide about its middle; or only what that adds to the range.

    A scale stays positive: its `low` falls no further than to `low / factor`. Latency and backlash stay 0 or more.
    """
    middle = (entry.low + entry.high) / 2
    half = factor * (entry.high - entry.low) / 2
    lowest = -math.inf
    if entry.op == "scale":
        lowest = entry.low / factor
    elif entry.quantity in ("latency", "backlash"):
        lowest = 0.0
    without = (entry.low, entry.high) if only_outside else None
    return replace(entry, low=max(lowest, middle - half), high=middle + half, without=without)


def is_of(entry: Randomize, kind: Widened) -> bool:
    """Whether an entry is of the physics, or of what images show; all are of `all`."""
    return kind == "all" or (entry.quantity in VISUAL) == (kind == "visual")


_ALL = slice(None)
# quantity -> (what names name, whether constants follow, the fields it draws with the columns that change)
_FIELDS: dict[str, tuple[str, bool, dict[str, slice]]] = {
    "mass": ("body", True, {"body_mass": _ALL, "body_inertia": _ALL}),
    "com": ("body", True, {"body_ipos": _ALL}),
    "friction": ("geom", False, {"geom_friction": slice(0, 1)}),
    "restitution": ("geom", False, {"geom_solref": slice(1, 2)}),
    "size": ("geom", False, {"geom_size": _ALL, "geom_rbound": _ALL, "geom_aabb": slice(3, 6)}),
    "damping": ("joint", False, {"dof_damping": _ALL}),
    "armature": ("joint", True, {"dof_armature": _ALL}),
    "frictionloss": ("joint", False, {"dof_frictionloss": _ALL}),
    "joint_offset": ("joint position", False, {"qpos0": _ALL}),
    "kp": ("actuator", False, {"actuator_gainprm": slice(0, 1), "actuator_biasprm": slice(1, 2)}),
    "kd": ("actuator", False, {"actuator_biasprm": slice(2, 3)}),
    "torque": ("actuator", False, {"actuator_forcerange": _ALL}),
    "latency": ("actuator", False, {"actuator_delay": _ALL}),
    "gravity": ("", False, {"opt.gravity": _ALL}),
    "light": ("light", False, {"light_diffuse": _ALL}),
    "light_direction": ("light", False, {"light_dir": _ALL}),
    "color": ("geom", False, {"geom_rgba": slice(0, 3)}),
    "material": ("material", False, {"mat_rgba": slice(0, 3)}),
    "pattern": ("material", False, {"mat_texrepeat": _ALL}),
    "camera_position": ("camera", False, {"cam_pos": _ALL}),
    "camera_rotation": ("camera", False, {"cam_quat": _ALL}),
    "fovy": ("camera", False, {"cam_fovy": _ALL}),
}
_TOGETHER = ("mass", "size", "kp", "kd", "gravity")  # several numbers of one size
_VECTORS = (  # quantities whose three components are drawn each by itself
    *("com", "light", "light_direction", "color", "material"),
    *("camera_position", "camera_rotation"),
)
_COLOURS = ("light", "color", "material")


def prepare(s: mujoco.MjSpec, entries: tuple[Randomize, ...], timestep: float) -> None:
    """Make room for the draws before the scene compiles: past commands for latency, full inertias for com."""
    for entry in entries:
        if entry.quantity == "latency":
            samples = math.ceil(entry.high / timestep - 1e-9) + 1
            for actuator in s.actuators:
                if actuator.name in entry.names or not entry.names:
                    actuator.nsample = max(actuator.nsample, samples)
        if entry.quantity == "com":
            for body in s.bodies:
                if body.name in entry.names or not entry.names:
                    body.simple = 0


class Randomizer:
    """Draws a task's `Randomize` entries for the environments that reset.

    What is drawn scales, or is added to, each environment's own nominal values: those that it has when the randomizer
    is made, which may differ between environments.
    """

    def __init__(self, sim: Sim, entries: tuple[Randomize, ...]):
        self.sim = sim
        self.constants = False
        self.fields: dict[str, Tensor] = {}
        for entry in entries:
            _, constants_follow, fields = _FIELDS[entry.quantity]
            self.constants |= constants_follow
            for name in fields:
                self.fields[name] = sim.expand(name)
        self._draws = [_Draw(sim, entry) for entry in entries]

    def draw(self, rows: Rows, generator: torch.Generator) -> None:
        """New values for some environments."""
        for draw in self._draws:
            draw(rows, generator)
        if self.constants and not rows.empty:
            self.sim.set_const(rows.mask)


class _Target:
    """Columns of a model field of some bodies, geoms, ..., and their nominal values."""

    def __init__(self, live: Tensor, elements: Tensor, columns: slice, has_elements: bool):
        count = live.shape[1] if has_elements else 1
        self._table = live.view(len(live), count, -1)  # (num_envs, elements, columns)
        self._columns = columns
        self._elements = elements
        self.nominal = self._table[:, elements, columns].clone()
        self._piece = None  # a view of them, where they are neighbours
        first, last = int(elements[0]), int(elements[-1])
        if elements.tolist() == list(range(first, last + 1)):
            self._piece = self._table[:, first : last + 1, columns]

    def write(self, rows: Rows, value: Tensor) -> None:
        """Write new values `(rows.count, elements, columns)`."""
        if self._piece is not None:
            rows.put(self._piece, value)
            return
        if rows.ids is not None:
            self._table[rows.ids[:, None], self._elements, self._columns] = value
            return
        old = self._table[:, self._elements, self._columns]
        new = torch.where(wide(rows.mask, old), value, old)
        self._table[:, self._elements, self._columns] = new


class _Draw:
    """One entry: how its values are drawn, and where they go."""

    def __init__(self, sim: Sim, entry: Randomize):
        kind, _, fields = _FIELDS[entry.quantity]
        elements = _elements(sim.model, kind, entry).to(sim.device)
        self._entry = entry
        self._dtype = sim.dtype
        self._targets = []
        for field, columns in fields.items():
            target = _Target(sim.expand(field), elements, columns, bool(kind))
            self._targets.append(target)
        draws = 1 if entry.shared else len(elements)
        axes = 3 if entry.quantity in _VECTORS else 1
        self._shape = (draws, axes)
        self._together = entry.quantity in _TOGETHER
        self._size = _size(entry, self._targets[0].nominal)
        self._check()

    def _check(self) -> None:
        """Raise DeftlyError if what is added could leave nothing of a mass, an extent, a gain."""
        entry = self._entry
        if entry.quantity == "camera_rotation" and entry.op == "scale":
            raise DeftlyError('randomize camera_rotation: give op="add": a rotation has no scale')
        if entry.op != "add" or not self._together:
            return
        short = self._size[(self._size > 0) & (self._size + entry.low <= 0)]
        if len(short):
            adding = f"adding {entry.low:g} to {short[0]:g} leaves nothing"
            raise DeftlyError(f"randomize {entry.quantity}: {adding}")

    def __call__(self, rows: Rows, generator: torch.Generator) -> None:
        """Draw for some environments."""
        value = self._entry.uniform(rows, generator, self._shape, self._dtype)
        scales = self._entry.op == "scale"
        if self._together and not scales:  # what is added to the first number scales all of them
            size = rows.take(self._size)
            value = torch.where(size > 0, 1 + value / size, 1.0)
            scales = True
        for target in self._targets:
            nominal = rows.take(target.nominal)
            target.write(rows, self._changed(nominal, value, scales).to(nominal.dtype))

    def _changed(self, nominal: Tensor, value: Tensor, scales: bool) -> Tensor:
        """Nominal values `(rows.count, elements, columns)` after a draw."""
        quantity = self._entry.quantity
        if quantity == "camera_rotation":
            return _rotated(nominal, value)
        drawn = nominal * value if scales else nominal + value
        if quantity == "light_direction":
            return drawn / drawn.norm(dim=-1, keepdim=True)
        return drawn.clip(0.0, 1.0) if quantity in _COLOURS else drawn


def _rotated(quaternion: Tensor, rotation: Tensor) -> Tensor:
    """Quaternions w x y z `(..., 4)`, each rotated in its own frame by a rotation vector `(..., 3)`, rad."""
    angle = rotation.norm(dim=-1, keepdim=True)
    half_sinc = 0.5 * torch.sinc(angle / (2 * math.pi))  # sin(angle / 2) / angle
    v = half_sinc * rotation
    c = (angle / 2).cos()
    w, u = quaternion[..., :1], quaternion[..., 1:]
    real = w * c - (u * v).sum(-1, keepdim=True)
    return torch.cat((real, w * v + c * u + torch.linalg.cross(u, v.expand_as(u))), -1)


def _size(entry: Randomize, nominal: Tensor) -> Tensor:
    """What an entry's `add` is added to, `(num_envs, elements, 1)`: the first number, or the length of gravity."""
    if entry.quantity == "gravity":
        return nominal.norm(dim=-1, keepdim=True)
    return nominal[..., :1].abs()


def _elements(model: mujoco.MjModel, kind: str, entry: Randomize) -> Tensor:
    """Indices of the bodies, geoms or actuators that an entry names; of joints, those of their degrees of freedom."""
    if not kind:
        return torch.tensor([0])
    named = kind.split()[0]
    known = _names(model, named)
    for name in entry.names:
        if name not in known:
            missing = f"no {named} '{name}' in the scene, it has {known}"
            raise DeftlyError(f"randomize {entry.quantity}: {missing}")
    if entry.names:
        ids = [known.index(name) for name in entry.names]
    else:
        ids = [i for i, name in enumerate(known) if name != "world"]
    if kind == "joint":
        ids = _degrees_of_freedom(model, ids)
    elif kind == "joint position":
        ids = model.jnt_qposadr[ids].tolist()
    return torch.tensor(ids)


def _names(model: mujoco.MjModel, kind: str) -> list[str]:
    counts = {
        "body": model.nbody,
        "geom": model.ngeom,
        "joint": model.njnt,
        "actuator": model.nu,
        "light": model.nlight,
        "material": model.nmat,
        "camera": model.ncam,
    }
    return [getattr(model, kind)(i).name for i in range(counts[kind])]


def _degrees_of_freedom(model: mujoco.MjModel, joints: list[int]) -> list[int]:
    found = []
    for joint in joints:
        found += np.flatnonzero(model.dof_jntid == joint).tolist()
    return found
