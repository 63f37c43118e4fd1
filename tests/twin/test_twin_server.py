"""The simulated robot in its own process: real time, clients that die, and its own end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zmq

from deftly.contract import JOINT_POS
from deftly.control.drivers import DriverError
from deftly.control.drivers.socketdriver import SocketDriver
from deftly.errors import DeftlyError
from deftly.tasks import load
from deftly.twin import server as simserver

pytestmark = pytest.mark.realtime

TASK = str(Path(__file__).parents[1] / "assets" / "slider.py")
PATIENCE = 20.0


@pytest.fixture(scope="module")
def contract():
    cls = load(TASK)
    return cls(cls.Config()).contract()


@pytest.fixture(scope="module")
def robot():
    """A robot in its own process, and where it answers."""
    process, endpoint = simserver.launch([TASK])
    yield process, endpoint
    process.kill()
    process.wait()


@pytest.fixture
def driver(robot, contract):
    driver = SocketDriver(contract.robot, contract.rate, robot[1], timeout=PATIENCE)
    yield driver
    driver._socket.close()  # `stop` would end the process


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_time_passes_and_the_servos_go_where_they_are_told(driver):
    first = driver.read()
    driver.write(np.array([0.4, -0.3]))
    wait_for(
        lambda: np.allclose(driver.read().signals[JOINT_POS], (0.4, -0.3), atol=0.02),
        "the block did not move",
    )
    last = driver.read()
    assert last.at > first.at
    assert 0.0 <= time.monotonic() - last.at < PATIENCE
    assert last.signals["joint_vel"].shape == (2,)


def test_without_commands_the_last_target_is_held(driver):
    driver.write(np.array([-0.2, 0.2]))
    wait_for(
        lambda: np.allclose(driver.read().signals[JOINT_POS], (-0.2, 0.2), atol=0.02),
        "the block did not move",
    )
    start = driver.read().at
    wait_for(lambda: driver.read().at > start + 0.5, "its time stands still")
    np.testing.assert_allclose(driver.read().signals[JOINT_POS], (-0.2, 0.2), atol=0.02)


def test_simulated_time_is_the_clocks(robot, contract):
    inner = SocketDriver(contract.robot, contract.rate, robot[1], timeout=PATIENCE)
    ages = [time.monotonic() - inner.read().at for _ in range(50)]
    inner._socket.close()
    assert min(ages) < 0.03  # a substep, and the way here


def test_a_robot_that_follows_has_the_time_of_its_messages(contract):
    process, endpoint = simserver.launch([TASK, "--follow", "True"])
    now = [100.0]
    driver = SocketDriver(
        contract.robot, contract.rate, endpoint, timeout=PATIENCE, clock=lambda: now[0]
    )
    try:
        first = driver.read()
        time.sleep(0.3)  # however long nobody asks
        driver.write(np.array([0.4, -0.3]))
        again = driver.read()
        assert first.at == again.at == 100.0
        np.testing.assert_array_equal(first.signals[JOINT_POS], again.signals[JOINT_POS])
        now[0] += 2.0
        there = driver.read()
        assert there.at == pytest.approx(102.0, abs=0.03)  # a substep
        np.testing.assert_allclose(there.signals[JOINT_POS], (0.4, -0.3), atol=0.02)
        now[0] += 1e6
        assert driver.read().at == pytest.approx(now[0], abs=0.03)
        driver.clock = None
        with pytest.raises(DriverError, match="'at' must be the time"):
            driver.read()
    finally:
        driver.stop()
        process.kill()
        process.wait()


CLIENT = """
import sys, numpy as np
from deftly.contract import RobotInterface
from deftly.control.drivers.socketdriver import SocketDriver
driver = SocketDriver(RobotInterface.from_json(sys.argv[2]), float(sys.argv[3]), sys.argv[1], timeout=20.0)
print("drives", flush=True)
while True:
    driver.read()
    driver.write(np.array([0.1, 0.1]))
"""


def test_it_outlives_a_client_that_is_killed(robot, contract, driver):
    command = [sys.executable, "-c", CLIENT, robot[1], contract.robot.to_json(), str(contract.rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "drives\n"
        client.kill()
    driver.write(np.array([0.3, 0.0]))
    wait_for(
        lambda: np.allclose(driver.read().signals[JOINT_POS], (0.3, 0.0), atol=0.02),
        "it listens no more",
    )
    assert robot[0].poll() is None


def test_garbage_is_answered_and_harms_nobody(robot, driver):
    with zmq.Context.instance().socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(robot[1])
        bad = [
            b"",
            b"\xff" * 50,
            b"\x80",
            *map(simserver.pack, ({"type": "fly", "seq": 1}, {"type": ["read"]})),
        ]
        bad += [
            simserver.pack({"type": "write", "seq": 2, "targets": t})
            for t in ([1.0], "x", [float("nan")] * 2)
        ]
        for frame in bad:
            socket.send(frame)
            assert socket.poll(1000 * PATIENCE)
            reply = simserver.unpack(socket.recv())
            assert reply["ok"] is False
            assert "\n" not in reply["error"]
    assert driver.read().signals


def test_another_contract_is_refused(robot, contract):
    with pytest.raises(DriverError, match=r"its control rate is 20\.0 Hz, the policy's 10"):
        SocketDriver(contract.robot, 10.0, robot[1])


def test_silence_is_a_driver_error_and_late_answers_are_not_used(robot, contract):
    driver = SocketDriver(contract.robot, contract.rate, robot[1], timeout=0.05, patience=PATIENCE)
    os.kill(robot[0].pid, signal.SIGSTOP)
    try:
        for _ in range(2):
            start = time.monotonic()
            with pytest.raises(DriverError, match="does not answer 'write' within 50 ms"):
                driver.write(np.zeros(2))
            assert time.monotonic() - start < 1.0
    finally:
        os.kill(robot[0].pid, signal.SIGCONT)
    driver.timeout = PATIENCE
    asked = time.monotonic()
    assert driver.read().at > asked - 1.0  # an answer to `write` has no signals
    driver._socket.close()
    with pytest.raises(DriverError, match="let go of"):
        driver.read()


def test_the_time_to_wait_is_a_share_of_the_period(contract, monkeypatch):
    monkeypatch.setattr(SocketDriver, "_ask", lambda self, *_: hello)
    for rate, timeout in ((5.0, 0.03), (200.0, 0.001)):
        hello = {"spec": contract.robot.to_json(), "rate": rate}
        driver = SocketDriver(contract.robot, rate, "tcp://127.0.0.1:1")
        assert driver.timeout == pytest.approx(timeout)
        driver.stop()


def test_nobody_there_is_one_line(contract):
    with pytest.raises(DriverError, match="no robot to drive at"):
        SocketDriver(contract.robot, contract.rate, "tcp://127.0.0.1:1", patience=0.1)
    with pytest.raises(DriverError, match="no robot to drive at"):
        SocketDriver(contract.robot, contract.rate, "nonsense", patience=0.1)


def test_a_robot_that_does_not_start_says_why():
    with pytest.raises(DeftlyError, match=r"did not start: .*may be reached from other machines"):
        simserver.launch([TASK, "--bind", "tcp://0.0.0.0:*"])


LAUNCH = """
import sys, time
from deftly.twin import server as simserver
process, endpoint = simserver.launch([sys.argv[1]])
print(process.pid, endpoint, flush=True)
time.sleep(600)
"""


def test_it_ends_with_its_parent():
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCH, TASK], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[0])
        assert not ended(pid)
        parent.kill()
    try:
        wait_for(lambda: ended(pid), "it goes on without its parent")
    finally:
        if not ended(pid):
            os.kill(pid, signal.SIGKILL)


def test_it_ends_when_told(robot, contract):
    """The last test of the module: it ends the robot that they share."""
    driver = SocketDriver(contract.robot, contract.rate, robot[1], timeout=PATIENCE)
    driver.stop()
    driver.stop()
    assert robot[0].wait(PATIENCE) == 0
