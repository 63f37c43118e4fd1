"""`deftly run`: whatever goes wrong, the robot is left safe at once, and the log of it replays bit for bit."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fifty
import numpy as np
import pytest
from run_process import Process

import deftly
from deftly.commands import main as cli
from deftly.commands import run
from deftly.contract import Input, Observe
from deftly.control import inspection, log, session
from deftly.control.drivers import FAULTS, FakeDriver
from deftly.control.loop import Runner
from deftly.control.safety import Fault, State
from deftly.errors import DeftlyError
from deftly.policy import bundle as bundles
from deftly.policy.protocol import ContractPolicy

pytestmark = pytest.mark.realtime

SERVER = Path(fifty.__file__)
AT = 25
EXPECTED = {
    **dict.fromkeys(("late", "frozen"), Fault.SIGNALS_STALE),
    **dict.fromkeys(("missing", "nan", "shape", "beyond", "jump"), Fault.SIGNALS_BAD),
    **dict.fromkeys(("read", "write", "crash"), Fault.DRIVER),
    "slow": Fault.STALLED,
}
PATIENT = ["--safety.misses", "100", "--safety.miss-periods", "9", "--safety.stall-periods", "90"]
PATIENT += ["--safety.policy-periods", "10", "--safety.signal-periods", "9"]
"""Busy machines stall the loops of tests, which then must not fault for that."""
ROBOT = """
import json, time
from pathlib import Path
from deftly.control.drivers import FakeDriver

class Robot(FakeDriver):
    def __init__(self, robot, rate, port="none"):
        super().__init__(robot, rate)
        Path("port").write_text(port)

    def stop(self):
        Path("stopping").touch()
        time.sleep(0.4)
        Path("stopped").write_text(json.dumps(self.command.tolist()))
"""
FORKS = """
import os, sys
from pathlib import Path
import onnxruntime, tyro, yaml
from deftly.commands import run
from deftly.commands import main as cli
children = {}
for fault in sys.argv[1].split():
    children[os.fork()] = fault
    if 0 in children:
        os.chdir(fault)
        os.dup2(os.open("out", os.O_CREAT | os.O_WRONLY), 1)
        own = sys.argv[3].split()
        own += ["--safety.stall-periods", "4.5", "--safety.miss-periods", "4"] if fault == "slow" else []
        words = ["--driver", "fake", "--start", "--fault", fault, "--fault-at", sys.argv[2], "--log", "log.npz"]
        os._exit(cli.main(["run", *words, *own, *sys.argv[4:]]))
for _ in children:
    child, status = os.wait()
    Path(children[child], "status").write_text(str(os.waitstatus_to_exitcode(status)))
"""
"""A process for each fault, which import but once."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return fifty.write_bundle(tmp_path_factory.mktemp("bundle") / "fifty")


@pytest.fixture
def start(run_forks, tmp_path):
    with ExitStack() as stack:

        def begin(*words, **more):
            process = Process(run_forks, words, tmp_path, **more)
            stack.callback(process.close)
            return process

        yield begin


@pytest.fixture
def server():
    """Makes policy servers; gives their process and endpoint."""
    with ExitStack() as stack:

        def make(rate=50.0):
            child = subprocess.Popen(
                [sys.executable, str(SERVER), str(rate)], stdout=subprocess.PIPE, text=True
            )
            stack.callback(child.stdout.close)
            stack.callback(child.wait)
            stack.callback(child.kill)
            return child, child.stdout.readline().strip()

        yield make


def dumped(said, cwd):
    """The log of a fault that a process wrote."""
    (name,) = re.findall(r"^log of the fault: (.*)$", said, re.MULTILINE)
    return cwd / name


# ------------------------------------------------------------------------ faults


@pytest.fixture(scope="module")
def faulty(bundle, tmp_path_factory):
    """The folders of runs, one for every fault of the fake robot."""
    root = tmp_path_factory.mktemp("faults")
    for fault in FAULTS:
        (root / fault).mkdir()
    words = [" ".join(FAULTS), str(AT), " ".join(PATIENT), "--bundle", str(bundle)]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *words],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return root


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_answered_within_two_periods_and_its_log_replays(fault, faulty, bundle, capsys):
    folder = faulty / fault
    assert (folder / "status").read_text() == "1"
    said = (folder / "out").read_text()
    path = dumped(said, folder)
    found = log.read(path)
    held = int((found.rows["state"] == State.HOLD).argmax())
    assert found.rows["fault"][held] == EXPECTED[fault]
    stale = found.rows["writes_at"] - found.rows["at"] > 9 / fifty.CONTRACT.rate
    soonest = {
        "frozen": stale.argmax(),
        "slow": min(held, AT + 1),
    }  # the second period; busy machines blur which it is
    assert held == soonest.get(fault, AT), "the first row with the fault is row AT"
    assert held == len(found) - 1, (
        "the dump is made at once, and without a terminal the run is over"
    )
    assert found.rows["now"][held - 1] < found.rows["now"][held]
    if fault != "write":  # what the robot did not take is held, were it to take it
        np.testing.assert_array_equal(found.rows["command"][held], found.rows["command"][held - 1])
    assert f"hold: {EXPECTED[fault]}: " in said
    assert json.loads(str(found.facts["faults"]))[0][1:] == [
        EXPECTED[fault],
        str(found.facts["reason"]),
    ]
    whole = log.read(folder / "log.npz")
    assert np.array_equal(whole.rows["now"][: len(found)], found.rows["now"])
    assert inspection.replay(whole)[0] == ""
    assert cli.main(["inspect", str(path), "--bundle", str(bundle)]) == 0
    assert capsys.readouterr().out.count("replays bit for bit") == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("read", "read: the fake robot does not answer"),
        ("crash", "read: ZeroDivisionError: a bug of the fake robot"),
        ("write", "write: the fake robot takes no command"),
    ],
)
def test_what_the_driver_said_is_shown(fault, words, faulty):
    assert words in (faulty / fault / "out").read_text()


def test_a_killed_server_is_a_fault(server, start, tmp_path):
    child, endpoint = server(20.0)
    words = ["--policy", endpoint, "--driver", "fake", "--start", *PATIENT]
    process = start(*words, "--safety.policy-periods", "1.5")
    process.until("active")
    os.kill(child.pid, signal.SIGKILL)
    assert process.end() == 1
    assert "hold: policy-stale: " in process.text
    found = log.read(dumped(process.text, tmp_path))
    last = int(np.flatnonzero(found.rows["decided"])[-1])
    assert 1 <= len(found) - 1 - last <= 2
    assert inspection.replay(found)[0] == ""


def test_a_stopped_loop_faults_and_makes_up_for_nothing(bundle, start, terminal, tmp_path):
    process = start(
        "--bundle", bundle, "--driver", "fake", "--start", "--log", "log.npz", stdin=terminal[1]
    )
    process.until("active")
    process.child.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    process.child.send_signal(signal.SIGCONT)
    process.until("log of the fault")
    time.sleep(0.2)
    os.write(terminal[0], b"q\n")
    assert process.end() == 0
    rows = log.read(tmp_path / "log.npz").rows
    held = int((rows["state"] == State.HOLD).argmax())
    assert rows["fault"][held] == Fault.STALLED
    gaps = np.diff(rows["now"])
    assert gaps.max() > 0.9
    assert gaps[held:].min() > 0.5 / fifty.CONTRACT.rate
    assert (rows["command"][held:] == rows["command"][held - 1]).all()


# ----------------------------------------------------------------------- endings


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_the_robot_safe_and_a_second_one_does_not_skip_it(
    number, status, bundle, start, tmp_path
):
    (tmp_path / "my_robot.py").write_text(ROBOT)
    words = [
        "--bundle",
        bundle,
        "--driver",
        "my_robot:Robot",
        "--port",
        "/dev/x",
        "--start",
        "--log",
        "a/log.npz",
    ]
    process = start(*words, *PATIENT)
    process.until("active")
    process.child.send_signal(number)
    process.wait_for((tmp_path / "stopping").exists)
    process.child.send_signal(number)
    assert process.end() == status
    found = log.read(tmp_path / "a" / "log.npz")
    assert json.loads((tmp_path / "stopped").read_text()) == found.rows["command"][-1].tolist()
    assert (tmp_path / "port").read_text() == "/dev/x"
    assert "Traceback" not in process.text


def test_time_and_a_closed_input(bundle, tmp_path):
    words = [
        sys.executable,
        "-m",
        "deftly",
        "run",
        "--bundle",
        str(bundle),
        "--driver",
        "fake",
        *PATIENT,
    ]
    for more, status, said in (
        (["--start", "--seconds", "0.3"], 0, "no faults"),
        ([], 1, "give --start"),
    ):
        closed = ["sh", "-c", 'exec "$@" <&-', "sh", *words, *more]
        done = subprocess.run(closed, cwd=tmp_path, capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stderr) == (status, "")
        assert said in done.stdout
        assert not list(tmp_path.glob("*.npz"))


def test_a_fault_that_never_happens_is_said(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--bundle", str(bundle), "--driver", "fake", "--start", "--seconds", "0.3"]
    assert cli.main(["run", *words, "--fault", "nan", "--fault-at", "9999"]) == 1
    assert (
        "fault nan: it never happened, since it comes after 9999 ticks" in capsys.readouterr().out
    )


def test_a_robot_that_cannot_be_read_ends_the_run(bundle, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "READY_S", 0.2)
    words = [
        "--bundle",
        str(bundle),
        "--driver",
        "fake",
        "--start",
        "--fault",
        "read",
        "--fault-at",
        "0",
    ]
    assert cli.main(["run", *words]) == 1
    assert (
        "the robot was not ready in 0.2 s: the robot could not be read (read: the fake robot"
        in capsys.readouterr().out
    )


def test_the_operator_at_a_terminal(bundle, start, terminal, tmp_path):
    process = start(
        "--bundle", bundle, "--driver", "fake", "--log", "log.npz", *PATIENT, stdin=terminal[1]
    )
    process.until("ready  (s starts")
    for key, said, count in (
        (b"r\n", "cannot resume in state ready", 1),
        (b"s\n", "active", 1),
        (b"\n", "hold: operator", 1),
        (b"r\n", "  ready", 2),
        (b"S \n", "  active", 2),
        (b"what\n", "hold: operator", 2),
    ):
        os.write(terminal[0], key)
        process.until(said, count)
    os.write(terminal[0], b"q\n")
    assert process.end() == 0
    events = log.read(tmp_path / "log.npz").rows["event"]
    assert [e for e in events if e] == ["start", "hold", "resume", "start", "hold"]
    assert cli.main(["inspect", str(tmp_path / "log.npz"), "--bundle", str(bundle)]) == 0


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    """A bundle whose policy is told two speeds."""
    inputs = (Input("speed", 1, "m/s", lower=(0.0,)), Input("turn", 1, "rad/s"))
    terms = (*fifty.CONTRACT.observe_terms, Observe("speed"), Observe("turn"))
    contract = replace(fifty.CONTRACT, inputs=inputs, observe_terms=terms)
    return fifty.write_bundle(tmp_path_factory.mktemp("walks") / "walks", contract, size=0.01)


def test_a_file_of_commands_is_what_the_policy_is_told(walks, start, tmp_path):
    (tmp_path / "commands.csv").write_text("time,speed,turn\n0,5,0\n0.1,0.5,-0.25\n0.2,0,0\n")
    words = ["--bundle", walks, "--driver", "fake", "--start", "--seconds", "0.6", *PATIENT]
    process = start(*words, "--operator", "commands.csv", "--log", "log.npz")
    assert process.end() == 0
    assert (
        process.text.count("speed is 5 m/s, but the policy was trained for 0 to 1 m/s: clipped")
        == 1
    )
    rows = log.read(tmp_path / "log.npz").rows
    told = np.concatenate((rows["input/speed"], rows["input/turn"]), -1)
    told = told[np.isfinite(told).all(-1)]
    changes = told[1:][(np.diff(told, axis=0) != 0).any(-1)]
    assert changes.tolist() == [[1.0, 0.0], [0.5, -0.25], [0.0, 0.0]]


def test_an_operator_at_the_keyboard_needs_no_enter_and_gets_his_terminal_back(
    walks, start, terminal, tmp_path
):
    ours, theirs = terminal
    before = termios.tcgetattr(theirs)
    words = ["--bundle", walks, "--driver", "fake", "--operator", "keyboard", *PATIENT]
    process = start(*words, "--log", "log.npz", stdin=theirs, stdout=theirs)
    shown = b""

    def shows(words, key=b""):
        """Whether it shows the words; a key is pressed until it does."""
        nonlocal shown
        os.write(ours, key)
        if select.select([ours], [], [], 0.05)[0]:
            shown += os.read(ours, 4096)
        return words in shown

    process.wait_for(lambda: shows(b"ready  (s starts"))
    os.write(ours, b"s")
    process.wait_for(lambda: shows(b"active"))
    os.write(ours, b"\x1b[A\x1b[A\x1b[D")
    process.wait_for(lambda: shows(b"speed 0.20, turn 0.20", b" "))
    os.write(ours, b"x")
    process.wait_for(lambda: shows(b"hold: operator"))
    os.write(ours, b"q")
    process.wait_for(lambda: shows(b"no faults"))
    assert process.end() == 0
    assert termios.tcgetattr(theirs) == before
    assert log.read(tmp_path / "log.npz").rows["input/speed"][-1] == 0.0, "it rests in hold"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--operator", "mouse"], "must be keyboard, gamepad, or a file of commands"),
        (["--operator", "keyboard"], "--operator keyboard needs a terminal"),
        (["--operator", "none.csv"], "none.csv"),
        (["--operator", "none.csv", "--check-joints"], "leave out --operator"),
    ],
)
def test_an_operator_who_cannot_be_heard_is_refused_before_the_robot_is_opened(
    words, said, walks, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session.sys, "stdin", None)
    monkeypatch.setattr(run, "find_driver", lambda *_: pytest.fail("the robot was opened"))
    assert cli.main(["run", "--bundle", str(walks), "--driver", "fake", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_safe_target_that_was_not_taken_is_said_and_the_status_is_1(
    bundle, monkeypatch, tmp_path, capsys
):
    def refuse(self, targets):
        raise OSError("the line is cut")

    close = Runner.close
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        Runner, "close", lambda self: (setattr(FakeDriver, "write", refuse), close(self))[1]
    )
    monkeypatch.setattr(FakeDriver, "write", FakeDriver.write)  # put back at the end
    words = ["--bundle", str(bundle), "--driver", "fake", "--start", "--seconds", "0.2", *PATIENT]
    assert cli.main(["run", *words]) == 1
    assert (
        "did not take its last command, look after it: write: OSError: the line is cut"
        in capsys.readouterr().out
    )


def test_an_operator_who_leaves_while_it_holds(bundle, start):
    process = start(
        "--bundle", bundle, "--driver", "fake", "--start", *PATIENT, stdin=subprocess.PIPE
    )
    process.until("active")
    process.stdin.write("h\n")
    process.stdin.flush()
    process.until("hold: operator")
    time.sleep(0.1)
    assert process.child.poll() is None, "who asked to hold is there to resume"
    process.stdin.close()
    assert process.end() == 1


def test_a_screen_that_takes_nothing_does_not_halt_the_robot(bundle, start, tmp_path):
    out, into = os.pipe()
    os.set_blocking(into, False)
    with suppress(BlockingIOError):
        while os.write(into, bytes(4096)):
            pass
    os.set_blocking(into, True)
    words = [
        "--bundle",
        bundle,
        "--driver",
        "fake",
        "--start",
        "--seconds",
        "0.5",
        "--log",
        "log.npz",
        *PATIENT,
    ]
    process = start(*words, stdout=into)
    os.close(into)
    process.wait_for((tmp_path / "log.npz").exists)
    drain = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(out, 65536), b"")])
    drain.start()
    assert process.end() == 0
    drain.join()
    os.close(out)
    assert np.ptp(log.read(tmp_path / "log.npz").rows["now"]) >= 0.45


# ----------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("source", "spec", "said"),
    [
        ("class A: pass", "bad:A", "--driver bad:A has no method read()"),
        ("class A:\n read = write = None\n def stop(self): pass", "bad:A", "has no method read()"),
        (
            "import nothing_like_it",
            "bad:A",
            "--driver bad:A: it needs the module 'nothing_like_it', which is not there",
        ),
        ("1 +", "bad:A", "--driver bad:A: SyntaxError"),
        ("x = 1", "bad:A", "AttributeError: module 'bad' has no attribute 'A'"),
        (
            "class A:\n read = write = stop = print\n def __init__(self, robot, rate): 1 / 0",
            "bad:A",
            "ZeroDivisionError",
        ),
        ("", "my_robot", "sim, fake, leap, wildrobot, or MODULE:CLASS such as my_robot:Driver"),
        ("", "no_such_module:A", "no module 'no_such_module' here or installed; known are sim"),
    ],
)
def test_a_bad_driver_is_one_line(source, spec, said, bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("bad", None)
    (tmp_path / "bad.py").write_text(source)
    assert cli.main(["run", "--bundle", str(bundle), "--driver", spec]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--driver", "fake"], "run needs a policy: deftly run TASK, or --policy"),
        (["no-such-task", "--driver", "fake"], "no task 'no-such-task' (`deftly tasks` lists them"),
        (["pick", "--bundle", "BUNDLE", "--driver", "fake"], "is a policy of fifty, not of pick"),
        (
            ["--bundle", "BUNDLE", "--driver", "fake", "--log-seconds", "36000"],
            "log-seconds is 36000, but at most 1",
        ),
        (["--server-endpoint", "tcp://192.0.2.1:5555", "--driver", "fake"], "give --keys FOLDER"),
        (["--server-endpoint", "tcp://localhost:1", "--driver", "fake"], "no policy server at"),
        (
            ["--bundle", "BUNDLE", "--driver", "fake", "--fault", "odd"],
            "the fake robot has no fault 'odd'",
        ),
        (
            ["--bundle", "BUNDLE", "--driver", "fake", "--log", "x.csv"],
            "it must be a .npz file, such as x.npz",
        ),
        (
            ["--bundle", "BUNDLE", "--driver", "fake", "--log", "/proc/none/x.npz"],
            "log is /proc/none/x.npz, but nothing can be written in '/proc'",
        ),
        (["--bundle", "BUNDLE", "--driver", "fake", "--seconds", "-1"], "seconds is -1.0"),
        (["--bundle", "BUNDLE", "--driver", "fake", "--safety.speed", "2"], "safety.speed is 2"),
        (["--server-endpoint", "junk", "--driver", "fake"], "junk"),
    ],
)
def test_what_cannot_run_is_one_line(words, said, bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *(str(bundle) if word == "BUNDLE" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_log_of_a_simulated_robot_that_is_replaced_is_said_to_be(
    bundle, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["run", "--bundle", str(bundle), "--driver", "fake", "--start", "--seconds", "0.5"]
    for replaced in ("", ", which replaces what was there"):
        assert cli.main([*words, "--log", "log.npz"]) == 0
        assert f"log: log.npz{replaced}\n" in capsys.readouterr().out


def test_the_log_of_a_real_robot_is_never_overwritten(bundle, tmp_path, monkeypatch, capsys):
    """That of a simulated one is: it can be made again."""
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log.npz"
    log.write_bytes(b"an afternoon's work")
    words = ["--bundle", str(bundle), "--log", "log.npz"]
    assert cli.main(["run", *words, "--driver", "no_such_robot:Driver"]) == 2
    assert "'log.npz' is there already, a robot's log: name another" in capsys.readouterr().err
    assert log.read_bytes() == b"an afternoon's work"
    with pytest.raises(DeftlyError, match="is there already"):
        deftly.drive(FakeDriver, bundle, log=log)
    with pytest.raises(DeftlyError, match="is there already"):
        session.require_place(log, keep=True)
    session.require_place(log, keep=False)


def test_a_word_means_the_shipped_bundle_and_the_simulated_robot_has_its_settings(
    monkeypatch, tmp_path, bundle
):
    launched = []

    def launch(argv):
        launched.extend(argv)
        raise DeftlyError("far enough")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "fifty").mkdir()
    monkeypatch.setattr(bundles, "shipped", lambda task: bundle if task == "fifty" else None)
    monkeypatch.setitem(sys.modules, "deftly.twin.server", SimpleNamespace(launch=launch))
    with pytest.raises(DeftlyError, match="far enough"):
        run.main(["fifty", "--driver", "sim"])
    words = ["fifty", "--policy", str(bundle), "--runs.root", ".", "--seed", "0"]
    assert launched == [*words, "--follow", "True"]
    launched.clear()
    with pytest.raises(DeftlyError, match="far enough"):  # the robot's process looks into the file
        run.main(["my_task.py", "--bundle", str(bundle), "--driver", "sim"])
    assert launched[0] == "my_task.py"


def test_the_log_names_the_bundles_task(bundle, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [
        "--bundle",
        str(bundle),
        "--driver",
        "fake",
        "--start",
        "--seconds",
        "0.1",
        "--log",
        "log.npz",
    ]
    assert cli.main(["run", *words, *PATIENT]) == 0
    assert str(log.read(tmp_path / "log.npz").facts["task"]) == "fifty"


def test_a_timeout_beyond_the_period_is_refused(server, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--server-endpoint", server()[1], "--driver", "fake", "--timeout-ms", "30"]
    assert cli.main(["run", *words]) == 2
    assert "timeout-ms is 30, but the control period has only 20 ms" in capsys.readouterr().err


def test_a_policy_of_another_contract_stops_by_name(server, bundle, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "--server-endpoint",
        server(20.0)[1],
        "--bundle",
        str(bundle),
        "--driver",
        "fake",
        "--start",
    ]
    assert cli.main(["run", *words]) == 1
    said = capsys.readouterr().out
    assert "stop: contract: the policy was made under another contract: rate" in said
    assert "active" not in said


def test_a_driver_that_knows_its_robot_is_believed(bundle, monkeypatch, tmp_path, capsys):
    class Other(FakeDriver):
        def __init__(self, robot, rate):
            joints = (replace(robot.joints[0], upper=1.0), *robot.joints[1:])
            super().__init__(replace(robot, joints=joints), rate)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "custom_driver", lambda spec, robot, rate, port: Other(robot, rate))
    assert cli.main(["run", "--bundle", str(bundle), "--driver", "other:Robot", "--start"]) == 1
    assert (
        "contract: the policy was made under another robot interface: joints"
        in capsys.readouterr().out
    )


def test_what_was_opened_is_closed_when_the_rest_fails(bundle, monkeypatch, tmp_path):
    stopped = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FakeDriver, "stop", lambda self: stopped.append("robot"))
    monkeypatch.setattr(ContractPolicy, "close", lambda self: stopped.append("policy"))
    monkeypatch.setattr(run, "Kernel", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.main(["--bundle", str(bundle), "--driver", "fake"])
    assert stopped == ["robot", "policy"]


def test_a_log_that_cannot_be_written_does_not_stop_the_loop(bundle, start, terminal, tmp_path):
    words = ["--bundle", bundle, "--driver", "fake", "--start", "--log", "logs/log.npz", *PATIENT]
    process = start(*words, "--fault", "read", "--fault-at", "60", stdin=terminal[1])
    process.until("active")
    (tmp_path / "logs").touch()
    process.until("cannot write the log of the fault")
    process.until("hold (driver: ")  # it goes on, and says so
    os.write(terminal[0], b"q\n")
    assert process.end() == 1
    assert process.text.splitlines()[-1].startswith("error: cannot write 'logs/log.npz'")
