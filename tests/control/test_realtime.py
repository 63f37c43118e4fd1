"""Real-time priority and locked memory of a control loop: had, or refused in one line with nothing changed."""

import ctypes
import errno
import os
import re
import subprocess
import sys

import pytest

from deftly.commands.main import main
from deftly.control import realtime
from deftly.control.realtime import make_real_time
from deftly.errors import DeftlyError

ASKED = """
import os, threading
from deftly.control.realtime import make_real_time
from deftly.errors import DeftlyError
try:
    make_real_time()
except DeftlyError as error:
    print("refused", error)
else:
    own = []
    thread = threading.Thread(target=lambda: own.append(os.sched_getscheduler(0)))
    thread.start()
    thread.join()
    print("real time", os.sched_getscheduler(0) == own[0] == os.SCHED_FIFO)
    print(open("/proc/self/status").read())
"""


@pytest.fixture
def calls(monkeypatch):
    """Calls of the scheduler, which changes nothing."""
    found: list[tuple] = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda *call: found.append(call))
    return found


def lock(monkeypatch, code: int) -> None:
    """Memory is locked, or is not, with this error of the system."""

    class Libc:
        @staticmethod
        def mlockall(flags: int) -> int:
            assert flags == realtime.MCL_CURRENT | realtime.MCL_FUTURE
            ctypes.set_errno(code)
            return -1 if code else 0

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc)


def test_a_process_has_the_priority_with_its_threads_and_its_memory_is_locked():
    told = subprocess.run(
        [sys.executable, "-c", ASKED], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    if told.startswith("refused"):
        assert "limits.conf" in told
        pytest.skip("this machine does not allow it")
    assert told.startswith("real time True")
    locked = re.search(r"VmLck:\s+(\d+) kB", told)
    assert locked is not None
    assert int(locked[1]) > 1000


def test_without_the_right_it_is_refused_in_one_line(monkeypatch):
    def forbidden(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    with pytest.raises(DeftlyError, match=r"no real-time priority: Operation .*rtprio.*leave"):
        make_real_time()


def test_with_the_priority_and_locked_memory_it_is_done(calls, monkeypatch):
    lock(monkeypatch, 0)
    make_real_time()
    ((process, policy, parameter),) = calls
    assert (process, policy) == (0, os.SCHED_FIFO)
    assert parameter.sched_priority == realtime.PRIORITY


def test_if_memory_cannot_be_locked_the_priority_is_as_before(calls, monkeypatch):
    lock(monkeypatch, errno.ENOMEM)
    with pytest.raises(DeftlyError, match=r"memory cannot be locked: Cannot allocate .* memlock"):
        make_real_time()
    assert calls[-1][:2] == (0, os.sched_getscheduler(0))


def test_a_system_without_it_is_named(monkeypatch):
    monkeypatch.delattr(os, "sched_setscheduler")
    with pytest.raises(DeftlyError, match="needs Linux"):
        make_real_time()


def test_run_asks_for_it_before_anything_is_driven(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def refused():
        raise DeftlyError("--real-time: no real-time priority")

    monkeypatch.setattr("deftly.commands.run.make_real_time", refused)
    flags = ["jaka-pick-cube", "--policy", "shipped", "--driver", "fake", "--real-time", "True"]
    assert main(["run", *flags]) == 2
    assert "no real-time priority" in capsys.readouterr().err
