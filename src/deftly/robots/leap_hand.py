"""LEAP hand: sixteen XC330 servos, four for each of three fingers and a thumb; left, right and left-custom.

The palm faces up (+z), the fingers point along +x, and every body is aligned with the world when all joints are zero.
Anchors, ranges and masses are those of the public right hand (mujoco_playground `leap_rh_mjx.xml`). The left hand is
its exact mirror image in the plane y = 0: equal joint values are mirrored poses, and a policy of one fits the other.
Public left hands turn `*_rot` and `th_axl` the other way; the motors' signs below account for it.

Public left models also have the thumb 28.5 mm further out than the mirror image. Printed palms are mirrored, so `left`
and `right` are strict; `leap-left-custom` is the hand of those models: the left, its thumb 28.5 mm further out.

Links are boxes and capsules of their published size, moments of inertia the published ones, the smallest about the
link's long axis. Servo: P 1139, D 148 and 550 mA of the XC330-M288 are 3.0 N m/rad, 0.2 N m s/rad and 0.29 N m
(0.53 N m/A); armature is that of the rotor behind 288.35:1.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import mujoco

from deftly.contract import Joint, Motor
from deftly.robots import Robot, leap_looks
from deftly.robots.entity import Entity
from deftly.sim import looks

Point = tuple[float, float, float]

DARK = (0.13, 0.14, 0.16, 1)
GREY = (0.45, 0.48, 0.52, 1)
WHITE = (0.88, 0.89, 0.91, 1)
TIP = (0.20, 0.55, 0.85, 1)
KP = 3.0  # N m/rad
KD = 0.2  # N m s/rad
TORQUE = 0.2915  # N m
ARMATURE = 1.413e-3  # kg m2
FRICTIONLOSS = 0.02915  # N m
DAMPING = 0.01  # N m s/rad
SPEED = 8.48  # rad/s: 81 rev/min without load at 5 V
FINGERS = {"if": -0.0454, "mf": 0.0, "rf": 0.0454}  # m, along y from the middle finger
STAND = leap_looks.STAND
THUMB_OUT = 0.0285  # m, by which the thumb of left-custom sits further out

# Of the middle finger and the thumb: joint, parent, anchor (m), axis, range (rad), mass (kg), moments (kg m2).
MCP = (-0.314, 2.23)
ROT = (-1.047, 1.047)
PIP = (-0.506, 1.885)
DIP = (-0.366, 2.042)
CMC = (-0.349, 2.094)
AXL = (-0.349, 2.094)
THUMB_MCP = (-0.47, 2.443)
IPL = (-1.34, 1.88)
SMALL = (3.093e-6, 4.373e-6, 4.885e-6)
HOUSING = (7.21e-6, 1.615e-5, 1.75e-5)
FINGER = [
    ("mcp", "palm", (-0.0071, 0.0224, 0.0187), (0, -1, 0), MCP, 0.044, HOUSING),
    ("rot", "mcp", (0.0310, 0.0369, 0.0065), (0, 0, 1), ROT, 0.032, SMALL),
    ("pip", "rot", (0.0460, 0.0226, 0.0195), (0, -1, 0), PIP, 0.037, (5.395e-6, 8.16e-6, 8.28e-6)),
    ("dip", "pip", (0.0821, 0.0228, 0.0195), (0, -1, 0), DIP, 0.016, (1.65e-6, 3.02e-6, 3.72e-6)),
]
THUMB = [
    (
        "cmc",
        "palm",
        (-0.0693, 0.0012, 0.0216),
        (-1, 0, 0),
        CMC,
        0.032,
        (4.373e-6, 3.093e-6, 4.885e-6),
    ),
    ("axl", "cmc", (-0.0823, -0.0131, 0.0216), (0, -1, 0), AXL, 0.003, (5.4e-7, 2.2e-7, 6.2e-7)),
    (
        "mcp",
        "axl",
        (-0.0823, -0.0301, 0.0071),
        (0, 0, 1),
        THUMB_MCP,
        0.038,
        (9.33e-6, 4.36e-6, 9.87e-6),
    ),
    ("ipl", "mcp", (-0.0823, -0.0767, 0.0069), (0, 0, 1), IPL, 0.049, (2.04e-5, 4.71e-6, 2.086e-5)),
]
# Of the same: joint, name, box centre and half size, or capsule ends and radius, m at q = 0; colour.
FINGER_BOXES = [
    ("mcp", "base", (0.0115, 0.0369, 0.0155), (0.0170, 0.0130, 0.0150), DARK),
    ("rot", "proximal", (0.0385, 0.0371, 0.0175), (0.0170, 0.0130, 0.0110), WHITE),
    ("pip", "middle", (0.0811, 0.0376, 0.0120), (0.0130, 0.0110, 0.0110), WHITE),
]
FINGER_CAPSULES = [
    ("pip", "neck", (0.0560, 0.0376, 0.0195), (0.0760, 0.0376, 0.0195), 0.0100, GREY),
    ("dip", "tip", (0.0960, 0.0378, 0.0195), (0.1201, 0.0378, 0.0195), 0.0120, TIP),
]
THUMB_BOXES = [
    ("cmc", "base", (-0.0823, -0.0010, 0.0216), (0.0130, 0.0110, 0.0130), DARK),
    ("mcp", "middle", (-0.0823, -0.0480, 0.0196), (0.0130, 0.0170, 0.0120), WHITE),
]
THUMB_CAPSULES = [
    ("ipl", "neck", (-0.0823, -0.0767, 0.0219), (-0.0823, -0.0960, 0.0219), 0.0110, GREY),
    ("ipl", "tip", (-0.0823, -0.1005, 0.0219), (-0.0823, -0.1247, 0.0219), 0.0120, TIP),
]
PALM = [
    ((-0.048, 0.033, 0.0115), (0.012, 0.058, 0.023)),
    ((-0.078, 0.053, 0.0115), (0.022, 0.026, 0.023)),
]
PALM_MASS = 0.237  # kg
PALM_COM = (-0.0495, 0.0429, 0.0102)  # m
PALM_MOMENTS = (3.05e-4, 1.81e-4, 4.07e-4)  # kg m2
# Around a cube on the palm (public grasp pose of an in-hand rotation).
GRASP = {
    "if": (0.1, -0.4, 1.3, 0.0),
    "mf": (0.1, 0.0, 1.3, 0.0),
    "rf": (0.1, 0.4, 1.3, 0.0),
    "th": (1.45, 1.5, 0.58, 1.37),
}


def names() -> list[str]:
    """The joints in the order of simulation and contract: index, middle, ring finger, thumb, each from its root."""
    fingers = [f"{finger}_{row[0]}" for finger in FINGERS for row in FINGER]
    thumb = [f"th_{row[0]}" for row in THUMB]
    return fingers + thumb


def joints() -> tuple[Joint, ...]:
    """The joints of any of the three hands: their limits are the same."""
    home = [q for pose in GRASP.values() for q in pose]
    rows = FINGER * len(FINGERS) + THUMB
    made = []
    for name, row, q in zip(names(), rows, home):
        lower, upper = row[4]
        made.append(Joint(name, lower, upper, home=q, velocity=SPEED))
    return tuple(made)


def motors(side: float) -> tuple[Motor, ...]:
    """Hardware order: motor 0 turns `if_rot`, 1 `if_mcp`, ...; `th_cmc` turns the other way, on left hands more do."""
    order = [f"{finger}_{joint}" for finger in FINGERS for joint in ("rot", "mcp", "pip", "dip")]
    order += [f"th_{row[0]}" for row in THUMB]
    reversed_motors = {"th_cmc"}
    if side < 0:
        reversed_motors |= {"th_axl", "if_rot", "mf_rot", "rf_rot"}
    return tuple(Motor(name, -1.0 if name in reversed_motors else 1.0) for name in order)


def spec(side: float, thumb_out: float = 0.0) -> mujoco.MjSpec:
    """A hand alone, palm up, its origin at the root of the palm; `side` is 1 of the right hand, -1 of the left."""
    s = mujoco.MjSpec()
    s.modelname = "leap_hand"
    s.compiler.degree = False
    _add_palm(s, side)
    for name, aside in FINGERS.items():
        anchors = _add_links(s, name, FINGER, (0.0, aside, 0.0), side)
        _add_boxes(s, name, FINGER_BOXES, anchors, side)
        _add_capsules(s, name, FINGER_CAPSULES, anchors, side)
        _add_looks(s, name, leap_looks.FINGER_BOXES, leap_looks.FINGER_TUBES, anchors, side)
    anchors = _add_links(s, "th", THUMB, (0.0, -thumb_out, 0.0), side)
    _add_boxes(s, "th", THUMB_BOXES, anchors, side)
    _add_capsules(s, "th", THUMB_CAPSULES, anchors, side)
    _add_looks(s, "th", leap_looks.THUMB_BOXES, leap_looks.THUMB_TUBES, anchors, side)
    root = {"palm": Anchor((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))}
    _add_looks(s, "", leap_looks.PALM_BOXES, leap_looks.FOREARM_TUBES, root, side)
    _exclude_contacts(s)
    return s


def _add_palm(s: mujoco.MjSpec, side: float) -> None:
    com = _mirror(PALM_COM, side)
    palm = s.worldbody.add_body(name="palm", mass=PALM_MASS, ipos=com, inertia=PALM_MOMENTS)
    for i, (centre, half) in enumerate(PALM):
        _add_solid(
            palm,
            f"palm_{i}",
            DARK,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=_mirror(centre, side),
            size=half,
        )


def _exclude_contacts(s: mujoco.MjSpec) -> None:
    """Links that overlap by construction, or cannot reach each other."""
    for name in FINGERS:
        for part in ("mcp", "rot", "pip"):
            s.add_exclude(bodyname1="palm", bodyname2=f"{name}_{part}")
    for a, b in (("if", "mf"), ("mf", "rf")):
        s.add_exclude(bodyname1=f"{a}_mcp", bodyname2=f"{b}_mcp")
    for part in ("axl", "mcp"):
        s.add_exclude(bodyname1="palm", bodyname2=f"th_{part}")
    s.add_exclude(bodyname1="th_cmc", bodyname2="th_mcp")


def _add_links(
    s: mujoco.MjSpec, name: str, links: list[tuple], shift: Point, side: float
) -> dict[str, Anchor]:
    """A finger's bodies, joints and servos; where each joint is, by its name.

    Positions are given in the frame of the right hand's palm, and shifted by `shift`.
    """
    anchors: dict[str, Anchor] = {"palm": Anchor((0.0, 0.0, 0.0), shift)}
    for joint, parent, anchor, axis, limits, mass, moments in links:
        anchors[joint] = Anchor(_sum(anchor, shift), shift)
        above = s.body("palm" if parent == "palm" else f"{name}_{parent}")
        body = above.add_body(
            name=f"{name}_{joint}",
            pos=_mirror(_difference(anchors[joint].at, anchors[parent].at), side),
            mass=mass,
            inertia=moments,
            ipos=[0, 0, 0],
        )
        _add_servo(s, body, axis, limits, side)
    return anchors


def _add_servo(
    s: mujoco.MjSpec, body: mujoco.MjsBody, axis: Point, limits: tuple[float, float], side: float
) -> None:
    """A body's hinge and the position servo that turns it."""
    x, y, z = axis
    hinge = body.add_joint(
        name=body.name,
        range=limits,
        armature=ARMATURE,
        damping=[DAMPING, 0, 0],
        frictionloss=FRICTIONLOSS,
    )
    hinge.axis = (side * x, y, side * z)  # an axis of rotation mirrors with the opposite sign
    servo = s.add_actuator(name=body.name, target=body.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(kp=KP, kv=KD)
    servo.ctrlrange = limits
    servo.forcerange = (-TORQUE, TORQUE)


def _add_boxes(
    s: mujoco.MjSpec, name: str, boxes: list[tuple], anchors: dict[str, Anchor], side: float
) -> None:
    """A finger's boxes; the centre of mass of a body is that of its box."""
    for joint, part, centre, half, colour in boxes:
        body = s.body(f"{name}_{joint}")
        body.ipos = anchors[joint].local(centre, side)
        _add_solid(
            body,
            f"{name}_{part}",
            colour,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=body.ipos,
            size=half,
        )


def _add_capsules(
    s: mujoco.MjSpec, name: str, capsules: list[tuple], anchors: dict[str, Anchor], side: float
) -> None:
    """A finger's capsules, and the site at its tip; the centre of mass of the tip is where its capsule begins."""
    for joint, part, start, end, radius, colour in capsules:
        body = s.body(f"{name}_{joint}")
        local_start = anchors[joint].local(start, side)
        local_end = anchors[joint].local(end, side)
        if part == "tip":
            body.ipos = local_start
            body.add_site(name=f"{name}_tip", pos=local_end, size=[0.004, 0, 0], rgba=(0, 0, 0, 0))
        _add_solid(
            body,
            f"{name}_{part}",
            colour,
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            fromto=[*local_start, *local_end],
            size=[radius, 0, 0],
        )


def _add_looks(
    s: mujoco.MjSpec,
    name: str,
    boxes: list[tuple],
    tubes: list[tuple],
    anchors: dict[str, Anchor],
    side: float,
) -> None:
    """What is drawn of a finger, of the palm where it begins, or of the forearm."""
    for joint, centre, half, paint in boxes:
        body = s.body("palm" if joint == "palm" else f"{name}_{joint}")
        looks.box(s, body, anchors[joint].local(centre, side), half, paint)
    for joint, start, end, radius, paint, round_ends in tubes:
        body = s.body("palm" if joint == "palm" else f"{name}_{joint}")
        local_start = anchors[joint].local(start, side)
        local_end = anchors[joint].local(end, side)
        looks.tube(s, body, local_start, local_end, radius, paint, round_ends)


def _add_solid(body: mujoco.MjsBody, name: str, colour: tuple, **shape: object) -> None:
    """A geom that collides, in the group that is not drawn; the mass is its body's."""
    geom = body.add_geom(name=name, mass=0, **shape)
    geom.rgba = colour
    geom.group = 3
    geom.friction = [1.0, 0.005, 0.0001]
    geom.priority = 1


class Anchor(NamedTuple):
    """Where a joint is when all are at zero, in the frame of the right hand's palm, m."""

    at: Point
    shift: Point
    """By which the finger is moved from the middle finger's place, or the thumb from the strict hand's."""

    def local(self, point: Point, side: float) -> Point:
        """A point of the unshifted finger, in the frame of the joint's body on one side."""
        return _mirror(_difference(_sum(point, self.shift), self.at), side)


def _sum(a: Point, b: Point) -> Point:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _difference(a: Point, b: Point) -> Point:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def _mirror(point: Point, side: float) -> Point:
    return (point[0], side * point[1], point[2])


RIGHT = Robot(
    name="leap-right",
    title="LEAP hand, right",
    spec=partial(spec, 1.0),
    joints=joints(),
    motors=motors(1.0),
)
LEFT = Robot(
    name="leap-left",
    title="LEAP hand, left: the right one's mirror image",
    spec=partial(spec, -1.0),
    joints=joints(),
    motors=motors(-1.0),
)
LEFT_CUSTOM = Robot(
    name="leap-left-custom",
    title="LEAP hand, left, its thumb 28.5 mm further out",
    spec=partial(spec, -1.0, THUMB_OUT),
    joints=joints(),
    motors=motors(-1.0),
)


class LeapHand(Entity):
    """A hand in a scene; its pads are the fingertips: index, middle, ring finger, thumb."""

    pads = tuple(f"{finger}_tip" for finger in (*FINGERS, "th"))


HAND = LeapHand()
