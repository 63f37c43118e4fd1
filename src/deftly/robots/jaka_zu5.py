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
from deftly.sim import looks
from deftly.sim.scene import add_camera, add_tube, cylinder_inertia

MASS_SCALE = 1 / 3.925
WHITE = looks.Paint("jaka_white", (0.86, 0.87, 0.89, 1), specular=0.4, shininess=0.5)
GREY = looks.Paint("jaka_grey", (0.58, 0.61, 0.64, 1), specular=0.6, shininess=0.6)
DARK = looks.Paint("jaka_dark", (0.13, 0.14, 0.16, 1), specular=0.3, shininess=0.4)
RED = looks.Paint("jaka_red", (0.76, 0.13, 0.11, 1), specular=0.4, shininess=0.5)
RUBBER = looks.Paint("jaka_rubber", (0.20, 0.21, 0.22, 1), specular=0.05, shininess=0.1)
# name, offset from the parent (m), axis, range (rad), URDF mass (kg), centre of mass (m), length and radius of the
# inertia cylinder (m), its axis, torque limit (N m), kp (N m/rad). kv = TIME_CONSTANT * kp: the same for all joints, so
# that joints coupled to each other have the same tracking error relative to their speed, and stay in step.
TIME_CONSTANT = 0.08  # s
TURN = (-6.28, 6.28)
LIFT = (-1.48, 4.62)
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
# Links that collide, as slimmer capsules than the cylinders that are drawn: body, name, from, to, radius (m), paint.
TUBES = [
    ("base", "foot", (0, 0, 0), (0, 0, 0.03), 0.085, DARK),
    ("base", "body", (0, 0, 0.03), (0, 0, 0.065), 0.072, WHITE),
    ("link_1", "shoulder", (0, 0, -0.055), (0, 0, 0.05), 0.066, WHITE),
    ("link_2", "motor", (0, 0.068, 0), (0, 0.205, 0), 0.066, WHITE),
    ("link_2", "arm", (0.05, 0.14315, 0), (0.38, 0.14315, 0), 0.05, WHITE),
    ("link_2", "elbow", (0.43, 0.075, 0), (0.43, 0.195, 0), 0.056, WHITE),
    ("link_3", "elbow", (0, -0.055, 0), (0, 0.073, 0), 0.054, WHITE),
    ("link_3", "arm", (0.05, 0.0106, 0), (0.33, 0.0106, 0), 0.041, WHITE),
    ("link_3", "wrist", (0.3685, -0.045, 0), (0.3685, 0.066, 0), 0.042, WHITE),
    ("link_4", "wrist", (0, -0.046, 0), (0, 0.045, 0), 0.041, WHITE),
    ("link_5", "wrist", (0, 0, -0.045), (0, 0, 0.046), 0.041, WHITE),
]
# What is drawn besides, and does not collide: body, from, to, radius (m), paint.
LOOKS = [
    ("base", (0, 0, 0.0300), (0, 0, 0.0330), 0.0735, GREY),
    ("base", (0.1150, 0, 0.045), (0.0600, 0, 0.045), 0.0110, DARK),  # the cable's socket
    ("link_1", (0, 0, -0.0575), (0, 0, -0.0540), 0.0675, DARK),
    ("link_1", (0, 0, 0.0500), (0, 0, 0.0540), 0.0660, DARK),
    ("link_1", (0, 0, 0.0540), (0, 0, 0.0640), 0.0630, RED),
    ("link_1", (0, 0.0500, 0), (0, 0.0690, 0), 0.0600, GREY),
    ("link_2", (0, 0.0665, 0), (0, 0.0705, 0), 0.0675, DARK),
    ("link_2", (0, 0.2050, 0), (0, 0.2085, 0), 0.0660, DARK),
    ("link_2", (0, 0.2085, 0), (0, 0.2190, 0), 0.0630, RED),
    ("link_2", (0.0480, 0.14315, 0), (0.0760, 0.14315, 0), 0.0540, WHITE),
    ("link_2", (0.0760, 0.14315, 0), (0.0790, 0.14315, 0), 0.0520, GREY),
    ("link_2", (0.3580, 0.14315, 0), (0.3850, 0.14315, 0), 0.0530, WHITE),
    ("link_2", (0.3550, 0.14315, 0), (0.3580, 0.14315, 0), 0.0515, GREY),
    ("link_2", (0.43, 0.1950, 0), (0.43, 0.1980, 0), 0.0560, DARK),
    ("link_2", (0.43, 0.1980, 0), (0.43, 0.2070, 0), 0.0530, RED),
    ("link_3", (0, 0.0715, 0), (0, 0.0755, 0), 0.0555, DARK),
    ("link_3", (0, -0.0580, 0), (0, -0.0550, 0), 0.0540, DARK),
    ("link_3", (0, -0.0670, 0), (0, -0.0580, 0), 0.0510, RED),
    ("link_3", (0.0420, 0.0106, 0), (0.0680, 0.0106, 0), 0.0440, WHITE),
    ("link_3", (0.0680, 0.0106, 0), (0.0710, 0.0106, 0), 0.0425, GREY),
    ("link_3", (0.3685, -0.0480, 0), (0.3685, -0.0450, 0), 0.0420, DARK),
    ("link_3", (0.3685, -0.0560, 0), (0.3685, -0.0480, 0), 0.0390, RED),
    ("link_3", (0.3685, 0.0645, 0), (0.3685, 0.0695, 0), 0.0430, DARK),
    ("link_4", (0, 0.0450, 0), (0, 0.0480, 0), 0.0410, DARK),
    ("link_4", (0, 0.0480, 0), (0, 0.0560, 0), 0.0380, RED),
    ("link_4", (0, 0, -0.0660), (0, 0, -0.0300), 0.0370, WHITE),
    ("link_4", (0, 0, -0.0695), (0, 0, -0.0660), 0.0390, DARK),
    ("link_5", (0, 0, -0.0480), (0, 0, -0.0450), 0.0410, DARK),
    ("link_5", (0, 0, -0.0560), (0, 0, -0.0480), 0.0380, RED),
    ("link_5", (0, -0.0750, 0), (0, -0.0300, 0), 0.0360, WHITE),
    ("link_5", (0, -0.0785, 0), (0, -0.0750, 0), 0.0380, DARK),
    ("link_6", (0, 0, 0), (0, 0.0280, 0), 0.0360, GREY),
    ("link_6", (0, 0.0280, 0), (0, 0.0320, 0), 0.0315, DARK),
    ("gripper", (0, 0, 0), (0, 0, 0.0150), 0.0360, DARK),
]
# The same of boxes: body, centre, half sizes (m), paint.
BOX_LOOKS = [
    ("base", (0, 0, 0.006), (0.105, 0.105, 0.006), GREY),
    ("gripper", (0, 0, 0.0360), (0.0315, 0.0610, 0.0250), DARK),
    ("gripper", (0, 0, 0.0655), (0.0250, 0.0600, 0.0050), GREY),
    ("gripper", (0, 0, 0.0400), (0.0328, 0.0250, 0.0070), RED),
    ("finger_left", (0, 0.0020, -0.0360), (0.0150, 0.0110, 0.0080), GREY),
    ("finger_left", (0, 0.0035, 0.0040), (0.0105, 0.0042, 0.0350), GREY),
    ("finger_left", (0, -0.0035, 0.0080), (0.0118, 0.0044, 0.0318), RUBBER),
    ("finger_right", (0, -0.0020, -0.0360), (0.0150, 0.0110, 0.0080), GREY),
    ("finger_right", (0, -0.0035, 0.0040), (0.0105, 0.0042, 0.0350), GREY),
    ("finger_right", (0, 0.0035, 0.0080), (0.0118, 0.0044, 0.0318), RUBBER),
]
SPEED = 3.14  # rad/s, of all joints (URDF)
ARMATURE = 0.1  # kg m2, of all joints (public Zu5 simulation)
FINGER_TRAVEL = 0.04  # m, of each finger
FINGER_CLOSED = 0.020  # m, from the middle to the centre of a closed finger
FINGER_HALF = (0.012, 0.008, 0.040)  # m
GRIPPER_SPEED = 0.15  # m/s (2F-85 class)
GRIPPER_KP = 2000.0  # N/m
GRIPPER_FORCE = 60.0  # N
GRIPPER_MASS = 0.777  # kg, of a 2F-85's base
GRIPPER_HALF = (0.032, 0.062, 0.03)  # m, of its housing
GRIPPER_TIME_CONSTANT = 0.03  # s
BASE_MASS = 1.029  # kg
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
    arm = []
    for link, q in zip(LINKS, HOME):
        name, limits = link[0], link[3]
        arm.append(Joint(name, *limits, home=q, velocity=SPEED))
    gripper = Joint(
        "gripper",
        0.0,
        FINGER_TRAVEL,
        home=FINGER_TRAVEL,
        velocity=GRIPPER_SPEED,
        units="m",
        grips=True,
    )
    return (*arm, gripper)


def spec() -> mujoco.MjSpec:
    """The arm on its base plate at the origin, z up, with actuators and a `pinch` site between the fingertips."""
    s = mujoco.MjSpec()
    s.modelname = "jaka_zu5"
    s.compiler.degree = False
    body = s.worldbody.add_body(
        name="base",
        mass=BASE_MASS,
        inertia=cylinder_inertia(BASE_MASS, 0.08, 0.08, "z"),
        gravcomp=1,
        ipos=[0, 0, 0.03],
    )
    for link in LINKS:
        body = _add_link(s, body, *link)
    for name in ("link_1", "link_2"):  # overlap the base by construction: capsules have round ends
        s.add_exclude(bodyname1="base", bodyname2=name)
    for name, part, *tube in TUBES:
        add_tube(s, s.body(name), f"{name}_{part}", *tube)
    _add_gripper(s, body)
    for name, *tube in LOOKS:
        looks.tube(s, s.body(name), *tube)
    for name, *box in BOX_LOOKS:
        looks.box(s, s.body(name), *box)
    return s


def _add_link(
    s: mujoco.MjSpec,
    parent: mujoco.MjsBody,
    name: str,
    offset: tuple,
    axis: tuple,
    limits: tuple[float, float],
    urdf_mass: float,
    com: tuple,
    length: float,
    radius: float,
    along: str,
    torque: float,
    kp: float,
) -> mujoco.MjsBody:
    """A link with its joint and its position servo: a row of `LINKS`."""
    mass = urdf_mass * MASS_SCALE
    body = parent.add_body(
        name=f"link_{name[-1]}",
        pos=offset,
        mass=mass,
        ipos=com,
        inertia=cylinder_inertia(mass, radius, length, along),
        gravcomp=1,
    )
    body.add_joint(name=name, axis=axis, range=limits, armature=ARMATURE, damping=[1.0, 0, 0])
    servo = s.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(kp=kp, kv=TIME_CONSTANT * kp)
    servo.ctrlrange = limits
    servo.forcerange = (-torque, torque)
    return body


def _add_gripper(s: mujoco.MjSpec, flange: mujoco.MjsBody) -> None:
    """The gripper on the flange: its z points out of the tool, its fingers move along y."""
    palm = flange.add_body(
        name="gripper",
        quat=[0.5**0.5, 0.5**0.5, 0, 0],
        gravcomp=1,
        mass=GRIPPER_MASS,
        ipos=[0, 0, 0.04],
        inertia=_box_inertia(GRIPPER_MASS, GRIPPER_HALF),
    )
    palm.add_geom(
        name="palm",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[0, 0, 0.04],
        size=GRIPPER_HALF,
        mass=0,
        group=3,
    )
    palm.add_site(name="pinch", pos=[0, 0, PINCH], size=[0.005, 0, 0], rgba=(0, 0, 0, 0))
    _add_finger(palm, "left", 1, "gripper")
    _add_finger(palm, "right", -1, "gripper_mimic")
    mimic = s.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT,
        name1="gripper_mimic",
        name2="gripper",
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
    )
    mimic.data[:5] = [0, 1, 0, 0, 0]  # the same position
    drive = s.add_actuator(name="gripper", target="gripper", trntype=mujoco.mjtTrn.mjTRN_JOINT)
    drive.set_to_position(kp=GRIPPER_KP, kv=GRIPPER_TIME_CONSTANT * GRIPPER_KP)
    drive.ctrlrange = [0, FINGER_TRAVEL]
    drive.forcerange = [-GRIPPER_FORCE, GRIPPER_FORCE]


def _box_inertia(mass: float, half: tuple[float, float, float]) -> list[float]:
    """Principal moments (kg m2) of a solid box about its centre, from its half extents (m)."""
    x, y, z = half
    return [
        mass / 3 * (y**2 + z**2),
        mass / 3 * (x**2 + z**2),
        mass / 3 * (x**2 + y**2),
    ]


def _add_finger(palm: mujoco.MjsBody, side: str, sign: int, joint: str) -> None:
    """A finger on a slide that opens along y times `sign`."""
    finger = palm.add_body(name=f"finger_{side}", pos=[0, sign * FINGER_CLOSED, 0.115], gravcomp=1)
    slide = finger.add_joint(
        name=joint,
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[0, sign, 0],
        range=[0, FINGER_TRAVEL],
        armature=0.3,
        damping=[10.0, 0, 0],
        solref_limit=[0.014, 1],
    )
    slide.solimp_limit[:2] = [0.98, 0.995]
    pad = finger.add_geom(
        name=f"pad_{side}",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=FINGER_HALF,
        mass=0.05,
        group=3,
        friction=[1.0, 0.01, 0.0002],
        condim=4,
        priority=1,
        solref=[0.014, 1],  # as stiff as a substep of 6.7 ms allows
    )
    pad.solimp[:2] = [0.95, 0.99]


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
        """A camera `wrist` on the gripper that looks along the tool, with the fingertips low in its image."""
        looks.box(s, s.body("gripper"), (-0.090, 0, 0.028), (0.012, 0.030, 0.011), DARK)
        looks.box(s, s.body("gripper"), (-0.055, 0, 0.026), (0.026, 0.014, 0.005), GREY)
        add_camera(
            s,
            "wrist",
            eye=(-0.090, 0, 0.045),
            target=(-0.020, 0, 0.200),
            fovy=62,
            body="gripper",
            up=(-1, 0, 0),
        )


ARM = JakaZu5()
