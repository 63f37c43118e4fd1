"""Robots behind one small interface: what the control loop reads from and writes to."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from deftly.deploy.policy import Signals
from deftly.errors import DeftlyError


class DriverError(DeftlyError):
    """The robot could not be read or commanded."""


class Reading(NamedTuple):
    """What a robot measured."""

    signals: Signals
    """By signal name, (size,) each; units and order are the contract's."""
    at: float
    """When, on this computer's monotonic clock, s."""


class Driver(Protocol):
    """A robot. A class outside the package is one too: `deftly run --driver my_robot:Driver`.

    Every method returns within a fraction of the control period, and raises DriverError if it cannot do its work.
    """

    def read(self) -> Reading:
        """The newest measurement."""
        ...

    def write(self, targets: np.ndarray) -> None:
        """Command joint targets, (num_joints,) float64 in the contract's order, rad (m)."""
        ...

    def stop(self) -> None:
        """The last call: leave the robot safe, holding what it holds, and let go of the connection."""
        ...
