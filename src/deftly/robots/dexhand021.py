"""DexHand 021 on a carrier: a palm with five fingers, moved in space by three slides and three hinges.

The palm faces down (-z) and the fingers point along +x when all joints are zero. Frames, anchors, ranges, masses and
collision shapes are the published ones (DexRobot/dexrobot_mujoco, `dexhand021_right_simplified_floating.xml`); joints
keep the maker's names, without the side. The left hand is the exact mirror image in the plane y = 0: equal values of
the finger joints are mirrored poses. The carrier's axes are the world's for both.

Twelve motors drive twenty finger joints. The last two joints of a finger turn as one, and so do the three spread
joints, the little finger's twice as far; the middle finger has no spread.

What is not published, or belongs to no motor, was chosen:

- Palm: 0.55 kg, what the published collision box has at 1 g/cm3; the published body has no mass.
- Finger servos: torque for 10 N at the tip of a straight finger, which is the class of the maker's own figure, halved
  towards the tip. The published kp 1000, kv 50, force 200 with a joint damping of 1 are a rigid position control that
  no such motor has. Here a servo yields by a tenth of a radian under its torque limit or less.
- Carrier: as an arm of 5 kg payload would move the hand: 60 N and 10 N m, gravity compensated, and the arm's inertia.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import mujoco
import torch
from torch import Tensor

from deftly.contract import Act, Coupling, Joint
from deftly.robots import Robot, dexhand_looks
from deftly.robots.entity import Entity
from deftly.sim import looks

if TYPE_CHECKING:
    from deftly.sim.state import State

Point = tuple[float, float, float]
Quat = tuple[float, float, float, float]

DARK = (0.14, 0.15, 0.17, 1)
WHITE = (0.87, 0.88, 0.90, 1)
GREY = (0.48, 0.50, 0.54, 1)
PAD = (0.20, 0.45, 0.70, 1)
UNSEEN = {"rgba": (0, 0, 0, 0), "group": 4}  # of sites, which mark places

# The carrier ------------------------------------------------------------------------------------------------
SLIDES = ("ARTx", "ARTy", "ARTz")
HINGES = ("ARRx", "ARRy", "ARRz")
BASE = (*SLIDES, *HINGES)
REACH = 1.0  # m, of each slide, either way
TURN = 3.14  # rad, of each hinge, either way
BASE_SPEED = 0.5  # m/s (seed 001)
BASE_TURN_SPEED = 1.5  # rad/s (seed 001)
BASE_FORCE = 60.0  # N
BASE_TORQUE = 10.0  # N m
SLIDE_INERTIA = 2.0  # kg: what a slide feels of the arm
HINGE_INERTIA = 0.03  # kg m2, likewise
SLIDE_KP = 3000.0  # N/m
HINGE_KP = 45.0  # N m/rad
BASE_TIME_CONSTANT = 0.06  # s: kv / kp of the carrier's servos

# The hand ---------------------------------------------------------------------------------------------------
PALM_MASS = 0.55  # kg
PALM_HALF = (0.0273, 0.05, 0.05)  # m
PALM_CENTRE = (-0.0022, 0.0, 0.11)  # m
PALM_QUAT = (0.5**0.5, 0.0, 0.5**0.5, 0.0)  # on the carrier: the palm's z is forward, its x down
FINGER_SPEED = 1.0  # rad/s (seed 001)
SPREAD = (0.0, 0.3)  # rad
LITTLE_SPREAD = (0.0, 0.6)
FIXED = (-0.001, 0.001)  # of the middle finger's spread joint, which has no motor
CURL = (0.0, 1.3)
THUMB_ROTATION = (0.0, 2.2)
ARMATURE = 5e-4  # kg m2, of a finger joint: rotor and gear
DAMPING = 0.02  # N m s/rad
TIME_CONSTANT = 0.04  # s: kv / kp of the finger servos
SKIN = 0.002  # m: of rubber around the published shapes, which begins to press before they touch
FRICTION = (1.0, 0.01, 0.0002)  # of the skin: rubber; the published 3 belongs to no material


class Servo(NamedTuple):
    """A finger joint's position servo."""

    kp: float  # N m/rad
    torque: float  # N m


SERVOS = {1: Servo(6.0, 0.6), 2: Servo(10.0, 1.0), 3: Servo(5.0, 0.5), 4: Servo(3.0, 0.3)}
"""By the joint's place in its finger, from the palm."""


class Segment(NamedTuple):
    """A link of a finger: where it hangs in the frame of the link before, and its inertia in its own frame."""

    pos: Point
    quat: Quat
    range: tuple[float, float]
    mass: float
    com: Point
    moments: Point  # kg m2; the smallest is about the long axis x


UNTURNED = (1.0, 0.0, 0.0, 0.0)
AROUND_X = (0.5**0.5, -(0.5**0.5), 0.0, 0.0)  # from the spread axis to the curl axis
AROUND_X_BACK = (0.5**0.5, 0.5**0.5, 0.0, 0.0)
FORWARD = (0.5**0.5, 0.0, -(0.5**0.5), 0.0)  # of index and middle finger on the palm
FORWARD_OVER = (0.0, 0.5**0.5, 0.0, 0.5**0.5)  # of ring and little: they spread the other way
FIRST_MOMENTS = (2.042e-7, 2.717e-7, 3.181e-7)
CURLED = (
    Segment(
        (0.017, 0, 0),
        AROUND_X,
        CURL,
        0.00943,
        (0.02116, -0.00059, 0),
        (5.54e-7, 1.643e-6, 1.658e-6),
    ),
    Segment(
        (0.043, 0, 0), UNTURNED, CURL, 0.00457, (0.01346, -0.0007, 0), (2.03e-7, 3.566e-7, 3.798e-7)
    ),
    Segment(
        (0.025, 0, 0),
        UNTURNED,
        CURL,
        0.00816,
        (0.01975, -0.00297, 0),
        (3.46e-7, 1.101e-6, 1.118e-6),
    ),
)
"""The three curling links of index to little finger."""
CURLED_OVER = (CURLED[0]._replace(quat=AROUND_X_BACK), *CURLED[1:])


def _spread(pos: Point, quat: Quat, limits: tuple[float, float], com_z: float) -> Segment:
    """The first link of index to little finger, which spreads it sideways."""
    return Segment(pos, quat, limits, 0.0041, (0.007, 0, com_z), FIRST_MOMENTS)


FINGERS: dict[int, tuple[Segment, ...]] = {
    1: (
        Segment(
            (0.032783, 0.023781, 0.11211),
            (0.151551, -0.775385, -0.612635, 0.0221215),
            THUMB_ROTATION,
            0.00441,
            (0.00198, -0.00035, 0.01345),
            (1.983e-7, 3.799e-7, 4.396e-7),
        ),
        Segment(
            (0.0083307, 0, 0),
            AROUND_X,
            CURL,
            0.00995,
            (0.02143, 0.00018, -0.0013),
            (6.19e-7, 1.656e-6, 1.71e-6),
        ),
        Segment(
            (0.043, 0, 0),
            UNTURNED,
            CURL,
            0.00457,
            (0.01346, -0.0007, -0.00129),
            (2.03e-7, 3.566e-7, 3.798e-7),
        ),
        Segment(
            (0.025, 0, 0),
            UNTURNED,
            CURL,
            0.00816,
            (0.01975, -0.00297, -0.0011),
            (3.47e-7, 1.102e-6, 1.119e-6),
        ),
    ),
    2: (_spread((0.006966, 0.034912, 0.1644), FORWARD, SPREAD, 0.00097), *CURLED),
    3: (_spread((0.006966, 0.010612, 0.1734), FORWARD, FIXED, 0.00097), *CURLED),
    4: (_spread((0.006966, -0.013688, 0.1644), FORWARD_OVER, SPREAD, -0.00097), *CURLED_OVER),
    5: (
        _spread((0.006966, -0.037988, 0.1504), FORWARD_OVER, LITTLE_SPREAD, -0.00097),
        *CURLED_OVER,
    ),
}
"""Thumb, index, middle, ring and little finger of the right hand, each from the palm outwards."""
TIP = (0.035, -0.004, 0.0)  # m, in the frame of the last link
PADS = {1: (0.026, 0.0025, -0.001), 2: (0.026, 0.0025, 0.0), 3: (0.026, 0.0025, 0.0), 4: (0.026, 0.0025, 0.0),
        5: (0.026, 0.0025, 0.0)}  # fmt: skip
PAD_RADIUS = 0.014  # m: contacts within it count as touch of the pad
# Collision capsules of the links 2 to 4: ends in the link's frame and radius, m.
CAPSULES = {
    2: ((0.005, 0, 0), (0.03, 0, 0), 0.0095),
    3: ((0.012, 0.003, -0.0035), (0.012, 0.003, 0.0035), 0.007),
    4: ((0, 0, 0), (0.026, -0.007, 0), 0.0095),
}
THUMB_CAPSULES = {
    2: ((0, 0, 0), (0.03, 0, -0.002), 0.0095),
    3: ((0.0125, 0.003, -0.0045), (0.0125, 0.003, 0.0023), 0.007),
    4: ((0, 0, -0.001), (0.027, -0.007, -0.001), 0.0095),
}
DRIVEN = ("f_joint1_1", "f_joint1_2", "f_joint1_3", "f_joint2_1", "f_joint2_2", "f_joint2_3", "f_joint3_2",
          "f_joint3_3", "f_joint4_2", "f_joint4_3", "f_joint5_2", "f_joint5_3")  # fmt: skip
"""The finger joints that motors drive, in the order of the twelve finger actions of seed 001."""
COUPLINGS = (
    *(Coupling(f"f_joint{finger}_4", ((f"f_joint{finger}_3", 1.0),)) for finger in FINGERS),
    Coupling("f_joint3_1"),
    Coupling("f_joint4_1", (("f_joint2_1", 1.0),)),
    Coupling("f_joint5_1", (("f_joint2_1", 2.0),)),
)


def finger_joints() -> tuple[str, ...]:
    """Names of the twenty finger joints, thumb to little finger, each from the palm outwards."""
    return tuple(f"f_joint{finger}_{i}" for finger in FINGERS for i in (1, 2, 3, 4))


def joints() -> tuple[Joint, ...]:
    """The carrier's six joints and the hand's twenty, in the order of the contract; at home all are zero."""
    slides = [Joint(name, -REACH, REACH, 0.0, BASE_SPEED, units="m") for name in SLIDES]
    hinges = [Joint(name, -TURN, TURN, 0.0, BASE_TURN_SPEED) for name in HINGES]
    fingers = []
    for finger, segments in FINGERS.items():
        for i, segment in enumerate(segments, 1):
            is_little_base = (finger, i) == (5, 1)
            speed = 2 * FINGER_SPEED if is_little_base else FINGER_SPEED
            name = f"f_joint{finger}_{i}"
            fingers.append(Joint(name, *segment.range, home=0.0, velocity=speed))
    return (*slides, *hinges, *fingers)


def spec(side: float) -> mujoco.MjSpec:
    """The hand on its carrier, which is at the origin; `side` is 1 of the right hand, -1 of the left."""
    s = mujoco.MjSpec()
    s.modelname = "dexhand021"
    s.compiler.degree = False
    palm = _add_palm(s, _add_carrier(s), side)
    for finger, segments in FINGERS.items():
        parent = palm
        for i, segment in enumerate(segments, 1):
            parent = _add_link(s, parent, f"{finger}_{i}", segment, SERVOS[i], side)
        _add_capsules(s, finger, side)
        _add_pad(s, parent, finger, side)
    _exclude_contacts(s)
    _add_looks(s, palm, side)
    return s


def _add_carrier(s: mujoco.MjSpec) -> mujoco.MjsBody:
    """Six bodies of nearly no mass, each moved by one servo; the arm's inertia is the joints' armature."""
    body = s.worldbody
    axes = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1)}
    for name in BASE:
        slides = name in SLIDES
        kp = SLIDE_KP if slides else HINGE_KP
        most = BASE_FORCE if slides else BASE_TORQUE
        end = REACH if slides else TURN
        body = body.add_body(name=name, mass=1e-3, inertia=[1e-6] * 3, ipos=[0, 0, 0], gravcomp=1)
        body.add_joint(
            name=name,
            type=mujoco.mjtJoint.mjJNT_SLIDE if slides else mujoco.mjtJoint.mjJNT_HINGE,
            axis=axes[name[-1]],
            range=[-end, end],
            armature=SLIDE_INERTIA if slides else HINGE_INERTIA,
        )
        _add_servo(s, name, kp, BASE_TIME_CONSTANT * kp, (-end, end), most)
    return body


def _add_palm(s: mujoco.MjSpec, carrier: mujoco.MjsBody, side: float) -> mujoco.MjsBody:
    x, y, z = PALM_HALF
    moments = [PALM_MASS / 3 * (a * a + b * b) for a, b in ((y, z), (x, z), (x, y))]
    palm = carrier.add_body(
        name="hand_base",
        quat=_mirror_quat(PALM_QUAT, side),
        mass=PALM_MASS,
        ipos=_mirror(PALM_CENTRE, side),
        inertia=moments,
        gravcomp=1,
    )
    w, x, y, z = PALM_QUAT
    palm.add_site(name=PALM, quat=(w, -x, -y, -z), size=[0.002, 0, 0], **UNSEEN)
    _add_solid(
        palm,
        "palm",
        DARK,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=_mirror(PALM_CENTRE, side),
        size=PALM_HALF,
    )
    s.geom("palm").group = 3  # its look is drawn instead
    return palm


def _add_link(
    s: mujoco.MjSpec, parent: mujoco.MjsBody, name: str, segment: Segment, servo: Servo, side: float
) -> mujoco.MjsBody:
    """A link with its hinge and its servo."""
    joint = f"f_joint{name}"
    body = parent.add_body(
        name=f"f_link{name}",
        pos=_mirror(segment.pos, side),
        quat=_mirror_quat(segment.quat, side),
        mass=segment.mass,
        ipos=_mirror(segment.com, side),
        inertia=segment.moments,
        gravcomp=1,
    )
    body.add_joint(
        name=joint,
        axis=(
            0,
            0,
            side,
        ),  # turns about an axis in the mirror's plane are mirrored: the opposite way
        range=segment.range,
        armature=ARMATURE,
        damping=[DAMPING, 0, 0],
    )
    _add_servo(s, joint, servo.kp, TIME_CONSTANT * servo.kp, segment.range, servo.torque)
    return body


def _add_servo(
    s: mujoco.MjSpec, joint: str, kp: float, kv: float, limits: tuple[float, float], most: float
) -> None:
    servo = s.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(kp=kp, kv=kv)
    servo.ctrlrange = limits
    servo.forcerange = (-most, most)


def _add_capsules(s: mujoco.MjSpec, finger: int, side: float) -> None:
    """What a finger touches with: the capsules of its links, the last of which is its tip."""
    capsules = THUMB_CAPSULES if finger == 1 else CAPSULES
    for i, (start, end, radius) in capsules.items():
        _add_solid(
            s.body(f"f_link{finger}_{i}"),
            tip_geom(finger) if i == 4 else f"f_link{finger}_{i}",
            {2: WHITE, 3: GREY, 4: PAD}[i],
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            fromto=[*_mirror(start, side), *_mirror(end, side)],
            size=[radius, 0, 0],
        )


def _add_pad(s: mujoco.MjSpec, last: mujoco.MjsBody, finger: int, side: float) -> None:
    """Sites of a finger's tip and pad, and the touch sensor of the pad."""
    last.add_site(name=f"f_tip{finger}", pos=_mirror(TIP, side), size=[0.002, 0, 0], **UNSEEN)
    last.add_site(
        name=f"f_pad{finger}", pos=_mirror(PADS[finger], side), size=[PAD_RADIUS, 0, 0], **UNSEEN
    )
    s.add_sensor(
        name=f"touch{finger}",
        type=mujoco.mjtSensor.mjSENS_TOUCH,
        objtype=mujoco.mjtObj.mjOBJ_SITE,
        objname=f"f_pad{finger}",
    )


def _add_solid(body: mujoco.MjsBody, name: str, colour: tuple, **shape: object) -> None:
    """A geom that is drawn and collides; the mass is its body's."""
    geom = body.add_geom(name=name, mass=0, **shape)
    geom.rgba = colour
    geom.group = 2
    geom.friction = list(FRICTION)
    geom.condim = 4
    geom.priority = 1
    geom.solref[:] = [0.014, 1]  # as stiff as a substep of 6.7 ms allows
    geom.solimp[:3] = [0.95, 0.99, 0.001]
    geom.margin = SKIN


def _exclude_contacts(s: mujoco.MjSpec) -> None:
    """The palm and the first two links of a finger overlap by construction, as do a finger's second and fourth."""
    for finger in FINGERS:
        for i in (1, 2):
            s.add_exclude(bodyname1="hand_base", bodyname2=f"f_link{finger}_{i}")
        s.add_exclude(bodyname1=f"f_link{finger}_2", bodyname2=f"f_link{finger}_4")


def _add_looks(s: mujoco.MjSpec, palm: mujoco.MjsBody, side: float) -> None:
    """Shells, knuckles and pins, which are only drawn."""
    for centre, half, paint in dexhand_looks.PALM_BOXES:
        looks.box(s, palm, _mirror(centre, side), half, paint)
    for start, end, radius, paint in dexhand_looks.PALM_TUBES:
        looks.tube(s, palm, _mirror(start, side), _mirror(end, side), radius, paint)
    for finger in FINGERS:
        for i, start, end, radius, paint in dexhand_looks.LINK_TUBES:
            link = s.body(f"f_link{finger}_{i}")
            looks.tube(s, link, _mirror(start, side), _mirror(end, side), radius, paint)


def _mirror(point: Point, side: float) -> Point:
    return (point[0], side * point[1], point[2])


def _mirror_quat(quat: Quat, side: float) -> Quat:
    """The orientation of the mirrored frame: rotations about x and z turn the other way."""
    w, x, y, z = quat
    return (w, side * x, y, side * z)


def tip_geom(finger: int) -> str:
    """Name of the geom with which a finger touches: 1 is the thumb."""
    return f"tip{finger}"


PALM = "palm"
"""Site at the hand's root: its axes are the carrier's, fingers along x and the palm down."""
SITES = (
    PALM,
    *(f"f_pad{finger}" for finger in FINGERS),
    *(f"f_tip{finger}" for finger in FINGERS),
)


RIGHT = Robot(
    name="dexhand021-right",
    title="DexHand 021, right, on a carrier of six joints",
    spec=partial(spec, 1.0),
    joints=joints(),
    couplings=COUPLINGS,
    sites=SITES,
)
LEFT = Robot(
    name="dexhand021-left",
    title="DexHand 021, left: the right one's mirror image, on a carrier of six joints",
    spec=partial(spec, -1.0),
    joints=joints(),
    couplings=COUPLINGS,
    sites=SITES,
)


def act(
    base_speed: float, base_turn: float, finger_speed: float, lowpass: float
) -> tuple[Act, Act]:
    """18 elements of the action: velocities of the carrier, m/s and rad/s, and of the driven fingers, rad/s.

    Velocities add to the last command, so targets are relative to where the episode started.
    """
    carrier = Act(BASE, "velocity", (base_speed,) * 3 + (base_turn,) * 3, lowpass)
    return carrier, Act(DRIVEN, "velocity", (finger_speed,), lowpass)


class DexHand(Entity):
    """A hand in a scene; its pads are the fingertips, the thumb's first."""

    pads = tuple(tip_geom(finger) for finger in FINGERS)
    root = "hand_base"

    def pad_positions(self, s: State) -> Tensor:
        """World positions of the pads, `(num_envs, 5, 3)`, m."""
        return torch.stack([s.site(f"f_pad{finger}") for finger in FINGERS], 1)

    def pad_touch(self, s: State) -> Tensor:
        """What the touch sensors of the pads read, `(num_envs, 5)`, N."""
        return s.sensors(tuple(f"touch{finger}" for finger in FINGERS))[..., 0]

    def palm(self, s: State) -> Tensor:
        """World position of the hand's root, `(num_envs, 3)`, m."""
        return s.body(self.root)

    def finger_pos(self, driven: Tensor) -> Tensor:
        """Positions of all finger joints, `(num_envs, 20)`, from those that motors drive, `(num_envs, 12)`, rad."""
        return driven @ driven.new_tensor(_coupled())


def _coupled() -> list[list[float]]:
    """The matrix `(12, 20)` of the couplings: how far each finger joint turns with each driven one."""
    rows = {name: [0.0] * len(DRIVEN) for name in finger_joints()}
    for i, name in enumerate(DRIVEN):
        rows[name][i] = 1.0
    for coupling in COUPLINGS:
        for leader, ratio in coupling.of:
            rows[coupling.joint][DRIVEN.index(leader)] = ratio
    return [list(column) for column in zip(*rows.values())]


HAND = DexHand()
