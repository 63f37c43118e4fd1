"""A serial port that is none: a pseudo-terminal, behind which a thread plays the motors of a bus."""

from __future__ import annotations

import os
import pty
import select
import threading
import tty
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from deftly_bench.entry import no_program


class EmulatedPort:
    """What is heard at `port` goes to `hear`, in a thread of its own, until `close`. Use as a context."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.port = os.ttyname(self._slave)
        self._lock = threading.RLock()
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def hear(self, data: bytes) -> None:
        """What somebody sent."""
        raise NotImplementedError

    def say(self, data: bytes, delay: float = 0.0) -> None:
        """Answer, after a delay, s."""
        if delay > 0 and data:
            select.select([self._wake[0]], [], [], delay)
        with suppress(BlockingIOError):  # nobody listens
            os.write(self._master, data)

    def change(self, what: Callable[[Self], object]) -> None:
        """Do something while no packet is answered."""
        with self._lock:
            what(self)

    def close(self) -> None:
        """End: the port is gone, as if the adapter were pulled."""
        if self._thread.is_alive():
            os.write(self._wake[1], b"x")
            self._thread.join()
            for fd in (self._master, self._slave, *self._wake):
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._master, self._wake[0]], [], [])
            if self._wake[0] in ready:
                return
            with suppress(OSError):
                self.hear(os.read(self._master, 4096))


if __name__ == "__main__":
    no_program()
