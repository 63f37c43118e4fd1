"""A policy in another process that dies, is suspended or never answers: the loop holds within two control periods."""

import os
import signal
import socket
import subprocess
import sys
import time

import msgpack
import numpy as np
import pytest
import zmq
from four_joints import HOME, TOY
from one_row import OneRow

from deftly.control.drivers import FakeDriver
from deftly.control.loop import Runner, Ticker
from deftly.control.safety import Fault, Kernel, SafetyConfig, State
from deftly.policy.protocol import Decision, PolicyError

pytestmark = pytest.mark.realtime

SERVER = """
import msgpack, zmq
socket = zmq.Context().socket(zmq.REP)
socket.bind("tcp://127.0.0.1:*")
print(socket.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
while True:
    socket.send(msgpack.packb([x + 0.001 for x in msgpack.unpackb(socket.recv())]))
"""


class Remote(OneRow):
    """A policy over a socket, as short as one can be: no answer in time is an error, and a late one is never read."""

    contract = TOY

    def __init__(self, endpoint):
        self.context, self.endpoint, self.socket = zmq.Context(), endpoint, None

    def decide(self, signals, applied, inputs):
        if self.socket is None:
            self.socket = self.context.socket(zmq.REQ)
            self.socket.linger = 0
            self.socket.connect(self.endpoint)
        self.socket.send(msgpack.packb(applied.tolist()))
        if not self.socket.poll(20):
            self.socket.close()
            self.socket = None
            raise PolicyError("no answer of the policy server within 20 ms")
        return Decision(np.zeros(3), np.array(msgpack.unpackb(self.socket.recv())))

    def close(self):
        self.context.destroy(linger=0)


@pytest.fixture
def server():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdout.close()


def hold_after(runner, decisions, injure):
    """Drive until the policy decided so often, injure it; control periods from there until the kernel holds."""
    ticker, moved, since = Ticker(TOY.rate), 0, None
    for _ in range(200):
        tick = runner.step(ticker.wait())
        if tick.state is State.READY:
            runner.start()
        moved += tick.decision is not None
        if since is not None:
            since += 1
            if tick.state is State.HOLD:
                return since
        elif moved == decisions and runner.kernel.wants_policy:
            injure()
            since = 0
    raise AssertionError(f"still {runner.kernel.state}, {moved} decisions")


# a loaded machine may miss deadlines: here, only the policy is to be at fault
PATIENT = SafetyConfig(ramp_s=0.0, stall_periods=40.0, misses=100, signal_periods=10.0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_policy_process_that_is_killed_or_suspended_leads_to_a_hold_within_two_periods(
    server, number
):
    process, endpoint = server
    with Runner(
        Remote(endpoint), Kernel(TOY.robot, TOY.rate, PATIENT), FakeDriver(TOY.robot, TOY.rate)
    ) as runner:
        periods = hold_after(runner, 5, lambda: os.kill(process.pid, number))
        assert runner.kernel.fault is Fault.POLICY_STALE
        assert "no answer of the policy server" in runner.problem
        assert periods <= 2
        held = runner.kernel.command
        assert np.abs(held - HOME).max() > 0
        if number == signal.SIGSTOP:  # a late answer is none
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.1)
        assert runner.step(time.monotonic()).state is State.HOLD
        np.testing.assert_array_equal(runner.driver.command, held)


def test_a_peer_that_accepts_and_says_nothing_leads_to_a_hold_within_two_periods():
    with socket.create_server(("127.0.0.1", 0)) as half_open:
        endpoint = f"tcp://127.0.0.1:{half_open.getsockname()[1]}"
        with Runner(
            Remote(endpoint), Kernel(TOY.robot, TOY.rate, PATIENT), FakeDriver(TOY.robot, TOY.rate)
        ) as runner:
            assert hold_after(runner, 0, lambda: None) <= 2
            assert runner.kernel.fault is Fault.POLICY_STALE
            np.testing.assert_array_equal(runner.driver.command, HOME)
