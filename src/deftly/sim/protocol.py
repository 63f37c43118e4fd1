"""What a physics engine offers to the environment: many simulations of one model, side by side.

The protocol is shaped after `mujoco.batch.Batch`. Arrays are torch tensors on the engine's device; the leading axis is
the environment. Subsets are boolean masks `(num_envs,)`, so that an engine on a GPU need not ask the host which
environments are meant.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    import mujoco
    import numpy as np

Tensor = torch.Tensor

STATE_FIELDS = (
    "time",
    "qpos",
    "qvel",
    "act",
    "history",
    "qacc_warmstart",
    "ctrl",
    "qfrc_applied",
    "xfrc_applied",
    "eq_active",
    "mocap_pos",
    "mocap_quat",
    "userdata",
)
"""MjData fields that are the state, in the order of mjSTATE_INTEGRATION: what is written to them is the simulation."""


class Sim(Protocol):
    """`num_envs` simulations of one model.

    Freshness: after `step`, positions, contacts and the sensors that follow from them describe the state that was
    reached; forces and accelerations (`actuator_force`, contact forces) are those of the last substep. After `forward`
    everything describes the state and the `ctrl` of now, forces too. Neither touches derived fields of environments
    that are not in the mask.
    """

    @property
    def model(self) -> mujoco.MjModel:
        """The nominal model, which every environment started from. Read only."""
        ...

    @property
    def num_envs(self) -> int:
        """How many environments are simulated."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the physical numbers: float64 on the CPU engine, float32 on Warp."""
        ...

    def bind(self, field: str) -> Tensor:
        """Live view of an MjData field, `(num_envs, ...)`, always the same tensor for a field.

        Writing to a field of the state (`qpos`, `qvel`, `ctrl`, `xfrc_applied`, `mocap_pos`, ...) writes the
        simulation; derived fields (`xpos`, `site_xpos`, `sensordata`, `actuator_force`, ...) are to be read only.
        """
        ...

    def expand(self, field: str) -> Tensor:
        """Live values of an MjModel field for each environment, `(num_envs, ...)`, always the same tensor for a field.

        `opt.gravity` names a field of the options. After writing masses, inertias or armatures call `set_const`.
        """
        ...

    def step(self, substeps: int, mask: Tensor | None = None) -> Tensor:
        """Advance the environments of `mask` (None: all); the others keep their state and their derived fields.

        Returns which broke in this step, `(num_envs,)` bool: their physics raised, or met a number that is huge or not
        finite, or had more contacts than the engine has room for. Each is counted in `broken_count`, and whoever
        steps is to reset it.
        """
        ...

    def forward(self, mask: Tensor | None = None) -> None:
        """Bring derived fields of the environments of `mask` up to date after their state was written."""
        ...

    def reset(self, mask: Tensor | None = None) -> None:
        """Put environments at the keyframe `home` (the first; without one, at `qpos0`) with zero velocity and time 0.

        Model fields of `expand` stay. Derived fields are stale until `forward`.
        """
        ...

    def set_const(self, mask: Tensor | None = None) -> None:
        """Recompute the model constants that follow from masses, inertias and armatures of `expand`."""
        ...

    def hold_commands(self, mask: Tensor | None = None) -> None:
        """Fill what delayed actuators read as if the `ctrl` of now had always been commanded."""
        ...

    def get_state(self) -> Tensor:
        """Copy of everything that decides the future but the model fields, `(num_envs, n)`; for checkpoints."""
        ...

    def set_state(self, state: Tensor) -> None:
        """Restore what `get_state` gave, bit for bit. Derived fields are stale until `forward`."""
        ...

    def state_of(self, index: int) -> np.ndarray:
        """State of one environment, `(mj_stateSize(model, mjSTATE_INTEGRATION),)` float64, for `mj_setState`."""
        ...

    def model_of(self, index: int) -> mujoco.MjModel:
        """A model of one environment with its own values of the fields of `expand`, for images and dumps."""
        ...

    dump_dir: Path | None
    """Where environments that break are written for `deftly.sim.guard.replay`; None only counts them."""

    @property
    def broken_count(self) -> int:
        """How many environments broke since the start. May wait for the device: not to be read in every step."""
        ...

    @property
    def overflow_count(self) -> int:
        """How many of them broke because they had more contacts or constraints than the engine has room for."""
        ...
