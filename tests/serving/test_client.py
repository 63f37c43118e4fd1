"""The client: a hard bound on waiting, no answer used late or twice, and a server that comes back is met again."""

import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
from toy_robot import CONTRACT, network, running, signals

from deftly.policy.protocol import ContractPolicy, OneRobot, Policy, PolicyError
from deftly.serving.client import Client
from deftly.serving.wire import pack, unpack

SCRIPT = Path(__file__).parents[1] / "assets/toy_robot.py"
GRACE = 0.15
"""Seconds that a loaded test machine may take to wake us up."""


class Process:
    """A policy server in a process of its own."""

    def __init__(self, endpoint="tcp://127.0.0.1:*"):
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), endpoint], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self.endpoint = self._process.stdout.readline().strip()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
        if self._process.stdout:
            self._process.stdout.close()


@pytest.fixture
def server():
    process = Process()
    assert process.endpoint
    yield process
    process.kill()


def fails_in(seconds: float, function, *args) -> str:
    """The message of the PolicyError that comes within the time."""
    start = time.monotonic()
    with pytest.raises(PolicyError) as error:
        function(*args)
    assert time.monotonic() - start < seconds + GRACE
    assert str(error.value).isprintable()
    return str(error.value)


def follows(remote: Policy, local: Policy, seeds) -> None:
    for seed in seeds:
        assert np.array_equal(
            remote.infer(signals(seed)).targets, local.infer(signals(seed)).targets
        )


def test_a_killed_server_is_noticed_in_time_and_met_again(server):
    client, local = (
        OneRobot(Client(server.endpoint, CONTRACT, timeout=0.3)),
        OneRobot(ContractPolicy(CONTRACT, network)),
    )
    client.reset()
    local.reset()
    follows(client, local, range(3))
    server.kill()
    for _ in range(3):
        assert "tcp://127" in fails_in(0.3, client.infer, signals(0))
    again = Process(server.endpoint)
    try:
        client.policy.ping()
        assert "call reset" in fails_in(0.3, client.infer, signals(0))
        assert "call reset" in fails_in(0.3, client.infer, signals(0))
        client.reset()
        local.reset()
        follows(client, local, range(5, 9))
        client.close()
    finally:
        again.kill()


def test_reset_alone_meets_a_restarted_server(server):
    client, local = (
        OneRobot(Client(server.endpoint, CONTRACT, timeout=0.3)),
        OneRobot(ContractPolicy(CONTRACT, network)),
    )
    client.reset()
    server.kill()
    again = Process(server.endpoint)
    try:
        client.reset()
        local.reset()
        follows(client, local, range(3))
        client.close()
    finally:
        again.kill()


def test_a_stopped_server_holds_nobody_up_and_its_late_answers_are_not_used(server):
    client, local = (
        OneRobot(Client(server.endpoint, CONTRACT, timeout=0.2)),
        OneRobot(ContractPolicy(CONTRACT, network)),
    )
    client.reset()
    local.reset()
    follows(client, local, range(1, 3))
    server.send(signal.SIGSTOP)
    try:
        for seed in range(50, 55):
            fails_in(0.2, client.infer, signals(seed))
    finally:
        server.send(signal.SIGCONT)
    client.policy.ping()
    # of the five, one was on its way when the server stopped: it was decided, but neither used nor commanded
    last = local.policy._memory["command"][0]  # type: ignore[attr-defined]
    local.infer(signals(50))
    for seed in range(3, 8):
        expected = local.infer(signals(seed), last if seed == 3 else None)
        assert np.array_equal(client.infer(signals(seed)).targets, expected.targets)
    assert client.policy.status()["types"]["infer"] == 2 + 1 + 5
    client.close()


@contextmanager
def fake(answer):
    """A server that answers each message with what `answer(message)` lists."""
    router = zmq.Context.instance().socket(zmq.ROUTER)
    router.linger = 0
    port = router.bind_to_random_port("tcp://127.0.0.1")
    stop = threading.Event()

    def run():
        while not stop.is_set():
            if router.poll(20):
                *envelope, frame = router.recv_multipart()
                for reply in answer(unpack(frame)):
                    router.send_multipart([*envelope, reply])
        router.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        stop.set()
        thread.join(5)


def reply(message, **fields):
    echo = {key: message[key] for key in ("v", "type", "seq", "time")}
    if message["type"] == "init":
        fields = {"session": "s", "spec": CONTRACT.to_json(), **fields}
    return {**echo, "ok": True, **fields}


def decision(value: float):
    return {"action": [value] * 3, "targets": [value, value, 0.02]}


def test_late_repeated_and_foreign_answers_are_never_used():
    def answer(message):
        right = reply(message, **decision(message["seq"]))
        stale = [{**right, **decision(-1.0), "seq": message["seq"] + by} for by in (-1, -2)]
        foreign = [
            {**right, **decision(-2.0), "type": "status"},
            {**right, **decision(-3.0), "seq": None},
        ]
        noise = [b"junk", b"", pack({})]
        return [*noise, *(pack(m) for m in (*stale, *foreign, right, right, *stale))]

    with fake(answer) as endpoint:
        client = OneRobot(Client(endpoint, CONTRACT, timeout=2))
        client.reset()
        assert [client.infer(signals(0)).action.tolist() for _ in range(5)] == [
            [s] * 3 for s in range(3, 8)
        ]
        client.close()


def test_a_flood_of_other_answers_does_not_move_the_bound():
    stop = threading.Event()

    def answer(message):
        if message["type"] != "infer":
            return [pack(reply(message))]
        end, other = time.monotonic() + 1.0, pack(reply(message, seq=0))
        return iter(lambda: other if time.monotonic() < end and not stop.is_set() else None, None)

    with fake(answer) as endpoint:
        client = OneRobot(Client(endpoint, CONTRACT, timeout=0.2))
        client.reset()
        fails_in(0.2, client.infer, signals(0))
        stop.set()
        client.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"action": [1.0] * 3},
        decision(float("nan")),
        {**decision(0.0), "targets": [0.0]},
        {**decision(0.0), "action": "x"},
    ],
)
def test_an_answer_without_a_decision_is_an_error(wrong):
    with fake(lambda m: [pack(reply(m, **(wrong if m["type"] == "infer" else {})))]) as endpoint:
        client = OneRobot(Client(endpoint, CONTRACT, timeout=2))
        client.reset()
        assert "'action'" in fails_in(2, client.infer, signals(0)) or wrong
        client.close()


def test_what_was_decided_but_never_arrived_is_told_to_the_server():
    seen = []

    def answer(message):
        seen.append(message)
        infers = sum(m["type"] == "infer" for m in seen)
        return (
            []
            if message["type"] == "infer" and infers in (1, 3)
            else [pack(reply(message, **decision(0.25)))]
        )

    with fake(answer) as endpoint:
        client = OneRobot(Client(endpoint, CONTRACT, timeout=0.2))
        client.reset()
        fails_in(0.2, client.infer, signals(0))
        client.timeout = 2
        client.infer(signals(1))
        client.timeout = 0.2
        fails_in(0.2, client.infer, signals(2))
        client.timeout = 2
        client.infer(signals(3))
        client.infer(signals(4))
        client.close()
    applied = [m.get("applied") for m in seen if m["type"] == "infer"]
    start = CONTRACT.reset(signals(0))["command"]
    assert applied[0] is applied[2] is applied[4] is None
    assert np.frombuffer(applied[1]["data"], "<f4").tolist() == start.tolist()
    assert np.frombuffer(applied[3]["data"], "<f4").tolist() == [0.25, 0.25, np.float32(0.02)]


def test_another_contract_there_is_refused_whatever_the_server_says():
    spec = CONTRACT.to_json().replace('"rate":20.0', '"rate":10.0')
    with fake(lambda m: [pack(reply(m, spec=spec))]) as endpoint:
        with pytest.raises(PolicyError, match=r"rate is 10\.0 there, 20\.0 here"):
            OneRobot(Client(endpoint, CONTRACT))
        assert OneRobot(Client(endpoint)).contract.rate == 10.0
    with fake(lambda m: [pack(reply(m, spec="{"))]) as endpoint, pytest.raises(PolicyError):
        OneRobot(Client(endpoint))


def test_half_open_servers_do_not_hold_anyone_up(monkeypatch):
    monkeypatch.setattr(Client, "patience", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and never says a word
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        message = fails_in(0.3, lambda: OneRobot(Client(endpoint, CONTRACT)))
    assert message == f"no policy server at {endpoint} (waited 0.3 s)"


@pytest.mark.parametrize("endpoint", ["", "junk", "tcp://", "tcp://127.0.0.1"])
def test_bad_endpoints_are_one_line(endpoint):
    assert "cannot connect to" in fails_in(1, Client, endpoint)


def test_folders_without_keys_are_one_line(tmp_path):
    assert "server.key" in fails_in(1, lambda: OneRobot(Client("tcp://127.0.0.1:1", keys=tmp_path)))
    for name in ("server.key", "client.key_secret"):
        (tmp_path / name).write_text('public-key = "short"\nsecret-key = "short"\n')
    assert "cannot connect" in fails_in(
        1, lambda: OneRobot(Client("tcp://127.0.0.1:1", keys=tmp_path))
    )


def test_an_episode_starts_with_the_next_signals(server):
    client = OneRobot(Client(server.endpoint))
    assert client.contract == CONTRACT
    assert "refused 'reset': signal 'joint_pos' is missing" in fails_in(
        1, client.infer, {"cube": np.zeros(3)}
    )
    assert "refused 'reset': signal 'cube' is missing" in fails_in(
        1, client.infer, {"joint_pos": np.zeros(3)}
    )
    client.infer(signals(0))
    client.close()


def test_a_simulation_does_not_wait_in_vain_for_a_model_that_predicts_in_real_time():
    policy = ContractPolicy(CONTRACT, network)
    policy.ahead = True  # as a policy of action chunks that drives a robot has it
    with running(policy) as server:
        with pytest.raises(PolicyError) as error:
            Client(server.endpoint, real_time=False)
        assert (
            "predicts its chunks in real time, and a simulation is faster: serve it with --bind ws://"
            in str(error.value)
        )
        Client(server.endpoint).close()
    with running() as server:
        Client(server.endpoint, real_time=False).close()
