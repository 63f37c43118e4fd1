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

from deftly.contract.arrays import Array, Constants, Like, join, library, pick
from deftly.contract.robot import JOINT_POS, RobotInterface
from deftly.contract.schema import SMALLEST, ContractError, Name, NotNegative, Record

DeriveKind = Literal[
    "difference",
    "norm",
    "projected_gravity",
    "heading_frame",
    "world_frame",
    "relative_pose",
    "rate",
    "heading_error",
    "phase_clock",
    "forward_kinematics",
    "part",
]


MAX_ELEMENTS = 65_536
"""Of a value of which a part is taken."""


@dataclass(frozen=True)
class Derive(Record):
    """A value computed from signals, inputs and values derived before it.

    difference          a - b, of the same size.
    norm                length of a vector; 1 number.
    projected_gravity   of an orientation: the unit vector of gravity in the body's frame; 3 numbers.
    heading_frame       of a world vector and an orientation: the vector in the frame that shares the body's yaw alone.
    world_frame         of a vector in a body's frame and the body's orientation: the vector in the world's frame.
    relative_pose       of the poses a and b: b as seen from a; 7 numbers, its quaternion with w >= 0.
    rate                change of a value since the step before, per second; 0 at the first step of an episode.
    heading_error       of an orientation and a commanded yaw rate, rad/s: the angle from the body's heading to the
                        commanded one, rad, in -pi .. pi; 1 number. The commanded heading is the measured one at the
                        first step of an episode, and turns with the commanded yaw rate.
    phase_clock         of nothing: sine and cosine of a phase that takes `period` seconds for a turn; it is 0 at the
                        first step of an episode.
    part                of a value: `count` of its elements, from number `first` on.
    forward_kinematics  of `joint_pos`: where the interface's `site` is in the robot's base; 3 numbers, with `pose` 7.
    """

    name: Name
    kind: DeriveKind
    of: Annotated[tuple[Name, ...], Meta(max_length=2)] = ()
    period: NotNegative = 0.0
    site: Annotated[str, Meta(max_length=64)] = ""
    pose: bool = False
    first: Annotated[int, Meta(ge=0, le=MAX_ELEMENTS)] = 0
    count: Annotated[int, Meta(ge=0, le=MAX_ELEMENTS)] = 0

    LATER = frozenset(("first", "count"))

    def check(self) -> None:
        """The fields that the kind needs, and no others."""
        if self.kind == "forward_kinematics" and not self.of:
            object.__setattr__(self, "of", (JOINT_POS,))
        count = len(ARGUMENTS[self.kind])
        got = f"a {self.kind} is of {count} values, got {list(self.of)}"
        self._need(len(self.of) == count, got)
        if self.kind == "phase_clock":
            self._need(self.period >= SMALLEST, f"period is {self.period}")
        else:
            self._need(self.period == 0, f"period is {self.period}")
        kinematics = self.kind == "forward_kinematics"
        self._need(bool(self.site) == kinematics, f"site is '{self.site}'")
        if kinematics:
            self._need(self.of == (JOINT_POS,), f"forward kinematics are of '{JOINT_POS}'")
        else:
            self._need(not self.pose, "only forward kinematics give a pose")
        if self.kind == "part":
            self._need(self.count > 0, "count is 0: a part has elements")
        else:
            self._need(self.first == 0 and self.count == 0, "only a part has first and count")


ARGUMENTS: dict[str, tuple[int, ...]] = {
    "difference": (0, 0),
    "norm": (0,),
    "projected_gravity": (4,),
    "heading_frame": (3, 4),
    "world_frame": (3, 4),
    "relative_pose": (7, 7),
    "rate": (0,),
    "heading_error": (4, 1),
    "phase_clock": (),
    "forward_kinematics": (0,),
    "part": (0,),
}
"""Sizes of what each kind is computed from; 0 is any size."""
SIZES = {
    "norm": 1,
    "projected_gravity": 3,
    "heading_frame": 3,
    "world_frame": 3,
    "relative_pose": 7,
    "heading_error": 1,
    "phase_clock": 2,
}


def derived_sizes(
    derive: tuple[Derive, ...], sizes: Mapping[str, int], robot: RobotInterface
) -> dict[str, int]:
    """Number of elements of each derived value, given those of signals and inputs.

    Raises ContractError, one line, for a value of something unknown or of a wrong size, and for a name used twice.
    """
    known = dict(sizes)
    derived = {}
    for value in derive:
        _require_arguments(value, known)
        size = _size(value, known, robot)
        known[value.name] = size
        derived[value.name] = size
    return derived


def _require_arguments(value: Derive, known: Mapping[str, int]) -> None:
    """What a value is computed from is known and of the right size, and its own name is new."""
    what = f"derived value '{value.name}'"
    if value.name in known:
        raise ContractError(f"{what}: the name is taken")
    for name, size in zip(value.of, ARGUMENTS[value.kind]):
        if name not in known:
            raise ContractError(f"{what} is of '{name}', which is not known there")
        if size not in (0, known[name]):
            raise ContractError(f"{what}: '{name}' has {known[name]} elements, not {size}")


def _size(value: Derive, known: Mapping[str, int], robot: RobotInterface) -> int:
    if value.kind == "difference":
        return _common_size(value, known)
    if value.kind == "rate":
        return known[value.of[0]]
    if value.kind == "part":
        return _part_size(value, known)
    if value.kind == "forward_kinematics":
        robot.site(value.site)
        return 7 if value.pose else 3
    return SIZES[value.kind]


def _part_size(value: Derive, known: Mapping[str, int]) -> int:
    whole, last = known[value.of[0]], value.first + value.count - 1
    if last >= whole:
        elements = f"elements {value.first} to {last} of '{value.of[0]}', which has {whole}"
        raise ContractError(f"derived value '{value.name}' is of {elements}")
    return value.count


def _common_size(value: Derive, known: Mapping[str, int]) -> int:
    a, b = value.of
    if known[a] != known[b]:
        sizes = f"{a} has {known[a]} elements, {b} has {known[b]}"
        raise ContractError(f"derived value '{value.name}': {sizes}")
    return known[a]


# ---------------------------------------------------------------- the kinds


def difference(a: Array, b: Array) -> Array:
    """`a - b`."""
    return a - b


def norm(vector: Array) -> Array:
    """Length of the vector, `(..., 1)`."""
    xp = library(vector)
    length = xp.sqrt((vector * vector).sum(-1))
    return length[..., None]


class _Products:
    """Of an orientation w x y z, `shift + scale * (first + sign * second)` with products of two elements each.

    All elements of the result are computed at once: a control step of one robot is many operations on few numbers, and
    what it takes is how many they are.

    Args:
        like: Makes the arrays.
        first: A product for each element of the result, such as `wy`.
        second: As many more.
        sign: With which sign the second ones are added.
        scale: What the sums are multiplied by.
        shift: What is added to that.
    """

    def __init__(
        self,
        like: Like,
        first: tuple[str, ...],
        sign: tuple[float, ...],
        second: tuple[str, ...],
        scale: tuple[float, ...],
        shift: tuple[float, ...],
    ):
        products = [*first, *second]
        self._count = len(first)
        self._factors = like.indices(["wxyz".index(product[0]) for product in products])
        self._others = like.indices(["wxyz".index(product[1]) for product in products])
        self._sign = like.numbers(sign)
        self._scale = like.numbers(scale)
        self._shift = like.numbers(shift)

    def of(self, orientation: Array) -> Array:
        """The result, `(..., count)`."""
        products = pick(orientation, self._factors) * pick(orientation, self._others)
        sums = products[..., : self._count] + self._sign * products[..., self._count :]
        return self._shift + self._scale * sums


_GRAVITY = Constants(
    lambda like: _Products(
        like,
        ("wy", "wx", "xx"),
        (-1.0, 1.0, 1.0),
        ("xz", "yz", "yy"),
        scale=(2.0, -2.0, 2.0),
        shift=(0.0, 0.0, -1.0),
    )
)
_FORWARD = Constants(
    lambda like: _Products(
        like,
        ("yy", "wz"),
        (1.0, 1.0),
        ("zz", "xy"),
        scale=(-2.0, 2.0),
        shift=(1.0, 0.0),
    )
)
"""The body's forward axis, projected on the horizontal plane."""
_AHEAD = Constants(lambda like: like.numbers((1.0, 0.0)))


def projected_gravity(orientation: Array) -> Array:
    """The world's downward unit vector in the body's frame, `(..., 3)`."""
    return _GRAVITY.like(orientation).of(orientation)


def heading_frame(vector: Array, orientation: Array) -> Array:
    """A world vector in the frame turned about the vertical by the body's yaw, `(..., 3)`.

    A body whose forward axis is vertical has no yaw: its frame is then the world's.
    """
    xp = library(vector)
    forward = _FORWARD.like(orientation).of(orientation)
    x = forward[..., :1]
    y = forward[..., 1:]
    length = xp.sqrt(x * x + y * y)
    has_yaw = length > 1e-6
    unit = forward / xp.where(has_yaw, length, length + 1.0)
    unit = xp.where(has_yaw, unit, length * 0.0 + _AHEAD.like(length))
    cosine = unit[..., :1]
    sine = unit[..., 1:]
    turned = join((vector[..., 1:2], -vector[..., :1]))
    return join((cosine * vector[..., :2] + sine * turned, vector[..., 2:]))


def world_frame(vector: Array, orientation: Array) -> Array:
    """A vector in a body's frame in the world's frame, `(..., 3)`."""
    return rotate(orientation, vector)


def yaw(orientation: Array) -> Array:
    """Angle of the body's forward axis about the vertical, rad in -pi .. pi, `(..., 1)`."""
    forward = _FORWARD.like(orientation).of(orientation)
    return library(orientation).arctan2(forward[..., 1:], forward[..., :1])


def angle_between(start: Array, end: Array) -> Array:
    """The angle by which one turns from `start` to `end`, rad in -pi .. pi."""
    xp = library(start)
    turn = end - start
    return xp.arctan2(xp.sin(turn), xp.cos(turn))


def relative_pose(a: Array, b: Array) -> Array:
    """The pose `b` as seen from the pose `a`, `(..., 7)`; both in one frame. Its quaternion has w >= 0."""
    inverse = join((a[..., 3:4], -a[..., 4:7]))
    offset = b[..., :3] - a[..., :3]
    position = rotate(inverse, offset)
    quat = multiply(inverse, b[..., 3:])
    return join((position, with_positive_w(quat)))


def with_positive_w(quat: Array) -> Array:
    """Of the two quaternions of one rotation, the one with w >= 0."""
    negative = quat[..., :1] < 0.0
    return library(quat).where(negative, -quat, quat)


def multiply(a: Array, b: Array) -> Array:
    """Product of quaternions, `(..., 4)`: first b, then a."""
    aw, ax, ay, az = _columns(a)
    bw, bx, by, bz = _columns(b)
    product = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return join(product)


def rotate(quat: Array, vector: Array) -> Array:
    """The vector `(..., 3)` rotated by a unit quaternion."""
    w = quat[..., :1]
    axis = _cyclic(quat[..., 1:])
    twice = 2.0 * _cross(axis, _cyclic(vector))
    return vector + w * twice + _cross(axis, _cyclic(twice))


def _cyclic(vector: Array) -> Array:
    """x y z x y: of it, both y z x and z x y are views."""
    return join((vector, vector[..., :2]))


def _cross(a: Array, b: Array) -> Array:
    """Cross product, `(..., 3)`, of cyclic vectors."""
    return a[..., 1:4] * b[..., 2:] - a[..., 2:] * b[..., 1:4]


def _columns(value: Array) -> list[Array]:
    """Views of each element of the last axis, `(..., 1)`."""
    return [value[..., i : i + 1] for i in range(value.shape[-1])]


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "difference": difference,
    "norm": norm,
    "projected_gravity": projected_gravity,
    "heading_frame": heading_frame,
    "world_frame": world_frame,
    "relative_pose": relative_pose,
}
