"""A control loop that nothing keeps from its tick: real-time priority, and memory that stays in RAM (Linux)."""

import ctypes
import os

from deftly.errors import DeftlyError

PRIORITY = 20
"""Of SCHED_FIFO, 1 .. 99: below 50, at which a real-time kernel has the threads that serve interrupts."""
MCL_CURRENT, MCL_FUTURE = 1, 2
"""Flags of mlockall(2): all memory that the process has, and all that it will have."""
_ADVICE = (
    "run as root, or allow it in /etc/security/limits.conf (rtprio and memlock unlimited), "
    "or leave out --real-time"
)


def make_real_time() -> None:
    """Have Linux prefer this process to all others (SCHED_FIFO), and keep all its memory in RAM (mlockall).

    A page that the system took away meanwhile is missing in the middle of a tick. Threads that are started afterwards
    have the same priority: call it first. It holds until the process ends.

    Raises:
        DeftlyError: The system cannot, or does not allow it; nothing has changed then.
    """
    scheduler = getattr(os, "sched_setscheduler", None)
    if scheduler is None:
        raise DeftlyError("--real-time needs Linux: leave it out")
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        scheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError as error:
        raise DeftlyError(
            f"--real-time: no real-time priority: {error.strerror}; {_ADVICE}"
        ) from None
    try:
        _lock_memory()
    except OSError as error:
        scheduler(0, *before)
        raise DeftlyError(
            f"--real-time: memory cannot be locked: {error.strerror}; {_ADVICE}"
        ) from None


def _lock_memory() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
