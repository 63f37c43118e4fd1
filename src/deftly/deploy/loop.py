"""The control loop: read, decide, pass the safety kernel, write, at a fixed rate; the same for every robot.

`Runner.step` is one control period, whoever keeps the time: `run` on the monotonic clock for hardware, a simulation on
its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from deftly.deploy.drivers import Driver, DriverError, Reading
from deftly.deploy.log import Ring
from deftly.deploy.policy import Decision, Policy, PolicyError
from deftly.deploy.safety import Fault, Kernel, State

Clock = Callable[[], float]


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
        kernel: what may be commanded. It stops at once if the policy was made under another contract.
        driver: the robot.
        log: where each tick is kept.
    """

    def __init__(self, policy: Policy, kernel: Kernel, driver: Driver, log: Ring | None = None):
        self.policy, self.kernel, self.driver, self.log = policy, kernel, driver, log
        self.episode = 0
        """Number written into the log."""
        self.problem = ""
        """What the driver or the policy said last when it failed."""
        self._events: list[str] = []
        self._fresh, self._closed = True, False
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
        self._events.append("start")
        self._fresh = True

    def resume(self) -> None:
        """The operator clears a fault. Raises SafetyError unless in HOLD."""
        self.kernel.resume()
        self._events.append("resume")

    def hold(self) -> None:
        """The operator makes the robot stand still."""
        self.kernel.hold()
        self._events.append("hold")

    def step(self, now: float) -> Tick:
        """One control period at `now`, s on the clock of the readings. Faults are the kernel's; nothing is raised."""
        began = time.perf_counter()
        reading, decision, inferred = self._read(), None, math.nan
        if reading is not None and self.kernel.wants_policy:
            decision = self._decide(reading)
            inferred = 1e3 * (time.perf_counter() - began)
        command = self.kernel.tick(now, reading, decision and decision.targets)
        written = command is None or self._write(command)
        if self.log is not None:
            self.log.add(
                now=now,
                episode=self.episode,
                event="+".join(self._events),
                state=self.kernel.state,
                fault=self.kernel.fault,
                decided=decision is not None,
                command=command,
                written=written,
                infer_ms=inferred,
                tick_ms=1e3 * (time.perf_counter() - began),
                **({"at": reading.at, **{f"signal/{k}": v for k, v in reading.signals.items()}} if reading else {}),
                **(decision._asdict() if decision else {}),
            )
            if self.log.wants_snapshot:
                self.log.keep(self.kernel.snapshot())
        self._events.clear()
        return Tick(self.kernel.state, reading, decision, command)

    def close(self) -> None:
        """Command the safe target once more, and let go of robot and policy."""
        if self._closed:
            return
        self._closed = True
        try:
            if self.kernel.state is not State.INIT:
                self.kernel.stop("the loop ended")
                if self.kernel.command is not None:
                    self._write(self.kernel.command)
        finally:
            try:
                self.driver.stop()
            finally:
                self.policy.close()

    def _read(self) -> Reading | None:
        try:
            signals, at = self.driver.read()
            return Reading(dict(signals), float(at))
        except Exception as error:
            self._blame("read", error)
            return None

    def _write(self, command: np.ndarray) -> bool:
        try:
            self.driver.write(command)
        except Exception as error:
            self._blame("write", error)
            self.kernel.hold(self.problem, Fault.DRIVER)
            return False
        return True

    def _decide(self, reading: Reading) -> Decision | None:
        try:
            if self._fresh:
                self.policy.reset(reading.signals)
                self._fresh = False
            action, targets = self.policy.infer(reading.signals, self.kernel.command)
            return Decision(np.asarray(action), np.asarray(targets))
        except Exception as error:
            self._blame("policy", error)
            return None

    def _blame(self, what: str, error: Exception) -> None:
        """Note a failure in one line; what is no DriverError or PolicyError is a bug, and named as one."""
        known = isinstance(error, (DriverError, PolicyError))
        self.problem = f"{what}: {'' if known else type(error).__name__ + ': '}{' '.join(str(error).split())[:200]}"


class Ticker:
    """Control periods on the monotonic clock. One that was overrun is left out, never made up for by a burst."""

    def __init__(self, rate: float, clock: Clock = time.monotonic, sleep: Callable[[float], None] = time.sleep):
        self.period, self._clock, self._sleep = 1.0 / rate, clock, sleep
        self._next = clock()
        self.overruns = 0
        """Periods left out because the one before took too long."""

    def wait(self) -> float:
        """Sleep until the next period begins, and return the time then, s."""
        now = self._clock()
        if now > self._next + self.period:
            lost = int((now - self._next) / self.period)
            self.overruns += lost
            self._next += lost * self.period
        while now < self._next:
            self._sleep(self._next - now)
            now = self._clock()
        self._next += self.period
        return now


def run(runner: Runner, ticker: Ticker, each: Callable[[Tick], bool]) -> None:
    """Step until `each`, called after every tick, says False; however this ends, the robot is left safe."""
    with runner:
        while each(runner.step(ticker.wait())):
            pass
