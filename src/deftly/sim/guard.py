"""Physics that breaks: a NaN or a solver error in one environment is counted, dumped and reset, and hurts no other."""

from __future__ import annotations

import os
from pathlib import Path

import mujoco
import numpy as np
import torch
from torch import Tensor

from deftly.errors import DeftlyError
from deftly.sim import Sim

SCHEMA = "deftly.dump/1"
MAX_DUMPS = 10


class Guard:
    """Steps a simulation and says which environments broke.

    The first `MAX_DUMPS` breaks are written to `dump_dir`, if given, as files that `replay` steps again.
    """

    def __init__(self, sim: Sim, substeps: int, dump_dir: Path | None):
        self._sim, self._substeps, self._dump_dir = sim, substeps, dump_dir
        self._qpos, self._qvel = sim.bind("qpos"), sim.bind("qvel")
        self.count = 0

    def step(self) -> Tensor:
        """Advance one control step; returns which environments broke, `(num_envs,)` bool."""
        before = self._sim.state.clone() if self._dump_dir else None
        failed = self._sim.step(self._substeps)
        broken = ~(torch.isfinite(self._qpos).all(1) & torch.isfinite(self._qvel).all(1))
        if len(failed):
            broken[torch.as_tensor(failed)] = True
        if broken.any():
            ids = broken.nonzero().squeeze(-1).tolist()
            if before is not None:
                for i in ids[: max(0, MAX_DUMPS - self.count)]:
                    self._dump(i, before[i].numpy())
            self.count += len(ids)
        return broken

    def _dump(self, env: int, state: np.ndarray) -> None:
        assert self._dump_dir is not None
        model = self._sim.batch.get_model(env) if hasattr(self._sim, "batch") else self._sim.model  # type: ignore[attr-defined]
        self._dump_dir.mkdir(parents=True, exist_ok=True)
        path = self._dump_dir / f"broken_{self.count:04d}_env{env}.npz"
        scratch = path.with_suffix(".tmp.npz")
        binary = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
        mujoco.mj_saveModel(model, None, binary)
        np.savez_compressed(scratch, schema=SCHEMA, model=binary, state=state, substeps=self._substeps)
        os.replace(scratch, path)


def replay(path: Path) -> mujoco.MjData:
    """Step a dumped environment again from the state before it broke; returns the data at the break."""
    try:
        with np.load(path, allow_pickle=False) as file:
            saved = {name: file[name] for name in ("schema", "model", "state", "substeps")}
    except (OSError, ValueError, KeyError) as error:
        raise DeftlyError(f"{path} is no dump of a broken environment: {error}") from None
    if str(saved["schema"]) != SCHEMA:
        raise DeftlyError(f"{path} has schema {saved['schema']}, this Deftly reads {SCHEMA}")
    model = mujoco.MjModel.from_binary_path("dump.mjb", {"dump.mjb": saved["model"].tobytes()})
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, saved["state"], mujoco.mjtState.mjSTATE_INTEGRATION)
    for _ in range(int(saved["substeps"])):
        mujoco.mj_step(model, data)
        if not np.isfinite(data.qacc).all():
            break
    return data
