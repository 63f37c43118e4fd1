"""Robots, one file each: a module here, or a file of the user's, that defines `ROBOT`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deftly.contract import Joint

if TYPE_CHECKING:
    import mujoco


@dataclass(frozen=True)
class Robot:
    """A robot: how to build its model, and its commanded joints in the order of the contract.

    The model has an actuator of each joint's name that takes a position target (rad or m).
    """

    name: str
    title: str
    spec: Callable[[], mujoco.MjSpec]
    joints: tuple[Joint, ...]
