"""Where a camera stands so that an image shows a robot whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from deftly.sim.looks import corners

if TYPE_CHECKING:
    import mujoco

MARGIN = 1.1
"""Distance of the camera, as a multiple of that at which the robot just fits."""


def fixed_camera(index: int) -> mujoco.MjvCamera:
    """A camera of the model, by its index."""
    import mujoco

    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
    camera.fixedcamid = index
    return camera


def free_camera(model: mujoco.MjModel, data: mujoco.MjData, aspect: float) -> mujoco.MjvCamera:
    """A camera from the model's own direction (`visual/global`) in whose image all bodies are whole.

    Args:
        model: the scene.
        data: where its bodies are; positions must be fresh.
        aspect: width of the image divided by its height.
    """
    import mujoco

    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    points = corners(model, data)
    if not len(points):
        return camera
    centre = (points.min(0) + points.max(0)) / 2
    fovy = math.radians(model.vis.global_.fovy)
    half = math.tan(fovy / 2)
    right, up, forward = _axes(camera.azimuth, camera.elevation)
    away = points - centre
    across = np.abs(away @ right) / (aspect * half)
    along = np.abs(away @ up) / half
    camera.lookat[:] = centre
    distances = np.maximum(across, along) - away @ forward
    camera.distance = MARGIN * float(distances.max())
    return camera


def _axes(azimuth: float, elevation: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, up and forward of MuJoCo's free camera in the world, for its angles in degrees."""
    a = math.radians(azimuth)
    e = math.radians(elevation)
    level = math.cos(e)
    forward = np.array([level * math.cos(a), level * math.sin(a), math.sin(e)])
    right = np.array([math.sin(a), -math.cos(a), 0.0])
    up = np.cross(right, forward)
    return right, up, forward
