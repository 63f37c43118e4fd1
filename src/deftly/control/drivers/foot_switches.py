"""Switches under the feet of a robot, on pins of its computer, by gpiozero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deftly.control.drivers.protocol import DriverError

PINS = (5, 6, 13, 19)
"""Toe and heel of the left foot, then of the right: Broadcom numbers, as WildRobot's makers wired them."""


class FootSwitches:
    """Switches that connect their pin to ground when the foot is down; an open one is pulled up.

    Args:
        pins: Broadcom numbers, in the order of the robot's signal.
        factory: of gpiozero's pins; unset: those of this computer.

    Raises DriverError, one line, if this computer has no such pins.
    """

    def __init__(self, pins: Sequence[int] = PINS, factory: Any = None):
        try:
            from gpiozero import DigitalInputDevice  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise DriverError(
                'foot switches need gpiozero: pip install "deftly[wildrobot]"'
            ) from None
        self._switches: list[Any] = []
        try:
            for pin in pins:
                self._switches.append(DigitalInputDevice(pin, pull_up=True, pin_factory=factory))
        except Exception as error:  # of gpiozero and of whatever it found to speak with the pins
            self.close()
            words = " ".join(str(error).split())[:120]
            raise DriverError(
                f"no foot switches, is this the robot's computer? {type(error).__name__}: {words}"
            ) from None

    def read(self) -> np.ndarray:
        """1 for each switch that is down, 0 for the others. Raises DriverError."""
        try:
            return np.array([float(switch.value) for switch in self._switches])
        except Exception as error:
            words = " ".join(str(error).split())[:120]
            raise DriverError(f"the foot switches cannot be read: {words}") from None

    def close(self) -> None:
        """Let go of the pins."""
        for switch in self._switches:
            switch.close()
