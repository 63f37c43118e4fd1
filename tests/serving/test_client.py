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
    near = float(np.clip(value, -1.0, 2.0))
    return {"action": [value] * 3, "targets": [near, near, 0.02]}


@contextmanager
def met(**answers):
    """A client of a server that answers `infer` with these fields."""
    with fake(lambda m: [pack(reply(m, **(answers if m["type"] == "infer" else {})))]) as endpoint:
        client = Client(endpoint, CONTRACT, timeout=5)
        client.reset()
        yield client
        client.close()


def rows(count: int) -> dict[str, np.ndarray]:
    """Signals of so many robots."""
    each = [signals(seed) for seed in range(count)]
    return {name: np.stack([one[name] for one in each]) for name in each[0]}


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


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ([1e9, 0.0, 0.02], "a would be told 1e+09 rad, its limits are -1 .. 2"),
        ([0.0, -2.00001, 0.02], "b would be told -2.00001"),
        ([0.0, 0.0, 0.04001], "c would be told 0.04001"),
        ([0.0, 0.0, -1e-5], "m, its limits are 0 .. 0.04"),
    ],
)
def test_targets_beyond_the_joints_limits_are_an_error(targets, says):
    with met(action=[0.0] * 3, targets=targets) as client:
        robot = OneRobot(client)
        message = fails_in(5, robot.infer, signals(0))
        assert message.startswith(f"{client._link.endpoint}: ")
        assert says in message


@pytest.mark.parametrize("by", [0.0, 5e-7, -5e-7])
def test_targets_at_the_limits_are_taken_as_they_are(by):
    upper = [joint.upper + by for joint in CONTRACT.joints]
    with met(action=[0.0] * 3, targets=upper) as client:
        targets = OneRobot(client).infer(signals(0)).targets
        np.testing.assert_array_equal(targets, np.float32(upper))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"timeout": 0}, "timeout is 0, expected seconds above 0, at most 3600"),
        ({"timeout": -1.0}, "timeout is -1.0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"timeout": "1"}, "timeout is 1, expected seconds"),
        ({"timeout": None}, "timeout is None"),
        ({"timeout": True}, "timeout is True"),
        ({"quality": 96}, "quality is 96, expected 1 to 95"),
        ({"quality": -1}, "quality is -1"),
        ({"quality": 0.5}, "quality is 0.5"),
        ({"quality": "x"}, "quality is x"),
        ({"contract": CONTRACT.robot}, "contract is a RobotInterface, expected a PolicyContract"),
        ({"contract": CONTRACT.to_json()}, "contract is a str"),
        ({"endpoint": 5555}, "endpoint is a int, expected text such as tcp://"),
        ({"keys": 5}, "cannot connect to"),
    ],
)
def test_arguments_that_make_no_sense_are_named_before_anything_is_asked(wrong, says):
    with pytest.raises(PolicyError) as error:
        Client(**{"endpoint": "tcp://127.0.0.1:1", **wrong})
    assert says in str(error.value)
    assert str(error.value).isprintable()


THREE = rows(3)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"signals": {}}, "there are no signals"),
        ({"signals": [1.0]}, "signals is a list, expected a mapping"),
        ({"signals": None}, "signals is a NoneType"),
        ({"signals": {**THREE, "cube": "here"}}, "'cube' is no array of numbers"),
        ({"signals": {**THREE, "cube": [["1", "2", "3"]] * 3}}, "'cube' is no array of numbers"),
        ({"signals": {**THREE, "cube": [[1.0], [1.0, 2.0], []]}}, "'cube' is no array of numbers"),
        ({"signals": {**THREE, "cube": None}}, "'cube' is no array of numbers"),
        ({"signals": {**THREE, "cube": 1.0}}, "'cube' is a single number"),
        ({"signals": signals(0)}, "'joint_pos' has the shape (3,), expected (3, size)"),
        ({"signals": {**THREE, "cube": THREE["cube"][:2]}}, "'cube' has the shape (2, 3)"),
        ({"signals": rows(1) | {"cube": THREE["cube"]}}, "'cube' has the shape (3, 3)"),
        ({"signals": {n: v[:0] for n, v in THREE.items()}}, "'joint_pos' has the shape (0, 3)"),
        ({"applied": "x"}, "'applied' is no array of numbers"),
        ({"applied": np.zeros(3)}, "'applied' has the shape (3,), expected (3, 3)"),
        ({"applied": np.zeros((2, 3))}, "'applied' has the shape (2, 3)"),
        ({"inputs": "abc"}, "inputs is a str, expected a mapping"),
        ({"inputs": {"prompt": "abc"}}, "'prompt' is not one input for each robot: expected 3"),
        ({"inputs": {"goal": 1.0}}, "'goal' is not one input for each robot"),
        ({"inputs": {"goal": np.array(1.0)}}, "'goal' is not one input for each robot"),
        ({"inputs": {"goal": [[1.0]]}}, "'goal' is not one input for each robot"),
        ({"inputs": {"goal": [{}, 1.0, 2.0]}}, "'goal' is no array of numbers"),
        ({"inputs": {"prompt": ["\ud800"] * 3}}, "cannot send 'reset': "),
        ({"ids": [0]}, "ids are 1, and the signals are of 3 robots"),
        ({"ids": range(4)}, "ids are 4"),
        ({"ids": [0, 0, 1]}, "ids is [0, 0, 1]: a robot is named twice"),
        ({"ids": 0}, "ids is 0, expected the numbers of robots"),
        ({"ids": [0, 1, "x"]}, "ids is [0, 1, 'x'], expected the numbers of robots"),
        ({"ids": [0, 1, 1.5]}, "expected the numbers of robots"),
    ],
)
def test_what_is_not_of_n_robots_is_named_and_moves_nothing(wrong, says):
    with met(**decision(0.25)) as client:
        assert says in fails_in(5, lambda: client.infer(**{"signals": THREE, **wrong}))
        assert len(client.infer(rows(1)).targets) == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"signals": {}}, "there are no signals"),
        ({"signals": {**signals(0), "cube": 1.0}}, "'cube' has the shape (1,), expected (1, size)"),
        ({"signals": {**signals(0), "cube": "x"}}, "'cube' is no array of numbers"),
        ({"signals": {**signals(0), "cube": [[1.0], [1.0, 2.0]]}}, "'cube' is no array"),
        ({"applied": "x"}, "'applied' is no array of numbers"),
        ({"applied": [0.0]}, "'applied' has the shape (1, 1)"),
        ({"inputs": "abc"}, "inputs is a str"),
        ({"inputs": {"goal": object()}}, "'goal' is no array of numbers"),
    ],
)
def test_of_one_robot_too(wrong, says):
    with met(**decision(0.25)) as client:
        robot = OneRobot(client)
        assert says in fails_in(5, lambda: robot.infer(**{"signals": signals(0), **wrong}))
        assert robot.infer(signals(0)).targets.shape == (3,)


def test_robots_are_named_by_whole_numbers():
    with met(**decision(0.25)) as client:
        for call in (client.reset, client.forget):
            assert "ids is x, expected the numbers of robots" in fails_in(1, call, "x")
            assert "named twice" in fails_in(1, call, [1, 1])
        ids = np.array([4, 2])
        client.reset(ids)  # type: ignore[arg-type]
        assert client.infer(rows(2), ids=ids).targets.shape == (2, 3)  # type: ignore[arg-type]


def test_a_client_that_is_closed_says_so():
    with met(**decision(0.25)) as client:
        client.infer(rows(1))
        client.close()
        for call in (client.ping, client.status, lambda: client.infer(rows(1))):
            message = fails_in(1, call)
            assert message == f"the client of {client._link.endpoint} is closed: make a new one"
        client.reset()
        client.forget([0])
        client.close()


def test_a_wait_that_is_none_is_not_taken_later_either():
    with met(**decision(0.25)) as client:
        with pytest.raises(PolicyError, match=r"timeout is -1"):
            client.timeout = -1
        assert client.timeout == 5


def test_a_server_that_takes_what_the_contract_does_not_is_no_other_error():
    with met(**decision(0.25)) as client:
        assert "joint_pos" in fails_in(5, client.infer, {"cube": np.zeros((1, 3))})


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


@pytest.mark.parametrize("spec", ["{", "", "[]", "[" * 20_000, "{}", None, 5])
def test_a_contract_that_cannot_be_read_names_the_server(spec):
    with fake(lambda m: [pack(reply(m, spec=spec))]) as endpoint:
        for contract in (None, CONTRACT):
            message = fails_in(5, lambda c=contract: Client(endpoint, c, timeout=5))
            assert message.startswith(f"{endpoint} answers with no contract that this Deftly reads")


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
