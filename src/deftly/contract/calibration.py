"""How one robot's motors and inertial sensor are mounted: what `deftly calibrate` found, and which robot it is of."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import Annotated

from msgspec import Meta

from deftly.contract.robot import Motor, RobotInterface
from deftly.contract.schema import ContractError, Document, Name, Quaternion, Text


@dataclass(frozen=True)
class Calibration(Document):
    """Signs and offsets of the motors of one robot, instead of those that its interface has from its drawings.

    `variant` tells robots of one name apart. `imu` is the quaternion w x y z that turns the frame of the inertial
    sensor into the robot's; None: it has none. `made` says when, in ISO 8601.
    """

    SCHEMA = "deftly.calibration/1"

    robot: Name
    variant: Text
    motors: Annotated[tuple[Motor, ...], Meta(min_length=1, max_length=256)]
    imu: Quaternion | None = None
    made: Text = ""

    def check(self) -> None:
        """Offsets of less than a turn, a quaternion of length 1."""
        for motor in self.motors:
            small = abs(motor.offset) <= 2 * math.pi
            self._need(small, f"the offset of {motor.joint} is {motor.offset} rad, at most a turn")
        length = math.hypot(*(self.imu or (1.0,)))
        self._need(abs(length - 1.0) < 1e-6, f"imu has length {length:.9g}, expected 1")

    def applied(self, robot: RobotInterface, what: str = "the calibration") -> RobotInterface:
        """The robot with its motors as they are mounted. Raises ContractError for another robot, or variant of it.

        `what` is what messages call this.
        """
        if self.robot != robot.name:
            raise ContractError(f"{what} is of the robot {self.robot}, not of {robot.name}")
        here = [motor.joint for motor in robot.motors]
        there = [motor.joint for motor in self.motors]
        other = f"{what} is of another variant of {robot.name}"
        if here != there:
            raise ContractError(f"{other}: its motors turn {there}, here they turn {here}")
        if self.variant != variant(robot):
            raise ContractError(f"{other}: its joints or motors changed since; calibrate again")
        return replace(robot, motors=self.motors)


def variant(robot: RobotInterface) -> str:
    """What a calibration depends on, as a hash in hex: joints, and motors as the drawings have them."""
    joints = [(joint.name, joint.units) for joint in robot.joints]
    motors = [(motor.joint, motor.sign, motor.offset) for motor in robot.motors]
    return hashlib.sha256(json.dumps([robot.name, joints, motors]).encode()).hexdigest()[:16]
