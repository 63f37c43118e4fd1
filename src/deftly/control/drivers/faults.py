"""Faults by name: what a robot, its sensors, a policy or an operator may do to a control loop, on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from deftly.contract import JOINT_POS, Fault, Inputs, Limit, PolicyContract, RobotInterface
from deftly.contract.arrays import Array
from deftly.control.drivers.protocol import Driver, DriverError, OtherWriterError, Reading
from deftly.errors import DeftlyError
from deftly.policy.protocol import NO_INPUTS, Decision, Policy, PolicyError, Signals

OF_THE_DRIVER = {
    "late": (Fault.SIGNALS_STALE,),
    "frozen": (Fault.SIGNALS_STALE,),
    "missing": (Fault.SIGNALS_BAD,),
    "nan": (Fault.SIGNALS_BAD,),
    "shape": (Fault.SIGNALS_BAD,),
    "beyond": (Fault.SIGNALS_BAD,),
    "jump": (Fault.SIGNALS_BAD,),
    "read": (Fault.DRIVER,),
    "write": (Fault.DRIVER,),
    "slow": (Fault.STALLED, Fault.SIGNALS_STALE),
    "crash": (Fault.DRIVER,),
}
"""Faults of every robot, and what the safety kernel may call them: measurements that are ten periods old (late), the
same again (frozen), without the joints (missing), nan, of a wrong shape, with a joint far beyond its limits (beyond) or
half a range away (jump); calls that fail (read, write), take five periods (slow), or have a bug (crash)."""
OF_THE_REST = {
    "writer": (Fault.WRITER,),
    "stuck": (Fault.ENCODER, Fault.FOLLOWING),
    "blocked": (Fault.FOLLOWING, Fault.ENCODER),
    "flipped": (Fault.FOLLOWING, Fault.SIGNALS_BAD),
    "swapped": (Fault.FOLLOWING, Fault.SIGNALS_BAD),
    "silent": (Fault.POLICY_STALE,),
    "nonsense": (Fault.POLICY_BAD,),
    "mute": (Fault.INPUT_STALE,),
    "hold": (Fault.OPERATOR,),
    "clock": (Fault.CLOCK,),
    "stall": (Fault.STALLED, Fault.SIGNALS_STALE),
}
"""More, for a simulation: another program commands it too (writer); the first joint's reading stands still (stuck),
the joint itself does (blocked), it is measured the wrong way round (flipped), or as the second and that one as it
(swapped); the policy gives no answer (silent) or no numbers (nonsense); the operator, who was heard, is not any more
(mute), or holds; the clock goes back; the loop stands still for five periods (stall)."""
BY_MOTION = ("stuck", "blocked", "flipped", "swapped")
"""They show only in motion: when a joint is as far from its command as its bounds allow, or has not moved with it."""
LIMIT = "limit/"
"""Before the name of a signal: it goes beyond the limits that the robot's interface gives it."""
STRIKES_S = 1.0
"""When a fault strikes unless it is said, s after the policy's first decision."""


class Injection(NamedTuple):
    """A fault that strikes once."""

    name: str
    at: float
    """When, s after the policy's first decision."""


def names(contract: PolicyContract) -> list[str]:
    """The faults that a robot can be given under a contract."""
    found = [*OF_THE_DRIVER, *OF_THE_REST]
    if not contract.inputs:
        found.remove("mute")
    if len(contract.robot.joints) < 2:
        found.remove("swapped")
    limited = dict.fromkeys(limit.signal for limit in contract.robot.limits)
    return found + [f"{LIMIT}{signal}" for signal in limited]


def expected(name: str) -> tuple[Fault, ...]:
    """What the safety kernel may call a fault."""
    if name.startswith(LIMIT):
        return (Fault.LIMIT,)
    return (OF_THE_DRIVER | OF_THE_REST)[name]


def parse(text: str, contract: PolicyContract) -> Injection:
    """The fault that `NAME` or `NAME@seconds` is. Raises DeftlyError, one line, for anything else."""
    name, marked, seconds = text.partition("@")
    known = names(contract)
    if name not in known:
        raise DeftlyError(f"no fault '{name}': give any, or one of {', '.join(known)}")
    try:
        at = float(seconds) if marked else STRIKES_S
    except ValueError:
        at = math.nan
    if not 0.0 <= at < 1e6:
        raise DeftlyError(f"--fault is '{text}', but after @ come seconds, such as {name}@1.5")
    return Injection(name, at)


def resting(robot: RobotInterface) -> dict[str, np.ndarray]:
    """Every signal of a robot at rest and within its limits: zero, upright, or the middle of its limits."""
    signals = {}
    for signal in robot.signals:
        dtype = signal.dtype if signal.is_image else None
        signals[signal.name] = np.zeros(signal.shape, dtype)
    for limit in robot.limits:
        if limit.of == "tilt":
            signals[limit.signal][0] = 1.0
        elif limit.of == "value" and not limit.lower <= 0.0 <= limit.upper:
            middle = 0.5 * (limit.lower + limit.upper)
            signals[limit.signal][_elements(limit)] = middle
    return signals


def _elements(limit: Limit) -> slice:
    """The elements that a limit of values bounds."""
    if limit.element is None:
        return slice(None)
    return slice(limit.element, limit.element + 1)


def _beyond(limit: Limit, value: np.ndarray) -> np.ndarray:
    """A signal that is beyond a limit."""
    value = np.array(value, np.float64)
    past = limit.upper + 0.5 * (limit.upper - limit.lower)
    if limit.of == "tilt":
        half = min(past, math.pi) / 2
        return np.array([math.cos(half), math.sin(half), 0.0, 0.0])
    if limit.of == "norm":
        return np.full(len(value), past)
    value[_elements(limit)] = past
    return value


class Saboteur:
    """Gives a robot one fault, from when it `strikes` on."""

    def __init__(
        self,
        robot: RobotInterface,
        rate: float,
        fault: str,
        sleep: Callable[[float], None],
        who: str = "the robot",
    ):
        self.robot = robot
        self.rate = rate
        self.fault = fault
        self.who = who
        self.strikes = False
        self._sleep = sleep
        self._last: Reading | None = None
        self._held: np.ndarray | None = None

    def read(self, read: Callable[[], Reading]) -> Reading:
        """What the loop is given instead of a measurement."""
        fault = self.fault if self.strikes else ""
        if fault == "read":
            raise DriverError(f"{self.who} does not answer")
        if fault == "crash":
            raise ZeroDivisionError(f"a bug of {self.who}")
        if fault == "writer":
            raise OtherWriterError("the motors have a goal that is not ours")
        if fault == "frozen":
            return self._last or Reading({}, 0.0)
        reading = read()
        if fault == "slow":
            self._sleep(5 / self.rate)
        if fault:
            reading = self._spoiled(fault, reading)
        else:
            self._last = reading
        return reading

    def write(self, targets: np.ndarray, write: Callable[[np.ndarray], None]) -> None:
        """Write what the robot is given instead of targets, (num_joints,)."""
        fault = self.fault if self.strikes else ""
        if fault == "write":
            raise DriverError(f"{self.who} takes no command")
        if self._held is None or not fault:
            self._held = targets.copy()
        if fault == "blocked":
            targets[0] = self._held[0]
        write(targets)

    def _spoiled(self, fault: str, reading: Reading) -> Reading:
        """A measurement with what a fault makes of it."""
        signals = dict(reading.signals)
        if fault == "late":
            return Reading(signals, reading.at - 10 / self.rate)
        if fault == "missing":
            del signals[JOINT_POS]
        elif fault.startswith(LIMIT):
            name = fault.removeprefix(LIMIT)
            limit = next(limit for limit in self.robot.limits if limit.signal == name)
            signals[name] = _beyond(limit, signals[name])
        else:
            position = np.array(signals[JOINT_POS], np.float64)
            signals[JOINT_POS] = self._position(fault, position)
        return Reading(signals, reading.at)

    def _position(self, fault: str, position: np.ndarray) -> np.ndarray:
        """Joint positions, (num_joints,), with what a fault makes of them."""
        first = self.robot.joints[0]
        span = first.upper - first.lower
        if fault == "nan":
            return np.full(len(position), np.nan)
        if fault == "shape":
            return np.zeros(len(position) + 1)
        if fault == "beyond":
            position[0] = first.upper + span
        elif fault == "jump":
            below = position[0] < first.lower + 0.5 * span
            position[0] += 0.5 * span if below else -0.5 * span
        elif fault == "stuck" and self._last is not None:
            position[0] = self._last.signals[JOINT_POS][0]
        elif fault == "flipped" and self._last is not None:
            before = self._last.signals[JOINT_POS][0]
            position[0] = 2.0 * before - position[0]
        elif fault == "swapped":
            position[:2] = position[1::-1]
        return position


class Faulty(Driver):
    """A driver that has a fault."""

    def __init__(self, driver: Driver, saboteur: Saboteur):
        self.driver = driver
        self.robot = saboteur.robot
        self.saboteur = saboteur

    def read(self) -> Reading:
        """What the loop is given."""
        return self.saboteur.read(self.driver.read)

    def write(self, targets: np.ndarray) -> None:
        """What the robot is given."""
        self.saboteur.write(targets, self.driver.write)

    def damp(self) -> None:
        """As it is."""
        self.driver.damp()

    def stop(self) -> None:
        """As it is."""
        self.driver.stop()


class FaultyPolicy:
    """A policy that has a fault."""

    def __init__(self, policy: Policy, saboteur: Saboteur):
        self.policy = policy
        self.saboteur = saboteur
        self.contract = policy.contract
        self.deterministic = policy.deterministic

    def reset(self, ids: Sequence[int] | None = None) -> None:
        """As it is."""
        self.policy.reset(ids)

    def infer(
        self,
        signals: Signals,
        inputs: Inputs = NO_INPUTS,
        applied: Array | None = None,
        ids: Sequence[int] | None = None,
    ) -> Decision:
        """What the loop is given."""
        fault = self.saboteur.fault if self.saboteur.strikes else ""
        if fault == "silent":
            raise PolicyError("no answer")
        decision = self.policy.infer(signals, inputs, applied, ids)
        if fault == "nonsense":
            return Decision(decision.action, np.full_like(decision.targets, np.nan))
        return decision

    def forget(self, ids: Sequence[int]) -> None:
        """As it is."""
        self.policy.forget(ids)

    def close(self) -> None:
        """As it is."""
        self.policy.close()
