"""The engine on CPU cores: `mujoco.batch`, whose arrays become torch tensors without a copy."""

import math
import os
import warnings
from functools import cached_property
from pathlib import Path

import mujoco
import mujoco.batch
import numpy as np
import torch

from deftly.errors import DeftlyError
from deftly.sim.guard import dump
from deftly.sim.scene import sleeps

Tensor = torch.Tensor

_BAD_STATE = [
    mujoco.mjtWarning.mjWARN_BADQPOS.value,
    mujoco.mjtWarning.mjWARN_BADQVEL.value,
    mujoco.mjtWarning.mjWARN_BADQACC.value,
    mujoco.mjtWarning.mjWARN_BADCTRL.value,
]
_OVERFLOW = [
    mujoco.mjtWarning.mjWARN_CONTACTFULL.value,
    mujoco.mjtWarning.mjWARN_CNSTRFULL.value,
]
_COUNT = 1  # column of `Batch.warning` that counts; column 0 says where
_POSITIONS = mujoco.mjtStage.mjSTAGE_POS.value
_VELOCITIES = mujoco.mjtStage.mjSTAGE_VEL.value
_ALL = mujoco.mjtStage.mjSTAGE_ACC.value
_NOTHING = mujoco.mjtStage.mjSTAGE_NONE.value
_DERIVED = ("xpos", "xquat", "site_xpos", "sensordata", "actuator_force")
"""Derived fields that are kept from the start. One that is bound later has no past: see `CpuSim.bind`."""
_MAX_DUMPS = 10  # broken environments that are written to `dump_dir`; the others are only counted


LEAST_MEMORY = 32_000
"""Bytes that an environment of a task takes at least: a guess on the low side. A process with 1,024 of `jaka-pick-cube`
takes 290 MB, one of `dexhand-box` 321 (docs/performance.md)."""


class CpuSim:
    """`deftly.sim.protocol.Sim` on C++ threads, bit-identical at any number of them; arrays are float64.

    Args:
        model: the nominal model.
        num_envs: simulations side by side.
        threads: 0 takes every core that this process may use.
        dump_dir: environments that break are written there for `deftly.sim.guard.replay`; None only counts them.
    """

    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(
        self, model: mujoco.MjModel, num_envs: int, threads: int = 0, dump_dir: Path | None = None
    ):
        self.model = model
        self.num_envs = num_envs
        threads = threads or len(os.sched_getaffinity(0))
        self._sleeps = sleeps(model)
        self.batch = _batch(model, num_envs, threads, self._sleeps)
        # A persistent batch goes on from there in its next step, which then has no positions to compute.
        self._stage = _VELOCITIES if self._sleeps else _POSITIONS
        self.broken_count = 0
        self.overflow_count = 0
        self.dump_dir = dump_dir
        self._unreported = np.zeros(num_envs, bool)  # whose state `forward` found to be bad
        self._bound: dict[str, Tensor] = {}
        self._expanded: dict[str, Tensor] = {}
        self._state = torch.from_numpy(self.batch.state)
        for field in _DERIVED:
            self._bound[field] = _tensor(self.batch.bind(field))
        self._qpos = self.bind("qpos")
        self._qvel = self.bind("qvel")

    def bind(self, field: str) -> Tensor:
        """Live view of an MjData field, `(num_envs, ...)`; writing to a state field writes the simulation.

        `mujoco.batch` leaves a derived field zero until its next call. So where one is bound for the first time,
        everything derived is computed at the state of now, forces too: a task is to bind what is not in `_DERIVED`
        before its first step, in `start`.
        """
        if field not in self._bound:
            self._bound[field] = _tensor(self.batch.bind(field))
            if not self.batch.bind(field).flags.writeable:
                self.forward()
        return self._bound[field]

    def expand(self, field: str) -> Tensor:
        """Live values of an MjModel field for each environment, `(num_envs, ...)`."""
        if field not in self._expanded:
            self._expanded[field] = _tensor(self.batch.expand(field))
        return self._expanded[field]

    def step(self, substeps: int, mask: Tensor | None = None) -> Tensor:
        """Advance environments; positions, contacts and their sensors are those of the new state.

        Returns which broke, `(num_envs,)` bool: their physics raised, met a non-finite or huge number, or ran out of
        memory for contacts in this step.
        """
        before = self.batch.state.copy() if self.dump_dir else None
        ids = _ids(mask)
        rows = slice(None) if ids is None else ids
        raised = []
        warned = self.batch.warning[rows, :, _COUNT].copy()
        try:
            self.batch.step(ids, nstep=substeps, stage=self._stage)
        except mujoco.batch.SimulationError as error:
            raised = error.ids
        broken = np.zeros(self.num_envs, bool)
        broken[rows] = self._find_broken(rows, warned) | self._unreported[rows]
        broken[raised] = True
        self._unreported &= ~broken
        if broken.any():
            self._count(broken, before, substeps)
        return torch.from_numpy(broken)

    def rollout(self, ids: np.ndarray, control: np.ndarray, field: str) -> np.ndarray:
        """Advance some environments under `control` (n, substeps, nu); an MjData field after each, (n, substeps, ...).

        One that meets a bad state stops there: its last record repeats. Of this engine alone, for identification.
        """
        recorded = self.batch.rollout(  # type: ignore[attr-defined]
            control.shape[1],
            control=control,
            control_spec=mujoco.mjtState.mjSTATE_CTRL.value,
            record=[field],
            ids=ids,
        )
        return recorded[field]

    def forward(self, mask: Tensor | None = None) -> None:
        """Recompute derived fields after the state was written.

        Forces too: what a call of `mujoco.batch` does not compute would hold another environment's values. A state that
        is not finite is reset by MuJoCo here; the next `step` then reports it as broken.
        """
        ids = _ids(mask)
        rows = slice(None) if ids is None else ids
        warned = self.batch.warning[rows][:, _BAD_STATE, _COUNT]
        self.batch.forward(ids, stage=_ALL)
        new_warnings = self.batch.warning[rows][:, _BAD_STATE, _COUNT] != warned
        self._unreported[rows] |= new_warnings.any(axis=1)

    def reset(self, mask: Tensor | None = None) -> None:
        """Put environments at the home keyframe, without computing derived fields."""
        keyframe = 0 if self.model.nkey else -1
        self.batch.reset(_ids(mask), keyframe=keyframe, stage=_NOTHING)

    def set_const(self, mask: Tensor | None = None) -> None:
        """Recompute the model constants that follow from expanded fields (masses, inertias, ...)."""
        self.batch.set_const(_ids(mask))

    def hold_commands(self, mask: Tensor | None = None) -> None:
        """Fill what delayed actuators read as if the command of now had always been there."""
        past, actuators = self._past
        if not len(past):
            return
        if mask is None:
            mask = torch.ones(self.num_envs, dtype=torch.bool)
        rows = mask.nonzero()  # (n, 1), against (columns,)
        self.bind("history")[rows, past] = self.bind("ctrl")[rows, actuators]

    @cached_property
    def _past(self) -> tuple[Tensor, Tensor]:
        """Columns of `history` that hold past commands, and whose: the actuator of each."""
        past: list[int] = []
        actuators: list[int] = []
        for i in np.flatnonzero(self.model.actuator_historyadr >= 0).tolist():
            count = int(self.model.actuator_history[i, 0])
            cursor_and_times = 2 + count
            start = int(self.model.actuator_historyadr[i]) + cursor_and_times
            past += range(start, start + count)
            actuators += [i] * count
        return torch.tensor(past), torch.tensor(actuators)

    def get_state(self) -> Tensor:
        """Copy of the integration states, `(num_envs, n)`."""
        return self._state.clone()

    def set_state(self, state: Tensor) -> None:
        """Restore what `get_state` gave; derived fields are stale until `forward`.

        Which bodies sleep is not in it, and follows: all that start asleep, unless the state moves them.
        """
        if self._sleeps:
            self.reset()
        self._state.copy_(state)

    def state_of(self, index: int) -> np.ndarray:
        """Copy of the integration state of one environment, `(n,)`, for `mj_setState`."""
        return self.batch.state[index].copy()

    def model_of(self, index: int) -> mujoco.MjModel:
        """A model with the environment's own values of the expanded fields."""
        return self.batch.get_model(index)

    def _find_broken(self, rows: slice | np.ndarray, warned: np.ndarray) -> np.ndarray:
        """Which of some environments met a bad state since `warned`, the counts of their warnings; `(n,)` bool."""
        changed = self.batch.warning[rows, :, _COUNT] != warned  # (n, warnings)
        broken = np.zeros(len(changed), bool)
        if changed.any():
            overflowed = changed[:, _OVERFLOW].any(axis=1)
            broken = changed[:, _BAD_STATE].any(axis=1) | overflowed
            self.overflow_count += int(overflowed.sum())
        qpos = self._qpos[rows]
        qvel = self._qvel[rows]
        if not math.isfinite(qpos.sum().item() + qvel.sum().item()):  # cheaper than to look at each
            finite = torch.isfinite(qpos).all(1) & torch.isfinite(qvel).all(1)
            broken |= ~finite.numpy()
        return broken

    def _count(self, broken: np.ndarray, before: np.ndarray | None, substeps: int) -> None:
        """Count broken environments, and write the first few to disk."""
        for env in np.flatnonzero(broken).tolist():
            if self.dump_dir and before is not None and self.broken_count < _MAX_DUMPS:
                path = self.dump_dir / f"broken_{self.broken_count:04d}_env{env}.npz"
                dump(path, self.model_of(env), before[env], substeps)
            self.broken_count += 1


def _batch(
    model: mujoco.MjModel, num_envs: int, threads: int, persistent: bool
) -> mujoco.batch.Batch:
    """The simulations. Raises DeftlyError, before any memory is taken, for more than this machine can hold.

    Linux would let it take what there is not, and then kill some process.
    """
    least = LEAST_MEMORY * num_envs
    there_is = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    too_many = f"{num_envs} environments do not fit into the memory of this machine"
    if least > there_is:
        raise DeftlyError(
            f"{too_many}: {least / 1e9:.0f} GB at least, it has {there_is / 1e9:.0f}; lower env.num-envs"
        )
    try:
        return mujoco.batch.Batch(model, num_envs, threads, persistent=persistent)
    except (MemoryError, ValueError) as error:
        if isinstance(error, ValueError) and "bad_alloc" not in str(error):
            raise
        raise DeftlyError(f"{too_many}: lower env.num-envs") from None


def _ids(mask: Tensor | None) -> np.ndarray | None:
    """What `mujoco.batch` takes for a mask: indices, or None for all."""
    if mask is None:
        return None
    return mask.nonzero().squeeze(-1).numpy()


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # torch has no read-only tensors, and warns
        return torch.from_numpy(array)
