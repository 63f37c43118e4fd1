"""A serial port that is this program's alone, whose calls never wait longer than they are told to."""

from __future__ import annotations

import errno
import select
from collections.abc import Callable
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any, TypeVar

from deftly.control.drivers.protocol import DriverError

WRITE_S = 0.02
"""Longest wait for the system to take a packet: a line that is stuck takes none."""
T = TypeVar("T")


class NoAnswer(DriverError):
    """A motor did not answer in time, or what it said was damaged."""

    def __init__(self, motor: int, heard: bool):
        what = "gave a damaged answer" if heard else "does not answer"
        super().__init__(f"motor {motor} {what}")
        self.motor = motor
        self.heard = heard


class SerialPort:
    """An open serial port, locked. Every method raises DriverError, one line, if it is gone.

    Args:
        path: such as /dev/ttyUSB0.
        baud: rate, bit/s.
        needs: what to install if pyserial is missing, such as `deftly[leap]`.
    """

    def __init__(self, path: str, baud: int, needs: str):
        self.path = path
        self._serial = _open(path, baud, needs)
        # An FTDI adapter keeps what it heard for 16 ms otherwise; a pseudo-terminal has no such timer.
        with suppress(OSError, ValueError, NotImplementedError, AttributeError):
            self._serial.set_low_latency_mode(True)

    def set_baud(self, baud: int) -> None:
        """Speak at another rate, bit/s."""
        self._serial.baudrate = baud

    def read(self, length: int, timeout: float) -> bytes:
        """At most `length` bytes, as soon as there are some; none if `timeout`, s, is over."""
        return self._try(lambda: self._read(length, timeout))

    def write(self, packet: bytes) -> int:
        """Send; gives the number of bytes that were: all, or the line is stuck."""
        return self._try(lambda: self._write(packet))

    def clear(self) -> None:
        """Forget what was heard."""
        self._try(self._serial.reset_input_buffer)

    def close(self) -> None:
        """Let go."""
        with suppress(OSError):
            self._serial.close()

    def _read(self, length: int, timeout: float) -> bytes:
        ready, _, _ = select.select([self._serial.fileno()], [], [], max(0.0, timeout))
        return self._serial.read(length) if ready else b""

    def _write(self, packet: bytes) -> int:
        _, ready, _ = select.select([], [self._serial.fileno()], [], WRITE_S)
        return self._serial.write(packet) if ready else 0

    def _try(self, call: Callable[[], T]) -> T:
        """What a call gives; one line for whatever pyserial and the system raise: OSError, termios.error, TypeError."""
        try:
            return call()
        except Exception as error:
            words = " ".join(str(error).split())[:100]
            cause = f"{type(error).__name__}: {words}"
        raise DriverError(f"{self.path} is gone: is the adapter unplugged? ({cause})")


def _open(path: str, baud: int, needs: str) -> Any:
    """The port, locked. Raises DriverError that says what to do."""
    try:
        import serial
    except ImportError:
        raise DriverError(f'a serial port needs pyserial: pip install "{needs}"') from None
    if not Path(path).exists():
        raise DriverError(f"there is no port {path}: is the adapter plugged in? {_present()}")
    try:
        return serial.Serial(path, baud, timeout=0, write_timeout=0, exclusive=True)
    except Exception as error:  # SerialException, termios.error, ValueError
        code = getattr(error, "errno", None)
        words = " ".join(str(error).split())[:150]
    if code in (errno.EACCES, errno.EPERM):
        raise DriverError(
            f"no permission for {path}: sudo usermod -aG dialout $USER, then log out and in"
        )
    if code in (errno.EAGAIN, errno.EBUSY):
        raise DriverError(f"{path} is used by another program: end that first")
    raise DriverError(f"cannot open {path}, is it a serial port? {words}")


def _present() -> str:
    """The serial ports of this computer, in words."""
    found = sorted(glob("/dev/ttyUSB*") + glob("/dev/ttyACM*"))
    if found:
        return f"there are {', '.join(found)}"
    return "there is no /dev/ttyUSB* nor /dev/ttyACM*"
