"""docs/wildrobot-hardware.md, as far as emulated servos go: calibrate by hand, check the joints, run, let go."""

import fifty
import numpy as np
import pytest
import wild

from deftly.commands import calibrate, run
from deftly.control import calibrate as by_hand
from deftly.control import inspection, joints, log
from deftly.control.drivers import hiwonder, wildrobot
from deftly.control.drivers.bno085 import Bno085

pytestmark = pytest.mark.realtime

legs = wild.legs
PATIENT = ["--safety.misses", "100", "--safety.miss-periods", "9", "--safety.stall-periods", "90"]
PATIENT += ["--safety.policy-periods", "10", "--safety.signal-periods", "9"]


@pytest.fixture
def robot(legs, monkeypatch):
    """Somebody who holds an emulated robot, mounted askew, on a computer that has no pins."""
    sensor = wild.FakeSensor()
    hands = wild.Hands(sensor, *legs)

    class Emulated(wildrobot.WildRobot):
        def __init__(self, *words):
            super().__init__(*words)
            hands.driver = self

    monkeypatch.setattr(hiwonder, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(hiwonder, "SILENCE_S", 60.0)
    monkeypatch.setattr(by_hand, "NAP_S", 0.002)
    monkeypatch.setattr(wildrobot, "WildRobot", Emulated)
    monkeypatch.setattr(wildrobot, "Bno085", lambda mount: Bno085(mount, sensor))
    monkeypatch.setattr(wildrobot, "FootSwitches", wild.FakeSwitches)
    monkeypatch.setattr("builtins.input", lambda line: hands.ask(line) or "")
    return hands


def test_what_the_page_says_is_so(robot, legs, monkeypatch, tmp_path, capsys):
    policy = fifty.write_bundle(tmp_path / "stand", wild.contract(), "wildrobot-stand", 0.01)
    where = ["--policy", str(policy), "--driver", "wildrobot", "--port", wild.ports(*legs)]
    mine = str(tmp_path / "mine.json")
    assert calibrate.main(["wildrobot", *where, "--out", mine]) == 0
    assert "left_knee: sign -1, offset -0.1676 rad" in capsys.readouterr().out

    robot.lean(0.0)
    robot.put(wild.HOME)
    monkeypatch.setattr(joints, "MOVE_S", 0.2)
    monkeypatch.setattr(joints, "REST_S", 0.4)
    words = [*where, "--calibration", mine, "--start", *PATIENT]
    status = run.main([*words, "--check-joints"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "8 of 8 joints were moved, all are in order" in said

    robot.put(wild.HOME)
    file = tmp_path / "stand.npz"
    status = run.main([*words, "--safety.approach-s", "0.2", "--seconds", "3", "--log", str(file)])
    said = capsys.readouterr().out
    assert status == 0, said
    found = log.read(file)
    assert found.rows["decided"].sum() > 3
    assert inspection.replay(found)[0] == ""
    assert found.robot.motors == by_hand.load(tmp_path / "mine.json").motors
    measured = found.rows["signal/joint_pos"]
    first = measured[np.isfinite(measured).all(-1)][0]  # after ticks before the first measurement
    np.testing.assert_allclose(first, wild.HOME, atol=0.02)
    assert legs[0].loaded() | legs[1].loaded() == set(range(1, 9)), (
        "the end is the operator's: it holds"
    )
