"""An emulated bus of XC330-M288 motors on a pseudo-terminal: `python -m deftly_bench.dynamixel_bus --motors 16`.

It speaks Dynamixel Protocol 2.0, written from the e-manual and sharing no code with the driver or the SDK. Motors go
towards their goal, as fast as their current lets them. Faults are switched at run time: by attributes and methods of
`EmulatedBus`, or by lines on standard input of the program (`help` lists them).
"""

from __future__ import annotations

import struct
import sys
import termios
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from deftly.config import parse
from deftly.errors import DeftlyError
from deftly_bench.emulated_port import EmulatedPort
from deftly_bench.entry import start

HEADER = b"\xff\xff\xfd\x00"
BROADCAST = 254
PING, READ, WRITE, REBOOT, STATUS, SYNC_READ, SYNC_WRITE = 0x01, 0x02, 0x03, 0x08, 0x55, 0x82, 0x83
FAST_SYNC_READ = 0x8A
BAD_INSTRUCTION, BAD_RANGE, BAD_LENGTH, BAD_LIMIT, BAD_ACCESS = 2, 4, 5, 6, 7
SIZE, TURN = 228, 4096
MODEL = 1240
DEFAULTS = {  # address: (size, value) after power-on; the e-manual's initial values
    **{
        6: (1, 46),
        9: (1, 250),
        11: (1, 3),
        12: (1, 255),
        13: (1, 2),
        36: (2, 885),
        38: (2, 2352),
        44: (4, 350),
    },
    **{
        48: (4, 4095),
        63: (1, 52),
        68: (1, 2),
        80: (2, 500),
        84: (2, 1100),
        100: (2, 885),
        102: (2, 2352),
    },
    **{104: (4, 350), 144: (2, 50), 146: (1, 33)},
}
READ_ONLY = {*range(7), 69, 70, *range(120, 148)}
GOALS = range(100, 120)
INDIRECT, DATA, SLOTS = 168, 208, 20
TAU = 0.03  # s: of the position loop
SPEED = 8.48 / (2 * 3.141592653589793) * TURN  # ticks/s: 81 rev/min without load
FULL_PWM, STALL_MA = (
    885,
    1800,
)  # PWM of all the voltage, which the current of a stalled motor is in proportion to
BOOT_S = 0.1  # a motor that starts anew says nothing for so long
FULL_MA, MA_PER_TICK = 550, 2.0  # current at which it gets there; current of an error of one tick


def _check_of(byte: int) -> int:
    value = byte << 8
    for _ in range(8):
        value = (value << 1 ^ 0x8005 if value & 0x8000 else value << 1) & 0xFFFF
    return value


CHECKS = [_check_of(byte) for byte in range(256)]


def crc16(data: bytes) -> int:
    """The check of Protocol 2.0: polynomial 0x8005, from 0, highest bit first."""
    value = 0
    for byte in data:
        value = (value << 8 ^ CHECKS[value >> 8 ^ byte]) & 0xFFFF
    return value


def packet(motor: int, instruction: int, body: bytes = b"") -> bytes:
    """A whole packet, stuffed and checked."""
    inside = (bytes([instruction]) + body).replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
    start = HEADER + bytes([motor]) + struct.pack("<H", len(inside) + 2) + inside
    return start + struct.pack("<H", crc16(start))


class Parser:
    """Takes packets out of a stream of bytes; whatever is none is dropped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterable[tuple[int, int, bytes]]:
        """Motor, instruction and parameters of each packet that is whole."""
        self._rest += data
        while (start := self._rest.find(HEADER)) >= 0:
            self._rest = self._rest[start:]
            if len(self._rest) < 7:
                return
            end = 7 + int.from_bytes(self._rest[5:7], "little")
            if end > 1024 or end < 10:
                self._rest = self._rest[1:]
                continue
            if len(self._rest) < end:
                return
            whole, self._rest = self._rest[:end], self._rest[end:]
            if crc16(whole[:-2]) == int.from_bytes(whole[-2:], "little"):
                yield whole[4], whole[7], whole[8:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
        self._rest = self._rest[-3:]


class Motor:
    """One XC330: its registers, and where it stands, in ticks."""

    def __init__(self, number: int, position: float, model: int = MODEL, now: float = 0.0):
        self.number, self.model, self.position, self.velocity, self.current = (
            number,
            model,
            position,
            0.0,
            0.0,
        )
        self.blocked = False
        """Something holds it where it is."""
        self.lasting = 0
        """Bits of a hardware error that is there again as soon as the motor starts anew."""
        self.boots_until = 0.0
        """It starts anew, and says nothing until then, s of the monotonic clock."""
        self.table, self._now, self.heard = bytearray(SIZE), now, now
        self._defaults(0)

    def _defaults(self, first: int) -> None:
        self.table[first:] = bytes(SIZE - first)
        for address, (size, value) in DEFAULTS.items():
            if address >= first:
                self.put(address, size, value)
        for slot in range(SLOTS):
            self.put(INDIRECT + 2 * slot, 2, DATA + slot)
        self.put(0, 2, self.model)
        self.put(7, 1, self.number)

    def get(self, address: int, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.table[address : address + size], "little", signed=signed)

    def put(self, address: int, size: int, value: int) -> None:
        self.table[address : address + size] = (value & (1 << 8 * size) - 1).to_bytes(
            size, "little"
        )

    def restart(self) -> None:
        """As after a dip of the supply: torque off, everything volatile forgotten, the turn lost."""
        self._defaults(64)
        self.put(100, 2, self.get(36, 2))
        self.position %= TURN
        self.fail(self.lasting)

    def fail(self, bits: int) -> None:
        """A hardware error; those that Shutdown (63) lists take the torque away."""
        self.put(70, 1, bits)
        if bits & self.table[63]:
            self.put(64, 1, 0)

    def advance(self, now: float) -> None:
        """Move on to a time, s. The watchdog stops a motor that heard nothing for too long."""
        limit = self.table[98]
        end = self.heard + 0.02 * limit
        if self.table[64] and 1 <= limit <= 127 and now > end:
            self._move(end)
            self.put(98, 1, 255)
            self.put(116, 4, round(self.position))
        self._move(now)
        self.put(126, 2, round(self.current))
        self.put(128, 4, round(self.velocity / TURN * 60 / 0.229))
        self.put(132, 4, round(self.position))

    def _move(self, now: float) -> None:
        dt, self._now = max(0.0, now - self._now), max(now, self._now)
        self.velocity = self.current = 0.0
        if not self.table[64]:
            return
        error, most = self.get(116, 4, True) - self.position, abs(self.get(102, 2, True))
        voltage = abs(self.get(100, 2, True)) / FULL_PWM
        most = min(most, STALL_MA * voltage)
        self.current = max(-most, min(most, MA_PER_TICK * error))
        if self.blocked or dt == 0.0:
            return
        reach = SPEED * min(1.0, most / FULL_MA) * voltage * dt
        step = max(-reach, min(reach, error * (1.0 - 2.718281828 ** (-dt / TAU))))
        self.position += step
        self.velocity = step / dt

    def read(self, address: int, length: int) -> bytes:
        return bytes(
            self.table[self._where(a)] for a in range(address, min(SIZE, address + length))
        )

    def write(self, address: int, value: bytes) -> int:
        """Take a value; gives the error of Protocol 2.0, 0 if it was taken."""
        places = [self._where(a) for a in range(address, address + len(value))]
        if max(places) >= SIZE:
            return BAD_LENGTH
        locked = self.table[64] and (address < 64 or INDIRECT <= address < DATA)
        if locked or READ_ONLY & {*places}:
            return BAD_ACCESS
        if self.table[98] == 255 and {*places} & {*GOALS}:
            return BAD_RANGE
        if address == 36 and int.from_bytes(value[:2], "little") > FULL_PWM:
            return BAD_LIMIT
        if address == 100 and abs(int.from_bytes(value[:2], "little", signed=True)) > self.get(
            36, 2
        ):
            return BAD_LIMIT
        if address == 102 and abs(int.from_bytes(value[:2], "little", signed=True)) > self.get(
            38, 2
        ):
            return BAD_LIMIT
        on = address == 64 and value[0] == 1 and not self.table[64]
        if on and self.table[70] & self.table[63]:
            return BAD_ACCESS
        for place, byte in zip(places, value):
            self.table[place] = byte
        if address <= 11 < address + len(value):  # another mode has other gains
            self.put(80, 2, 500)
            self.put(84, 2, 1100)
        if on and not self.get(116, 4):  # no goal was given since power-on
            self.put(116, 4, round(self.position))
        return 0

    def _where(self, address: int) -> int:
        """The register that an address stands for: indirect data are elsewhere."""
        if DATA <= address < DATA + SLOTS:
            return self.get(INDIRECT + 2 * (address - DATA), 2)
        return address


class EmulatedBus(EmulatedPort):
    """Motors at `port`, which answer from a thread of their own until `close`. Use as a context.

    Attributes that are faults: `unplugged` (ids), `silent`, `delay` (s before an answer), `corrupt` (ids whose answers
    are damaged, and how many more of them), `garbage` (bytes before each answer).
    """

    def __init__(
        self, motors: Iterable[int] = range(16), model: int = MODEL, baud: int | None = 4_000_000
    ):
        super().__init__()
        self.baud = baud
        now = time.monotonic()
        self.motors = {i: Motor(i, TURN / 2, model, now) for i in motors}
        self.unplugged: set[int] = set()
        self.corrupt: dict[int, int] = {}
        self.silent, self.delay, self.garbage = False, 0.0, b""
        self.packets = 0
        """Instruction packets that were heard."""
        self._parser = Parser()
        self.start()

    def positions(self) -> dict[int, float]:
        """Where the motors stand now, ticks."""
        with self._lock:
            for motor in self.motors.values():
                motor.advance(time.monotonic())
            return {i: motor.position for i, motor in self.motors.items()}

    def heal(self) -> None:
        """No fault any more; motors that lost their torque are as after power-on."""
        with self._lock:
            self.unplugged, self.corrupt, self.silent, self.delay, self.garbage = (
                set(),
                {},
                False,
                0.0,
                b"",
            )
            for motor in self.motors.values():
                motor.blocked = False
                motor.lasting = 0
                if motor.table[70]:
                    motor.restart()

    def hear(self, data: bytes) -> None:
        """Instruction packets, or parts of them."""
        for motor, instruction, body in self._parser.feed(data):
            self._handle(motor, instruction, body)

    def _handle(self, motor: int, instruction: int, body: bytes) -> None:
        with self._lock:
            if self.silent or not self._same_baud():
                return
            now, delay = time.monotonic(), self.delay
            self.packets += 1
            for each in self.motors.values():
                if each.number not in self.unplugged:
                    each.advance(now)
                    each.heard = now
            answer = b"".join(self._answers(motor, instruction, body))
        self.say(answer, delay)

    def _same_baud(self) -> bool:
        speed = termios.tcgetattr(self._slave)[5]
        return self.baud is None or speed == getattr(termios, f"B{self.baud}")

    def _answers(self, number: int, instruction: int, body: bytes) -> Iterable[bytes]:
        """What the motors say to an instruction, in turn."""
        now = time.monotonic()
        there = {
            i: m for i, m in self.motors.items() if i not in self.unplugged and now >= m.boots_until
        }
        if instruction == SYNC_WRITE:
            address, size = struct.unpack_from("<HH", body)
            for at in range(4, len(body) - size, size + 1):
                if body[at] in there:
                    there[body[at]].write(address, body[at + 1 : at + 1 + size])
        elif instruction == SYNC_READ:
            address, size = struct.unpack_from("<HH", body)
            for i in body[4:]:
                if (
                    i not in there
                ):  # each waits for the one before it: behind one that is missing nobody answers
                    return
                yield self._status(there[i], 0, there[i].read(address, size))
        elif instruction == FAST_SYNC_READ and all(i in there for i in body[4:]):
            yield self._fast(body)
        elif instruction != FAST_SYNC_READ:
            for motor in there.values():
                if number == motor.number or (number == BROADCAST and instruction == PING):
                    yield self._alone(motor, instruction, body)

    def _alone(self, motor: Motor, instruction: int, body: bytes) -> bytes:
        if instruction == PING:
            return self._status(motor, 0, struct.pack("<HB", motor.model, motor.table[6]))
        if instruction == READ and len(body) == 4:
            return self._status(motor, 0, motor.read(*struct.unpack("<HH", body)))
        if instruction == WRITE and len(body) > 2:
            return self._status(motor, motor.write(int.from_bytes(body[:2], "little"), body[2:]))
        if instruction == REBOOT:
            answer = self._status(motor, 0)
            motor.restart()
            motor.boots_until = time.monotonic() + BOOT_S
            return answer
        return self._status(motor, BAD_INSTRUCTION)

    def _status(self, motor: Motor, error: int, body: bytes = b"") -> bytes:
        whole = packet(
            motor.number, STATUS, bytes([error | (0x80 if motor.table[70] else 0)]) + body
        )
        if self.corrupt.get(motor.number, 0) > 0:
            self.corrupt[motor.number] -= 1
            whole = whole[:-3] + bytes([whole[-3] ^ 0x55]) + whole[-2:]
        return self.garbage + whole

    def _fast(self, body: bytes) -> bytes:
        """One packet of all: error, id, data and check of each in turn; the last check is the packet's own."""
        address, size = struct.unpack_from("<HH", body)
        ids = body[4:]
        whole = (
            HEADER
            + bytes([BROADCAST])
            + struct.pack("<H", 1 + len(ids) * (size + 4))
            + bytes([STATUS])
        )
        for i in ids:
            whole += bytes([0x80 if self.motors[i].table[70] else 0, i]) + self.motors[i].read(
                address, size
            )
            whole += struct.pack("<H", crc16(whole))
        return whole


# ----------------------------------------------------------------- the program

COMMANDS = {
    "unplug": "unplug ID: this motor does not answer",
    "silent": "silent: nobody answers",
    "slow": "slow MS: answers come so late",
    "corrupt": "corrupt ID N: the next N answers of this motor are damaged",
    "garbage": "garbage HEX: these bytes come before each answer",
    "error": "error ID BITS: hardware error (1 voltage, 4 overheating, 8 encoder, 16 shock, 32 overload)",
    "restart": "restart ID: as after a dip of the supply",
    "block": "block ID: something holds this motor",
    "heal": "heal: no fault any more",
    "quit": "quit: the port goes away",
}


@dataclass(frozen=True)
class BusArgs:
    """Emulate a bus of XC330-M288 motors; prints the port for `deftly run --driver leap --port PORT`."""

    motors: int = 16
    """How many; their ids are 0, 1, 2, ..."""
    baud: int = 4_000_000
    """The rate that they speak."""
    model: int = MODEL
    """Their model number."""


def obey(bus: EmulatedBus, line: str) -> bool:
    """Do what a line asks for; False ends. Raises ValueError or KeyError for what is no command."""
    verb, *words = line.split() or ["help"]
    if verb not in COMMANDS:
        print(*COMMANDS.values(), sep="\n", flush=True)
    numbers = [int(word) for word in words] if verb != "garbage" else []
    acts: dict[str, Callable[[EmulatedBus], object]] = {
        "unplug": lambda b: b.unplugged.add(numbers[0]),
        "silent": lambda b: setattr(b, "silent", True),
        "slow": lambda b: setattr(b, "delay", 1e-3 * numbers[0]),
        "corrupt": lambda b: b.corrupt.update({numbers[0]: numbers[1]}),
        "garbage": lambda b: setattr(b, "garbage", bytes.fromhex(words[0])),
        "error": lambda b: b.motors[numbers[0]].fail(numbers[1]),
        "restart": lambda b: b.motors[numbers[0]].restart(),
        "block": lambda b: setattr(b.motors[numbers[0]], "blocked", True),
        "heal": lambda b: b.heal(),
    }
    bus.change(acts.get(verb, lambda _: None))
    return verb != "quit"


def main(argv: list[str]) -> int:
    """Run the program until its input says `quit`, or a signal comes. Exit status 0."""
    args = parse(BusArgs, argv, prog="deftly_bench.dynamixel_bus")
    if not 1 <= args.motors <= 253:
        raise DeftlyError(f"motors is {args.motors}, but it must be within 1 .. 253")
    with EmulatedBus(range(args.motors), args.model, args.baud) as bus:
        print(bus.port, flush=True)
        for line in sys.stdin:
            try:
                if not obey(bus, line):
                    return 0
            except (ValueError, KeyError, IndexError) as error:
                print(f"no: {type(error).__name__}: {error}; 'help' lists the commands", flush=True)
        while True:  # no more input: a signal ends it
            time.sleep(3600)


def until_interrupted(argv: list[str]) -> int:
    """`main`, which Ctrl-C ends as `quit` does."""
    with suppress(KeyboardInterrupt):
        return main(argv)
    return 0


if __name__ == "__main__":
    start(until_interrupted)
