"""The control loop with a policy of chunks behind a websocket: late ones, servers that die, and answers that are none.

Time is simulated: a step of the loop is taken when the test says so, and the chunk on its way has come, or has not.
"""

import dataclasses
import time

import numpy as np
import pytest

pytest.importorskip("websockets", minversion="15")

from openpi_arm import ARM, SECONDS, Model, serving
from openpi_peer import openpi_server

from deftly.control.drivers import FakeDriver
from deftly.control.log import LogBuffer
from deftly.control.loop import Runner
from deftly.control.safety import Fault, Kernel, SafetyConfig, State
from deftly.policy.chunks import ChunkConfig, ChunkPolicy
from deftly.serving.openpi_client import OpenpiModel

LATE = 3
HORIZON, EXECUTED = 10, 8


def wait_for(condition) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


class Drive:
    """A fake arm that a policy at an endpoint drives, step by step."""

    def __init__(self, endpoint, contract=None):
        self.policy = ChunkPolicy(
            OpenpiModel(endpoint, contract, SECONDS), ChunkConfig(late=LATE), ahead=True
        )
        self.now = 10.0
        self.driver = FakeDriver(ARM.robot, ARM.rate, clock=lambda: self.now)
        self.log = LogBuffer(ARM, 200)
        self.runner = Runner(
            self.policy,
            Kernel(ARM.robot, ARM.rate, SafetyConfig(start_envelope=10.0)),
            self.driver,
            self.log,
        )
        self.ticks = 0
        self.start()

    def start(self):
        """The operator starts the robot, after a fault too."""
        if self.runner.kernel.state is State.HOLD:
            self.runner.resume()
        while self.runner.kernel.state is not State.READY:
            self.tick()
        self.runner.start()

    def tick(self):
        self.now += 1 / ARM.rate
        self.ticks += 1
        return self.runner.step(self.now)

    def step(self, count=1):
        """Control periods in which a chunk that is asked for comes before the next one."""
        for _ in range(count):
            tick = self.tick()
            self.hear()
        return tick

    def hear(self):
        """Wait until the chunk on its way, or why there is none, has come."""
        plans = self.policy._plans
        wait_for(
            lambda: not plans or plans[0].asked is None or not self.policy._asker._answers.empty()
        )

    def until_fault(self, most=3 * HORIZON):
        for _ in range(most):
            self.step()
            if self.runner.kernel.state is State.HOLD:
                return
        raise AssertionError("no fault")


def stands_safe(drive):
    """The kernel holds the robot where it is, and says why; every tick is in the log."""
    kernel = drive.runner.kernel
    assert (kernel.state, kernel.fault) == (State.HOLD, Fault.POLICY_STALE)
    held = [drive.tick().command for _ in range(5)]
    assert all((each == held[0]).all() for each in held)
    np.testing.assert_array_equal(drive.driver.command, held[0])
    rows = drive.log.rows()
    assert len(rows["now"]) == drive.ticks
    assert np.isfinite(rows["command"][-5:]).all()
    assert "\n" not in drive.runner.problem
    return drive.runner.problem


def test_a_slow_policy_drives_with_the_delay_that_was_measured():
    model = Model()
    with serving(ChunkPolicy(model)) as server:
        drive = Drive(server.endpoint)
        drive.step(EXECUTED)
        model.gate.clear()
        asked = len(model.seen)
        drive.tick()
        wait_for(lambda: len(model.seen) == asked + 1)  # the next chunk is on its way
        for _ in range(2):
            assert drive.tick().state is State.ACTIVE  # the one before goes on
        model.gate.set()
        drive.hear()
        tick = drive.tick()
        assert tick.decision is not None
        assert drive.policy.delays[-1] == 3
        drive.step(2 * HORIZON)
        assert drive.runner.kernel.state is State.ACTIVE
        assert not drive.runner.problem
        assert (
            drive.log.rows()["decided"].sum() == drive.ticks - drive.log.rows()["decided"].argmax()
        )
        drive.runner.close()


def test_a_late_chunk_holds_the_robot_and_then_it_is_a_fault_that_can_be_cleared():
    model = Model()
    with serving(ChunkPolicy(model)) as server:
        drive = Drive(server.endpoint)
        drive.step(EXECUTED)
        model.gate.clear()
        for _ in range(HORIZON - EXECUTED + LATE):
            assert drive.tick().state is State.ACTIVE
        while drive.tick().state is State.ACTIVE:
            pass
        assert "no action chunk for 3 control periods" in stands_safe(drive)
        model.gate.set()
        drive.hear()
        drive.start()
        drive.step(2 * HORIZON)
        assert drive.runner.kernel.state is State.ACTIVE
        drive.runner.close()


WRONG = {
    "nan": ({"actions": np.full((HORIZON, 8), np.nan)}, "numbers that are not finite"),
    "size": ({"actions": np.zeros((HORIZON, 7))}, r"shape (10, 7), expected (..., 8)"),
    "short": ({"actions": np.zeros((0, 8))}, "'actions' has shape (0, 8)"),
    "nothing": ({}, "the reply has no array 'actions'"),
    "garbage": (b"\xc1", "message is no msgpack"),
    "traceback": (ZeroDivisionError("x" * 500), "the server failed: ZeroDivisionError: xxx"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_server_that_answers_nonsense_in_the_middle(name):
    answer, said = WRONG[name]
    calls = []

    def infer(_):
        calls.append(1)
        if len(calls) <= 2:
            return {"actions": np.zeros((HORIZON, 8))}
        if isinstance(answer, Exception):
            raise answer
        return answer

    with openpi_server(infer) as endpoint:
        drive = Drive(endpoint, ARM)
        drive.until_fault()
        problem = stands_safe(drive)
        drive.runner.close()
    assert said in problem
    assert len(problem) < 350
    assert problem.count("ws://") <= 1


def test_a_server_that_dies_and_comes_back_and_one_with_another_policy():
    with serving(ChunkPolicy(Model())) as server:
        drive = Drive(server.endpoint)
        drive.step(EXECUTED // 2)
    drive.until_fault()
    problem = stands_safe(drive)
    assert "no policy server at ws://" in problem
    assert problem.count("ws://") == 1
    with serving(ChunkPolicy(Model()), endpoint=server.endpoint):
        drive.start()
        drive.step(2 * HORIZON)
        assert drive.runner.kernel.state is State.ACTIVE
    other = Model()
    other.contract = dataclasses.replace(ARM, rate=14)
    with serving(ChunkPolicy(other), endpoint=server.endpoint):
        drive.until_fault()
        assert "the server has another policy now" in stands_safe(drive)
        drive.runner.close()
