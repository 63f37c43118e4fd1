"""Calibration by hand: what an emulated robot that was mounted askew is found to be, and whose calibration it is."""

import dataclasses
import json
import re

import numpy as np
import pytest
import wild

from deftly.contract import Calibration, ContractError, Motor
from deftly.contract.calibration import variant
from deftly.control import calibrate
from deftly.control.calibrate import ByHand, CalibrationError
from deftly.control.drivers import hiwonder
from deftly.control.drivers.bno085 import Bno085
from deftly.control.drivers.buses import WILDROBOT
from deftly.control.drivers.wildrobot import WildRobot
from deftly.files import FileError

bus = wild.bus
ROBOT = wild.contract().robot


@pytest.fixture
def hands(bus, monkeypatch):
    monkeypatch.setattr(hiwonder, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(calibrate, "NAP_S", 0.002)
    sensor = wild.FakeSensor()
    found = wild.Hands(sensor, bus)
    imu = Bno085(None, sensor)
    found.driver = WildRobot(ROBOT, wild.RATE, bus.port, None, imu, wild.FakeSwitches())
    yield found
    found.driver.stop()


def by_hand(hands):
    return ByHand(hands.driver, ROBOT, hands.ask, hands.say, WILDROBOT.positive).run()


def test_a_robot_that_was_mounted_askew_is_found_so(hands, bus, tmp_path):
    found = by_hand(hands)
    assert hands.lines == []
    assert "left_hip_roll: swing the leg inward, by 15 degrees or more" in hands.asked
    calibrate.save(tmp_path / "mine.json", found)
    again = calibrate.load(tmp_path / "mine.json")
    assert again == found
    robot = again.applied(ROBOT)
    expected = -wild.UNIT * wild.ASKEW
    np.testing.assert_allclose([m.offset for m in robot.motors], expected, atol=wild.UNIT)
    nominal = {motor.joint: motor.sign for motor in ROBOT.motors}
    flipped = {motor.joint for motor in robot.motors if motor.sign != nominal[motor.joint]}
    assert flipped == set(wild.FLIPPED)
    assert abs(np.array(found.imu) @ wild.MOUNT) > 0.99
    assert bus.loaded() == set()
    hands.driver.stop()
    angles = np.array([joint.home for joint in ROBOT.joints])
    hands.put(angles)
    hands.lean(0.0)
    imu = Bno085(np.array(found.imu), hands.sensor)
    driver = WildRobot(robot, wild.RATE, bus.port, None, imu, wild.FakeSwitches())
    np.testing.assert_allclose(driver.read().signals["joint_pos"], angles, atol=2 * wild.UNIT)
    np.testing.assert_allclose(driver.read().signals["orientation"], [1, 0, 0, 0], atol=1e-6)
    driver.stop()


def test_servos_whose_ids_are_swapped_are_named(hands):
    hands.turns = {"left_hip_roll": "left_knee"}
    with pytest.raises(CalibrationError, match="nothing was written"):
        by_hand(hands)
    words = "left_hip_roll was turned, and left_knee is measured to move: are their motors' ids"
    assert all(line.startswith(words) for line in hands.lines)
    assert len(hands.lines) == 3


def test_a_joint_that_does_not_move_has_no_sign(hands):
    ask = hands.ask
    hands.ask = lambda line: ask("nothing" if line.startswith("left_knee") else line)
    words = r"left_knee moved by [+-]0\.00\d rad only, at least 0\.15 tell its sign: nothing was"
    with pytest.raises(CalibrationError, match=words):
        by_hand(hands)


def test_a_joint_that_is_not_held_still_is_named(hands, monkeypatch):
    numbers = iter(np.tile([0.0, 0.1], 100))

    class Trembles:
        def read(self):
            position = np.zeros(8)
            position[2] = next(numbers)
            return hands.driver.read()._replace(signals={"joint_pos": position})

    words = (
        r"left_knee moved by 0\.100 rad while it was measured: hold it still: nothing was written"
    )
    with pytest.raises(CalibrationError, match=words):
        ByHand(Trembles(), ROBOT, hands.ask, hands.say, {}).run()


# ------------------------------------------------------------------- whose it is

MINE = Calibration("wildrobot", variant(ROBOT), ROBOT.motors, (1.0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("robot", "words"),
    [
        (
            dataclasses.replace(ROBOT, name="leap-right"),
            "is of the robot wildrobot, not of leap-right",
        ),
        (
            dataclasses.replace(ROBOT, motors=(Motor("left_hip_pitch", -1), *ROBOT.motors[1:])),
            "is of another variant of wildrobot: its joints or motors changed since; calibrate again",
        ),
        (
            dataclasses.replace(ROBOT, motors=ROBOT.motors[::-1]),
            "is of another variant of wildrobot: its motors turn ['left_hip_pitch', ",
        ),
    ],
)
def test_a_calibration_of_another_robot_or_variant_is_refused(robot, words):
    with pytest.raises(ContractError, match=re.escape(words)):
        MINE.applied(robot)


def test_a_calibration_of_17_joints_is_another_variants():
    names = [f"joint_{i}" for i in range(17)]
    other = dataclasses.replace(MINE, motors=tuple(Motor(name) for name in names))
    with pytest.raises(ContractError, match="is of another variant of wildrobot: its motors turn"):
        other.applied(ROBOT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.update(schema="deftly.calibration/2"), "deftly.calibration/2"),
        (lambda tree: tree.update(offset=1), "offset"),
        (lambda tree: tree["motors"][0].update(sign=2), "the sign of a motor is 1 or -1"),
        (lambda tree: tree["motors"][0].update(offset=7.0), "is 7.0 rad, at most a turn"),
        (lambda tree: tree["motors"][0].update(offset="1"), "Expected `float`"),
        (lambda tree: tree.update(imu=[1, 1, 0, 0]), "imu has length 1.41"),
        (lambda tree: tree.update(motors=[]), "length >= 1"),
        (lambda tree: tree.pop("robot"), "robot"),
    ],
)
def test_a_file_that_is_no_calibration_is_one_line(tmp_path, change, words):
    tree = json.loads(MINE.to_json())
    change(tree)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(FileError) as found:
        calibrate.load(path)
    assert words.lower() in str(found.value).lower()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"\x80\x04]", b"{" * 1000, b" " * 70_000, b"nan"])
def test_nor_is_anything_else(tmp_path, data):
    path = tmp_path / "mine.json"
    path.write_bytes(data)
    with pytest.raises(FileError, match="as a calibration"):
        calibrate.load(path)
    with pytest.raises(FileError, match="as a calibration"):
        calibrate.load(tmp_path)
