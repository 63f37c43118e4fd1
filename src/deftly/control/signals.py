"""Signals around a control loop: the first that would end the process ends the loop, and none interrupts that."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

ALWAYS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Taken whatever was done about them before."""
OTHERS = (
    *("SIGQUIT", "SIGABRT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGXCPU"),
    *("SIGXFSZ", "SIGIO", "SIGPWR", "SIGSTKFLT", "SIGPIPE"),
)
"""They would kill the process, and are taken unless the program handles or ignores them itself; so are those without a
name, SIGRTMIN to SIGRTMAX. SIGKILL cannot be, and those of a crash, such as SIGSEGV, must not be."""
HALTS = ("SIGTSTP", "SIGTTIN", "SIGTTOU")
"""Ignored: a loop that is halted guards nothing."""


class Ending:
    """How a process ends on signals: the first one raises, unless an end has begun already."""

    def __init__(self) -> None:
        self.begun = False
        """The loop ends, by a signal or by itself: no signal interrupts that any more."""
        self._number = 0

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Handle a signal. Raises KeyboardInterrupt (SIGINT) or SystemExit with the usual status, 128 + its number."""
        if not self.begun:
            self.begun = True
            self._number = number
            self.require_none()

    def require_none(self) -> None:
        """Raise, as the signal did, if there was one: somebody's code may have kept it from coming through."""
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number:
            raise SystemExit(128 + self._number)


@contextmanager
def ending_on_signals() -> Iterator[Ending]:
    """Signals that would end or halt the process go to one `Ending`; within another such context, to that one."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield Ending()
        return
    outer = signal.getsignal(signal.SIGTERM)
    if isinstance(outer, Ending):
        yield outer
        return
    ending = Ending()
    before = {number: signal.getsignal(number) for number in _taken()}
    halts = _numbers(HALTS)
    try:
        for number in before:
            signal.signal(number, signal.SIG_IGN if number in halts else ending)
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _taken() -> list[int]:
    """Numbers of the signals to take here: those that this system has, and nobody else does."""
    always = _numbers(ALWAYS)
    taken = []
    for number in (*always, *_numbers(OTHERS), *_real_time(), *_numbers(HALTS)):
        handler = signal.getsignal(number)
        if handler is signal.SIG_DFL or (number in always and handler is not None):
            taken.append(number)
    return taken


def _numbers(names: Sequence[str]) -> list[int]:
    """Numbers of the signals of these names that this system has."""
    return [int(getattr(signal, name)) for name in names if hasattr(signal, name)]


def _real_time() -> list[int]:
    """The numbered signals, which kill a process too: some service managers and debuggers send them."""
    if not hasattr(signal, "SIGRTMIN"):
        return []
    return [*range(signal.SIGRTMIN, signal.SIGRTMAX + 1)]
