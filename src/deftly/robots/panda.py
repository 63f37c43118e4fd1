"""Franka Emika Panda: a seven-joint arm with the Franka Hand, two parallel fingers 0 to 80 mm apart, moved as one.

Anchors, axes, ranges, torques and masses are those of the public `franka_emika_panda` MuJoCo model; limits of speed and
acceleration are the maker's (libfranka, `kMaxJointVelocity` and `kMaxJointAcceleration` of the Panda). Every body below
is aligned with the world when all joints are zero, the arm stretched upwards. Inertias and centres of mass are those of
solid cylinders of the link's size. Servo gains are those of the model's MJX variant, which fit a timestep of 5 ms; the
maker publishes none. The hand pushes with up to 70 N and moves each finger at up to 50 mm/s (the Franka Hand's data
sheet). Gravity is compensated, as the controller of the robot does it.
"""

import math
from typing import NamedTuple

import mujoco

from deftly.contract import Joint
from deftly.contract.arrays import Constants, Like
from deftly.contract.kinematics import Kinematics
from deftly.robots import Robot
from deftly.robots.entity import Entity
from deftly.sim import looks
from deftly.sim.scene import add_camera, add_tube, cylinder_inertia

Point = tuple[float, float, float]

WHITE = looks.Paint("panda_white", (0.90, 0.91, 0.92, 1), specular=0.4, shininess=0.5)
GREY = looks.Paint("panda_grey", (0.55, 0.57, 0.60, 1), specular=0.5, shininess=0.5)
DARK = looks.Paint("panda_dark", (0.15, 0.16, 0.18, 1), specular=0.3, shininess=0.4)
RUBBER = looks.Paint("panda_rubber", (0.22, 0.23, 0.24, 1), specular=0.05, shininess=0.1)


class Link(NamedTuple):
    """A link of the arm, the joint that moves it, and its servo."""

    offset: Point
    """From the parent's frame to its own, which is in the joint's anchor, m."""
    axis: Point
    limits: tuple[float, float]
    """rad"""
    mass: float
    """kg"""
    centre: Point
    """Of its mass, m."""
    length: float
    """Of the cylinder that has its inertia, m; its radius is `INERTIA_RADIUS`."""
    along: str
    torque: float
    """Of the joint, N m."""
    kp: float
    """N m/rad"""
    speed: float
    """rad/s"""
    acceleration: float
    """rad/s2"""


TURN = (-2.8973, 2.8973)
INERTIA_RADIUS = 0.055  # m
LINKS = {
    "joint1": Link(
        (0, 0, 0.333), (0, 0, 1), TURN, 4.970684, (0, 0, -0.05), 0.20, "z", 87, 1000, 2.175, 15.0
    ),
    "joint2": Link(
        (0, 0, 0),
        *((0, 1, 0), (-1.7628, 1.7628)),
        *(0.646926, (0, 0, 0.03), 0.14, "y", 87, 1000, 2.175, 7.5),
    ),
    "joint3": Link(
        (0, 0, 0.316),
        *((0, 0, 1), TURN, 3.228604, (0.03, 0, -0.05), 0.20, "z", 87, 750, 2.175, 10.0),
    ),
    "joint4": Link(
        (0.0825, 0, 0),
        *((0, -1, 0), (-3.0718, -0.0698)),
        *(3.587895, (-0.04, 0, 0.10), 0.22, "z", 87, 750, 2.175, 12.5),
    ),
    "joint5": Link(
        (-0.0825, 0, 0.384),
        *((0, 0, 1), TURN, 1.225946, (0, 0.03, -0.10), 0.24, "z", 12, 300, 2.61, 15.0),
    ),
    "joint6": Link(
        (0, 0, 0),
        *((0, -1, 0), (-0.0175, 3.7525)),
        *(1.666555, (0.05, 0, 0.01), 0.13, "x", 12, 300, 2.61, 20.0),
    ),
    "joint7": Link(
        (0.088, 0, 0),
        *((0, 0, -1), TURN, 0.735522, (0, 0, -0.07), 0.09, "z", 12, 300, 2.61, 20.0),
    ),
}
TIME_CONSTANT = (
    0.04  # s, kv / kp of all servos: about the mean of the MJX variant's damping and kv over kp
)
ARMATURE = 0.1  # kg m2
DAMPING = 1.0  # N m s/rad
BASE_MASS = 0.629769  # kg
# Tubes that are drawn, and collide as capsules: body, name, from, to, radius (m).
TUBES = [
    ("base", "foot", (-0.09, 0, 0.06), (0.02, 0, 0.06), 0.065),
    ("base", "column", (0, 0, 0.06), (0, 0, 0.14), 0.062),
    ("link1", "shoulder", (0, 0, -0.145), (0, 0, -0.03), 0.060),
    ("link2", "shoulder", (0, -0.055, 0), (0, 0.055, 0), 0.060),
    ("link2", "arm", (0, 0, 0.06), (0, 0, 0.17), 0.058),
    ("link3", "arm", (0, 0, -0.12), (0, 0, -0.07), 0.058),
    ("link3", "elbow", (0.0825, -0.05, 0), (0.0825, 0.05, 0), 0.056),
    ("link4", "forearm", (-0.0825, 0, 0.06), (-0.0825, 0, 0.14), 0.055),
    ("link5", "forearm", (0, 0, -0.22), (0, 0, -0.08), 0.052),
    ("link5", "wrist", (0, 0.05, -0.06), (0, 0.05, 0.01), 0.042),
    ("link6", "wrist", (0, -0.04, 0), (0, 0.04, 0), 0.050),
    ("link6", "flange", (0.088, 0, 0.02), (0.088, 0, -0.01), 0.048),
    ("link7", "flange", (0, 0, -0.055), (0, 0, -0.095), 0.044),
]
# What is drawn besides, and does not collide: body, from, to, radius (m), paint.
LOOKS = [
    ("base", (0, 0, 0.1400), (0, 0, 0.1700), 0.0640, GREY),
    ("link1", (0, -0.062, 0), (0, -0.0545, 0), 0.0570, GREY),
    ("link1", (0, 0.0545, 0), (0, 0.062, 0), 0.0570, GREY),
    ("link2", (0, 0, 0.1700), (0, 0, 0.1960), 0.0560, GREY),
    ("link3", (0.0, 0, -0.0700), (0.0825, 0, 0.0000), 0.0480, WHITE),
    ("link3", (0.0825, 0.0500, 0), (0.0825, 0.0620, 0), 0.0520, GREY),
    ("link3", (0.0825, -0.0620, 0), (0.0825, -0.0500, 0), 0.0520, GREY),
    ("link4", (0, 0, 0.0000), (-0.0825, 0, 0.0800), 0.0480, WHITE),
    ("link4", (-0.0825, 0, 0.1400), (-0.0825, 0, 0.1640), 0.0530, GREY),
    ("link5", (0, 0.0, -0.1100), (0, 0.05, -0.0500), 0.0400, WHITE),
    ("link6", (0, 0.0400, 0), (0, 0.0510, 0), 0.0470, GREY),
    ("link6", (0, -0.0510, 0), (0, -0.0400, 0), 0.0470, GREY),
    ("link6", (0, 0, 0.0050), (0.088, 0, 0.0050), 0.0430, WHITE),
    ("link7", (0, 0, -0.0600), (0, 0, -0.0100), 0.0400, WHITE),
    ("link7", (0, 0, -0.1070), (0, 0, -0.0950), 0.0420, DARK),
    ("hand", (0, -0.0840, 0.0300), (0, 0.0840, 0.0300), 0.0210, WHITE),
]
# The same of boxes: body, centre, half sizes (m), paint.
BOX_LOOKS = [
    ("base", (-0.02, 0, 0.005), (0.12, 0.10, 0.005), GREY),
    ("hand", (0, 0, 0.0300), (0.0260, 0.0960, 0.0260), WHITE),
    ("hand", (0, 0, 0.0590), (0.0200, 0.0900, 0.0040), DARK),
    ("left_finger", (0, 0.0145, 0.0130), (0.0100, 0.0080, 0.0140), GREY),
    ("left_finger", (0, 0.0120, 0.0370), (0.0095, 0.0055, 0.0180), GREY),
    ("left_finger", (0, 0.0055, 0.0445), (0.0080, 0.0038, 0.0083), RUBBER),
    ("right_finger", (0, -0.0145, 0.0130), (0.0100, 0.0080, 0.0140), GREY),
    ("right_finger", (0, -0.0120, 0.0370), (0.0095, 0.0055, 0.0180), GREY),
    ("right_finger", (0, -0.0055, 0.0445), (0.0080, 0.0038, 0.0083), RUBBER),
]
# The hand's frame: z out of the tool, fingers along y, turned by -45 degrees about the flange as it is mounted.
FLANGE = 0.107  # m, from joint 7 to the hand
HAND_QUAT = (0.0, math.cos(math.pi / 8), math.sin(math.pi / 8), 0.0)
HAND_MASS = 0.73  # kg
HAND_HALF = (0.026, 0.10, 0.030)  # m
FINGER_MASS = 0.015  # kg
FINGER_START = 0.0584  # m, of a finger's frame along the hand's z
FINGER_TRAVEL = 0.04  # m, of each finger
FINGER_ARMATURE = 0.1  # kg
FINGER_DAMPING = 10.0  # N s/m
PAD_HALF = (0.0085, 0.004, 0.0085)  # m
PAD_CENTRE = (0.0, 0.0055, 0.0445)  # m, of the left finger's; it touches the other pad when closed
PAD_BASE = (
    0.0015  # m, by which the pad stands off the middle when closed, as the published boxes do
)
GRIP_FORCE = 70.0  # N, continuous
GRIP_SPEED = 0.05  # m/s, of each finger
GRIP_KP = 2000.0  # N/m
GRIP_TIME_CONSTANT = 0.03  # s
TOOL = 0.1034  # m, of the point between the fingertips along the hand's z (Franka's default tool frame)
# The tool points straight down over (0.50, 0) m, 0.25 m above the base plane; the fingers move along y.
HOME = (0.0, -0.0418, 0.0, -2.3343, 0.0, 2.2925, math.pi / 4)


def joints() -> tuple[Joint, ...]:
    """The arm's joints and both fingers (way of each from the middle, m), in the order of the contract."""
    arm = [
        Joint(name, *link.limits, home=home, velocity=link.speed, acceleration=link.acceleration)
        for (name, link), home in zip(LINKS.items(), HOME, strict=True)
    ]
    fingers = [
        Joint(
            name,
            0.0,
            FINGER_TRAVEL,
            home=FINGER_TRAVEL,
            velocity=GRIP_SPEED,
            units="m",
            grips=True,
        )
        for name in FINGERS
    ]
    return (*arm, *fingers)


FINGERS = ("finger_joint1", "finger_joint2")


def spec() -> mujoco.MjSpec:
    """The arm on its base at the origin, z up, with actuators and a site `tool` between the fingertips."""
    s = mujoco.MjSpec()
    s.modelname = "panda"
    s.compiler.degree = False
    body = s.worldbody.add_body(
        name="base",
        mass=BASE_MASS,
        ipos=[-0.04, 0, 0.06],
        inertia=cylinder_inertia(BASE_MASS, 0.07, 0.14, "z"),
        gravcomp=1,
    )
    for number, (name, link) in enumerate(LINKS.items(), start=1):
        body = _add_link(s, body, number, name, link)
    for name, part, start, end, radius in TUBES:
        add_tube(s, s.body(name), f"{name}_{part}", start, end, radius, WHITE)
    # These overlap by construction: capsules have round ends.
    pairs = (
        ("base", "link1"),
        ("base", "link2"),
        ("link1", "link3"),
        ("link3", "link5"),
        ("link5", "link7"),
    )
    for one, two in pairs:
        s.add_exclude(bodyname1=one, bodyname2=two)
    _add_hand(s, body)
    for name, *tube in LOOKS:
        looks.tube(s, s.body(name), *tube)
    for name, *box in BOX_LOOKS:
        looks.box(s, s.body(name), *box)
    return s


def _add_link(
    s: mujoco.MjSpec, parent: mujoco.MjsBody, number: int, name: str, link: Link
) -> mujoco.MjsBody:
    """A link with its joint and its position servo."""
    body = parent.add_body(
        name=f"link{number}",
        pos=link.offset,
        mass=link.mass,
        ipos=link.centre,
        inertia=cylinder_inertia(link.mass, INERTIA_RADIUS, link.length, link.along),
        gravcomp=1,
    )
    body.add_joint(
        name=name, axis=link.axis, range=link.limits, armature=ARMATURE, damping=[DAMPING, 0, 0]
    )
    servo = s.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(kp=link.kp, kv=TIME_CONSTANT * link.kp)
    servo.ctrlrange = link.limits
    servo.forcerange = (-link.torque, link.torque)
    return body


def _add_hand(s: mujoco.MjSpec, flange: mujoco.MjsBody) -> None:
    """The hand on the flange, with its fingers and the servos that drive them together."""
    hand = flange.add_body(
        name="hand",
        pos=(0, 0, -FLANGE),
        quat=HAND_QUAT,
        gravcomp=1,
        mass=HAND_MASS,
        ipos=[0, 0, 0.03],
        inertia=cylinder_inertia(HAND_MASS, HAND_HALF[0], 2 * HAND_HALF[1], "y"),
    )
    hand.add_geom(
        name="hand",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[0, 0, 0.03],
        size=HAND_HALF,
        mass=0,
        group=3,
    )
    hand.add_site(name="tool", pos=[0, 0, TOOL], size=[0.005, 0, 0], rgba=(0, 0, 0, 0))
    for side, sign, joint in (("left", 1, FINGERS[0]), ("right", -1, FINGERS[1])):
        _add_finger(s, hand, side, sign, joint)
    coupling = s.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT,
        name1=FINGERS[1],
        name2=FINGERS[0],
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
    )
    coupling.data[:5] = [0, 1, 0, 0, 0]  # the same position
    coupling.solref[:] = [0.014, 1]  # as stiff as a substep of 6.7 ms allows
    coupling.solimp[:2] = [0.995, 0.999]


def _add_finger(s: mujoco.MjSpec, hand: mujoco.MjsBody, side: str, sign: int, joint: str) -> None:
    """A finger on a slide that opens along y times `sign`, its pad, and its servo."""
    finger = hand.add_body(name=f"{side}_finger", pos=[0, 0, FINGER_START], gravcomp=1)
    slide = finger.add_joint(
        name=joint,
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[0, sign, 0],
        range=[0, FINGER_TRAVEL],
        armature=FINGER_ARMATURE,
        damping=[FINGER_DAMPING, 0, 0],
        solref_limit=[0.014, 1],
    )
    slide.solimp_limit[:2] = [0.98, 0.995]
    x, y, z = PAD_CENTRE
    pad = finger.add_geom(
        name=f"{side}_pad",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[x, sign * y, z],
        size=PAD_HALF,
        mass=FINGER_MASS,
        group=3,
        friction=[1.0, 0.01, 0.0002],
        condim=4,
        priority=1,
        solref=[0.014, 1],
    )
    pad.solimp[:2] = [0.95, 0.99]
    # The rest of the finger, from its root to the tip: what stands beside the pad.
    finger.add_geom(
        name=f"{side}_finger",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[0, sign * 0.0135, 0.027],
        size=[0.0095, 0.0065, 0.027],
        mass=0,
        group=3,
    )
    drive = s.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    drive.set_to_position(kp=GRIP_KP, kv=GRIP_TIME_CONSTANT * GRIP_KP)
    drive.ctrlrange = [0, FINGER_TRAVEL]
    drive.forcerange = [-GRIP_FORCE, GRIP_FORCE]


ROBOT = Robot(
    name="panda",
    title="Franka Emika Panda arm with the Franka Hand",
    spec=spec,
    joints=joints(),
    sites=("tool",),
)


class Panda(Entity):
    """The arm in a scene: its tool point is between the fingertips, its pads are those of the fingers."""

    tool_site = "tool"
    pads = ("left_pad", "right_pad")

    def add_wrist_camera(self, s: mujoco.MjSpec) -> None:
        """A camera `wrist` on the hand that looks along the tool, with the fingertips low in its image."""
        looks.box(s, s.body("hand"), (0.070, 0, 0.010), (0.012, 0.045, 0.012), DARK)
        add_camera(
            s,
            "wrist",
            eye=(0.085, 0, 0.010),
            target=(0.015, 0, 0.180),
            fovy=62,
            body="hand",
            up=(1, 0, 0),
        )


ARM = Panda()


def _tool_kinematics(like: Like) -> Kinematics:
    interface = ROBOT.interface()
    (tool,) = (site for site in interface.sites if site.name == Panda.tool_site)
    return Kinematics([tool], interface, like)


TOOL_KINEMATICS = Constants(_tool_kinematics)
"""Forward kinematics of the tool point, `Kinematics`, for arrays of any kind."""
