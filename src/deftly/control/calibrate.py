"""The calibration of one robot by hand: somebody holds it, and turns one joint after the other.

At the pose in which all joints are zero the motors' positions are their offsets. Then each joint is turned the positive
way, which tells the motors' signs, and whether another joint's motor sits there. An inertial sensor is asked where
gravity is while the robot stands upright, and while it leans forward. Nothing is commanded all along, but for motors
that a driver can let go of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import numpy as np

from deftly.contract import JOINT_POS, Calibration, ContractError, Motor, RobotInterface
from deftly.contract.calibration import variant
from deftly.contract.derive import projected_gravity
from deftly.control.drivers import Driver, DriverError
from deftly.control.drivers.bno085 import find_mount
from deftly.errors import DeftlyError
from deftly.files import KB, FileError, read_text, write_text

ORIENTATION = "orientation"
MOVED = 0.15
"""Least that somebody must turn a joint, rad: more than a servo's play and a hand's tremor."""
STEADY = 0.02
"""Most that a joint may move while it is measured, rad."""
READINGS = 8
"""Measurements of which the median is taken."""
NAP_S = 0.03
"""Between two of them, s."""
TRIES = 3
MAX_BYTES = 64 * KB
AGAIN = "deftly calibrate ROBOT makes one"


class CalibrationError(DeftlyError):
    """What was measured by hand makes no calibration."""


def load(path: Path) -> Calibration:
    """Read a calibration. Raises FileError, one line, for whatever else."""
    text = read_text(path, "a calibration", MAX_BYTES, advice=AGAIN)
    try:
        return Calibration.from_json(text)
    except ContractError as error:
        raise FileError(f"cannot read '{path}' as a calibration: {error}; {AGAIN}") from None


def save(path: Path, calibration: Calibration) -> None:
    """Write a calibration atomically."""
    write_text(path, calibration.to_json() + "\n")


class ByHand:
    """Leads somebody through it.

    Args:
        driver: of the robot, made with the interface of its drawings, and no mount of an inertial sensor.
        robot: that interface.
        ask: shows a line, and comes back when it was done.
        say: shows a line.
        positive: what joints do that turn the positive way, by the end of their names.
    """

    def __init__(
        self,
        driver: Driver,
        robot: RobotInterface,
        ask: Callable[[str], None],
        say: Callable[[str], None],
        positive: Mapping[str, str],
    ):
        if not robot.motors:
            raise CalibrationError(f"the interface of {robot.name} has no table of motors")
        self.driver = driver
        self.robot = robot
        self._ask = ask
        self._say = say
        self._positive = positive
        self._turned: set[str] = set()

    def run(self) -> Calibration:
        """The whole of it. Raises CalibrationError, and DriverError for a robot that does not answer."""
        self._let_go()
        zero = self._measured(
            "Hold the robot upright with every joint at zero (legs straight, soles level)"
        )
        offsets = np.asarray(self.robot.to_motors(zero))
        signs = {joint.name: self._sign(joint.name, zero) for joint in self.robot.joints}
        motors = []
        for motor, offset in zip(self.robot.motors, offsets.tolist()):
            sign = motor.sign * signs[motor.joint]
            motors.append(Motor(motor.joint, sign, round(offset, 5)))
        imu = self._mount() if self._has_imu else None
        made = datetime.now().astimezone().isoformat(timespec="seconds")
        return Calibration(self.robot.name, variant(self.robot), tuple(motors), imu, made)

    @property
    def _has_imu(self) -> bool:
        return any(signal.name == ORIENTATION for signal in self.robot.signals)

    def _let_go(self) -> None:
        """Take the torque away, where a driver can."""
        damp = getattr(self.driver, "damp", None)
        try:
            if damp is not None:
                damp()
        except DriverError as error:
            self._say(f"its motors keep their torque: {error}")

    def _sign(self, name: str, zero: np.ndarray) -> float:
        """1 if a joint turns as the drawings say, -1 if the other way. Raises CalibrationError."""
        joint = self.robot.joint_names.index(name)
        how = next(
            (words for end, words in self._positive.items() if name.endswith(end)),
            "turn it the positive way",
        )
        problem = ""
        for _ in range(TRIES):
            moved = self._measured(f"{name}: {how}, by 15 degrees or more") - zero
            problem = self._problem(joint, moved)
            if not problem:
                self._turned.add(name)
                return float(np.sign(moved[joint]))
            self._say(problem)
        raise CalibrationError(f"{problem}: nothing was written")

    def _problem(self, joint: int, moved: np.ndarray) -> str:
        """What is wrong if a joint, and it alone, was to be turned from zero; empty if nothing is."""
        if abs(moved[joint]) >= MOVED:
            return ""
        name = self.robot.joint_names[joint]
        others = np.array([other not in self._turned for other in self.robot.joint_names])
        others[joint] = False
        distance = np.where(others, np.abs(moved), 0.0)
        worst = int(distance.argmax())
        if distance[worst] >= MOVED:
            other = self.robot.joint_names[worst]
            return f"{name} was turned, and {other} is measured to move: are their motors' ids swapped?"
        return f"{name} moved by {moved[joint]:+.3f} rad only, at least {MOVED} tell its sign"

    def _mount(self) -> tuple[float, float, float, float]:
        upright = self._gravity("Hold the robot upright, still")
        problem = ""
        for _ in range(TRIES):
            leaning = self._gravity("Lean all of it forward by about 30 degrees, still")
            try:
                w, x, y, z = find_mount(upright, leaning).round(9).tolist()
            except DriverError as error:
                problem = str(error)
                self._say(problem)
            else:
                length = float(np.linalg.norm((w, x, y, z)))
                return (w / length, x / length, y / length, z / length)
        raise CalibrationError(f"{problem}: nothing was written")

    def _gravity(self, what: str) -> np.ndarray:
        """Gravity in the frame of the inertial sensor, (3,), once somebody did something."""
        self._ask(what)
        return projected_gravity(self._readings(ORIENTATION)[-1])

    def _measured(self, what: str) -> np.ndarray:
        """Where the joints are, (num_joints,) rad, once somebody did something. Raises CalibrationError."""
        problem = ""
        for _ in range(TRIES):
            self._ask(what)
            readings = self._readings(JOINT_POS)
            spread = np.ptp(readings, axis=0)
            if spread.max() <= STEADY:
                return np.median(readings, axis=0)
            name = self.robot.joint_names[int(spread.argmax())]
            problem = f"{name} moved by {spread.max():.3f} rad while it was measured: hold it still"
            self._say(problem)
        raise CalibrationError(f"{problem}: nothing was written")

    def _readings(self, signal: str) -> np.ndarray:
        """Of a signal, (READINGS, size)."""
        rows = []
        for _ in range(READINGS):
            rows.append(np.array(self.driver.read().signals[signal], np.float64))
            time.sleep(NAP_S)
        return np.array(rows)
