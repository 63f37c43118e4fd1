"""The simulation on CPU cores: a thin wrapper over `mujoco.batch`, whose arrays become torch tensors without a copy."""

import os
import warnings
from pathlib import Path

import mujoco
import mujoco.batch
import numpy as np
import torch

from deftly.sim.guard import dump

_BAD_STATE = [getattr(mujoco.mjtWarning, f"mjWARN_BAD{name}").value for name in ("QPOS", "QVEL", "QACC", "CTRL")]
_FRESH, _NONE = mujoco.mjtStage.mjSTAGE_POS.value, mujoco.mjtStage.mjSTAGE_NONE.value
_MAX_DUMPS = 10  # broken environments that are written to `dump_dir`; the others are only counted


class CpuSim:
    """Many simulations of one model on C++ threads, bit-identical at any number of them; arrays are float64."""

    def __init__(self, model: mujoco.MjModel, num_envs: int, threads: int = 0, dump_dir: Path | None = None):
        self.model, self.num_envs, self.dump_dir = model, num_envs, dump_dir
        self.batch = mujoco.batch.Batch(model, num_envs, threads or len(os.sched_getaffinity(0)))
        self.state = torch.from_numpy(self.batch.state)
        self._qpos, self._qvel = self.bind("qpos"), self.bind("qvel")
        self.broken_count = 0

    def bind(self, field: str) -> torch.Tensor:
        """Live view of an MjData field, `(num_envs, ...)`; writing to a state field writes the simulation."""
        return _tensor(self.batch.bind(field))

    def expand(self, field: str) -> torch.Tensor:
        """Live values of an MjModel field for each environment, `(num_envs, ...)`."""
        return _tensor(self.batch.expand(field))

    def step(self, substeps: int, ids: torch.Tensor | None = None) -> np.ndarray:
        """Advance all or some environments; positions, contacts and their sensors are those of the new state.

        Returns which broke, `(num_envs,)` bool: their physics raised or met a non-finite or huge number in this step.
        """
        before = self.state.numpy().copy() if self.dump_dir else None
        raised, warned = [], self._bad_states()
        try:
            self.batch.step(None if ids is None else ids.numpy(), nstep=substeps, stage=_FRESH)
        except mujoco.batch.SimulationError as error:
            raised = error.ids
        finite = torch.isfinite(self._qpos).all(1) & torch.isfinite(self._qvel).all(1)
        broken = (self._bad_states() != warned) | ~finite.numpy()
        broken[raised] = True
        for env in map(int, np.flatnonzero(broken)):
            if self.dump_dir and before is not None and self.broken_count < _MAX_DUMPS:
                path = self.dump_dir / f"broken_{self.broken_count:04d}_env{env}.npz"
                dump(path, self.batch.get_model(env), before[env], substeps)
            self.broken_count += 1
        return broken

    def _bad_states(self) -> np.ndarray:
        """How often MuJoCo met a bad state in each environment since it was reset."""
        return self.batch.warning[:, _BAD_STATE, 1].sum(axis=1)  # 1 is the count, 0 the place

    def rollout(self, ids: np.ndarray, control: np.ndarray, field: str) -> np.ndarray:
        """Advance some environments under `control` (n, substeps, nu); an MjData field after each, (n, substeps, ...).

        One that meets a bad state stops there: its last record repeats.
        """
        spec = mujoco.mjtState.mjSTATE_CTRL.value
        kept = self.batch.rollout(control.shape[1], control=control, control_spec=spec, record=[field], ids=ids)  # type: ignore[attr-defined]
        return kept[field]

    def forward(self, ids: torch.Tensor) -> None:
        """Recompute derived fields of some environments after their state was written."""
        self.batch.forward(ids.numpy(), stage=_FRESH)

    def reset(self, ids: torch.Tensor) -> None:
        """Put some environments at the home keyframe, without computing derived fields."""
        self.batch.reset(ids.numpy(), keyframe=0 if self.model.nkey else -1, stage=_NONE)

    def set_const(self, ids: torch.Tensor) -> None:
        """Recompute the model constants that follow from expanded fields (masses, inertias, ...)."""
        self.batch.set_const(ids.numpy())


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # outputs are read-only: torch cannot say so, and warns
        return torch.from_numpy(array)
