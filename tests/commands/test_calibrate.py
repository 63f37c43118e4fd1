"""`deftly calibrate`, and what `deftly run` makes of its file: lines that are refused before a port is opened."""

import dataclasses
import sys
import types

import numpy as np
import pytest
import wild

from deftly.commands import calibrate, run
from deftly.contract import Calibration
from deftly.contract.calibration import variant
from deftly.control import calibrate as control
from deftly.control.drivers import Driver, DriverError, Reading
from deftly.errors import DeftlyError

ROBOT = wild.contract().robot
SHIPPED = ("--policy", "shipped")


@pytest.fixture
def mine(tmp_path):
    """A calibration of the robot."""
    path = tmp_path / "mine.json"
    motors = tuple(dataclasses.replace(motor, offset=0.1) for motor in ROBOT.motors)
    made = Calibration("wildrobot", variant(ROBOT), motors, (1.0, 0.0, 0.0, 0.0))
    control.save(path, made)
    return path


def refused(main, *words):
    with pytest.raises(DeftlyError) as found:
        main([*map(str, words)])
    assert "\n" not in str(found.value)
    return str(found.value)


def test_the_robots_driver_needs_a_calibration_of_it(mine, tmp_path):
    words = ("wildrobot-stand", *SHIPPED, "--driver", "wildrobot", "--port", "/dev/ttyNONE")
    assert "needs --calibration FILE" in refused(run.main, *words)
    leap = ("leap-right-cube-rotate", *SHIPPED, "--driver", "leap", "--port", "/dev/ttyNONE")
    of_another = "mine.json is of the robot wildrobot, not of leap-right"
    assert of_another in refused(run.main, *leap, "--calibration", mine)
    sim = ("wildrobot-stand", "--driver", "sim", "--calibration", mine)
    assert "--calibration is of a real robot" in refused(run.main, *sim)
    missing = refused(run.main, *words, "--calibration", tmp_path / "none.json")
    assert missing.endswith("none.json, but there is no such file")
    (tmp_path / "bad.json").write_text("{}")
    assert "as a calibration" in refused(run.main, *words, "--calibration", tmp_path / "bad.json")


def test_a_driver_is_given_the_motors_as_they_are_mounted(mine, monkeypatch):
    seen = []

    class Mine(Turned):
        def __init__(self, robot, rate):
            seen.append(robot)
            raise DriverError("it is enough")

    monkeypatch.setitem(sys.modules, "my_robot", types.SimpleNamespace(Driver=Mine))
    words = ("wildrobot-stand", *SHIPPED, "--driver", "my_robot:Driver", "--calibration", mine)
    assert refused(run.main, *words) == "it is enough"
    assert {motor.offset for motor in seen[0].motors} == {0.1}
    assert dataclasses.replace(seen[0], motors=ROBOT.motors) == ROBOT


class Turned(Driver):
    """A robot that is as it was asked to be: at zero, one joint turned, upright, leaning."""

    def __init__(self, robot, rate):
        self.robot, self.asked = robot, 0

    def damp(self):
        pass

    def read(self):
        position = np.zeros(8)
        joint = self.asked - 2  # zero is asked for first
        if 0 <= joint < 8:
            position[joint] = -0.4 if joint == 2 else 0.4
        lean = 0.25 if self.asked == 11 else 0.0
        orientation = np.array([np.cos(lean), 0.0, np.sin(lean), 0.0])
        return Reading({"joint_pos": position, "orientation": orientation}, 0.0)

    def write(self, targets):
        raise AssertionError("nothing is commanded")

    def stop(self):
        pass


def test_it_writes_what_somebody_showed_it(monkeypatch, tmp_path, capsys):
    robots = []

    class Mine(Turned):
        def __init__(self, robot, rate):
            super().__init__(robot, rate)
            robots.append(self)

    monkeypatch.setitem(sys.modules, "my_robot", types.SimpleNamespace(Driver=Mine))
    monkeypatch.setattr(control, "NAP_S", 0.0)

    def press(line):
        robots[0].asked += 1
        return ""

    monkeypatch.setattr("builtins.input", press)
    out = tmp_path / "out.json"
    assert calibrate.main(["wildrobot", "--driver", "my_robot:Driver", "--out", str(out)]) == 0
    found = control.load(out)
    assert [m.sign for m in found.motors] == [1, 1, -1, 1, -1, -1, 1, 1]
    np.testing.assert_allclose(found.imu, (1, 0, 0, 0), atol=1e-9)
    said = capsys.readouterr().out
    assert "left_knee: sign -1, offset +0.0000 rad" in said
    assert "give it to deftly run as --calibration" in said


def test_the_place_is_looked_at_before_the_robot(monkeypatch, tmp_path):
    """Two robots of a kind are calibrated in one folder, say, or in one where nothing can be written."""
    made = []

    class Mine(Turned):
        def __init__(self, robot, rate):
            made.append(self)

    monkeypatch.setitem(sys.modules, "my_robot", types.SimpleNamespace(Driver=Mine))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wildrobot.calibration.json").write_text("the first robot")
    words = ("wildrobot", "--driver", "my_robot:Driver")
    assert "is there already: say with --out" in refused(calibrate.main, *words)
    assert (tmp_path / "wildrobot.calibration.json").read_text() == "the first robot"
    monkeypatch.setattr(calibrate, "why_unwritable", lambda path: "nothing can be written: name")
    assert "nothing can be written: name" in refused(calibrate.main, *words)
    assert made == []


def test_nobody_at_a_terminal_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "my_robot", types.SimpleNamespace(Driver=Turned))

    def nobody(_):
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    words = ("wildrobot", "--driver", "my_robot:Driver", "--out", tmp_path / "out.json")
    assert "needs somebody at a terminal" in refused(calibrate.main, *words)
    assert not (tmp_path / "out.json").exists()


def test_a_robot_that_is_not_known_is_one_line(tmp_path):
    driver = ("--driver", "wildrobot", "--port", "/dev/ttyNONE")
    unknown = refused(calibrate.main, "wilderobot", *driver)
    assert unknown.startswith("no policy is shipped for a robot 'wilderobot', but for ")
    assert "calibrate needs a robot, one of " in refused(calibrate.main, *driver)
