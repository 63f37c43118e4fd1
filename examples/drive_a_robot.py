"""Drive a robot of your own: a driver class, a policy, and `deftly.drive`, which runs the loop and the safety kernel.

python examples/drive_a_robot.py [bundle]

`MyRobot` stands for yours: joints that follow their targets with a lag, and a cube that lies still. Replace the bodies
of its three methods by calls of your robot's library; docs/run.md says what they must keep to. No torch, no MuJoCo.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import deftly
from deftly.contract import RobotInterface
from deftly.control.drivers import Reading

LAG_S = 0.08
"""Time constant with which the joints follow."""


class MyRobot:
    """A robot behind the three methods of a driver."""

    def __init__(self, robot: RobotInterface, rate: float):
        """Connect.

        Args:
            robot: Names, order, units and limits of joints and signals.
            rate: Control rate, Hz.
        """
        self.robot = robot
        self.position = np.array([joint.home for joint in robot.joints])
        self.target = self.position.copy()
        self.gain = 1.0 - np.exp(-1.0 / (rate * LAG_S))

    def read(self) -> Reading:
        """What the robot measures now, by signal name, with the time of the measurement."""
        self.position += self.gain * (self.target - self.position)
        signals = {signal.name: np.zeros(signal.shape) for signal in self.robot.signals}
        signals["joint_pos"] = self.position
        if "cube_pos" in signals:
            signals["cube_pos"] = np.array([0.5, 0.05, 0.02])
        return Reading(signals, time.monotonic())

    def write(self, targets: np.ndarray) -> None:
        """Send joint targets, rad (m), in the order of the interface."""
        self.target = targets

    def stop(self) -> None:
        """Let go: called once, last, however the loop ended."""


def main(policy: str = "shipped", seconds: float = 3.0) -> deftly.DriveResult:
    """Drive for some seconds, at a quarter of the robot's speed."""
    result = deftly.drive(
        MyRobot,
        policy,
        task="jaka-pick-cube",
        start=True,
        seconds=seconds,
        safety={"speed": 0.25},
    )
    moved = np.ptp(result.rows["signal/joint_pos"], axis=0)
    print(
        f"{result.ticks} ticks, faults: {result.faults or 'none'}, joints moved by {np.round(moved, 3)} rad"
    )
    return result


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:2]).ok else 1)
