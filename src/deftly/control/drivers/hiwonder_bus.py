"""A bus of Hiwonder servos (HTD-45H, LX-16A and their family) on a serial port: ask a servo, tell a servo.

A packet is 55 55, id, length, command, parameters, checksum. The length counts from itself to the checksum, which is
the complement of the sum from the id on; numbers have their low byte first. Only what ends in READ is answered, by the
servo that is asked, on the same wire. Hiwonder, "Bus Servo Communication Protocol": commands, ranges and formats here
are that document's.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from deftly.control.drivers.protocol import DriverError
from deftly.control.drivers.serial_port import NoAnswer, SerialPort

HEADER = b"\x55\x55"
BAUD = 115_200
BITS = 10
"""Of a byte on the wire: a start bit, eight, a stop bit."""
BROADCAST = 254
"""The id that all servos listen to, and none answers to."""
SHORTEST, LONGEST = 3, 7
"""The length of a packet, as it says itself."""
MOST = 1024
"""Bytes that are listened to for one answer."""

MOVE_TIME_WRITE = 1
MOVE_STOP = 12
ID_READ = 14
ANGLE_OFFSET_READ = 19
ANGLE_LIMIT_READ = 21
VIN_LIMIT_READ = 23
TEMP_MAX_LIMIT_READ = 25
TEMP_READ = 26
VIN_READ = 27
POS_READ = 28
MODE_READ = 30
LOAD_OR_UNLOAD_WRITE = 31
LOAD_OR_UNLOAD_READ = 32
FORMATS = {
    ID_READ: "<B",
    ANGLE_OFFSET_READ: "<b",
    ANGLE_LIMIT_READ: "<HH",
    VIN_LIMIT_READ: "<HH",
    TEMP_MAX_LIMIT_READ: "<B",
    TEMP_READ: "<B",
    VIN_READ: "<H",
    POS_READ: "<h",
    MODE_READ: "<BBh",
    LOAD_OR_UNLOAD_READ: "<B",
}
"""Parameters of the answers: units of 0.24 degrees, which may be negative, mV, degrees Celsius."""


class Packet(NamedTuple):
    """What somebody on the bus said."""

    motor: int
    command: int
    body: bytes


def packed(motor: int, command: int, body: bytes = b"") -> bytes:
    """A packet as it is on the wire."""
    inside = bytes([motor, SHORTEST + len(body), command]) + body
    return HEADER + inside + bytes([checksum(inside)])


def checksum(inside: bytes) -> int:
    """Of what lies between header and checksum."""
    return ~sum(inside) & 0xFF


def packets(heard: bytes) -> Iterator[Packet]:
    """Those in a row of bytes that are whole and undamaged."""
    at = 0
    while (at := heard.find(HEADER, at)) >= 0:
        inside = heard[at + 2 :]
        length = inside[1] if len(inside) > 1 else 0
        whole = SHORTEST <= length <= LONGEST and len(inside) > length
        if whole and inside[length] == checksum(inside[:length]):
            yield Packet(inside[0], inside[2], inside[3:length])
            at += 3 + length
        else:
            at += 1  # no header, cut off, or damaged


def wire_s(length: int, baud: int) -> float:
    """How long so many bytes take, s."""
    return BITS * length / baud


class Bus:
    """The servos at a port. Every method raises DriverError, one line, if the port is gone.

    Args:
        path: the serial port, such as /dev/ttyUSB0.
        baud: its rate; servos of this family know no other than 115,200.
    """

    def __init__(self, path: str, baud: int = BAUD):
        self.path = path
        self.baud = baud
        self._port = SerialPort(path, baud, "deftly[wildrobot]")
        self.asked_at = 0.0
        """When the last packet of ours was on the wire, s on the monotonic clock."""

    def ask(self, motor: int, command: int, timeout: float) -> tuple[int, ...]:
        """The numbers that a servo answers within `timeout`, s, of the end of the question. Raises NoAnswer.

        An answer is known by its servo, command and length: so the echo of the question, which a simple half-duplex
        adapter gives, is none, nor is what another servo says.
        """
        self._port.clear()
        question = self._send(packed(motor, command))
        end = self.asked_at + timeout
        size = struct.calcsize(FORMATS[command])
        heard = b""
        data = question
        while (
            data and len(heard) < MOST
        ):  # what came while this thread was kept from running counts, too
            data = self._port.read(256, end - time.monotonic())
            heard += data
            for packet in packets(heard):
                if packet[:2] == (motor, command) and len(packet.body) == size:
                    return struct.unpack(FORMATS[command], packet.body)
        raise NoAnswer(motor, heard=bool(heard.removeprefix(question)))

    def tell(self, motor: int, command: int, body: bytes) -> None:
        """Command a servo, or with `BROADCAST` all of them. Nobody answers."""
        self._send(packed(motor, command, body))

    def close(self) -> None:
        """Let go of the port."""
        self._port.close()

    def _send(self, packet: bytes) -> bytes:
        """Send a packet, which goes out after those before it, and give it."""
        if self._port.write(packet) != len(packet):
            raise DriverError(f"{self.path} did not take a packet")
        self.asked_at = max(self.asked_at, time.monotonic()) + wire_s(len(packet), self.baud)
        return packet
