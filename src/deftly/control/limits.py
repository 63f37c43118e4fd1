"""The limits of what a robot measures beside its joints: tilt, angular velocity, temperature, voltage, torque."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from deftly.contract import Limit, RobotInterface


class SignalLimits:
    """The limits that a robot's interface declares."""

    def __init__(self, robot: RobotInterface):
        self._limits = robot.limits
        self._units = {signal.name: signal.units for signal in robot.signals}

    def broken(self, signals: Mapping[str, np.ndarray]) -> str:
        """Which limit complete signals, (size,) float64 each, are beyond, in words; empty if none is."""
        for limit in self._limits:
            values = _judged(limit, signals[limit.signal])
            fine = [limit.lower <= value <= limit.upper for value in values]  # a NaN is not
            if False in fine:
                return self._words(limit, values, fine.index(False))
        return ""

    def _words(self, limit: Limit, values: list[float], worst: int) -> str:
        what = limit.signal
        units = self._units[limit.signal]
        if limit.of == "tilt":
            units = "rad"
        if limit.of != "value":
            what = f"the {limit.of} of {limit.signal}"
        elif limit.element is not None:
            what = f"{limit.signal}[{limit.element}]"
        elif len(values) > 1:
            what = f"{limit.signal}[{worst}]"
        bounds = f"{limit.lower:.4g} .. {limit.upper:.4g} {units}".strip()
        return f"{what} is {values[worst]:.4g}, its limits are {bounds}"


def _judged(limit: Limit, values: np.ndarray) -> list[float]:
    """The numbers that a limit bounds."""
    if limit.of == "norm":
        return [math.hypot(*values.tolist())]
    if limit.of == "tilt":
        return [tilt(values)]
    if limit.element is not None:
        return [values.item(limit.element)]
    return values.tolist()


def tilt(orientation: np.ndarray) -> float:
    """The angle between the vertical axes of a body and the world, rad; NaN for what is no orientation.

    Args:
        orientation: Quaternion w x y z, (4,), of any length, that turns the body's frame into the world's.
    """
    w, x, y, z = orientation.tolist()
    upright = math.hypot(w, z)
    fallen = math.hypot(x, y)
    if not upright + fallen > 0.5:  # a sensor that gives zeros has no orientation
        return math.nan
    return 2.0 * math.atan2(fallen, upright)
