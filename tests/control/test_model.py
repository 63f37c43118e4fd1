"""A model of kernel and loop together: rules are what a robot, its clock, a policy, an operator and a system do.

The loop is the real one, on a clock that only sleeping moves. Every rule that is not an end is one control period; an
end is a signal, an exception or the operator's, in the middle of a period, through `run`.
"""

import contextlib
import json
import os
import signal
import time
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from four_joints import HOME, PERIOD, TOY, Steady, Watched
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deftly.contract import FAULTS
from deftly.control.drivers import DriverError, OtherWriterError, Reading
from deftly.control.inspection import replay
from deftly.control.log import Log, LogBuffer, read
from deftly.control.loop import Runner, Ticker, run
from deftly.control.safety import SAFE, Fault, Kernel, SafetyConfig, SafetyError, State
from deftly.policy.protocol import Decision, PolicyError

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGALRM", "SIGXCPU", "SIGRTMIN")
CFGS = (
    {"start_envelope": 1.0},
    {"start_envelope": 1.0, "margin": 0.05},
    {"start_envelope": 1.0, "margin": 0.2, "speed": 0.3},
    {"start_envelope": 1.0, "ramp_s": 0.0, "lead": 3.0},
    {"approach_s": 0.4, "start_envelope": 1.0},
)
ROBOTS = {
    "holds": TOY.robot,
    "damped": replace(TOY.robot, damps=FAULTS),
    "some": replace(TOY.robot, damps=(Fault.SIGNALS_BAD, Fault.DRIVER, Fault.STALLED)),
    "heavy": replace(
        TOY.robot, joints=tuple(replace(joint, acceleration=20.0) for joint in TOY.joints)
    ),
}
BROKEN = {
    "nan": lambda pose: np.full(4, np.nan),
    "shape": lambda pose: np.zeros(5),
    "leap": lambda pose: pose + np.array([0.9, 0.0, 0.0, 0.0]),
    "beyond": lambda pose: pose + np.array([9.0, 0.0, 0.0, 0.0]),
    "text": lambda pose: ["a", "b", "c", "d"],
    "hand": lambda pose: pose + np.array([0.0, 0.2, 0.0, 0.0]),  # plausible: somebody moves it
}


class Robot(Watched):
    """The fake robot; what it does next is said by `next`, and what it was told is noted with its time."""

    def __init__(self):
        super().__init__()
        self.next = {}
        self.told = []
        self.damped = 0

    def read(self):
        self.calls.append("read")
        self._hit("read")
        reading = super(Watched, self).read()
        position = reading.signals["joint_pos"]
        if "pose" in self.next:
            reading.signals["joint_pos"] = BROKEN[self.next["pose"]](position)
        return Reading(reading.signals, self.time - self.next.get("age", 0.0))

    def write(self, targets):
        self.calls.append("write")
        self._hit("write")
        self.told.append((self.time, targets.copy()))
        super(Watched, self).write(targets)

    def damp(self):
        self.calls.append("damp")
        self._hit("damp")
        self.damped += 1
        super(Watched, self).damp()

    def stop(self):
        self.calls.append("stop")
        self._hit("stop")
        super(Watched, self).stop()

    def _hit(self, where):
        strike = self.next.pop(where, None)
        if isinstance(strike, int):
            os.kill(os.getpid(), strike)
            time.sleep(0.001)  # a signal comes between two instructions
        elif strike is not None:
            raise strike


class Loop(RuleBasedStateMachine):
    """Kernel and loop under everything at once; `reached` counts the states in which a period began."""

    reached: Counter = Counter()

    @initialize(cfg=st.sampled_from(CFGS), robot=st.sampled_from(sorted(ROBOTS)))
    def begin(self, cfg, robot):
        self.cfg = SafetyConfig(**cfg)
        self.contract = replace(TOY, robot=ROBOTS[robot])
        self.robot = Robot()
        self.asked = []
        self.goal = HOME
        self.late = 0.0
        self.now = -np.inf  # when the last period began
        self.pose = None  # how it measured wrongly in that period
        policy = Steady(infer=self.infer)
        policy.contract = self.contract
        self.policy = policy
        self.kernel = Kernel(self.contract.robot, TOY.rate, self.cfg)
        self.log = LogBuffer(self.contract, 600)
        self.runner = Runner(policy, self.kernel, self.robot, self.log)
        self.ticker = Ticker(TOY.rate, lambda: self.robot.time, self.robot.sleep)
        self.runner.keep_time(self.ticker.clock)
        self.count = 0
        self.over = False
        low, high = np.array([(joint.lower, joint.upper) for joint in TOY.joints]).T
        margin = self.cfg.margin * (high - low) * (np.arange(4) != 2)
        self.low, self.high = low + margin, high - margin

    # --------------------------------------------------- what happens in a period

    def infer(self, signals, applied):
        self.asked.append(self.kernel.state)
        self.robot.time += self.late
        self.waited = self.late
        if self.goal is None:
            raise PolicyError("no answer")
        return Decision(np.zeros(3, np.float32), self.goal)

    def period(self, goal=HOME, late=0.0, heard_at=None, skip=0.0, back=0.0, **robot):
        """One control period, and what must hold of it whatever it was."""
        self.goal, self.late, self.robot.next = goal, late, dict(robot)
        self.waited = 0.0  # for the policy, which is not asked in every period
        self.runner.heard_at = heard_at
        self.pose_before, self.pose = self.pose, robot.get("pose")
        state, before = self.kernel.state, self.kernel.command
        self.reached[state] += 1
        wanted = self.kernel.wants_policy
        written, asked, damped = len(self.robot.told), len(self.asked), self.robot.damped
        now = self.ticker.wait() + skip - back
        self.goes_on = now > self.now
        self.now = now
        self.robot.time = max(self.robot.time, self.robot.time + skip)
        tick = self.runner.step(now)
        self.count += 1
        told = self.robot.told[written:]
        assert len(told) <= 1
        assert len(self.asked) - asked <= wanted
        assert all(each is State.ACTIVE for each in self.asked[asked:])
        after = self.kernel.state
        if state in SAFE:  # nothing but the operator leads out, and nothing moves
            assert after is state or (state is State.HOLD and after is State.DAMP)
            assert all(np.array_equal(command, before) for _, command in told)
        if after is State.DAMP or self.kernel.damps:
            assert tick.command is None or "write" in robot
            assert "damp" in self.robot.calls[-2:]
            assert self.robot.damped > damped or "damp" in robot
        if after is not State.ACTIVE:
            assert not told or state is State.INIT or np.array_equal(told[0][1], before)
        for at, command in told:
            self.judge(at, command, before, state, after)
        return tick

    def judge(self, at, command, before, state, after):
        """A command that was written is within every bound, and follows a measurement that is fresh enough."""
        assert np.isfinite(command).all()
        assert (command >= self.low).all()
        assert (command <= self.high).all()
        if state is not State.ACTIVE or after is not State.ACTIVE:
            return
        top = np.array([joint.velocity for joint in TOY.joints])
        assert (
            np.abs(command - before) <= self.cfg.speed * top * PERIOD * (1 + 1e-9) + 1e-12
        ).all()
        # a pose that was off its coupling at the start comes closer to it
        assert abs(off_coupling(command)) <= abs(off_coupling(before)) + 1e-9
        if not np.array_equal(command, before):
            age = self.waited + self.robot.next.get("age", 0.0)
            assert age <= self.cfg.signal_periods * PERIOD + 1e-9

    # --------------------------------------------------- rules: a period each

    def running(self):
        return not self.over

    @precondition(lambda self: self.over)
    @rule()
    def stays_over(self):
        assert self.kernel.state is State.STOP

    @precondition(running)
    @rule(
        goal=st.lists(st.floats(-3, 3), min_size=4, max_size=4).map(np.array),
        ticks=st.integers(1, 25),
    )
    def drives(self, goal, ticks):
        for _ in range(ticks):
            self.period(goal)

    @precondition(running)
    @rule(goal=st.sampled_from([np.full(4, np.nan), np.full(4, 1e300), np.zeros(3), "x"]))
    def decides_badly(self, goal):
        wanted = self.kernel.wants_policy
        self.period(goal)
        if wanted and not (
            isinstance(goal, np.ndarray) and goal.shape == (4,) and goal[0] == 1e300
        ):
            assert self.kernel.fault in (Fault.POLICY_BAD, Fault.POLICY_STALE) or (
                self.kernel.state is State.ACTIVE and isinstance(goal, str)
            )

    @precondition(running)
    @rule(times=st.integers(1, 3))
    def is_silent(self, times):
        was = self.kernel.state is State.ACTIVE and self.kernel.wants_policy
        for _ in range(times):
            self.period(None)
        if was and times >= 2:
            assert self.kernel.state in SAFE

    @precondition(running)
    @rule(periods=st.floats(0.0, 12.0))
    def decides_late(self, periods):
        wanted = self.kernel.wants_policy
        self.period(HOME, late=periods * PERIOD)
        if wanted and periods > self.cfg.signal_periods + 1e-6:
            assert self.kernel.state in SAFE

    @precondition(running)
    @rule(pose=st.sampled_from(sorted(BROKEN)))
    def measures_wrongly(self, pose):
        state = self.kernel.state
        self.period(pose=pose)
        if state in (State.READY, State.ACTIVE) and pose != "hand":
            assert self.kernel.state in SAFE

    @precondition(running)
    @rule(periods=st.floats(0.0, 20.0))
    def measures_late(self, periods):
        state = self.kernel.state
        self.period(age=periods * PERIOD)
        if state in (State.READY, State.ACTIVE) and periods > self.cfg.signal_periods + 1e-6:
            assert self.kernel.state in SAFE

    @precondition(running)
    @rule(seconds=st.sampled_from([0.01, 0.06, 0.3, 5.0, 1e6]))
    def stalls(self, seconds):
        state = self.kernel.state
        self.robot.sleep(seconds)
        self.period()
        if state is State.ACTIVE and seconds > (self.cfg.stall_periods + 1) * PERIOD:
            assert self.kernel.state in SAFE

    @precondition(running)
    @rule(back=st.sampled_from([PERIOD, 1.0, 1e6, np.nan, np.inf]))
    def clock_goes_back(self, back):
        state = self.kernel.state
        self.period(back=back)
        if state in (State.READY, State.ACTIVE):  # a clock that is behind all the time may go on
            assert self.goes_on or self.kernel.fault is Fault.CLOCK

    @precondition(running)
    @rule(
        where=st.sampled_from(["read", "write", "damp"]),
        error=st.sampled_from(
            [DriverError("no answer"), ZeroDivisionError(), OtherWriterError("x")]
        ),
    )
    def driver_fails(self, where, error):
        state = self.kernel.state
        self.period(**{where: error})
        self.robot.next = {}
        if state in (State.READY, State.ACTIVE) and where != "damp":
            assert self.kernel.state in SAFE
            expected = {Fault.WRITER if isinstance(error, OtherWriterError) else Fault.DRIVER}
            if where == "write" and self.pose_before == "leap":  # it has leapt back
                expected.add(Fault.SIGNALS_BAD)
            assert self.kernel.fault in expected

    @precondition(running)
    @rule(ago=st.floats(-0.04, 2.0))
    def hears(self, ago):
        wanted = self.kernel.wants_policy
        self.period(heard_at=self.robot.time + PERIOD - ago)
        if wanted and ago > self.cfg.input_s + 2 * PERIOD:
            assert self.kernel.state in SAFE

    # --------------------------------------------------- rules: the operator

    @precondition(running)
    @rule(verb=st.sampled_from(["start", "start", "resume", "resume", "hold"]))
    def asks(self, verb):
        state = self.kernel.state
        possible = {
            "start": state is State.READY,
            "resume": state in (State.HOLD, State.DAMP),
            "hold": True,
        }[verb]
        if possible:
            getattr(self.runner, verb)()
        else:
            with pytest.raises(SafetyError):
                getattr(self.runner, verb)()
        self.period()

    @precondition(running)
    @rule(ticks=st.integers(3, 30))
    def recovers(self, ticks):
        """What an operator does who wants it to go on."""
        if self.kernel.state in (State.HOLD, State.DAMP):
            self.runner.resume()
        for _ in range(2):
            self.period()
        if self.kernel.state is State.READY:
            self.runner.start()
        for i in range(ticks):
            self.period(HOME + 0.3 * np.sin(0.4 * i))

    # --------------------------------------------------- rules: the end

    @precondition(running)
    @rule(
        name=st.sampled_from(SIGNALS),
        where=st.sampled_from(["read", "write", "stop", "infer", "each"]),
        sure=st.integers(0, 2),
    )
    def is_signalled(self, name, where, sure):
        if sure:
            return
        self.ends(where, int(getattr(signal, name)))

    @precondition(running)
    @rule(
        error=st.sampled_from([KeyboardInterrupt(), SystemExit(3), ValueError("x"), None]),
        where=st.sampled_from(["each", "stop"]),
        sure=st.integers(0, 2),
    )
    def ends_by_itself(self, error, where, sure):
        if sure:
            return
        self.ends("each" if error is None else where, error)

    def ends(self, where, strike):
        """Through `run` to the end: the robot is left safe, once, and the log is kept."""
        self.over = True
        self.goal, self.late, self.robot.next = HOME, 0.0, {}
        held = self.kernel.command
        left = [4]
        if where not in ("each", "infer"):
            self.robot.next = {where: strike}

        def infer(signals, applied):
            if where == "infer":
                struck(strike)
            return Decision(np.zeros(3, np.float32), HOME)

        def each(tick):
            self.count += 1
            left[0] -= 1
            if where == "each":
                struck(strike)
            return left[0] > 0

        def struck(strike):
            if isinstance(strike, int):
                os.kill(os.getpid(), strike)
                time.sleep(0.001)
            elif strike is not None:
                raise strike

        self.policy._infer = infer
        with contextlib.suppress(KeyboardInterrupt, SystemExit, ValueError, DriverError):
            run(self.runner, self.ticker, each)
        assert self.kernel.state is State.STOP
        assert self.robot.calls.count("stop") == 1
        last = self.robot.calls[-2:]
        if self.kernel.damps:
            assert last == ["damp", "stop"]
        elif self.kernel.command is None:
            assert last[-1] == "stop"
            assert held is None
        else:
            assert last == ["write", "stop"]
            np.testing.assert_array_equal(self.robot.told[-1][1], self.kernel.command)
        with pytest.raises(SafetyError, match="has ended"):
            self.runner.step(self.robot.time + 1.0)
        before = list(self.robot.calls)
        self.runner.close()
        assert self.robot.calls == before, "the end comes once"

    @invariant()
    def a_fault_is_latched_and_has_a_reason(self):
        if hasattr(self, "kernel"):
            driven = self.kernel.state in (State.INIT, State.READY, State.ACTIVE)
            assert (self.kernel.fault is Fault.NONE) == driven
            assert "\n" not in self.kernel.reason

    def teardown(self):
        if not hasattr(self, "log"):
            return
        rows = self.log.rows()
        assert abs(len(rows["now"]) - min(self.count, 600)) <= 1, "a row for every period"
        facts = {"safety": json.dumps(asdict(self.cfg))}
        if np.isfinite(rows["now"]).all():
            snapshots = {}
            if self.count < 600:
                difference, _ = replay(
                    Log(self.contract, self.contract.robot, rows, facts, snapshots)
                )
                assert difference == ""
        if not self.over:
            self.runner.close()
            assert self.robot.calls.count("stop") == 1


def off_coupling(command):
    """How far the last joint is from where the first one puts it."""
    return command[3] - (0.25 - 0.5 * command[0])


HEALTH = list(HealthCheck)


@pytest.mark.timeout(240, method="thread")  # else pytest-timeout takes SIGALRM for itself
def test_kernel_and_loop_keep_their_promises_whatever_happens():
    Loop.reached.clear()
    run_state_machine_as_test(
        Loop,
        settings=settings(
            max_examples=80,
            stateful_step_count=30,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=HEALTH,
        ),
    )
    times = Loop.reached
    assert set(times) == set(State) - {State.STOP}
    assert times[State.ACTIVE] > 0.1 * times.total(), "what is never driven proves nothing"


@pytest.mark.slow
def test_and_they_do_for_very_long():
    run_state_machine_as_test(
        Loop,
        settings=settings(
            max_examples=4000,
            stateful_step_count=60,
            deadline=None,
            database=None,
            suppress_health_check=HEALTH,
            print_blob=True,
        ),
    )


def test_the_log_of_such_a_loop_is_saved_and_replays(tmp_path):
    """A log with every kind of end in it: written whole, read back, given to a kernel again."""
    loop = Loop()
    loop.begin(cfg=CFGS[0], robot="some")
    loop.recovers(20)
    loop.measures_wrongly("leap")
    loop.recovers(10)
    loop.driver_fails("write", OtherWriterError("x"))
    loop.recovers(10)
    loop.ends("read", int(signal.SIGTERM))
    facts = {"safety": json.dumps(asdict(loop.cfg))}
    loop.log.save(tmp_path / "run.npz", facts)
    found = read(tmp_path / "run.npz")
    assert len(found) in (loop.count, loop.count + 1)
    assert {"active", "damp", "hold"} <= set(found.rows["state"].tolist())
    assert replay(found)[0] == ""
