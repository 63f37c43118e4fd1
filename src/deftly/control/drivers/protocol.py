"""What the control loop reads from and writes to: the protocol of every driver."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from deftly.contract import RobotInterface
from deftly.errors import DeftlyError
from deftly.policy.protocol import Signals


class DriverError(DeftlyError):
    """The robot could not be read or commanded."""


class OtherWriterError(DriverError):
    """Somebody else commands the robot too."""


class Reading(NamedTuple):
    """What a robot measured."""

    signals: Signals
    """By signal name, (size,) each, or (height, width, 3) of an image; units and order are the robot interface's."""
    at: float
    """When, on this computer's monotonic clock, s."""


class Driver(Protocol):
    """A robot. A class outside the package is one too: `deftly run --driver my_robot:Driver`.

    A class that names this one as its base has what is given here as a default. One that does not may leave out the
    attributes, and `damp` if its robot is never damped.

    Every method returns within a fraction of the control period, and raises DriverError if it cannot do its work,
    OtherWriterError if somebody else commands the robot. What it is given and what it gives back is copied: a driver
    may keep its own arrays and change them.
    """

    robot: RobotInterface
    """The interface of the robot that it really has, which is believed; without it, the policy's is."""
    approach_s: float = 0.0
    """Time in which the robot is brought home before a policy drives, s, unless the user says one."""
    lead: float | None = None
    """How far a command may be ahead of its joint, rad, unless the user says so."""
    success: bool = False
    """Whether the task is done, which only a simulated robot can tell."""

    def read(self) -> Reading:
        """The newest measurement."""
        ...

    def write(self, targets: np.ndarray) -> None:
        """Command joint targets, (num_joints,) float64 in the robot interface's order, rad (m)."""
        ...

    def damp(self) -> None:
        """Let the motors brake and follow no target, until the next `write`: for a robot that would fall stiffly.

        Called in each control period of the state DAMP. A robot that holds what it holds safely, such as an arm or a
        hand, is never damped: the `damps` of its interface are empty.
        """
        raise DriverError("this driver cannot let its motors brake")

    def stop(self) -> None:
        """The last call, made once: leave the robot as it is, held or damped, and let go of the connection."""
        ...


def robot_of(driver: object, usual: RobotInterface) -> RobotInterface:
    """The robot that a driver drives: a driver that knows it is believed, else it is the usual one.

    Raises DriverError if its `robot` is no robot interface.
    """
    robot = getattr(driver, "robot", usual)
    if not isinstance(robot, RobotInterface):
        raise DriverError(
            f"the driver's `robot` is a {type(robot).__name__}, but it must be the RobotInterface that it was given, "
            "or one like it"
        )
    return robot


def lacking(cls: object, robot: RobotInterface) -> list[str]:
    """Names of the methods of a driver that a class, or an object, does not have, and this robot needs."""
    verbs = ["read", "write", "stop"]
    if robot.damps:
        verbs.append("damp")
    return [verb for verb in verbs if not _has(cls, verb)]


def _has(cls: object, verb: str) -> bool:
    """Whether there is a method of a class's, or an object's, own: what `Driver` has does nothing."""
    found = getattr(cls, verb, None)
    return callable(found) and getattr(found, "__func__", found) is not vars(Driver)[verb]
