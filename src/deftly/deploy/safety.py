"""The safety kernel: the one place between a policy and the motors, the same in simulation and on hardware.

Whatever comes in, what goes out is finite, within the joints' limits, and no further from the last command than the
joints' top speed allows in the time that has passed. It reads no clock and does no input or output: the caller says
what time it is, so a log of what came in gives back what went out, bit for bit.

    INIT    no command yet: nothing was measured. The first good measurement leads to READY.
    READY   holds the measured pose. `start` leads to ACTIVE.
    ACTIVE  approaches home if asked to, then follows the policy, its speed ramped up from nothing.
    HOLD    a fault is latched: holds the last command. `resume`, by the operator alone, leads to READY.
    STOP    holds the last command for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from deftly.contract import JOINT_POS, Contract, ContractError
from deftly.deploy.drivers import Reading
from deftly.errors import DeftlyError


class SafetyError(DeftlyError):
    """What the operator asked for is not possible now."""


class _Problem(Exception):
    """What is wrong with what came in."""

    def __init__(self, fault: Fault, reason: str):
        super().__init__(reason)
        self.fault = fault


class State(StrEnum):
    """Where the kernel is."""

    INIT = "init"
    READY = "ready"
    ACTIVE = "active"
    HOLD = "hold"
    STOP = "stop"


class Fault(StrEnum):
    """Why the kernel holds or stopped."""

    NONE = "none"
    SIGNALS_STALE = "signals-stale"
    SIGNALS_BAD = "signals-bad"
    POLICY_STALE = "policy-stale"
    POLICY_BAD = "policy-bad"
    DEADLINES = "deadlines"
    STALLED = "stalled"
    CLOCK = "clock"
    ENVELOPE = "envelope"
    DRIVER = "driver"
    CONTRACT = "contract"
    OPERATOR = "operator"


@dataclass(frozen=True)
class SafetyConfig:
    """Bounds of the safety kernel. They can only be tighter than the contract's limits and top speeds.

    Angles are in rad; for a joint that slides they are a share of its travel.
    """

    speed: float = 1.0
    """Share of each joint's top speed that a command may reach."""
    margin: float = 0.0
    """Share of each joint's range that is kept free at either end."""
    start_envelope: float = 0.25
    """Farthest that a joint may stand from home when the policy starts, rad."""
    approach_s: float = 0.0
    """Least time in which the robot is first brought to home, s; 0 does not: it must stand within the envelope."""
    ramp_s: float = 1.0
    """Time in which the allowed speed grows from nothing to full after a start, s."""
    outside: float = 0.05
    """Farthest that a measured position may be beyond its limits, rad."""
    jump: float = 3.0
    """A joint measured to move at more than this many times its top speed is a fault of its sensor."""
    moved: float = 0.05
    """A joint that moved further than this in a hold keeps its place, not its old command, when resumed, rad."""
    signal_periods: float = 1.5
    """Oldest measurement that is used, control periods."""
    policy_periods: float = 1.5
    """Longest time without a decision of the policy, control periods."""
    miss_periods: float = 1.5
    """A tick this long after the one before missed its deadline, control periods."""
    misses: int = 3
    """Consecutive missed deadlines that are a fault."""
    stall_periods: float = 4.0
    """A tick this long after the one before is a fault at once, control periods."""

    def __post_init__(self) -> None:
        bounds = {
            "speed": (0.0, 1.0),
            "margin": (0.0, 0.4),
            "start_envelope": (0.0, 10.0),
            "approach_s": (0.0, 60.0),
            "ramp_s": (0.0, 60.0),
            "outside": (0.0, 0.5),
            "jump": (1.0, 1e6),
            "moved": (0.0, 0.5),
            "signal_periods": (1.0, 10.0),
            "policy_periods": (1.0, 10.0),
            "miss_periods": (1.1, 10.0),
            "misses": (1, 100),
            "stall_periods": (1.1, 100.0),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise DeftlyError(f"safety.{name} is {getattr(self, name)}, but it must be within {low} .. {high}")


class Kernel:
    """The kernel of one robot.

    Args:
        contract: joints, limits, top speeds, home and rate.
        cfg: how much tighter than the contract, and how patient.
    """

    def __init__(self, contract: Contract, cfg: SafetyConfig | None = None):
        self.contract, self.cfg = contract, cfg or SafetyConfig()
        self.period = 1.0 / contract.rate
        joints = contract.joints
        lower, upper = np.array([(j.lower, j.upper) for j in joints], np.float64).T
        self._limits, self._span = (lower, upper), upper - lower
        self._lower, self._upper = lower + self.cfg.margin * self._span, upper - self.cfg.margin * self._span
        self._top_speed = np.array([j.velocity for j in joints], np.float64)
        self._speed = self.cfg.speed * self._top_speed
        self._home = np.clip(np.array(contract.home(), np.float64), self._lower, self._upper)
        self._slides = np.array([j.units != "rad" for j in joints])
        self._sizes = {s.name: s.size for s in contract.signals}
        self.state, self.fault, self.reason = State.INIT, Fault.NONE, ""
        self.command: np.ndarray | None = None
        """The last command, (num_joints,) float64; None before the first."""
        self._now = self._started = self._decided_at = -math.inf
        self._pose = self._from = self._home
        self._approach_s = 0.0
        self._misses = 0
        self.clipped = 0
        """Ticks in which a target was beyond a limit or faster than allowed, and was cut back."""

    # ----------------------------------------------------------- the operator

    def start(self) -> None:
        """Let the policy drive. Raises SafetyError unless READY; a pose outside the envelope is a fault."""
        self._require(State.READY, "start")
        assert self.command is not None
        beyond = np.abs(self._pose - self._home) - self._tolerance(self.cfg.start_envelope)
        worst = int(beyond.argmax())
        if beyond[worst] > 0 and not self.cfg.approach_s:
            joint = self.contract.joints[worst]
            where = f"{joint.name} stands at {self._pose[worst]:.3f}, home is {joint.home:.3f} {joint.units}"
            self.hold(f"{where}: move it there, or let safety.approach_s bring it there slowly", Fault.ENVELOPE)
            return
        reach = float((np.abs(self.command - self._home) / self._speed).max())
        self._approach_s = max(self.cfg.approach_s, 10.0 * reach) if self.cfg.approach_s else 0.0
        self._from, self._started, self._decided_at, self._misses = self.command, self._now, self._now, 0
        self.state = State.ACTIVE

    def resume(self) -> None:
        """Clear a latched fault: from HOLD to READY with the next good measurement. Raises SafetyError elsewhere."""
        self._require(State.HOLD, "resume")
        self.state, self.fault, self.reason = State.INIT, Fault.NONE, ""

    def hold(self, reason: str = "the operator asked for it", fault: Fault = Fault.OPERATOR) -> None:
        """Stand still and latch a fault, in READY and ACTIVE; elsewhere the robot stands still already."""
        if self.state in (State.READY, State.ACTIVE):
            self.state, self.fault, self.reason = State.HOLD, fault, reason
        elif self.state is State.INIT:
            self.reason = reason

    def stop(self, reason: str = "the operator asked for it", fault: Fault = Fault.OPERATOR) -> None:
        """Stand still for ever. A fault that is latched stays the one to read."""
        if self.fault is Fault.NONE:
            self.fault, self.reason = fault, reason
        self.state = State.STOP

    def require(self, contract: Contract) -> None:
        """Stop, by name of the first difference, unless the policy's contract is the robot's."""
        try:
            self.contract.require(contract, "the policy")
        except ContractError as error:
            self.stop(str(error), Fault.CONTRACT)

    # --------------------------------------------------------------- the loop

    @property
    def wants_policy(self) -> bool:
        """Whether the next tick follows the policy."""
        return self.state is State.ACTIVE and self._now - self._started >= self._approach_s

    def tick(self, now: float, reading: Reading | None, targets: np.ndarray | None = None) -> np.ndarray | None:
        """One control period: the command to write, (num_joints,) float64; None while nothing may be commanded.

        `now` is a monotonic clock in s, `reading` the newest measurement (None: the driver failed), `targets` what the
        policy decided on it (None: it gave no answer, or was not asked).
        """
        asked = self.wants_policy
        try:
            elapsed = self._clock(now)
            position = self._measured(reading, elapsed)
        except _Problem as problem:
            self.hold(str(problem), problem.fault)
        else:
            if self.state is State.INIT:
                self._settle(position)
            elif self.state is State.ACTIVE:
                self._follow(elapsed, targets, asked)
            if self.state in (State.READY, State.ACTIVE):
                self._pose = position
        return None if self.command is None or self.state is State.INIT else self.command.copy()

    def _clock(self, now: float) -> float:
        """Time since the last tick, s."""
        last = self._now
        if not math.isfinite(now) or now <= last:
            raise _Problem(Fault.CLOCK, f"the clock went from {last} to {now} s")
        self._now, elapsed = now, now - last
        if self.state is State.ACTIVE:
            self._misses = self._misses + 1 if elapsed > self.cfg.miss_periods * self.period else 0
            if elapsed > self.cfg.stall_periods * self.period:
                raise _Problem(Fault.STALLED, f"the control loop stood still for {1e3 * elapsed:.0f} ms")
            if self._misses >= self.cfg.misses:
                raise _Problem(Fault.DEADLINES, f"{self._misses} deadlines missed in a row")
        return elapsed

    def _measured(self, reading: Reading | None, elapsed: float) -> np.ndarray:
        """The measured pose, (num_joints,), a time `elapsed` after the one before."""
        if reading is None:
            raise _Problem(Fault.DRIVER, "the robot could not be read")
        age = self._now - reading.at
        if not -self.period <= age <= self.cfg.signal_periods * self.period + 1e-9:  # it may be newer than the tick
            raise _Problem(Fault.SIGNALS_STALE, f"the measurement is {1e3 * age:.0f} ms old")
        values = {name: _numbers(reading.signals.get(name), size) for name, size in self._sizes.items()}
        position = values[JOINT_POS]
        bad = [name for name, value in values.items() if value is None]
        if bad or position is None:
            raise _Problem(Fault.SIGNALS_BAD, f"signal '{bad[0]}' is missing, misshapen or not finite")
        lower, upper = self._limits
        far = np.zeros_like(position) if self.state is State.INIT else np.abs(position - self._pose)
        checks = {
            "beyond its limits": np.maximum(lower - position, position - upper),
            "too far from where it was": far - self.cfg.jump * self._top_speed * elapsed,
        }
        for problem, beyond in checks.items():
            worst = int((beyond - self._tolerance(self.cfg.outside)).argmax())
            if beyond[worst] > self._tolerance(self.cfg.outside)[worst]:
                name = self.contract.joint_names[worst]
                raise _Problem(Fault.SIGNALS_BAD, f"{name} is measured at {position[worst]:.4g}, {problem}")
        return position

    def _settle(self, position: np.ndarray) -> None:
        """From INIT to READY: command the measured pose, but what was commanded where nothing moved in a hold.

        A gripper goes on holding what it held; an arm that somebody moved stays where it was put.
        """
        here = np.clip(position, self._lower, self._upper)
        moved = np.abs(position - self._pose) > self._tolerance(self.cfg.moved)
        self.command = here if self.command is None else np.where(moved, here, self.command)
        self.state, self.reason = State.READY, ""

    def _follow(self, elapsed: float, targets: np.ndarray | None, asked: bool) -> None:
        """Move the command towards where it should be, as far as it may in this tick."""
        assert self.command is not None
        since = self._now - self._started
        if not asked:
            part = min(1.0, since / self._approach_s)
            goal, ramp = self._from + part * part * (3.0 - 2.0 * part) * (self._home - self._from), 1.0
        elif targets is None:
            silent = self._now - self._decided_at
            if silent > self.cfg.policy_periods * self.period + 1e-9:
                self.hold(f"no decision of the policy for {1e3 * silent:.0f} ms", Fault.POLICY_STALE)
            return
        else:
            goal = _numbers(targets, len(self.command))
            ramp = min(1.0, (since - self._approach_s) / self.cfg.ramp_s) if self.cfg.ramp_s else 1.0
        if goal is None:
            self.hold("the policy's targets are misshapen or not finite", Fault.POLICY_BAD)
            return
        self._decided_at = self._now
        most = ramp * self._speed * min(elapsed, self.period)
        moved = _towards(self.command, np.clip(goal, self._lower, self._upper), most)
        moved = np.clip(moved, self._lower, self._upper)
        self.clipped += bool(np.abs(moved - goal).max() > 1e-6)
        self.command = moved

    def _tolerance(self, angle: float) -> np.ndarray:
        """A tolerance for each joint."""
        return np.where(self._slides, angle * self._span, angle)

    def _require(self, state: State, verb: str) -> None:
        if self.state is not state:
            raise SafetyError(f"cannot {verb} in state {self.state}, only in {state}")


def _towards(command: np.ndarray, goal: np.ndarray, most: np.ndarray) -> np.ndarray:
    """The command moved towards the goal, each joint by at most `most`, and all by the same share of their way.

    So joints that are coupled, as those that keep a tool upright, stay so: limiting each by itself would tilt it.
    """
    way = goal - command
    share = np.divide(most, np.abs(way), out=np.ones_like(way), where=np.abs(way) > most).min()
    return goal if share == 1.0 else np.clip(command + share * way, command - most, command + most)


def _numbers(value: object, size: int) -> np.ndarray | None:
    """The value as `(size,)` finite float64; None if it is anything else."""
    array = np.asarray(value) if isinstance(value, (np.ndarray, list, tuple)) else np.array(None)
    if array.shape != (size,) or array.dtype.kind not in "fiu":
        return None
    array = array.astype(np.float64)
    return array if np.isfinite(array).all() else None
