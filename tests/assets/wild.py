"""WildRobot's contract at a leisurely rate, emulated servos, and what a test of its drivers needs of them."""

import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from one_row import OneRow

from deftly.contract.derive import multiply, rotate
from deftly.control.drivers.bno085 import mounts
from deftly.policy import bundle
from deftly.policy.protocol import Decision
from deftly_bench.hiwonder_bus import EmulatedServos

RATE = 5.0
"""Hz: busy machines are late, which is no fault of the driver's."""
UNIT = 240 / 1000 * np.pi / 180
"""Written down once more: the driver has its own."""
JOINTS = (
    *("left_hip_pitch", "left_hip_roll", "left_knee", "left_ankle_pitch"),
    *("right_hip_pitch", "right_hip_roll", "right_knee", "right_ankle_pitch"),
)
"""Of servos 1, 2, ... 8."""
TURNED = ("right_hip_pitch", "right_hip_roll")
"""Joints whose motor turns the other way."""


@cache
def contract(rate=RATE):
    return replace(shipped().contract, rate=rate)


@cache
def shipped():
    import deftly

    folder = bundle.Path(deftly.__file__).parent / "shipped" / "policies" / "wildrobot-stand"
    return bundle.load(folder)


def unit(joint, angle):
    """Where the servo of a joint stands: units shrink as the motor turns the positive way."""
    sign = -1 if joint in TURNED else 1
    return 500 - sign * angle / UNIT


def go_home(*buses):
    """Put emulated servos to the robot's home."""
    home = {joint.name: joint.home for joint in contract().robot.joints}
    for bus in buses:
        for i, servo in bus.servos.items():
            servo.position = servo.goal = unit(JOINTS[i - 1], home[JOINTS[i - 1]])


@pytest.fixture
def bus():
    """All servos at home on one port; a module has the fixture by `bus = wild.bus`."""
    with EmulatedServos() as found:
        go_home(found)
        yield found


@pytest.fixture
def legs():
    """A port for each leg."""
    with EmulatedServos(range(1, 5)) as left, EmulatedServos(range(5, 9)) as right:
        go_home(left, right)
        yield left, right


def ports(*buses):
    return ",".join(bus.port for bus in buses)


def wait(happened, seconds=20.0):
    """Threads and emulated servos need a moment: on a busy machine a long one."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)


class Still(OneRow):
    """A policy that stays at home."""

    contract = None

    def __init__(self):
        self.contract = contract()

    def decide(self, signals, applied, inputs):
        home = np.array(self.contract.robot.home(), np.float32)
        return Decision(np.zeros(8, np.float32), home)

    def close(self):
        pass


class FakeSensor:
    """What the library's `BNO08X_I2C` has, of 1.3.3: reports that are asked for, in the sensor's frame."""

    def __init__(self, quat=(0.0, 0.0, 0.0, 1.0), gyro=(0.0, 0.0, 0.0), acceleration=(0, 0, 9.81)):
        self.quat, self.rates, self.feels = quat, gyro, acceleration
        self.features = {}
        self.frozen = False
        self.broken = None
        self.count = 0

    def enable_feature(self, feature, interval):
        self.features[feature] = interval

    @property
    def game_quaternion(self):
        if self.broken:
            raise self.broken
        return self.quat

    @property
    def gyro(self):
        return self.rates

    @property
    def acceleration(self):
        self.count += not self.frozen
        x, y, z = self.feels
        return x, y, z + 0.01 * (self.count % 2)


class FakeSwitches:
    """Switches that are down or not."""

    def __init__(self):
        self.down = np.array([1.0, 1.0, 1.0, 1.0])

    def read(self):
        return self.down

    def close(self):
        pass


HOME = np.array(shipped().contract.robot.home())
ASKEW = np.array([-30, 19, 40, 40, 13, 34, -4, 28])
"""Units by which WildRobot's makers found their servos off."""
FLIPPED = ("left_knee", "right_ankle_pitch")
MOUNT = mounts()[7]


class Hands:
    """Somebody who does what is asked, on a robot whose servos are mounted askew, two the other way round."""

    def __init__(self, sensor, *buses):
        self.sensor, self.lines, self.asked = sensor, [], []
        self.servos = {i: servo for bus in buses for i, servo in bus.servos.items()}
        self.driver = None
        self.turns = {}
        """What is turned instead of a joint."""
        self.put(np.zeros(8))
        self.lean(0.0)

    def put(self, angles):
        for i, (name, angle, off) in enumerate(zip(JOINTS, angles, ASKEW), 1):
            way = -1 if name in FLIPPED else 1
            place = unit(name, way * angle) + off
            self.servos[i].position = self.servos[i].goal = place

    def lean(self, angle):
        back = MOUNT * [1, -1, -1, -1]
        body = np.array([np.cos(angle / 2), 0, np.sin(angle / 2), 0])
        w, x, y, z = multiply(body, MOUNT)
        self.sensor.quat = (x, y, z, w)
        up = np.array([-np.sin(angle), 0, np.cos(angle)]) * 9.81
        self.sensor.feels = tuple(rotate(back, up))

    def ask(self, line):
        self.asked.append(line)
        name = line.partition(":")[0]
        self.lean(0.5 if line.startswith("Lean") else 0.0)
        angles = np.zeros(8)
        if name in JOINTS:
            angles[JOINTS.index(self.turns.get(name, name))] = 0.3
        self.put(angles)
        wait(lambda: all(self.fresh()))

    def fresh(self):
        """Whether the driver has seen it."""
        x, y, z, w = self.sensor.quat
        sensed = self.driver.read().signals["orientation"]
        seen = [np.allclose(sensed, (w, x, y, z))]
        for line in self.driver.servos.lines:
            seen += [line.units[i] == round(self.servos[i].position) for i in line.names]
        return seen

    @property
    def say(self):
        return self.lines.append
