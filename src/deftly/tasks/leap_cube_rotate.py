"""Turn a cube in the palm of a LEAP hand about the palm's normal, by touch of its joints alone."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import mujoco
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import Doc

from deftly.config import ANGLE, INPUT_FILE, LENGTH, MASS, POSITIVE_RANGE, SPEED, TaskConfig
from deftly.contract import Act, Joint, Observe, PolicyContract
from deftly.objects.grasp_cache import Grasps
from deftly.objects.strokes import Strokes
from deftly.robots import Robot, actuators, leap_hand
from deftly.robots.leap_hand import HAND
from deftly.sim import scene
from deftly.sim.pushes import Push
from deftly.sim.randomize import Randomize
from deftly.sim.sensors import Noise
from deftly.sim.state import State
from deftly.tasks import Report, Task, task

CUBE = "cube"
HALF_EDGE = 0.0375  # m: the cube of 75 mm of the LEAP project
TIPS = 0.088  # m: height at which fingertips push it
SPAWN = (
    -0.010,
    0.035,
    0.074,
)  # m, in the right hand's frame: where a cube rests on palm and fingers


@dataclass(frozen=True)
class Weights:
    """Weights of the reward terms, each multiplied by the control period: terms are per second."""

    rotate: Annotated[
        float,
        Doc("Yaw rate, rad/s, at most `max_rate`; less the nearer the cube is to being lost."),
    ] = 1.25
    tilt: Annotated[float, Doc("Squared tilt of the cube, rad2: what comes before it tips.")] = -3.0
    linear_velocity: Annotated[float, Doc("Speed of the cube, m/s, summed over the axes.")] = -0.3
    pose: Annotated[
        float, Doc("Squared distance of the joints from the grasp beyond `pose_slack`, rad2.")
    ] = -0.02
    torque: Annotated[float, Doc("Squared joint torques, (N m)2.")] = -0.3
    work: Annotated[float, Doc("Squared mechanical power, W2.")] = -0.05
    action_rate: Annotated[float, Doc("Squared change of the action.")] = -0.01
    tips: Annotated[
        float,
        Doc("Fingertips nearer to each other than `tip_gap`: 0 there, 1 a pair that just touches."),
    ] = -2.0
    fell: Annotated[float, Doc("Once, when the cube is lost.")] = -20.0


@dataclass(frozen=True)
class RotateConfig(TaskConfig):
    """Parameters of the task; lengths in m, in the frame of the palm (z out of it, fingers along x)."""

    rate: float = 20.0
    episode_steps: int = 400
    stop_on_success: Annotated[
        bool, Doc("A turn does not end the episode: what counts is to go on.")
    ] = False
    ready_s: Annotated[
        tuple[float, float],
        Doc(
            "Shortest and longest time for which the hand holds the cube before the policy drives, s."
        ),
    ] = (0.05, 0.5)
    delta: Annotated[
        float, Gt(0), Doc("Change of a joint's command at action 1, rad per step.")
    ] = 1 / 24
    history: Annotated[
        int,
        Ge(1),
        Doc(
            "Steps of joint positions and commands that the policy sees: a cycle of a gait, to feel sizes."
        ),
    ] = 40
    stride: Annotated[
        int, Ge(1), Doc("Of these steps, the newest and every `stride`-th before it are seen.")
    ] = 4
    soft_limits: Annotated[
        float,
        Gt(0),
        Le(1),
        Doc("Fraction of each joint's range, about its middle, that commands may use."),
    ] = 0.95
    size: Annotated[
        tuple[float, float],
        POSITIVE_RANGE,
        Doc("Range of the cube's edge, as a fraction of 75 mm."),
    ] = (
        0.9,
        1.1,
    )
    mass: Annotated[float, Gt(0), MASS, Doc("Of the cube, kg.")] = 0.1
    friction: Annotated[
        tuple[float, float],
        POSITIVE_RANGE,
        Doc("Range of the friction of hand and cube, as a fraction of their own."),
    ] = (0.6, 1.4)
    start: Annotated[
        Literal["cache", "sample"],
        Doc("Start from grasps of the cache, or sample poses to look for grasps."),
    ] = "cache"
    grasps: Annotated[
        Path | None,
        INPUT_FILE,
        Doc("Grasp cache of `deftly grasps`; unset: the one shipped for the hand."),
    ] = None
    actuators: Annotated[
        Path | None,
        INPUT_FILE,
        Doc("Servos of `deftly sysid --write`; unset: those of the robot's file."),
    ] = None
    sample_spread: Annotated[
        float, Ge(0), ANGLE, Doc("Sampled joints are within this much of the grasp pose, rad.")
    ] = 0.2
    max_rate: Annotated[
        float, Gt(0), SPEED, Doc("Yaw rate above which turning faster earns nothing, rad/s.")
    ] = 3.0
    pose_slack: Annotated[
        float, Ge(0), ANGLE, Doc("Distance of a joint from the grasp pose that costs nothing, rad.")
    ] = 0.4
    tip_gap: Annotated[
        float, Gt(0), LENGTH, Doc("Distance between fingertips below which they cost reward, m.")
    ] = 0.005
    tip_contact_limit: Annotated[
        int, Ge(1), Doc("Control steps with fingertips in contact that are many for an episode.")
    ] = 10
    lowest: Annotated[
        float, LENGTH, Doc("Height of the cube's centre below which it is lost, m.")
    ] = 0.035
    max_drift: Annotated[
        float, Gt(0), LENGTH, Doc("Distance of the cube from its start at which it is lost, m.")
    ] = 0.08
    max_tilt: Annotated[float, Gt(0), ANGLE, Doc("Tilt of the cube at which it is lost, rad.")] = (
        0.8
    )
    leniency: Annotated[
        float,
        Ge(0),
        Le(1),
        Doc("In training alone: fraction of the penalties that counts while no episode succeeds."),
    ] = 0.1
    weights: Annotated[Weights, Doc("Weights of the reward terms.")] = field(
        default_factory=Weights
    )


class CubeRotate(Task):
    """Turn a cube of 67 to 83 mm that lies in the upward palm about the palm's normal, without a look at it.

    Observation (32 for each step seen: the last `history`, or every `stride`-th of them, oldest first), by touch of the
    joints alone:

    | term      | meaning                                        | unit | range         |
    |-----------|------------------------------------------------|------|---------------|
    | joint_pos | 16 joint positions, relative to the grasp pose | rad  | joint limits  |
    | command   | 16 joint commands, relative to the grasp pose  | rad  | soft limits   |

    Action (16), in [-1, 1]: change of each joint's command, times `delta`. The command, not the measured position, is
    what changes: what a joint lacks of its command is how hard it presses.

    The cube turns counter-clockwise seen from above in a right hand, clockwise in a left one: `direction` is the sign
    of that about +z. `turned` sums the cube's rotation about z in that direction, step by step, so it does not wrap.

    Success: at least one full turn in the 20 s of the episode, and the cube not lost. Failure: a cube that falls, that
    is 8 cm from where it started, or that tips by 0.8 rad; it ends the episode.

    Curriculum, in training alone: penalties weigh `leniency` while no episode succeeds, and all when each does.

    Randomization: cube size, mass (x 0.7 .. 1.3), centre of mass (2 mm), friction of hand and cube (0.6 .. 1.4),
    masses of the links, friction loss, damping, armature, gains and torque limits of the servos, delay of commands
    (0 .. 75 ms). Sensor noise: 0.01 rad white, 0.01 rad bias, readings up to one step old.
    """

    Config = RotateConfig
    defaults = {
        "train": {"gamma": 0.99, "hidden": [256, 128], "epochs": 2, "max_iterations": 4000},
        "sim": {"preset": "coarse"},
    }
    cfg: RotateConfig
    report = Report(
        selection="yaw_rate",
        metrics={
            "yaw_rate": "rotation in the hand's direction over the time of a full episode, rad/s",
            "net_turns": "rotation in the hand's direction, turns",
            "drop_rate": "fraction of episodes that lost the cube",
            "retention": "time until the cube was lost or the episode over, s",
            "mean_drift": "mean distance of the cube from its start, m",
            "mean_tilt": "mean tilt of the cube, rad",
            "mean_torque": "mean size of a joint's torque, as it is at the end of each control period, N m",
            "mean_contacts": "mean number of fingertips that touch the cube",
            "tip_contact_steps": "control steps at whose end fingertips touch each other",
            "tip_contact_depth": "deepest that fingertips press into each other at the end of a control step, mm",
            "many_tip_contacts": "fraction of episodes with tip_contact_limit or more such steps",
            "work": "work of the joints, either way, by what it is at the end of each control period, J",
            "cube_edge": "edge of the cube, mm",
        },
        plots=(
            ("yaw_rate", "Yaw rate, rad/s"),
            ("net_turns", "Net turns"),
            ("retention", "Time in the hand, s"),
        ),
        breakdown=("cube_edge", (67.5, 70.5, 73.5, 76.5, 79.5, 82.5)),
    )
    robot: Robot
    side: float
    direction: float

    def __init__(self, cfg: RotateConfig):
        super().__init__(cfg)
        self._grasps: Grasps | None = None
        self._grasp = tuple(joint.home for joint in self.robot.joints)
        self._joints = self.contract().joints
        lower = tuple(joint.lower for joint in self._joints)
        upper = tuple(joint.upper for joint in self._joints)
        self._limits = lower, upper

    def scene(self) -> mujoco.MjSpec:
        """The hand, palm up, and a cube in it; cameras `front` and `top`."""
        s = self.robot.spec()
        side = self.side
        actuators.apply(s, self._fitted())
        scene.prepare(s)
        scene.add_floor(s, -0.95)
        scene.draw_table(s, (-0.1, side * 0.03), (0.6, 0.4), -leap_hand.STAND, -0.95)
        scene.add_box(s, CUBE, HALF_EDGE, self.cfg.mass, rgba=(0.90, 0.45, 0.15, 1.0))
        s.body(CUBE).pos = self._spawn()
        _add_mark(s.body(CUBE))
        HAND.add_touch(s, CUBE)
        HAND.add_pad_distances(s, self.cfg.tip_gap)
        scene.add_camera(
            s, "front", eye=(0.24, side * -0.22, 0.32), target=(-0.01, side * 0.02, 0.05), fovy=40
        )
        scene.add_camera(
            s, "top", eye=(0, side * 0.03, 0.5), target=(0, side * 0.0301, 0), fovy=36, up=(0, 1, 0)
        )
        home = {joint.name: joint.home for joint in self.robot.joints}
        scene.add_home(s, home)
        return s

    def contract(self) -> PolicyContract:
        """Positions and commands of the joints in, changes of the commands out."""
        cfg = self.cfg
        robot = self.robot
        joints = [self._softened(joint) for joint in robot.joints]
        home = tuple(joint.home for joint in joints)
        names = tuple(joint.name for joint in joints)
        seen = Observe("joint_pos", offset=home, history=cfg.history, stride=cfg.stride)
        observe = (seen, replace(seen, term="command"))
        act = (Act(names, "delta", (cfg.delta,)),)
        return PolicyContract(robot.interface(joints=joints), cfg.rate, observe, act)

    def _softened(self, joint: Joint) -> Joint:
        """A joint within the soft limits; what is left to its own is its slack."""
        span = joint.upper - joint.lower
        middle = (joint.lower + joint.upper) / 2
        half = self.cfg.soft_limits * span / 2
        slack = span / 2 - half
        return replace(joint, lower=middle - half, upper=middle + half, slack=slack)

    def signals(self, s: State) -> dict[str, Tensor]:
        """Joint positions."""
        return {"joint_pos": s.joint_pos}

    def privileged(self, s: State) -> Tensor:
        """Joint velocities, torques, the cube's pose from its start, its velocity, size, mass, friction and touches."""
        pose = s.pose(CUBE)
        return torch.cat(
            (
                0.2 * s.joint_vel,
                5 * s.joint_torque,
                20 * (pose[:, :3] - s.zeros("start", 3)),
                pose[:, 3:],
                s.velocity(CUBE) * s.tensor((5.0, 5.0, 5.0, 0.5, 0.5, 0.5)),
                self._half(s)[:, None] / HALF_EDGE - 1.0,
                s.parameter("body_mass", CUBE)[:, None] / self.cfg.mass - 1.0,
                s.parameter("geom_friction", "mf_tip")[:, :1] - 1.0,
                200 * s.parameter("body_ipos", CUBE),
                0.2 * HAND.touch(s, CUBE),
                s.last_action,
            ),
            -1,
        )

    def require(self) -> None:
        """The grasp cache, if episodes start from one."""
        if self.cfg.start == "cache":
            self._known_grasps()

    def reset(self, s: State, mask: Tensor) -> None:
        """A grasp of the cache whose cube is nearest in size; or, to look for grasps, a pose near the grasp pose."""
        if self.cfg.start == "sample":
            self._sample(s, mask)
            return
        grasps = self._known_grasps().to(s.device, s.dtype)
        draw = s.uniform(mask, 0.0, 1.0)
        joint_pos, pose = grasps.draw(self._half(s), draw)
        s.set_joint_pos(mask, self._within(s, joint_pos))
        s.place(CUBE, mask, pose[:, :3], pose[:, 3:])

    def _sample(self, s: State, mask: Tensor) -> None:
        """A pose near the grasp pose, and the cube in any turn a little above where it comes to rest."""
        spread = self.cfg.sample_spread
        noise = s.uniform(mask, -spread, spread, len(self._joints))
        joint_pos = s.tensor(self._grasp) + noise
        s.set_joint_pos(mask, self._within(s, joint_pos))
        spawn = s.tensor(self._spawn()[:2])
        side = spawn + s.uniform(mask, -0.006, 0.006, 2)
        resting = SPAWN[2] + self._half(s) - HALF_EDGE
        height = resting + s.uniform(mask, 0.0, 0.01)
        half_yaw = s.uniform(mask, -math.pi, math.pi) / 2
        nothing = torch.zeros_like(half_yaw)
        turned = torch.stack((half_yaw.cos(), nothing, nothing, half_yaw.sin()), -1)
        position = torch.cat((side, height[:, None]), -1)
        s.place(CUBE, mask, position, turned)

    def start(self, s: State, mask: Tensor) -> None:
        """Remember where the cube is."""
        pose = s.pose(CUBE)
        s.remember("start", mask, pose[:, :3])
        s.remember("quat", mask, pose[:, 3:])

    def update(self, s: State) -> None:
        """Add what the cube has turned, and what the report tells of the episode."""
        quat = s.zeros("quat", 4)
        now = s.pose(CUBE)[:, 3:]
        step = self.direction * _yaw_between(quat, now)
        quat[:] = now
        s.zeros("rate")[:] = step / s.dt
        s.zeros("turned")[:] += step
        self._update_tips(s)
        torque = s.joint_torque
        touch = HAND.touch(s, CUBE)
        drift = self._drift(s)
        tilt = self._tilt(s)
        power = (torque * s.joint_vel).sum(-1)
        s.zeros("power")[:] = power
        sums = {
            "drift": drift,
            "tilt": tilt,
            "work": power.abs() * s.dt,
            "torque": torque.abs().mean(-1),
        }
        sums["contacts"] = (touch > 0.05).sum(-1)
        s.zeros("drift")[:] = drift
        s.zeros("tilt")[:] = tilt
        out_of_place = drift > self.cfg.max_drift
        tilted = tilt > self.cfg.max_tilt
        s.zeros("lost")[:] = out_of_place | tilted | self._dropped(s)
        for name, value in sums.items():
            s.zeros(f"sum_{name}")[:] += value

    def _update_tips(self, s: State) -> None:
        """How near fingertips are to each other, and what the report tells of their contacts."""
        distance = HAND.pad_distances(s)
        nearness = 1.0 - distance / self.cfg.tip_gap
        s.zeros("tips")[:] = nearness.sum(-1)
        nearest = distance.amin(-1)
        s.zeros("tip_contact_steps")[:] += nearest < 0
        depth = s.zeros("tip_contact_depth")
        depth[:] = torch.maximum(depth, -1e3 * nearest)

    def rewards(self, s: State) -> dict[str, Tensor]:
        """See `Weights`."""
        cfg = self.cfg
        rate = s.zeros("rate")
        tilt = s.zeros("tilt")
        drift_fraction = s.zeros("drift") / cfg.max_drift
        tilt_fraction = tilt / cfg.max_tilt
        safe = 1.0 - torch.maximum(drift_fraction, tilt_fraction).square()
        distance = (s.joint_pos - s.tensor(self._grasp)).abs()
        away = distance - cfg.pose_slack
        terms = {
            "rotate": rate.clip(max=cfg.max_rate) * safe.clip(min=0.0),
            "tilt": tilt.square(),
            "linear_velocity": s.velocity(CUBE)[:, :3].abs().sum(-1),
            "pose": away.clip(min=0.0).square().sum(-1),
            "torque": s.joint_torque.square().sum(-1),
            "work": s.zeros("power").square(),
            "action_rate": (s.action - s.last_action).square().sum(-1),
            "tips": s.zeros("tips"),
            "fell": s.zeros("lost"),
        }
        return {name: value * s.dt for name, value in terms.items()}

    def failed(self, s: State) -> dict[str, Tensor]:
        """The cube is lost, in one of three ways."""
        return {
            "dropped": self._dropped(s),
            "drifted": self._drift(s) > self.cfg.max_drift,
            "tipped": self._tilt(s) > self.cfg.max_tilt,
        }

    def success(self, s: State) -> Tensor:
        """A full turn, and the cube still in the hand."""
        full_turn = s.zeros("turned") >= 2 * math.pi
        return full_turn & (s.zeros("lost") == 0)

    def metrics(self, s: State) -> dict[str, Tensor]:
        """See `Report.metrics` of this task."""
        steps = s.steps.clip(min=1).to(s.dtype)
        turned = s.zeros("turned")
        contacts = s.zeros("tip_contact_steps")
        mean = {
            name: s.zeros(f"sum_{name}") / steps for name in ("drift", "tilt", "torque", "contacts")
        }
        return {
            "yaw_rate": turned / (s.episode_steps * s.dt),
            "net_turns": turned / (2 * math.pi),
            "drop_rate": s.zeros("lost"),
            "retention": steps * s.dt,
            **{f"mean_{name}": value for name, value in mean.items()},
            "tip_contact_steps": contacts,
            "tip_contact_depth": s.zeros("tip_contact_depth"),
            "many_tip_contacts": (contacts >= self.cfg.tip_contact_limit).to(s.dtype),
            "work": s.zeros("sum_work"),
            "cube_edge": 2e3 * self._half(s),
        }

    def randomize(self) -> tuple[Randomize, ...]:
        """Cube, friction, links and servos."""
        names = tuple(j.name for j in self._joints)
        geoms = self.robot.spec().geoms
        shapes = tuple(geom.name for geom in geoms if geom.name)
        entries = (
            Randomize("size", *self.cfg.size, (CUBE,)),
            Randomize("mass", 0.7, 1.3, (CUBE,)),
            Randomize("mass", 0.8, 1.2, names),
            Randomize("com", -0.002, 0.002, (CUBE,), op="add"),
            Randomize("friction", *self.cfg.friction, (*shapes, CUBE), shared=True),
            Randomize("frictionloss", 0.5, 1.8, names),
            Randomize("damping", 0.6, 1.6, names),
            Randomize("armature", 0.7, 1.3, names),
            *(Randomize(quantity, 0.9, 1.1, names) for quantity in ("kp", "kd", "torque")),
            Randomize("latency", 0.0, 0.075, names, op="add", shared=True),
        )
        return actuators.ranges(entries, self._fitted())

    def noise(self) -> dict[str, Noise]:
        """Encoders: white noise, mounting error, and the bus."""
        return {"joint_pos": Noise(uniform=0.01, bias=0.01, delay=1)}

    def pushes(self) -> tuple[Push, ...]:
        """A pose that is to become a grasp of the cache is nudged."""
        if self.cfg.start != "sample":
            return ()
        return (Push(CUBE, (0.05, 0.25), 0.5, 0.1),)

    def stable(self, s: State) -> Tensor:
        """Which cubes lie still and level in a hand near its home, where the safety kernel lets a policy start.

        Stricter than the LEAP project's 0.08 m/s, 1.2 rad/s, 5 cm and 14 cm.
        """
        velocity = s.velocity(CUBE)
        position = s.pose(CUBE)[:, :3]
        speed = velocity[:, :3].norm(dim=-1)
        turn_rate = velocity[:, 3:].norm(dim=-1)
        aside = (position[:, :2] - s.tensor(self._spawn()[:2])).norm(dim=-1)
        from_home = (s.joint_pos - s.tensor(self._grasp)).abs()
        still = (speed < 0.05) & (turn_rate < 0.6)
        near = aside < 0.025
        home = (from_home < 0.24).all(-1)
        level = self._tilt(s) < 0.2
        return still & near & home & level & (position[:, 2] > 0.05)

    def grasp(self, s: State) -> dict[str, Tensor]:
        """What a grasp cache keeps."""
        return {"cube_half": self._half(s), "joint_pos": s.joint_pos, "cube_pose": s.pose(CUBE)}

    def context(self, s: State) -> Tensor:
        """The cube's size: -1 the smallest, 1 the largest."""
        low, high = self.cfg.size
        fraction = self._half(s) / HALF_EDGE
        centred = 2 * fraction - low - high
        return (centred / max(high - low, 1e-6)).clip(-1.0, 1.0).float()

    def strokes(self) -> Strokes:
        """Each finger at one side of the cube: index and ring push, and while they go back, middle finger and thumb."""
        sites = tuple(f"{finger}_tip" for finger in (*leap_hand.FINGERS, "th"))
        x, y, _ = self._spawn()
        angles = (-math.pi / 2, 0.0, math.pi / 2, math.pi)
        phases = (0.0, 0.5, 0.0, 0.5)
        centre = (x, y, TIPS)
        return Strokes(sites, angles, phases, centre, HALF_EDGE + 0.0145, self.direction)

    def curriculum(self, s: State, progress: dict[str, float]) -> None:
        """The better the hand turns the cube, the more it matters how."""
        missing = 1.0 - self.cfg.leniency
        wanted = self.cfg.leniency + missing * progress["success"]
        for name in ("linear_velocity", "pose", "torque", "work", "action_rate"):
            scale = s.scale.get(name, self.cfg.leniency)
            s.scale[name] = scale + 0.05 * (wanted - scale)

    def _fitted(self) -> actuators.Actuators:
        return actuators.load(
            self.cfg.actuators, self.robot.name, tuple(j.name for j in self.robot.joints)
        )

    def _spawn(self) -> tuple[float, float, float]:
        return (SPAWN[0], self.side * SPAWN[1], SPAWN[2])

    def _known_grasps(self) -> Grasps:
        if self._grasps is None:
            self._grasps = Grasps.load(self.cfg.grasps, self.name, self.contract())
        return self._grasps

    def _half(self, s: State) -> Tensor:
        """Half the cube's edge, m."""
        return s.parameter("geom_size", CUBE)[:, 0]

    def _within(self, s: State, joints: Tensor) -> Tensor:
        """Joint positions within the limits of the contract."""
        lower, upper = s.tensor(self._limits)
        return joints.clip(lower, upper)

    def _drift(self, s: State) -> Tensor:
        offset = s.pose(CUBE)[:, :3] - s.zeros("start", 3)
        return offset.norm(dim=-1)

    def _tilt(self, s: State) -> Tensor:
        _, x, y, _ = s.pose(CUBE)[:, 3:].unbind(-1)
        cosine = 1.0 - 2.0 * (x * x + y * y)
        return cosine.clip(-1.0, 1.0).acos()

    def _dropped(self, s: State) -> Tensor:
        return s.pose(CUBE)[:, 2] < self.cfg.lowest


def _yaw_between(before: Tensor, after: Tensor) -> Tensor:
    """Rotation about the world's z of `after` relative to `before`, quaternions w x y z `(n, 4)`; rad in -pi .. pi."""
    a, b, c, d = before.unbind(-1)
    w, x, y, z = after.unbind(-1)
    real = w * a + x * b + y * c + z * d
    up = z * a - w * d + y * b - x * c
    up = torch.where(real < 0, -up, up)
    return 2.0 * torch.atan2(up, real.abs())


def _add_mark(cube: mujoco.MjsBody) -> None:
    """A stripe on the cube's top, to see it turn."""
    mark = cube.add_geom(
        name="mark", type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.014, 0.003, 0.0045], mass=0
    )
    mark.pos = [0.016, 0, HALF_EDGE]
    mark.rgba = (1, 1, 1, 1)
    mark.contype = 0
    mark.conaffinity = 0


@task("leap-right-cube-rotate")
class RightCubeRotate(CubeRotate):  # noqa: D101
    __doc__ = CubeRotate.__doc__
    robot, side, direction = leap_hand.RIGHT, 1.0, 1.0


@task("leap-left-cube-rotate")
class LeftCubeRotate(CubeRotate):  # noqa: D101
    __doc__ = CubeRotate.__doc__
    robot, side, direction = leap_hand.LEFT, -1.0, -1.0


@task("leap-left-custom-cube-rotate")
class LeftCustomCubeRotate(CubeRotate):  # noqa: D101
    __doc__ = CubeRotate.__doc__
    robot, side, direction = leap_hand.LEFT_CUSTOM, -1.0, -1.0
