"""A bus of Dynamixel motors (Protocol 2.0) on a serial port: ping, sync read, sync write, never waiting beyond a time.

Packets are made and read by dynamixel-sdk. Its own port spins while it waits, for 34 ms at least and by the wall clock,
so a port of ours takes its place.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from deftly.control.drivers import DriverError
from deftly.control.drivers.serial_port import WRITE_S, NoAnswer, SerialPort

BAUDS = (4_000_000, 3_000_000, 2_000_000, 1_000_000, 115_200, 57_600, 9_600)
"""Rates that an XC330 knows (e-manual, Baud Rate 8)."""
QUIET_S = 1e-3
"""A line that says nothing for this long is free: 400 bytes at 4,000,000 baud."""


class Bus:
    """The motors at a port. Every method raises DriverError, one line, if the port is gone.

    Args:
        path: the serial port, such as /dev/ttyUSB0.
        baud: one of `BAUDS`.
    """

    def __init__(self, path: str, baud: int):
        self._port = _Port(path, baud)
        self._sdk = _sdk()
        self._packets: Any = self._sdk.PacketHandler(2.0)

    def set_baud(self, baud: int) -> None:
        """Speak at another rate."""
        self._port.set_baud(baud)

    def ping(self, motor: int, timeout: float) -> int | None:
        """The model number of a motor; None if it does not answer within `timeout`, s."""
        self._port.begin(timeout)
        model, result, _ = self._packets.ping(self._port, motor)
        return int(model) if result == self._sdk.COMM_SUCCESS else None

    def read(self, motors: Sequence[int], address: int, length: int, timeout: float) -> list[bytes]:
        """`length` bytes from `address` of each motor, in one exchange of at most `timeout` s. Raises NoAnswer."""
        self._port.begin(timeout)
        ids = list(motors)
        result = self._packets.syncReadTx(self._port, address, length, ids, len(ids), False)
        self._require_sent(result)
        return [self._answer(motor, length) for motor in motors]

    def write(self, motors: Sequence[int], address: int, values: Sequence[bytes]) -> None:
        """Bytes, as many for each motor, to `address`. Nobody answers to that."""
        self._port.begin(WRITE_S)
        body: list[int] = []
        for motor, value in zip(motors, values):
            body += [motor, *value]
        length = len(values[0])
        result = self._packets.syncWriteTxOnly(self._port, address, length, body, len(body))
        self._require_sent(result)

    def reboot(self, motor: int, timeout: float) -> None:
        """Let a motor start anew, as after power-on. Whether it does, a ping tells."""
        self._port.begin(timeout)
        self._packets.reboot(self._port, motor)

    def settle(self, timeout: float) -> None:
        """Wait until nobody speaks any more: two who speak at once understand nothing."""
        self._port.begin(timeout)
        while self._port.readPort(1024, QUIET_S):
            pass

    def close(self) -> None:
        """Let go of the port."""
        self._port.close()

    def _answer(self, motor: int, length: int) -> bytes:
        """What one motor says. An answer of another length is an older question's: it is left out."""
        while True:
            packet, result = self._packets.rxPacket(self._port, False)
            if result != self._sdk.COMM_SUCCESS:
                raise NoAnswer(motor, heard=result == self._sdk.COMM_RX_CORRUPT)
            if packet[4] != motor:
                continue
            size = packet[5] + (packet[6] << 8) - 4
            error = packet[8] & 0x7F  # the highest bit tells of a fault that is read elsewhere
            if error:
                raise DriverError(f"motor {motor} refuses to be read (error {error})")
            if size == length:
                return bytes(packet[9 : 9 + size])

    def _require_sent(self, result: int) -> None:
        if result != self._sdk.COMM_SUCCESS:
            raise DriverError(f"{self._port.path} did not take a packet ({result})")


class _Port(SerialPort):
    """What the SDK's packet handler asks of a port."""

    def __init__(self, path: str, baud: int):
        _sdk()
        if baud not in BAUDS:
            raise DriverError(f"--baud is {baud}, but the motors know {', '.join(map(str, BAUDS))}")
        super().__init__(path, baud, "deftly[leap]")
        self.is_using = False
        self._deadline = 0.0

    def begin(self, timeout: float) -> None:
        """The next exchange is over in `timeout` s."""
        self.is_using = False
        self._deadline = time.monotonic() + timeout

    def readPort(self, length: int, patience: float = 60.0) -> bytes:
        """At most `length` bytes, as soon as there are some; none if the time is over."""
        return self.read(length, min(patience, self._deadline - time.monotonic()))

    def writePort(self, packet: list[int]) -> int:
        """Send; gives the number of bytes that were."""
        return self.write(bytes(packet))

    def clearPort(self) -> None:
        """Forget what was heard."""
        self.clear()

    def isPacketTimeout(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._deadline

    def setPacketTimeout(self, _: int) -> None:
        """The SDK's own estimate: not used."""


def _sdk() -> ModuleType:
    try:
        import dynamixel_sdk
    except ImportError:
        raise DriverError('--driver leap needs dynamixel-sdk: pip install "deftly[leap]"') from None
    return dynamixel_sdk
