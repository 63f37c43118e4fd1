import dataclasses
import json
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from four_joints import HOME, LOWER, PERIOD, TOP, TOY, UPPER, Bench, Steady, Watched
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deftly.contract.robot import USUAL_LEAD
from deftly.control.drivers import FAULTS, Reading
from deftly.control.loop import Runner
from deftly.control.safety import Fault, Kernel, SafetyConfig, SafetyError, State

INIT, READY, ACTIVE, HOLD, DAMP, STOP = State
OTHER = dataclasses.replace(TOY, rate=25)


# ------------------------------------------------------------ the transition table


def in_state(name: str) -> Bench:
    """A kernel in one of its states; `resumed` is INIT after a hold, `approach` the first part of ACTIVE.

    In `init` and `resumed` one good measurement came, in `unseen` and `asked` none yet.
    """
    bench = Bench(approach_s=1.0 if name == "approach" else 0.0)
    if name == "unseen":
        return bench
    if name == "init":
        bench.tick()
        return bench
    bench.ready()
    if name in ("active", "approach"):
        bench.kernel.start()
    if name in ("hold", "resumed", "asked"):
        bench.kernel.hold()
    if name in ("resumed", "asked"):
        bench.kernel.resume()
    if name == "resumed":
        bench.tick()
    if name == "stop":
        bench.kernel.stop()
    return bench


def lead(bench):
    if bench.kernel.command is not None:
        bench.kernel._command(bench.kernel.command + np.array([0.6, 0.0, 0.0, 0.0]))
    bench.tick()


def silent(bench):
    bench.tick(None)
    bench.tick(None)


def late(bench):
    for _ in range(3):
        bench.tick(periods=2)


EVENTS = {
    "good": lambda b: b.tick(),
    "start": lambda b: b.kernel.start(),
    "resume": lambda b: b.kernel.resume(),
    "hold": lambda b: b.kernel.hold(),
    "stop": lambda b: b.kernel.stop(),
    Fault.SIGNALS_STALE: lambda b: b.tick(age=10 * PERIOD),
    Fault.SIGNALS_BAD: lambda b: b.tick(joint_pos=np.full(4, np.nan)),
    Fault.POLICY_STALE: silent,
    Fault.POLICY_BAD: lambda b: b.tick(np.full(4, np.nan)),
    Fault.DEADLINES: late,
    Fault.STALLED: lambda b: b.tick(periods=5),
    Fault.CLOCK: lambda b: b.kernel.tick(np.nan, b.reading(), HOME),
    Fault.ENVELOPE: lambda b: (
        setattr(b, "pose", HOME + np.array([0.4, 0, 0, 0])),
        b.tick(),
        b.tick(),
        b.kernel.start(),
    ),
    Fault.FOLLOWING: lead,
    Fault.DRIVER: lambda b: b.tick(reading=None),
    Fault.CONTRACT: lambda b: b.kernel.require(OTHER),
    Fault.OPERATOR: lambda b: b.kernel.hold("a hand is near"),
    Fault.WRITER: lambda b: b.kernel.hold("somebody else", Fault.WRITER),
    # This robot has no such bounds: test_safety_legs.py has the ticks that lead there.
    Fault.LIMIT: lambda b: b.kernel.hold("too hot", Fault.LIMIT),
    Fault.ENCODER: lambda b: b.kernel.hold("stuck", Fault.ENCODER),
    Fault.INPUT_STALE: lambda b: b.kernel.hold("silent", Fault.INPUT_STALE),
}
REFUSED = "refused"
MEASURED = (Fault.SIGNALS_STALE, Fault.SIGNALS_BAD, Fault.CLOCK, Fault.DRIVER)
FOLLOWED = (Fault.POLICY_STALE, Fault.POLICY_BAD)
TIMED = (Fault.DEADLINES, Fault.STALLED, Fault.FOLLOWING)


GROUPS = {
    "measured": MEASURED,
    "followed": FOLLOWED,
    "timed": TIMED,
    "held": (
        *("hold", Fault.OPERATOR, Fault.WRITER),
        *(Fault.LIMIT, Fault.ENCODER, Fault.INPUT_STALE),
    ),
}


def row(good, **changes):
    """What each event leads to: where a good tick leads, but for the changes."""
    table = dict.fromkeys(EVENTS, good) | {
        "start": REFUSED,
        "resume": REFUSED,
        "stop": STOP,
        Fault.CONTRACT: STOP,
    }
    table[Fault.ENVELOPE] = REFUSED
    for names, state in changes.items():
        table |= dict.fromkeys(GROUPS.get(names, (names,)), state)
    return table


TABLE = {
    "unseen": row(INIT, hold=INIT, measured=INIT, held=INIT, envelope=HOLD)
    | {Fault.POLICY_STALE: READY, Fault.DEADLINES: READY},  # of several good measurements
    "init": row(READY, hold=INIT, measured=INIT, held=INIT, envelope=HOLD),
    "ready": row(READY, start=ACTIVE, measured=HOLD, held=HOLD, envelope=HOLD),
    "approach": row(ACTIVE, measured=HOLD, timed=HOLD, held=HOLD),
    "active": row(ACTIVE, measured=HOLD, followed=HOLD, timed=HOLD, held=HOLD),
    "hold": row(HOLD, resume=INIT),
    "asked": row(INIT, measured=HOLD, held=HOLD, envelope=HOLD)
    | {Fault.POLICY_STALE: READY, Fault.DEADLINES: READY},
    "resumed": row(READY, measured=HOLD, held=HOLD, envelope=REFUSED),
    "stop": row(STOP),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", TABLE)
def test_every_event_in_every_state_leads_where_the_table_says(name, event):
    bench, expected = in_state(name), TABLE[name][event]
    before = bench.kernel.state, bench.kernel.fault
    if expected == REFUSED:
        with pytest.raises(SafetyError, match=r"^cannot (start|resume) in state "):
            EVENTS[event](bench)
        assert bench.kernel.state is before[0] or event is Fault.ENVELOPE
        return
    EVENTS[event](bench)
    assert bench.kernel.state is expected
    if expected is HOLD and before[0] is not HOLD:
        assert bench.kernel.fault == (event if event in list(Fault) else Fault.OPERATOR)
        assert bench.kernel.reason
        assert "\n" not in bench.kernel.reason


def test_the_table_is_complete():
    damped = {DAMP}  # a robot that holds on every fault is never there: test_safety_legs.py
    assert set(State) - damped == {State(n) for n in TABLE if n in list(State)}
    assert set(EVENTS) >= set(Fault) - {Fault.NONE}
    assert {e for n in TABLE for e in TABLE[n]} == set(EVENTS)


@pytest.mark.parametrize("event", [e for e in EVENTS if e != "resume"])
def test_nothing_but_the_operators_resume_leaves_hold(event):
    bench = in_state("hold")
    with suppress(SafetyError):
        EVENTS[event](bench)
    assert bench.kernel.state is (STOP if event in ("stop", Fault.CONTRACT) else HOLD)
    assert (bench.kernel.fault, bench.kernel.reason) == (
        Fault.OPERATOR,
        "the operator asked for it",
    )


@pytest.mark.parametrize("first", [*MEASURED, *FOLLOWED, *TIMED])
def test_the_first_fault_stays_the_one_to_read(first):
    bench = in_state("active")
    EVENTS[first](bench)
    reason = bench.kernel.reason
    for event in (*MEASURED, *TIMED, "hold", "stop", Fault.CONTRACT):
        EVENTS[event](bench)
        assert (bench.kernel.fault, bench.kernel.reason) == (first, reason)


def test_a_robot_that_was_never_measured_is_never_commanded():
    bench = Bench()
    for event in ("hold", Fault.DRIVER, Fault.SIGNALS_BAD, Fault.CLOCK, "hold"):
        EVENTS[event](bench)
        assert bench.kernel.state is INIT
        assert bench.kernel.reason
    bench.kernel.stop()
    assert bench.tick() is None


# ------------------------------------------------------------ any bit pattern


def floats(size):
    """Any bits as numbers, in single or double precision."""

    def view(data):
        return np.frombuffer(data[0][: size * np.dtype(data[1]).itemsize], data[1]).copy()

    return st.tuples(
        st.binary(min_size=8 * size, max_size=8 * size), st.sampled_from(("<f4", "<f8"))
    ).map(view)


def ticks():
    """A hostile tick: pose, cube, targets, time step and age; any of them may be ordinary."""
    near = st.lists(st.floats(-0.3, 0.3), min_size=4, max_size=4).map(
        lambda d: HOME + np.array(d) * [1, 1, 0.01, 1]
    )
    targets = st.one_of(
        st.none(), floats(4), floats(3), st.lists(st.floats(), min_size=4, max_size=4).map(np.array)
    )
    step = st.one_of(
        st.just(PERIOD), st.floats(), st.floats(0, 0.1), st.sampled_from([0.0, -1.0, 5e-324, 1e300])
    )
    return st.tuples(
        st.one_of(near, floats(4)), floats(3), targets, step, st.one_of(st.just(0.0), st.floats())
    )


@settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
class Anything(RuleBasedStateMachine):
    """Whatever comes in, and whatever the operator does, the promises about what goes out hold."""

    cfg = SafetyConfig(speed=0.7, margin=0.1, ramp_s=0.2)
    lower, upper = LOWER + 0.1 * (UPPER - LOWER), UPPER - 0.1 * (UPPER - LOWER)

    def __init__(self):
        super().__init__()
        self.lower[2], self.upper[2] = LOWER[2], UPPER[2]  # the gripper
        self.kernel = Kernel(TOY.robot, TOY.rate, self.cfg)
        self.now, self.last, self.out, self.ever = 0.0, -np.inf, None, False
        self.stopped = False

    def do(self, now, reading, targets):
        k, before, held = self.kernel, self.kernel.state, self.kernel.command
        asked = k.wants_policy
        self.out = out = k.tick(now, reading, targets)
        fine = np.isfinite(now) and now > self.last
        elapsed = now - self.last if fine else 0.0
        if fine:
            self.last = now
        elif before is INIT:  # where the kernel forgets a time that was wrong
            self.last = now if np.isfinite(now) else -np.inf
        after = k.state
        moves = {
            INIT: {INIT, READY},
            READY: {READY, HOLD},
            ACTIVE: {ACTIVE, HOLD},
            HOLD: {HOLD},
            STOP: {STOP},
        }
        assert after in moves[before] or (before is INIT and after is HOLD and held is not None)
        assert asked <= (before is ACTIVE)
        assert (out is None) == (after is INIT or k.command is None)
        if out is None:
            return
        assert out.shape == (4,)
        assert out.dtype == np.float64
        assert np.isfinite(out).all()
        assert (out >= self.lower).all()
        assert (out <= self.upper).all()
        if before is INIT and after is READY:
            here = np.clip(
                np.asarray(reading.signals["joint_pos"], np.float64), self.lower, self.upper
            )
            assert ((out == here) | (held is not None and out == held)).all()
            assert np.abs(out - here).max() <= max(self.cfg.lead or USUAL_LEAD, UPPER[2])
        else:
            most = (
                0.7 * TOP * min(elapsed, PERIOD) * (1 + 1e-12) + 1e-15
                if before is after is ACTIVE
                else 0.0
            )
            assert (np.abs(out - held) <= most).all()
        out += 1e6  # what is given away is the caller's

    @rule(tick=ticks())
    def anything(self, tick):
        pose, cube, targets, step, age = tick
        now = self.now + step
        self.do(now, Reading({"joint_pos": pose, "cube": cube}, now - age), targets)
        if np.isfinite(now) and abs(now) < 1e15:
            self.now = max(self.now, now)

    @rule(goal=st.floats(-3, 3), ticks=st.integers(1, 40))
    def ordinary(self, goal, ticks):
        for _ in range(ticks):
            self.now += PERIOD
            pose = HOME if self.kernel.command is None else self.kernel.command
            self.do(
                self.now,
                Reading({"joint_pos": pose, "cube": np.zeros(3)}, self.now),
                np.full(4, goal),
            )

    @rule()
    def fails(self):
        self.now += PERIOD
        self.do(self.now, None, None)

    @precondition(lambda self: self.kernel.state is READY)
    @rule()
    def start(self):
        self.kernel.start()
        assert self.kernel.state in (ACTIVE, HOLD)

    @precondition(lambda self: self.kernel.state is HOLD)
    @rule()
    def resume(self):
        self.kernel.resume()
        self.last = -np.inf

    @rule()
    def hold(self):
        self.kernel.hold()
        assert self.kernel.state in (INIT, HOLD, STOP)

    @rule(sure=st.integers(0, 9))
    def stop(self, sure):
        if sure == 0:
            self.kernel.stop()
            self.stopped = True

    @invariant()
    def stopped_for_ever(self):
        assert (self.kernel.state is STOP) == self.stopped

    @invariant()
    def a_hold_has_a_reason(self):
        assert (self.kernel.fault is Fault.NONE) == (self.kernel.state in (INIT, READY, ACTIVE))
        assert "\n" not in self.kernel.reason


TestAnything = Anything.TestCase

WRONG = {
    "none": None,
    "text": ["1", "2", "3", "4"],
    "words": "home",
    "ragged": [[1], [1, 2], 3, 4],
    "object": np.array([1.0, None, 3.0, 4.0], dtype=object),
    "bool": np.zeros(4, bool),
    "complex": np.zeros(4, complex),
    "time": np.zeros(4, "datetime64[s]"),
    "record": np.zeros(4, [("x", "f8")]),
    "short": np.zeros(3),
    "long": np.zeros(5),
    "empty": np.zeros(0),
    "column": np.zeros((4, 1)),
    "scalar": np.float64(1),
    "huge": [10**400] * 4,
    "longdouble": np.full(4, np.finfo(np.longdouble).max),
    "nan": [0.0, 0.0, np.nan, 0.0],
    "inf": np.array([0, 0, -np.inf, 0], np.float16),
    "hostile": [SimpleNamespace(__array__=1)] * 4,
    "mapping": {0: 1.0},
    "endless": iter(()),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrong", WRONG)
def test_targets_that_are_no_numbers_are_a_fault_of_the_policy(wrong):
    bench = Bench().active()
    held = bench.kernel.command
    if wrong == "none":
        bench.tick(None)
    np.testing.assert_array_equal(bench.tick(WRONG[wrong]), held)
    assert bench.kernel.fault is (Fault.POLICY_STALE if wrong == "none" else Fault.POLICY_BAD)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["joint_pos", "cube"])
@pytest.mark.parametrize("wrong", WRONG)
def test_signals_that_are_no_numbers_are_a_fault_of_the_sensor(wrong, name):
    bench = Bench().active()
    held = bench.kernel.command
    value = WRONG[wrong]
    value = np.zeros(4) if name == "cube" and wrong == "short" else value
    np.testing.assert_array_equal(bench.tick(**{name: value}), held)
    assert bench.kernel.fault is Fault.SIGNALS_BAD


@pytest.mark.parametrize(
    "reading",
    [
        Reading({}, 0.0),
        Reading(None, 0.0),
        ({}, 0.0),
        "x",
        Reading({"joint_pos": HOME}, None),
        Reading({}, "now"),
    ],
)
def test_what_is_no_reading_is_a_fault(reading):
    bench = Bench().active()
    bench.tick(reading=reading)
    assert bench.kernel.fault in (Fault.SIGNALS_BAD, Fault.SIGNALS_STALE)


@pytest.mark.parametrize(
    "now", [np.nan, np.inf, -np.inf, None, "now", 10**400, 0.0, 100.0, -1e300, "the same"]
)
def test_a_clock_that_is_none_or_does_not_go_forward_is_a_fault(now):
    bench = Bench().active()
    bench.kernel.tick(bench.now if now == "the same" else now, bench.reading(), HOME)
    assert (bench.kernel.state, bench.kernel.fault) == (HOLD, Fault.CLOCK)


def test_one_wrong_time_is_not_for_ever():
    bench = Bench().active()
    bench.kernel.tick(1e300, bench.reading(), HOME)
    assert bench.kernel.fault is Fault.STALLED
    bench.kernel.resume()
    bench.ready()
    assert bench.kernel.state is READY


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<f2", "<i8"])
def test_limits_hold_to_the_last_bit_in_every_precision(dtype):
    bench = Bench(ramp_s=0.0, lead=10.0).active()
    for goal in (UPPER, LOWER):
        for _ in range(80):
            out = bench.tick((goal * 1.0000001 + np.sign(goal) * 1e-7).astype(dtype))
            assert (out <= UPPER).all()
            assert (out >= LOWER).all()
    assert bench.kernel.state is ACTIVE


def test_a_margin_is_kept_at_either_end_but_not_by_a_gripper():
    bench = Bench(ramp_s=0.0, margin=0.1, lead=10.0).active()
    # The follower is where its leader puts it.
    for goal, expected in ((LOWER, [-0.7, -1.6, 0.0, 0.6]), (UPPER, [1.7, 1.6, 0.04, -0.6])):
        for _ in range(80):
            out = bench.tick(goal)
        np.testing.assert_allclose(out, expected, atol=1e-12)


def test_nothing_that_came_in_or_went_out_is_kept_by_reference():
    bench = Bench(ramp_s=0.0).active()
    pose, cube, goal = HOME.copy(), np.zeros(3), HOME + 0.01
    bench.now += PERIOD
    out = bench.kernel.tick(bench.now, Reading({"joint_pos": pose, "cube": cube}, bench.now), goal)
    before = bench.kernel.snapshot()
    for array in (
        out,
        pose,
        cube,
        goal,
        *(v for v in bench.kernel.snapshot().values() if isinstance(v, np.ndarray)),
    ):
        array += 1e3
    after = bench.kernel.snapshot()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(ValueError, match="read-only"):
        bench.kernel.command += 1.0


# ------------------------------------------------------------ snapshots


@settings(max_examples=60, deadline=None)
@given(st.lists(ticks(), max_size=25), st.integers(0, 25), st.integers(0, 2**32))
def test_a_kernel_restored_from_a_snapshot_goes_on_bit_for_bit(hostile, at, seed):
    rng = np.random.default_rng(seed)
    first, second, bench = Kernel(TOY.robot, TOY.rate), Kernel(TOY.robot, TOY.rate), Bench()
    events = [
        getattr(Kernel, name)
        for name in rng.choice(["start", "resume", "hold"], 50, p=[0.6, 0.3, 0.1])
    ]

    def go(kernel, i, now):
        if (events[i] is Kernel.start and kernel.state is READY) or (
            events[i] is Kernel.resume and kernel.state is HOLD
        ):
            events[i](kernel)
        if i % 2 and i // 2 < len(hostile):
            pose, cube, targets, _, _ = hostile[i // 2]
            return kernel.tick(now, Reading({"joint_pos": pose, "cube": cube}, now), targets)
        return kernel.tick(
            now, Reading({"joint_pos": HOME, "cube": np.zeros(3)}, now), HOME + rng_goal[i]
        )

    rng_goal = rng.normal(size=(50, 4))
    for i in range(50):
        bench.now += float(rng.choice([PERIOD, PERIOD, 2 * PERIOD]))
        if i == at:
            second.restore(first.snapshot())
        out = go(first, i, bench.now)
        if i >= at:
            np.testing.assert_array_equal(out, go(second, i, bench.now))
            one, two = first.snapshot(), second.snapshot()
            assert list(one) == list(two)
            assert all(type(one[k]) is type(two[k]) for k in one)
            assert all(np.array_equal(one[k], two[k], equal_nan=k == "command") for k in one)


@pytest.mark.parametrize(
    "change",
    [
        {"state": "flying"},
        {"fault": "none of them"},
        {"now": float("nan")},
        {"misses": float("inf")},
        {"active_s": "x"},
        {"pose": np.zeros(3)},
        {"rest": np.full(4, np.inf)},
        {"command": np.full(4, 100.0)},
        {"command": np.full(4, np.nan)},
        {"command": np.zeros(2)},
        {"origin": None},
    ],
)
def test_what_is_no_snapshot_is_refused_and_changes_nothing(change):
    bench = Bench().active()
    before = json.dumps(bench.kernel.snapshot(), default=np.ndarray.tolist)
    with pytest.raises(SafetyError, match=r"^no snapshot of this kernel: .+$"):
        bench.kernel.restore(bench.kernel.snapshot() | change)
    with pytest.raises(SafetyError, match="no snapshot"):
        bench.kernel.restore({})
    assert json.dumps(bench.kernel.snapshot(), default=np.ndarray.tolist) == before


# ------------------------------------------------------------ two control periods

SEEN = {
    "late": {Fault.SIGNALS_STALE},
    "frozen": {Fault.SIGNALS_STALE},
    "missing": {Fault.SIGNALS_BAD},
    "nan": {Fault.SIGNALS_BAD},
    "shape": {Fault.SIGNALS_BAD},
    "beyond": {Fault.SIGNALS_BAD},
    "jump": {Fault.SIGNALS_BAD},
    "read": {Fault.DRIVER},
    "write": {Fault.DRIVER},
    "slow": {Fault.STALLED, Fault.SIGNALS_STALE},
    "crash": {Fault.DRIVER},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_robot_leads_to_the_safe_command_within_two_periods(fault):
    driver = Watched(fault, at=20)
    runner = Runner(
        Steady(lambda s, a: (np.zeros(3), np.asarray(a) + 0.01)),
        Kernel(TOY.robot, TOY.rate),
        driver,
    )
    held = None
    for i in range(1, 40):
        driver.time += PERIOD
        tick = runner.step(driver.time)
        if i == 2:
            runner.start()
        if i <= 20:
            assert tick.state is (ACTIVE if i > 2 else (INIT, READY)[i - 1])
        if i >= 22:
            assert tick.state is HOLD
            assert runner.kernel.fault in SEEN[fault]
            held = tick.command if held is None else held
            np.testing.assert_array_equal(tick.command, held)
    assert i == 39


@pytest.mark.parametrize("answer", ["none", "bad"])
def test_a_policy_that_fails_leads_to_the_safe_command_within_two_periods(answer):
    bench = Bench().active()
    for _ in range(10):
        bench.tick(UPPER)
        bench.pose = bench.kernel.command.copy()
    for _ in range(2):
        held = bench.kernel.command
        bench.tick(None if answer == "none" else np.full(4, np.nan))
    assert bench.kernel.state is HOLD
    np.testing.assert_array_equal(bench.tick(UPPER), held)
