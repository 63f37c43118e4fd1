"""Joints that do not move with their commands, found by the gain from one to the other."""

import dataclasses
import math

import numpy as np
import pytest
from legged import LEGS, RATE, Stand

from deftly.contract import ContractError, Fault
from deftly.control.response import LEAST_GAIN, Response
from deftly.control.safety import SafetyError, State

JUDGED = dataclasses.replace(
    LEGS,
    joints=tuple(
        dataclasses.replace(j, lead=0.0, frozen=0.0, excitation=0.05) for j in LEGS.joints
    ),
)
SWING = 0.15  # rad, of the commands: a standard deviation of 0.1


def swinging(t, amplitude=SWING):
    """Commands of the four joints at a time, s: sines of a stride's period, each with a phase of its own."""
    return [amplitude * math.sin(2 * math.pi * t / 0.7 + phase) for phase in (0.0, 1.0, 2.0, 3.0)]


def found(measure, seconds=5.0, amplitude=SWING, robot=JUDGED, rate=RATE):
    """What is found, and when, s, if `measure(t, commands)` gives the positions."""
    response = Response(robot, rate)
    for i in range(round(seconds * rate)):
        t = i / rate
        commanded = swinging(t, amplitude)
        seen = response.unresponsive(commanded, measure(t, commanded))
        if seen:
            return seen, t
    return None, seconds


def lagging(t, _):
    """Where servos are that follow by 80 ms with 0.8 of the amplitude."""
    return [0.8 * x for x in swinging(t - 0.08)]


def with_first(value):
    """Positions as `lagging` gives them, but of the first joint."""

    def measure(t, commanded):
        positions = lagging(t, commanded)
        return [value(t, positions[0]), *positions[1:]]

    return measure


def test_joints_that_follow_with_the_lag_of_a_servo_are_left_alone():
    assert found(lagging) == (None, 5.0)


@pytest.mark.parametrize(
    ("what", "value", "gain"),
    [
        ("stuck", lambda t, q: 0.07, 0.0),
        (
            "a servo that takes no commands, under the load of a stride",
            lambda t, q: -0.07 * q,
            -0.06,
        ),
        ("flipped", lambda t, q: -q, -0.6),
    ],
)
def test_a_joint_that_does_not_follow_is_found_within_a_second_and_the_lag(what, value, gain):
    seen, t = found(with_first(value))
    assert seen
    assert seen.joint == 0, what
    assert seen.gain == pytest.approx(gain, abs=0.03)
    assert seen.excitation == pytest.approx(SWING / math.sqrt(2), rel=0.1)
    assert t <= 1.1


def test_a_command_that_hardly_moves_tells_nothing():
    assert found(with_first(lambda t, q: 0.0), amplitude=0.06)[0] is None  # deviates by 0.042
    assert found(with_first(lambda t, q: 0.0), amplitude=0.08)[0] is not None


def test_a_joint_is_judged_only_if_its_interface_says_so():
    joints = (dataclasses.replace(JUDGED.joints[0], excitation=0.0), *JUDGED.joints[1:])
    robot = dataclasses.replace(JUDGED, joints=joints)
    assert found(with_first(lambda t, q: 0.0), robot=robot)[0] is None
    none = Response(LEGS, RATE)
    assert not none.judges
    assert none.snapshot().size == 0
    assert none.unresponsive([9.0] * 4, [0.0] * 4) is None


def test_the_gain_that_decides_is_between_joints_that_follow_and_those_that_do_not():
    for share in (0.5 * LEAST_GAIN, 2.0 * LEAST_GAIN):
        seen, _ = found(lambda t, c, share=share: [share * x for x in swinging(t - 0.06)])
        assert (seen is None) is (share > LEAST_GAIN)


@pytest.mark.parametrize("rate", [20.0, 50.0, 100.0, 500.0])
@pytest.mark.parametrize("hertz", [0.5, 2.0, 4.0, 5.0, 6.0, 8.0])
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.08])
def test_a_perfect_servo_of_any_delay_is_left_alone_at_any_frequency(rate, hertz, delay):
    response = Response(JUDGED, rate)
    for i in range(round(4 * rate)):
        seen = response.unresponsive(
            [SWING * math.sin(2 * math.pi * hertz * i / rate)] * 4,
            [SWING * math.sin(2 * math.pi * hertz * (i / rate - delay))] * 4,
        )
        assert seen is None


def drive(stand, seconds, measure):
    for _ in range(round(seconds * RATE)):
        if stand.kernel.state is not State.ACTIVE:
            return
        command = stand.kernel.command.tolist()
        stand.tick(np.array(swinging(stand.now)), joint_pos=np.array(measure(stand, command)))


def test_the_kernel_stops_at_a_joint_that_does_not_follow_and_says_which():
    stand = Stand(JUDGED).active()
    drive(stand, 3.0, lambda _, command: command)
    assert stand.kernel.state is State.ACTIVE
    stuck = stand.kernel.command[1]
    drive(stand, 1.2, lambda _, command: [command[0], stuck, *command[2:]])
    assert (stand.kernel.state, stand.kernel.fault) == (State.DAMP, Fault.FOLLOWING)
    assert stand.kernel.reason.startswith("left_knee follows by 0.0")
    assert "its encoder is stuck, its sign flipped, or its servo takes no commands" in (
        stand.kernel.reason
    )


def test_nobody_is_judged_by_what_was_before_a_start():
    stand = Stand(JUDGED).active()
    drive(stand, 0.9, lambda _, command: [0.0, *command[1:]])
    stand.kernel.hold()
    stand.kernel.resume()
    stand.ready()
    stand.kernel.start()
    drive(stand, 0.9, lambda _, command: [0.0, *command[1:]])
    assert stand.kernel.state is State.ACTIVE
    drive(stand, 0.3, lambda _, command: [0.0, *command[1:]])
    assert stand.kernel.fault is Fault.FOLLOWING


def test_a_kernel_restored_in_mid_window_finds_the_same_in_the_same_tick():
    first = Stand(JUDGED).active()
    drive(first, 0.6, lambda _, command: [0.0, *command[1:]])
    second = Stand(JUDGED)
    second.kernel.restore(first.kernel.snapshot())
    second.now = first.now
    for stand in (first, second):
        drive(stand, 1.0, lambda _, command: [0.0, *command[1:]])
    assert first.kernel.fault is Fault.FOLLOWING
    assert (first.now, first.kernel.reason) == (second.now, second.kernel.reason)


def test_a_snapshot_of_before_there_was_such_a_window_can_be_gone_on_from():
    first = Stand(JUDGED).active()
    drive(first, 0.5, lambda _, command: command)
    older = first.kernel.snapshot()
    del older["response"]
    second = Stand(JUDGED)
    second.kernel.restore(older)
    assert np.isnan(second.kernel.snapshot()["response"][1:]).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: np.zeros(3),
        lambda kept: kept.reshape(1, -1),
        lambda kept: np.append(-1.0, kept[1:]),
        lambda kept: np.append(0.5, kept[1:]),
        lambda kept: np.append(np.nan, kept[1:]),
        lambda kept: np.append(np.inf, kept[1:]),
        lambda kept: np.append(kept[:-1], np.inf),
    ],
)
def test_a_snapshot_with_another_history_is_refused(spoil):
    kept = Stand(JUDGED).active().kernel.snapshot()
    with pytest.raises(SafetyError, match="no snapshot of this kernel: its history of commands"):
        Stand(JUDGED).kernel.restore(kept | {"response": spoil(kept["response"])})
    with pytest.raises(SafetyError, match="no snapshot of this kernel: its history of commands"):
        Stand(LEGS).kernel.restore(Stand(LEGS).kernel.snapshot() | {"response": kept["response"]})


@pytest.mark.parametrize("rate", [10.0, 20.0, 100.0, 333.0, 1000.0])
def test_it_does_the_same_at_another_rate_of_the_loop(rate):
    assert found(lagging, rate=rate) == (None, 5.0)
    seen, t = found(with_first(lambda t, q: 0.07), rate=rate)
    assert seen
    assert seen.joint == 0
    assert t <= 1.2
    assert Response(JUDGED, rate).snapshot().size < 1000


def test_a_robot_may_be_guarded_better_than_a_policys_but_no_less():
    trained = dataclasses.replace(LEGS, joints=LEGS.joints)
    better = [dataclasses.replace(j, lead=0.2, frozen=0.1, excitation=0.05) for j in trained.joints]
    robot = dataclasses.replace(trained, joints=tuple(better))
    robot.require_policy_of(trained, "the policy")
    for less in ({"lead": 0.4}, {"lead": 0.0}, {"frozen": 0.2}, {"frozen": 0.0}):
        name = next(iter(less))
        joints = (dataclasses.replace(trained.joints[0], **less), *trained.joints[1:])
        with pytest.raises(ContractError, match=rf"joints\[0\]\.{name}"):
            dataclasses.replace(trained, joints=joints).require_policy_of(trained, "the policy")
    with pytest.raises(ContractError, match=r"joints\[0\]\.excitation"):
        trained.require_policy_of(robot, "the policy")


def test_a_larger_lead_than_the_usual_one_does_not_guard_better():
    trained = dataclasses.replace(
        LEGS, joints=tuple(dataclasses.replace(j, lead=0.0) for j in LEGS.joints)
    )
    for lead, better in ((0.5, True), (0.6, False)):
        joints = (dataclasses.replace(trained.joints[0], lead=lead), *trained.joints[1:])
        robot = dataclasses.replace(trained, joints=joints)
        if better:
            robot.require_policy_of(trained, "the policy")
            continue
        with pytest.raises(ContractError, match=r"joints\[0\]\.lead"):
            robot.require_policy_of(trained, "the policy")
