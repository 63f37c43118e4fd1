"""Robots, one file each: a module here, or a file of the user's, that defines `ROBOT` (or several `Robot`s)."""

import functools
import importlib
import re
import runpy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deftly.config import suggest
from deftly.contract import (
    JOINT_POS,
    Coupling,
    Fault,
    Joint,
    Limit,
    Motor,
    RobotInterface,
    Signal,
    Site,
)
from deftly.errors import DeftlyError

if TYPE_CHECKING:
    import mujoco

    from deftly.tasks import Task


@dataclass(frozen=True)
class Robot:
    """How to build a robot's model, and what its interface says of it."""

    name: str
    title: str
    spec: "Callable[[], mujoco.MjSpec]"  # with an actuator of each joint's name that takes a position target (rad or m)
    joints: tuple[Joint, ...]  # in the order of `joint_pos` and of the targets
    motors: tuple[Motor, ...] = ()  # of the hardware, in its order
    couplings: tuple[Coupling, ...] = ()  # joints that follow others
    sites: tuple[
        str, ...
    ] = ()  # sites of the model whose place policies may compute from the joints
    limits: tuple[Limit, ...] = ()  # of its own signals, beyond which no policy drives
    damps: tuple[Fault, ...] = ()  # faults on which its motors are damped: all of a robot on legs

    def interface(self, *signals: Signal, joints: Sequence[Joint] = ()) -> RobotInterface:
        """The robot's interface: positions of its joints, and what else it measures in a task.

        Args:
            signals: what is measured beside `joint_pos`, such as where a camera sees an object.
            joints: instead of the robot's own, with other limits.
        """
        units = sorted({joint.units for joint in self.joints}, reverse=True)
        measured = (Signal(JOINT_POS, len(self.joints), ", ".join(units)), *signals)
        return RobotInterface(
            self.name,
            tuple(joints) or self.joints,
            measured,
            self.couplings,
            self.motors,
            _chains(self),
            self.limits,
            self.damps,
        )


@functools.cache
def _chains(robot: Robot) -> tuple[Site, ...]:
    """Chains of the robot's sites, from its model."""
    if not robot.sites:
        return ()
    from deftly.robots.chain import site_chain

    model = robot.spec().compile()
    names = [joint.name for joint in robot.joints]
    return tuple(site_chain(model, site, names) for site in robot.sites)


def of(task: "Task") -> Robot:
    """The robot of a task: the one it brings, or else the shipped one that its contract names."""
    return getattr(task, "robot", None) or load(task.contract().robot.name)


def branches(robot: Robot) -> list[tuple[str, ...]]:
    """The robot's joints by the branch of its tree that they are in, in the contract's order: the fingers of a hand."""
    model = robot.spec().compile()
    parents = model.body_parentid
    children = Counter(parents[1:].tolist())
    names_by_root: dict[int, list[str]] = {}
    for joint in robot.joints:
        body = int(model.joint(joint.name).bodyid[0])
        while parents[body] != 0 and children[parents[body]] <= 1:
            body = int(parents[body])
        names_by_root.setdefault(body, []).append(joint.name)
    return [tuple(names) for names in names_by_root.values()]


def shipped() -> dict[str, str]:
    """Shipped robots: name -> module, read from the text of the files, since importing them is slow."""
    robot = re.compile(r'^[A-Z_]+ = Robot\(\s*name="([\w-]+)"', re.MULTILINE)
    files = sorted(Path(__path__[0]).glob("*.py"))
    return {
        name: f"{__name__}.{file.stem}"
        for file in files
        for name in robot.findall(file.read_text())
    }


def load(name: str) -> Robot:
    """The robot of a shipped robot's name, or of a Python file that defines `ROBOT`."""
    modules = shipped()
    if name in modules:
        members = vars(importlib.import_module(modules[name])).values()
        robots = [member for member in members if isinstance(member, Robot)]
        return next(robot for robot in robots if robot.name == name)
    if not name.endswith(".py"):
        hint = suggest(name, modules) or ";"
        advice = "`deftly robots` lists them, or give a file my_robot.py"
        raise DeftlyError(f"no robot '{name}'{hint} {advice}")
    if not Path(name).is_file():
        raise DeftlyError(
            f"no robot file {name}: give the path of a Python file that defines ROBOT = Robot(...)"
        )
    try:
        robot = runpy.run_path(name).get("ROBOT")
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        raise DeftlyError(f"{name} does not import: {type(error).__name__}: {said}") from error
    if not isinstance(robot, Robot):
        raise DeftlyError(
            f"{name} defines no robot: end the file with ROBOT = Robot(name=..., ...)"
        )
    return robot
