"""The scenes of both families of tasks, and motions in them, for tests of the engines without an environment."""

from typing import NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from deftly import tasks
from deftly.config import SimConfig
from deftly.sim.randomize import prepare
from deftly.sim.scene import compile_scene

PRESETS = {
    "jaka-pick-cube": "default",
    "leap-right-cube-rotate": "coarse",
}  # of each task: what it is trained with
STEP = {
    "jaka-pick-cube": 0.04,
    "leap-right-cube-rotate": 0.06,
}  # rad, of a random walk in each control period


class Scene(NamedTuple):
    """A compiled scene: its model, and substeps of a control period."""

    name: str
    model: mujoco.MjModel
    substeps: int


def compiled(name: str, tolerance: float = 1e-8) -> Scene:
    """A task's scene with room for its randomization, and with a sensor of the cube's contacts.

    `cube_contacts` says of the deepest contact of the cube whether it is there, its distance, position and normal.
    `tolerance` is that of the solver; 1e-8 is MuJoCo's own.
    """
    cls = tasks.load(name)
    task = cls(cls.Config())
    rate = task.contract().rate
    settings = SimConfig(preset=PRESETS[name])
    count = settings.substeps_at(rate)
    spec = task.scene()
    prepare(spec, task.randomize(), 1 / (rate * count))
    sensor = spec.add_sensor(name="cube_contacts", type=mujoco.mjtSensor.mjSENS_CONTACT)
    sensor.objtype, sensor.objname = mujoco.mjtObj.mjOBJ_GEOM, "cube"
    data = (
        getattr(mujoco.mjtConDataField, f"mjCONDATA_{x}").value
        for x in ("FOUND", "DIST", "POS", "NORMAL")
    )
    nearest_first, slots = 1, 1
    sensor.intprm[:3] = [sum(1 << bit for bit in data), nearest_first, slots]
    model = compile_scene(spec, rate, settings)
    model.opt.tolerance = tolerance
    return Scene(name, model, count)


def joints_of(scene: Scene) -> int:
    """Joints with an actuator; in both scenes they come first."""
    return scene.model.nu


def start(scene: Scene, num_envs: int, generator: torch.Generator) -> Tensor:
    """Positions near home, `(num_envs, nq)`, of which float32 loses nothing; the JAKA's cube is between its fingers."""
    model = scene.model
    qpos = torch.tensor(model.key_qpos[0]).repeat(num_envs, 1)
    qpos[:, : joints_of(scene)] += (
        0.02 * torch.randn(num_envs, joints_of(scene), generator=generator).double()
    )
    if scene.name == "jaka-pick-cube":
        qpos[:, 6:8] = 0.035  # the gripper, open
        data = mujoco.MjData(model)
        quat = np.zeros(4)
        for row in qpos:
            data.qpos[:] = row
            mujoco.mj_kinematics(model, data)
            mujoco.mju_mat2Quat(quat, data.site("pinch").xmat)
            row[8:] = torch.tensor([*data.site("pinch").xpos, *quat])
    return qpos.float().double()


def motion(scene: Scene, num_envs: int, steps: int, generator: torch.Generator) -> Tensor:
    """Commands of random walks about home, `(steps, num_envs, nu)`; the JAKA's gripper closes and stays closed."""
    noise = torch.randn(steps, num_envs, scene.model.nu, generator=generator).double()
    walk = torch.tensor(scene.model.key_ctrl[0]) + (STEP[scene.name] * noise).cumsum(0).clip(
        -0.5, 0.5
    )
    if scene.name == "jaka-pick-cube":
        walk[..., 6] = 0.0
    return walk.float().double()
