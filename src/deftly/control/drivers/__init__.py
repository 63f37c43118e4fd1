"""Robots behind one small interface: what the control loop reads from and writes to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from deftly.contract import JOINT_POS, RobotInterface
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

    robot: RobotInterface | None = None
    """The interface of the robot that it really has, which is believed; None: the policy's."""
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
        ...

    def stop(self) -> None:
        """The last call, made once: leave the robot as it is, held or damped, and let go of the connection."""
        ...


def lacking(cls: object, robot: RobotInterface) -> list[str]:
    """Names of the methods of a driver that a class does not have, and this robot needs."""
    verbs = ["read", "write", "stop"]
    if robot.damps:
        verbs.append("damp")
    return [verb for verb in verbs if not callable(getattr(cls, verb, None))]


FAULTS = (
    "late",
    "frozen",
    "missing",
    "nan",
    "shape",
    "beyond",
    "jump",
    "read",
    "write",
    "slow",
    "crash",
)


class FakeDriver(Driver):
    """A robot made of nothing: its joints go where they are told at top speed, its other signals are zero.

    From its tick `at` on it has one fault: `late` (measurements ten periods old), `frozen` (the same measurement again
    and again), `missing` (a signal is absent), `nan`, `shape`, `beyond` (a joint past its limit), `jump` (a joint leaps
    by half its range), `read` and `write` (they fail), `slow` (reading takes five periods), `crash` (a bug).
    """

    def __init__(
        self,
        robot: RobotInterface,
        rate: float,
        fault: str = "",
        at: int = 40,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if fault and fault not in FAULTS:
            raise DeftlyError(f"the fake robot has no fault '{fault}', it has {', '.join(FAULTS)}")
        self.robot = robot
        self.rate = rate
        self._fault = fault
        self._at = at
        self._clock = clock
        self._sleep = sleep
        self._lower, self._upper = np.array([(j.lower, j.upper) for j in robot.joints]).T
        self._reach = np.array([joint.velocity for joint in robot.joints]) / rate
        self.position = np.array(robot.home())
        self.command: np.ndarray | None = None
        """The last command that was taken."""
        self.stopped = False
        self._tick = 0
        self._last = Reading({}, 0.0)

    @property
    def faulty(self) -> str:
        """The fault of this tick; empty while there is none."""
        return self._fault if self._tick > self._at else ""

    def read(self) -> Reading:
        """Joint positions, and zeros for every other signal."""
        self._tick += 1
        fault = self.faulty
        now = self._clock()
        if fault == "read":
            raise DriverError("the fake robot does not answer")
        if fault == "crash":
            raise ZeroDivisionError("a bug of the fake robot")
        if fault == "frozen":
            return self._last
        if fault == "slow":
            self._sleep(5 / self.rate)
        signals = {}
        for signal in self.robot.signals:
            dtype = signal.dtype if signal.is_image else None
            signals[signal.name] = np.zeros(signal.shape, dtype)
        signals[JOINT_POS] = self._measured_position(fault)
        if fault == "missing":
            del signals[JOINT_POS]
        age = 10 / self.rate if fault == "late" else 0.0
        self._last = Reading(signals, now - age)
        return self._last

    def _measured_position(self, fault: str) -> np.ndarray:
        """Joint positions, (num_joints,), with what a fault makes of them."""
        position = self.position.copy()
        span = self._upper[0] - self._lower[0]
        middle = (self._lower[0] + self._upper[0]) / 2
        if fault == "nan":
            return np.full(len(position), np.nan)
        if fault == "shape":
            return np.zeros(len(position) + 1)
        if fault == "beyond":
            position[0] = self._upper[0] + span
        if fault == "jump":
            towards_middle = 1 if position[0] < middle else -1
            position[0] += 0.5 * span * towards_middle
        return position

    def write(self, targets: np.ndarray) -> None:
        """Go towards the targets for one control period."""
        if self.faulty == "write":
            raise DriverError("the fake robot takes no command")
        self.command = np.array(targets)
        way = self.command - self.position
        self.position += np.clip(way, -self._reach, self._reach)

    def damp(self) -> None:
        """Stay where it is."""
        self.command = None

    def stop(self) -> None:
        """Note that it was called."""
        self.stopped = True
