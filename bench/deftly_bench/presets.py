"""What a physics preset buys: how deep fingers sink into the cube they grip, and how far it creeps out of them."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from deftly.config import SimConfig
from deftly.config.presets import Preset
from deftly.robots import jaka_zu5
from deftly.sim.scene import compile_scene
from deftly.tasks import load
from deftly_bench.entry import no_program

SETTLE, HOLD = 1.0, 2.0  # s
ROBOT, TASK = "jaka-zu5", "jaka-pick-cube"
GAP = 0.0005  # m between finger and cube at the start


def grip(preset: Preset) -> dict[str, Any]:
    """Grip the cube in the air at home and hold it.

    Returns the largest penetration between pads and cube and the slip of the cube in the gripper's frame, both in m,
    over two seconds after one in which the grip settles.
    """
    cls = load(TASK)
    task = cls(cls.Config())
    model = compile_scene(task.scene(), task.contract().rate, SimConfig(preset=preset))
    data = mujoco.MjData(model)
    _between_fingers(model, data, task.cfg.cube_half)
    _run(model, data, SETTLE)
    before, deepest = _in_gripper(model, data), 0.0
    for _ in range(round(HOLD / model.opt.timestep)):
        mujoco.mj_step(model, data)
        deepest = max(deepest, _penetration(model, data))
    slip = float(np.linalg.norm(_in_gripper(model, data) - before))
    return {"penetration_m": deepest, "slip_m": slip, "held": deepest > 0}


def _between_fingers(model: mujoco.MjModel, data: mujoco.MjData, half: float) -> None:
    """The cube at the pinch point, the fingers about to touch it and commanded to close."""
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_kinematics(model, data)
    data.joint("cube").qpos[:] = *data.site("pinch").xpos, 1, 0, 0, 0
    opening = half + jaka_zu5.FINGER_HALF[1] - jaka_zu5.FINGER_CLOSED + GAP
    for name in ("gripper", "gripper_mimic"):
        data.joint(name).qpos[:] = opening
    data.actuator("gripper").ctrl[:] = 0.0


def _run(model: mujoco.MjModel, data: mujoco.MjData, seconds: float) -> None:
    mujoco.mj_step(model, data, round(seconds / model.opt.timestep))


def _in_gripper(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """The cube's position in the gripper's frame, m."""
    pinch = data.site("pinch")
    return pinch.xmat.reshape(3, 3).T @ (data.body("cube").xpos - pinch.xpos)


def _penetration(model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """Deepest penetration between a pad and the cube now, m."""
    cube, pads = model.geom("cube").id, {model.geom(f"pad_{side}").id for side in ("left", "right")}
    depths = [
        -c.dist for c in data.contact[: data.ncon] if cube in c.geom and pads & set(c.geom.tolist())
    ]
    return float(max(depths, default=0.0))


if __name__ == "__main__":
    no_program()
