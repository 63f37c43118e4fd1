"""Several objects in one scene, of which each environment has one at a time, drawn when an episode starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mujoco
import torch

from deftly.objects.items import PREFIX, Item
from deftly.sim.scene import sleeps

if TYPE_CHECKING:
    from torch import Tensor

    from deftly.sim.state import State

PARKED = -1.5
"""Height at which objects hang that were not drawn, m: below the floor of any scene with a table."""
APART = 0.4
"""Distance of the parked objects, m."""
DRAWN = "drawn"
"""The store's number of each environment's object."""


class Assortment:
    """Objects, all of which are bodies of the scene: one is drawn, the others are parked.

    A parked object hangs in the air below the floor, where it touches nothing. MuJoCo lets it sleep, so that it costs
    next to nothing; in an engine that lets nothing sleep a force of the size of its weight holds it (`xfrc_applied`,
    which is part of the state). So nothing but the state differs between environments, and any engine can do it.
    """

    def __init__(self, items: Sequence[Item]):
        self.items = tuple(items)
        self.bodies = tuple(item.body for item in self.items)
        self.shown = tuple(item.shown for item in self.items)
        order = sorted(range(len(self)), key=lambda i: self.items[i].difficulty)
        self._easiest_first = tuple(order)

    def __len__(self) -> int:
        return len(self.items)

    def add(self, spec: mujoco.MjSpec) -> None:
        """Put all of them into a scene, parked."""
        for i, item in enumerate(self.items):
            spec.attach(item.build(), frame=spec.worldbody.add_frame(), prefix=PREFIX)
            body = spec.body(item.body)
            body.pos = [APART * i, 0.0, PARKED]
            if len(self) > 1:
                body.sleep = mujoco.mjtSleepPolicy.mjSLEEP_INIT

    def drawn(self, s: State) -> Tensor:
        """The number of each environment's object, `(num_envs,)` int64."""
        return s.zeros(DRAWN, dtype=torch.long)

    def draw(self, s: State, mask: Tensor, easiest: float = 1.0) -> None:
        """Draw an object for the environments of the mask, which stand at the home keyframe.

        `easiest`, a fraction in 0 .. 1: only so many of them are drawn, at least one; see `Item.difficulty`.
        """
        count = max(1, round(easiest * len(self)))
        number = s.uniform(mask, 0.0, float(count))
        place = number.long().clip(0, count - 1)
        self.drawn(s)
        by_difficulty = s.tensor(self._easiest_first)
        s.remember(DRAWN, mask, by_difficulty[place])
        if len(self) > 1 and not sleeps(s.sim.model):
            self._hold_up(s, mask)

    def _hold_up(self, s: State, mask: Tensor) -> None:
        """Bear the weight of the objects that are parked."""
        gravity = s.sim.expand("opt.gravity")
        forces = s.sim.bind("xfrc_applied")
        drawn = self.drawn(s)
        for i, body in enumerate(self.bodies):
            number = s.sim.model.body(body).id
            force = forces[:, number, :3]
            weight = s.parameter("body_mass", body)[:, None] * gravity
            parked = (drawn != i)[:, None]
            wanted = torch.where(parked, -weight, 0.0)
            force.copy_(torch.where(mask[:, None], wanted, force))

    def place(self, s: State, mask: Tensor, position: Tensor, quaternion: Tensor) -> None:
        """Put each environment's object somewhere where `mask` is True: see `State.place`."""
        pose = torch.cat((position, quaternion), -1)
        s.place_one(self.bodies, self.drawn(s), mask, pose)

    def pose(self, s: State) -> Tensor:
        """Pose of each environment's object, `(num_envs, 7)`: grasp frame in the world, m, and quaternion w x y z."""
        return self.of_drawn(s, s.poses(self.bodies))

    def position(self, s: State) -> Tensor:
        """Position of its grasp frame in the world, `(num_envs, 3)`, m."""
        return self.of_drawn(s, s.bodies(self.bodies))

    def velocity(self, s: State) -> Tensor:
        """Its velocity, `(num_envs, 6)`: linear in the world, m/s, and angular in its own frame, rad/s."""
        return self.of_drawn(s, s.velocities(self.bodies))

    def numbers(self, s: State, name: str) -> Tensor:
        """An attribute of each environment's `Item`, `(num_envs,)`, or `(num_envs, k)` of one with several numbers."""
        values = tuple(getattr(item, name) for item in self.items)
        return s.tensor(values)[self.drawn(s)]

    def of_drawn(self, s: State, values: Tensor) -> Tensor:
        """Of a value of each object, `(num_envs, len(self), k)`, that of the object that was drawn."""
        if len(self) == 1:
            return values[:, 0]
        place = self.drawn(s)[:, None, None].expand(-1, 1, values.shape[-1])
        return values.gather(1, place).squeeze(1)
