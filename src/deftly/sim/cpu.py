"""The simulation on CPU cores: a thin wrapper over `mujoco.batch`, whose arrays become torch tensors without a copy."""

from __future__ import annotations

import os
import warnings

import mujoco
import mujoco.batch
import numpy as np
import torch

_BAD_STATE = [
    mujoco.mjtWarning.mjWARN_BADQPOS.value,
    mujoco.mjtWarning.mjWARN_BADQVEL.value,
    mujoco.mjtWarning.mjWARN_BADQACC.value,
    mujoco.mjtWarning.mjWARN_BADCTRL.value,
]
_FRESH = mujoco.mjtStage.mjSTAGE_POS.value


class CpuSim:
    """`Sim` over a C++ thread pool; bit-identical at any number of threads. Arrays are float64."""

    def __init__(self, model: mujoco.MjModel, num_envs: int, threads: int = 0):
        self.model, self.num_envs, self.device = model, num_envs, torch.device("cpu")
        self.batch = mujoco.batch.Batch(model, num_envs, threads or len(os.sched_getaffinity(0)))
        self.state = torch.from_numpy(self.batch.state)
        self._has_key = model.nkey > 0

    def bind(self, field: str) -> torch.Tensor:
        """Live view of an MjData field."""
        return _tensor(self.batch.bind(field))

    def expand(self, field: str) -> torch.Tensor:
        """Live values of an MjModel field for each environment."""
        return _tensor(self.batch.expand(field))

    def step(self, substeps: int) -> np.ndarray:
        """Advance all environments by `substeps`; positions, contacts and their sensors are those of the new state.

        Returns the ids of environments whose physics raised or met a non-finite or huge number in this step.
        """
        before = self._bad_states()
        try:
            self.batch.step(nstep=substeps, stage=_FRESH)
            raised = np.zeros(0, dtype=np.int64)
        except mujoco.batch.SimulationError as error:
            raised = np.asarray(error.ids, dtype=np.int64)
        return np.union1d(raised, np.flatnonzero(self._bad_states() != before))

    def _bad_states(self) -> np.ndarray:
        """How often MuJoCo met a bad state in each environment since it was reset."""
        return self.batch.warning[:, _BAD_STATE, 1].sum(axis=1)  # 1 is the count, 0 the place

    def forward(self, ids: torch.Tensor) -> None:
        """Recompute derived fields of some environments after their state was written."""
        self.batch.forward(ids.numpy(), stage=_FRESH)

    def reset(self, ids: torch.Tensor) -> None:
        """Put some environments at the home keyframe, without computing derived fields."""
        self.batch.reset(ids.numpy(), keyframe=0 if self._has_key else -1, stage=mujoco.mjtStage.mjSTAGE_NONE.value)

    def set_const(self, ids: torch.Tensor) -> None:
        """Recompute the model constants that follow from expanded fields."""
        self.batch.set_const(ids.numpy())


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # outputs are read-only: torch cannot say so, and warns
        return torch.from_numpy(array)
