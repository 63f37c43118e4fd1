"""What a robot is and measures: joints, signals, couplings, motors, sites, limits. No policy, no rate, no bus."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from msgspec import Meta

from deftly.contract.arrays import Array, Constants, Like, clip, pick
from deftly.contract.faults import Fault
from deftly.contract.schema import (
    SMALLEST,
    ContractError,
    Document,
    Name,
    NotNegative,
    Number,
    Positive,
    Quaternion,
    Record,
    Text,
    Vector,
)

JOINT_POS = "joint_pos"
"""The signal that every robot has: the position of each joint, in their order."""
COMMAND, ACTION = "command", "action"
"""What a policy can see beside signals: the last joint targets, and the last filtered action."""
MAX_SIZE = 4096
"""Elements of the largest signal of numbers."""
USUAL_LEAD = 0.5
"""Largest tracking error of a joint that names none, rad; of a slide this part of its range."""
MAX_IMAGE = 1 << 24
"""Bytes of all images of a robot together, once."""
ROUNDING = 1e-6
"""How far beyond a joint's limit a target may be, rad (m): what another library's rounding can make of it."""
EPSILON = 2.0**-23
"""Of float32, in which targets are given: a limit of 100 rad is rounded by more than `ROUNDING`."""

Count = Annotated[int, Meta(ge=1, le=MAX_SIZE)]
if TYPE_CHECKING:  # one whole number, for a shape of one axis, is taken too
    Shape = Any
else:
    Shape = Annotated[tuple[Count, ...], Meta(min_length=1, max_length=3)]


@dataclass(frozen=True)
class Joint(Record):
    """One commanded joint: limits, home and top speed, in rad and rad/s (m and m/s for a slide).

    `slack` is how far beyond the limits of its commands the joint can be, as a hand's that something pushes; 0 if those
    are its mechanical stops. A joint that `grips` closes on what it holds, lower limit closed: it presses, so its
    command may be any distance ahead of it.

    What the safety kernel may expect of it, 0: nothing. `acceleration`: the largest of its commands, rad/s^2. `lead`:
    how far its command may be from where it is measured, rad (0: `USUAL_LEAD`, or what is known of its motors).
    `frozen`: how far its command may move while its encoder gives the very same number, rad. `excitation`: the
    standard deviation of its command over a second from which on it must be found to move with it, rad.
    """

    name: Name
    lower: Number
    upper: Number
    home: Number
    velocity: Positive
    units: Text = "rad"
    slack: NotNegative = 0.0
    grips: bool = False
    acceleration: NotNegative = 0.0
    lead: NotNegative = 0.0
    frozen: NotNegative = 0.0
    excitation: NotNegative = 0.0

    LATER = frozenset(("acceleration", "lead", "frozen", "excitation"))
    GUARDS: ClassVar[tuple[str, ...]] = ("lead", "frozen", "excitation")
    """Bounds by which the safety kernel finds a fault of the joint, and which change no command."""

    def check(self) -> None:
        """Limits in order, home within them."""
        self._need(self.upper - self.lower >= SMALLEST, f"has limits {self.lower} .. {self.upper}")
        inside = self.lower <= self.home <= self.upper
        self._need(inside, f"home {self.home} is outside {self.lower} .. {self.upper}")

    def as_trained(self, trained: Self) -> Self:
        """This joint with what guards another, where it is guarded no less."""
        unit = 1.0 if self.units == "rad" else self.upper - self.lower
        usual = {"lead": USUAL_LEAD * unit}
        looser = {}
        for name in self.GUARDS:
            own, other = getattr(self, name), getattr(trained, name)
            if 0.0 < own <= (other or usual.get(name, math.inf)):
                looser[name] = other
        return replace(self, **looser)


@dataclass(frozen=True)
class Signal(Record):
    """Something the robot measures: numbers, or an image `(height, width, 3)` of `uint8`.

    A shape of one whole number n is (n,).
    """

    name: Name
    shape: Shape
    units: Text = ""
    frame: Text = ""
    dtype: Literal["float32", "uint8"] = "float32"

    @property
    def is_image(self) -> bool:
        """Whether this is a camera's image."""
        return self.dtype == "uint8"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def check(self) -> None:
        """A vector of numbers, or an image of three channels."""
        shape = f"has shape {self.shape}"
        if not self.is_image:
            is_vector = len(self.shape) == 1
            self._need(is_vector, f"{shape}: a signal of numbers is a vector (n,)")
            return
        has_channels = len(self.shape) == 3 and self.shape[2] == 3
        self._need(has_channels, f"{shape}: a uint8 signal is an image (height, width, 3)")
        self._need(self.size <= MAX_IMAGE, f"has {self.size} bytes, at most {MAX_IMAGE}")


@dataclass(frozen=True)
class Coupling(Record):
    """A joint that follows others: offset + sum of ratio * target, over the `(joint, ratio)` pairs of `of`."""

    joint: Name
    of: Annotated[tuple[tuple[Name, Number], ...], Meta(max_length=64)] = ()
    offset: Number = 0.0


@dataclass(frozen=True)
class Motor(Record):
    """A motor of the hardware: its position is sign * joint + offset. The order of motors is the hardware's."""

    joint: Name
    sign: Number = 1.0
    offset: Number = 0.0

    def check(self) -> None:
        """The sign is 1 or -1."""
        wrong = f"of {self.joint}: the sign of a motor is 1 or -1, not {self.sign}"
        self._need(abs(self.sign) == 1.0, wrong)


@dataclass(frozen=True)
class Link(Record):
    """A step of a kinematic chain: a fixed offset from the link before, then a joint that moves what follows.

    `pos` (m) and `quat` (w x y z) place it in the frame of the link before. `joint` turns about `axis` (hinge) or moves
    along it (slide), in the placed frame; without a joint the offset is all.
    """

    pos: Vector = (0.0, 0.0, 0.0)
    quat: Quaternion = (1.0, 0.0, 0.0, 0.0)
    joint: Name | None = None
    axis: Vector = (0.0, 0.0, 1.0)
    kind: Literal["hinge", "slide"] = "hinge"

    def check(self) -> None:
        """Quaternion and axis have length 1."""
        for name in ("quat", "axis"):
            length = math.hypot(*getattr(self, name))
            self._need(abs(length - 1.0) < 1e-6, f"{name} has length {length:.9g}, expected 1")


@dataclass(frozen=True)
class Site(Record):
    """A point of the robot, and the chain of links that leads there from its base."""

    name: Name
    chain: Annotated[tuple[Link, ...], Meta(min_length=1, max_length=128)]


@dataclass(frozen=True)
class Limit(Record):
    """Bounds of a signal, such as a tilt, a temperature or a voltage; of one element, or of each.

    They are bounds of each `value`; of the `norm` of a vector, such as an angular velocity; or of the `tilt` that an
    orientation (w x y z, the body's frame to the world's) has: the angle between the vertical axes of body and world,
    rad, 0 upright and pi upside down.
    """

    signal: Name
    lower: Number
    upper: Number
    element: Annotated[int, Meta(ge=0, le=MAX_SIZE)] | None = None
    of: Literal["value", "norm", "tilt"] = "value"

    LATER = frozenset(("of",))

    def check(self) -> None:
        """Bounds in order; an element only of values."""
        one = self.element is None or self.of == "value"
        self._need(one, f"of the {self.of} of '{self.signal}' has no element")
        self._need(self.lower < self.upper, f"of '{self.signal}' is {self.lower} .. {self.upper}")


@dataclass(frozen=True)
class RobotInterface(Document):
    """What a robot is and measures. Raises ContractError for one that contradicts itself."""

    SCHEMA = "deftly.robot/2"

    name: Name
    joints: Annotated[tuple[Joint, ...], Meta(min_length=1, max_length=256)]
    signals: Annotated[tuple[Signal, ...], Meta(min_length=1, max_length=256)]
    couplings: Annotated[tuple[Coupling, ...], Meta(max_length=256)] = ()
    motors: Annotated[tuple[Motor, ...], Meta(max_length=256)] = ()
    sites: Annotated[tuple[Site, ...], Meta(max_length=64)] = ()
    limits: Annotated[tuple[Limit, ...], Meta(max_length=256)] = ()
    damps: Annotated[tuple[Fault, ...], Meta(max_length=64)] = ()
    """Faults on which the motors are damped, as it is safe for a robot on legs; on all others the robot holds."""

    LATER = frozenset(("damps",))

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Joint names in the order of `joint_pos` and of the targets."""
        return tuple(joint.name for joint in self.joints)

    def home(self) -> tuple[float, ...]:
        """Home position of every joint, in order."""
        return tuple(joint.home for joint in self.joints)

    @property
    def gripping(self) -> tuple[str, ...]:
        """Names of the joints that grip, and of those that follow nothing else."""
        gripping = {joint.name for joint in self.joints if joint.grips}
        followers = set()
        for coupling in self.couplings:
            leaders = {leader for leader, _ in coupling.of}
            if leaders and leaders <= gripping:
                followers.add(coupling.joint)
        return tuple(name for name in self.joint_names if name in gripping | followers)

    def signal(self, name: str) -> Signal:
        """The signal of this name. Raises ContractError if there is none."""
        for signal in self.signals:
            if signal.name == name:
                return signal
        known = sorted(signal.name for signal in self.signals)
        raise ContractError(f"{self.name} has no signal '{name}', but {known}")

    def site(self, name: str) -> Site:
        """The site of this name. Raises ContractError if there is none."""
        for site in self.sites:
            if site.name == name:
                return site
        known = sorted(site.name for site in self.sites)
        raise ContractError(f"{self.name} has no site '{name}', but {known}")

    def require_policy_of(self, trained: Self, what: str) -> None:
        """Raise ContractError naming the first difference unless a policy made for `trained` may drive this robot.

        Its joints and signals must be the same; for the rest see `as_trained`. `what` is whose the policy is.
        """
        self.as_trained(trained).require(trained, what)

    @property
    def robot_name(self) -> str:
        """Its own."""
        return self.name

    def as_trained(self, trained: Self) -> Self:
        """This robot with the motors of another, and with what guards the other, as far as it may differ from it.

        How its motors are mounted is its own, as `deftly calibrate` found it, and it may be guarded better: by more
        limits, on more faults damped, its joints by narrower bounds. What guards it less stays as it is.
        """
        like = self
        if [motor.joint for motor in self.motors] == [motor.joint for motor in trained.motors]:
            like = replace(like, motors=trained.motors)
        if set(trained.limits) <= set(self.limits) and set(trained.damps) <= set(self.damps):
            like = replace(like, limits=trained.limits, damps=trained.damps)
        if self.joint_names == trained.joint_names:
            joints = [own.as_trained(other) for own, other in zip(self.joints, trained.joints)]
            like = replace(like, joints=tuple(joints))
        return like

    def within_limits(self, targets: Array) -> Array:
        """Joint targets `(..., num_joints)`, each clipped to its joint's limits."""
        limits = self._limit_constants.like(targets)
        return clip(targets, limits.lower, limits.upper)

    def beyond_limits(self, targets: Array) -> tuple[int, str] | None:
        """The first row of joint targets `(n, num_joints)` with one beyond its joint's limits, and that in words.

        None if there is none; a rounding is not beyond.
        """
        limits = self._limit_constants.like(targets)
        beyond = (targets < limits.least) | (targets > limits.most)
        if not bool(beyond.any()):
            return None
        row, column = divmod(beyond.reshape(-1).tolist().index(True), len(self.joints))
        joint = self.joints[column]
        told = f"{joint.name} would be told {float(targets[row, column]):.9g} {joint.units}"
        return row, f"{told}, its limits are {joint.lower:.9g} .. {joint.upper:.9g}"

    def to_motors(self, joints: Array) -> Array:
        """Joint positions `(..., num_joints)` as motor positions `(..., num_joints)`, in the order of `motors`."""
        motors = self._motor_constants.like(joints)
        return pick(joints, motors.joint_of_motor) * motors.sign + motors.offset

    def from_motors(self, positions: Array) -> Array:
        """The inverse of `to_motors`."""
        motors = self._motor_constants.like(positions)
        joints = (positions - motors.offset) * motors.sign
        return pick(joints, motors.motor_of_joint)

    @functools.cached_property
    def _limit_constants(self) -> Constants:
        return Constants(lambda like: _LimitConstants(self, like))

    @functools.cached_property
    def _motor_constants(self) -> Constants:
        return Constants(lambda like: _MotorConstants(self, like))

    def check(self) -> None:
        """Everything that must hold between the parts."""
        _require_unique(self)
        _require_signals(self)
        _require_couplings(self)
        _require_motors(self)
        _require_sites(self)
        _require_limits(self)
        _require_damps(self)


class _LimitConstants:
    """Limits of the joints as arrays, and what a target may be at the least and at the most."""

    def __init__(self, robot: RobotInterface, like: Like):
        self.lower = like.numbers([joint.lower for joint in robot.joints])
        self.upper = like.numbers([joint.upper for joint in robot.joints])
        self.least = like.numbers([joint.lower - _rounding(joint.lower) for joint in robot.joints])
        self.most = like.numbers([joint.upper + _rounding(joint.upper) for joint in robot.joints])


def _rounding(limit: float) -> float:
    """How far beyond a limit a target may be, rad (m)."""
    return max(ROUNDING, EPSILON * abs(limit))


class _MotorConstants:
    """Order, signs and offsets of the motors as arrays."""

    def __init__(self, robot: RobotInterface, like: Like):
        names = [motor.joint for motor in robot.motors]
        if not names:
            raise ContractError(f"{robot.name} has no table of motors")
        self.sign = like.numbers([motor.sign for motor in robot.motors])
        self.offset = like.numbers([motor.offset for motor in robot.motors])
        self.joint_of_motor = like.indices([robot.joint_names.index(name) for name in names])
        self.motor_of_joint = like.indices([names.index(name) for name in robot.joint_names])


def _require_unique(robot: RobotInterface) -> None:
    """No name twice in a list of the interface."""
    for kind, parts in (("joint", robot.joints), ("signal", robot.signals), ("site", robot.sites)):
        names = [part.name for part in parts]
        robot._need(len(set(names)) == len(names), f"a {kind} is named twice in {names}")


def _require_signals(robot: RobotInterface) -> None:
    """Joint positions are measured, no signal takes a reserved name, and the images are not too large."""
    names = {signal.name for signal in robot.signals}
    reserved = {COMMAND, ACTION}
    robot._need(not names & reserved, f"no signal is '{COMMAND}' or '{ACTION}'")
    shape = (len(robot.joints),)
    measured = [signal for signal in robot.signals if signal.name == JOINT_POS]
    fits = bool(measured) and measured[0].shape == shape and not measured[0].is_image
    robot._need(fits, f"needs a signal '{JOINT_POS}' of shape {shape}")
    images = sum(signal.size for signal in robot.signals if signal.is_image)
    together = f"its images have {images} bytes together"
    robot._need(images <= MAX_IMAGE, f"{together}, at most {MAX_IMAGE}")


def _require_motors(robot: RobotInterface) -> None:
    """There is no motor, or one for each joint."""
    turned = [motor.joint for motor in robot.motors]
    each = sorted(turned) in ([], sorted(robot.joint_names))
    robot._need(each, f"the motors turn {turned}, expected each joint once")


def _require_couplings(robot: RobotInterface) -> None:
    """Each joint follows once, and follows joints that follow nothing."""
    followers = [coupling.joint for coupling in robot.couplings]
    robot._need(len(set(followers)) == len(followers), f"a joint follows twice: {followers}")
    for coupling in robot.couplings:
        leaders = [leader for leader, _ in coupling.of]
        for name in (coupling.joint, *leaders):
            robot._need(name in robot.joint_names, f"a coupling names '{name}', which is no joint")
        for leader in leaders:
            follows = f"{coupling.joint} follows {leader}, which follows others"
            robot._need(leader not in followers, follows)


def _require_sites(robot: RobotInterface) -> None:
    """Sites hang on joints of the robot, each of which either turns or slides."""
    kinds: dict[str, str] = {}
    for site in robot.sites:
        for link in site.chain:
            if link.joint is None:
                continue
            where = f"site '{site.name}' hangs on '{link.joint}'"
            robot._need(link.joint in robot.joint_names, f"{where}, which is no joint")
            other = kinds.setdefault(link.joint, link.kind)
            robot._need(other == link.kind, f"{where} as a {link.kind}, elsewhere it is a {other}")


def _require_limits(robot: RobotInterface) -> None:
    for limit in robot.limits:
        signal = robot.signal(limit.signal)
        robot._need(not signal.is_image, f"a limit of the image '{signal.name}' makes no sense")
        within = limit.element is None or limit.element < signal.size
        element = f"element {limit.element} of '{signal.name}'"
        robot._need(within, f"a limit names {element}, which has {signal.size}")
        turns = limit.of != "tilt" or signal.size == 4
        robot._need(turns, f"a tilt is of a quaternion, '{signal.name}' has {signal.size} elements")


def _require_damps(robot: RobotInterface) -> None:
    """Each fault once, and it is one."""
    damps = [str(fault) for fault in robot.damps]
    once = len(set(damps)) == len(damps) and Fault.NONE not in robot.damps
    robot._need(once, f"damps on {damps}, expected faults, each once")
