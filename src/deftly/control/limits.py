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
            fine = (values >= limit.lower) & (values <= limit.upper)  # a NaN is not
            if not fine.all():
                return self._words(limit, values, fine)
        return ""

    def _words(self, limit: Limit, values: np.ndarray, fine: np.ndarray) -> str:
        worst = int(fine.argmin())
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


def _judged(limit: Limit, values: np.ndarray) -> np.ndarray:
    """The numbers that a limit bounds, (n,)."""
    if limit.of == "norm":
        return np.array([math.hypot(*values.tolist())])
    if limit.of == "tilt":
        return np.array([tilt(values)])
    if limit.element is not None:
        return values[limit.element : limit.element + 1]
    return values


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
