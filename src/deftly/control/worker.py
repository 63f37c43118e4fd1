"""A thread that makes calls which may hang, one at a time, for a control loop that must not."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from deftly.policy.protocol import PolicyError

Answer = tuple[Any, BaseException | None]


class Worker:
    """Makes calls in a thread of its own. One that hangs is waited for no longer than is said, and never joined."""

    def __init__(self) -> None:
        self._calls = queue.SimpleQueue[Callable[[], Any] | None]()
        self._answers = queue.SimpleQueue[Answer]()
        self._thread: threading.Thread | None = None
        self._owed = 0

    @property
    def busy(self) -> bool:
        """Whether a call was given up that has not come back."""
        while self._owed and not self._answers.empty():
            self._answers.get()
            self._owed -= 1
        return self._owed > 0

    def call(self, function: Callable[[], Any], until: Callable[[], float]) -> Any:
        """What the function gives or raises, within `until()` s from now on. Raises PolicyError if that is over.

        A call that was given up before is waited for first: it and the new one never run side by side.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
            self._thread.start()
        while self._owed:
            self._next(until())
        self._owed = 1
        self._calls.put(function)
        value, error = self._next(until())
        if error is not None:
            raise error
        return value

    def wait(self, seconds: float) -> None:
        """Wait for calls that were given up, no longer than so."""
        if self._thread is not None:
            self._thread.join(seconds)

    def close(self) -> None:
        """End the thread, after the call that it may be in."""
        self._calls.put(None)

    def _next(self, seconds: float) -> Answer:
        try:
            answer = self._answers.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise PolicyError("no answer in time") from None
        self._owed -= 1
        return answer

    def _work(self) -> None:
        while True:
            function = self._calls.get()
            if function is None:
                return
            answer: Answer
            try:
                answer = (function(), None)
            except BaseException as error:  # the loop's to raise, whatever it is
                answer = (None, error)
            self._answers.put(answer)
            del function, answer  # nothing of it is kept until the next
