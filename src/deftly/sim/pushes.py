"""Forces that hit bodies at random times."""

from dataclasses import dataclass

import torch

from deftly.sim.state import State


@dataclass(frozen=True)
class Push:
    """Forces that hit a body at random times; a curriculum scales them by `s.scale["push"]`."""

    body: str
    force: tuple[float, float]  # range of the horizontal force, N
    interval: float  # mean time between pushes, s
    duration: float  # length of a push, s
    most: int = 0  # pushes in an episode at most; 0: any number


class Pushes:
    """Applies a task's pushes; `state` has the steps that each still lasts and its force, `(num_envs, pushes, ...)`."""

    def __init__(self, s: State, pushes: tuple[Push, ...], rate: float):
        self._s = s
        self._pushes = pushes
        self._rate = rate
        self._bodies = [s.sim.model.body(push.body).id for push in pushes]
        shape = (s.num_envs, len(pushes))
        self.state = {
            "left": torch.zeros(shape, device=s.device),
            "force": torch.zeros(*shape, 2, device=s.device),
        }
        if any(push.most for push in pushes):
            self.state["count"] = torch.zeros(shape, device=s.device)

    def apply(self) -> None:
        """Start, continue or end each push for one step."""
        for i, (push, body) in enumerate(zip(self._pushes, self._bodies)):
            left = self.state["left"][:, i]
            force = self.state["force"][:, i]
            count = self.state["count"][:, i] if push.most else None
            self._apply(push, body, left, force, count)

    def _apply(
        self,
        push: Push,
        body: int,
        left: torch.Tensor,
        force: torch.Tensor,
        count: torch.Tensor | None,
    ) -> None:
        """One push; `left (num_envs,)` steps, `force (num_envs, 2)` N and `count (num_envs,)` are changed in place."""
        s = self._s
        uniform = torch.rand(s.num_envs, 3, generator=s.generator, device=s.device)
        start_probability = 1 / (push.interval * self._rate)
        start = (left <= 0) & (uniform[:, 0] < start_probability)
        if count is not None:
            start &= count < push.most
            count += start
        drawn = _horizontal_force(push.force, uniform[:, 1], uniform[:, 2])
        drawn *= s.scale.get("push", 1.0)
        force.copy_(torch.where(start[:, None], drawn, force))
        steps = max(1.0, round(push.duration * self._rate))
        left.copy_(torch.where(start, steps, left - 1))
        active = (left > 0)[:, None]
        s.sim.bind("xfrc_applied")[:, body, :2] = (force * active).to(s.dtype)


def _horizontal_force(
    limits: tuple[float, float], magnitude: torch.Tensor, direction: torch.Tensor
) -> torch.Tensor:
    """Forces `(num_envs, 2)` N within limits of their magnitude, from uniform numbers in 0 .. 1."""
    smallest, largest = limits
    newtons = smallest + (largest - smallest) * magnitude
    angle = 2 * torch.pi * direction
    unit = torch.stack((angle.cos(), angle.sin()), -1)
    return newtons[:, None] * unit
