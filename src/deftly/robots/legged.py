"""What legged robots have in common: a floating base that carries the inertial sensor, and feet on the ground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import mujoco
import torch
from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from deftly.config import ANGLE, LADDER, LENGTH, RISING, Rung, TaskConfig
from deftly.contract.derive import (
    angle_between,
    heading_frame,
    multiply,
    projected_gravity,
    yaw,
)
from deftly.robots.entity import Entity
from deftly.sim import scene
from deftly.sim.pushes import Push

if TYPE_CHECKING:
    from torch import Tensor

    from deftly.sim.state import State

WORLD = "world"
START_AREA = 0.5  # m, on uneven ground a robot starts within this much of the middle, along x and y
SATURATED = 0.95
"""Fraction of its torque above which a servo counts as saturated."""
SERVO_METRICS = {
    "peak_torque": "largest torque of a servo, as it is at the end of each control period, N m",
    "saturated": "fraction of the time at more than 95 % of the torque, mean over the servos",
    "peak_speed": "largest speed of a joint, as it is at the end of each control period, rad/s",
    "power": "mean mechanical power that the servos put in, W",
}
FOOT_METRICS = {
    "slip": "mean horizontal speed of a foot on the ground, m/s",
    "peak_impact": "largest force on a foot, as it is at the end of each control period, N",
}
Lowpass = Annotated[float, Ge(0), Lt(1), Doc("Weight of the previous action.")]
PushForce = Annotated[
    tuple[float, float], RISING, Doc("Range of the force of a push on the waist, N.")
]
PushInterval = Annotated[float, Gt(0), Doc("Mean time between pushes, s.")]


@dataclass(frozen=True)
class Ground:
    """What the robot stands on; flat and level unless set."""

    friction: Annotated[
        tuple[Annotated[float, Ge(0.05)], Annotated[float, Le(10)]],
        RISING,
        Doc("Range of the factor on the friction of the soles."),
    ] = (0.6, 1.3)
    slope: Annotated[float, Ge(0), Le(0.5), Doc("Inclination, rad.")] = 0.0
    uphill: Annotated[
        float, Doc("Direction in which it rises, to the left of the robot's first heading, rad.")
    ] = 0.0
    tiles: Annotated[
        float, Ge(0), Le(0.1), Doc("Uneven ground: height of the highest of its tiles, m; 0: none.")
    ] = 0.0


LEVEL = Ground()


@dataclass(frozen=True)
class LeggedConfig(TaskConfig):
    """Parameters of every task of a legged robot: an episode of 10 s on its feet, and what makes it fall."""

    rate: float = 50.0
    episode_steps: int = 500
    stop_on_success: Annotated[
        bool, Doc("Being on the feet ends the episode: never, for the time does.")
    ] = False
    lowpass: Lowpass = 0.6
    joint_noise: Annotated[
        float, Ge(0), ANGLE, Doc("Joints start within this much of home, rad.")
    ] = 0.05
    push_force: PushForce = (2.0, 5.0)
    push_steps: Annotated[int, Ge(1), Doc("Control steps for which a push lasts.")] = 6
    push_interval: PushInterval = 3.0
    most_pushes: Annotated[int, Ge(0), Doc("Pushes in an episode at most; 0: any number.")] = 0
    ground: Annotated[Ground, Doc("What the robot stands on.")] = field(default_factory=Ground)
    gyro_bias: Annotated[
        tuple[float, float, float],
        Doc(
            "Constant error of the gyroscope about x, y and z, beside the one that is drawn, rad/s."
        ),
    ] = (0.0, 0.0, 0.0)
    lowest: Annotated[float, Gt(0), LENGTH, Doc("Height of the waist below which it fell, m.")] = (
        0.36
    )
    max_tilt: Annotated[
        float, Gt(0), ANGLE, Doc("Tilt of the waist beyond which it fell, rad.")
    ] = 0.8


def _ground(**values: float) -> dict[str, dict[str, object]]:
    """Settings of a rung on other ground; a friction is that of all episodes."""
    ground = {name: (x, x) if name == "friction" else x for name, x in values.items()}
    return {"task": {"ground": ground}}


_FORCES = (4.0, 8.0, 12.0, 16.0, 20.0, 25.0, 30.0)  # N
_SLOPES = (0.03, 0.06, 0.09, 0.12, 0.16, 0.2)  # rad
_ONE_PUSH = {"most_pushes": 1, "push_interval": 1.0}
_SIDES = {"uphill": 0.0, "downhill": math.pi, "cross-slope": math.pi / 2}  # where the ground rises
LEGGED_LADDER = (
    *LADDER,
    Rung("60-s", "episodes of 60 s", seconds=60.0, most_episodes=500),
    Rung(
        "300-s",
        "episodes of 300 s with a gyroscope that is off by 0.03 rad/s about each axis",
        {"task": {"gyro_bias": (0.03, 0.03, 0.03)}},
        seconds=300.0,
        most_episodes=50,
    ),
    Rung(
        "push",
        "one push of 0.12 s on the waist, in any horizontal direction",
        {"task": _ONE_PUSH},
        levels={force: {"task": {"push_force": (force, force)}} for force in _FORCES},
        unit="N",
    ),
    Rung(
        "gyro-bias",
        "a gyroscope that is off by so much about each axis",
        levels={
            bias: {"task": {"gyro_bias": (bias, bias, bias)}} for bias in (0.05, 0.1, 0.2, 0.4, 0.8)
        },
        unit="rad/s",
    ),
    *(
        Rung(
            name,
            "a slope that rises "
            + {"uphill": "ahead", "downhill": "behind"}.get(name, "to the left"),
            levels={slope: _ground(slope=slope, uphill=towards) for slope in _SLOPES},
            unit="rad",
        )
        for name, towards in _SIDES.items()
    ),
    Rung(
        "friction",
        "soles with this factor of their friction, which is 0.8",
        levels={x: _ground(friction=x) for x in (0.6, 0.45, 0.3, 0.2, 0.15, 0.1)},
    ),
    Rung(
        "tiles",
        "uneven ground: square tiles of 0.25 m, up to so high",
        levels={height: _ground(tiles=height) for height in (0.005, 0.01, 0.015, 0.02, 0.03)},
        unit="m",
    ),
)
"""Conditions under which every legged robot is measured."""


class Legged(Entity):
    """A robot on feet, as a task meets it. Its `pads` are the soles, foot by foot, and touch the ground alone.

    A task calls `start` when episodes start and `watch` once after each step; what a step needs several times is
    computed then, once, and kept in `s.store`.

    Attributes:
        base: the free body, whose frame is that of the inertial sensor: x forward, y left, z up.
        feet: sites under the feet, left before right.
        torque: of every servo at most, N m.
        switch_force: on a foot, above which it counts as on the ground, N.
    """

    base: str = ""
    feet: tuple[str, ...] = ()
    torque: float = 0.0
    switch_force: float = 0.0

    def stand_on_floor(self, spec: mujoco.MjSpec, ground: Ground = LEVEL) -> None:
        """Put the robot's spec on a floor that it touches, with sensors of the force on each pad, and a camera.

        Friction cones are pyramids: on flat soles as good as elliptic ones, and half as fast again to solve.
        """
        scene.prepare(spec)
        spec.option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
        scene.add_floor(spec, 0.0, collides=True)
        scene.follow(spec, self.base)
        if ground.slope:
            scene.incline(spec, ground.slope, ground.uphill)
        if ground.tiles:
            scene.add_tiles(spec, ground.tiles)
        self.add_touch(spec, WORLD)

    def place_on(self, s: State, mask: Tensor, ground: Ground) -> None:
        """Where `mask` is True, the base starts somewhere else on uneven ground, as high as its highest tile."""
        if not ground.tiles:
            return
        place = s.pose(self.base)[:, :3].clone()
        place[:, :2] += s.uniform(mask, -START_AREA, START_AREA, 2)
        place[:, 2] += ground.tiles
        s.place(self.base, mask, place)

    def orientation(self, s: State) -> Tensor:
        """Of the base in the world, `(num_envs, 4)`, quaternion w x y z: its z is the vertical, on a slope too."""
        in_scene = s.pose(self.base)[:, 3:]
        down = tuple(s.sim.model.opt.gravity.tolist())
        if down[0] == down[1] == 0.0:
            return in_scene
        return multiply(s.tensor(_upright(down)).expand_as(in_scene), in_scene)

    def angular_velocity(self, s: State) -> Tensor:
        """Of the base in its own frame, `(num_envs, 3)`, rad/s: what a gyroscope measures."""
        return s.velocity(self.base)[:, 3:]

    def linear_velocity(self, s: State) -> Tensor:
        """Of the base in its heading frame (x forward, y left, z up), `(num_envs, 3)`, m/s."""
        return s.zeros("linear_velocity", 3)

    def heading(self, s: State) -> Tensor:
        """Angle of the base's forward axis about the vertical, `(num_envs,)`, rad in -pi .. pi."""
        return yaw(self.orientation(s))[:, 0]

    def height(self, s: State) -> Tensor:
        """Of the base above the floor, `(num_envs,)`, m; of a slope at right angles to it."""
        return s.pose(self.base)[:, 2]

    def gravity(self, s: State) -> Tensor:
        """Unit vector of gravity in the frame of the base, `(num_envs, 3)`."""
        return s.zeros("gravity", 3)

    def tilt(self, s: State) -> Tensor:
        """Angle of the base's z from the vertical, `(num_envs,)`, rad."""
        return s.zeros("tilt")

    def foot_pos(self, s: State) -> Tensor:
        """Where the feet are in the world, `(num_envs, feet, 3)`, m."""
        return s.zeros("foot_pos", len(self.feet), 3)

    def foot_vel(self, s: State) -> Tensor:
        """Mean velocity of the feet in the world over the step, `(num_envs, feet, 3)`, m/s."""
        return s.zeros("foot_vel", len(self.feet), 3)

    def sole_forces(self, s: State) -> Tensor:
        """Force of the ground on each pad, `(num_envs, pads)`, N."""
        return self.touch(s, WORLD)

    def foot_forces(self, s: State) -> Tensor:
        """Force of the ground on each foot, `(num_envs, feet)`, N."""
        return s.zeros("foot_forces", len(self.feet))

    def start(self, s: State, mask: Tensor) -> None:
        """How the robot stands where `mask` is True."""
        for name, value in self._readings(s).items():
            s.remember(name, mask, value)

    def watch(self, s: State) -> None:
        """How the robot stands after a step, how its feet moved, and what its servos did."""
        before = self.foot_pos(s).clone()
        for name, value in self._readings(s).items():
            s.zeros(name, *value.shape[1:])[:] = value
        self.foot_vel(s)[:] = (self.foot_pos(s) - before) / s.dt
        self._watch_feet(s)
        self._watch_servos(s)

    def _readings(self, s: State) -> dict[str, Tensor]:
        """What is kept of the state, by name."""
        orientation = self.orientation(s)
        gravity = projected_gravity(orientation)
        forces = self.sole_forces(s).unflatten(1, (len(self.feet), -1))
        return {
            "gravity": gravity,
            "tilt": torch.acos((-gravity[:, 2]).clip(-1.0, 1.0)),
            "linear_velocity": heading_frame(s.velocity(self.base)[:, :3], orientation),
            "foot_pos": torch.stack([s.site(name) for name in self.feet], 1),
            "foot_forces": forces.sum(-1),
        }

    def start_path(self, s: State, mask: Tensor) -> None:
        """Where `mask` is True, the commanded path begins where the robot stands."""
        position = s.pose(self.base)[:, :2]
        s.remember("commanded_heading", mask, self.heading(s))
        s.remember("path", mask, position)
        s.remember("before", mask, position)

    def follow_path(self, s: State, speed: Tensor, turn: Tensor, average_s: float) -> None:
        """Move the commanded path on by a step, and compare the base with it.

        `speed (num_envs,)`, m/s, and `turn (num_envs,)`, rad/s, are commanded. `average_s` is a time constant, s: as
        long as a period of the gait, in which the speed of a base swings. Kept in `s.store`: `commanded_heading`, rad;
        `path (num_envs, 2)`, m, where the commands would have brought the base; `heading_error`, rad, from the
        heading to the commanded one; `velocity` and `mean_velocity (num_envs, 2)`, m/s, along the commanded heading
        and to its left; `mean_command`, m/s, with the same time constant.
        """
        heading = s.zeros("commanded_heading")
        heading += turn * s.dt
        s.zeros("heading_error")[:] = angle_between(self.heading(s), heading)
        along = _direction(heading)
        s.zeros("path", 2)[:] += speed[:, None] * along * s.dt
        position = s.pose(self.base)[:, :2]
        before = s.zeros("before", 2)
        velocity = s.zeros("velocity", 2)
        mean = s.zeros("mean_velocity", 2)
        velocity[:] = _in_direction((position - before) / s.dt, along)
        before[:] = position
        part = s.dt / average_s
        mean += part * (velocity - mean)
        mean_command = s.zeros("mean_command")
        mean_command += part * (speed - mean_command)

    def off_path(self, s: State) -> Tensor:
        """How far the base is ahead of the commanded path, and to its left, `(num_envs, 2)`, m: in the world."""
        off = s.pose(self.base)[:, :2] - s.zeros("path", 2)
        return _in_direction(off, _direction(s.zeros("commanded_heading")))

    def slip(self, s: State, loaded: Tensor) -> Tensor:
        """Squared horizontal speed of the feet that are `loaded (num_envs, feet)`, summed, `(num_envs,)`, (m/s)2."""
        velocity = self.foot_vel(s)[..., :2]
        speed = velocity.square().sum(-1)
        return (speed * loaded).sum(-1)

    def stance_width(self, s: State) -> Tensor:
        """Distance of the feet across the base's heading, `(num_envs,)`, m; negative if they are crossed."""
        left, right = self.foot_pos(s).unbind(1)
        apart = left - right
        return heading_frame(apart, self.orientation(s))[:, 1]

    def fell(self, s: State, cfg: LeggedConfig) -> Tensor:
        """Whether the base is too low or tilted too far to stand, `(num_envs,)` bool."""
        is_low = self.height(s) < cfg.lowest
        return is_low | (self.tilt(s) > cfg.max_tilt)

    def pushes(self, cfg: LeggedConfig) -> tuple[Push, ...]:
        """Horizontal forces on the base at random times."""
        duration = cfg.push_steps / cfg.rate
        return (Push(self.base, cfg.push_force, cfg.push_interval, duration, cfg.most_pushes),)

    def _watch_feet(self, s: State) -> None:
        """Keep, in `s.store`, what `foot_metrics` tells of an episode."""
        forces = self.foot_forces(s)
        loaded = forces > self.switch_force
        speeds = self.foot_vel(s)[..., :2].norm(dim=-1)
        s.zeros("sum_slip")[:] += (speeds * loaded).sum(-1)
        s.zeros("sum_loaded")[:] += loaded.sum(-1)
        peak = s.zeros("peak_impact")
        peak[:] = torch.maximum(peak, forces.amax(-1))

    def foot_metrics(self, s: State) -> dict[str, Tensor]:
        """Of the episode so far: `slip`, m/s, of feet on the ground; `peak_impact`, N."""
        return {
            "slip": s.zeros("sum_slip") / s.zeros("sum_loaded").clip(min=1.0),
            "peak_impact": s.zeros("peak_impact"),
        }

    def saturated(self, s: State) -> Tensor:
        """Whether each servo gives more than `SATURATED` of its torque, `(num_envs, num_joints)` bool."""
        return s.joint_torque.abs() > SATURATED * self.torque

    def _watch_servos(self, s: State) -> None:
        """Keep, in `s.store`, what `servo_metrics` tells of an episode."""
        torques = s.joint_torque
        speeds = s.joint_vel
        torque = s.zeros("peak_torque")
        speed = s.zeros("peak_speed")
        torque[:] = torch.maximum(torque, torques.abs().amax(-1))
        speed[:] = torch.maximum(speed, speeds.abs().amax(-1))
        saturated = self.saturated(s).to(s.dtype)
        power = (torques * speeds).clip(min=0.0)
        s.zeros("sum_saturated")[:] += saturated.mean(-1)
        s.zeros("sum_power")[:] += power.sum(-1)

    def servo_metrics(self, s: State) -> dict[str, Tensor]:
        """Of the episode so far: `peak_torque`, N m; `saturated`; `peak_speed`, rad/s; `power`, W."""
        steps = s.steps.clip(min=1)
        return {
            "peak_torque": s.zeros("peak_torque"),
            "saturated": s.zeros("sum_saturated") / steps,
            "peak_speed": s.zeros("peak_speed"),
            "power": s.zeros("sum_power") / steps,
        }


def _upright(gravity: tuple[float, ...]) -> tuple[float, float, float, float]:
    """The rotation, quaternion w x y z, from a scene in which gravity leans to a world in which it points down."""
    x, y, z = gravity
    across = math.hypot(x, y)
    half = math.atan2(across, -z) / 2
    sine = math.sin(half)
    return (math.cos(half), -sine * y / across, sine * x / across, 0.0)


def mirrored(rows: Tensor, parts: Sequence[tuple[str, int]]) -> Tensor:
    """Rows `(..., n)` as they are in a mirror between the legs. Each part is a kind of quantity and its size.

    Kinds are `vector`, x forward, y left, z up if it has one; `rotation`, an axial vector such as an angular velocity;
    `sides`, the left leg's numbers and then the right leg's, in terms in which equal values are mirrored poses;
    `same`; `opposite`.
    """
    pieces = rows.split([size for _, size in parts], -1)
    images = []
    for (kind, _), piece in zip(parts, pieces, strict=True):
        images.append(_image(kind, piece))
    return torch.cat(images, -1)


def _image(kind: str, x: Tensor) -> Tensor:
    if kind == "same":
        return x
    if kind == "opposite":
        return -x
    if kind == "sides":
        return x.roll(x.shape[-1] // 2, -1)
    flip = x.new_ones(x.shape[-1])
    flip[1] = -1.0
    return x * flip if kind == "vector" else -x * flip


def _direction(angle: Tensor) -> Tensor:
    """The horizontal unit vector of an angle, `(num_envs, 2)`."""
    return torch.stack((angle.cos(), angle.sin()), -1)


def _in_direction(vector: Tensor, along: Tensor) -> Tensor:
    """A horizontal vector along a direction and to its left, `(num_envs, 2)` each."""
    forward = (vector * along).sum(-1)
    left = along[:, 0] * vector[:, 1] - along[:, 1] * vector[:, 0]
    return torch.stack((forward, left), -1)
