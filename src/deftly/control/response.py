"""Whether joints move with their commands.

An encoder that is stuck, a servo that takes no commands, and a sign that is flipped have in common that what is
measured does not follow what is commanded, though neither may ever be far from the other: a robot that walks with
such a joint is found by no bound on the tracking error. So the kernel estimates the gain from command to measurement,
the least squares slope over a sliding window, wherever the command has moved enough to tell (persistent excitation;
Soderstrom and Stoica 1989, "System Identification"). A joint that follows has a gain near 1, one that does not, near
0 or below.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deftly.contract import RobotInterface

WINDOW_S = 1.0
"""Time over which the gain is estimated, s: at least a stride."""
LAG_S = 0.06
"""From a command to the motion that it is compared with, s: dead time and rise of a position servo."""
LEAST_GAIN = 0.1
"""Below it a joint does not follow. WildRobot walking, with its randomization: 0.33 at least in 1.2 M windows."""


class Unresponsive(NamedTuple):
    """A joint that does not follow."""

    joint: int
    gain: float
    excitation: float
    """Standard deviation of its command over the window, rad (m)."""


class Response:
    """The gain of each joint whose interface says from which excitation on it is judged.

    Args:
        robot: whose joints are judged.
        rate: of the control loop, Hz.
    """

    def __init__(self, robot: RobotInterface, rate: float):
        least = np.array([joint.excitation for joint in robot.joints])
        self.judges = bool((least > 0).any())
        self._least_variance = np.where(least > 0, least**2, np.inf)
        self._window = max(4, round(WINDOW_S * rate))
        self._lag = max(1, round(LAG_S * rate))
        self.past = np.full((self._window + self._lag, 2, len(least)), np.nan)
        """Commands and positions, oldest first; NaN before the start. Empty if no joint is judged."""
        if not self.judges:
            self.past = self.past[:0]

    def forget(self) -> None:
        """Begin anew: nobody is judged before a window is full."""
        self.past[:] = np.nan

    def unresponsive(self, commanded: list[float], position: list[float]) -> Unresponsive | None:
        """The joint that follows least after one more tick, if it does not follow.

        Args:
            commanded: of the tick before, (num_joints,), rad (m).
            position: measured in this one, (num_joints,).
        """
        if not self.judges:
            return None
        past = self.past
        past[:-1] = past[1:]
        past[-1] = commanded, position
        if past[0, 0, 0] != past[0, 0, 0]:  # NaN: the window is not full
            return None
        command = past[: self._window, 0]
        command = command - command.mean(0)
        variance = (command * command).mean(0)
        covariance = (command * past[self._lag :, 1]).mean(0)
        missing = covariance < LEAST_GAIN * variance
        missing &= variance > self._least_variance
        if not missing.any():
            return None
        gains = np.where(missing, covariance / np.maximum(variance, 1e-12), np.inf)
        worst = int(gains.argmin())
        return Unresponsive(worst, float(gains[worst]), float(variance[worst] ** 0.5))

    def restore(self, past: np.ndarray) -> None:
        """Go on from a copy of `past`. Raises ValueError for one of another shape."""
        if past.shape != self.past.shape or np.isinf(past).any():
            raise ValueError(f"{past.shape} is no history of {self.past.shape}")
        self.past = past
