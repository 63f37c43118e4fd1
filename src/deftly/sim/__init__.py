"""Batched simulation: one interface, `Sim`, over MuJoCo's own batch stepping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import mujoco
    import numpy as np
    import torch


class Sim(Protocol):
    """Many simulations of one model, shaped after `mujoco.batch.Batch`. All arrays lead with `num_envs`."""

    model: mujoco.MjModel
    num_envs: int
    device: torch.device
    state: torch.Tensor

    def bind(self, field: str) -> torch.Tensor:
        """Live view of an MjData field: `(num_envs, ...)`. Writing to a state field writes the simulation."""
        ...

    def expand(self, field: str) -> torch.Tensor:
        """Live values of an MjModel field for each environment: `(num_envs, ...)`."""
        ...

    def step(self, substeps: int) -> np.ndarray:
        """Advance all environments; derived fields are fresh. Returns the ids whose physics failed."""
        ...

    def forward(self, ids: torch.Tensor) -> None:
        """Recompute derived fields of some environments after their state was written."""
        ...

    def reset(self, ids: torch.Tensor) -> None:
        """Put some environments at the home keyframe, without computing derived fields."""
        ...

    def set_const(self, ids: torch.Tensor) -> None:
        """Recompute the model constants that follow from expanded fields (masses, inertias, ...)."""
        ...
