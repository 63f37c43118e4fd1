"""The safety kernel: the one place between a policy and the motors, the same in simulation and on hardware.

Whatever comes in, `tick` raises nothing, and what goes out is finite, within the joints' limits, and no further from
the last command than the joints' top speed allows in the time that has passed. It reads no clock and does no input or
output: the caller says what time it is, so a log of what came in gives back what went out, bit for bit. It computes
with lists of Python's floats, one for each joint (see motion.py).

    INIT    commands nothing. Two good measurements in a row that agree lead to READY; after a resume, a bad one, or
            two that do not agree, lead back to HOLD or DAMP.
    READY   holds the pose that was measured. `start` leads to ACTIVE.
    ACTIVE  approaches home if asked to, then follows the policy, its speed ramped up from nothing.
    HOLD    a fault is latched: holds the last command. `resume`, by the operator alone, leads to INIT.
    DAMP    a fault is latched on which this robot is damped (`damps` of its interface): commands nothing, the motors
            brake. `resume` leads to INIT, and what is commanded next is the pose that is measured then.
    STOP    for ever: holds the last command, or stays damped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import Doc

from deftly.config import Settings
from deftly.contract import (
    JOINT_POS,
    ContractError,
    Fault,
    Joint,
    PolicyContract,
    RobotInterface,
    Signal,
)
from deftly.contract.arrays import all_finite
from deftly.contract.robot import USUAL_LEAD
from deftly.control.drivers import Reading
from deftly.control.drivers.buses import lead_of
from deftly.control.limits import SignalLimits
from deftly.control.motion import Motion, Values, clipped
from deftly.control.response import Response
from deftly.errors import DeftlyError

_TEXTS = ("state", "fault", "reason")
_COUNTS = ("_misses", "clipped", "_damped")
_NUMBERS = ("_now", "_found_at", "_decided_at", "_active_s", "_approach_s", "_lag", *_COUNTS)
_ARRAYS = ("_pose", "_rest", "_sag", "_origin", "_velocity", "_read_at")
_SOON = 1e-9
"""Rounding of a clock, s."""
_MADE_UP = 0.1
"""Share of a control period by which a loop that is behind catches up with each tick."""


class SafetyError(DeftlyError):
    """What the operator asked for is not possible now."""


class _Problem(Exception):
    """What is wrong with what came in."""

    def __init__(self, fault: Fault, reason: str):
        super().__init__(reason)
        self.fault = fault


class Missing(NamedTuple):
    """Why there is no measurement, if it is more than that the robot could not be read."""

    fault: Fault
    reason: str


class State(StrEnum):
    """Where the kernel is."""

    INIT = "init"
    READY = "ready"
    ACTIVE = "active"
    HOLD = "hold"
    DAMP = "damp"
    STOP = "stop"


SAFE = (State.HOLD, State.DAMP, State.STOP)
"""States in which no policy drives, whatever comes in, until the operator says so."""


@dataclass(frozen=True)
class SafetyConfig(Settings, section="safety"):
    """Bounds of the safety kernel. They can only be tighter than the robot's limits and top speeds.

    Angles are in rad; for a joint that slides they are a fraction of its travel. Raises DeftlyError for values out of
    range, and for those that make no sense together.
    """

    speed: Annotated[
        float, Ge(0.001), Le(1), Doc("Fraction of each joint's top speed that a command may reach.")
    ] = 1.0
    margin: Annotated[
        float,
        Ge(0),
        Le(0.4),
        Doc(
            "Fraction of each joint's range that is kept free at either end; a gripper uses all of its own."
        ),
    ] = 0.0
    start_envelope: Annotated[
        float,
        Ge(0.001),
        Le(10),
        Doc("Farthest that a joint may stand from home when the policy starts, rad."),
    ] = 0.25
    approach_s: Annotated[
        float,
        Ge(0),
        Le(60),
        Doc(
            "Least time in which the robot is first brought to home, s; 0 does not: it must stand within the envelope."
        ),
    ] = 0.0
    ramp_s: Annotated[
        float,
        Ge(0),
        Le(60),
        Doc("Time in which the allowed speed grows from nothing to full after a start, s."),
    ] = 1.0
    outside: Annotated[
        float,
        Ge(0),
        Le(0.5),
        Doc(
            "Farthest that a measured position may be beyond its limits and its joint's slack, rad."
        ),
    ] = 0.05
    jump: Annotated[
        float,
        Ge(1),
        Le(1000000.0),
        Doc(
            "A joint measured to move at more than this many times its top speed is a fault of its sensor."
        ),
    ] = 3.0
    moved: Annotated[
        float,
        Ge(0),
        Le(0.5),
        Doc(
            "A joint that something moved further than this while the robot stood still keeps its place, rad; two "
            "measurements agree if no joint is further from where it was than this."
        ),
    ] = 0.05
    lead: Annotated[
        float | None,
        Ge(0.01),
        Le(10),
        Doc(
            "Farthest that a command may be from where its joint is measured, rad; unset: what is known of the robot's "
            "joints and motors (1.5 for LEAP hands), else 0.5. A gripper presses, it has no bound."
        ),
    ] = None
    signal_periods: Annotated[
        float, Ge(1), Le(10), Doc("Oldest measurement that is used, control periods.")
    ] = 1.5
    policy_periods: Annotated[
        float, Ge(1), Le(10), Doc("Longest time without a decision of the policy, control periods.")
    ] = 1.5
    input_s: Annotated[
        float,
        Ge(0.01),
        Le(60),
        Doc("Oldest word of an operator who is heard at all that a policy may act on, s."),
    ] = 0.5
    miss_periods: Annotated[
        float,
        Ge(1.1),
        Le(10),
        Doc("A tick this long after the one before missed its deadline, control periods."),
    ] = 1.5
    misses: Annotated[
        int,
        Ge(1),
        Le(100),
        Doc(
            "Consecutive missed deadlines that are a fault; so is a loop this many times stall-periods behind its rate."
        ),
    ] = 3
    stall_periods: Annotated[
        float,
        Ge(1.1),
        Le(100),
        Doc("A tick this long after the one before is a fault at once, control periods."),
    ] = 4.0

    def __post_init__(self) -> None:
        for item in fields(self):
            self._require_number(item.name)
        super().__post_init__()
        self._require_order("miss_periods", "stall_periods")
        self._require_order("moved", "lead")

    def _require_number(self, name: str) -> None:
        value = getattr(self, name)
        if name == "lead" and value is None:
            return
        kinds = (int,) if name == "misses" else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = "a whole number" if name == "misses" else "a number"
            raise DeftlyError(f"{_flag(name)} is {str(value)[:40]}, but it must be {wanted}")

    def _require_order(self, less: str, more: str) -> None:
        smaller = getattr(self, less)
        larger = getattr(self, more)
        if larger is not None and smaller >= larger:
            values = f"{_flag(less)} is {smaller}, {_flag(more)} is {larger}"
            raise DeftlyError(
                f"{values}: {_flag(less)} must be the smaller, or it is never reached"
            )


def _flag(name: str) -> str:
    return f"safety.{name.replace('_', '-')}"


class Kernel:
    """The kernel of one robot.

    Args:
        robot: joints, limits, top speeds and home; what it measures.
        rate: of the control loop, Hz.
        cfg: how much tighter than the robot's limits, and how patient.

    Raises SafetyError if the margin leaves out the home of a joint.
    """

    def __init__(self, robot: RobotInterface, rate: float, cfg: SafetyConfig | None = None):
        self.robot = robot
        self.rate = float(rate)
        self.cfg = cfg or SafetyConfig()
        self.period = 1.0 / self.rate
        self._set_bounds()
        self.state = State.INIT
        self.fault = Fault.NONE
        self.reason = ""
        self.command: np.ndarray | None = None
        """The last command, (num_joints,) float64, read-only; None before the first."""
        self._commanded: Values = []  # the same
        self.clipped = 0
        """Ticks in which a target was beyond a limit or faster than allowed, and was clipped."""
        self._now = -math.inf  # of the last tick
        self._found_at = -math.inf  # of the measurement in INIT that the next one must agree with
        self._decided_at = -math.inf  # the last decision of the policy
        self._pose = self._home  # measured last
        self._rest = self._home  # measured when a command was last given
        self._sag = self._zeros  # from a command to where its joint was found after
        self._velocity = self._zeros  # of the command
        self._read_at = self._home  # commanded when the reading of a joint changed last
        self._origin = self._home  # commanded at the start
        self._active_s = 0.0  # in this part of ACTIVE, no more than a period for each tick
        self._approach_s = 0.0  # duration of the approach; 0 while there is none
        self._misses = 0
        self._lag = 0.0  # behind the rate, s
        self._damped = False  # since DAMP, until a pose is commanded again

    def _set_bounds(self) -> None:
        """Limits, speeds and tolerances of each joint."""
        joints = self.robot.joints
        self._grips = np.isin(self.robot.joint_names, self.robot.gripping)
        margin = [
            0.0 if gripping else self.cfg.margin * (joint.upper - joint.lower)
            for joint, gripping in zip(joints, self._grips)
        ]
        self._lower = [joint.lower + free for joint, free in zip(joints, margin)]
        self._upper = [joint.upper - free for joint, free in zip(joints, margin)]
        self._least_measured = [joint.lower - joint.slack for joint in joints]
        self._most_measured = [joint.upper + joint.slack for joint in joints]
        self._speed = [self.cfg.speed * joint.velocity for joint in joints]
        self._plausible_speed = [self.cfg.jump * joint.velocity for joint in joints]
        # of the angles of SafetyConfig
        units = [1.0 if joint.units == "rad" else joint.upper - joint.lower for joint in joints]
        self._outside = [self.cfg.outside * unit for unit in units]
        self._moved = [self.cfg.moved * unit for unit in units]
        self._envelope = [self.cfg.start_envelope * unit for unit in units]
        self._lead = [
            math.inf if gripping else self._lead_of(joint, unit)  # a gripper presses
            for joint, unit, gripping in zip(joints, units, self._grips)
        ]
        self._frozen = [joint.frozen or math.inf for joint in joints]
        self._home: Values = list(self.robot.home())
        self._zeros: Values = [0.0] * len(joints)
        self._motion = Motion(self.robot, self._lower, self._upper, self._speed)
        self._limits = SignalLimits(self.robot)
        self._response = Response(self.robot, self.rate)
        self._require_home_within()

    def _lead_of(self, joint: Joint, unit: float) -> float:
        """The largest tracking error of a joint, rad (m): what the user says, the joint, or its motor."""
        if self.cfg.lead is None and joint.lead:
            return joint.lead
        return unit * (self.cfg.lead or lead_of(self.robot.name) or USUAL_LEAD)

    def _require_home_within(self) -> None:
        outside = "has its home outside"
        try:
            self._within(Fault.ENVELOPE, self._home, self._lower, self._upper, self._zeros, outside)
        except _Problem as problem:
            raise SafetyError(f"safety.margin is {self.cfg.margin}: {problem}") from None

    # ----------------------------------------------------------- the operator

    def start(self) -> None:
        """Let the policy drive. Raises SafetyError unless READY; a pose outside the envelope is a fault."""
        self._require(State.READY, "start")
        problem = self._start_problem()
        if problem:
            self.hold(problem, Fault.ENVELOPE)
            return
        self._approach_s = self._approach_duration()
        self._origin = self._commanded
        self._sag = self._zeros
        self._velocity = self._zeros
        self._read_at = self._commanded
        self._response.forget()
        self._decided_at = self._now
        self._active_s = 0.0
        self._misses = 0
        self._lag = 0.0
        self.state = State.ACTIVE

    def _start_problem(self) -> str:
        """Why the policy may not start from the measured pose; empty if it may."""
        moved = self._slipped(self._was_moved(self._pose), self._pose)
        if True in moved:
            name = self.robot.joint_names[moved.index(True)]
            return f"{name} was moved while the robot stood ready: resume, then start"
        far = self._far_from_home(self._pose)
        if far and not self.cfg.approach_s:
            return f"{far}: move it there, or let safety.approach_s bring it there slowly"
        return ""

    def _approach_duration(self) -> float:
        """Time of an approach from the command to home, s: at most a tenth of the allowed speed on average."""
        if not self.cfg.approach_s:
            return 0.0
        times = [
            abs(start - home) / speed
            for start, home, speed in zip(self._commanded, self._home, self._speed)
        ]
        return max(self.cfg.approach_s, 10.0 * max(times))

    def resume(self) -> None:
        """Clear a latched fault: from HOLD or DAMP to INIT. Raises SafetyError elsewhere.

        The next two ticks lead to READY, or back if what is wrong still is: a resume is never kept for later.
        """
        self._require(State.HOLD, "resume", State.DAMP)
        self.state = State.INIT
        self.fault = Fault.NONE
        self.reason = ""
        self._now = -math.inf  # one wrong time must not make all that follow wrong
        self._found_at = -math.inf

    def hold(
        self, reason: str = "the operator asked for it", fault: Fault = Fault.OPERATOR
    ) -> None:
        """Stand still, or be damped, and latch a fault. Before the first command, the robot does already.

        The first fault stays the one to read, but for one that leads from HOLD to DAMP.
        """
        damps = self._damped or fault in self.robot.damps
        if self.state in SAFE and not (self.state is State.HOLD and damps):
            return
        self.reason = reason
        self._found_at = -math.inf
        if self.command is None:
            return
        self.state = State.DAMP if damps else State.HOLD
        self.fault = fault
        self._damped = damps

    def stop(
        self, reason: str = "the operator asked for it", fault: Fault = Fault.OPERATOR
    ) -> None:
        """Stand still, or be damped, for ever. A fault that is latched stays the one to read."""
        if self.fault is Fault.NONE:
            self.fault = fault
            self.reason = reason
        if self.command is not None and fault in self.robot.damps:
            self._damped = True
        self.state = State.STOP

    @property
    def damps(self) -> bool:
        """Whether the motors are to be damped, and to follow no command."""
        return bool(self._damped)

    def require(self, contract: PolicyContract) -> None:
        """Stop, by name of the first difference, unless the policy was made for this robot at this rate."""
        try:
            self.robot.require_policy_of(contract.robot, "the policy")
        except ContractError as error:
            self.stop(str(error), Fault.CONTRACT)
            return
        if contract.rate != self.rate:
            rates = f"rate is {contract.rate} there, {self.rate} here"
            self.stop(f"the policy was made under another contract: {rates}", Fault.CONTRACT)

    # --------------------------------------------------------------- the loop

    @property
    def wants_policy(self) -> bool:
        """Whether the next tick follows the policy."""
        return self.state is State.ACTIVE and not self._approach_s

    @property
    def policy_due(self) -> float:
        """When the policy will have been silent for too long, s."""
        return self._decided_at + self.cfg.policy_periods * self.period

    def tick(
        self,
        now: float,
        reading: Reading | Missing | None,
        targets: np.ndarray | None = None,
        writes_at: float | None = None,
        heard_at: float | None = None,
    ) -> np.ndarray | None:
        """One control period: the command to write, (num_joints,) float64; None while nothing may be commanded.

        Args:
            now: When the period began, s of a monotonic clock.
            reading: The newest measurement; None: the driver failed, or why it did.
            targets: What the policy decided on it, (num_joints,); None: it gave no answer, or was not asked.
            writes_at: When the command is written, s: the age of the measurement is judged then; None: at `now`.
            heard_at: When the operator said last what the policy acts on, s; None: nobody says anything.

        Nothing of them is kept by reference.
        """
        try:
            elapsed = self._clock(now)
            judged = self._later(writes_at)
            position = self._measured(reading, elapsed, judged)
            if self.state is State.INIT:
                self._find(position, _time(getattr(reading, "at", None)))
            elif self.state is State.ACTIVE:
                self._rest = position
                self._check_operator(heard_at, judged)
                self._follow(position, min(elapsed, self.period), targets)
            if self.state is not State.INIT:
                self._pose = position
        except _Problem as problem:
            self.hold(str(problem), problem.fault)
        if self.command is None or self.state is State.INIT or self._damped:
            return None
        return self.command.copy()

    def stood_still(self, now: float, reading: Reading) -> None:
        """Take a robot's first measurement for that of the period before, too: a simulated robot stood still in it."""
        before = Reading(reading.signals, reading.at - self.period)
        self.tick(now - self.period, before)

    def _clock(self, now: float) -> float:
        """Time since the last tick, s."""
        last = self._now
        now = _time(now)
        if not math.isfinite(now) or now <= last:
            if self.state is State.INIT:
                self._now = (
                    now if math.isfinite(now) else -math.inf
                )  # the last may be the wrong one
            raise _Problem(Fault.CLOCK, f"the clock went from {last} to {now} s")
        self._now = now
        elapsed = now - last
        if self.state is State.ACTIVE:
            self._check_deadline(elapsed)
        return elapsed

    def _later(self, writes_at: float | None) -> float:
        """When ages are judged, s: never before the tick began."""
        if writes_at is None:
            return self._now
        judged = _time(writes_at)
        if not judged >= self._now or judged == math.inf:
            raise _Problem(Fault.CLOCK, f"the clock went from {self._now} to {judged} s")
        return judged

    def _check_deadline(self, elapsed: float) -> None:
        """Raise _Problem for a tick that came far too late, for several in a row that missed their deadline, and for a
        loop that is slower than its rate for long.
        """
        if elapsed > self.cfg.miss_periods * self.period:
            self._misses += 1
        else:
            self._misses = 0
        if elapsed > self.cfg.stall_periods * self.period:
            stood = f"the control loop stood still for {1e3 * elapsed:.0f} ms"
            raise _Problem(Fault.STALLED, stood)
        if self._misses >= self.cfg.misses:
            raise _Problem(Fault.DEADLINES, f"{self._misses} deadlines missed in a row")
        self._lag = max(0.0, self._lag + elapsed - (1.0 + _MADE_UP) * self.period)
        if self._lag > self.cfg.misses * self.cfg.stall_periods * self.period:
            behind = f"the control loop fell {self._lag / self.period:.0f} periods behind"
            raise _Problem(Fault.DEADLINES, f"{behind}: it is slower than its {self.rate:g} Hz")

    def _measured(self, reading: Reading | Missing | None, elapsed: float, judged: float) -> Values:
        """The measured pose, a time `elapsed` after the one before; its age is judged at a time, s."""
        signals = self._signals(reading, judged)
        position = signals[JOINT_POS].tolist()
        low = self._least_measured
        high = self._most_measured
        beyond = "is measured beyond its limits"
        self._within(Fault.SIGNALS_BAD, position, low, high, self._outside, beyond)
        if self.state is not State.INIT:
            time = min(elapsed, 1e6)
            reach = [speed * time for speed in self._plausible_speed]
            low = [before - way for before, way in zip(self._pose, reach)]
            high = [before + way for before, way in zip(self._pose, reach)]
            self._within(Fault.SIGNALS_BAD, position, low, high, self._outside, "jumped out of")
        broken = self._limits.broken(signals)
        if broken:
            raise _Problem(Fault.LIMIT, broken)
        return position

    def _signals(self, reading: Reading | Missing | None, judged: float) -> dict[str, np.ndarray]:
        """The signals of a reading, complete, finite and fresh, (size,) float64 each, and images as they are."""
        if reading is None:
            raise _Problem(Fault.DRIVER, "the robot could not be read")
        if isinstance(reading, Missing):
            raise _Problem(reading.fault, reading.reason)
        try:
            age = judged - float(reading.at)
            newer = float(reading.at) - self._now
            values = {}
            for signal in self.robot.signals:
                values[signal.name] = _measurement(signal, reading.signals.get(signal.name))
        except Exception as error:  # whatever a driver took for a Reading
            wrong = f"the measurement is no Reading ({type(error).__name__})"
            raise _Problem(Fault.SIGNALS_BAD, wrong) from None
        oldest = self.cfg.signal_periods * self.period + _SOON
        if not (age <= oldest and newer <= self.period):  # it may be newer than the tick
            raise _Problem(Fault.SIGNALS_STALE, f"the measurement is {1e3 * age:.0f} ms old")
        for name, value in values.items():
            if value is None:
                wrong = f"signal '{name}' is missing, misshapen or not finite"
                raise _Problem(Fault.SIGNALS_BAD, wrong)
        return values

    def _find(self, position: Values, at: float) -> None:
        """Settle on a pose that was measured twice in a row: a single wrong measurement commands nothing."""
        spare = "stands outside of what safety.margin leaves it,"
        self._within(Fault.ENVELOPE, position, self._lower, self._upper, self._outside, spare)
        if at == self._found_at:
            return  # the same measurement once more
        before = self._pose
        is_first = self._found_at == -math.inf
        self._pose = position
        self._found_at = at
        if is_first:
            return
        apart = [abs(now - then) - near for now, then, near in zip(position, before, self._moved)]
        worst = apart.index(max(apart))
        if apart[worst] > 0:
            name = self.robot.joint_names[worst]
            where = f"{name} was measured at {before[worst]:.4g}, then at {position[worst]:.4g}"
            self.reason = f"{where}: two measurements in a row must agree"
            if self.command is None:
                return  # the next one may agree with this one
            raise _Problem(Fault.SIGNALS_BAD, self.reason)
        self._settle(position)

    def _settle(self, position: Values) -> None:
        """From INIT to READY: command the measured pose, but what was commanded where nothing moved in a hold.

        A gripper goes on holding what it held, an arm does not sag; what somebody moved stays where it was put, and so
        do the joints that are coupled to it.
        """
        command = clipped(position, self._lower, self._upper)
        if self.command is not None and not self._damped:
            moved, leads = self._was_moved(position), self._leads(position)
            displaced = [one or other for one, other in zip(moved, leads)]
            give_up = self._motion.any_coupled(self._slipped(displaced, position))
            hangs = [now - sent for now, sent in zip(position, self._commanded)]
            self._sag = _chosen(give_up, hangs, self._sag)
            command = _chosen(give_up, command, self._commanded)
        self._command(command)
        self._rest = position
        self._damped = False
        self.state = State.READY
        self.reason = ""

    def _follow(self, position: Values, period: float, targets: np.ndarray | None) -> None:
        """Move the command towards where it should be, as far as it may in this tick."""
        self._check_following(position)
        self._check_encoders(position)
        self._check_response(position)
        self._active_s += period
        if self._approach_s:
            self._approach(position, period)
        elif targets is not None:
            self._follow_policy(targets, period)
        else:
            self._check_silence()

    def _check_following(self, position: Values) -> None:
        """Raise _Problem if the tracking error of a joint is too large."""
        leads = self._leads(position)
        if True in leads:
            worst = leads.index(True)
            name = self.robot.joint_names[worst]
            where = f"{name} is at {position[worst]:.4g}, sent to {self._commanded[worst]:.4g}"
            why = "it is blocked, without power, or its sensor is stuck"
            raise _Problem(Fault.FOLLOWING, f"{where}: {why}")

    def _check_encoders(self, position: Values) -> None:
        """Raise _Problem if a joint gives the very same number while its command moves on."""
        changed = [now != before for now, before in zip(position, self._pose)]
        self._read_at = _chosen(changed, self._commanded, self._read_at)
        moved = [abs(sent - then) for sent, then in zip(self._commanded, self._read_at)]
        stuck = [way > bound for way, bound in zip(moved, self._frozen)]
        if True in stuck:
            worst = stuck.index(True)
            name = self.robot.joint_names[worst]
            same = f"{name} is measured at {position[worst]:.4g} all along"
            why = "its encoder is stuck, or the joint is"
            raise _Problem(
                Fault.ENCODER, f"{same} while its command moved by {moved[worst]:.3g}: {why}"
            )

    def _check_response(self, position: Values) -> None:
        """Raise _Problem if a joint does not move with its command."""
        found = self._response.unresponsive(self._commanded, position)
        if found:
            name = self.robot.joint_names[found.joint]
            units = self.robot.joints[found.joint].units
            moved = f"its command moved by {found.excitation:.2g} {units} about its mean"
            where = f"{name} follows by {found.gain:.2f} of its command, and not by 1: {moved}"
            why = "its encoder is stuck, its sign flipped, or its servo takes no commands"
            raise _Problem(Fault.FOLLOWING, f"{where}; {why}")

    def _check_operator(self, heard_at: float | None, judged: float) -> None:
        """Raise _Problem if the policy acts on words that are too old, at a time, s."""
        if heard_at is None or self._approach_s:
            return
        age = judged - _time(heard_at)
        if not -self.period <= age <= self.cfg.input_s:  # a NaN is not
            heard = f"the operator was heard {1e3 * age:.0f} ms ago"
            raise _Problem(
                Fault.INPUT_STALE, f"{heard}, at most {1e3 * self.cfg.input_s:.0f} are allowed"
            )

    def _approach(self, position: Values, period: float) -> None:
        """Move the command on its way home, along a smoothstep from where the start found it."""
        phase = min(1.0, self._active_s / self._approach_s)
        part = phase * phase * (3.0 - 2.0 * phase)
        goal = [start + part * (home - start) for start, home in zip(self._origin, self._home)]
        self._move(goal, goal, 1.0, period)
        if phase == 1.0:
            self._arrive(position)

    def _follow_policy(self, targets: np.ndarray, period: float) -> None:
        """Move the command towards the policy's targets, slowly at first."""
        numbers = _numbers(targets, (len(self._home),))
        if numbers is None:
            raise _Problem(Fault.POLICY_BAD, "the policy's targets are misshapen or not finite")
        goal = numbers.tolist()
        ramp = 1.0
        if self.cfg.ramp_s:
            ramp = min(1.0, self._active_s / self.cfg.ramp_s)
        self._move(goal, self._motion.coupled(goal), ramp, period)

    def _check_silence(self) -> None:
        """Raise _Problem if the last decision of the policy is too old."""
        silent = self._now - self._decided_at
        if silent > self.cfg.policy_periods * self.period + _SOON:
            wrong = f"no decision of the policy for {1e3 * silent:.0f} ms"
            raise _Problem(Fault.POLICY_STALE, wrong)

    def _move(self, goal: Values, coupled: Values, ramp: float, period: float) -> None:
        """Command the goal with its couplings kept, or as near to it as its bounds allow in a period, s."""
        command, self._velocity = self._motion.towards(
            self._commanded, self._velocity, coupled, ramp, period
        )
        self.clipped += max([abs(sent - end) for sent, end in zip(command, goal)]) > 1e-6
        self._decided_at = self._now
        self._command(command)

    def _arrive(self, position: Values) -> None:
        """Hand over from the approach to the policy, if the robot did come home."""
        far = self._far_from_home(position)
        if far:
            raise _Problem(Fault.ENVELOPE, f"{far}: the approach did not bring it there")
        self._active_s = 0.0
        self._approach_s = 0.0

    def _command(self, command: Values | np.ndarray) -> None:
        self.command = np.array(command, np.float64)
        self.command.setflags(write=False)  # what a policy or a driver is shown, it cannot change
        self._commanded = self.command.tolist()

    # -------------------------------------------------------------- questions

    def _within(
        self,
        fault: Fault,
        position: Values,
        low: Values,
        high: Values,
        tolerance: Values,
        what: str,
    ) -> None:
        """Raise _Problem naming the joint that is furthest beyond bounds and a tolerance."""
        beyond = _beyond(position, low, high, tolerance)
        most = max(beyond)
        if most > 0:
            worst = beyond.index(most)
            name = self.robot.joint_names[worst]
            bounds = f"{low[worst]:.4g} .. {high[worst]:.4g}"
            raise _Problem(fault, f"{name}, at {position[worst]:.4g}, {what} {bounds}")

    def _far_from_home(self, position: Values) -> str:
        """Which joint is furthest outside the start envelope, in words; empty if none is."""
        beyond = [
            abs(now - home) - near for now, home, near in zip(position, self._home, self._envelope)
        ]
        worst = beyond.index(max(beyond))
        if not beyond[worst] > 0:
            return ""
        joint = self.robot.joints[worst]
        stands = f"{joint.name} stands at {position[worst]:.3f}"
        return f"{stands}, home is {joint.home:.3f} {joint.units}"

    def _was_moved(self, position: Values) -> list[bool]:
        """Which joints something moved away from where they stood; not: on to their command."""
        low = [min(pair) for pair in zip(self._rest, self._commanded)]
        high = [max(pair) for pair in zip(self._rest, self._commanded)]
        beyond = _beyond(position, low, high, self._zeros)
        return [way > near for way, near in zip(beyond, self._moved)]

    def _slipped(self, displaced: list[bool], position: Values) -> list[bool]:
        """Which of the displaced joints do not hang off their command as they did off the one before.

        Those that do bear a load, nobody moved them: to give their command up once more would lower them each time.
        """
        slipped = displaced.copy()
        for place, sag in enumerate(self._sag):
            hangs = position[place] - self._commanded[place]
            tolerance = self._moved[place]
            sags = abs(sag) > tolerance and abs(hangs - sag) <= max(tolerance, 0.5 * abs(sag))
            slipped[place] &= not sags
        return slipped

    def _leads(self, position: Values) -> list[bool]:
        """Which joints have too large a tracking error; a gripper's has no bound."""
        return [
            abs(sent - now) > bound
            for sent, now, bound in zip(self._commanded, position, self._lead)
        ]

    def _require(self, state: State, verb: str, other: State | None = None) -> None:
        if self.state not in (state, other):
            why = ""
            if self.reason:
                why = f" ({self.reason})"
            raise SafetyError(f"cannot {verb} in state {self.state}{why}, only in {state}")

    # -------------------------------------------------------------- snapshots

    def snapshot(self) -> dict[str, np.ndarray | float | str]:
        """All that the kernel remembers, as numbers, arrays and text: what `restore` takes."""
        snapshot: dict[str, np.ndarray | float | str] = {}
        for name in _TEXTS:
            snapshot[name] = str(getattr(self, name))
        for name in _NUMBERS:
            snapshot[name.strip("_")] = float(getattr(self, name))
        for name in _ARRAYS:
            snapshot[name.strip("_")] = np.array(getattr(self, name), np.float64)
        snapshot["response"] = self._response.snapshot()
        if self.command is None:
            snapshot["command"] = np.full(len(self._home), np.nan)
        else:
            snapshot["command"] = self.command.copy()
        return snapshot

    def restore(self, snapshot: Mapping[str, np.ndarray | float | str]) -> None:
        """Go on from a snapshot of a kernel of the same robot, rate and bounds, bit for bit.

        Raises SafetyError if it is no snapshot of such a kernel.
        """
        rest = np.zeros(len(self._home))
        older = {
            "damped": 0.0,
            "velocity": rest,
            "read_at": rest,
            "response": np.zeros(0),
        }  # that logs did not have at first
        snapshot = {**older, **snapshot}
        try:
            state = State(str(snapshot["state"]))
            fault = Fault(str(snapshot["fault"]))
            reason = str(snapshot["reason"])
            numbers = self._snapshot_numbers(snapshot)
            arrays = self._snapshot_arrays(snapshot)
            command = self._snapshot_command(snapshot, state)
            self._response.restore(np.array(snapshot["response"], np.float64))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            wrong = " ".join(str(error).split())[:100]
            raise SafetyError(f"no snapshot of this kernel: {wrong}") from None
        self.state = state
        self.fault = fault
        self.reason = reason
        for name, value in (numbers | arrays).items():
            setattr(self, name, value)
        self.command = None
        self._commanded = []
        if command is not None:
            self._command(command)

    def _snapshot_numbers(
        self, snapshot: Mapping[str, np.ndarray | float | str]
    ) -> dict[str, float]:
        """Attributes that are numbers. Raises KeyError, TypeError, ValueError or OverflowError."""
        numbers = {}
        for name in _NUMBERS:
            value = float(snapshot[name.strip("_")])
            if math.isnan(value):
                raise _not_this_robot()
            numbers[name] = int(value) if name in _COUNTS else value
        return numbers

    def _snapshot_arrays(
        self, snapshot: Mapping[str, np.ndarray | float | str]
    ) -> dict[str, Values]:
        """Attributes that are arrays, (num_joints,). Raises KeyError, TypeError or ValueError."""
        arrays = {}
        for name in _ARRAYS:
            array = np.array(snapshot[name.strip("_")], np.float64)
            if array.shape != (len(self._home),) or not np.isfinite(array).all():
                raise _not_this_robot()
            arrays[name] = array.tolist()
        return arrays

    def _snapshot_command(
        self, snapshot: Mapping[str, np.ndarray | float | str], state: State
    ) -> np.ndarray | None:
        """The command, within limits, or None before the first. Raises KeyError, TypeError or ValueError."""
        command = np.array(snapshot["command"], np.float64)
        if command.shape != (len(self._home),):
            raise _not_this_robot()
        if np.all((np.array(self._lower) <= command) & (command <= np.array(self._upper))):
            return command
        if np.isnan(command).all() and state in (State.INIT, State.STOP):
            return None
        raise _not_this_robot()


def _time(value: object) -> float:
    """A time, s; NaN for whatever else a caller took for one."""
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except Exception:
        return math.nan


def _not_this_robot() -> ValueError:
    return ValueError("its values are not those of this robot")


def _beyond(position: Values, low: Values, high: Values, tolerance: Values) -> Values:
    """How far each joint is beyond bounds and a tolerance; negative within."""
    return [
        max(least - now, now - most) - near
        for now, least, most, near in zip(position, low, high, tolerance)
    ]


def _chosen(flags: list[bool], these: Values, others: Values) -> Values:
    """These where it is so, elsewhere the others."""
    return [this if flag else other for flag, this, other in zip(flags, these, others)]


def _measurement(signal: Signal, value: object) -> np.ndarray | None:
    """The value of a signal, None if it is not what the robot should measure. Raises nothing."""
    if not signal.is_image:
        return _numbers(value, signal.shape)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.shape == signal.shape:
        return value
    return None


def _numbers(value: object, shape: tuple[int, ...]) -> np.ndarray | None:
    """The value as an array of finite float64 of this shape; None if it is anything else. Raises nothing."""
    if not isinstance(value, (np.ndarray, list, tuple)):
        return None
    try:
        array = np.asarray(value)
        if array.shape != shape or array.dtype.kind not in "fiu":
            return None
        if array.dtype != np.float64:
            with np.errstate(all="ignore"):
                array = array.astype(np.float64)
    except Exception:  # lists may hold anything
        return None
    return array if all_finite(array) else None
