import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from four_joints import HOME, PERIOD, ROBOT, TOP, TOY, UPPER, Bench, Watched

from deftly.control.loop import Runner
from deftly.control.safety import Fault, Kernel, SafetyConfig, SafetyError, State
from deftly.errors import DeftlyError

INIT, READY, ACTIVE, HOLD, STOP = State
OTHER = dataclasses.replace(TOY, rate=25)


# ------------------------------------------------------------ time and speed


@pytest.mark.parametrize("periods", [1e-9, 0.1, 1.0, 1.4, 3.9])
def test_speed_is_a_limit_in_real_time(periods):
    bench = Bench(ramp_s=0.0, speed=0.5, misses=100, lead=10.0).active()
    before = bench.kernel.command
    out = bench.tick(UPPER + 1, periods=periods)
    most = 0.5 * TOP * PERIOD * min(periods, 1.0)
    assert bench.kernel.state is ACTIVE
    assert (np.abs(out - before) <= most * (1 + 1e-9) + 1e-15).all()
    on_its_way = before < UPPER
    step, way = (out - before)[on_its_way], (UPPER - before)[on_its_way]
    assert (step / most[on_its_way]).max() == pytest.approx(
        1.0, rel=1e-3
    )  # what limits moves as far as it may,
    assert step / way == pytest.approx(
        np.full(len(way), step[0] / way[0]), rel=1e-3, abs=0
    )  # and all keep their direction


def test_the_speed_grows_from_nothing_and_again_after_a_resume():
    bench = Bench(ramp_s=0.5, lead=10.0).ready()
    for _ in range(2):
        bench.kernel.start()
        for i in range(1, 14):
            before = bench.kernel.command
            step = np.abs(bench.tick([before[0], 2.0, 0.0, before[3]]) - before)
            most = min(1.0, i * PERIOD / 0.5) * TOP * PERIOD
            assert (step <= most * (1 + 1e-12) + 1e-15).all()
            assert step[1] == pytest.approx(most[1])
        bench.kernel.hold()
        bench.kernel.resume()
        bench.kernel.command = None  # where it is measured: at home
        bench.tick()
        assert bench.kernel.state is READY


def test_a_gap_after_start_does_not_use_up_the_ramp():
    bench = Bench(ramp_s=1.0, stall_periods=100.0, misses=100).ready()
    bench.kernel.start()
    before = bench.kernel.command
    out = bench.tick(UPPER, periods=50)
    assert bench.kernel.state is ACTIVE
    assert (np.abs(out - before) <= PERIOD * TOP * PERIOD * (1 + 1e-12)).all()


def test_start_goes_on_from_the_command_that_was_held():
    bench = Bench().ready()
    before = bench.kernel.command
    bench.kernel.start()
    np.testing.assert_array_equal(bench.kernel.command, before)
    np.testing.assert_allclose(bench.tick(UPPER), before, atol=0.05 * 3 * 0.05 + 1e-12)


@pytest.mark.parametrize("again", [0, 1])
def test_start_twice_is_refused_and_changes_nothing(again):
    bench = Bench().ready()
    bench.kernel.start()
    for _ in range(5 * again):
        bench.tick(UPPER)
    before = json.dumps(bench.kernel.snapshot(), default=np.ndarray.tolist)
    with pytest.raises(SafetyError, match="cannot start in state active, only in ready"):
        bench.kernel.start()
    assert json.dumps(bench.kernel.snapshot(), default=np.ndarray.tolist) == before


# ------------------------------------------------------------ where the robot stands


def test_the_approach_is_slow_smooth_and_does_not_ask_the_policy():
    bench = Bench(approach_s=1.0, ramp_s=0.0)
    bench.pose = HOME + np.array([1.2, -1.5, -0.03, 0.5])
    bench.ready().kernel.start()
    worst, ticks = np.zeros(4), 0
    while not bench.kernel.wants_policy:
        before = bench.kernel.command
        out = bench.tick(UPPER)  # not followed
        worst, ticks = np.maximum(worst, np.abs(out - before)), ticks + 1
        bench.pose = out
        assert bench.kernel.state is ACTIVE
    np.testing.assert_allclose(out, HOME, atol=1e-12)
    assert (worst <= 0.16 * TOP * PERIOD).all()
    assert ticks >= 20


def test_the_policy_does_not_drive_if_the_approach_did_not_bring_the_robot_home():
    bench = Bench(approach_s=0.5, lead=10.0)
    bench.pose = HOME + np.array([0.4, 0, 0, 0])
    bench.ready().kernel.start()
    while bench.kernel.state is ACTIVE:
        assert not bench.kernel.wants_policy
        bench.tick()
    assert bench.kernel.fault is Fault.ENVELOPE
    assert (
        "a stands at 0.900, home is 0.500 rad: the approach did not bring it there"
        in bench.kernel.reason
    )


def test_start_outside_the_envelope_names_the_joint_and_is_latched():
    bench = Bench()
    bench.pose = HOME + np.array([0.0, 0.3, 0, 0])
    bench.ready().kernel.start()
    assert (bench.kernel.state, bench.kernel.fault) == (HOLD, Fault.ENVELOPE)
    assert "b stands at 0.300, home is 0.000 rad" in bench.kernel.reason


def test_an_arm_that_was_moved_by_hand_while_ready_does_not_leap_back():
    bench = Bench().ready()
    bench.pose = HOME + np.array([0.2, 0, 0, 0])
    bench.tick(periods=2)
    bench.kernel.start()
    assert bench.kernel.fault is Fault.ENVELOPE
    assert "a was moved" in bench.kernel.reason
    bench.kernel.resume()
    np.testing.assert_allclose(bench.tick(), bench.pose)
    bench.kernel.start()
    assert bench.kernel.state is ACTIVE


def test_resume_keeps_the_place_of_what_was_moved_and_the_command_of_what_was_not():
    bench = Bench(ramp_s=0.0).active()
    for _ in range(8):  # the gripper closes on something 20 mm wide, the arm sags by 0.02
        out = bench.tick(HOME - np.array([0, 0, 0.04, 0]))
        bench.pose = np.maximum(out - np.array([0.02, 0, 0, 0]), [-9, -9, 0.02, -9])
    assert bench.kernel.command[2] == 0.0
    bench.tick(reading=None)
    held = bench.kernel.command
    bench.pose = bench.pose + np.array([0, 0.3, 0, 0])  # a hand moves one joint
    np.testing.assert_array_equal(bench.tick(), held)
    bench.kernel.resume()
    np.testing.assert_array_equal(bench.tick(), [held[0], bench.pose[1], 0.0, held[3]])


def test_a_gripper_that_was_closing_when_the_fault_struck_keeps_its_grip():
    bench = Bench(ramp_s=0.0).active()
    for _ in range(6):
        bench.tick(HOME - np.array([0, 0, 0.04, 0]))  # measured still open
    bench.tick(reading=None)
    held = bench.kernel.command
    bench.pose = np.maximum(
        held, [-9, -9, 0.015, -9]
    )  # on the way to its command, it met something
    bench.kernel.resume()
    np.testing.assert_array_equal(bench.tick(), held)


def test_an_arm_that_is_blocked_stops_and_lets_go_when_resumed():
    bench = Bench(ramp_s=0.0, lead=0.2).active()
    while bench.kernel.state is ACTIVE:
        bench.tick(UPPER)
    assert bench.kernel.fault is Fault.FOLLOWING
    assert bench.kernel.reason.startswith("b is at 0, sent to 0.")
    assert np.abs(bench.kernel.command - HOME)[1] <= 0.2 + TOP[1] * PERIOD
    bench.kernel.resume()
    np.testing.assert_allclose(bench.tick()[1], HOME[1])
    bench.kernel.start()
    bench.tick()
    assert bench.kernel.state is ACTIVE


def test_a_gripper_may_press_as_hard_as_it_can():
    bench = Bench(ramp_s=0.0, lead=0.06).active()
    for _ in range(20):
        bench.tick(HOME - np.array([0, 0, 0.04, 0]))
    assert bench.kernel.state is ACTIVE
    assert bench.kernel.command[2] == 0.0


def test_a_margin_makes_no_robot_leap():
    bench = Bench(margin=0.15)
    bench.pose = np.array([1.9, 0.0, 0.04, 0.0])  # within its limits, 0.35 rad beyond the margin
    assert bench.tick() is None
    assert bench.kernel.state is INIT
    assert (
        "a, at 1.9, stands outside of what safety.margin leaves it, -0.55 .. 1.55"
        in bench.kernel.reason
    )
    bench.pose[0] = 1.54
    np.testing.assert_array_equal(bench.tick(), bench.pose)


def test_a_resume_into_the_margin_is_a_fault_again():
    bench = Bench(margin=0.15).ready()
    bench.kernel.hold()
    held = bench.kernel.command
    bench.pose[0] = 1.9
    bench.kernel.resume()
    np.testing.assert_array_equal(bench.tick(), held)
    assert (bench.kernel.state, bench.kernel.fault) == (HOLD, Fault.ENVELOPE)


def test_a_margin_that_leaves_out_home_is_refused():
    far = dataclasses.replace(
        ROBOT, joints=(dataclasses.replace(TOY.joints[0], home=1.9), *TOY.joints[1:])
    )
    with pytest.raises(
        DeftlyError, match=r"^safety.margin is 0.2: a, at 1.9, has its home outside -0.4 .. 1.4$"
    ):
        Kernel(far, TOY.rate, SafetyConfig(margin=0.2))
    Kernel(
        TOY.robot, TOY.rate, SafetyConfig(margin=0.3)
    )  # the gripper's home is at its limit: it has no margin


def test_followers_of_grippers_grip_and_others_do_not():
    couplings = (dataclasses.replace(ROBOT.couplings[0], of=(("grip", 1.0),)),)
    fingers = dataclasses.replace(ROBOT, couplings=couplings)
    assert Kernel(TOY.robot, TOY.rate)._grips.tolist() == [False, False, True, False]
    assert Kernel(fingers, TOY.rate)._grips.tolist() == [False, False, True, True]


def test_bounds_of_a_slide_are_a_share_of_its_travel():
    joints = tuple(dataclasses.replace(joint, grips=False) for joint in ROBOT.joints)
    slide = dataclasses.replace(ROBOT, joints=joints)
    bench = Bench(slide)
    bench.pose[2] = 0.04 - 0.24 * 0.04
    bench.ready().kernel.start()
    assert bench.kernel.state is ACTIVE
    bench = Bench(slide)
    bench.pose[2] = 0.04 - 0.26 * 0.04
    bench.ready().kernel.start()
    assert bench.kernel.fault is Fault.ENVELOPE


@pytest.mark.parametrize(("joint", "value"), [(0, 2.06), (0, -1.06), (2, 0.0421), (3, 1.2)])
def test_a_measurement_beyond_the_limits_is_a_fault_of_the_sensor(joint, value):
    bench = Bench(jump=1e6).active()
    bench.pose[joint] = value
    bench.tick()
    assert bench.kernel.fault is Fault.SIGNALS_BAD
    assert "is measured beyond its limits" in bench.kernel.reason


def test_a_joint_may_be_pushed_into_its_slack_but_not_sent_there():
    first, *others = TOY.joints
    loose = dataclasses.replace(ROBOT, joints=(dataclasses.replace(first, slack=0.1), *others))
    bench = Bench(loose, jump=1e6, lead=9.0).active()
    bench.pose[0] = first.upper + 0.149
    for _ in range(40):
        command = bench.tick(targets=bench.pose)
    assert bench.kernel.state is ACTIVE
    assert command[0] == first.upper
    bench.pose[0] = first.upper + 0.151
    bench.tick()
    assert bench.kernel.fault is Fault.SIGNALS_BAD


def test_a_measurement_that_leaps_is_a_fault_of_the_sensor():
    bench = Bench().active()
    bench.pose[0] += 0.05 + 3.0 * 3.0 * PERIOD - 0.001
    bench.tick()
    assert bench.kernel.state is ACTIVE
    bench.pose[0] -= 0.05 + 3.0 * 3.0 * PERIOD + 0.001
    bench.tick()
    assert bench.kernel.fault is Fault.SIGNALS_BAD
    assert "a, at 0.498, jumped out of 0.549 .. 1.449" in bench.kernel.reason


def test_a_policy_that_misses_one_answer_is_waited_for():
    bench = Bench(ramp_s=0.0).active()
    held = bench.kernel.command
    np.testing.assert_array_equal(bench.tick(None), held)
    assert bench.kernel.state is ACTIVE
    assert (bench.tick(UPPER) != held).any()


def test_deadlines_count_only_in_a_row():
    bench = Bench().active()
    for periods in (2, 2, 1, 2, 2, 1, 2, 2):
        bench.tick(periods=periods)
    assert bench.kernel.state is ACTIVE
    bench.tick(periods=2)
    assert bench.kernel.fault is Fault.DEADLINES


def test_a_policy_of_another_contract_never_drives():
    bench = Bench()
    bench.kernel.require(TOY)
    bench.ready().kernel.require(OTHER)
    assert (bench.kernel.state, bench.kernel.fault) == (STOP, Fault.CONTRACT)
    assert (
        bench.kernel.reason
        == "the policy was made under another contract: rate is 25.0 there, 20.0 here"
    )
    runner = Runner(
        SimpleNamespace(contract=OTHER, close=lambda: None), Kernel(TOY.robot, TOY.rate), Watched()
    )
    assert runner.step(101.0).command is None


# ------------------------------------------------------------ bounds

BAD = [
    ({f.name: value}, f"safety.{f.name.replace('_', '-')} is ")
    for f in dataclasses.fields(SafetyConfig)
    for value in (float("nan"), float("inf"), -1.0, 1e9, True, "1", None)
    if (f.name, value) != ("lead", None)  # unset
]
SENSELESS = [
    ({"speed": 0.0}, "safety.speed is 0.0, but it must be 0.001 or more and at most 1"),
    ({"margin": 0.5}, "safety.margin is 0.5"),
    ({"misses": 2.5}, "safety.misses is 2.5"),
    ({"start_envelope": 0.0}, "safety.start-envelope"),
    ({"miss_periods": 4.0}, "safety.miss-periods is 4.0, safety.stall-periods is 4.0"),
    ({"miss_periods": 5.0}, "safety.miss-periods is 5.0, safety.stall-periods is 4.0"),
    ({"lead": 0.05}, "safety.moved is 0.05, safety.lead is 0.05: safety.moved must be the smaller"),
]


@pytest.mark.parametrize(("values", "message"), BAD + SENSELESS)
def test_senseless_bounds_are_refused_in_one_line(values, message):
    with pytest.raises(DeftlyError) as caught:
        SafetyConfig(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
