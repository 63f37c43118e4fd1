"""What a task sees of the simulation: quantities by name, for all environments at once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, cast

import mujoco
import torch
from torch import Tensor

from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.sim.protocol import STATE_FIELDS, Sim
from deftly.sim.rows import Rows, wide

EPISODE = ("steps", "action", "last_action", "command")
"""Attributes of a `State` that start anew with an episode: tensors of all environments."""

_OF_FIELD = {
    "body": "body",
    "geom": "geom",
    "site": "site",
    "actuator": "actuator",
    "cam": "camera",
}


class State:
    """The state of `num_envs` environments, by names.

    Every tensor leads with `num_envs` and is of `dtype` on `device`, the engine's, if nothing else is said. Those of
    the simulation are live: they are to be read, and change with the next step; what a reset writes goes through
    `set_joint_pos` and `place`. A `mask (num_envs,)` says which environments are written. Where it is False, values are
    computed and left out, so that nothing waits for a GPU.

    Attributes:
        dt: control period, s.
        episode_steps: control steps of a full episode.
        steps: control steps of the episode so far, `(num_envs,)` int64.
        action, last_action: the policy's actions of this step and the one before, `(num_envs, action_size)` float32.
        command: joint commands, `(num_envs, num_joints)` float32, rad or m.
        store: what the task carries between steps; it is saved with the environment, and zero when an episode starts.
        scale: factors set by the task's curriculum; that of a reward term's name scales its weight.
        generator: of all random draws.
        everyone: of a part, the mask `(num_envs,)` of all of it; None of the whole.
    """

    def __init__(self, sim: Sim, contract: PolicyContract, episode_steps: int):
        self.sim = sim
        self.num_envs = sim.num_envs
        self.device = sim.device
        self.dtype = sim.dtype
        self.dt = 1.0 / contract.rate
        self.episode_steps = episode_steps
        self.generator = torch.Generator(device=self.device)
        self.steps = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
        self.action = torch.zeros(self.num_envs, contract.action_size, device=self.device)
        self.last_action = self.action
        self.command = torch.zeros(self.num_envs, len(contract.joint_names), device=self.device)
        self.store: dict[str, Tensor] = {}
        self.scale: dict[str, float] = {}
        self._views: dict[tuple[str, str], Tensor] = {}
        self._joined: dict[tuple[str, tuple[str, ...]], Tensor | None] = {}
        self._constants: dict[Any, Tensor] = {}
        self._places: dict[tuple[str, str], Any] = {}
        self._pieces: dict[tuple[str, tuple[str, ...]], _Piece | None] = {}
        self._rows: Rows | None = None
        self.everyone: Tensor | None = None
        self._joints = _JointMap(sim.model, contract.joint_names)

    def part(self, rows: Rows) -> tuple[State, Tensor]:
        """Some environments alone, and a mask of them there; see `StatePart`.

        On a GPU, and for all environments, that is the state itself with the mask of `rows`.
        """
        if rows.ids is None or rows.count == self.num_envs:
            return self, rows.mask
        everyone = torch.ones(rows.count, dtype=torch.bool)
        return StatePart(self, rows, everyone), everyone

    def write_back(self) -> None:
        """Of a part, put what was written into the whole; the whole has it."""

    # ------------------------------------------------------------------------------- the robot's joints

    @property
    def joint_pos(self) -> Tensor:
        """Positions of the contract's joints, `(num_envs, num_joints)`, rad or m, in the contract's order."""
        return self._columns("qpos", self._joints.qpos)

    @property
    def joint_vel(self) -> Tensor:
        """Velocities of the contract's joints, `(num_envs, num_joints)`, rad/s or m/s."""
        return self._columns("qvel", self._joints.dofs)

    @property
    def joint_torque(self) -> Tensor:
        """Forces of the contract's actuators in the last substep, `(num_envs, num_joints)`, N m or N."""
        return self._columns("actuator_force", self._joints.actuators)

    def set_joint_pos(self, mask: Tensor, value: Tensor) -> None:
        """Write the positions of the contract's joints, `(num_envs, num_joints)`, where `mask` is True."""
        self._write("qpos", self._joints.qpos, mask, value)

    def set_targets(self, value: Tensor, mask: Tensor | None = None) -> None:
        """Write what the contract's actuators are to hold, `(num_envs, num_joints)`, rad or m."""
        self._write("ctrl", self._joints.actuators, mask, value)

    def joint(self, name: str) -> Tensor:
        """Position of any hinge or slide joint, `(num_envs,)`, rad or m."""
        return self._view("qpos", "joint", name)

    # ------------------------------------------------------------------------------- bodies, sites, sensors

    def pose(self, body: str) -> Tensor:
        """Pose of a free body, `(num_envs, 7)`: position in the world, m, and quaternion w x y z."""
        return self._view("qpos", "free", body)

    def velocity(self, body: str) -> Tensor:
        """Velocity of a free body, `(num_envs, 6)`: linear in the world, m/s, and angular in its own frame, rad/s."""
        return self._view("qvel", "free", body)

    def poses(self, bodies: tuple[str, ...]) -> Tensor:
        """Poses of several free bodies, `(num_envs, len(bodies), 7)`; see `pose`."""
        return self._views_of("qpos", "free", bodies)

    def velocities(self, bodies: tuple[str, ...]) -> Tensor:
        """Velocities of several free bodies, `(num_envs, len(bodies), 6)`; see `velocity`."""
        return self._views_of("qvel", "free", bodies)

    def place(
        self, body: str, mask: Tensor, position: Tensor, quaternion: Tensor | None = None
    ) -> None:
        """Put a free body or a mocap body somewhere where `mask` is True.

        `position (num_envs, 3)` in the world, m; `quaternion (num_envs, 4)` w x y z, of length 1, None keeps its own.
        """
        mocap = self._place("mocap_pos", "mocap", body)
        if mocap >= 0:
            self._assign(self.sim.bind("mocap_pos")[:, mocap], mask, position)
            if quaternion is not None:
                self._assign(self.sim.bind("mocap_quat")[:, mocap], mask, quaternion)
            return
        pose = self.pose(body)
        self._assign(pose[:, :3], mask, position)
        if quaternion is not None:
            self._assign(pose[:, 3:], mask, quaternion)

    def place_one(self, bodies: tuple[str, ...], which: Tensor, mask: Tensor, pose: Tensor) -> None:
        """Put one of several free bodies at `pose (num_envs, 7)` where `mask` is True; see `pose`.

        `which (num_envs,)` int64 is its place in `bodies`.
        """
        poses = self.poses(bodies)
        place = which[:, None, None].expand(-1, 1, pose.shape[-1])
        wanted = pose[:, None].to(poses.dtype)
        poses.scatter_(1, place, torch.where(wide(mask, wanted), wanted, poses.gather(1, place)))
        if self._joined["qpos", bodies] is None:  # a copy
            for i, body in enumerate(bodies):
                self.pose(body)[:] = poses[:, i]

    def body(self, name: str) -> Tensor:
        """World position of a body's frame, `(num_envs, 3)`, m."""
        return self._view("xpos", "body", name)

    def bodies(self, names: tuple[str, ...]) -> Tensor:
        """World positions of the frames of several bodies, `(num_envs, len(names), 3)`, m."""
        return self._views_of("xpos", "body", names)

    def orientation(self, name: str) -> Tensor:
        """Orientation of a body's frame in the world, `(num_envs, 4)`, quaternion w x y z."""
        return self._view("xquat", "body", name)

    def site(self, name: str) -> Tensor:
        """World position of a site, `(num_envs, 3)`, m."""
        return self._view("site_xpos", "site", name)

    def sensor(self, name: str) -> Tensor:
        """Output of a sensor, `(num_envs, k)`; forces are those of the last substep."""
        return self._view("sensordata", "sensor", name)

    def sensors(self, names: tuple[str, ...]) -> Tensor:
        """Outputs of several sensors of one size, `(num_envs, len(names), k)`."""
        return self._views_of("sensordata", "sensor", names)

    def parameter(self, field: str, name: str) -> Tensor:
        """Each environment's value of an MjModel field: `parameter("geom_size", "cube")` is `(num_envs, 3)`.

        The field's prefix says what is named: a body, geom, site, camera or actuator.
        """
        prefix = field.partition("_")[0]
        if prefix not in _OF_FIELD:
            raise DeftlyError(f"State.parameter knows fields of {[*_OF_FIELD]}, not '{field}'")
        if (field, name) not in self._views:
            place = self._place(field, _OF_FIELD[prefix], name)
            self._views[field, name] = self.sim.expand(field)[:, place]
        return self._views[field, name]

    # ------------------------------------------------------------------------------- memory and draws

    def zeros(self, name: str, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of the store, `(num_envs, *size)`, made of zeros the first time."""
        if name not in self.store:
            shape = (self.num_envs, *size)
            self.store[name] = torch.zeros(shape, dtype=dtype or self.dtype, device=self.device)
        return self.store[name]

    def remember(self, name: str, mask: Tensor, value: Tensor | float) -> None:
        """Write rows of a tensor of the store where `mask` is True; `value (num_envs, ...)` gives it its shape."""
        size = value.shape[1:] if isinstance(value, Tensor) else ()
        self._assign(self.zeros(name, *size), mask, value)

    def uniform(self, mask: Tensor, low: float, high: float, *size: int) -> Tensor:
        """Draws between `low` and `high`, `(num_envs, *size)`; meaningless where `mask` is False."""
        rows = self._rows_of(mask)
        drawn = low + (high - low) * rows.draw(self.generator, *size, dtype=self.dtype)
        if rows.count == self.num_envs:
            return drawn
        out = torch.zeros(self.num_envs, *size, dtype=self.dtype, device=self.device)
        rows.put(out, drawn)
        return out

    def tensor(self, value: Any) -> Tensor:
        """Numbers (a number, a tuple, a tuple of tuples) as a tensor of the state's type; made once for each value."""
        if value not in self._constants:
            self._constants[value] = torch.tensor(value, dtype=self.dtype, device=self.device)
        return self._constants[value]

    # -------------------------------------------------------------------------------

    def _rows_of(self, mask: Tensor) -> Rows:
        if self._rows is None or self._rows.mask is not mask:
            self._rows = Rows(mask)
        return self._rows

    def _columns(self, field: str, columns: _Columns) -> Tensor:
        return self.sim.bind(field)[:, columns.on(self.device)]

    def _write(self, field: str, columns: _Columns, mask: Tensor | None, value: Tensor) -> None:
        live = self.sim.bind(field)
        where = columns.on(self.device)
        value = value.to(live.dtype)
        if mask is not None and mask is not self.everyone:
            value = torch.where(mask[:, None], value, live[:, where])
        live[:, where] = value

    def _assign(self, target: Tensor, mask: Tensor, value: Tensor | float) -> None:
        """Write `value` into a view where `mask` is True."""
        if mask is self.everyone:
            target[:] = value
            return
        if isinstance(value, Tensor):
            value = value.to(target.dtype)
        target.copy_(torch.where(wide(mask, target), value, target))

    def _view(self, field: str, kind: str, name: str) -> Tensor:
        if (field, name) not in self._views:
            self._views[field, name] = self.sim.bind(field)[:, self._place(field, kind, name)]
        return self._views[field, name]

    def _piece(self, field: str, kind: str, names: tuple[str, ...]) -> _Piece | None:
        """Where several things stand, if that is one piece."""
        if (field, names) not in self._pieces:
            places = [self._place(field, kind, name) for name in names]
            self._pieces[field, names] = _one_piece(places)
        return self._pieces[field, names]

    def _place(self, field: str, kind: str, name: str) -> Any:
        """Where a named thing stands in a field: an index or a slice."""
        if (field, name) not in self._places:
            self._places[field, name] = _FIND[kind](self.sim.model, field, name)
        return self._places[field, name]

    def _views_of(self, field: str, kind: str, names: tuple[str, ...]) -> Tensor:
        """Several views side by side, `(num_envs, len(names), k)`: live where they lie in one piece."""
        if (field, names) not in self._joined:
            piece = self._piece(field, kind, names)
            self._joined[field, names] = None if piece is None else piece.of(self.sim.bind(field))
        joined = self._joined[field, names]
        if joined is None:
            return torch.stack([self._view(field, kind, name) for name in names], 1)
        return joined


class StatePart(State):
    """Some environments of a `State`: what a task sees of those whose episodes start or end.

    Tensors lead with their number, which is `num_envs` here. They are copies, made when they are first asked for:
    `write_back` puts the store, the simulation's state, its model's fields and `EPISODE` into the whole.
    """

    def __init__(self, whole: State, rows: Rows, everyone: Tensor):
        self._whole = whole
        self._taken = rows
        self.everyone = everyone
        self._copies = _SimPart(whole.sim, rows)
        self.sim = cast(Sim, self._copies)
        self.num_envs = rows.count
        self.device = whole.device
        self.dtype = whole.dtype
        self.dt = whole.dt
        self.episode_steps = whole.episode_steps
        self.generator = whole.generator
        self.store = _StorePart(whole.store, rows)
        self.scale = whole.scale
        self._views = {}
        self._joined = {}
        self._constants = whole._constants
        self._places = whole._places
        self._pieces = whole._pieces
        self._rows = None
        self._joints = whole._joints

    def __getattr__(self, name: str) -> Tensor:
        if name not in EPISODE:
            raise AttributeError(f"'State' has no attribute '{name}'")
        value = self._taken.take(getattr(self._whole, name))
        setattr(self, name, value)
        return value

    def write_back(self) -> None:
        """Put what was written into the whole."""
        for name in EPISODE:
            if name in vars(self):
                self._taken.put(getattr(self._whole, name), getattr(self, name))
        for name, value in self.store.items():
            like = self._whole.zeros(name, *value.shape[1:], dtype=value.dtype)
            self._taken.put(like, value)
        self._copies.write_back()


class _StorePart(dict[str, Tensor]):
    """Some rows of a store, each tensor copied when it is first asked for."""

    def __init__(self, whole: dict[str, Tensor], rows: Rows):
        super().__init__()
        self._whole = whole
        self._taken = rows

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._whole

    def __missing__(self, name: str) -> Tensor:
        value = self[name] = self._taken.take(self._whole[name])
        return value


class _SimPart:
    """Fields of some environments of a simulation, each copied when it is first asked for."""

    def __init__(self, whole: Sim, rows: Rows):
        self.model = whole.model
        self.num_envs = rows.count
        self.device = whole.device
        self.dtype = whole.dtype
        self._whole = whole
        self._taken = rows
        self._bound: dict[str, Tensor] = {}
        self._expanded: dict[str, Tensor] = {}

    def bind(self, field: str) -> Tensor:
        """Copy of an MjData field, `(count, ...)`."""
        if field not in self._bound:
            self._bound[field] = self._taken.take(self._whole.bind(field))
        return self._bound[field]

    def expand(self, field: str) -> Tensor:
        """Copy of each environment's values of an MjModel field, `(count, ...)`."""
        if field not in self._expanded:
            self._expanded[field] = self._taken.take(self._whole.expand(field))
        return self._expanded[field]

    def write_back(self) -> None:
        """Put the fields of the state and of the model into the whole."""
        for field, value in self._bound.items():
            if field in STATE_FIELDS:
                self._taken.put(self._whole.bind(field), value)
        for field, value in self._expanded.items():
            self._taken.put(self._whole.expand(field), value)


class _Columns:
    """Columns of a field: a slice where they are in one piece, which is a live view, and else indices."""

    def __init__(self, ids: list[int]):
        self._ids = torch.tensor(ids)
        self._slice = None
        first = ids[0]
        stop = ids[-1] + 1
        if ids == list(range(first, stop)):
            self._slice = slice(first, stop)

    def on(self, device: torch.device) -> slice | Tensor:
        """The columns, for tensors on a device."""
        if self._slice is not None:
            return self._slice
        if self._ids.device != device:
            self._ids = self._ids.to(device)
        return self._ids


class _JointMap:
    """Where the contract's joints stand in MuJoCo's arrays: a floating base comes before them, objects wherever."""

    def __init__(self, model: mujoco.MjModel, names: tuple[str, ...]):
        joints = {model.joint(i).name: i for i in range(model.njnt)}
        actuators = {model.actuator(i).name: i for i in range(model.nu)}
        for name in names:
            if name not in joints:
                missing = f"the scene has no joint '{name}', which the contract names"
                raise DeftlyError(f"{missing}: it has {[*joints]}")
            if name not in actuators:
                missing = f"the scene has no actuator '{name}', which the contract commands"
                raise DeftlyError(missing)
        ids = [joints[name] for name in names]
        self.qpos = _Columns([int(model.jnt_qposadr[i]) for i in ids])
        self.dofs = _Columns([int(model.jnt_dofadr[i]) for i in ids])
        self.actuators = _Columns([actuators[name] for name in names])


def _named(model: mujoco.MjModel, kind: str, name: str) -> Any:
    try:
        return getattr(model, kind)(name)
    except KeyError as error:
        raise DeftlyError(" ".join(str(error.args[0]).split())) from None


def _single(kind: str):
    return lambda model, _, name: _named(model, kind, name).id


def _sensor(model: mujoco.MjModel, _: str, name: str) -> slice:
    sensor = _named(model, "sensor", name)
    first = int(sensor.adr[0])
    return slice(first, first + int(sensor.dim[0]))


class _Piece(NamedTuple):
    """Neighbouring columns or rows of a field: of several things, each a slice, or each a single one."""

    start: int
    stop: int
    things: int
    are_slices: bool

    def of(self, live: Tensor) -> Tensor:
        """View of the field's values `(num_envs, things, k)`."""
        whole = live[:, self.start : self.stop]
        return whole.unflatten(1, (self.things, -1)) if self.are_slices else whole


def _one_piece(places: list[int] | list[slice]) -> _Piece | None:
    """Columns or rows of a field as one piece; None if they do not follow each other."""
    slices = [p if isinstance(p, slice) else slice(p, p + 1) for p in places]
    for before, after in pairwise(slices):
        if before.stop != after.start or _length(before) != _length(after):
            return None
    return _Piece(slices[0].start, slices[-1].stop, len(places), isinstance(places[0], slice))


def _length(part: slice) -> int:
    return part.stop - part.start


def _hinge(model: mujoco.MjModel, field: str, name: str) -> int:
    joint = _named(model, "joint", name)
    scalar = (mujoco.mjtJoint.mjJNT_HINGE.value, mujoco.mjtJoint.mjJNT_SLIDE.value)
    if joint.type[0] not in scalar:
        raise DeftlyError(f"joint '{name}' is no hinge or slide: ask for the pose of its body")
    address = joint.qposadr if field == "qpos" else joint.dofadr
    return int(address[0])


def _free(model: mujoco.MjModel, field: str, name: str) -> slice:
    """The columns of a free body: 7 of qpos, 6 of qvel."""
    body = _named(model, "body", name)
    joint = int(body.jntadr[0])
    if joint < 0 or model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_FREE.value:
        raise DeftlyError(f"body '{name}' is not free: State.body gives the position of any body")
    if field == "qpos":
        first = int(model.jnt_qposadr[joint])
        return slice(first, first + 7)
    first = int(model.jnt_dofadr[joint])
    return slice(first, first + 6)


_FIND: dict[str, Any] = {
    "body": _single("body"),
    "site": _single("site"),
    "sensor": _sensor,
    "joint": _hinge,
    "free": _free,
    "mocap": lambda model, _, name: int(_named(model, "body", name).mocapid[0]),
    "geom": _single("geom"),
    "actuator": _single("actuator"),
    "camera": _single("camera"),
}
