"""An emulated bus of Hiwonder servos on a pseudo-terminal: `python -m deftly_bench.hiwonder_bus --servos 8`.

It speaks the "Bus Servo Communication Protocol", written from Hiwonder's document and sharing no code with the driver.
Servos go towards their goal while they are loaded. With a `baud` every byte takes its time on the wire, both ways, and
`turnaround` is how long a servo thinks before it answers. Faults are switched at run time: by attributes of
`EmulatedServos`, or by lines on standard input of the program (`help` lists them).
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from deftly.config import parse
from deftly.errors import DeftlyError
from deftly_bench.emulated_port import EmulatedPort
from deftly_bench.entry import start

HEADER = b"\x55\x55"
BROADCAST = 254
MOVE, STOP, ID, OFFSET, ANGLES, VOLTS, HOTTEST = 1, 12, 14, 19, 21, 23, 25
TEMPERATURE, VOLTAGE, POSITION, MODE, LOAD, LOADED = 26, 27, 28, 30, 31, 32
SPEED = 600.0  # units/s: 144 degrees in a second
BYTE_BITS = 10


def packet(servo: int, command: int, body: bytes = b"") -> bytes:
    """A whole packet."""
    inside = bytes([servo, len(body) + 3, command]) + body
    return HEADER + inside + bytes([255 - sum(inside) % 256])


@dataclass
class Servo:
    """One servo: where it stands, units of 0.24 degrees, and what it tells of itself."""

    number: int
    position: float = 500.0
    goal: float = 500.0
    loaded: bool = False
    """Whether it has torque: not after power-on."""
    millivolts: int = 11_100
    celsius: int = 35
    offset: int = 0
    angles: tuple[int, int] = (0, 1000)
    volts: tuple[int, int] = (4500, 14_000)
    hottest: int = 85
    mode: int = 0
    blocked: bool = False
    now: float = field(default_factory=time.monotonic)

    def advance(self, now: float) -> None:
        """Move on to a time, s."""
        reach = SPEED * max(0.0, now - self.now)
        self.now = max(now, self.now)
        if self.loaded and not self.blocked:
            self.position += max(-reach, min(reach, self.goal - self.position))

    def told(self, command: int, body: bytes) -> None:
        """Do what a packet without an answer says."""
        if command == MOVE and len(body) == 4:
            low, high = self.angles
            self.goal = max(low, min(high, struct.unpack("<HH", body)[0]))
        elif command == STOP:
            self.goal = self.position
        elif command == LOAD and len(body) == 1:
            self.loaded = body != b"\0"

    def answer(self, command: int) -> bytes | None:
        """The parameters of an answer; None: nobody answers to that."""
        told: dict[int, bytes] = {
            ID: struct.pack("<B", self.number),
            OFFSET: struct.pack("<b", self.offset),
            ANGLES: struct.pack("<HH", *self.angles),
            VOLTS: struct.pack("<HH", *self.volts),
            HOTTEST: struct.pack("<B", self.hottest),
            TEMPERATURE: struct.pack("<B", self.celsius),
            VOLTAGE: struct.pack("<H", self.millivolts),
            POSITION: struct.pack("<h", round(self.position)),
            MODE: struct.pack("<BBh", self.mode, 0, 0),
            LOADED: struct.pack("<B", self.loaded),
        }
        return told.get(command)


class EmulatedServos(EmulatedPort):
    """Servos at `port`, which answer from a thread of their own until `close`. Use as a context.

    Attributes that are faults: `unplugged` (ids), `silent`, `twins` (ids that two servos have), `corrupt` (ids whose
    answers are damaged, and how many more of them), `cut` (likewise: answers that lose a byte), `garbage` (bytes before
    each answer). `echo`: the adapter gives back what it is sent.
    """

    def __init__(
        self,
        servos: Iterable[int] = range(1, 9),
        baud: int = 0,
        turnaround: float = 0.0,
        echo: bool = False,
    ):
        super().__init__()
        self.servos = {i: Servo(i) for i in servos}
        self.baud = baud
        self.turnaround = turnaround
        self.echo = echo
        self.unplugged: set[int] = set()
        self.twins: set[int] = set()
        self.corrupt: dict[int, int] = {}
        self.cut: dict[int, int] = {}
        self.silent = False
        self.garbage = b""
        self.packets = 0
        """Packets that were heard."""
        self.asked = 0
        """Those of them that were answered."""
        self._rest = b""
        self._free_at = 0.0  # when the wire is free, s
        self.start()

    def positions(self) -> dict[int, float]:
        """Where the servos stand now, units."""
        with self._lock:
            for servo in self.servos.values():
                servo.advance(time.monotonic())
            return {i: servo.position for i, servo in self.servos.items()}

    def loaded(self) -> set[int]:
        """Which servos have torque."""
        with self._lock:
            return {i for i, servo in self.servos.items() if servo.loaded}

    def hear(self, data: bytes) -> None:
        """Packets, or parts of them."""
        if self.echo:
            self.say(data)
        self._rest += data
        while (start := self._rest.find(HEADER)) >= 0:
            whole = self._rest[start:]
            size = whole[3] + 3 if len(whole) > 3 else 0
            if not size or len(whole) < size:
                return
            self._rest = whole[size:]
            if whole == packet(whole[2], whole[4], whole[5 : size - 1]) + self._rest:
                self._handle(whole[2], whole[4], whole[5 : size - 1], size)

    def _handle(self, number: int, command: int, body: bytes, size: int) -> None:
        with self._lock:
            self.packets += 1
            now = self._take(size)
            answer = b""
            for i, servo in self.servos.items():
                if number in (i, BROADCAST) and i not in self.unplugged:
                    servo.advance(now)
                    servo.told(command, body)
                    if number != BROADCAST:
                        answer = self._answer(servo, command)
            self.asked += bool(answer)
            done = now
            if answer and self.baud:
                self._free_at = now + self.turnaround  # the servo thinks, nobody speaks
                done = self._take(len(answer))
        self.say(answer, done - time.monotonic())

    def _take(self, size: int) -> float:
        """When so many bytes are on the wire, after those before, s."""
        seconds = BYTE_BITS * size / self.baud if self.baud else 0.0
        self._free_at = max(time.monotonic(), self._free_at) + seconds
        return self._free_at

    def _answer(self, servo: Servo, command: int) -> bytes:
        body = servo.answer(command)
        if body is None or self.silent:
            return b""
        whole = packet(servo.number, command, body)
        if self.corrupt.get(servo.number, 0) > 0:
            self.corrupt[servo.number] -= 1
            whole = whole[:-2] + bytes([whole[-2] ^ 0x10]) + whole[-1:]
        if self.cut.get(servo.number, 0) > 0:
            self.cut[servo.number] -= 1
            whole = whole[:4] + whole[5:]
        if servo.number in self.twins:  # two who speak at once
            whole = bytes(byte & 0x5D for byte in whole)
        return self.garbage + whole


# ----------------------------------------------------------------- the program

COMMANDS = {
    "turn": "turn ID UNITS: somebody turns this servo to there",
    "where": "where: units of all servos, and which are loaded",
    "unplug": "unplug ID: this servo does not answer",
    "silent": "silent: nobody answers",
    "corrupt": "corrupt ID N: the next N answers of this servo are damaged",
    "voltage": "voltage MV: what all servos measure",
    "temperature": "temperature ID CELSIUS: what this servo measures",
    "unload": "unload ID: this servo lets go by itself",
    "block": "block ID: something holds this servo",
    "quit": "quit: the port goes away",
}


@dataclass(frozen=True)
class ServosArgs:
    """Emulate a bus of Hiwonder servos; prints the port for `deftly run --driver wildrobot --port PORT`."""

    servos: int = 8
    """How many."""
    first: int = 1
    """Id of the first; the others follow."""
    baud: int = 0
    """Rate at which bytes take their time on the wire, such as 115200; 0: they take none."""
    turnaround_ms: float = 0.0
    """How long a servo thinks before it answers."""
    echo: bool = False
    """The adapter gives back what it is sent."""


def obey(bus: EmulatedServos, line: str) -> bool:
    """Do what a line asks for; False ends. Raises ValueError, IndexError or KeyError for what is no command."""
    verb, *words = line.split() or ["help"]
    if verb not in COMMANDS:
        print(*COMMANDS.values(), sep="\n", flush=True)
    if verb == "where":
        print({i: round(p) for i, p in bus.positions().items()}, bus.loaded(), flush=True)
    numbers = [int(word) for word in words]
    acts: dict[str, Callable[[EmulatedServos], object]] = {
        "turn": lambda b: setattr(b.servos[numbers[0]], "position", numbers[1]),
        "unplug": lambda b: b.unplugged.add(numbers[0]),
        "silent": lambda b: setattr(b, "silent", True),
        "corrupt": lambda b: b.corrupt.update({numbers[0]: numbers[1]}),
        "voltage": lambda b: [setattr(s, "millivolts", numbers[0]) for s in b.servos.values()],
        "temperature": lambda b: setattr(b.servos[numbers[0]], "celsius", numbers[1]),
        "unload": lambda b: setattr(b.servos[numbers[0]], "loaded", False),
        "block": lambda b: setattr(b.servos[numbers[0]], "blocked", True),
    }
    bus.change(acts.get(verb, lambda _: None))
    return verb != "quit"


def main(argv: list[str]) -> int:
    """Run the program until its input says `quit`, or a signal comes. Exit status 0."""
    args = parse(ServosArgs, argv, prog="deftly_bench.hiwonder_bus")
    if not (args.servos >= 1 and args.first >= 0 and args.first + args.servos <= BROADCAST):
        raise DeftlyError(f"servos is {args.servos} from id {args.first}, but ids are 0 .. 253")
    servos = range(args.first, args.first + args.servos)
    turnaround = 1e-3 * args.turnaround_ms
    with EmulatedServos(servos, args.baud, turnaround, args.echo) as bus:
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
