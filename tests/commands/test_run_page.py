"""The page of `deftly run`, a simulated robot, and logs beside a running loop."""

import json
import re
import signal
import socket
import threading
import time
from pathlib import Path

import fifty
import numpy as np
import pytest

from deftly.commands import main as cli
from deftly.commands import run
from deftly.control import inspection, log
from deftly.control.drivers import DriverError, FakeDriver
from deftly.control.drivers.socketdriver import SocketDriver
from deftly.control.log import LogBuffer
from deftly.control.loop import Runner
from deftly.control.safety import Fault, Kernel, State
from deftly.policy.protocol import ContractPolicy
from deftly.tasks import load

pytestmark = pytest.mark.realtime

PATIENT = ["--safety.misses", "100", "--safety.miss-periods", "9", "--safety.stall-periods", "90"]
PATIENT += ["--safety.policy-periods", "10", "--safety.signal-periods", "9"]
PAGE = (Path(__file__).parents[2] / "docs/run.md").read_text()


@pytest.fixture
def controller():
    """A robot's controller as the page's driver expects it: its address, and what it was told."""
    link, told = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), []
    link.bind(("127.0.0.1", 0))

    def serve():
        while (message := json.loads((packet := link.recvfrom(4096))[0]))["verb"] != "over":
            told.append(message)
            signals = {
                "joint_pos": told[-1].get("targets") or fifty.CONTRACT.home(),
                "cube": [0.0] * 3,
            }
            for seq in (message["seq"] - 1, message["seq"]):
                link.sendto(json.dumps({"seq": seq, **signals}).encode(), packet[1])

    thread = threading.Thread(target=serve)
    thread.start()
    address = "{}:{}".format(*link.getsockname())
    yield address, told
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.sendto(b'{"verb": "over"}', link.getsockname())
    thread.join()
    link.close()


def test_the_driver_of_the_page(controller, monkeypatch, tmp_path):
    (source,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len([line for line in source.partition("class")[2].splitlines() if line.strip()]) <= 30
    (tmp_path / "page_robot.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    driver = run.custom_driver("page_robot:Driver", fifty.ROBOT, 50.0, controller[0])
    driver.timeout = 5.0
    before = time.monotonic()
    reading = driver.read()
    assert before <= reading.at <= time.monotonic()
    np.testing.assert_array_equal(reading.signals["joint_pos"], fifty.CONTRACT.home())
    driver.write(np.array([0.1, 0.2, 0.03]))
    assert controller[1][-1] == {"verb": "write", "targets": [0.1, 0.2, 0.03], "seq": 2}
    driver.stop()
    gone = run.custom_driver("page_robot:Driver", fifty.ROBOT, 50.0, "127.0.0.1:1")
    with pytest.raises(DriverError, match="the robot does not answer"):
        gone.read()
    gone.stop()


def test_a_simulated_robot_is_driven_and_ends_with_the_run(monkeypatch, tmp_path, capsys):
    simserver = pytest.importorskip("deftly.twin.server")
    children, launch = [], simserver.launch
    monkeypatch.setattr(
        simserver, "launch", lambda argv: children.append(launch(argv)) or children[0]
    )
    monkeypatch.chdir(tmp_path)
    cls = load("jaka-pick-cube")
    fifty.write_bundle(tmp_path / "pick", cls(cls.Config()).contract(), "jaka-pick-cube", size=0.01)
    words = ["--bundle", "pick", "--driver", "sim", "--start", "--seconds", "1", "--log", "log.npz"]
    assert cli.main(["run", *words, *PATIENT]) == 0
    assert "  active" in capsys.readouterr().out
    assert children[0][0].poll() is not None
    assert cli.main(["inspect", "log.npz", "--bundle", "pick"]) == 0


def test_a_computer_that_is_too_slow_makes_a_simulated_robot_slow(monkeypatch, tmp_path, capsys):
    """Its process stands still for 0.4 s, six control periods, again and again: no fault, and numbers at the end."""
    simserver = pytest.importorskip("deftly.twin.server")
    launch, over = simserver.launch, threading.Event()
    threads = []

    def disturbed(argv):
        process, endpoint = launch(argv)

        def stall():
            while not over.wait(0.3) and process.poll() is None:
                process.send_signal(signal.SIGSTOP)
                over.wait(0.4)
                process.send_signal(signal.SIGCONT)

        threads.append(threading.Thread(target=stall))
        threads[0].start()
        return process, endpoint

    monkeypatch.setattr(simserver, "launch", disturbed)
    monkeypatch.chdir(tmp_path)
    cls = load("jaka-pick-cube")
    fifty.write_bundle(tmp_path / "pick", cls(cls.Config()).contract(), "jaka-pick-cube", size=0.01)
    words = ["--bundle", "pick", "--driver", "sim", "--start", "--seconds", "2"]
    try:
        assert cli.main(["run", *words]) == 0
    finally:
        over.set()
        threads[0].join()
    said = capsys.readouterr().out
    assert "| no faults" in said
    assert re.search(r"this computer was too slow: simulated time ran at \d\d% of real time", said)


def test_a_simulated_robot_that_hangs_is_a_fault(monkeypatch, tmp_path, capsys):
    """Its process stands still for ever after 20 ticks: after 2 s, that is no slow computer."""
    simserver = pytest.importorskip("deftly.twin.server")
    children, launch, write = [], simserver.launch, SocketDriver.write
    monkeypatch.setattr(
        simserver, "launch", lambda argv: children.append(launch(argv)) or children[0]
    )
    written = []

    def write_or_hang(driver, targets):
        write(driver, targets)
        written.append(targets)
        if len(written) == 20:
            children[0][0].send_signal(signal.SIGSTOP)

    monkeypatch.setattr(SocketDriver, "write", write_or_hang)
    monkeypatch.chdir(tmp_path)
    cls = load("jaka-pick-cube")
    fifty.write_bundle(tmp_path / "pick", cls(cls.Config()).contract(), "jaka-pick-cube", size=0.01)
    assert cli.main(["run", "--bundle", "pick", "--driver", "sim", "--start", *PATIENT]) == 1
    assert re.search("does not answer '(read|write)' within 2000 ms", capsys.readouterr().out)
    assert children[0][0].poll() is not None


def test_the_page_names_every_state_fault_and_key():
    table = re.findall(r"^\| `([\w-]+)`", PAGE, re.MULTILINE)
    faults = [fault for fault in Fault if fault is not Fault.NONE]
    assert table == ["s", "r", "q", "keyboard", "gamepad", *State, *faults]
    assert "Enter or `h`" in PAGE


# ---------------------------------------------------------------- logs beside the loop


def test_a_log_saved_beside_a_running_loop_is_whole(tmp_path):
    clock, path = [100.0], tmp_path / "log.npz"
    buffer = LogBuffer(fifty.CONTRACT, 400)
    network = lambda obs: np.tanh(obs[:, :3])  # noqa: E731
    driver = FakeDriver(fifty.CONTRACT.robot, fifty.CONTRACT.rate, clock=lambda: clock[0])
    runner = Runner(
        ContractPolicy(fifty.CONTRACT, network),
        Kernel(fifty.CONTRACT.robot, fifty.CONTRACT.rate),
        driver,
        buffer,
    )
    over = threading.Event()

    def loop():
        while not over.is_set():
            clock[0] += 0.02
            runner.step(clock[0])
            time.sleep(0.0005)  # a buffer is to outlast a save
            if runner.kernel.state is State.READY:
                runner.start()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        safety = json.dumps(vars(runner.kernel.cfg))
        while buffer._count < 1000:
            time.sleep(0.01)
        for _ in range(5):
            buffer.save(path, {"safety": safety})
            found = log.read(path)
            assert len(found) > 100
            np.testing.assert_allclose(np.diff(found.rows["now"]), 0.02, atol=1e-9)
            assert inspection.replay(found)[0] == ""
    finally:
        over.set()
        thread.join()
