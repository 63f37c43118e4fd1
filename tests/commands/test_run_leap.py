"""`deftly run --driver leap` as a process, on an emulated bus: exit codes, lines, logs, and how motors are left."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import leap
import numpy as np
import pytest
from run_process import Process

from deftly.commands import main as cli
from deftly.control import inspection, log
from deftly_bench import dynamixel_bus

pytestmark = pytest.mark.realtime

bus, registers = leap.bus, leap.registers
PATIENT = ["--safety.misses", "100", "--safety.miss-periods", "9", "--safety.stall-periods", "90"]
PATIENT += ["--safety.policy-periods", "10", "--safety.signal-periods", "9"]
QUICK = ["--start", "--safety.approach-s", "0.2", *PATIENT]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return leap.write_bundle(tmp_path_factory.mktemp("bundle") / "leap")


@pytest.fixture
def start(run_forks, bus, bundle, tmp_path):
    """Starts runs of the hand with the bundle, unless other words are given."""
    with ExitStack() as stack:

        def begin(*words, policy=("--bundle", bundle)):
            given = ["--driver", "leap", "--port", bus.port, *policy, *words]
            process = Process(run_forks, given, tmp_path)
            stack.callback(process.close)
            return process

        yield begin


def test_a_policy_drives_the_hand_and_leaves_it_holding(bus, start, tmp_path):
    process = start(*QUICK, "--seconds", "2", "--log", "log.npz", "--current-ma", "500")
    assert process.end() == 0, process.text
    found = log.read(tmp_path / "log.npz")
    assert found.rows["decided"].sum() > 3
    assert inspection.replay(found)[0] == ""
    last = dict(zip(found.contract.joint_names, found.rows["command"][-1]))
    process.wait_for(lambda: registers(bus, 98) == [0] * 16)
    assert registers(bus, 116, 4) == [leap.tick("right", name, last[name]) for name in leap.ORDER]
    assert registers(bus, 64) == [1] * 16
    assert registers(bus, 102, 2) == [500] * 16


def test_the_hand_is_brought_home_in_three_seconds_before_the_policy_drives(bus, start, tmp_path):
    bus.motors[
        14
    ].position -= (
        300  # th_mcp is 0.46 rad from home: further than a start without an approach allows
    )
    process = start("--start", "--seconds", "4", "--log", "log.npz", *PATIENT)
    assert process.end() == 0, process.text
    found = log.read(tmp_path / "log.npz")
    assert '"approach_s": 3.0' in str(found.facts["safety"])
    rows = found.rows
    driven, began = int(rows["decided"].argmax()), int((rows["state"] == "active").argmax())
    assert driven > began > 0
    assert 2.7 <= rows["now"][driven] - rows["now"][began] <= 4.0
    np.testing.assert_allclose(rows["signal/joint_pos"][driven], found.contract.home(), atol=0.06)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda bus: bus.unplugged.add(5), "motor 5 (mf_mcp) does not answer on /dev/pts/"),
        (lambda bus: setattr(bus, "silent", True), "no motor answers on /dev/pts/"),
        (lambda bus: bus.motors[7].fail(32), "motor 7 (mf_dip) reports overload"),
    ],
)
def test_a_fault_ends_a_run_that_nobody_watches(bus, start, fault, said):
    process = start(*QUICK)
    process.until("active")
    bus.change(fault)
    assert process.end() == 1
    assert "hold: driver: the robot could not be read (read: " in process.text
    assert said in process.text
    assert process.text.count("\nended: driver, and nobody at a terminal to resume") == 1
    assert "Traceback" not in process.text
    if not bus.silent:
        assert registers(bus, 64) == [int(i != 7 or 5 in bus.unplugged) for i in range(16)], (
            "the others hold"
        )


def test_an_adapter_that_is_pulled_ends_the_run(bus, start):
    process = start(*QUICK)
    process.until("active")
    bus.close()
    assert process.end() == 1
    assert "is gone: is the adapter unplugged?" in process.text
    assert "the robot did not take its last command, look after it: " in process.text


def test_a_run_that_is_killed_leaves_motors_that_stop_by_themselves(bus, start):
    process = start(*QUICK)
    process.until("active")
    process.wait_for(lambda: registers(bus, 98) == [50] * 16)
    os.kill(process.child.pid, signal.SIGKILL)
    process.end()
    process.wait_for(lambda: bus.positions() and registers(bus, 98) == [255] * 16)
    assert registers(bus, 64) == [1] * 16


def test_a_signal_leaves_the_hand_holding(bus, start):
    process = start(*QUICK)
    process.until("active")
    process.child.send_signal(signal.SIGTERM)
    assert process.end() == 143
    process.wait_for(lambda: registers(bus, 98) == [0] * 16)
    assert registers(bus, 64) == [1] * 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "/dev/ttyNONE"], "there is no port /dev/ttyNONE"),
        (["--baud", "57601"], "--baud is 57601"),
        (["--current-ma", "9000"], "--current-ma is 9000"),
    ],
)
def test_what_cannot_be_driven_is_one_line_and_no_motor_is_touched(
    bus, bundle, words, said, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(["run", "--driver", "leap", "--port", bus.port, "--bundle", str(bundle), *words])
        == 2
    )
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert bus.packets == 0


def test_a_recording_is_replayed_to_the_hand(bus, start, tmp_path):
    """A run's own log is a recording; served again, the hand is commanded the same."""
    first = start(*QUICK, "--seconds", "2", "--log", "first.npz")
    assert first.end() == 0, first.text
    command = [
        sys.executable,
        "-m",
        "deftly",
        "replay",
        "first.npz",
        "--serve",
        "tcp://127.0.0.1:*",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            endpoint = server.stdout.readline().split(" at ")[1].split(": ")[0]
            for motor in bus.motors.values():
                motor.put(64, 1, 0)
            leap.go_home(bus)
            again = start(
                *QUICK,
                "--seconds",
                "2",
                "--log",
                "again.npz",
                policy=("--server-endpoint", endpoint),
            )
            assert again.end() == 0, again.text
        finally:
            server.terminate()
    logs = [log.read(tmp_path / name) for name in ("first.npz", "again.npz")]
    commanded = logs[0].rows["command"][logs[0].rows["decided"]]
    served = logs[1].rows["targets"][logs[1].rows["decided"]]
    both = min(len(commanded), len(served))
    assert both > 3
    np.testing.assert_allclose(served[:both], commanded[:both], atol=1e-6)
    assert inspection.replay(logs[1])[0] == ""


def test_the_emulated_bus_is_a_program(tmp_path):
    command = [sys.executable, "-m", "deftly_bench.dynamixel_bus", "--motors", "2"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
        "env": env,
        "cwd": tmp_path,
    }
    with subprocess.Popen(command, **pipes) as program:
        port = program.stdout.readline().strip()
        assert Path(port).exists()
        said, _ = program.communicate("unplug 1\nnonsense\nunplug\nquit\n", timeout=20)
    assert program.returncode == 0
    assert said.startswith(dynamixel_bus.COMMANDS["unplug"])
    assert said.endswith("no: IndexError: list index out of range; 'help' lists the commands\n")
    assert not Path(port).exists()
