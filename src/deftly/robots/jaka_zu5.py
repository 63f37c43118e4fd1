"""JAKA Zu5: a six-joint arm with a gripper reduced to two parallel fingers on slides, 24 to 104 mm apart, moved as one.

Kinematics and limits are the maker's (`jaka_zu5.urdf` of JakaCobot/jaka_robot): every body below is aligned with the
world when all joints are zero, the arm stretched along +x. Masses are the maker's divided by 3.925, which makes
24.6 kg of an implausible 96.4 kg (two of its links are exactly that factor heavier than their Zu7 twins: a CAD
density left at steel). Inertias are those of solid cylinders of the link's size. Torque limits and the ratios of the
servo gains follow a public Zu5 simulation; the maker publishes neither. Gravity is compensated, as in reality.
"""

import math

import mujoco

from deftly.contract import Coupling, Joint
from deftly.robots import Robot
from deftly.robots.entity import Entity
from deftly.sim.scene import add_camera, cylinder_inertia

MASS_SCALE = 1 / 3.925
WHITE, GREY, DARK, RED = (
    (0.93, 0.94, 0.95, 1),
    (0.62, 0.65, 0.68, 1),
    (0.16, 0.17, 0.19, 1),
    (0.83, 0.16, 0.14, 1),
)
# name, offset from the parent (m), axis, range (rad), URDF mass (kg), centre of mass (m), length and radius of the
# inertia cylinder (m), its axis, torque limit (N m), kp (N m/rad). kv = LAG * kp: one lag for all joints, so that
# joints coupled to each other stay in step while they move.
LAG = 0.08
TURN, LIFT = (-6.28, 6.28), (-1.48, 4.62)
LINKS = [
    (
        "joint_1",
        (0, 0, 0.12015),
        (0, 0, 1),
        TURN,
        15.135,
        (0, 0.0033, -0.0015),
        0.13,
        0.06,
        "z",
        150,
        2400,
    ),
    (
        "joint_2",
        (0, 0, 0),
        (0, -1, 0),
        LIFT,
        45.847,
        (0.215, 0.14315, 0),
        0.50,
        0.06,
        "x",
        150,
        2400,
    ),
    (
        "joint_3",
        (0.43, 0, 0),
        (0, -1, 0),
        (-3.05, 3.05),
        18.069,
        (0.19087, 0.010587, 0),
        0.42,
        0.05,
        "x",
        150,
        1200,
    ),
    (
        "joint_4",
        (0.3685, 0.114, 0),
        (0, -1, 0),
        LIFT,
        5.5525,
        (0, -0.00267, -0.0058),
        0.11,
        0.04,
        "y",
        28,
        400,
    ),
    (
        "joint_5",
        (0, 0, -0.1135),
        (0, 0, -1),
        TURN,
        6.3339,
        (0, 0.0029, 0.0023),
        0.11,
        0.04,
        "z",
        28,
        300,
    ),
    (
        "joint_6",
        (0, -0.107, 0),
        (0, -1, 0),
        TURN,
        1.4169,
        (0, 0.0212, 0),
        0.04,
        0.035,
        "y",
        28,
        200,
    ),
]
# Tubes of each body in its own frame: body, name, from, to, radius, colour. Names that end in _look do not collide.
TUBES = [
    ("base", "foot", (0, 0, 0), (0, 0, 0.03), 0.085, DARK),
    ("base", "body", (0, 0, 0.03), (0, 0, 0.065), 0.072, WHITE),
    ("link_1", "shoulder", (0, 0, -0.055), (0, 0, 0.05), 0.066, WHITE),
    ("link_1", "cap_look", (0, 0, 0.05), (0, 0, 0.064), 0.06, GREY),
    ("link_2", "motor", (0, 0.068, 0), (0, 0.205, 0), 0.066, WHITE),
    ("link_2", "motor_cap_look", (0, 0.205, 0), (0, 0.218, 0), 0.06, RED),
    ("link_2", "arm", (0.05, 0.14315, 0), (0.38, 0.14315, 0), 0.05, WHITE),
    ("link_2", "elbow", (0.43, 0.075, 0), (0.43, 0.195, 0), 0.056, WHITE),
    ("link_2", "elbow_cap_look", (0.43, 0.195, 0), (0.43, 0.207, 0), 0.051, RED),
    ("link_3", "elbow", (0, -0.055, 0), (0, 0.073, 0), 0.054, WHITE),
    ("link_3", "elbow_cap_look", (0, -0.067, 0), (0, -0.055, 0), 0.049, GREY),
    ("link_3", "arm", (0.05, 0.0106, 0), (0.33, 0.0106, 0), 0.041, WHITE),
    ("link_3", "wrist", (0.3685, -0.045, 0), (0.3685, 0.066, 0), 0.042, WHITE),
    ("link_3", "wrist_cap_look", (0.3685, -0.056, 0), (0.3685, -0.045, 0), 0.038, GREY),
    ("link_4", "wrist", (0, -0.046, 0), (0, 0.045, 0), 0.041, WHITE),
    ("link_4", "wrist_cap_look", (0, 0.045, 0), (0, 0.056, 0), 0.037, RED),
    ("link_4", "neck_look", (0, 0, -0.065), (0, 0, -0.03), 0.036, WHITE),
    ("link_5", "wrist", (0, 0, -0.045), (0, 0, 0.046), 0.041, WHITE),
    ("link_5", "wrist_cap_look", (0, 0, -0.056), (0, 0, -0.045), 0.037, RED),
    ("link_5", "neck_look", (0, -0.075, 0), (0, -0.03, 0), 0.036, WHITE),
    ("link_6", "flange_look", (0, 0, 0), (0, 0.032, 0), 0.036, GREY),
]
SPEED, ARMATURE = 3.14, 0.1  # of all joints: rad/s (URDF), kg m2 (public Zu5 simulation)
FINGER_TRAVEL, FINGER_CLOSED = (
    0.04,
    0.020,
)  # m, of each finger; from the middle to the centre of a closed one
FINGER_HALF = (0.012, 0.008, 0.040)  # m
GRIPPER_SPEED, GRIPPER_KP, GRIPPER_FORCE = 0.15, 2000.0, 60.0  # m/s (2F-85 class), N/m, N
PINCH = 0.140  # m from the flange to the point between the fingertips
# The pinch point is over (0.50, 0.00) m, 0.25 m above the base plane; the tool points down, the fingers move along y.
HALF_PI = math.pi / 2
HOME = (-0.23, 1.5506, -1.6951, HALF_PI - 1.5506 + 1.6951, HALF_PI, HALF_PI - 0.23)
# The wrist follows joints 1 to 3: the tool points straight down, the fingers stay square to the base frame.
TOOL_DOWN = (
    Coupling("joint_4", (("joint_2", -1.0), ("joint_3", -1.0)), HALF_PI),
    Coupling("joint_5", (), HALF_PI),
    Coupling("joint_6", (("joint_1", 1.0),), HALF_PI),
)


def joints() -> tuple[Joint, ...]:
    """The arm's joints and the gripper (opening of one finger, m), in the order of the contract."""
    arm = tuple(Joint(link[0], *link[3], home=q, velocity=SPEED) for link, q in zip(LINKS, HOME))
    return (
        *arm,
        Joint(
            "gripper",
            0.0,
            FINGER_TRAVEL,
            home=FINGER_TRAVEL,
            velocity=GRIPPER_SPEED,
            units="m",
            grips=True,
        ),
    )


def spec() -> mujoco.MjSpec:
    """The arm on its base plate at the origin, z up, with actuators and a `pinch` site between the fingertips."""
    s = mujoco.MjSpec()
    s.modelname, s.compiler.degree = "jaka_zu5", False
    body = s.worldbody.add_body(
        name="base", mass=1.029, inertia=cylinder_inertia(1.029, 0.08, 0.08, "z"), gravcomp=1
    )
    body.ipos = [0, 0, 0.03]
    for name, offset, axis, limits, mass, com, length, radius, along, torque, kp in LINKS:
        mass *= MASS_SCALE
        inertia = cylinder_inertia(mass, radius, length, along)
        body = body.add_body(
            name=f"link_{name[-1]}", pos=offset, mass=mass, ipos=com, inertia=inertia, gravcomp=1
        )
        body.add_joint(name=name, axis=axis, range=limits, armature=ARMATURE, damping=[1.0, 0, 0])
        actuator = s.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.set_to_position(kp=kp, kv=LAG * kp)
        actuator.ctrlrange, actuator.forcerange = limits, (-torque, torque)
    for link in ("link_1", "link_2"):  # overlap the base by construction: capsules have round ends
        s.add_exclude(bodyname1="base", bodyname2=link)
    for link, name, *tube in TUBES:
        _tube(s.body(link), f"{link}_{name}", *tube)
    _add_gripper(s, body)
    return s


def _tube(
    body: mujoco.MjsBody, name: str, start: tuple, end: tuple, radius: float, colour: tuple
) -> None:
    """A cylinder of the look and, unless its name ends in `_look`, a capsule of the same length that collides."""
    fromto = [*start, *end]
    look = body.add_geom(
        name=f"{name}_visual",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        fromto=fromto,
        size=[radius, 0, 0],
    )
    look.rgba, look.group, look.contype, look.conaffinity, look.mass = colour, 2, 0, 0, 0
    if not name.endswith("_look"):
        solid = body.add_geom(
            name=name, type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=fromto, size=[0.9 * radius, 0, 0]
        )
        solid.group, solid.mass, solid.rgba = 3, 0, colour


def _add_gripper(s: mujoco.MjSpec, flange: mujoco.MjsBody) -> None:
    """The gripper on the flange: its z points out of the tool, its fingers move along y."""
    mass, half = 0.777, (0.032, 0.062, 0.03)  # 2F-85 base mass; housing, m
    palm = flange.add_body(
        name="gripper", quat=[0.5**0.5, 0.5**0.5, 0, 0], gravcomp=1, mass=mass, ipos=[0, 0, 0.04]
    )
    palm.inertia = [mass / 3 * (half[j] ** 2 + half[k] ** 2) for j, k in ((1, 2), (0, 2), (0, 1))]
    _tube(palm, "coupling_look", (0, 0, 0), (0, 0, 0.015), 0.034, DARK)
    palm.add_geom(
        name="palm",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[0, 0, 0.04],
        size=half,
        mass=0,
        rgba=DARK,
        group=2,
    )
    palm.add_site(name="pinch", pos=[0, 0, PINCH], size=[0.005, 0, 0], rgba=(0, 0, 0, 0))
    for side, sign, joint in (("left", 1, "gripper"), ("right", -1, "gripper_mimic")):
        finger = palm.add_body(
            name=f"finger_{side}", pos=[0, sign * FINGER_CLOSED, 0.115], gravcomp=1
        )
        slide = finger.add_joint(name=joint, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, sign, 0])
        slide.range, slide.armature, slide.damping = [0, FINGER_TRAVEL], 0.3, [10.0, 0, 0]
        slide.solref_limit, slide.solimp_limit[:2] = [0.014, 1], [0.98, 0.995]
        pad = finger.add_geom(
            name=f"pad_{side}", type=mujoco.mjtGeom.mjGEOM_BOX, size=FINGER_HALF, mass=0.05
        )
        pad.rgba, pad.group, pad.friction, pad.condim, pad.priority = (
            GREY,
            2,
            [1.0, 0.01, 0.0002],
            4,
            1,
        )
        pad.solref, pad.solimp[:2] = (
            [0.014, 1],
            [0.95, 0.99],
        )  # as stiff as a substep of 6.7 ms allows
    same = s.add_equality(type=mujoco.mjtEq.mjEQ_JOINT, name1="gripper_mimic", name2="gripper")
    same.objtype, same.data[:5] = mujoco.mjtObj.mjOBJ_JOINT, [0, 1, 0, 0, 0]
    drive = s.add_actuator(name="gripper", target="gripper", trntype=mujoco.mjtTrn.mjTRN_JOINT)
    drive.set_to_position(kp=GRIPPER_KP, kv=0.03 * GRIPPER_KP)
    drive.ctrlrange, drive.forcerange = [0, FINGER_TRAVEL], [-GRIPPER_FORCE, GRIPPER_FORCE]


ROBOT = Robot(
    name="jaka-zu5",
    title="JAKA Zu5 arm with a parallel-jaw gripper",
    spec=spec,
    joints=joints(),
    couplings=TOOL_DOWN,
    sites=("pinch",),
)


class JakaZu5(Entity):
    """The arm in a scene: its tool point is between the fingertips, its pads are the fingers."""

    tool_site = "pinch"
    pads = ("pad_left", "pad_right")

    def add_wrist_camera(self, s: mujoco.MjSpec) -> None:
        """A camera `wrist` on the gripper that looks along the tool."""
        add_camera(
            s,
            "wrist",
            eye=(0.12, 0, 0.03),
            target=(0, 0, 0.17),
            fovy=65,
            body="gripper",
            up=(0, 1, 0),
        )


ARM = JakaZu5()
