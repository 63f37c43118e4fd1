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

from functools import partial

import mujoco

from deftly.contract import Joint, Motor
from deftly.robots import Robot
from deftly.robots.entity import Entity

DARK, GREY, WHITE, TIP = (
    (0.13, 0.14, 0.16, 1),
    (0.45, 0.48, 0.52, 1),
    (0.88, 0.89, 0.91, 1),
    (0.20, 0.55, 0.85, 1),
)
KP, KD, TORQUE = 3.0, 0.2, 0.2915  # N m/rad, N m s/rad, N m
ARMATURE, FRICTIONLOSS, DAMPING = 1.413e-3, 0.02915, 0.01  # kg m2, N m, N m s/rad
SPEED = 8.48  # rad/s: 81 rev/min without load at 5 V
FINGERS = {"if": -0.0454, "mf": 0.0, "rf": 0.0454}  # m, along y from the middle finger
THUMB_OUT = 0.0285  # m, by which the thumb of left-custom sits further out

# Of the middle finger and the thumb: joint, parent, anchor (m), axis, range (rad), mass (kg), moments (kg m2).
MCP, ROT, PIP, DIP = (-0.314, 2.23), (-1.047, 1.047), (-0.506, 1.885), (-0.366, 2.042)
CMC, AXL, THUMB_MCP, IPL = (-0.349, 2.094), (-0.349, 2.094), (-0.47, 2.443), (-1.34, 1.88)
SMALL, HOUSING = (3.093e-6, 4.373e-6, 4.885e-6), (7.21e-6, 1.615e-5, 1.75e-5)
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
PALM_MASS, PALM_COM, PALM_MOMENTS = 0.237, (-0.0495, 0.0429, 0.0102), (3.05e-4, 1.81e-4, 4.07e-4)
# Around a cube on the palm (public grasp pose of an in-hand rotation).
GRASP = {
    "if": (0.1, -0.4, 1.3, 0.0),
    "mf": (0.1, 0.0, 1.3, 0.0),
    "rf": (0.1, 0.4, 1.3, 0.0),
    "th": (1.45, 1.5, 0.58, 1.37),
}


def names() -> list[str]:
    """The joints in the order of simulation and contract: index, middle, ring finger, thumb, each from its root."""
    return [f"{f}_{row[0]}" for f in (*FINGERS, "th") for row in (THUMB if f == "th" else FINGER)]


def joints() -> tuple[Joint, ...]:
    """The joints of any of the three hands: their limits are the same."""
    home = [q for pose in GRASP.values() for q in pose]
    rows = [row for f in (*FINGERS, "th") for row in (THUMB if f == "th" else FINGER)]
    return tuple(
        Joint(n, *row[4], home=q, velocity=SPEED) for n, row, q in zip(names(), rows, home)
    )


def motors(side: float) -> tuple[Motor, ...]:
    """Hardware order: motor 0 turns `if_rot`, 1 `if_mcp`, ...; `th_cmc` turns the other way, on left hands more do."""
    order = [f"{f}_{j}" for f in FINGERS for j in ("rot", "mcp", "pip", "dip")] + [
        f"th_{row[0]}" for row in THUMB
    ]
    turned = {"th_cmc"} if side > 0 else {"th_cmc", "th_axl", "if_rot", "mf_rot", "rf_rot"}
    return tuple(Motor(name, -1.0 if name in turned else 1.0) for name in order)


def spec(side: float, thumb_out: float = 0.0) -> mujoco.MjSpec:
    """A hand alone, palm up, its origin at the root of the palm; `side` is 1 of the right hand, -1 of the left."""
    s = mujoco.MjSpec()
    s.modelname, s.compiler.degree = "leap_hand", False
    palm = s.worldbody.add_body(
        name="palm", mass=PALM_MASS, ipos=_mirror(PALM_COM, side), inertia=PALM_MOMENTS
    )
    for i, (centre, half) in enumerate(PALM):
        _solid(
            palm,
            f"palm_{i}",
            DARK,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=_mirror(centre, side),
            size=half,
        )
    for name, aside in FINGERS.items():
        _chain(s, name, FINGER, FINGER_BOXES, FINGER_CAPSULES, (0.0, aside, 0.0), side)
    _chain(s, "th", THUMB, THUMB_BOXES, THUMB_CAPSULES, (0.0, -thumb_out, 0.0), side)
    for name in FINGERS:
        for part in ("mcp", "rot", "pip"):
            s.add_exclude(bodyname1="palm", bodyname2=f"{name}_{part}")
    for a, b in (("if", "mf"), ("mf", "rf")):
        s.add_exclude(bodyname1=f"{a}_mcp", bodyname2=f"{b}_mcp")
    for part in ("axl", "mcp"):
        s.add_exclude(bodyname1="palm", bodyname2=f"th_{part}")
    s.add_exclude(bodyname1="th_cmc", bodyname2="th_mcp")
    return s


def _chain(
    s: mujoco.MjSpec, name: str, links: list, boxes: list, capsules: list, shift: tuple, side: float
) -> None:
    """A finger: its bodies, joints, servos and shapes; positions are given in the frame of the right hand's palm."""
    anchors = {"palm": (0.0, 0.0, 0.0)}
    for joint, parent, anchor, axis, limits, mass, moments in links:
        anchors[joint] = anchor = tuple(a + b for a, b in zip(anchor, shift))
        offset = tuple(a - b for a, b in zip(anchor, anchors[parent]))
        above = s.body("palm" if parent == "palm" else f"{name}_{parent}")
        body = above.add_body(
            name=f"{name}_{joint}",
            pos=_mirror(offset, side),
            mass=mass,
            inertia=moments,
            ipos=[0, 0, 0],
        )
        hinge = body.add_joint(
            name=body.name, range=limits, armature=ARMATURE, damping=[DAMPING, 0, 0]
        )
        hinge.axis = (
            side * axis[0],
            axis[1],
            side * axis[2],
        )  # an axis of rotation mirrors with the opposite sign
        hinge.frictionloss = FRICTIONLOSS
        servo = s.add_actuator(name=body.name, target=body.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=KP, kv=KD)
        servo.ctrlrange, servo.forcerange = limits, (-TORQUE, TORQUE)

    def local(joint: str, point: tuple) -> tuple:
        return _mirror(tuple(p + m - a for p, m, a in zip(point, shift, anchors[joint])), side)

    for joint, part, centre, half, colour in boxes:
        body = s.body(f"{name}_{joint}")
        body.ipos = local(joint, centre)
        _solid(
            body, f"{name}_{part}", colour, type=mujoco.mjtGeom.mjGEOM_BOX, pos=body.ipos, size=half
        )
    for joint, part, start, end, radius, colour in capsules:
        body, ends = s.body(f"{name}_{joint}"), (local(joint, start), local(joint, end))
        if part == "tip":
            body.ipos = ends[0]
            body.add_site(name=f"{name}_tip", pos=ends[1], size=[0.004, 0, 0], rgba=(0, 0, 0, 0))
        fromto = [*ends[0], *ends[1]]
        _solid(
            body,
            f"{name}_{part}",
            colour,
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            fromto=fromto,
            size=[radius, 0, 0],
        )


def _solid(body: mujoco.MjsBody, name: str, colour: tuple, **shape: object) -> None:
    geom = body.add_geom(name=name, mass=0, **shape)
    geom.rgba, geom.group, geom.friction, geom.priority = colour, 2, [1.0, 0.005, 0.0001], 1


def _mirror(point: tuple, side: float) -> tuple:
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
