"""WildRobot: a humanoid of 3.3 kg on eight bus servos, hip pitch, hip roll, knee and ankle pitch of each leg.

Masses, centres of mass, moments of inertia, joint anchors and ranges are those of the public model
(`leeygang/wildrobot`, assets/wildrobot.xml at 5344fe2), each body turned so that all are aligned with the world when
all joints are zero. Its CAD differs by up to 2 mm between left and right; here the right leg is the mirror image of
the left, and the trunk is symmetric. The published home is a straight leg, with the knee at its stop; here it is the
slight crouch of the makers' later robot, with level feet.

Equal joint values of both legs are mirrored poses: positive hip pitch swings a leg forward, positive hip roll swings
it inward, positive knee bends it, positive ankle pitch points the toe down. The public model turns hip pitch and hip
roll of the right leg the other way. That is said once, by the signs of the motors; observations and actions know none.

Servo (Hiwonder HTD-45H, as the makers identified it): 21.1 N m/rad, 4 N m, armature, friction loss, and 0.585 N m s/rad
of damping in all. Of this the torque at standstill over the speed without load, 0.4 N m s/rad, is the motor's own (back
electromotive force), outside of its force limit: so no more than 4 N m (1 - speed / 10 rad/s) reach the joint.

There is no hip yaw and no ankle roll: a foot on the ground is level only while its leg is upright, and the robot turns
by strides of different length on slipping feet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import mujoco
import torch

from deftly.contract import Act, Derive, Joint, Motor, Observe, RobotInterface, Signal
from deftly.robots import Robot
from deftly.robots.legged import LEVEL, Ground, Legged, LeggedConfig
from deftly.sim import scene
from deftly.sim.randomize import Randomize
from deftly.sim.scene import Colour, Point
from deftly.sim.sensors import Noise

if TYPE_CHECKING:
    from torch import Tensor

    from deftly.sim.state import State

KP = 21.1  # N m/rad
TORQUE = 4.0  # N m
SPEED = 10.0  # rad/s, without load
ARMATURE = 0.024992  # kg m2
FRICTIONLOSS = 0.022275  # N m
DAMPING = TORQUE / SPEED  # N m s/rad, of the motor
KD = 0.5 + 0.08516 - DAMPING  # N m s/rad: what is left of the published damping of servo and joint
WEIGHT = 3.2972 * 9.81  # N
IMU = (0.0, 0.0, 0.1672)  # m, in the frame of the waist
MAX_BACKLASH = (
    0.0175  # rad, of a joint: 1 degree, where hobby servos with metal gears are worn; not published
)
# What the safety kernel may expect of a joint, beyond what the shipped walking policy shows in 1,344 randomized
# episodes under pushes: a tracking error of 0.29 rad, a command that moves by 0.15 rad while an encoder of 0.24 degrees
# gives the same number, and, where a command has this standard deviation, a gain of 0.40 (control.response).
LEAD = 0.4  # rad
FROZEN = 0.3  # rad
EXCITATION = 0.05  # rad
SWITCH_FORCE = 2.0  # N, at which a foot switch closes
HOME_HEIGHT = 0.4567  # m, of the waist when the robot stands at home

TRUNK_MASS = 1.28083  # kg
TRUNK_COM = (0.00207, 0.0, 0.07853)  # m
TRUNK_INERTIA = (
    0.00602084,
    0.00549671,
    0.00162867,
    0.0,
    -0.00020739,
    0.0,
)  # kg m2: xx yy zz xy xz yz

DARK = (0.15, 0.16, 0.18, 1)
GREY = (0.42, 0.45, 0.49, 1)
WHITE = (0.90, 0.91, 0.93, 1)
ORANGE = (0.93, 0.48, 0.16, 1)
RUBBER = (0.10, 0.10, 0.11, 1)


class Link(NamedTuple):
    """A body of the left leg, in the frame of the world when all joints are zero and the waist is at its origin."""

    joint: str
    anchor: Point  # m
    axis: Point
    limits: tuple[float, float]  # rad
    home: float  # rad
    mass: float  # kg
    com: Point  # m, from the anchor
    inertia: tuple[float, ...]  # kg m2: xx yy zz xy xz yz


LEG = (
    Link(
        "hip_pitch",
        (0.0, 0.0536, -0.0336),
        (0, -1, 0),
        (-0.08727, 1.5708),
        0.22,
        0.0849728,
        (0.00289, 0.0331, 0.00902),
        (2.002e-05, 2.443e-05, 1.926e-05, -8.3e-07, 3.9e-07, -1.47e-06),
    ),
    Link(
        "hip_roll",
        (0.0268, 0.0902, -0.0334),
        (-1, 0, 0),
        (-1.5708, 0.17453),
        0.0,
        0.236565,
        (-0.02652, -0.00095, -0.15944),
        (9.8191e-04, 9.8877e-04, 1.2648e-04, 0.0, 2.07e-06, -9.43e-06),
    ),
    Link(
        "knee",
        (0.0004, 0.0633, -0.2260),
        (0, 1, 0),
        (0.0, 1.39626),
        0.49,
        0.37567,
        (0.0006, 0.02687, -0.10272),
        (1.72202e-03, 1.63635e-03, 6.6674e-04, 1.0e-07, -1.789e-05, -2.276e-05),
    ),
    Link(
        "ankle_pitch",
        (0.0006, 0.0639, -0.4060),
        (0, 1, 0),
        (-0.69813, 0.7854),
        -0.27,
        0.311,
        (0.01858, 0.02694, -0.05098),
        (2.5345e-04, 6.1072e-04, 8.1399e-04, -1.03e-06, 1.186e-05, 8.8e-07),
    ),
)
SIDES = {"left": 1.0, "right": -1.0}
MIRRORED = ("hip_pitch", "hip_roll")  # whose motors turn the other way on the right
SOLE = -0.4683  # m, of the ground below the waist when the legs are straight
FOOT_Y = 0.0909  # m, of the middle of the left foot
PAD = 0.005  # m, radius of the edges on which a sole rests
TOE_X = 0.0956  # m, of the front edge
HEEL_X = -0.0602  # m, of the rear edge
EDGE = 0.035  # m, half the length of an edge between its rounded ends
FRICTION = (0.8, 0.005, 0.0001)  # sliding, torsional (m), rolling (m): rubber on a floor
# Drawn parts in the frame of the waist, legs straight: (link,) part, shape, centre or ends (m), size (m), colour.
BOX = mujoco.mjtGeom.mjGEOM_BOX
CAPSULE = mujoco.mjtGeom.mjGEOM_CAPSULE
CYLINDER = mujoco.mjtGeom.mjGEOM_CYLINDER
TRUNK = [
    ("pelvis", BOX, (0.0, 0.0, -0.012), (0.030, 0.066, 0.020), DARK),
    ("belly", BOX, (0.0, 0.0, 0.045), (0.028, 0.045, 0.042), GREY),
    ("chest", BOX, (0.0, 0.0, 0.145), (0.042, 0.078, 0.062), ORANGE),
    ("shoulder", CAPSULE, (0.0, -0.095, 0.180, 0.0, 0.095, 0.180), (0.022,), DARK),
    ("neck", CYLINDER, (0.0, 0.0, 0.205, 0.0, 0.0, 0.225), (0.016,), DARK),
    ("head", BOX, (0.004, 0.0, 0.252), (0.034, 0.038, 0.030), WHITE),
    ("eyes", BOX, (0.036, 0.0, 0.258), (0.004, 0.028, 0.010), DARK),
    ("left_arm", CAPSULE, (0.0, 0.112, 0.175, 0.010, 0.118, 0.045), (0.017,), WHITE),
    ("right_arm", CAPSULE, (0.0, -0.112, 0.175, 0.010, -0.118, 0.045), (0.017,), WHITE),
]
LOOKS = [
    ("hip_pitch", "servo", BOX, (0.004, 0.0800, -0.026), (0.022, 0.022, 0.016), DARK),
    ("hip_roll", "servo", BOX, (0.010, 0.0902, -0.050), (0.024, 0.022, 0.022), GREY),
    ("hip_roll", "thigh", CAPSULE, (0.002, 0.0902, -0.070, 0.001, 0.0902, -0.205), (0.022,), WHITE),
    ("knee", "servo", CYLINDER, (0.001, 0.062, -0.226, 0.001, 0.118, -0.226), (0.024,), DARK),
    ("knee", "shin", CAPSULE, (0.001, 0.0902, -0.245, 0.001, 0.0902, -0.385), (0.021,), WHITE),
    (
        "ankle_pitch",
        "servo",
        CYLINDER,
        (0.001, 0.064, -0.406, 0.001, 0.118, -0.406),
        (0.020,),
        DARK,
    ),
    ("ankle_pitch", "ankle", BOX, (0.004, 0.0909, -0.436), (0.020, 0.024, 0.018), GREY),
    ("ankle_pitch", "foot", BOX, (0.0177, 0.0909, -0.4593), (0.0829, 0.040, 0.008), DARK),
]


def joints() -> tuple[Joint, ...]:
    """The joints in the order of the contract: the left leg from the hip down, then the right one."""
    return tuple(
        Joint(
            f"{side}_{link.joint}",
            *link.limits,
            home=link.home,
            velocity=SPEED,
            lead=LEAD,
            frozen=FROZEN,
            excitation=EXCITATION,
        )
        for side in SIDES
        for link in LEG
    )


def motors() -> tuple[Motor, ...]:
    """The servos in the same order, with the signs of the public model."""
    found = []
    for side in SIDES:
        for link in LEG:
            turned = side == "right" and link.joint in MIRRORED
            found.append(Motor(f"{side}_{link.joint}", sign=-1 if turned else 1))
    return tuple(found)


def spec() -> mujoco.MjSpec:
    """The robot at its home height above the ground z = 0, on a free joint."""
    s = mujoco.MjSpec()
    s.modelname = "wildrobot"
    s.compiler.degree = False
    waist = s.worldbody.add_body(name="waist", pos=[0, 0, HOME_HEIGHT])
    waist.add_freejoint(name="waist")
    _set_mass(waist, TRUNK_MASS, TRUNK_COM, TRUNK_INERTIA, 1.0)
    waist.add_site(name="chest_imu", pos=IMU, size=[0.006, 0, 0], rgba=(0, 0, 0, 0))
    for _, shape, place, size, colour in TRUNK:
        _add_look(waist, shape, place, size, colour)
    for side, sign in SIDES.items():
        _add_leg(s, waist, side, sign)
    return s


def _add_leg(s: mujoco.MjSpec, waist: mujoco.MjsBody, side: str, sign: float) -> None:
    """The left leg, or with sign -1 its mirror image."""
    body = waist
    above: Point = (0.0, 0.0, 0.0)
    for link in LEG:
        name = f"{side}_{link.joint}"
        body = body.add_body(name=name, pos=_mirror(_minus(link.anchor, above), sign))
        _set_mass(body, link.mass, link.com, link.inertia, sign)
        _add_servo(s, body, link, sign)
        for of, _, shape, place, size, colour in LOOKS:
            if of == link.joint:
                _add_look(body, shape, _relative(place, link.anchor, sign), size, colour)
        above = link.anchor
    _add_sole(body, side, sign, above)


def _set_mass(
    body: mujoco.MjsBody, mass: float, com: Point, inertia: tuple[float, ...], sign: float
) -> None:
    """Mass, centre of mass and moments of inertia, as they are or mirrored."""
    xx, yy, zz, xy, xz, yz = inertia
    body.mass = mass
    body.ipos = _mirror(com, sign)
    body.fullinertia = (xx, yy, zz, sign * xy, xz, sign * yz)
    body.explicitinertial = True


def _add_servo(s: mujoco.MjSpec, body: mujoco.MjsBody, link: Link, sign: float) -> None:
    """A body's hinge and the position servo that turns it."""
    x, y, z = link.axis
    hinge = body.add_joint(
        name=body.name,
        range=link.limits,
        armature=ARMATURE,
        damping=[DAMPING, 0, 0],
        frictionloss=FRICTIONLOSS,
    )
    hinge.axis = (sign * x, y, sign * z)  # an axis of rotation mirrors with the opposite sign
    servo = s.add_actuator(name=body.name, target=body.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(kp=KP, kv=KD)
    servo.ctrlrange = link.limits
    servo.forcerange = (-TORQUE, TORQUE)


def _add_sole(foot: mujoco.MjsBody, side: str, sign: float, anchor: Point) -> None:
    """The edges on which a foot rests, toe and heel, and the inner edge with which feet hit each other."""
    z = SOLE + PAD
    for part, x in (("toe", TOE_X), ("heel", HEEL_X)):
        edge = (x, FOOT_Y - EDGE, z, x, FOOT_Y + EDGE, z)
        pad = foot.add_geom(name=f"{side}_{part}", type=CAPSULE, size=[PAD, 0, 0], mass=0)
        pad.fromto = _relative(edge, anchor, sign)
        pad.friction = FRICTION
        pad.priority = 1
        pad.rgba = RUBBER
        pad.contype = 0  # the ground alone
        pad.group = 2
    inner = (HEEL_X, FOOT_Y - EDGE, z + PAD, TOE_X, FOOT_Y - EDGE, z + PAD)
    rail = foot.add_geom(name=f"{side}_inner", type=CAPSULE, size=[PAD, 0, 0], mass=0)
    rail.fromto = _relative(inner, anchor, sign)
    rail.rgba = DARK
    rail.contype = rail.conaffinity = 2  # the other foot alone
    rail.group = 3
    middle = ((TOE_X + HEEL_X) / 2, FOOT_Y, SOLE)
    place = _relative(middle, anchor, sign)
    foot.add_site(name=f"{side}_foot", pos=place, size=[0.004, 0, 0], rgba=(0, 0, 0, 0))


def _add_look(
    body: mujoco.MjsBody,
    shape: mujoco.mjtGeom,
    place: tuple[float, ...],
    size: tuple[float, ...],
    colour: Colour,
) -> None:
    """A geom that is only drawn: at a centre, or between two ends. Without a name, simulations leave it out."""
    geom = body.add_geom(type=shape, mass=0, rgba=colour, group=2)
    geom.size[: len(size)] = size
    geom.contype = geom.conaffinity = 0
    if len(place) == 6:
        geom.fromto = place
    else:
        geom.pos = place


def _minus(a: Point, b: Point) -> Point:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def _mirror(point: Point, sign: float) -> Point:
    return (point[0], sign * point[1], point[2])


def _relative(place: tuple[float, ...], anchor: Point, sign: float) -> tuple[float, ...]:
    """One or two points of the left leg in the frame of a body whose joint is at `anchor`, as they are or mirrored."""
    found: list[float] = []
    for i in range(0, len(place), 3):
        x, y, z = place[i : i + 3]
        found += _mirror(_minus((x, y, z), anchor), sign)
    return tuple(found)


ROBOT = Robot(
    name="wildrobot",
    title="WildRobot, a humanoid of 3.3 kg on eight bus servos",
    spec=spec,
    joints=joints(),
    motors=motors(),
)


ANGULAR_SPEED = 5.0  # rad/s, by which observed angular velocities are divided
DERIVE = (
    Derive("gravity", "projected_gravity", ("orientation",)),
    Derive("world_angular_velocity", "world_frame", ("angular_velocity", "orientation")),
    Derive("heading_angular_velocity", "heading_frame", ("world_angular_velocity", "orientation")),
    Derive("joint_vel", "rate", ("joint_pos",)),
)


class WildRobot(Legged):
    """The robot in a scene, and what every policy of it senses and does."""

    base = "waist"
    feet = ("left_foot", "right_foot")
    pads = ("left_toe", "left_heel", "right_toe", "right_heel")
    torque = TORQUE
    switch_force = SWITCH_FORCE

    def scene(self, ground: Ground = LEVEL) -> mujoco.MjSpec:
        """The robot at home on a floor, and a camera `front` that follows it."""
        s = spec()
        self.stand_on_floor(s, ground)
        scene.add_camera(
            s, "front", eye=(1.1, -0.9, 0.25), target=(0, 0, -0.08), body="waist", fovy=45
        )
        s.camera("front").mode = mujoco.mjtCamLight.mjCAMLIGHT_TRACK
        scene.add_home(s, {joint.name: joint.home for joint in ROBOT.joints})
        return s

    def interface(self) -> RobotInterface:
        """Joint positions, inertial sensor and foot switches."""
        return ROBOT.interface(
            Signal("orientation", 4, frame="world"),
            Signal("angular_velocity", 3, "rad/s", "chest_imu"),
            Signal("foot_switches", 4),
        )

    def observe(self) -> tuple[Observe, ...]:
        """What every policy sees, 34 numbers: joints relative to home, in halves of their ranges."""
        half = tuple(2.0 / (joint.upper - joint.lower) for joint in ROBOT.joints)
        home = tuple(joint.home for joint in ROBOT.joints)
        return (
            Observe("gravity"),
            Observe("heading_angular_velocity", (1.0 / ANGULAR_SPEED,)),
            Observe("joint_pos", half, home),
            Observe("joint_vel", (1.0 / SPEED,), clip=(-1.0, 1.0)),
            Observe("foot_switches"),
            Observe("action"),
        )

    def act(self, reach: dict[str, float], lowpass: float) -> tuple[Act, ...]:
        """Joint targets about home: `reach` (rad) is how far an action of 1 moves each joint of a leg."""
        names = tuple(joint.name for joint in ROBOT.joints)
        scale = tuple(reach[link.joint] for _ in SIDES for link in LEG)
        return (Act(names, "relative", scale, lowpass),)

    def within(self, s: State, joints: Tensor) -> Tensor:
        """Joint positions `(num_envs, 8)` within their limits, rad."""
        limits = tuple((joint.lower, joint.upper) for joint in ROBOT.joints)
        lower, upper = s.tensor(limits).unbind(-1)
        return joints.clip(lower, upper)

    def start_near_home(self, s: State, mask: Tensor, cfg: LeggedConfig) -> None:
        """Where `mask` is True, joints within `joint_noise` (rad) of home, and within their limits, on the ground."""
        noise = cfg.joint_noise
        drawn = s.uniform(mask, -noise, noise, len(ROBOT.joints))
        s.set_joint_pos(mask, self.within(s, s.joint_pos + drawn))
        self.place_on(s, mask, cfg.ground)

    def signals(self, s: State) -> dict[str, Tensor]:
        """What the sensors would measure without noise."""
        return {
            "joint_pos": s.joint_pos,
            "orientation": self.orientation(s),
            "angular_velocity": self.angular_velocity(s),
            "foot_switches": (self.sole_forces(s) > SWITCH_FORCE).to(s.dtype),
        }

    def privileged(self, s: State) -> Tensor:
        """What only a simulation knows: true motion, torques, forces of ground and pushes, `(num_envs, 32)`."""
        pushes = s.sim.bind("xfrc_applied")[:, int(s.sim.model.body(self.base).id), :2]
        return torch.cat(
            (
                self.linear_velocity(s),
                self.angular_velocity(s),
                self.gravity(s),
                10 * (self.height(s)[:, None] - HOME_HEIGHT),
                0.1 * s.joint_vel,
                s.joint_torque / TORQUE,
                0.05 * self.sole_forces(s),
                0.2 * pushes,
            ),
            -1,
        )

    def noise(self, gyro_bias: tuple[float, ...] = ()) -> dict[str, Noise]:
        """Servo encoders of 0.24 degrees read over a slow bus, a BNO085, and switches that bounce."""
        return {
            "joint_pos": Noise(uniform=0.004, delay=1),
            "orientation": Noise(gaussian=0.003, bias=0.008),
            "angular_velocity": Noise(gaussian=0.03, bias=0.02, offset=gyro_bias, delay=1),
            "foot_switches": Noise(dropout=0.05),
        }

    def randomize(self, ground: Ground = LEVEL) -> tuple[Randomize, ...]:
        """Links, servos, their mounting, and the ground."""
        names = tuple(joint.name for joint in ROBOT.joints)
        return (
            Randomize("mass", 0.9, 1.1, ("waist", *names)),
            Randomize("com", -0.01, 0.01, ("waist",), op="add"),
            Randomize("friction", *ground.friction, self.pads, shared=True),
            Randomize("joint_offset", -0.02, 0.02, names, op="add"),
            Randomize("frictionloss", 0.5, 2.0, names),
            Randomize("damping", 0.8, 1.4, names),
            Randomize("armature", 0.9, 1.1, names),
            Randomize("kp", 0.9, 1.1, names),
            Randomize("torque", 0.9, 1.0, names),
            Randomize("latency", 0.0, 0.02, names, op="add", shared=True),
            Randomize("backlash", 0.0, MAX_BACKLASH, names, op="add"),
        )


OBSERVED = (
    ("vector", 3),
    ("rotation", 3),
    ("sides", 8),
    ("sides", 8),
    ("sides", 4),
    ("sides", 8),
)
"""What `WildRobot.observe` gives, as `legged.mirrored` takes it."""
PRIVILEGED = (
    ("vector", 3),
    ("rotation", 3),
    ("vector", 3),
    ("same", 1),
    ("sides", 8),
    ("sides", 8),
    ("sides", 4),
    ("vector", 2),
)
"""What `WildRobot.privileged` gives, as `legged.mirrored` takes it. The world is mirrored along its y."""
ACTION = (("sides", 8),)

WILD = WildRobot()
