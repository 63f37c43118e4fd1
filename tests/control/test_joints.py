"""The check of the joints: a small motion that finds flipped signs, swapped joints and dead ones."""

import numpy as np
import pytest
from four_joints import TOY
from legged import CONTRACT, LEGS

from deftly.commands.run import main
from deftly.control.drivers import FakeDriver, Reading
from deftly.control.drivers.faults import Faulty, Saboteur
from deftly.control.joints import AMPLITUDE, JointCheck
from deftly.control.loop import Runner
from deftly.control.safety import Kernel, SafetyConfig, State

NAMES = [joint.name for joint in LEGS.joints]


def checked(contract, wrap=lambda driver: driver, start=None):
    """A check on a fake robot; its verdicts, the runner, and all that was commanded."""
    now = [100.0]
    fake = FakeDriver(contract.robot, contract.rate, clock=lambda: now[0])
    if start is not None:
        fake.position = np.array(start, float)
    check = JointCheck(contract)
    kernel = Kernel(contract.robot, contract.rate, SafetyConfig(start_envelope=10.0))
    runner = Runner(check, kernel, wrap(fake))
    commands = []
    for _ in range(4000):
        now[0] += 1.0 / contract.rate
        tick = runner.step(now[0])
        commands.append(tick.command)
        if tick.state is State.READY:
            runner.start()
        if check.done or tick.state in (State.HOLD, State.DAMP):
            break
    return check, runner, [command for command in commands if command is not None]


def sabotaged(fault):
    def wrap(driver):
        saboteur = Saboteur(LEGS, CONTRACT.rate, fault, lambda seconds: None)
        driver.read()
        faulty = Faulty(driver, saboteur)
        faulty.read()
        faulty.write(driver.position)
        saboteur.strikes = True
        return faulty

    return wrap


class Wired(FakeDriver):
    """A fake robot whose motors are not wired as they should be: `order` and `signs` of its joints."""

    order = (0, 1, 2, 3)
    signs = (1, 1, 1, 1)

    def read(self):
        reading = super().read()
        position = reading.signals["joint_pos"][list(self.order)] * np.array(self.signs)
        return Reading({**reading.signals, "joint_pos": position}, reading.at)


def test_joints_in_order_are_found_so_and_move_a_little():
    check, runner, commands = checked(CONTRACT)
    assert check.done
    assert check.verdicts() == []
    assert runner.kernel.state is State.ACTIVE
    assert np.abs(np.array(commands)).max() <= AMPLITUDE + 1e-9
    assert [move.joint for move in check.moves] == NAMES


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("flipped", ["left_hip was sent -0.080, and went +0.080: its sign is flipped"]),
        (
            "swapped",
            [
                "left_hip was sent -0.080, and left_knee moved instead: the two are swapped",
                "left_knee was sent -0.080, and left_hip moved instead: the two are swapped",
            ],
        ),
        (
            "stuck",
            ["left_hip was sent -0.080, and went +0.000: no power, stuck, or its encoder is"],
        ),
        (
            "blocked",
            ["left_hip was sent -0.080, and went +0.000: no power, stuck, or its encoder is"],
        ),
    ],
)
def test_what_is_wrong_with_a_joint_is_named(fault, said):
    check, runner, _ = checked(CONTRACT, sabotaged(fault))
    assert runner.kernel.fault == "none"
    assert check.verdicts() == said


@pytest.mark.parametrize(
    ("order", "signs", "count"),
    [
        ((2, 1, 0, 3), (1, 1, 1, 1), 2),
        ((0, 1, 3, 2), (1, 1, -1, 1), 2),
        ((0, 1, 2, 3), (1, -1, 1, -1), 2),
        ((1, 2, 3, 0), (1, 1, 1, 1), 4),
        ((3, 2, 1, 0), (-1, -1, -1, -1), 4),
    ],
)
def test_every_wrong_wiring_is_found(order, signs, count):
    def wrap(driver):
        driver.__class__ = type("Wrong", (Wired,), {"order": order, "signs": signs})
        return driver

    check, _, _ = checked(CONTRACT, wrap)
    assert len(check.verdicts()) == count


def test_it_starts_from_where_the_robot_hangs_and_moves_away_from_the_stops():
    check, _, commands = checked(CONTRACT, start=[0.79, -0.79, 0.3, 0.0])
    assert check.verdicts() == []
    moved = np.array(commands) - commands[0]
    assert moved.min(0) == pytest.approx([-AMPLITUDE, 0.0, -AMPLITUDE, -AMPLITUDE], abs=1e-6)
    assert moved.max(0) == pytest.approx([0.0, AMPLITUDE, 0.0, 0.0], abs=1e-6)


def test_joints_that_follow_are_moved_by_their_leaders_and_slides_by_their_travel():
    check, _, commands = checked(TOY)
    assert check.verdicts() == []
    assert [move.joint for move in check.moves] == ["a", "b", "grip"]
    assert check.moves[0].sent[3] == pytest.approx(-0.5 * check.moves[0].sent[0])
    assert np.ptp(np.array(commands)[:, 2]) == pytest.approx(AMPLITUDE * 0.04, rel=1e-3)


def test_a_fault_ends_the_check_and_it_begins_anew():
    check, _, _ = checked(CONTRACT)
    check.reset()
    assert not check.done
    assert check.verdicts() == []


def test_the_command_says_what_it_found(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--policy", str(exported.bundle), "--start", "--check-joints", "--driver"]
    assert main([*words, "fake"]) == 0
    assert "2 of 2 joints were moved, all are in order" in capsys.readouterr().out
    assert main([*words, "fake", "--seconds", "0.3"]) == 1
    said = capsys.readouterr().out
    assert "0 of 2 joints were moved: the check was cut short, it takes" in said
    assert "in order" not in said
    (tmp_path / "mirrored.py").write_text(
        "from deftly.control.drivers import FakeDriver, Reading\n"
        "class Driver(FakeDriver):\n"
        "    def read(self):\n"
        "        signals, at = super().read()\n"
        "        return Reading({**signals, 'joint_pos': signals['joint_pos'] * [1, -1]}, at)\n"
    )
    assert main([*words, "mirrored:Driver"]) == 1
    assert "y was sent -0.160, and went +0.160: its sign is flipped" in capsys.readouterr().out
