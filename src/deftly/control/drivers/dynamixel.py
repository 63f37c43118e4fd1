"""A LEAP hand: sixteen XC330-M288 servos on one bus, behind the driver interface. See docs/leap.md.

Registers and units are those of the ROBOTIS e-manual, XC330-M288-T. A turn has 4096 ticks; LEAP's zero pose, the flat
hand, is 180 degrees: tick 2048. So a motor's position in the robot interface, rad, is 0 at tick 2048.

Each reading is one exchange: currents, velocities, positions, and whether each motor is as it was left. Motors are
commanded nothing, and keep their torque as it was, until the first `write`.
"""

from __future__ import annotations

import math
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from deftly.contract import JOINT_POS, RobotInterface, Signal
from deftly.control.drivers import Driver, DriverError, OtherWriterError, Reading
from deftly.control.drivers.buses import BUSES, LEAP
from deftly.control.drivers.dynamixel_bus import BAUDS, Bus
from deftly.control.drivers.serial_port import NoAnswer

MODEL = 1240
MODELS = {
    1190: "XL330-M077",
    1200: "XL330-M288",
    1210: "XC330-T181",
    1220: "XC330-T288",
    1230: "XC330-M181",
}
MODELS |= {MODEL: "XC330-M288"}
BAUD = 4_000_000
P_GAIN = 1139
I_GAIN = 0
D_GAIN = 148
"""Gains of the servo's position controller, in its own units: what robots/leap_hand.py simulates."""
CURRENT_MA = LEAP.current_ma
"""Likewise: 0.29 N m."""
MOST_MA = 1200
"""Largest current that may be asked for: the makers of the hand found about 600 good; a motor at 5 V stalls at 1800."""
TURN = 4096
"""Ticks of a turn."""
ZERO = 2048
"""The tick of zero."""
RAD = 2 * math.pi / TURN
"""A tick, rad."""
SPEED = 0.229 * 2 * math.pi / 60
"""A unit of velocity, rad/s."""

# Addresses of registers.
RETURN_DELAY = 9
DRIVE_MODE = 10
OPERATING_MODE = 11
PWM_LIMIT = 36
TORQUE = 64
RETURN_LEVEL = 68
HARDWARE_ERROR = 70
GAINS = 80
FEED_FORWARD = 88
WATCHDOG = 98
GOAL_PWM = 100
GOAL_CURRENT = 102
PROFILE = 108
GOAL_POSITION = 116
PRESENT = 126
POSITION = 132
INDIRECT_ADDRESS = 168
INDIRECT_DATA = 208

CURRENT_BASED_POSITION = 5
"""The operating mode."""
FULL_PWM = struct.pack("<H", 885)
"""All of the voltage (e-manual, PWM Limit): less makes a motor slow and weak, whatever its current may be."""
REVERSE = 1
"""Bit of the drive mode."""
GOAL = (GOAL_POSITION, GOAL_POSITION + 1)
"""The goal's lower half: the servo has twenty indirect addresses, and this tells goals apart."""
STATE = (TORQUE, RETURN_LEVEL, HARDWARE_ERROR, WATCHDOG, *GOAL, *range(PRESENT, PRESENT + 10))
"""Registers of a reading, byte by byte; the servo's indirect addresses bring them together."""
STATE_FORMAT = "<BBBBHhii"
SPARE = (144, 145, 146)
"""Readings in turn are up to three bytes longer: an answer that comes too late has another length, and is not used."""
TRIPPED = 255
ERRORS = {0: "input voltage", 2: "overheating", 3: "encoder", 4: "electrical shock", 5: "overload"}
"""Bits of Hardware Error Status (70)."""
PASSING = 1 << 0 | 1 << 2 | 1 << 5
"""Those after which a motor that is let start anew may go on: voltage, heat and load pass."""

PING_S = 0.05
SET_UP_S = 0.1
REBOOT_S = 2.0
"""Longest wait for a motor that starts anew."""
TIMEOUT_PERIODS = 0.2
"""Longest wait for the motors' answers, control periods. There may be two, and a ping: three fifths at worst."""
WATCHDOG_S = 0.5
WATCHDOG_UNIT_S = 0.02
WATCHDOG_MOST = 127
WATCHDOG_PERIODS = 5
"""More than the control loop's own patience, `stall_periods`."""
UNITS = {JOINT_POS: "rad", "joint_vel": "rad/s", "joint_current": "A"}
"""Signals that the hand can give, of the size of its joints."""


class Dynamixel(Driver):
    """The motors of a robot. Raises DriverError, one line, unless each of them is there, well, and set up.

    Args:
        robot: its `motors` say in which order and which way joints are turned; `buses.BUSES` has their ids.
        rate: of the control loop, Hz.
        port: the serial port, such as /dev/ttyUSB0.
        baud: rate of the bus.
        current_ma: largest current of each motor, mA.
        timeout: longest wait for an answer, s; unset: `TIMEOUT_PERIODS`.
    """

    approach_s = 3.0
    """Time in which `deftly run` brings the hand home before the policy drives, unless it is told otherwise, s."""

    def __init__(
        self,
        robot: RobotInterface,
        rate: float,
        port: str | None,
        baud: int = BAUD,
        current_ma: int = CURRENT_MA,
        timeout: float | None = None,
    ):
        _require(robot, rate, current_ma)
        if port is None:
            raise DriverError("--driver leap needs --port, such as /dev/ttyUSB0")
        bus = BUSES[robot.name]
        self.robot = robot
        self.rate = rate
        self.port = port
        self.baud = baud
        self.lead = bus.lead
        self.timeout = TIMEOUT_PERIODS / rate if timeout is None else timeout
        self._ids = list(bus.ids)
        self._names = {i: f"motor {i} ({motor.joint})" for i, motor in zip(bus.ids, robot.motors)}
        self._offset = np.array([motor.offset for motor in robot.motors])
        self._settings = {
            GAINS: struct.pack("<HHH", D_GAIN, I_GAIN, P_GAIN),
            FEED_FORWARD: bytes(4),
            GOAL_PWM: FULL_PWM,
            GOAL_CURRENT: struct.pack("<h", current_ma),
            PROFILE: bytes(8),  # a profile would slow every command down
        }
        patience = max(WATCHDOG_S, WATCHDOG_PERIODS / rate)
        units = math.ceil(patience / WATCHDOG_UNIT_S)
        self._watchdog = bytes([min(WATCHDOG_MOST, units)])
        self._engaged = False
        self._goals: deque[np.ndarray] = deque(maxlen=2)  # written last, since torque is on, ticks
        self._asked = 0
        self.retries = 0
        """Questions that had to be asked twice."""
        self.lost = 0
        """Questions that had no answer the second time either."""
        self._spare: Reading | None = None
        self._bus = Bus(port, baud)
        try:
            self._require_motors()
            self._set_up()
            self._zero = self._find_zero()
            self._require_speed()
        except BaseException:
            self._bus.close()
            raise

    # --------------------------------------------------------------- the loop

    def read(self) -> Reading:
        """The joints, and what else the robot interface asks for. Raises DriverError for a motor that is not well.

        The last reading stands in, at its own time, for one that is lost; not for a second one in a row.
        """
        at = time.monotonic()
        spare = self._spare
        self._spare = None
        try:
            answers = self._twice(self._exchange)
        except NoAnswer as failed:
            self.lost += 1
            if spare is None:
                raise DriverError(self._blame(failed)) from None
            return spare
        rows = np.array([struct.unpack_from(STATE_FORMAT, answer) for answer in answers])
        torque, level, error, watchdog, goal, current, velocity, ticks = rows.T
        self._require_well(torque, level, error, watchdog)
        self._require_alone(goal)
        # from_motors takes the offset off, which speeds and currents do not have.
        measured = {
            JOINT_POS: (ticks - self._zero) * RAD,
            "joint_vel": velocity * SPEED + self._offset,
            "joint_current": 1e-3 * current + self._offset,
        }
        signals = {}
        for signal in self.robot.signals:
            signals[signal.name] = self.robot.from_motors(measured[signal.name])
        self._spare = Reading(signals, at)
        return self._spare

    def write(self, targets: np.ndarray) -> None:
        """Command joint targets, (num_joints,) rad. The first one switches torque and watchdog on."""
        motors = self.robot.to_motors(np.asarray(targets, np.float64))
        if not np.isfinite(motors).all():
            raise DriverError("a target is no number")
        ticks = np.rint(motors / RAD + self._zero).astype(np.int64)
        goals = [struct.pack("<i", int(tick)) for tick in ticks]
        self._bus.write(self._ids, GOAL_POSITION, goals)
        if self._engaged:
            self._goals.append(ticks)
        else:
            self._engage()

    def damp(self) -> None:
        """Hold: a hand cannot fall, and would drop what it holds."""

    def stop(self) -> None:
        """Let go of the port. The motors hold their last target within their current; nothing watches them any more."""
        with suppress(DriverError):  # if the port is gone, the watchdog stops them
            if self._engaged:
                self._write(WATCHDOG, bytes(1))
        self._engaged = False
        self._bus.close()

    def _engage(self) -> None:
        """Torque on, at the target that was just written; then the settings, which a change of mode may have reset."""
        self._write(TORQUE, b"\x01")
        for address, value in self._settings.items():
            self._write(address, value)
        self._write(WATCHDOG, self._watchdog)
        self._engaged = True
        self._goals.clear()

    def _exchange(self) -> list[bytes]:
        """The state of each motor."""
        self._asked += 1
        length = len(STATE) + self._asked % (len(SPARE) + 1)
        return self._bus.read(self._ids, INDIRECT_DATA, length, self.timeout)

    def _twice(self, ask: Callable[[], list[bytes]]) -> list[bytes]:
        """The answers. What was lost or damaged is asked for once more. Raises NoAnswer."""
        try:
            return ask()
        except NoAnswer:
            self.retries += 1
            self._bus.settle(0.25 * self.timeout)
        return ask()

    def _blame(self, failed: NoAnswer) -> str:
        """Who does not answer. Motors answer in turn, so behind one that is missing nobody does."""
        name = self._names[failed.motor]
        if failed.heard:
            answer = f"the answer of {name} on {self.port}"
            return f"{answer} is damaged: cable, or two motors with one id?"
        is_first = failed.motor == self._ids[0]
        if is_first and self._bus.ping(self._ids[-1], self.timeout) is None:
            return f"no motor answers on {self.port}: cable or power?"
        return f"{name} does not answer on {self.port}"

    def _require_well(
        self, torque: np.ndarray, level: np.ndarray, error: np.ndarray, watchdog: np.ndarray
    ) -> None:
        """Raise DriverError unless each motor is as it was left."""
        if error.any():
            raise DriverError(f"{self._ill(error)}: {self._cure(error)}")
        # A motor that restarted has forgotten its indirect addresses, and answers 0.
        restarted = (level == 0) | (self._engaged & (torque == 0))
        if restarted.any():
            name = self._names[self._ids[int(restarted.argmax())]]
            advice = "is the supply too weak? End the run, start it again"
            raise DriverError(f"{name} has restarted and let go: {advice}")
        if self._engaged and (watchdog == TRIPPED).any():
            self._engaged = False  # the next command takes them up again
            self._write(WATCHDOG, bytes(1))
            seconds = self._watchdog[0] * WATCHDOG_UNIT_S
            raise DriverError(f"the motors stopped by themselves: no packet for {seconds:g} s")

    def _require_alone(self, goal: np.ndarray) -> None:
        """Raise OtherWriterError for a goal, lower half, that is not one of the last two: one may get lost."""
        if not self._engaged or len(self._goals) < 2:
            return
        ours = [goal == goals & 0xFFFF for goals in self._goals]
        foreign = ~(ours[0] | ours[1])
        if foreign.any():
            name = self._names[self._ids[int(foreign.argmax())]]
            raise OtherWriterError(
                f"{name} has a goal that is not ours: end the other program on {self.port}"
            )

    def _ill(self, error: np.ndarray) -> str:
        """The first motor that reports a fault, and which."""
        first = int((error != 0).argmax())
        bits = int(error[first])
        words = [word for bit, word in ERRORS.items() if bits & 1 << bit]
        reported = " and ".join(words) or f"error {error[first]}"
        return f"{self._names[self._ids[first]]} reports {reported}"

    def _cure(self, error: np.ndarray) -> str:
        """What to do about the first motor that reports a fault."""
        if int(error[error != 0][0]) & ~PASSING:
            return "switch its power off and on, and see docs/leap.md"
        return "end the run, let it cool, start it again: the start reboots it"

    # -------------------------------------------------------------- the start

    def _require_motors(self) -> None:
        """Raise DriverError unless every motor answers, is of the right model, turns the usual way, and is well.

        One that was too hot, overloaded or short of voltage has let go already: it is rebooted, once.
        """
        models = {}
        for i in self._ids:
            models[i] = self._bus.ping(i, PING_S) or self._bus.ping(i, PING_S)
        self._require_answers(models)
        for i, model in models.items():
            if model != MODEL:
                what = f"model {model} ({MODELS.get(model or 0, 'unknown')})"
                raise DriverError(
                    f"motor {i} is {what}, but the hand has {MODELS[MODEL]} ({MODEL})"
                )
        for i, mode in zip(self._ids, self._read(DRIVE_MODE, 1)):
            if mode[0] & REVERSE:
                advice = "give it Drive Mode 0 with Dynamixel Wizard"
                raise DriverError(f"motor {i} is set to reverse: {advice}")
        error = self._errors()
        if (error & ~PASSING).any():
            broken = np.where(error & ~PASSING, error, 0)
            raise DriverError(f"{self._ill(broken)}: {self._cure(broken)}")
        if error.any():
            self._reboot([i for i, bits in zip(self._ids, error) if bits])
            error = self._errors()
        if error.any():
            advice = "let it cool, look at load and supply, and see docs/leap.md"
            raise DriverError(f"{self._ill(error)}, after a reboot too: {advice}")

    def _errors(self) -> np.ndarray:
        """Hardware errors of each motor, bits."""
        return np.array([row[0] for row in self._read(HARDWARE_ERROR, 1)])

    def _reboot(self, motors: list[int]) -> None:
        """Let motors start anew. Raises DriverError for one that does not come back."""
        for i in motors:
            self._bus.reboot(i, PING_S)
        end = time.monotonic() + REBOOT_S
        for i in motors:
            while self._bus.ping(i, PING_S) is None:
                if time.monotonic() > end:
                    lost = f"{self._names[i]} does not answer after a reboot"
                    raise DriverError(f"{lost}: switch its power off and on, and see docs/leap.md")

    def _require_answers(self, models: dict[int, int | None]) -> None:
        """Raise DriverError for motors without an answer to a ping."""
        missing = [str(i) for i, model in models.items() if model is None]
        if not missing:
            return
        if len(missing) == len(models):
            raise DriverError(self._silent())
        who = f"motor {missing[0]} does"
        if len(missing) > 1:
            who = f"motors {', '.join(missing)} do"
        raise DriverError(f"{who} not answer on {self.port}: check cable and ids")

    def _silent(self) -> str:
        """Why nobody answers: perhaps at another rate somebody does."""
        for baud in BAUDS:
            self._bus.set_baud(baud)
            if baud != self.baud and self._bus.ping(self._ids[0], PING_S) is not None:
                motor = f"motor {self._ids[0]} on {self.port}"
                return f"{motor} speaks {baud} baud, not {self.baud}: give --baud {baud}"
        return f"no motor answers on {self.port} at any rate: check power, cable and ids (docs/leap.md)"

    def _set_up(self) -> None:
        """Bring every register to what the simulation assumes. Torque is switched off only if it must be."""
        self._write(WATCHDOG, bytes(1))  # of a run that crashed: until then no goal is taken
        registers = STATE + SPARE
        fixed = {
            RETURN_DELAY: bytes(1),
            OPERATING_MODE: bytes([CURRENT_BASED_POSITION]),
            PWM_LIMIT: FULL_PWM,
            INDIRECT_ADDRESS: struct.pack(f"<{len(registers)}H", *registers),
        }
        changed = {
            address: value for address, value in fixed.items() if not self._all_have(address, value)
        }
        if changed:  # a motor with torque takes none of these; and its memory wears out by writing
            self._write(TORQUE, bytes(1))
        for address, value in {**changed, **self._settings}.items():
            self._write(address, value)
            self._require_value(address, value)

    def _all_have(self, address: int, value: bytes) -> bool:
        """Whether each motor has these bytes."""
        return all(row == value for row in self._read(address, len(value)))

    def _require_value(self, address: int, value: bytes) -> None:
        """Raise DriverError unless each motor has these bytes."""
        for i, row in zip(self._ids, self._read(address, len(value))):
            if row != value:
                refused = f"{self._names[i]} does not take {value.hex()} at {address}"
                raise DriverError(f"{refused}: it has {row.hex()}")

    def _find_zero(self) -> np.ndarray:
        """The tick of each motor's zero: of those a turn apart, the one that has the joint nearest to its range."""
        middle = np.array([(joint.lower + joint.upper) / 2 for joint in self.robot.joints])
        middle_ticks = self.robot.to_motors(middle) / RAD
        ticks = np.array([struct.unpack("<i", row)[0] for row in self._read(POSITION, 4)])
        turns = np.rint((ticks - ZERO - middle_ticks) / TURN).astype(np.int64)
        return ZERO + TURN * turns

    def _require_speed(self) -> None:
        """Raise DriverError if reading takes longer than the control loop can wait."""
        least = math.inf
        for _ in range(10):  # a computer that is busy for a moment is not a slow adapter
            began = time.monotonic()
            self._read(INDIRECT_DATA, len(STATE))
            least = min(least, time.monotonic() - began)
            if least <= self.timeout:
                return
        allowed = f"at {self.rate:g} Hz at most {1e3 * self.timeout:.1f} are left"
        takes = f"reading {self.port} takes {1e3 * least:.1f} ms, {allowed}"
        raise DriverError(f"{takes}: set its latency timer to 1 ms (docs/leap.md)")

    def _read(self, address: int, length: int) -> list[bytes]:
        """Bytes of each motor, when there is time."""
        try:
            return self._twice(lambda: self._bus.read(self._ids, address, length, SET_UP_S))
        except NoAnswer as failed:
            raise DriverError(self._blame(failed)) from None

    def _write(self, address: int, value: bytes) -> None:
        """The same bytes to all motors."""
        self._bus.write(self._ids, address, [value] * len(self._ids))


def _require(robot: RobotInterface, rate: float, current_ma: int) -> None:
    """Raise DriverError unless these motors can be what the robot interface says."""
    if not robot.motors:
        raise DriverError(
            f"the interface of {robot.name} names no motors: --driver leap drives LEAP hands"
        )
    if robot.name not in BUSES or len(BUSES[robot.name].ids) != len(robot.motors):
        raise DriverError(
            f"no bus is known for {robot.name}: --driver leap drives {', '.join(BUSES)}"
        )
    for joint in robot.joints:
        if joint.units != "rad":
            slides = f"joint {joint.name} of {robot.name} does not turn"
            raise DriverError(f"{slides}: the driver's motors only do")
    for signal in robot.signals:
        _require_signal(robot, signal)
    if not 1 <= current_ma <= MOST_MA:
        raise DriverError(f"--current-ma is {current_ma}, but it must be within 1 .. {MOST_MA}")
    if rate < WATCHDOG_PERIODS / (WATCHDOG_UNIT_S * WATCHDOG_MOST):
        raise DriverError(f"{robot.name} runs at {rate:g} Hz: too slow for the motors' watchdog")


def _require_signal(robot: RobotInterface, signal: Signal) -> None:
    has_units = signal.units in ("", UNITS.get(signal.name))
    if signal.size != len(robot.joints) or not has_units:
        known = ", ".join(f"{name} ({units})" for name, units in UNITS.items())
        asked = f"'{signal.name}' ({signal.units or 'no unit'})"
        raise DriverError(f"the hand does not measure {asked}, but {known}")
