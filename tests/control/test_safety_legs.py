"""The safety kernel of a robot that can fall: what it is damped on, and what it refuses."""

import dataclasses
import itertools
from contextlib import suppress

import numpy as np
import pytest
from legged import CONTRACT, HALTS, LEGS, RATE, Stand, measured, tilted

from deftly.contract import FAULTS, Coupling, Fault, Limit
from deftly.control.drivers import Reading
from deftly.control.safety import SafetyError, State

INIT, READY, ACTIVE, HOLD, DAMP, STOP = State
PERIOD = 1 / RATE
OTHER = dataclasses.replace(CONTRACT, rate=25)
GENTLE = dataclasses.replace(LEGS, damps=(Fault.LIMIT, Fault.SIGNALS_BAD, Fault.DRIVER))
"""Damped on some faults, among them some that strike in a hold."""


def several(count, **broken):
    def event(stand):
        for _ in range(count):
            stand.tick(**broken)

    return event


def lead(stand):
    command = stand.kernel.command
    if command is not None:
        stand.tick(joint_pos=command + np.array([0.33, 0, 0, 0]))
    else:
        stand.tick()


def stuck(stand):
    """The first joint gives the same number, while its command moves by more than it may."""
    for i in range(4):
        pose = np.array([0.0, 1e-3 * i, 0, 0])
        stand.tick(targets=np.array([0.3, 0, 0, 0]), joint_pos=pose)


EVENTS = {
    "good": lambda s: s.tick(),
    "start": lambda s: s.kernel.start(),
    "resume": lambda s: s.kernel.resume(),
    "hold": lambda s: s.kernel.hold(),
    "stop": lambda s: s.kernel.stop(),
    Fault.SIGNALS_STALE: lambda s: s.tick(reading=Reading(measured(), s.now - 1.0)),
    Fault.SIGNALS_BAD: lambda s: s.tick(gyro=[np.nan, 0, 0]),
    Fault.POLICY_STALE: lambda s: s.kernel.hold("silent", Fault.POLICY_STALE),
    Fault.POLICY_BAD: lambda s: s.tick(np.full(4, np.nan)),
    Fault.INPUT_STALE: lambda s: s.tick(heard_at=s.now - 1.0),
    Fault.DEADLINES: several(3, periods=2),
    Fault.STALLED: lambda s: s.tick(periods=5),
    Fault.CLOCK: lambda s: s.kernel.tick(np.nan, Reading(measured(), s.now), np.zeros(4)),
    Fault.ENVELOPE: lambda s: s.kernel.hold("far from home", Fault.ENVELOPE),
    Fault.FOLLOWING: lead,
    Fault.ENCODER: stuck,
    Fault.LIMIT: lambda s: s.tick(orientation=tilted(1.2)),
    Fault.WRITER: lambda s: s.kernel.hold("another", Fault.WRITER),
    Fault.DRIVER: lambda s: s.tick(reading=None),
    Fault.CONTRACT: lambda s: s.kernel.require(OTHER),
    Fault.OPERATOR: lambda s: s.kernel.hold("a hand is near"),
}
ALWAYS = (
    *(Fault.SIGNALS_STALE, Fault.SIGNALS_BAD, Fault.CLOCK, Fault.LIMIT, Fault.DRIVER),
    *(Fault.POLICY_STALE, Fault.ENVELOPE, Fault.WRITER, Fault.OPERATOR, "hold"),
)
"""Judged in every state in which anything is."""
DRIVEN = (
    *(Fault.POLICY_BAD, Fault.INPUT_STALE, Fault.DEADLINES, Fault.STALLED),
    *(Fault.FOLLOWING, Fault.ENCODER),
)
"""Judged while the policy drives."""
STARTS = ("unseen", "init", "ready", "active", "hold", "damp", "held-again", "damped-again", "stop")


def in_state(name, robot):
    stand = Stand(robot)
    if name == "unseen":
        return stand
    if name == "init":
        stand.tick()
        return stand
    stand.ready()
    if name == "active":
        stand.kernel.start()
        stand.tick()
    if name in ("hold", "held-again"):
        # A fault that does not damp this robot, or else a hold that is forced on it.
        stand.kernel.state = HOLD
        stand.kernel.fault = Fault.ENVELOPE
        stand.kernel.reason = "far from home"
    if name in ("damp", "damped-again"):
        stand.kernel.state = DAMP
        stand.kernel.fault = Fault.LIMIT
        stand.kernel.reason = "it fell"
        stand.kernel._damped = True
    if name in ("held-again", "damped-again"):
        stand.kernel.resume()
    if name == "stop":
        stand.kernel.stop("the end", Fault.CONTRACT)
    return stand


def expected(name, event, robot):
    """Where an event leads, by the words of docs/safety.md; None: it is refused."""
    fault = Fault.OPERATOR if event == "hold" else event
    safe = DAMP if fault in robot.damps else HOLD
    if name == "stop" or event in ("stop", Fault.CONTRACT):
        return STOP if event not in ("start", "resume") else None
    if event == "start":
        return ACTIVE if name == "ready" else None
    if event == "resume":
        return INIT if name in ("hold", "damp") else None
    if name == "damp":
        return DAMP
    if name == "hold":
        return DAMP if event in ALWAYS and safe is DAMP else HOLD
    if name in ("held-again", "damped-again") and event in ALWAYS:
        return DAMP if name == "damped-again" else safe
    if name in ("unseen", "init") and event in ALWAYS:
        return INIT
    if name == "ready" and event in ALWAYS:
        return safe
    if name == "active" and event in (*ALWAYS, *DRIVEN):
        return safe
    if name in ("unseen", "held-again", "damped-again"):
        counts = {Fault.DEADLINES: 3, Fault.ENCODER: 4}  # of measurements, and good ones
        return READY if counts.get(event, 1) > 1 else INIT
    return {"init": READY, "ready": READY, "active": ACTIVE}[name]


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("robot", [LEGS, HALTS, GENTLE], ids=["all", "some", "few"])
def test_every_event_in_every_state_leads_where_the_robot_says(robot, name, event):
    stand = in_state(name, robot)
    wanted = expected(name, event, robot)
    before = stand.kernel.state
    if wanted is None:
        with pytest.raises(SafetyError, match=r"^cannot (start|resume) in state "):
            EVENTS[event](stand)
        assert stand.kernel.state is before
        return
    EVENTS[event](stand)
    assert stand.kernel.state is wanted
    if wanted is DAMP:
        assert stand.kernel.damps
        assert stand.tick() is None
        assert stand.kernel.state is DAMP
    if wanted is HOLD and before is not HOLD:
        held = stand.tick()
        np.testing.assert_array_equal(stand.tick(), held)
    if wanted in (HOLD, DAMP) and before not in (HOLD, DAMP):
        assert stand.kernel.fault == (event if event in list(Fault) else Fault.OPERATOR)


def test_the_table_of_legs_is_complete():
    assert set(EVENTS) >= set(FAULTS)
    assert {*ALWAYS, *DRIVEN, Fault.CONTRACT} - {"hold"} == set(FAULTS)
    reached = {
        expected(name, event, robot)
        for name, event, robot in itertools.product(STARTS, EVENTS, (LEGS, HALTS, GENTLE))
    }
    assert reached == {*State, None}


# ------------------------------------------------------------ damped


def test_nothing_is_commanded_while_it_is_damped_and_the_measured_pose_after():
    stand = Stand().active()
    for _ in range(20):
        stand.tick(np.array([0.5, -0.5, 0.5, -0.5]))
    stand.tick(orientation=tilted(1.5))
    assert stand.kernel.state is DAMP
    lying = np.array([-0.4, 0.3, 0.1, -0.6])
    for _ in range(5):
        assert stand.tick(joint_pos=lying) is None
    stand.kernel.resume()
    assert stand.tick(joint_pos=lying) is None
    assert stand.kernel.damps, "until its pose is known, it stays damped"
    np.testing.assert_array_equal(stand.tick(joint_pos=lying), lying)
    assert (stand.kernel.state, stand.kernel.damps) == (READY, False)


def test_a_robot_that_lies_is_refused_before_it_starts_and_after_a_fall():
    stand = Stand()
    for _ in range(5):
        assert stand.tick(orientation=tilted(1.5)) is None
    assert stand.kernel.state is INIT
    assert stand.kernel.reason == "the tilt of orientation is 1.5, its limits are 0 .. 0.9 rad"
    stand = Stand().active()
    stand.tick(orientation=tilted(1.5))
    for _ in range(3):
        stand.kernel.resume()
        stand.tick(orientation=tilted(1.5))
        assert (stand.kernel.state, stand.kernel.fault) == (DAMP, Fault.LIMIT)
    with pytest.raises(SafetyError, match="cannot start in state damp"):
        stand.kernel.start()


def test_a_robot_that_holds_and_then_falls_is_damped_and_says_why():
    stand = Stand(HALTS).active()
    stand.kernel.hold()
    assert (stand.kernel.state, stand.kernel.fault) == (HOLD, Fault.OPERATOR)
    stand.tick(orientation=tilted(1.0))
    assert (stand.kernel.state, stand.kernel.fault) == (DAMP, Fault.LIMIT)
    stand.tick(voltage=[8.0])
    assert "tilt" in stand.kernel.reason, "the first that damped it stays the one to read"


def test_a_hold_does_not_mistake_slow_motion_for_a_leap():
    """Joints that give way for a while: each measurement is judged by the one before, not by the fault's."""
    stand = Stand(HALTS).active()
    stand.kernel.hold()
    for i in range(100):
        stand.tick(joint_pos=np.array([0.007 * i, 0, 0, 0]))
    assert stand.kernel.state is HOLD


def test_the_end_of_the_loop_damps_what_the_operator_damps_and_holds_the_rest():
    for robot, damps in ((LEGS, True), (HALTS, False)):
        stand = Stand(robot).active()
        stand.kernel.stop("the loop ended")
        assert stand.kernel.damps is damps
        assert (stand.tick() is None) is damps
    stand = Stand(HALTS).active()
    stand.tick(orientation=tilted(1.0))
    stand.kernel.stop("the loop ended")
    assert stand.kernel.damps, "what was damped is not held again"


def test_a_robot_that_was_never_commanded_is_not_damped_either():
    stand = Stand()
    stand.tick(orientation=tilted(1.5))
    stand.kernel.stop()
    assert not stand.kernel.damps
    assert stand.tick() is None


# ------------------------------------------------------------ limits of signals

BEYOND = {
    "tilt": ({"orientation": tilted(0.91)}, "the tilt of orientation is 0.91, its limits are 0"),
    "tilt sideways": ({"orientation": tilted(-0.95, (0, 1, 0))}, "the tilt of orientation is 0.95"),
    "upside down": ({"orientation": [0, 1, 0, 0]}, "the tilt of orientation is 3.142"),
    "no orientation": ({"orientation": np.zeros(4)}, "the tilt of orientation is nan"),
    "spin": ({"gyro": [9, 9, 9]}, "the norm of gyro is 15.59, its limits are 0 .. 15 rad/s"),
    "huge": ({"gyro": [1e200, 0, 1e200]}, "the norm of gyro is 1.414e+200"),
    "undervoltage": ({"voltage": [9.5]}, "voltage is 9.5, its limits are 9.6 .. 13 V"),
    "overvoltage": ({"voltage": [14.8]}, "voltage is 14.8"),
    "hot": ({"temperature": [20, 20, 71, 20]}, "temperature[2] is 71, its limits are -10 .. 70 C"),
    "torque": ({"torque": [0, -4.1, 0, 0]}, "torque[1] is -4.1, its limits are -4 .. 4 N m"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", BEYOND)
def test_what_is_beyond_a_limit_damps_it_in_the_same_period(what):
    signals, said = BEYOND[what]
    stand = Stand().active()
    assert stand.tick(**signals) is None
    assert (stand.kernel.state, stand.kernel.fault) == (DAMP, Fault.LIMIT)
    assert stand.kernel.reason.startswith(said)


WITHIN = [
    {"orientation": tilted(0.89)},
    {"orientation": -tilted(0.5)},  # the same orientation
    {"orientation": [np.cos(1.0), 0, 0, np.sin(1.0)]},  # turned about the vertical: upright
    {"orientation": 1.01 * tilted(0.5)},  # a sensor's length is not exact
    {"gyro": [8.6, 8.6, 8.6]},
    {"voltage": [9.6]},
    {"temperature": np.full(4, 70.0)},
]


@pytest.mark.parametrize("signals", WITHIN)
def test_what_is_within_its_limits_is_none(signals):
    stand = Stand().active()
    stand.tick(**signals)
    assert stand.kernel.state is ACTIVE


def test_a_limit_of_one_element_is_of_that_alone():
    limits = (Limit("temperature", -10.0, 70.0, element=1),)
    stand = Stand(dataclasses.replace(LEGS, limits=limits)).active()
    stand.tick(temperature=[90, 20, 90, 90])
    assert stand.kernel.state is ACTIVE
    stand.tick(temperature=[20, 90, 20, 20])
    assert stand.kernel.reason.startswith("temperature[1] is 90")


# ------------------------------------------------------------ operator, encoders, tracking


def test_an_operator_who_is_not_heard_any_more_is_a_fault_within_two_periods():
    stand = Stand(input_s=0.2).active()
    heard = stand.now
    while stand.kernel.state is ACTIVE:
        stand.tick(heard_at=heard)
    assert stand.kernel.fault is Fault.INPUT_STALE
    assert 0.2 < stand.now - heard <= 0.2 + 2 * PERIOD
    assert "the operator was heard 220 ms ago, at most 200 are allowed" in stand.kernel.reason


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e300, "now", 10.9])
def test_a_heartbeat_from_no_time_or_the_future_is_none(wrong):
    stand = Stand().active()
    stand.tick(heard_at=wrong)
    assert stand.kernel.fault is Fault.INPUT_STALE


def test_who_never_said_anything_is_not_missed():
    stand = Stand(input_s=0.05).active()
    for _ in range(50):
        stand.tick(heard_at=None)
    assert stand.kernel.state is ACTIVE


def test_a_heartbeat_is_not_asked_for_before_the_policy_drives():
    stand = Stand(approach_s=1.0).ready()
    stand.kernel.start()
    for _ in range(10):
        stand.tick(heard_at=0.0)
    assert stand.kernel.state is ACTIVE


def test_an_encoder_that_is_stuck_is_a_fault_before_its_joint_is_a_lead_away():
    stand = Stand().active()
    pose = np.zeros(4)
    while stand.kernel.state is ACTIVE:
        stand.tick(np.array([0.8, 0.1, 0, 0]), joint_pos=pose)
        before = pose
        pose = np.clip(stand.kernel.command + stand.rng.normal(0, 1e-3, 4), -0.8, 0.8)
        pose[0] = before[0]
    assert stand.kernel.fault is Fault.ENCODER
    assert "left_hip is measured at 0 all along while its command moved by" in stand.kernel.reason
    assert np.abs(stand.kernel.command[0]) < 0.1 + 6.0 * PERIOD


def test_a_joint_that_stands_still_because_it_should_has_no_stuck_encoder():
    stand = Stand().active()
    for _ in range(200):
        stand.tick(np.zeros(4), joint_pos=np.zeros(4))
    assert stand.kernel.state is ACTIVE


def test_the_joints_own_lead_is_the_bound_unless_the_user_gives_one():
    for cfg, lag, bears in (({}, 0.29, True), ({}, 0.32, False), ({"lead": 0.6}, 0.5, True)):
        robot = dataclasses.replace(
            LEGS, joints=tuple(dataclasses.replace(j, frozen=0.0) for j in LEGS.joints)
        )
        stand = Stand(robot, **cfg).active()
        for _ in range(60):
            command = stand.kernel.command
            behind = np.array([max(0.0, command[0] - lag), *command[1:]])
            stand.tick(np.array([0.75, 0, 0, 0]), joint_pos=behind)
        assert (stand.kernel.state is ACTIVE) is bears


# ------------------------------------------------------------ acceleration


def test_a_command_keeps_to_its_acceleration_and_stops_before_its_limit():
    rng = np.random.default_rng(0)
    for seed in range(20):
        stand = Stand(lead=5.0).active()
        bound = np.array([joint.acceleration for joint in LEGS.joints])
        before, speed = stand.kernel.command, stand.kernel._velocity
        goal = np.zeros(4)
        fastest = 0.0
        for i in range(200):
            if i % rng.integers(1, 12) == 0:
                goal = rng.choice([-9.0, 9.0, 0.3, -0.3], 4) * rng.random(4)
            stand.tick(goal)
            assert stand.kernel.state is ACTIVE
            command = stand.kernel.command
            after = (command - before) / PERIOD
            assert (np.abs(after - speed) <= bound * PERIOD + 1e-6).all()
            assert (np.abs(after) <= 6.0 + 1e-9).all()
            assert (np.abs(command) <= 0.8).all()
            before, speed = command, after
            fastest = max(fastest, np.abs(after).max())
        assert fastest > 3.0, seed


def test_a_constant_goal_is_reached_and_not_passed():
    stand = Stand(lead=5.0).active()
    goal = np.array([0.7, -0.3, 0.05, 0.0])
    for _ in range(40):
        stand.tick(goal)
        assert (np.abs(stand.kernel.command) <= np.abs(goal) + 1e-9).all()
    np.testing.assert_allclose(stand.kernel.command, goal, atol=1e-9)


def test_a_start_begins_from_rest():
    stand = Stand(HALTS, lead=5.0).active()
    for _ in range(10):
        stand.tick(np.full(4, 0.8))
    stand.kernel.hold()
    stand.kernel.resume()
    stand.ready()
    before = stand.kernel.command
    stand.kernel.start()
    stand.tick(np.full(4, -0.8))
    assert np.abs(stand.kernel.command - before).max() <= 120 * PERIOD * PERIOD + 1e-9


def test_a_snapshot_goes_on_bit_for_bit_in_every_state_of_legs():
    for name, event in itertools.product(STARTS, EVENTS):
        first = in_state(name, HALTS)
        second = Stand(HALTS)
        second.kernel.restore(first.kernel.snapshot())
        second.now = first.now
        second.rng = np.random.default_rng(1)
        first.rng = np.random.default_rng(1)
        for stand in (first, second):
            with suppress(SafetyError):
                EVENTS[event](stand)
            stand.tick(np.full(4, 0.3))
        one, two = first.kernel.snapshot(), second.kernel.snapshot()
        assert all(np.array_equal(one[k], two[k], equal_nan=k == "command") for k in one), (
            name,
            event,
        )


def test_joints_that_are_coupled_stay_so_under_their_accelerations():
    """A leader of little acceleration, a follower of less and with less room, and one joint alone."""
    hip, knee, other, alone = LEGS.joints
    joints = (
        dataclasses.replace(hip, acceleration=60.0, frozen=0.0),
        dataclasses.replace(knee, acceleration=30.0, lower=-0.5, upper=0.5, frozen=0.0),
        dataclasses.replace(other, acceleration=0.0, frozen=0.0),
        dataclasses.replace(alone, frozen=0.0),
    )
    couplings = (Coupling("left_knee", (("left_hip", -1.0), ("right_hip", 0.5)), 0.1),)
    robot = dataclasses.replace(LEGS, joints=joints, couplings=couplings)
    bounds = np.array([60.0, 30.0, np.inf, 120.0])
    rng = np.random.default_rng(1)
    stand = Stand(robot, lead=5.0, margin=0.05)
    stand.tick(joint_pos=[0.1, 0.0, 0.0, 0.0])
    stand.tick(joint_pos=[0.1, 0.0, 0.0, 0.0])
    stand.kernel.start()
    goal, moved = np.zeros(4), np.zeros(4)
    before, speed = stand.kernel.command, np.zeros(4)
    for i in range(3000):
        if i % 10 == 0:
            goal = rng.uniform(-1.5, 1.5, 4)
        stand.tick(goal)
        assert stand.kernel.state is ACTIVE
        command = stand.kernel.command
        assert abs(command[1] - (0.1 - command[0] + 0.5 * command[2])) < 1e-9
        assert abs(command[0]) <= 0.72 + 1e-9
        assert abs(command[1]) <= 0.45 + 1e-9
        after = (command - before) / PERIOD
        assert (np.abs(after - speed) <= bounds * PERIOD + 1e-6).all()
        moved += np.abs(command - before)
        before, speed = command, after
    assert (moved > 1.0).all(), "and all of them do move"
