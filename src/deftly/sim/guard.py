"""Physics that breaks: environments that met a NaN or a solver error are written to disk, to be stepped again."""

from pathlib import Path

import mujoco
import numpy as np

from deftly.files import FileError, read_npz, write_npz

SCHEMA = "deftly.dump/1"
MAX_BYTES = 1 << 30
"""Largest dump that is read, unpacked: a model with its meshes and textures."""


def dump(path: Path, model: mujoco.MjModel, state: np.ndarray, substeps: int) -> None:
    """Write an environment's own model and its state before the step in which it broke, for `replay`."""
    binary = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, binary)
    write_npz(path, {"schema": SCHEMA, "model": binary, "state": state, "substeps": substeps})


def replay(path: Path) -> mujoco.MjData:
    """Step a dumped environment again from the state before it broke; returns the data at the break."""
    names = ("schema", "model", "state", "substeps")
    saved = read_npz(path, "a dump of a broken environment", MAX_BYTES, names=names)
    if str(saved["schema"]) != SCHEMA:
        raise FileError(f"{path} has schema {saved['schema']}, this Deftly reads {SCHEMA}")
    assets = {"dump.mjb": saved["model"].tobytes()}
    model = mujoco.MjModel.from_binary_path("dump.mjb", assets)
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, saved["state"], mujoco.mjtState.mjSTATE_INTEGRATION)
    for _ in range(int(saved["substeps"])):
        mujoco.mj_step(model, data)
        if not np.isfinite(data.qacc).all():
            break
    return data
