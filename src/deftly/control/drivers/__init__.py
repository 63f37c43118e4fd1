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


class Reading(NamedTuple):
    """What a robot measured."""

    signals: Signals
    """By signal name, (size,) each, or (height, width, 3) of an image; units and order are the robot interface's."""
    at: float
    """When, on this computer's monotonic clock, s."""


class Driver(Protocol):
    """A robot. A class outside the package is one too: `deftly run --driver my_robot:Driver`.

    A driver may say more than it must, by attributes: `robot`, the RobotInterface that it really has; `approach_s`, the
    time in which its robot is brought home before a policy drives, s; `lead`, how far a command may be ahead of its
    joint, rad; `success`, whether the task is done, which only a simulated robot can tell.

    Every method returns within a fraction of the control period, and raises DriverError if it cannot do its work. What
    it is given and what it gives back is copied: a driver may keep its own arrays and change them.
    """

    def read(self) -> Reading:
        """The newest measurement."""
        ...

    def write(self, targets: np.ndarray) -> None:
        """Command joint targets, (num_joints,) float64 in the robot interface's order, rad (m)."""
        ...

    def stop(self) -> None:
        """The last call, made once: leave the robot safe, holding what it holds, and let go of the connection."""
        ...


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


class FakeDriver:
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
        self.robot, self.rate = robot, rate
        self._fault, self._at, self._clock, self._sleep = fault, at, clock, sleep
        self._lower, self._upper = np.array([(j.lower, j.upper) for j in robot.joints]).T
        self._reach = np.array([j.velocity for j in robot.joints]) / rate
        self.position = np.array(robot.home())
        self.command: np.ndarray | None = None
        """The last command that was taken."""
        self.stopped = False
        self._tick, self._last = 0, Reading({}, 0.0)

    @property
    def faulty(self) -> str:
        """The fault of this tick; empty while there is none."""
        return self._fault if self._tick > self._at else ""

    def read(self) -> Reading:
        """Joint positions, and zeros for every other signal."""
        self._tick += 1
        fault, now, position = self.faulty, self._clock(), self.position.copy()
        if fault == "read":
            raise DriverError("the fake robot does not answer")
        if fault == "crash":
            raise ZeroDivisionError("a bug of the fake robot")
        if fault == "frozen":
            return self._last
        if fault == "slow":
            self._sleep(5 / self.rate)
        if fault in ("beyond", "jump"):
            span = self._upper - self._lower
            leap = position[0] + 0.5 * span[0] * (
                1 if position[0] < (self._lower + self._upper)[0] / 2 else -1
            )
            position[0] = self._upper[0] + span[0] if fault == "beyond" else leap
        signals = {
            s.name: np.zeros(s.shape, s.dtype if s.is_image else None) for s in self.robot.signals
        }
        signals[JOINT_POS] = position
        broken = {"nan": np.full(len(position), np.nan), "shape": np.zeros(len(position) + 1)}
        signals[JOINT_POS] = broken.get(fault, position)
        if fault == "missing":
            del signals[JOINT_POS]
        self._last = Reading(signals, now - (10 / self.rate if fault == "late" else 0.0))
        return self._last

    def write(self, targets: np.ndarray) -> None:
        """Go towards the targets for one control period."""
        if self.faulty == "write":
            raise DriverError("the fake robot takes no command")
        self.command = np.array(targets)
        self.position += np.clip(self.command - self.position, -self._reach, self._reach)

    def stop(self) -> None:
        """Note that it was called."""
        self.stopped = True
