"""WildRobot: eight Hiwonder servos, a BNO085 in its chest, switches under its feet. See docs/wildrobot-hardware.md.

Servos, inertial sensor and switches are read by threads of their own; `read` puts together what is newest. It is as old
as the oldest of it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

from deftly.contract import JOINT_POS, RobotInterface
from deftly.control.drivers.bno085 import Bno085
from deftly.control.drivers.buses import SERVOS
from deftly.control.drivers.foot_switches import FootSwitches
from deftly.control.drivers.hiwonder import Servos
from deftly.control.drivers.protocol import Driver, DriverError, Reading

ORIENTATION = "orientation"
ANGULAR_VELOCITY = "angular_velocity"
SWITCHES = "foot_switches"
SIZES = {ORIENTATION: 4, ANGULAR_VELOCITY: 3, SWITCHES: 4}
"""Signals beside the joints' that the robot can give, and their sizes."""


class WildRobot(Driver):
    """The robot. Raises DriverError, one line, unless all of it is there and well.

    Args:
        robot: its interface, with motors as they are mounted (`Calibration.applied`).
        rate: of the control loop, Hz.
        port: serial ports of the servos, with a comma between.
        mount: how the inertial sensor is mounted, as `Bno085` takes it; None: not known yet.
        imu: instead of the sensor on this computer's I2C.
        switches: instead of those on this computer's pins.
    """

    approach_s = 3.0
    """Time in which `deftly run` brings the robot home before the policy drives, unless it is told otherwise, s."""

    def __init__(
        self,
        robot: RobotInterface,
        rate: float,
        port: str | None,
        mount: np.ndarray | None = None,
        imu: Any = None,
        switches: Any = None,
    ):
        _require(robot)
        self.robot = SERVOS[robot.name].guarded(robot)
        names = {signal.name for signal in robot.signals}
        self._imu: Bno085 | None = None
        self._switches: FootSwitches | None = None
        with ExitStack() as unclaimed:
            if names & {ORIENTATION, ANGULAR_VELOCITY}:
                imu = imu or Bno085(mount)
                unclaimed.callback(imu.close)
                self._imu = imu
            if SWITCHES in names:
                switches = switches or FootSwitches()
                unclaimed.callback(switches.close)
                self._switches = switches
            self.servos = Servos(robot, rate, port)
            unclaimed.pop_all()

    def read(self) -> Reading:
        """Joints, orientation, angular velocity and switches. Raises DriverError for whatever is not well."""
        position, at = self.servos.read()
        measured = {JOINT_POS: position}
        if self._imu is not None:
            sample, sensed_at = self._imu.read()
            measured[ORIENTATION] = sample.orientation
            measured[ANGULAR_VELOCITY] = sample.angular_velocity
            at = min(at, sensed_at)
        if self._switches is not None:
            measured[SWITCHES] = self._switches.read()
        signals = {signal.name: measured[signal.name] for signal in self.robot.signals}
        return Reading(signals, at)

    def write(self, targets: np.ndarray) -> None:
        """Command joint targets, (num_joints,) rad. The first one gives the servos torque."""
        self.servos.write(targets)

    def damp(self) -> None:
        """Take the servos' torque away: the robot sinks, as slowly as their gears turn."""
        self.servos.damp()

    def stop(self) -> None:
        """Let go of ports and pins. Servos that hold go on holding their last target; nothing watches them any more."""
        self.servos.stop()
        if self._imu is not None:
            self._imu.close()
        if self._switches is not None:
            self._switches.close()


def _require(robot: RobotInterface) -> None:
    """Raise DriverError unless this robot can be what the interface says."""
    if robot.name not in SERVOS:
        known = ", ".join(SERVOS)
        raise DriverError(f"--driver wildrobot drives {known}, not {robot.name}")
    for signal in robot.signals:
        size = SIZES.get(signal.name, len(robot.joints) if signal.name == JOINT_POS else 0)
        if signal.size != size:
            known = ", ".join((JOINT_POS, *SIZES))
            raise DriverError(f"the robot does not measure '{signal.name}', but {known}")
