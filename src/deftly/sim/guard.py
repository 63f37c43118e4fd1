"""Physics that breaks: environments that met a NaN or a solver error are written to disk, to be stepped again."""

from pathlib import Path

import mujoco
import numpy as np

from deftly.errors import DeftlyError
from deftly.files import whole

SCHEMA = "deftly.dump/1"


def dump(path: Path, model: mujoco.MjModel, state: np.ndarray, substeps: int) -> None:
    """Write an environment's own model and its state before the step in which it broke, for `replay`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    binary = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, binary)
    with whole(path) as scratch:
        np.savez_compressed(scratch, schema=SCHEMA, model=binary, state=state, substeps=substeps)


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
