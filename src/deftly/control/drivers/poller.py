"""A thread that does one thing again and again, beside a control loop that waits for nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable

from deftly.control.drivers.protocol import DriverError

JOIN_S = 2.0
"""Longest wait for a call to come back at the end, s."""


class Poller:
    """Calls `turn` in a thread of its own, from `start` until `close`, or until it raises.

    Args:
        name: of the thread.
        turn: what is done; it must return within a fraction of a second.
    """

    def __init__(self, name: str, turn: Callable[[], None]):
        self._turn = turn
        self._ending = threading.Event()
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def require(self) -> None:
        """Raise DriverError, in the words of what `turn` raised, if it did."""
        if isinstance(self._failed, DriverError):
            raise DriverError(str(self._failed))
        if self._failed is not None:
            words = " ".join(str(self._failed).split())[:150]
            raise DriverError(f"{self._thread.name}: {type(self._failed).__name__}: {words}")

    def close(self) -> bool:
        """End the thread after the turn that it is in; whether it did end."""
        self._ending.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            while not self._ending.is_set():
                self._turn()
        except Exception as error:  # the loop's to raise
            self._failed = error
