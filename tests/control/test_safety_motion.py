import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from four_joints import HOME, PERIOD, ROBOT, TOP, TOY, UPPER, Bench, Watched

from deftly.control.drivers import Reading
from deftly.control.loop import Runner
from deftly.control.safety import Fault, Kernel, SafetyConfig, SafetyError, State
from deftly.errors import DeftlyError
from deftly.tasks import load

INIT, READY, ACTIVE, HOLD, DAMP, STOP = State
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
    step = out - before
    for group in ([0, 3], [1]):  # the gripper is there, and the last joint follows the first
        fractions = np.abs(step / most)[group]
        assert fractions.max() == pytest.approx(1.0, rel=1e-3)  # as far as it may, each group alone
    assert step[3] == pytest.approx(-0.5 * step[0], rel=1e-3, abs=0)  # and they keep their way


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
        bench.ready()
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
    np.testing.assert_allclose(bench.resume(), bench.pose)
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
    np.testing.assert_array_equal(bench.resume(), [held[0], bench.pose[1], 0.0, held[3]])


def test_a_gripper_that_was_closing_when_the_fault_struck_keeps_its_grip():
    bench = Bench(ramp_s=0.0).active()
    for _ in range(6):
        bench.tick(HOME - np.array([0, 0, 0.04, 0]))  # measured still open
    bench.tick(reading=None)
    held = bench.kernel.command
    bench.pose = np.maximum(
        held, [-9, -9, 0.015, -9]
    )  # on the way to its command, it met something
    np.testing.assert_array_equal(bench.resume(), held)


def test_an_arm_that_is_blocked_stops_and_lets_go_when_resumed():
    bench = Bench(ramp_s=0.0, lead=0.2).active()
    while bench.kernel.state is ACTIVE:
        bench.tick([HOME[0], UPPER[1], HOME[2], HOME[3]])
    assert bench.kernel.fault is Fault.FOLLOWING
    assert bench.kernel.reason.startswith("b is at 0, sent to 0.")
    assert np.abs(bench.kernel.command - HOME)[1] <= 0.2 + TOP[1] * PERIOD
    np.testing.assert_allclose(bench.resume()[1], HOME[1])
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
    assert bench.tick() is None
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


# ------------------------------------------------------------ two measurements that agree


@pytest.mark.parametrize("wrong", [0.06, 0.4, 1.5, -1.4])
@pytest.mark.parametrize("joint", [0, 1, 3])
@pytest.mark.parametrize("when", [0, 1])
def test_one_wrong_measurement_after_a_resume_commands_nothing(when, joint, wrong):
    bench = Bench(ramp_s=0.0).active()
    bench.kernel.hold()
    held = bench.kernel.command
    right = bench.pose.copy()
    wrongly = right.copy()
    wrongly[joint] = np.clip(right[joint] + wrong, TOY.joints[joint].lower, TOY.joints[joint].upper)
    bench.kernel.resume()
    for i in range(2):
        bench.pose = wrongly if i == when else right
        assert (bench.tick() is None) == (i == 0)
    assert (bench.kernel.state, bench.kernel.fault) == (HOLD, Fault.SIGNALS_BAD)
    assert f"{TOY.joints[joint].name} was measured at " in bench.kernel.reason
    assert bench.kernel.reason.endswith(": two measurements in a row must agree")
    np.testing.assert_array_equal(bench.kernel.command, held)
    bench.pose = right
    np.testing.assert_array_equal(bench.resume(), held)


@pytest.mark.parametrize("wrong", [0.06, 0.4, 1.4])
def test_one_wrong_measurement_before_the_first_command_commands_nothing(wrong):
    for when in range(3):
        bench = Bench()
        out = []
        for i in range(5):
            bench.pose = HOME + np.array([wrong * (i == when), 0, 0, 0])
            out.append(bench.tick())
            if when < 2 and i <= when:
                assert bench.kernel.state is INIT
        commanded = [command for command in out if command is not None]
        assert commanded
        assert all(np.array_equal(command, HOME) for command in commanded)


def test_the_same_measurement_twice_is_not_two():
    bench = Bench(signal_periods=5.0)
    old = bench.reading()
    for _ in range(3):
        bench.tick(reading=old)
        assert bench.kernel.state is INIT
    bench.tick()
    assert bench.kernel.state is READY


def test_a_bad_measurement_between_two_good_ones_makes_them_no_two():
    bench = Bench()
    for broken in ({}, {"reading": None}, {}, {"joint_pos": np.full(4, np.nan)}, {}):
        bench.tick(**broken)
        assert bench.kernel.state is INIT
    bench.tick()
    assert bench.kernel.state is READY


@pytest.mark.parametrize("future", [100.2, 1e4, 1e300, np.inf, np.nan])
def test_a_time_from_the_far_future_before_the_first_command_is_not_for_ever(future):
    for at in (100.0, future, None):
        bench = Bench()
        bench.kernel.tick(future, None if at is None else Reading(bench.reading().signals, at))
        for _ in range(3):
            bench.tick()
        assert bench.kernel.state is READY


@pytest.mark.parametrize("future", [100.2, 1e4, 1e300, np.inf, np.nan])
def test_nor_is_a_measurement_from_there(future):
    bench = Bench()
    bench.tick(reading=Reading(bench.reading().signals, future))
    bench.ready()
    assert bench.kernel.state is READY


@pytest.mark.parametrize("sag", [0.03, 0.06, 0.2, 0.45])
@pytest.mark.parametrize("start", [False, True])
def test_a_sagging_arm_is_not_lowered_by_each_resume(sag, start):
    bench = Bench(start_envelope=2.0)
    hangs = np.array([0, -sag, 0, 0])
    bench.ready()
    for _ in range(10):
        for _ in range(5):
            bench.pose = bench.kernel.command + hangs
            bench.tick(bench.kernel.command)
        if start and bench.kernel.state is READY:
            bench.kernel.start()
            bench.tick(bench.kernel.command)
        bench.kernel.hold()
        bench.resume()
    assert bench.kernel.command[1] >= HOME[1] - sag - 1e-9


def test_an_arm_that_sags_can_be_started():
    bench = Bench()
    bench.ready()
    bench.pose = bench.kernel.command - np.array([0, 0.1, 0, 0])
    bench.kernel.hold()
    bench.resume()
    bench.pose = bench.kernel.command - np.array([0, 0.1, 0, 0])
    bench.tick()
    bench.kernel.start()
    assert bench.kernel.state is ACTIVE


# ------------------------------------------------------------ couplings


def off_coupling(command):
    """How far the last joint is from where the first one puts it."""
    return abs(command[3] - (0.25 - 0.5 * command[0]))


@pytest.mark.parametrize(
    "cfg", [{}, {"margin": 0.05}, {"margin": 0.2}, {"margin": 0.2, "speed": 0.1}, {"lead": 0.1}]
)
@pytest.mark.parametrize("seed", range(3))
def test_coupled_joints_stay_coupled_under_every_limit(cfg, seed):
    rng = np.random.default_rng(seed)
    # A follower with less room than its leader: limits of followers bind.
    joints = (*ROBOT.joints[:3], dataclasses.replace(ROBOT.joints[3], lower=-0.4, upper=0.4))
    bench = Bench(dataclasses.replace(ROBOT, joints=joints), ramp_s=0.0, **cfg).active()
    moved = 0.0
    for _ in range(60):
        goal = HOME + rng.normal(size=4) * [2, 2, 0.02, 2]  # anything, coupled or not
        for _ in range(5):
            before = bench.kernel.command
            bench.pose = bench.tick(goal)
            assert bench.kernel.state is ACTIVE
            assert off_coupling(bench.pose) < 1e-9
            moved += np.abs(bench.pose - before)[3]
    assert moved > 0.1, "and they do move"


def test_the_wrist_of_the_arm_follows_under_a_margin():
    """The shipped arm's three couplings, at the margin that the page names for a first run."""
    contract = load("jaka-pick-cube")
    robot = contract(contract.Config()).contract().robot
    kernel = Kernel(robot, 20.0, SafetyConfig(margin=0.05, ramp_s=0.0, lead=10.0))
    names, rng = list(robot.joint_names), np.random.default_rng(0)
    lower, upper = np.array([(joint.lower, joint.upper) for joint in robot.joints]).T
    pose, now, goal = np.array(robot.home()), 100.0, np.array(robot.home())
    empty = {signal.name: np.zeros(signal.shape) for signal in robot.signals}
    for tick in range(1500):
        now += 0.05
        if tick % 25 == 0:
            goal = rng.uniform(lower, upper)
        pose = np.array(robot.home()) if kernel.command is None else kernel.command
        kernel.tick(now, Reading(empty | {"joint_pos": pose}, now), goal)
        if kernel.state is READY:
            kernel.start()
        if kernel.state is ACTIVE:
            found = dict(zip(names, kernel.command))
            assert kernel.state is ACTIVE
            for each in robot.couplings:
                wanted = each.offset + sum(ratio * found[leader] for leader, ratio in each.of)
                assert found[each.joint] == pytest.approx(wanted, abs=1e-9)
    assert kernel.state is ACTIVE


def test_joints_that_are_coupled_are_given_up_together():
    bench = Bench(ramp_s=0.0, lead=0.4).active()
    bench.tick(HOME + np.array([0.1, 0, 0, -0.05]))
    bench.kernel.hold()
    bench.pose = np.array([0.9, 0.0, 0.04, -0.2])  # somebody moves both; the follower by less
    np.testing.assert_allclose(bench.resume(), bench.pose)
    assert off_coupling(bench.kernel.command) < 1e-9


@pytest.mark.parametrize("limit", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
def test_a_follower_at_its_limit_stops_its_own_group_alone(limit, margin):
    """The follower has next to no room: its leader waits for it, the other joints get where they should."""
    joints = (*ROBOT.joints[:3], dataclasses.replace(ROBOT.joints[3], lower=-limit, upper=limit))
    robot = dataclasses.replace(ROBOT, joints=joints)
    bench = Bench(robot, ramp_s=0.0, lead=10.0, margin=margin).active()
    goal = np.array([UPPER[0], -1.2, 0.0, 0.0])
    for _ in range(60):
        bench.pose = bench.tick(goal)
    room = limit * (1 - 2 * margin)
    np.testing.assert_allclose(bench.pose, [0.5 + 2 * room, -1.2, 0.0, -room], atol=1e-9)


# ------------------------------------------------------------ a loop that is too slow


@pytest.mark.parametrize("slower", [1.15, 1.3, 1.45, 1.49])
def test_a_loop_that_is_slower_than_its_rate_is_a_fault(slower):
    bench = Bench().active()
    for _ in range(300):
        bench.tick(periods=slower)
    assert (bench.kernel.state, bench.kernel.fault) == (HOLD, Fault.DEADLINES)
    assert "periods behind: it is slower than its 20 Hz" in bench.kernel.reason


def test_a_loop_whose_ticks_come_early_and_late_is_none():
    bench = Bench().active()
    rng = np.random.default_rng(0)
    due = 0.0
    for i in range(2000):
        late = rng.uniform(0.0, 0.45) + (0.5 if i % 50 == 0 else 0.0)
        bench.tick(periods=i + 1 + late - due)
        due = i + 1 + late
        assert bench.kernel.state is ACTIVE
