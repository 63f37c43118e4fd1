"""A robot made of nothing, to try a loop and its faults with."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from deftly.contract import JOINT_POS, RobotInterface
from deftly.contract.arrays import clip
from deftly.control.drivers.faults import OF_THE_DRIVER, Saboteur, resting
from deftly.control.drivers.protocol import Driver, Reading
from deftly.errors import DeftlyError

FAULTS = tuple(OF_THE_DRIVER)
"""Names of the faults of a fake robot."""


class FakeDriver(Driver):
    """A robot made of nothing: its joints go where they are told at top speed, its other signals are at rest.

    From its tick `at` on it has one fault, by a name of `faults.OF_THE_DRIVER`.
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
        self._saboteur = Saboteur(robot, rate, fault, sleep, "the fake robot")
        self._reach = np.array([joint.velocity for joint in robot.joints]) / rate
        self.position = np.array(robot.home())
        self.command: np.ndarray | None = None
        """The last command that was taken; None while it is damped."""
        self.stopped = False
        self._resting = resting(robot)
        self._tick = 0

    @property
    def faulty(self) -> str:
        """The fault of this tick; empty while there is none."""
        return self._fault if self._tick > self._at else ""

    def read(self) -> Reading:
        """Joint positions, and every other signal at rest."""
        self._tick += 1
        self._strike()
        return self._saboteur.read(self._measure)

    def _measure(self) -> Reading:
        return Reading({**self._resting, JOINT_POS: self.position.copy()}, self._clock())

    def write(self, targets: np.ndarray) -> None:
        """Go towards the targets for one control period."""
        self._strike()
        self._saboteur.write(np.array(targets), self._go)

    def _strike(self) -> None:
        self._saboteur.fault = self.faulty
        self._saboteur.strikes = bool(self.faulty)

    def _go(self, targets: np.ndarray) -> None:
        self.command = targets
        self.position += clip(targets - self.position, -self._reach, self._reach)

    def damp(self) -> None:
        """Stay where it is."""
        self.command = None

    def stop(self) -> None:
        """Note that it was called."""
        self.stopped = True
