"""The operator's keys: whatever becomes of the terminal, the robot holds, and only the operator starts it again."""

import os
import pty
import signal
import time

import fifty
import numpy as np
import pytest

from deftly.control import log, session
from deftly.control.drivers import FakeDriver
from deftly.control.loop import Runner
from deftly.control.safety import Kernel, SafetyConfig, State
from deftly.errors import DeftlyError
from deftly.policy.protocol import ContractPolicy


def in_terminal(monkeypatch, fd):
    monkeypatch.setattr(session.sys, "stdin", open(fd, closefd=False))  # noqa: SIM115
    return session.Keys()


def test_the_end_of_input_at_a_terminal_holds_and_keeps_the_keys(terminal, monkeypatch):
    keys = in_terminal(monkeypatch, terminal[1])
    for typed, lines in ((b"s\x04\x04", ["h"]), (b"\n", [""]), (b"r\n", ["r"])):
        os.write(terminal[0], typed)
        heard, end = [], time.monotonic() + 5
        while not heard and time.monotonic() < end:
            heard = keys.read()
        assert heard == lines
        assert keys.terminal
        assert not keys.closed


def test_a_read_error_holds_and_keeps_the_keys(terminal, monkeypatch):
    def background(*_):
        raise OSError(5, "Input/output error")

    keys = in_terminal(monkeypatch, terminal[1])
    os.write(terminal[0], b"x\n")
    with monkeypatch.context() as patch:
        patch.setattr(session.os, "read", background)
        assert keys.read() == ["h"]
    assert keys.read() == ["x"]


def test_a_terminal_that_closes_holds(monkeypatch):
    ours, theirs = pty.openpty()
    keys = in_terminal(monkeypatch, theirs)
    os.close(ours)
    assert keys.read() == ["h"]
    assert keys.closed
    assert not keys.terminal
    assert keys.read() == []
    os.close(theirs)


class Typed:
    """Keys of an operator who types what a test says before each look."""

    terminal, closed = True, False

    def __init__(self, *looks):
        self.looks = list(looks)

    def read(self):
        return self.looks.pop(0) if self.looks else []


def sat_down(*looks, start=True, **fault):
    """A session with `--start` in simulated time; its tick gives the state after each."""
    clock = [100.0]
    kernel = Kernel(fifty.CONTRACT.robot, fifty.CONTRACT.rate, SafetyConfig(start_envelope=3.0))
    driver = FakeDriver(fifty.CONTRACT.robot, fifty.CONTRACT.rate, clock=lambda: clock[0], **fault)
    policy = ContractPolicy(fifty.CONTRACT, lambda obs: np.zeros((1, 3), np.float32))
    buffer = log.LogBuffer(fifty.CONTRACT, 50)
    made = session.Session(Runner(policy, kernel, driver, buffer), buffer, {}, start=start)
    made.keys = Typed(*looks)

    def tick():
        clock[0] += 1 / fifty.CONTRACT.rate
        made.each(made.runner.step(clock[0]))
        return kernel.state

    return made, tick


@pytest.mark.parametrize(
    ("looks", "fault"),
    [
        ([["h"]], {}),  # in the very tick in which it is ready
        ([["h"], ["r"]], {"fault": "read", "at": 0}),  # before it is
        ([[], ["r"], ["r"]], {"fault": "write", "at": 0}),
    ],
)
def test_after_a_hold_the_operator_starts(looks, fault, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made, tick = sat_down(*looks, **fault)
    tick()
    made.runner.driver._fault = ""
    made.keys.looks += [["r"]]
    states = [tick() for _ in range(6)]
    assert State.ACTIVE not in states
    assert states[-1] is State.READY
    made.screen.close()
    for thread in made._dumps:
        thread.join()


def test_without_a_hold_it_starts_by_itself():
    made, tick = sat_down()
    assert [tick(), tick()] == [State.INIT, State.ACTIVE]
    made.screen.close()


def test_a_hold_of_the_operator_is_no_fault_and_writes_no_log(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made, tick = sat_down([], [], [], ["h"], ["r"], [], [], ["s"], [""])
    states = [tick() for _ in range(10)]
    assert states.count(State.HOLD) >= 2
    assert made._dumps == made._faults == list(tmp_path.iterdir()) == []
    made.runner.driver._fault, made.runner.driver._at = "nan", 0
    made.keys.looks += [["r"]]
    tick()
    tick()
    for thread in made._dumps:
        thread.join()
    assert [fault for _, fault, _ in made._faults] == ["signals-bad"]
    assert len(list(tmp_path.glob("deftly-fault-*.npz"))) == 1
    made.screen.close()


NOBODY = "nobody can start the robot: without a terminal, give --start"


def driven(keys, seconds, ticks=8):
    """Sit a session down with these keys; the states until it ends, or for so many ticks, and why it failed."""
    made, tick = sat_down(start=False)
    made.keys, made.seconds = keys, seconds
    made.ticker.lap = lambda: made.runner.kernel._now
    states, going = [], True
    each = made.each

    def noted(step):
        nonlocal going
        going = each(step)
        return going

    made.each = noted
    while going and len(states) < ticks:
        states.append(tick())
    made.screen.close()
    return states, made._failed


def test_nobody_who_can_start_it_is_a_failure_however_long_it_may_run():
    keys = Typed()
    keys.terminal, keys.closed = False, True
    for seconds in (0.0, 0.05, 10.0):
        states, failed = driven(keys, seconds)
        assert failed == NOBODY
        assert State.ACTIVE not in states
        assert len(states) == 2, "as soon as it is ready"


def test_a_time_that_is_over_before_a_program_said_start_is_a_failure():
    keys = Typed()
    keys.terminal = False
    states, failed = driven(keys, 0.05)
    assert failed == "nobody started the robot in 0.05 s: without a terminal, give --start"
    assert states[-1] is State.READY


def test_a_program_that_starts_and_somebody_at_a_terminal_who_does_not_are_none():
    keys = Typed([], [], ["s"])
    keys.terminal = False
    states, failed = driven(keys, 0.1)
    assert (states[-1], failed) == (State.ACTIVE, "")
    assert driven(Typed(), 0.05)[1] == ""


def begun(folder, seconds, start=True, fault="", policy=None):
    """A session in real time with the fake robot and nobody at a terminal, its log in a folder."""
    contract = fifty.CONTRACT
    patient = SafetyConfig(
        misses=100, miss_periods=9, stall_periods=90, signal_periods=10, policy_periods=10
    )
    kernel = Kernel(contract.robot, contract.rate, patient)
    driver = FakeDriver(contract.robot, contract.rate, fault, at=0)
    policy = policy or ContractPolicy(contract, lambda obs: np.zeros((1, 3), np.float32))
    buffer = log.LogBuffer(contract, 500)
    runner, more = Runner(policy, kernel, driver, buffer), {"start": start, "seconds": seconds}
    return session.Session(runner, buffer, {}, **more, log=folder / "log.npz")


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("fault", ["read", "nan", "late", "frozen", "beyond"])
def test_a_robot_that_was_never_ready_is_a_failure_however_short_the_run(
    fault, start, tmp_path, capsys
):
    made = begun(tmp_path, 0.1, start, fault)
    assert made.run() == 1
    said = capsys.readouterr().out
    assert "ended: the robot was not ready in 0.1 s: " in said
    assert len(made._failed) > len("the robot was not ready in 0.1 s: ")


@pytest.mark.parametrize(
    ("code", "raised"), [(0, DeftlyError), (None, DeftlyError), (3, SystemExit)]
)
@pytest.mark.parametrize("method", ["read", "stop"])
def test_a_driver_that_ends_the_program_is_no_success(method, code, raised, tmp_path):
    made = begun(tmp_path, 5.0)
    stopped = []

    def leave(*_):
        raise SystemExit(code)

    driver = made.runner.driver
    if method == "stop":
        made.seconds = 0.1
    else:
        driver.stop = lambda: stopped.append(True)
    setattr(driver, method, leave)
    with pytest.raises(raised):
        made.run()
    assert stopped == [True] * (method == "read")
    assert (tmp_path / "log.npz").exists()


def test_a_robot_that_was_ready_is_none(tmp_path):
    assert begun(tmp_path, 0.2).run() == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
@pytest.mark.parametrize("first", [None, "SIGTERM"])
def test_a_signal_after_the_loop_does_not_lose_the_log(first, name, tmp_path, monkeypatch):
    """The loop ends by itself or by a signal; another one comes while its log is saved."""
    made = begun(tmp_path, 0.2)
    save, stop = made.buffer.save, made.runner.driver.stop
    each = made.each

    def signalled(tick):
        if first and made.ticker.count == 3:
            os.kill(os.getpid(), getattr(signal, first))
        return each(tick)

    def saving(*args):
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.01)
        save(*args)

    def stopping():
        os.kill(os.getpid(), getattr(signal, name))
        stop()

    monkeypatch.setattr(made, "each", signalled)
    monkeypatch.setattr(made.buffer, "save", saving)
    monkeypatch.setattr(made.runner.driver, "stop", stopping)
    if first:
        with pytest.raises(SystemExit) as ended:
            made.run()
        assert ended.value.code == 128 + signal.SIGTERM
    else:
        assert made.run() == 0
    assert made.runner.driver.stopped
    assert len(log.read(tmp_path / "log.npz")) >= 3
