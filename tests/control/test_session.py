"""The operator's keys: whatever becomes of the terminal, the robot holds, and only the operator starts it again."""

import os
import pty
import time

import fifty
import numpy as np
import pytest

from deftly.control import log, session
from deftly.control.drivers import FakeDriver
from deftly.control.loop import Runner
from deftly.control.safety import Kernel, SafetyConfig, State
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
    assert tick() is State.ACTIVE
    made.screen.close()
