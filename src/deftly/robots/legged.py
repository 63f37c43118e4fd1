"""What legged robots have in common: a floating base that carries the inertial sensor, and feet on the ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import mujoco
import torch
from annotated_types import Ge, Gt, Lt
from typing_extensions import Doc

from deftly.config import RANGE, TaskConfig
from deftly.contract.derive import angle_between, heading_frame, projected_gravity, yaw
from deftly.robots.entity import Entity
from deftly.sim import scene
from deftly.sim.pushes import Push

if TYPE_CHECKING:
    from torch import Tensor

    from deftly.sim.state import State

WORLD = "world"
SATURATED = 0.95
"""Fraction of its torque above which a servo counts as saturated."""
SERVO_METRICS = {
    "peak_torque": "largest torque of a servo, as it is at the end of each control period, N m",
    "saturated": "fraction of the time at more than 95 % of the torque, mean over the servos",
    "peak_speed": "largest speed of a joint, as it is at the end of each control period, rad/s",
    "power": "mean mechanical power that the servos put in, W",
}
Lowpass = Annotated[float, Ge(0), Lt(1), Doc("Weight of the previous action.")]
PushForce = Annotated[
    tuple[float, float], RANGE, Doc("Range of the force of a push on the waist, N.")
]
PushInterval = Annotated[float, Gt(0), Doc("Mean time between pushes, s.")]


@dataclass(frozen=True)
class LeggedConfig(TaskConfig):
    """Parameters of every task of a legged robot: an episode of 10 s on its feet, and what makes it fall."""

    rate: float = 50.0
    episode_steps: int = 500
    stop_on_success: Annotated[
        bool, Doc("Being on the feet ends the episode: never, for the time does.")
    ] = False
    lowpass: Lowpass = 0.6
    joint_noise: Annotated[float, Ge(0), Doc("Joints start within this much of home, rad.")] = 0.05
    push_force: PushForce = (2.0, 5.0)
    push_steps: Annotated[int, Ge(1), Doc("Control steps for which a push lasts.")] = 6
    push_interval: PushInterval = 3.0
    lowest: Annotated[float, Gt(0), Doc("Height of the waist below which it fell, m.")] = 0.36
    max_tilt: Annotated[float, Gt(0), Doc("Tilt of the waist beyond which it fell, rad.")] = 0.8


class Legged(Entity):
    """A robot on feet, as a task meets it. Its `pads` are the soles, foot by foot, and touch the ground alone.

    A task calls `start` when episodes start and `watch` once after each step; what a step needs several times is
    computed then, once, and kept in `s.store`.

    Attributes:
        base: the free body, whose frame is that of the inertial sensor: x forward, y left, z up.
        feet: sites under the feet, left before right.
        torque: of every servo at most, N m.
    """

    base: str = ""
    feet: tuple[str, ...] = ()
    torque: float = 0.0

    def stand_on_floor(self, spec: mujoco.MjSpec) -> None:
        """Put the robot's spec on a floor that it touches, with sensors of the force on each pad, and a camera.

        Friction cones are pyramids: on flat soles as good as elliptic ones, and half as fast again to solve.
        """
        scene.prepare(spec)
        spec.option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
        scene.add_floor(spec, 0.0, collides=True)
        self.add_touch(spec, WORLD)

    def orientation(self, s: State) -> Tensor:
        """Of the base in the world, `(num_envs, 4)`, quaternion w x y z."""
        return s.pose(self.base)[:, 3:]

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
        """Of the base above the ground, `(num_envs,)`, m."""
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
        position, before = s.pose(self.base)[:, :2], s.zeros("before", 2)
        velocity, mean = s.zeros("velocity", 2), s.zeros("mean_velocity", 2)
        velocity[:] = _in_direction((position - before) / s.dt, along)
        before[:] = position
        part = s.dt / average_s
        mean += part * (velocity - mean)
        s.zeros("mean_command")[:] += part * (speed - s.zeros("mean_command"))

    def off_path(self, s: State) -> Tensor:
        """How far the base is ahead of the commanded path, and to its left, `(num_envs, 2)`, m: in the world."""
        off = s.pose(self.base)[:, :2] - s.zeros("path", 2)
        return _in_direction(off, _direction(s.zeros("commanded_heading")))

    def slip(self, s: State, loaded: Tensor) -> Tensor:
        """Squared horizontal speed of the feet that are `loaded (num_envs, feet)`, summed, `(num_envs,)`, (m/s)2."""
        speed = self.foot_vel(s)[..., :2].square().sum(-1)
        return (speed * loaded).sum(-1)

    def stance_width(self, s: State) -> Tensor:
        """Distance of the feet across the base's heading, `(num_envs,)`, m; negative if they are crossed."""
        left, right = self.foot_pos(s).unbind(1)
        apart = left - right
        return heading_frame(apart, self.orientation(s))[:, 1]

    def fell(self, s: State, cfg: LeggedConfig) -> Tensor:
        """Whether the base is too low or tilted too far to stand, `(num_envs,)` bool."""
        return (self.height(s) < cfg.lowest) | (self.tilt(s) > cfg.max_tilt)

    def pushes(self, cfg: LeggedConfig) -> tuple[Push, ...]:
        """Horizontal forces on the base at random times."""
        return (Push(self.base, cfg.push_force, cfg.push_interval, cfg.push_steps / cfg.rate),)

    def saturated(self, s: State) -> Tensor:
        """Whether each servo gives more than `SATURATED` of its torque, `(num_envs, num_joints)` bool."""
        return s.joint_torque.abs() > SATURATED * self.torque

    def _watch_servos(self, s: State) -> None:
        """Keep, in `s.store`, what `servo_metrics` tells of an episode."""
        torques, speeds = s.joint_torque, s.joint_vel
        torque, speed = s.zeros("peak_torque"), s.zeros("peak_speed")
        torque[:] = torch.maximum(torque, torques.abs().amax(-1))
        speed[:] = torch.maximum(speed, speeds.abs().amax(-1))
        s.zeros("sum_saturated")[:] += self.saturated(s).to(s.dtype).mean(-1)
        s.zeros("sum_power")[:] += (torques * speeds).clip(min=0.0).sum(-1)

    def servo_metrics(self, s: State) -> dict[str, Tensor]:
        """Of the episode so far: `peak_torque`, N m; `saturated`; `peak_speed`, rad/s; `power`, W."""
        steps = s.steps.clip(min=1)
        return {
            "peak_torque": s.zeros("peak_torque"),
            "saturated": s.zeros("sum_saturated") / steps,
            "peak_speed": s.zeros("peak_speed"),
            "power": s.zeros("sum_power") / steps,
        }


def mirrored(rows: Tensor, parts: Sequence[tuple[str, int]]) -> Tensor:
    """Rows `(..., n)` as they are in a mirror between the legs. Each part is a kind of quantity and its size.

    Kinds are `vector`, x forward, y left, z up if it has one; `rotation`, an axial vector such as an angular velocity;
    `sides`, the left leg's numbers and then the right leg's, in terms in which equal values are mirrored poses;
    `same`; `opposite`.
    """
    pieces = rows.split([size for _, size in parts], -1)
    return torch.cat([_image(kind, x) for (kind, _), x in zip(parts, pieces, strict=True)], -1)


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
