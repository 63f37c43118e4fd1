"""`deftly serve`: a policy answers over a socket as it does in this process; what cannot be served is one line."""

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import zmq

from deftly.commands import main as cli
from deftly.commands import serve
from deftly.commands.serve import ServeArgs, find
from deftly.errors import DeftlyError
from deftly.learn import checkpoint
from deftly.policy.protocol import OneRobot
from deftly.serving.client import Client
from deftly.serving.wire import pack, unpack

TASK = "jaka-pick-cube"
ANY_PORT = ("--bind", "tcp://127.0.0.1:*")


STATUS = {
    "robot": "arm",
    "contract": "0" * 64,
    "uptime_s": 1.0,
    "sessions": 0,
    "max_sessions": 8,
    "answered": 0,
    "types": {},
    "errors": {},
    "batches": [],
    "latency_ms": {"p50": 0.0, "p99": 0.0, "max": 0.0},
}


def test_a_hostile_server_does_nothing_to_the_terminal(capsys):
    serve.print_status({**STATUS, "robot": "a\x1b[2Jb\nerror: no", "errors": {"\x1b]0;x\x07": 1}})
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert "a?[2Jb error: no" in out


@pytest.mark.parametrize(
    "wrong",
    [
        {"types": [1]},
        {"types": {1: 2, "a": 3}},
        {"batches": [[1]]},
        {"batches": 7},
        {"uptime_s": "\x1b[2J"},
        {"uptime_s": None},
        {"contract": 5},
        {"latency_ms": {}},
        {"latency_ms": {"p50": {}, "p99": 1.0, "max": 1.0}},
    ],
)
def test_what_is_no_status_is_one_line(wrong):
    with pytest.raises(DeftlyError, match="no policy server of this Deftly"):
        serve.print_status({**STATUS, **wrong})
    with pytest.raises(DeftlyError, match="no policy server of this Deftly"):
        serve.print_status({})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The shipped policy served by the command; its first line and the process."""
    root = tmp_path_factory.mktemp("ws")
    command = [sys.executable, "-m", "deftly", "serve", TASK, *ANY_PORT, "--runs.root", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    yield process.stdout.readline(), process
    process.kill()
    process.communicate()


DEEP: list = []
for _ in range(3000):
    DEEP = [DEEP]


@pytest.mark.parametrize("field", list(STATUS))
@pytest.mark.parametrize(
    "value",
    [
        None,
        "\x1b[2J\nerror: no",
        b"\xff\x1b",
        DEEP,
        2**63,
        -1.0,
        float("nan"),
        float("inf"),
        [["\x1b[31m", "\u202e"]],
        {"\x1b[2J": "\r"},
        {"p50": 1e308, "p99": DEEP, "max": "\x07"},
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_whatever_a_status_holds_it_is_a_table_or_one_line(field, value, capsys):
    try:
        serve.print_status({**STATUS, field: value})
    except DeftlyError as error:
        assert "no policy server of this Deftly" in str(error)
        assert str(error).isprintable()
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert out.count("\n") in (0, 7)


def test_a_hostile_reply_over_the_wire_is_one_line(capsys):
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.linger = 0
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    deep = b"\x91" * 900 + b"\xc0"
    bad = [
        {"ok": True},
        {"ok": False, "error": "\x1b[2J\n\u202e" * 500, "code": ["\x07"]},
        {"ok": False, "error": [["\x1b"]]},
        {"ok": 1},
        {"ok": True, **STATUS, "robot": "\x1b]0;x\x07"},
    ]

    def answer() -> None:
        for fields in [*bad, None]:
            *envelope, frame = socket.recv_multipart()
            head = {key: value for key, value in unpack(frame).items() if key in ("type", "seq")}
            body = pack({**head, **(fields or {"ok": True, **STATUS})})
            if fields is None:  # a list in a list in a list
                body = body.replace(pack({"x": "arm"})[3:], deep)
            socket.send_multipart([*envelope, body])

    server = threading.Thread(target=answer)
    server.start()
    try:
        for _ in [*bad, None]:
            status = cli.main(["serve", "--status", f"tcp://127.0.0.1:{port}"])
            said = capsys.readouterr()
            assert all(c.isprintable() or c == "\n" for c in said.out + said.err)
            assert "Traceback" not in said.err
            assert status == 0 or said.err.count("\n") == 1
    finally:
        server.join(10)
        socket.close()


def endpoint(line: str) -> str:
    return next(word.rstrip(",") for word in line.split() if word.startswith("tcp://"))


def test_answers_are_those_of_the_policy_and_the_end_is_clean(
    server, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # where there are no runs
    line, process = server
    source = find(TASK, ServeArgs())
    contract = source.contract
    assert contract is not None
    said = f"contract {contract.hash[:12]}, policy: shipped (iteration {source.iteration})"
    assert line == f"serving {contract.robot.name} at {endpoint(line)}, {said}\n"
    remote = OneRobot(Client(endpoint(line), contract, timeout=5))
    local = OneRobot(source.open())
    rng = np.random.default_rng(0)
    signals = {s.name: rng.uniform(-0.3, 0.3, s.size).astype(np.float32) for s in contract.signals}
    signals["joint_pos"] = np.array(contract.home(), np.float32)
    for _ in range(10):
        there, here = remote.infer(signals), local.infer(signals)
        assert np.array_equal(there.targets, here.targets)
        signals["joint_pos"] = here.targets
    remote.close()
    assert cli.main(["serve", "--status", endpoint(line)]) == 0
    shown = capsys.readouterr().out
    assert contract.robot.name in shown
    assert "infer 10" in shown
    assert "p99" in shown
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert out.splitlines()[-1] == "answered 14 requests"
    assert (process.returncode, err) == (0, "")


def test_a_checkpoint_without_a_task():
    found = find(None, ServeArgs(policy=str(checkpoint.shipped(TASK))))
    assert found.contract == find(TASK, ServeArgs(policy="shipped")).contract


def test_a_checkpoint_of_another_task_is_refused(exported):
    args = ServeArgs(policy=str(exported.checkpoint))
    assert find("rail", args).task == "rail"
    with pytest.raises(serve.DeftlyError, match=rf"is a policy of rail, not of {TASK}"):
        find(TASK, args)


def test_a_bundle_is_loaded_with_its_task(exported):
    args = ServeArgs(policy=str(exported.bundle))
    found = find(None, args)
    assert (found.task, found.kind) == ("rail", "bundle")
    policy = found.open()
    policy.require_network()
    assert find("rail", args).contract == policy.contract
    with pytest.raises(serve.DeftlyError, match="is a policy of rail, not of other"):
        find("other", args)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "serve needs a policy: deftly serve TASK, or --policy BUNDLE"),
        (["--checkpoint", "shipped"], "needs a task"),
        ([TASK, "--checkpoint", "nothing-like-it"], "nothing-like-it"),
        ([TASK, "--bundle", "x", "--checkpoint", "y"], "give one --policy"),
        ([TASK, "--idle-s", "0"], "idle-s is 0"),
        ([TASK, "--max-clients", "0"], "max-clients is 0"),
        ([TASK, "--bind", "junk"], "write it as tcp://127.0.0.1:5555"),
        ([TASK, "--bind", "tcp://0.0.0.0:*"], "give --keys DIR"),
        (
            [TASK, "--bind", "tcp://0.0.0.0:*", "--keys", "nowhere"],
            "no such folder; 'deftly serve --new-keys DIR'",
        ),
        (["jaka-pick-cub"], "jaka-pick-cube"),
        (
            ["--new-keys", "new", "--status", "tcp://127.0.0.1:9"],
            "--new-keys does nothing else: leave out --status",
        ),
        (["--new-keys", "new", "--keys", "old"], "leave out --keys"),
        (["--new-keys", "new", "--policy", "shipped"], "leave out --policy"),
        (["--new-keys", "new", "--bind", "tcp://127.0.0.1:9"], "leave out --bind"),
        ([TASK, "--new-keys", "new"], f"--new-keys does nothing else: leave out {TASK}"),
        (
            ["--status", "tcp://127.0.0.1:9", "--policy", "x"],
            "--status does nothing else: leave out --policy",
        ),
        (["--status", "tcp://127.0.0.1:9", "--idle-s", "5"], "leave out --idle-s"),
        ([TASK, "--status", "tcp://127.0.0.1:9"], f"--status does nothing else: leave out {TASK}"),
    ],
)
def test_what_cannot_be_served_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    runs = [] if "--status" in words or "--new-keys" in words else ["--runs.root", str(tmp_path)]
    assert cli.main(["serve", *words, *runs]) == 2
    assert not (tmp_path / "new").exists()
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_new_keys(tmp_path, capsys):
    folder = tmp_path / "keys"
    assert cli.main(["serve", "--new-keys", str(folder)]) == 0
    assert f"--keys {folder}/server" in capsys.readouterr().out
    assert cli.main(["serve", "--new-keys", str(folder)]) == 2
    assert "never overwritten" in capsys.readouterr().err
