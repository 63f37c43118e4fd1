"""Grasp a box with a DexHand 021 that does not see it, and lift it."""

import math
from dataclasses import dataclass, field
from typing import Annotated

import mujoco
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from typing_extensions import Doc

from deftly.config import POSITIVE_RANGE, TaskConfig
from deftly.contract import Act, Derive, Observe, PolicyContract, Signal
from deftly.robots import dexhand021
from deftly.robots.dexhand021 import BASE, DRIVEN, FINGERS, HAND
from deftly.sim import scene
from deftly.sim.randomize import Randomize
from deftly.sim.sensors import Noise
from deftly.sim.state import State
from deftly.tasks import Report, Task, task

BOX = "box"
HALF_EDGE = 0.025  # m: the box of 5 cm of seed 001
FIRM = 0.3  # N: a fingertip that presses the box with more than this is in contact


@dataclass(frozen=True)
class Weights:
    """Weights of the reward terms. The first four are differences of a potential: no cycle earns anything."""

    reach: Annotated[
        float, Doc("Progress of the fingertips towards opposite sides of the box.")
    ] = 2.0
    grasp: Annotated[
        float, Doc("Progress of pressing the box with the thumb (0.4) and with fingers (0.6).")
    ] = 1.5
    lift: Annotated[float, Doc("Progress of the gripped box to 3 cm above the success height.")] = (
        4.0
    )
    hold: Annotated[float, Doc("Progress of the count of steps held at the height.")] = 2.0
    success: Annotated[float, Doc("Once, when the box has been held.")] = 2.0
    action_rate: Annotated[float, Doc("Squared change of the action.")] = -0.0005
    depth: Annotated[
        float, Doc("Depth of the deepest fingertip in the box beyond 0.5 mm, mm, each step.")
    ] = -0.02
    press: Annotated[
        float, Doc("Force of the fingertips on the ground beyond 2 N, in units of 10 N, each step.")
    ] = -0.02
    time: Annotated[float, Doc("Each step.")] = -0.003
    failure: Annotated[
        float, Doc("Once, when the episode fails: an early end must not pay.")
    ] = -3.0


@dataclass(frozen=True)
class BoxConfig(TaskConfig):
    """Parameters of the task; lengths in m, z up from the ground."""

    rate: float = 50.0
    episode_steps: int = 500
    box_xy: Annotated[
        float, Ge(0), Doc("The box starts within this much of the origin, along x and y, m.")
    ] = 0.02
    box_yaw: Annotated[float, Ge(0), Doc("The box starts turned by up to this much, rad.")] = (
        math.pi
    )
    box_size: Annotated[
        tuple[float, float], POSITIVE_RANGE, Doc("Range of the box's edge, as a fraction of 5 cm.")
    ] = (0.9, 1.1)
    box_mass: Annotated[float, Gt(0), Doc("Mass of the box, kg.")] = 0.1
    hand_xyz: Annotated[
        float, Ge(0), Doc("The hand starts within this much of above the box, along each axis, m.")
    ] = 0.05
    hand_turn: Annotated[
        float, Ge(0), Doc("The hand starts turned by up to this much about each axis, rad.")
    ] = 0.15
    thumb: Annotated[float, Ge(0), Doc("The thumb starts rotated by up to this much, rad.")] = (
        math.pi / 2
    )
    curl: Annotated[
        float, Ge(0), Doc("The other driven finger joints start bent by up to this much, rad.")
    ] = 0.3
    success_height: Annotated[
        float, Gt(0), Doc("Height of the box's centre above the ground that counts as lifted, m.")
    ] = 0.2
    hold_steps: Annotated[
        int, Ge(1), Doc("Consecutive steps for which the box must be held there: 2 s.")
    ] = 100
    max_depth: Annotated[
        float, Gt(0), Doc("Depth of a fingertip in the box that ends the episode, m.")
    ] = 0.003
    max_distance: Annotated[
        float, Gt(0), Doc("Distance from palm to box that ends the episode, m.")
    ] = 0.6
    base_speed: Annotated[float, Gt(0), Doc("Speed of the carrier's slides at action 1, m/s.")] = (
        0.25
    )
    base_turn: Annotated[float, Gt(0), Doc("Speed of the carrier's hinges at action 1, rad/s.")] = (
        0.5
    )
    finger_speed: Annotated[
        float, Gt(0), Doc("Speed of the driven finger joints at action 1, rad/s.")
    ] = 1.0
    lowpass: Annotated[float, Ge(0), Lt(1), Doc("Weight of the previous action.")] = 0.5
    touch_history: Annotated[
        int, Ge(1), Doc("Steps of touch that the policy sees, every fifth of them.")
    ] = 21
    weights: Annotated[Weights, Doc("Weights of the reward terms.")] = field(
        default_factory=Weights
    )


class Box(Task):
    """Grasp a box of 5 cm with a DexHand 021 that does not see it, and hold it 20 cm above the ground for 2 s."""

    Config = BoxConfig
    cfg: BoxConfig
    report = Report(
        metrics={
            "time_to_grasp": "time until the thumb and a finger first press the box, s",
            "slips": "times the grasp was lost in the air",
            "depth": "largest depth of a fingertip in the box, mm",
            "press": "largest force of the fingertips on the ground, N",
            "box_edge": "edge of the box, mm",
        },
        plots=(
            ("seconds", "Episode length, s"),
            ("time_to_grasp", "Time to the first grasp, s"),
            ("depth", "Deepest fingertip, mm"),
        ),
        breakdown=("box_edge", (40.0, 44.0, 48.0, 52.0, 56.0, 60.0)),
    )
    robot = dexhand021.RIGHT

    def scene(self) -> mujoco.MjSpec:
        """The hand above the ground and the box on it; cameras `front` and `side`."""
        s = self.robot.spec()
        scene.prepare(s)
        scene.add_floor(s, 0.0)
        floor = s.geom("floor")
        floor.contype = floor.conaffinity = 1
        floor.friction = scene.FRICTION
        scene.add_box(s, BOX, HALF_EDGE, self.cfg.box_mass, rgba=(0.90, 0.45, 0.15, 1.0))
        HAND.add_touch(s, BOX)
        HAND.add_touch(s, "world")
        HAND.add_depth(s, BOX)
        scene.add_camera(s, "front", eye=(0.55, -0.45, 0.35), target=(0.0, 0.0, 0.12), fovy=45)
        scene.add_camera(s, "side", eye=(0.0, -0.65, 0.2), target=(-0.03, 0.0, 0.13), fovy=45)
        scene.add_home(s, {**{joint.name: joint.home for joint in self.robot.joints}, **ABOVE})
        return s

    def contract(self) -> PolicyContract:
        """Velocities of the carrier and of the twelve finger motors; joints, touch and pads are seen."""
        cfg, count = self.cfg, len(self.robot.joints)
        interface = self.robot.interface(
            Signal("joint_vel", count, "m/s, rad/s"), Signal("touch", len(FINGERS), "N")
        )
        pads = [Derive(f"pad{i}", "forward_kinematics", site=f"f_pad{i}") for i in FINGERS]
        observe = (
            Observe("joint_pos"),
            Observe("joint_vel", (0.5,)),
            Observe("touch", (0.5,), clip=(0.0, 2.0), history=cfg.touch_history, stride=5),
            Observe("command"),
            *(Observe(pad.name, (5.0,)) for pad in pads),
            Observe("action"),
        )
        base = Act(BASE, "velocity", (cfg.base_speed,) * 3 + (cfg.base_turn,) * 3, cfg.lowpass)
        fingers = Act(DRIVEN, "velocity", (cfg.finger_speed,), cfg.lowpass)
        return PolicyContract(interface, cfg.rate, observe, (base, fingers), derive=tuple(pads))

    def signals(self, s: State) -> dict[str, Tensor]:
        """Joint positions and velocities, force on each pad."""
        return {"joint_pos": s.joint_pos, "joint_vel": s.joint_vel, "touch": _touch(s)}

    def privileged(self, s: State) -> Tensor:
        """The box's pose, velocity and size, the fingertips from it, what has been reached."""
        held = s.zeros("held")[:, None] / self.cfg.hold_steps
        away = (_tips(s) - _box(s)[:, None]).flatten(1)
        return torch.cat(
            (
                5 * _box(s),
                s.pose(BOX)[:, 3:],
                s.velocity(BOX) * s.tensor((2.0, 2.0, 2.0, 0.2, 0.2, 0.2)),
                _half(s)[:, None] / HALF_EDGE - 1.0,
                10 * away,
                0.5 * HAND.touch(s, BOX).clip(max=4.0),
                s.zeros("potential", 4),
                held,
            ),
            -1,
        )

    def reset(self, s: State, mask: Tensor) -> None:
        """Hand somewhere above the box, palm down, thumb and fingers anywhere near open."""
        cfg, joints = self.cfg, s.joint_pos.clone()
        joints[:, :3] += s.uniform(mask, -cfg.hand_xyz, cfg.hand_xyz, 3)
        joints[:, 3:6] += s.uniform(mask, -cfg.hand_turn, cfg.hand_turn, 3)
        bent = s.uniform(mask, 0.0, 1.0, len(DRIVEN)) * cfg.curl
        bent[:, 0] *= cfg.thumb / max(cfg.curl, 1e-6)
        bent[:, 3] *= 0.3
        joints[:, 6:] = _couple(bent)
        s.set_joint_pos(mask, joints)
        half_yaw = s.uniform(mask, -cfg.box_yaw, cfg.box_yaw) / 2
        nothing = torch.zeros_like(half_yaw)
        position = torch.cat((s.uniform(mask, -cfg.box_xy, cfg.box_xy, 2), _half(s)[:, None]), -1)
        s.place(
            BOX, mask, position, torch.stack((half_yaw.cos(), nothing, nothing, half_yaw.sin()), -1)
        )

    def start(self, s: State, mask: Tensor) -> None:
        """An episode's potential starts where the hand does."""
        s.remember("potential", mask, self._potential(s))
        s.remember("time_to_grasp", mask, torch.nan)

    def update(self, s: State) -> None:
        """Count the steps held, note when the box was grasped, how often it slipped, how deep fingertips went."""
        cfg, gripped, height = self.cfg, self._gripped(s), _box(s)[:, 2]
        held, was = s.zeros("held"), s.zeros("potential", 4)
        held[:] = torch.where(gripped & (height > cfg.success_height), held + 1, 0.0)
        grasped = s.zeros("time_to_grasp")
        grasped[:] = torch.where(gripped & grasped.isnan(), s.steps * s.dt, grasped)
        s.zeros("slips")[:] += (s.zeros("gripped") > 0) & ~gripped & (height > 2 * _half(s))
        s.zeros("gripped")[:] = gripped
        s.zeros("depth_now")[:] = HAND.depth(s, BOX).amax(-1)
        s.zeros("depth")[:] = torch.maximum(s.zeros("depth"), s.zeros("depth_now"))
        s.zeros("press_now")[:] = HAND.touch(s, "world").sum(-1)
        s.zeros("press")[:] = torch.maximum(s.zeros("press"), s.zeros("press_now"))
        now = self._potential(s)
        s.zeros("gain", 4)[:] = now - was
        was[:] = now

    def rewards(self, s: State) -> dict[str, Tensor]:
        """See `Weights`."""
        failed = torch.stack([*self.failed(s).values()]).any(0)
        return {
            **dict(zip(("reach", "grasp", "lift", "hold"), s.zeros("gain", 4).unbind(-1))),
            "success": self.success(s),
            "action_rate": (s.action - s.last_action).square().sum(-1),
            "depth": (1e3 * s.zeros("depth_now") - 0.5).clip(min=0.0),
            "press": (s.zeros("press_now") - 2.0).clip(0.0, 50.0) / 10.0,
            "time": torch.ones_like(s.zeros("held")),
            "failure": failed,
        }

    def failed(self, s: State) -> dict[str, Tensor]:
        """A fingertip deep in the box, the palm on the ground, or the box far from the hand."""
        palm = s.body("hand_base")
        return {
            "penetrated": s.zeros("depth_now") > self.cfg.max_depth,
            "hit_ground": palm[:, 2] < 0.03,
            "box_too_far": (palm - _box(s)).norm(dim=-1) > self.cfg.max_distance,
        }

    def success(self, s: State) -> Tensor:
        """Held at the height for long enough."""
        return s.zeros("held") >= self.cfg.hold_steps

    def metrics(self, s: State) -> dict[str, Tensor]:
        """What `report` explains."""
        own = {name: s.zeros(name) for name in ("time_to_grasp", "slips", "press")}
        return {**own, "depth": 1e3 * s.zeros("depth"), "box_edge": 2e3 * _half(s)}

    def randomize(self) -> tuple[Randomize, ...]:
        """Box and friction, servo gains."""
        driven = tuple(joint.name for joint in self.robot.joints)
        return (
            Randomize("size", *self.cfg.box_size, (BOX,)),
            Randomize("mass", 0.7, 1.5, (BOX,)),
            Randomize("friction", 0.7, 1.3, (BOX, *HAND.pads), shared=True),
            *(Randomize(gain, 0.9, 1.1, driven, shared=True) for gain in ("kp", "kd")),
        )

    def noise(self) -> dict[str, Noise]:
        """Encoders, and pads that miss small forces."""
        return {"joint_pos": Noise(gaussian=0.002), "touch": Noise(gaussian=0.05)}

    def _gripped(self, s: State) -> Tensor:
        """The thumb and a finger press the box."""
        touch = HAND.touch(s, BOX) > FIRM
        return touch[:, 0] & touch[:, 1:].any(-1)

    def _potential(self, s: State) -> Tensor:
        """How far the episode has come, `(num_envs, 4)`, each in 0 .. 1: reach, grasp, lift, hold."""
        cfg, box, tips = self.cfg, _box(s), _tips(s)
        touch = HAND.touch(s, BOX)
        away = tips - box[:, None]
        thumb, fingers = away[:, 0], away[:, 1:4].mean(1)
        off = (thumb.norm(dim=-1) - _half(s)).clip(min=0) + (fingers.norm(dim=-1) - _half(s)).clip(
            min=0
        )
        opposed = -(thumb * fingers)[:, :2].sum(-1) / (
            thumb[:, :2].norm(dim=-1) * fingers[:, :2].norm(dim=-1)
        ).clip(min=1e-6)
        reach = (1 - torch.tanh(4 * off)) * (0.75 + 0.25 * opposed)
        firm = (touch / FIRM).clip(max=1.0)
        one, more = firm[:, 0], firm[:, 1:].amax(-1)
        grasp = 0.2 * one + 0.2 * more + 0.6 * one * more
        gripped = (one >= 1) & (more >= 1)
        rise = (box[:, 2] - _half(s)) / (cfg.success_height + 0.03 - HALF_EDGE)
        held = s.zeros("held") / cfg.hold_steps
        return torch.stack((reach, grasp, gripped * rise.clip(0.0, 1.0), held), -1)


ABOVE = {"ARTx": -0.15, "ARTy": -0.01, "ARTz": 0.22}
"""The carrier's slides in the keyframe `home`: the box is below the fingers' roots, m."""


@task("dexhand-box")
class BoxGrasping(Box):  # noqa: D101
    __doc__ = Box.__doc__


def _couple(driven: Tensor) -> Tensor:
    """All twenty finger joints from the twelve that motors drive, `(num_envs, 20)`."""
    rotate, t2, t3, spread, i2, i3, m2, m3, r2, r3, l2, l3 = driven.unbind(-1)
    nothing = torch.zeros_like(rotate)
    columns = (
        rotate,
        t2,
        t3,
        t3,
        spread,
        i2,
        i3,
        i3,
        nothing,
        m2,
        m3,
        m3,
        spread,
        r2,
        r3,
        r3,
        2 * spread,
        l2,
        l3,
        l3,
    )
    return torch.stack(columns, -1)


def _touch(s: State) -> Tensor:
    """Force on each pad, `(num_envs, 5)`, N."""
    return s.sensors(tuple(f"touch{i}" for i in FINGERS))[..., 0]


def _tips(s: State) -> Tensor:
    """World positions of the pads, `(num_envs, 5, 3)`, m."""
    return torch.stack([s.site(f"f_pad{i}") for i in FINGERS], 1)


def _box(s: State) -> Tensor:
    """Centre of the box, `(num_envs, 3)`, m."""
    return s.pose(BOX)[:, :3]


def _half(s: State) -> Tensor:
    """Half the box's edge, `(num_envs,)`, m."""
    return s.parameter("geom_size", BOX)[:, 0]
