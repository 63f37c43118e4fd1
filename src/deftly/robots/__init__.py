"""Robots, one file each: a module here, or a file of the user's, that defines `ROBOT`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from deftly.config import suggest
from deftly.contract import Joint
from deftly.errors import DeftlyError

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


def shipped() -> dict[str, str]:
    """Shipped robots: name -> module, read from the text of the files, since importing them is slow."""
    found = {}
    for path in sorted(Path(__path__[0]).glob("*.py")):
        for name in re.findall(r'^ROBOT = Robot\(\s*name="([\w-]+)"', path.read_text(), re.MULTILINE):
            found[name] = f"{__name__}.{path.stem}"
    return found


def load(name: str) -> Robot:
    """The robot of a shipped robot's name, or of a Python file that defines `ROBOT`.

    Raises DeftlyError if there is none.
    """
    if name.endswith(".py"):
        return _robot(_import_file(Path(name)), name)
    modules = shipped()
    if name not in modules:
        hint = suggest(name, modules) or ";"
        raise DeftlyError(f"no robot '{name}'{hint} `deftly robots` lists them, or give a file my_robot.py")
    return _robot(importlib.import_module(modules[name]), name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DeftlyError(f"no robot file {path}: give the path of a Python file that defines ROBOT = Robot(...)")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"deftly_robot_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise DeftlyError(f"{path} does not import: {type(error).__name__}: {error}") from error
    return module


def _robot(module: ModuleType, given: str) -> Robot:
    robot = getattr(module, "ROBOT", None)
    if not isinstance(robot, Robot):
        raise DeftlyError(f"{given} defines no robot: end the file with ROBOT = Robot(name=..., ...)")
    return robot
