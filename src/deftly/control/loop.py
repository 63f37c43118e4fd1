"""The control loop: read, decide, pass the safety kernel, write, at a fixed rate; the same for every robot.

`Runner.step` is one control period, whoever keeps the time: `run` on the monotonic clock for hardware, a simulation on
its own. In real time the policy decides in a thread of its own, and one that takes longer than a control period, or
hangs, gave no answer: the loop goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from deftly.control.drivers import Driver, DriverError, OtherWriterError, Reading
from deftly.control.log import LogBuffer
from deftly.control.operator.words import Words
from deftly.control.safety import Fault, Kernel, Missing, SafetyError, State
from deftly.control.signals import ending_on_signals
from deftly.control.worker import Worker
from deftly.policy.protocol import Decision, OneRobot, Policy, PolicyError

Clock = Callable[[], float]
IN_TICK = 0.9
"""How far a patient clock goes in one tick, control periods: the rest of it is for the next one to begin."""
LATE = 0.1
"""How late a tick may be without that a patient clock stands still for it, control periods: no sleep is exact."""
HANGS_S = 2.0
"""What takes longer than this in one tick hangs, on a computer however slow, s."""
KEPT_UP = 0.98
"""Fraction of real time from which on a simulated robot kept up with it."""
CANCEL_S = 1.0
"""Longest wait for a network that hangs to end when it is told to; the robot was let go of before."""


class Tick(NamedTuple):
    """What one control period did."""

    state: State
    reading: Reading | None
    decision: Decision | None
    command: np.ndarray | None
    """What was written, (num_joints,) float64; None if nothing."""


class Runner:
    """Policy, safety kernel and driver of one robot, tied together. Use as a context: leaving it is always safe.

    Args:
        policy: what decides; asked only while the kernel is ACTIVE.
        kernel: what may be commanded. It stops at once if the policy was made for another robot or rate.
        driver: the robot.
        log: where each tick is kept.
    """

    def __init__(
        self, policy: Policy, kernel: Kernel, driver: Driver, log: LogBuffer | None = None
    ):
        self.policy = OneRobot(policy)
        self.kernel = kernel
        self.driver = driver
        self.log = log
        self.episode = 0
        """Number written into the log."""
        self.problem = ""
        """What the driver or the policy said last when it failed."""
        self.refused = ""
        """What the driver said if it did not take the safe target when the loop was closed: look after the robot."""
        self.inputs: dict[str, Any] = {}
        """What the operator says to the policy, by name of the contract's inputs; a missing one takes its default."""
        self.heard_at: float | None = None
        """When the operator said that last, s on the clock of the readings; None: nobody does, defaults hold."""
        self.clock: Clock | None = None
        """What says when a command is written, s; None: it is written when its period begins, as in a simulation."""
        self._words = Words(policy.contract)
        self._worker: Worker | None = None
        self._refusal = Fault.NONE  # why the robot did not do what it was told last
        self._events: list[str] = []
        self._fresh = True
        self._closed = False
        kernel.require(policy.contract)
        if log is not None:
            log.keep(kernel.snapshot())

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """The operator lets the policy drive. Raises SafetyError unless READY."""
        self.kernel.start()
        self._note("start")
        self._fresh = True

    def resume(self) -> None:
        """The operator clears a fault. Raises SafetyError unless in HOLD."""
        self.kernel.resume()
        self._note("resume")

    def hold(self) -> None:
        """The operator makes the robot stand still."""
        self.kernel.hold()
        self._note("hold")

    def hear(self, at: float, /, **inputs: Any) -> None:
        """The operator says something, or that all is as before, at a time, s: the policy may act on it for a while.

        What is beyond the trained range is clipped, and said once (`notes`). Raises OperatorError for what is no input.
        """
        self.inputs = {**self.inputs, **self._words.checked(inputs)}  # others may read the old one
        self.heard_at = at

    def notes(self) -> list[str]:
        """Lines for people of what the operator said, since the last call."""
        return self._words.take_notes()

    def keep_time(self, clock: Clock) -> None:
        """Judge ages by a clock, s; on the real one, the policy has a control period from the start of its tick."""
        self.clock = clock
        in_real_time = clock is time.monotonic or isinstance(clock, PatientClock)
        if in_real_time and self._worker is None:
            self._worker = Worker()

    def step(self, now: float) -> Tick:
        """One control period at `now`, s on the clock of the readings.

        Faults are the kernel's; nothing is raised but SafetyError after `close`.
        """
        if self._closed:
            raise SafetyError("this control loop has ended: the robot was let go of")
        began = time.perf_counter()
        measured = self._read()
        reading = measured if isinstance(measured, Reading) else None
        decision = None
        inferred = math.nan
        if reading is not None and self.kernel.wants_policy:
            decision = self._decide(reading, now)
            inferred = 1e3 * (time.perf_counter() - began)
        writes_at = None if self.clock is None else max(now, self.clock())
        targets = decision and decision.targets
        command = self.kernel.tick(now, measured, targets, writes_at, self.heard_at)
        written = self._command(command)
        took = 1e3 * (time.perf_counter() - began)
        timing = {"now": now, "infer_ms": inferred, "tick_ms": took, "writes_at": writes_at}
        timing["heard_at"] = self.heard_at
        timing["read_fault"] = measured.fault if isinstance(measured, Missing) else ""
        timing["write_fault"] = "" if written else self._refusal
        self._keep(reading, decision, command=command, written=written, **timing)
        return Tick(self.kernel.state, reading, decision, command)

    def close(self) -> None:
        """Command the safe target once more, and let go of robot and policy.

        Raises DriverError if the driver's `stop` failed: the robot may not be safe.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.kernel.stop("the loop ended")
            if not self._command(self.kernel.command):
                self.refused = self.problem
        finally:
            try:
                self.driver.stop()
            except Exception as error:
                self._blame("stop", error)
                unsafe = f"{self.problem}: the robot was not let go of, look after it"
                raise DriverError(unsafe) from error
            finally:
                self._let_go_of_policy()

    def _read(self) -> Reading | Missing | None:
        try:
            signals, at = self.driver.read()
            own = {str(name): _own(value) for name, value in signals.items()}
            reading = Reading(own, float(at))
            if not math.isfinite(reading.at):
                raise DriverError(f"measured at {reading.at} s, which is no time")
        except OtherWriterError as error:
            self._blame("read", error)
            return Missing(Fault.WRITER, self.problem)
        except Exception as error:
            self._blame("read", error)
            return None
        return reading

    def _command(self, command: np.ndarray | None) -> bool:
        """Write a command, if there is one, or damp the motors; whether the robot took it."""
        if self.kernel.damps:
            return self._damp()
        return command is None or self._write(command)

    def _write(self, command: np.ndarray) -> bool:
        try:
            self.driver.write(command.copy())
        except Exception as error:
            self._fail("write", error)
            if self.kernel.damps:  # at once, rather than a period later
                self._damp()
            return False
        return True

    def _damp(self) -> bool:
        try:
            self.driver.damp()
        except Exception as error:
            self._fail("damp", error)
            return False
        return True

    def _fail(self, what: str, error: Exception) -> None:
        """The robot did not do what it was told: a fault."""
        self._blame(what, error)
        another = isinstance(error, OtherWriterError)
        self._refusal = Fault.WRITER if another else Fault.DRIVER
        self.kernel.hold(self.problem, self._refusal)

    def _keep(self, reading: Reading | None, decision: Decision | None, **row: object) -> None:
        """Log a tick. A robot whose record has a gap stands still."""
        events = self._events
        self._events = []
        if self.log is None:
            return
        if reading is not None:
            row["at"] = reading.at
            for name, value in reading.signals.items():
                row[f"signal/{name}"] = value
        if decision is not None:
            row |= decision._asdict()
        row["state"] = self.kernel.state
        row["fault"] = self.kernel.fault
        row["event"] = "+".join(events)
        try:
            for name, value in self.inputs.items():
                row[f"input/{name}"] = np.ravel(value)
            self.log.add(episode=self.episode, decided=decision is not None, **row)
            if self.log.wants_snapshot:
                self.log.keep(self.kernel.snapshot())
        except Exception as error:
            self._blame("log", error)
            self.kernel.hold(self.problem, Fault.DRIVER)

    def _note(self, event: str) -> None:
        """Remember what the operator did for the log, at most four words; a key that repeats itself counts once."""
        if event == "resume" and event in self._events:
            # Each leaves the kernel alike: the first one is enough.
            del self._events[self._events.index(event) + 1 :]
        elif self._events[-1:] != [event]:
            self._events.append(event)

    def _let_go_of_policy(self) -> None:
        try:
            if self._worker is not None:
                self._worker.close()
                if self._worker.busy:
                    network = getattr(self.policy.policy, "network", None)
                    getattr(network, "cancel", lambda: None)()
                    self._worker.wait(CANCEL_S)
                if self._worker.busy:  # what it is still at must not be taken from under it
                    raise PolicyError("it still has not answered, and was left alone")
            self.policy.close()
        except Exception as error:
            self._blame("policy", error)

    def _decide(self, reading: Reading, now: float) -> Decision | None:
        fresh = self._fresh
        command = self.kernel.command
        inputs = dict(self.inputs)

        def infer() -> tuple[np.ndarray, np.ndarray]:
            if fresh:
                self.policy.reset()
            action, targets = self.policy.infer(reading.signals, command, inputs)
            return action, targets

        try:
            action, targets = self._in_time(infer, now)
            self._fresh = False
            return Decision(_own(action), _own(targets))
        except Exception as error:
            self._blame("policy", error)
            return None

    def _in_time(self, infer: Callable[[], Any], now: float) -> Any:
        """What the policy says; in real time, until the control period that began at `now` is over, or patience is."""
        if self._worker is None:
            return infer()
        end = max(now + self.kernel.period, self.kernel.policy_due)
        if isinstance(self.clock, PatientClock):
            return self._worker.call(infer, partial(self.clock.until, end))
        return self._worker.call(infer, lambda: end - time.monotonic())

    def _blame(self, what: str, error: Exception) -> None:
        """Note a failure in one line; what is no DriverError or PolicyError is a bug, and named as one."""
        known = isinstance(error, (DriverError, PolicyError))
        try:
            said = " ".join(str(error).split())[:200]
        except Exception:
            said = "without a word"
        kind = "" if known else f"{type(error).__name__}: "
        self.problem = f"{what}: {kind}{said}"


class PatientClock:
    """The clock of a simulated robot: the monotonic one, but for what this computer is late.

    A tick that takes longer than its control period, or comes late, would be a fault on hardware; here the time of
    robot and loop stands still meanwhile. What hangs for longer than `HANGS_S` is waited for no more: time goes on.

    Args:
        period: control period, s.
        wall: the monotonic clock, s.
        rest: what sleeps on it.
    """

    def __init__(
        self,
        period: float,
        wall: Clock = time.monotonic,
        rest: Callable[[float], None] = time.sleep,
    ):
        self._period = period
        self._wall = wall
        self._rest = rest
        self._began = self._tick = wall()  # of this tick, on the monotonic clock and on this
        self.lost = 0.0
        """For how long it stood still so far, s."""
        self.passed = 0.0
        """Time that passed on it in all ticks so far, s."""

    def __call__(self) -> float:
        """The time, s."""
        passed = self._wall() - self._began
        return self._tick + min(passed, IN_TICK * self._period) + max(0.0, passed - HANGS_S)

    def until(self, then: float) -> float:
        """How long it takes until this clock says `then`, s on the monotonic one, if nothing sleeps."""
        ahead = then - self._tick
        if ahead > IN_TICK * self._period:
            ahead += HANGS_S - IN_TICK * self._period
        return self._began + ahead - self._wall()

    def sleep(self, seconds: float) -> None:
        """Sleep; a new tick begins then. If that is late, it was not."""
        then = self() + seconds
        due = self._began + then - self._tick
        left = due - self._wall()
        if left > 0:
            self._rest(left)
        late = self._wall() - due
        self.passed += then - self._tick
        self._tick, self._began = then, due
        if late > LATE * self._period:
            self.lost += late
            self._began += late

    def shortfall(self) -> str:
        """In a line what this computer could not do; empty if it kept up."""
        if self.lost == 0.0 or self.passed > KEPT_UP * (self.passed + self.lost):
            return ""
        share = self.passed / (self.passed + self.lost)
        lost = f"{self.lost:.1f} s were lost in {self.passed + self.lost:.1f} s"
        return f"this computer was too slow: simulated time ran at {share:.0%} of real time, {lost}"


class Ticker:
    """Control periods on the monotonic clock. One that was overrun is left out, never made up for by a burst."""

    def __init__(
        self,
        rate: float,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.period = 1.0 / rate
        self.clock = clock
        self._sleep = sleep
        self._next: float | None = None
        self.overruns = 0
        """Periods left out because the one before took too long."""

    def wait(self) -> float:
        """Sleep until the next period begins, and return the time then, s."""
        now = self.clock()
        if self._next is None:
            self._next = now
        while now < self._next:
            self._sleep(self._next - now)
            now = self.clock()
        late = now - self._next  # after the sleep: that too may have been stopped
        if late >= self.period:
            self.overruns += max(1, int(late / self.period))
            self._next = now  # the next one is a whole period away
        self._next += self.period
        return now


def run(runner: Runner, ticker: Ticker, each: Callable[[Tick], bool]) -> None:
    """Step until `each`, called after every tick, says False; however this ends, the robot is left safe.

    Ctrl-C raises KeyboardInterrupt; SIGTERM, SIGHUP and all others that would end the process raise SystemExit. As soon
    as the loop ends, by a signal or by itself, they change nothing any more.
    """
    runner.keep_time(ticker.clock)
    with ending_on_signals() as ending, runner:
        try:
            while each(runner.step(ticker.wait())):
                ending.require_none()
        finally:
            ending.begun = True
        ending.require_none()


def _own(value: object) -> np.ndarray:
    """A copy of numbers that nobody else can change, in any shape; empty if it is anything else."""
    try:
        array = np.array(value)
    except Exception:  # a driver or a policy may give anything
        array = np.zeros(0, "?")
    if array.dtype.kind not in "fiu":
        array = np.zeros(0)
    array.setflags(write=False)
    return array
