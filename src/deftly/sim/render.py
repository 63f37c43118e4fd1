"""Offscreen pictures and videos of a scene. EGL where it works, else OSMesa, else one line saying what to install."""

from __future__ import annotations

import ctypes.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deftly.errors import DeftlyError

if TYPE_CHECKING:
    import mujoco

NO_GL = "no OpenGL to render with: apt-get install libegl1 libgl1-mesa-dri (or libosmesa6), or leave out the video"


def choose_gl() -> str:
    """Set MUJOCO_GL, which MuJoCo reads when it is first imported, unless the user did. Returns its value.

    Raises DeftlyError where neither EGL nor OSMesa is installed and there is no display.
    """
    if "MUJOCO_GL" not in os.environ and "mujoco" not in sys.modules:
        if ctypes.util.find_library("EGL"):
            os.environ["MUJOCO_GL"] = "egl"
        elif ctypes.util.find_library("OSMesa"):
            os.environ["MUJOCO_GL"] = "osmesa"
    return os.environ.get("MUJOCO_GL", "glfw")
