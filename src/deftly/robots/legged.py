"""What legged robots have in common: a floating base that carries the inertial sensor, and feet on the ground."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from deftly.contract.derive import heading_frame, projected_gravity
from deftly.robots.entity import Entity

if TYPE_CHECKING:
    from torch import Tensor

    from deftly.sim.state import State

WORLD = "world"


class Legged(Entity):
    """A robot on feet, as a task meets it. Its `pads` are the soles, foot by foot, and touch the ground alone.

    Attributes:
        base: the free body, whose frame is that of the inertial sensor: x forward, y left, z up.
        feet: sites under the feet, left before right.
    """

    base: str = ""
    feet: tuple[str, ...] = ()

    def orientation(self, s: State) -> Tensor:
        """Of the base in the world, `(num_envs, 4)`, quaternion w x y z."""
        return s.pose(self.base)[:, 3:]

    def angular_velocity(self, s: State) -> Tensor:
        """Of the base in its own frame, `(num_envs, 3)`, rad/s: what a gyroscope measures."""
        return s.velocity(self.base)[:, 3:]

    def linear_velocity(self, s: State) -> Tensor:
        """Of the base in its heading frame (x forward, y left, z up), `(num_envs, 3)`, m/s."""
        return heading_frame(s.velocity(self.base)[:, :3], self.orientation(s))

    def height(self, s: State) -> Tensor:
        """Of the base above the ground, `(num_envs,)`, m."""
        return s.pose(self.base)[:, 2]

    def gravity(self, s: State) -> Tensor:
        """Unit vector of gravity in the frame of the base, `(num_envs, 3)`."""
        return projected_gravity(self.orientation(s))

    def tilt(self, s: State) -> Tensor:
        """Angle of the base's z from the vertical, `(num_envs,)`, rad."""
        return torch.acos((-self.gravity(s)[:, 2]).clip(-1.0, 1.0))

    def foot_pos(self, s: State) -> Tensor:
        """Where the feet are in the world, `(num_envs, feet, 3)`, m."""
        return torch.stack([s.site(name) for name in self.feet], 1)

    def sole_forces(self, s: State) -> Tensor:
        """Force of the ground on each pad, `(num_envs, pads)`, N."""
        return self.touch(s, WORLD)

    def foot_forces(self, s: State) -> Tensor:
        """Force of the ground on each foot, `(num_envs, feet)`, N."""
        return self.sole_forces(s).unflatten(1, (len(self.feet), -1)).sum(-1)
