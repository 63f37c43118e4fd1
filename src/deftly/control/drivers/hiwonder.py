"""The Hiwonder servos of a robot, on one serial port or several. See docs/wildrobot-hardware.md.

A servo is asked for its position alone, which takes some milliseconds, and commanded alone: no packet is for all. So
each port has a thread, which sends the newest command first and asks one servo after another the rest of the time; a
control loop waits for neither. Positions are thus of different times, and a reading is as old as the oldest of them.

Servos are commanded nothing, and keep their torque as it was, until the first `write`. They have no watchdog: the
threads take their torque away if the loop says nothing for `SILENCE_S`; if the computer dies, nobody does.
"""

from __future__ import annotations

import math
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from deftly.contract import RobotInterface
from deftly.control.drivers.buses import SERVOS, ServoBus
from deftly.control.drivers.hiwonder_bus import (
    ANGLE_LIMIT_READ,
    BAUD,
    BROADCAST,
    ID_READ,
    LOAD_OR_UNLOAD_READ,
    LOAD_OR_UNLOAD_WRITE,
    MODE_READ,
    MOVE_TIME_WRITE,
    POS_READ,
    TEMP_READ,
    VIN_READ,
    Bus,
    packed,
    wire_s,
)
from deftly.control.drivers.poller import Poller
from deftly.control.drivers.protocol import DriverError
from deftly.control.drivers.serial_port import NoAnswer

UNITS = 1000
"""Units of the servo's whole range."""
UNIT = math.radians(240) / UNITS
"""A unit, rad: 0.24 degrees."""
CENTRE = 500
"""The unit of a motor's zero."""
AT_ONCE = 0
"""Time of a motion, ms: none, since the servo's own profile would lag behind what a policy asks for."""
TIMEOUT_S = 0.008
"""Longest wait for an answer, s: twice what a servo and a USB adapter take (3.6 ms, measured by WildRobot's makers)."""
SETTLED_S = 1.0
"""Longest wait for the first positions, s."""
STALE_PERIODS = 1.5
"""Oldest position that is used, control periods, as the safety kernel has it."""
SILENCE_S = 0.5
"""The servos lose their torque if the control loop says nothing for so long."""
CYCLES = 4
"""Times that all positions are asked for between two questions after a servo's health."""
HEALTH = (VIN_READ, TEMP_READ, LOAD_OR_UNLOAD_READ)
LOW_READINGS = 2
"""Readings in a row of a supply that is too low, of any servos: one may be a step's."""
UNLOAD, LOAD = b"\0", b"\1"


class Line:
    """The servos of one port, and the thread that speaks with them.

    Args:
        bus: the port.
        names: of the servos, by id: what messages call them.
        facts: which supply and temperature are healthy.
    """

    def __init__(self, bus: Bus, names: Mapping[int, str], facts: ServoBus):
        self.bus = bus
        self.names = names
        self.units: dict[int, int] = {}
        """Last measured position of each servo."""
        self.times: dict[int, float] = {}
        """When, on the monotonic clock, s."""
        self.lost: dict[int, NoAnswer] = {}
        """Servos that did not answer when they were asked last, twice."""
        self.retries = 0
        """Questions that had to be asked twice."""
        self.unanswered = 0
        """Questions in a row, to whom it may be, that nobody answered."""
        self.ill = ""
        """What is wrong with a servo, in a line, until the run ends; empty if nothing is."""
        self.loaded = False
        """Whether the servos were given torque."""
        self._silence = ""  # the same of the control loop, until somebody heard it
        self._facts = facts
        self._volts: deque[float] = deque(maxlen=LOW_READINGS)
        self._order: dict[int, int] | None = None  # goals that were not sent yet; empty: let go
        self._lock = threading.Lock()
        self._heard_at = math.inf  # the control loop, s
        self._turns = 0
        self._poller = Poller(f"servos at {bus.path}", self.turn)

    def start(self) -> None:
        """Begin to speak."""
        self._poller.start()

    def require_port(self) -> None:
        """Raise DriverError if the port is gone."""
        self._poller.require()

    def require(self) -> None:
        """Raise DriverError if the port is gone, or a servo is not well."""
        self.require_port()
        wrong = self.ill or self._silence
        self._silence = ""
        if wrong:
            raise DriverError(wrong)

    def order(self, goals: Mapping[int, int]) -> None:
        """Command servos to units, by id, as soon as the line is free; none: let go. Only the newest order counts."""
        with self._lock:
            self._order = dict(goals)
            self._heard_at = time.monotonic()

    def close(self) -> None:
        """Carry out the last order, and let go of the port."""
        if self._poller.close():
            with suppress(DriverError):
                self._obey()
        self.bus.close()

    def turn(self) -> None:
        """Send the newest order, or else ask one question."""
        if self._obey():
            return
        if self.loaded and time.monotonic() - self._heard_at > SILENCE_S:
            self._let_go()
            self._silence = f"the servos let go: the control loop said nothing for {SILENCE_S:g} s"
            return
        cycle, place = divmod(self._turns, len(self.names) + 1)
        self._turns += 1
        ids = list(self.names)
        if place < len(ids):
            self._measure(ids[place])
        elif cycle % CYCLES == 0:
            servo, quantity = divmod(cycle // CYCLES, len(HEALTH))
            self.examine(ids[servo % len(ids)], HEALTH[quantity])

    def _obey(self) -> bool:
        """Whether there was an order."""
        with self._lock:
            order = self._order
            self._order = None
        if order is None:
            return False
        if not order:
            self._let_go()
            return True
        for servo, goal in order.items():
            self.bus.tell(servo, MOVE_TIME_WRITE, struct.pack("<HH", goal, AT_ONCE))
        if not self.loaded:  # only now, or they would leap to where they were sent before
            self.loaded = True
            for servo in order:
                self.bus.tell(servo, LOAD_OR_UNLOAD_WRITE, LOAD)
        return True

    def _let_go(self) -> None:
        """Take the torque away from all servos, of this line's and of all that may be there."""
        self.bus.tell(BROADCAST, LOAD_OR_UNLOAD_WRITE, UNLOAD)
        for servo in self.names:
            self.bus.tell(servo, LOAD_OR_UNLOAD_WRITE, UNLOAD)
        self.loaded = False

    def _measure(self, servo: int) -> None:
        """Ask a servo where it is."""
        answer = self.ask(servo, POS_READ)
        if answer:
            self.units[servo] = answer[0]
            self.times[servo] = self.bus.asked_at

    def examine(self, servo: int, quantity: int) -> None:
        """Ask a servo for its supply, its temperature, or whether it has torque."""
        loaded = self.loaded
        answer = self.ask(servo, quantity)
        if not answer:
            return
        name = self.names[servo]
        if quantity == VIN_READ:
            self._judge_supply(name, 1e-3 * answer[0])
        elif quantity == TEMP_READ and answer[0] > self._facts.celsius:
            hot = f"{name} has {answer[0]} degrees Celsius, at most {self._facts.celsius:g}"
            self.ill = f"{hot}: end the run, let it cool, and look for what it presses against"
        elif quantity == LOAD_OR_UNLOAD_READ and loaded and not answer[0]:
            gone = f"{name} has let go by itself"
            self.ill = f"{gone}: it was overloaded, too hot, or the supply gave way for a moment"

    def _judge_supply(self, name: str, volts: float) -> None:
        self._volts.append(volts)
        low, high = self._facts.volts
        if volts > high:
            self.ill = f"{name} measures {volts:.1f} V, at most {high:g}: another supply"
        elif len(self._volts) == LOW_READINGS and max(self._volts) < low:
            self.ill = f"{name} measures {volts:.1f} V, at least {low:g}: charge the battery"

    def ask(self, servo: int, command: int) -> tuple[int, ...]:
        """The answer; empty if there is none to a second question either."""
        for _ in range(2):
            try:
                answer = self.bus.ask(servo, command, TIMEOUT_S)
            except NoAnswer as failed:
                self.retries += servo not in self.lost
                self.lost[servo] = failed
                continue
            self.lost.pop(servo, None)
            self.unanswered = 0
            return answer
        self.unanswered += 1
        return ()


class Servos:
    """All servos of a robot. Raises DriverError, one line, unless each of them is there, well, and fast enough.

    Args:
        robot: its `motors` say in which order and which way joints are turned, and how they are mounted.
        rate: of the control loop, Hz.
        port: serial ports with commas between; which servo is at which is found out.
    """

    def __init__(self, robot: RobotInterface, rate: float, port: str | None):
        _require_known(robot)
        if not port:
            raise DriverError("--driver wildrobot needs --port, such as /dev/ttyUSB0,/dev/ttyUSB1")
        self.robot = robot
        self.rate = rate
        self._facts = SERVOS[robot.name]
        self._ids = self._facts.ids
        self._names = {i: f"servo {i} ({motor.joint})" for i, motor in zip(self._ids, robot.motors)}
        self._ranges = self._require_range()
        self._damaged: set[int] = set()
        self.lines: list[Line] = []
        buses: list[Bus] = []
        try:
            buses.extend(Bus(path.strip(), BAUD) for path in port.split(","))
            self.lines = self._find(buses)
            self._require_set_up()
            self._require_speed()
            for line in self.lines:
                line.start()
            self._wait()
        except BaseException:
            self.stop()
            for bus in buses:
                bus.close()
            raise

    def read(self) -> tuple[np.ndarray, float]:
        """Joint positions, (num_joints,) rad, and when the oldest of them was measured, s on the monotonic clock.

        Raises DriverError for a servo that does not answer or is not well.
        """
        now = time.monotonic()
        for line in self.lines:
            line.require()
            for servo, failed in list(line.lost.items()):
                if now - line.times[servo] > STALE_PERIODS / self.rate:
                    raise DriverError(self._blame(line, failed))
        units = np.array([self._line_of(i).units[i] for i in self._ids], np.float64)
        oldest = min(min(line.times.values()) for line in self.lines)
        return self.robot.from_motors(self._facts.direction * UNIT * (units - CENTRE)), oldest

    def write(self, targets: np.ndarray) -> None:
        """Command joint targets, (num_joints,) rad. The first one gives the servos torque."""
        motors = self.robot.to_motors(np.asarray(targets, np.float64))
        if not np.isfinite(motors).all():
            raise DriverError("a target is no number")
        units = np.rint(CENTRE + self._facts.direction * motors / UNIT)
        goals = dict(zip(self._ids, units.clip(0, UNITS).astype(int).tolist()))
        for line in self.lines:
            line.require()
            line.order({i: goals[i] for i in line.names})

    def damp(self) -> None:
        """Take the servos' torque away. They coast: what slows them down is the friction of their gears alone."""
        for line in self.lines:
            line.order({})
        for line in self.lines:
            line.require_port()

    def stop(self) -> None:
        """Carry out the last command, and let go of the ports."""
        for line in self.lines:
            line.close()

    @property
    def retries(self) -> int:
        """Questions that had to be asked twice."""
        return sum(line.retries for line in self.lines)

    def _line_of(self, servo: int) -> Line:
        return next(line for line in self.lines if servo in line.names)

    def _blame(self, line: Line, failed: NoAnswer) -> str:
        """Who does not answer."""
        if line.unanswered > 1 or len(line.lost) == len(line.names):
            return f"no servo answers on {line.bus.path}: cable or power?"
        name = self._names[failed.motor]
        if failed.heard:
            answer = f"the answer of {name} on {line.bus.path}"
            return f"{answer} is damaged: cable, or two servos with one id?"
        return f"{name} does not answer on {line.bus.path}"

    # -------------------------------------------------------------- the start

    def _require_range(self) -> dict[int, tuple[float, float]]:
        """The units between which each servo will be commanded. Raises DriverError for what it cannot reach."""
        bounds = [
            [joint.lower for joint in self.robot.joints],
            [joint.upper for joint in self.robot.joints],
        ]
        motors = self.robot.to_motors(np.array(bounds, np.float64))
        units = np.sort(CENTRE + self._facts.direction * motors / UNIT, axis=0)
        ranges = {}
        for i, low, high in zip(self._ids, *units.tolist()):
            ranges[i] = (low, high)
            if low < -0.5 or high > UNITS + 0.5:
                turns = (
                    f"{self._names[i]} would turn {low:.0f} .. {high:.0f} of its 0 .. {UNITS} units"
                )
                raise DriverError(f"{turns}: mount its horn nearer to the middle, and calibrate")
        return ranges

    def _find(self, buses: Sequence[Bus]) -> list[Line]:
        """Which servos are at which port. Raises DriverError for one that is nowhere, or at several."""
        found: dict[int, list[int]] = {i: [] for i in self._ids}
        for place, bus in enumerate(buses):
            for i in self._ids:
                if self._is_there(bus, i):
                    found[i].append(place)
        missing = [i for i, places in found.items() if not places]
        self._require_none_missing(missing, ", ".join(bus.path for bus in buses))
        for i, places in found.items():
            if len(places) > 1:
                raise DriverError(f"{self._names[i]} is at two ports: give one of them another id")
        lines = []
        for place, bus in enumerate(buses):
            names = {i: self._names[i] for i in self._ids if found[i] == [place]}
            if not names:
                raise DriverError(f"there is no servo of the robot on {bus.path}: leave it out")
            lines.append(Line(bus, names, self._facts))
        return lines

    def _is_there(self, bus: Bus, servo: int) -> bool:
        """Whether a servo answers with its id; one that answers damaged is remembered."""
        for _ in range(2):
            try:
                return bus.ask(servo, ID_READ, 2 * TIMEOUT_S) == (servo,)
            except NoAnswer as failed:
                if failed.heard:
                    self._damaged.add(servo)
        return False

    def _require_none_missing(self, missing: Sequence[int], ports: str) -> None:
        if not missing:
            return
        damaged = [i for i in missing if i in self._damaged]
        if damaged:
            name = self._names[damaged[0]]
            raise DriverError(
                f"the answer of {name} on {ports} is damaged: cable, or two servos with one id?"
            )
        if len(missing) == len(self._ids):
            raise DriverError(
                f"no servo answers on {ports}: check power, cable, adapter and ids "
                "(docs/wildrobot-hardware.md)"
            )
        names = ", ".join(self._names[i] for i in missing)
        does = "does" if len(missing) == 1 else "do"
        raise DriverError(f"{names} {does} not answer on {ports}: check cable and ids")

    def _require_set_up(self) -> None:
        """Raise DriverError for a servo that does not hold positions, may not turn far enough, or is not well."""
        for line in self.lines:
            for i, name in line.names.items():
                if self._value(line, i, MODE_READ)[0]:
                    raise DriverError(f"{name} is set to turn for ever: set it to servo mode")
                low, high = self._value(line, i, ANGLE_LIMIT_READ)
                least, most = self._ranges[i]
                if low > least + 1 or high < most - 1:
                    may = f"{name} may turn {low} .. {high} only, its joint needs {least:.0f} .. {most:.0f}"
                    raise DriverError(f"{may}: set its angle limits to 0 .. {UNITS}")
                for quantity in (VIN_READ, TEMP_READ):
                    line.examine(i, quantity)
            line.require()

    def _value(self, line: Line, servo: int, command: int) -> tuple[int, ...]:
        """What a servo says, when there is time. Raises DriverError."""
        answer = line.ask(servo, command)
        if not answer:
            raise DriverError(self._blame(line, line.lost[servo]))
        return answer

    def _require_speed(self) -> None:
        """Raise DriverError if positions would be too old, by what it takes to ask for them and to command."""
        allowed = STALE_PERIODS / self.rate
        for line in self.lines:
            age = oldest_age(len(line.names), self._question_s(line), self.rate)
            if age > allowed:
                old = f"its positions would be {1e3 * age:.0f} ms old, at most {1e3 * allowed:.0f}"
                what = (
                    f"{line.bus.path} is too slow for {len(line.names)} servos at {self.rate:g} Hz"
                )
                raise DriverError(
                    f"{what}: {old}; give half of them a port of their own, --port A,B "
                    "(docs/wildrobot-hardware.md)"
                )

    def _question_s(self, line: Line) -> float:
        """How long a question and its answer take, s: the middle of several, since computers are busy for a moment."""
        took = []
        for _ in range(3):
            for i in line.names:
                began = time.monotonic()
                self._value(line, i, POS_READ)
                took.append(time.monotonic() - began)
        return sorted(took)[len(took) // 2]

    def _wait(self) -> None:
        """Wait for a first position of each servo. Raises DriverError."""
        end = time.monotonic() + SETTLED_S
        for line in self.lines:
            while len(line.units) < len(line.names):
                line.require()
                if time.monotonic() > end:
                    failed = next(iter(line.lost.values()), NoAnswer(next(iter(line.names)), False))
                    raise DriverError(self._blame(line, failed))
                time.sleep(1e-3)


def _require_known(robot: RobotInterface) -> None:
    """Raise DriverError unless the servos of this robot, and of this variant of it, are known."""
    if robot.name not in SERVOS:
        known = ", ".join(SERVOS)
        raise DriverError(f"no servo bus is known for {robot.name}: this driver drives {known}")
    count = len(SERVOS[robot.name].ids)
    if len(robot.motors) != count:
        motors = f"the interface of {robot.name} has {len(robot.motors)} motors"
        raise DriverError(f"{motors}, the robot {count} servos: is it of another variant?")


def oldest_age(servos: int, question_s: float, rate: float, baud: int = BAUD) -> float:
    """How old the oldest position of a bus gets until a control period reads it, s, if nothing is lost; or infinity.

    From the end of a question to the answer to the next one of the same servo: all the others, one after a servo's
    health, and the next one itself, which is not answered yet; and the commands of each period in between.
    """
    commands_s = servos * wire_s(len(packed(0, 0, b"....")), baud)
    questions_s = (servos + 2) * question_s
    age = questions_s
    while age < 1.0:
        before = age
        age = questions_s + commands_s * (math.ceil(age * rate) - 1)
        if age == before:
            return age
    return math.inf
