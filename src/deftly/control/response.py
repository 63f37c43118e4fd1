"""Whether joints move with their commands.

An encoder that is stuck, a servo that takes no commands, and a sign that is flipped have in common that what is
measured does not follow what is commanded, though neither may ever be far from the other: a robot that walks with
such a joint is found by no bound on the tracking error. So the kernel estimates the gain from command to measurement,
the least squares slope over a sliding window, wherever the command has moved enough to tell (persistent excitation;
Soderstrom and Stoica 1989, "System Identification"). Servos follow late, one more than the other, and at 5 Hz a delay
of 0.05 s is a quarter of a period: so the gain is the largest at any delay up to `LAG_S`. A joint that follows has a
gain near 1, one that does not, near 0 or below.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from deftly.contract import RobotInterface

WINDOW_S = 1.0
"""Time over which the gain is estimated, s: at least a stride."""
LAG_S = 0.08
"""Longest delay from a command to its motion, s: dead time and rise of a position servo."""
SAMPLES = 64
"""Of the window at most, about."""
LEAST_GAIN = 0.1
"""Below it a joint does not follow. WildRobot walking, with its randomization: 0.40 at least in 0.9 M windows."""
TINY = 1e-300
"""Variance that is divided by at least."""


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
        rate: of the control loop, Hz. Of a fast one, every so many ticks are looked at, about `SAMPLES` in a window.
    """

    def __init__(self, robot: RobotInterface, rate: float):
        least = np.array([joint.excitation for joint in robot.joints])
        self.judges = bool((least > 0).any())
        self._least_variance = np.where(least > 0, least**2, np.inf)
        self._every = max(1, round(WINDOW_S * rate / SAMPLES))
        self._window = max(4, round(WINDOW_S * rate / self._every))
        self._lag = max(1, round(LAG_S * rate / self._every))
        self._past = np.full((self._window + self._lag, 2, len(least)), np.nan)
        """Commands and positions, oldest first; NaN before the start."""
        self._commands = self._past[: self._window, 0]  # a view, (window, num_joints)
        self._positions = sliding_window_view(self._past[:, 1], self._window, axis=0)
        """Those of the window at each delay, a view, (delays, num_joints, window)."""
        self._ticks = 0  # since the start

    def forget(self) -> None:
        """Begin anew: nobody is judged before a window is full."""
        self._past[:] = np.nan
        self._ticks = 0

    def unresponsive(self, commanded: list[float], position: list[float]) -> Unresponsive | None:
        """The joint that follows least after one more tick, if it does not follow.

        Args:
            commanded: of the tick before, (num_joints,), rad (m).
            position: measured in this one, (num_joints,).
        """
        if not self.judges:
            return None
        self._ticks += 1
        if self._ticks % self._every:
            return None
        past = self._past
        past[:-1] = past[1:]
        past[-1] = commanded, position
        if math.isnan(past.item(0)):  # the window is not full
            return None
        command = self._commands - np.add.reduce(self._commands) / self._window
        variance = np.einsum("wj,wj->j", command, command) / self._window
        moves = variance > self._least_variance
        if not moves.any():
            return None
        covariance = np.einsum("wj,djw->dj", command, self._positions).max(0) / self._window
        missing = moves & (covariance < LEAST_GAIN * variance)
        if not missing.any():
            return None
        gains = np.where(missing, covariance / np.maximum(variance, TINY), np.inf)
        worst = int(gains.argmin())
        return Unresponsive(worst, float(gains[worst]), math.sqrt(variance[worst]))

    def snapshot(self) -> np.ndarray:
        """All that it remembers, for `restore`; (0,) if no joint is judged."""
        if not self.judges:
            return np.zeros(0)
        return np.append(self._ticks, self._past)

    def restore(self, snapshot: np.ndarray) -> None:
        """Go on from a snapshot of a robot and rate like these, bit for bit; from an empty one, begin anew.

        Raises ValueError for any other array.
        """
        if not snapshot.size:
            self.forget()
            return
        if not self.judges or snapshot.shape != (1 + self._past.size,):
            raise ValueError(f"its history of commands and positions is {snapshot.shape}")
        ticks = snapshot[0]
        past = snapshot[1:]
        is_count = 0 <= ticks < 2**53 and not ticks % 1
        if not is_count or np.isinf(past).any():
            raise ValueError("its history of commands and positions holds no such numbers")
        self._ticks = int(ticks)
        self._past[:] = past.reshape(self._past.shape)
