"""Values that are computed from what is measured: the closed list of kinds, the same code on numpy and torch.

They are computed after the sensors' noise, in training as on the robot, so a driver never has to repeat geometry.
Vectors are in m and the last axis; orientations are unit quaternions w x y z that turn the body's frame into the
world's; a pose is 7 numbers, position and quaternion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from deftly.contract.arrays import Array, join, library
from deftly.contract.robot import JOINT_POS, RobotInterface
from deftly.contract.schema import SMALLEST, ContractError, Name, NotNegative, Record

DeriveKind = Literal[
    "difference",
    "norm",
    "projected_gravity",
    "heading_frame",
    "relative_pose",
    "phase_clock",
    "forward_kinematics",
]


@dataclass(frozen=True)
class Derive(Record):
    """A value computed from signals, inputs and values derived before it.

    difference          a - b, of the same size.
    norm                length of a vector; 1 number.
    projected_gravity   of an orientation: the unit vector of gravity in the body's frame; 3 numbers.
    heading_frame       of a world vector and an orientation: the vector in the frame that shares the body's yaw alone.
    relative_pose       of the poses a and b: b as seen from a; 7 numbers, its quaternion with w >= 0.
    phase_clock         of nothing: sine and cosine of a phase that takes `period` seconds for a turn; it is 0 at the
                        first step of an episode.
    forward_kinematics  of `joint_pos`: where the interface's `site` is in the robot's base; 3 numbers, with `pose` 7.
    """

    name: Name
    kind: DeriveKind
    of: Annotated[tuple[Name, ...], Meta(max_length=2)] = ()
    period: NotNegative = 0.0
    site: Annotated[str, Meta(max_length=64)] = ""
    pose: bool = False

    def check(self) -> None:
        """The fields that the kind needs, and no others."""
        if self.kind == "forward_kinematics" and not self.of:
            object.__setattr__(self, "of", (JOINT_POS,))
        wanted = len(ARGUMENTS[self.kind])
        self._need(
            len(self.of) == wanted, f"a {self.kind} is of {wanted} values, got {list(self.of)}"
        )
        clock, kinematics = self.kind == "phase_clock", self.kind == "forward_kinematics"
        self._need(
            self.period >= SMALLEST if clock else self.period == 0, f"period is {self.period}"
        )
        self._need(bool(self.site) == kinematics, f"site is '{self.site}'")
        self._need(kinematics or not self.pose, "only forward kinematics give a pose")
        self._need(
            not kinematics or self.of == (JOINT_POS,), f"forward kinematics are of '{JOINT_POS}'"
        )


ARGUMENTS: dict[str, tuple[int, ...]] = {
    "difference": (0, 0),
    "norm": (0,),
    "projected_gravity": (4,),
    "heading_frame": (3, 4),
    "relative_pose": (7, 7),
    "phase_clock": (),
    "forward_kinematics": (0,),
}
"""Sizes of what each kind is computed from; 0 is any size."""
SIZES = {
    "norm": 1,
    "projected_gravity": 3,
    "heading_frame": 3,
    "relative_pose": 7,
    "phase_clock": 2,
}


def derived_sizes(
    derive: tuple[Derive, ...], sizes: Mapping[str, int], robot: RobotInterface
) -> dict[str, int]:
    """Number of elements of each derived value, given those of signals and inputs.

    Raises ContractError, one line, for a value of something unknown or of a wrong size, and for a name used twice.
    """
    known, found = dict(sizes), {}
    for d in derive:
        if d.name in known:
            raise ContractError(f"derived value '{d.name}': the name is taken")
        for name, wanted in zip(d.of, ARGUMENTS[d.kind]):
            if name not in known:
                raise ContractError(
                    f"derived value '{d.name}' is of '{name}', which is not known there"
                )
            if wanted not in (0, known[name]):
                raise ContractError(
                    f"derived value '{d.name}': '{name}' has {known[name]} elements, not {wanted}"
                )
        known[d.name] = found[d.name] = _size(d, known, robot)
    return found


def _size(d: Derive, known: Mapping[str, int], robot: RobotInterface) -> int:
    if d.kind == "difference":
        a, b = (known[name] for name in d.of)
        if a != b:
            raise ContractError(
                f"derived value '{d.name}': {d.of[0]} has {a} elements, {d.of[1]} has {b}"
            )
        return a
    if d.kind == "forward_kinematics":
        robot.site(d.site)
        return 7 if d.pose else 3
    return SIZES[d.kind]


# ---------------------------------------------------------------- the kinds


def difference(a: Array, b: Array) -> Array:
    """`a - b`."""
    return a - b


def norm(vector: Array) -> Array:
    """Length of the vector, `(..., 1)`."""
    return library(vector).sqrt((vector * vector).sum(-1))[..., None]


def projected_gravity(orientation: Array) -> Array:
    """The world's downward unit vector in the body's frame, `(..., 3)`."""
    w, x, y, z = (orientation[..., i] for i in range(4))
    parts = (2.0 * (w * y - x * z), -2.0 * (w * x + y * z), 2.0 * (x * x + y * y) - 1.0)
    return library(orientation).stack(parts, -1)


def heading_frame(vector: Array, orientation: Array) -> Array:
    """A world vector in the frame turned about the vertical by the body's yaw, `(..., 3)`.

    A body whose forward axis is vertical has no yaw: its frame is then the world's.
    """
    xp = library(vector)
    w, x, y, z = (orientation[..., i] for i in range(4))
    east, north = (
        1.0 - 2.0 * (y * y + z * z),
        2.0 * (w * z + x * y),
    )  # the body's forward axis from above
    length = xp.sqrt(east * east + north * north)
    upright = length > 1e-6
    safe = xp.where(upright, length, length + 1.0)
    cosine, sine = (
        xp.where(upright, east / safe, length * 0.0 + 1.0),
        xp.where(upright, north / safe, length * 0.0),
    )
    forward = cosine * vector[..., 0] + sine * vector[..., 1]
    left = cosine * vector[..., 1] - sine * vector[..., 0]
    return xp.stack((forward, left, vector[..., 2]), -1)


def relative_pose(a: Array, b: Array) -> Array:
    """The pose `b` as seen from the pose `a`, `(..., 7)`; both in one frame. Its quaternion has w >= 0."""
    back = join((a[..., 3:4], -a[..., 4:7]))
    position = rotate(back, b[..., :3] - a[..., :3])
    turn = multiply(back, b[..., 3:])
    return join((position, with_positive_w(turn)))


def with_positive_w(quat: Array) -> Array:
    """Of the two quaternions that mean the same turn, the one with w >= 0."""
    return library(quat).where(quat[..., :1] < 0.0, -quat, quat)


def multiply(a: Array, b: Array) -> Array:
    """Product of quaternions, `(..., 4)`: first b, then a."""
    aw, ax, ay, az = (a[..., i] for i in range(4))
    bw, bx, by, bz = (b[..., i] for i in range(4))
    parts = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return library(a).stack(parts, -1)


def rotate(quat: Array, vector: Array) -> Array:
    """The vector `(..., 3)` turned by a unit quaternion."""
    axis, w = quat[..., 1:], quat[..., :1]
    twice = 2.0 * cross(axis, vector)
    return vector + w * twice + cross(axis, twice)


def cross(a: Array, b: Array) -> Array:
    """Cross product, `(..., 3)`."""
    ax, ay, az = (a[..., i] for i in range(3))
    bx, by, bz = (b[..., i] for i in range(3))
    return library(a).stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), -1)


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "difference": difference,
    "norm": norm,
    "projected_gravity": projected_gravity,
    "heading_frame": heading_frame,
    "relative_pose": relative_pose,
}
