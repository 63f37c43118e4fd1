"""openpi's websocket protocol: our server, our client, a stand-in of openpi's server, and who sends garbage."""

import dataclasses
import sys
import threading
import time

import msgpack
import numpy as np
import pytest
from toy_robot import CONTRACT, network, running

from deftly import api
from deftly.commands.run import RunArgs, find_source, open_policy
from deftly.commands.serve import ServeArgs
from deftly.commands.serve import _server as made
from deftly.contract import Act
from deftly.control.drivers import FakeDriver
from deftly.errors import DeftlyError
from deftly.policy.chunks import ChunkConfig, ChunkPolicy, Observed
from deftly.policy.layouts import Droid, LayoutError, OpenpiConfig, Own
from deftly.policy.protocol import ContractPolicy, OneRobot, PolicyError
from deftly.serving.client import Client
from deftly.serving.keys import new_keys
from deftly.serving.openpi_wire import pack, unpack
from deftly.serving.wire import WireError

websockets = pytest.importorskip("websockets", minversion="15")

from openpi_arm import ARM, LOOPBACK, SECONDS, Model, seen, serving  # noqa: E402
from openpi_peer import openpi_server  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from deftly.serving.openpi_client import OpenpiModel  # noqa: E402
from deftly.serving.openpi_server import OpenpiServer  # noqa: E402


def wait_for(condition) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def talk(server, *messages, **settings):
    """What a plain websocket gets for messages: the replies, and the close code (None: still open)."""
    replies = []
    with connect(server.endpoint, compression=None, **settings) as connection:
        metadata = msgpack.unpackb(connection.recv(SECONDS))
        try:
            for message in messages:
                connection.send(message)
                replies.append(connection.recv(SECONDS))
            if replies and isinstance(replies[-1], str):
                connection.recv(SECONDS)
        except websockets.exceptions.ConnectionClosed as closed:
            return metadata, replies, closed.rcvd and closed.rcvd.code
    return metadata, replies, None


# ------------------------------------------------------------------- layouts


@pytest.mark.parametrize("gripper_open", [0.0, 1.0])
def test_droids_layout_and_its_inverse(gripper_open):
    droid = Droid(ARM, gripper_open)
    told = droid.observation(seen(1), {"instruction": "go", "speed": np.ones(2, np.float32)})
    assert told["observation/joint_position"].shape == (7,)
    opening = seen(1)["joint_pos"][4] / 0.04
    wanted = opening if gripper_open else 1 - opening
    assert told["observation/gripper_position"] == pytest.approx(wanted, abs=1e-6)
    np.testing.assert_array_equal(told["observation/exterior_image_1_left"], seen(1)["front"])
    np.testing.assert_array_equal(told["observation/wrist_image_left"], seen(1)["wrist"])
    assert told["prompt"] == "go"
    signals, inputs = droid.read(told)
    for name, value in seen(1).items():
        np.testing.assert_allclose(signals[name], value, atol=1e-6)
    assert inputs["instruction"] == "go"
    np.testing.assert_array_equal(inputs["speed"], [1, 1])


def test_droids_actions_are_velocities_and_an_absolute_gripper():
    droid = Droid(ARM)
    actions = np.array([[0.5, -1.0, 0.2, 1.0], [0.0, 0.3, -0.4, -1.0]], np.float32)
    told = droid.from_contract(actions)
    wanted = [[-1.5, 0.2 * 0.1 * 15, 0.75, 0, 0, 0, 0, 0.0], [0.45, -0.6, 0, 0, 0, 0, 0, 1.0]]
    np.testing.assert_allclose(told, wanted, atol=1e-6)
    np.testing.assert_allclose(droid.to_contract(told), actions, atol=1e-6)
    closed = Droid(ARM, gripper_open=0.0).from_contract(actions)[:, -1]
    np.testing.assert_array_equal(closed, [1.0, 0.0])


@pytest.mark.parametrize("made", [Droid, Own])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_layout_makes_an_action_of_what_is_not_finite(made, bad):
    layout = made(ARM)
    for size, turn in (
        (ARM.action_size, layout.from_contract),
        (layout.action_size, layout.to_contract),
    ):
        for column in range(size):
            actions = np.zeros((2, size), np.float32)
            actions[1, column] = bad
            with pytest.raises(LayoutError, match="not finite"):
                turn(actions)


@pytest.mark.parametrize(
    ("acts", "message"),
    [
        ((Act(("j0",), "absolute"),), "kind 'absolute'"),
        ((Act(("j0",), "velocity"),), "0 gripper actions"),
    ],
)
def test_a_contract_without_a_place_in_droids_layout_is_refused(acts, message):
    with pytest.raises(LayoutError, match=message):
        Droid(dataclasses.replace(ARM, act_terms=acts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/front": None}, "no 'observation/front'"),
        ({"observation/front": np.zeros((8, 7, 3), np.uint8)}, "expected an image of 8 x 6 x 3"),
        ({"observation/front": np.zeros((8, 6, 3))}, "expected an image of 8 x 6 x 3"),
        ({"observation/joint_pos": np.zeros(4)}, "expected 5 numbers"),
        ({"observation/joint_pos": ["a"] * 5}, "expected 5 numbers"),
        ({"observation/joint_pos": [[1], 2, 3, 4, 5]}, "expected 5 numbers"),
        ({"observation/joint_pos": np.full(5, np.nan)}, "not finite"),
        ({"observation/joint_pos": [1e300] * 5}, "not finite"),
        ({"prompt": 5}, "at most 4096 characters"),
        ({"prompt": "x" * 5000}, "at most 4096 characters"),
        ({"speed": 3.0}, "expected 2 numbers"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused_by_name(change, message):
    observation = Own(ARM).observation(seen(0), {}) | change
    observation = {key: value for key, value in observation.items() if value is not None}
    with pytest.raises(LayoutError, match=message):
        Own(ARM).read(observation)


# ------------------------------------------------------------------ messages


def test_arrays_and_numbers_come_back_as_they_were():
    message = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": np.float32(1.5), "c": "x"}
    found = unpack(pack(message), 10_000)
    np.testing.assert_array_equal(found["a"], message["a"])
    assert found["a"].dtype == np.uint8
    assert found["b"] == 1.5
    assert type(found["b"]) is np.float32
    assert found["c"] == "x"
    empty = unpack(pack({"e": np.zeros((0, 3), np.float32)}), 1000)["e"]
    assert empty.shape == (0, 3)


def array(**entries):
    whole = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]} | entries
    return msgpack.packb({"a": {key.encode(): value for key, value in whole.items()}})


@pytest.mark.parametrize(
    "data",
    [
        array(dtype="|O"),
        array(dtype="O"),
        array(dtype="<U8"),
        array(dtype="|V8"),
        array(dtype="f4,f4"),
        array(dtype="<M8[s]"),
        array(dtype=[["a", "<f4"]]),
        array(dtype=None),
        array(dtype="<f16"),
        array(dtype="<c8"),
        array(shape=[3]),
        array(shape=[-2]),
        array(shape=[2.0]),
        array(shape=[True, 2]),
        array(shape=[1] * 9 + [2]),
        array(shape=2),
        array(shape=[2**40, 2**40]),
        array(data="x" * 8),
        array(data=None),
        msgpack.packb({"a": msgpack.ExtType(1, b"x")}),
        msgpack.packb({"a": {b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}}),
        msgpack.packb({"a": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}),
        msgpack.packb({"a": {b"__npgeneric__": True, b"data": b"x", b"dtype": "O"}}),
        msgpack.packb([1, 2]),
        msgpack.packb({1: 2}),
        b"\x81" * 5000,
        b"",
        b"\xc1",
        bytes(20_000),
    ],
)
def test_hostile_messages_are_refused(data):
    with pytest.raises(WireError):
        unpack(data, 10_000)


def test_objects_are_not_sent_either():
    with pytest.raises(TypeError):
        pack({"a": np.array([None])})


# -------------------------------------------------------------------- server


def test_a_client_gets_metadata_first_and_then_chunks():
    model = Model()
    with serving(ChunkPolicy(model), cfg=OpenpiConfig(layout="droid")) as server:
        told = server.layout.observation(seen(2), {"instruction": "lift it"})
        metadata, replies, code = talk(server, pack(told), pack(told))
        assert code is None
    assert metadata["robot"] == "arm"
    assert metadata["contract"] == ARM.hash
    reply = unpack(replies[1], 10_000)
    assert reply["actions"].shape == (10, 8)
    assert reply["actions"].dtype == np.float32
    mean = seen(2)["front"].mean() / 255
    np.testing.assert_allclose(reply["actions"][:, 2], 1.5 * mean, rtol=1e-5)  # of j2
    np.testing.assert_array_equal(reply["actions"][:, -1], np.zeros(10))  # closed
    assert reply["server_timing"]["infer_ms"] >= 0
    assert reply["server_timing"]["prev_total_ms"] > 0
    assert model.seen[0].inputs["instruction"] == ["lift it"]


def test_a_policy_that_decides_step_by_step_is_the_same_as_here():
    local = ContractPolicy(CONTRACT, network)
    rng = np.random.default_rng(0)
    with serving(ContractPolicy(CONTRACT, network)) as server:
        policy = ChunkPolicy(OpenpiModel(server.endpoint, CONTRACT, SECONDS))
        assert policy.executed == 1
        for step in range(12):
            if step == 6:
                policy.reset([1])
                local.reset([1])
            rows = {
                s.name: rng.uniform(-0.5, 0.5, (3, s.size)).astype(np.float32)
                for s in CONTRACT.signals
            }
            applied = rng.uniform(0, 0.03, (3, 3)).astype(np.float32) if step % 2 else None
            there, here = policy.infer(rows, applied=applied), local.infer(rows, applied=applied)
            np.testing.assert_array_equal(there.action, here.action)
            np.testing.assert_array_equal(there.targets, here.targets)
        policy.close()


def test_a_network_is_given_images_that_it_may_write_to():
    """As torch wants them."""
    writeable = []

    def looks(groups):
        writeable.append(groups["front"].flags.writeable)
        return np.zeros((len(groups["state"]), 4), np.float32)

    with serving(ContractPolicy(ARM, looks)) as server:
        talk(server, pack(server.layout.observation(seen(0), {})))
    assert writeable == [True]


def test_what_is_wrong_is_said_in_a_line_and_others_go_on():
    with serving(ChunkPolicy(Model())) as server:
        good = pack(server.layout.observation(seen(0), {}))
        with connect(server.endpoint, compression=None) as other:
            other.recv(SECONDS)
            for bad, said in (
                (b"\xc1", "no msgpack"),
                ("text", "the message is text"),
                (pack({"prompt": "x"}), "the observation has no 'observation/joint_pos'"),
                (array(dtype="|O"), "only numbers are read"),
                (
                    pack({**server.layout.observation(seen(0), {}), "robot": -1}),
                    "'robot' is no number",
                ),
            ):
                _, replies, code = talk(server, bad)
                assert said in replies[-1]
                assert "\n" not in replies[-1]
                assert code == 1011
            other.send(good)
            assert unpack(other.recv(SECONDS), 10_000)["actions"].shape == (10, 4)
        assert server.counts.errors["bad-message"] == 5


def test_a_message_that_is_too_large_closes_the_connection_only():
    with serving(ChunkPolicy(Model())) as server:
        with connect(server.endpoint, compression=None) as connection:
            connection.recv(SECONDS)
            with pytest.raises(websockets.exceptions.ConnectionClosed):
                connection.send(bytes(3_000_000))
                connection.recv(SECONDS)
        _, replies, _ = talk(server, pack(server.layout.observation(seen(0), {})))
        assert isinstance(replies[0], bytes)


def test_a_policy_that_fails_is_a_line_and_no_traceback(caplog):
    class Failing(Model):
        def predict(self, seen: Observed) -> np.ndarray:
            raise ZeroDivisionError("secret")

    with serving(ChunkPolicy(Failing())) as server:
        _, replies, code = talk(server, pack(server.layout.observation(seen(0), {})))
    assert replies == ["the server failed at this message; its log says why"]
    assert code == 1011
    assert "secret" in caplog.text


def test_slow_inference_keeps_nobody_from_being_answered():
    model = Model()
    model.gate.clear()
    with serving(ChunkPolicy(model)) as server:
        observation = pack(server.layout.observation(seen(0), {}))
        with connect(server.endpoint, compression=None) as slow:
            slow.recv(SECONDS)
            slow.send(observation)
            metadata, replies, _ = talk(server, b"\xc1")  # another one connects, and is told
            assert metadata["robot"] == "arm"
            assert "no msgpack" in replies[0]
            model.gate.set()
            assert isinstance(slow.recv(SECONDS), bytes)


def test_those_who_wait_are_decided_for_together():
    model = Model()
    model.gate.clear()
    with serving(ChunkPolicy(model)) as server:
        connections = [connect(server.endpoint, compression=None) for _ in range(4)]
        for number, connection in enumerate(connections):
            connection.recv(SECONDS)
            connection.send(pack(server.layout.observation(seen(number), {})))
            wait_for(lambda: model.seen)  # the first is being decided for, the others wait
        wait_for(lambda: server._waiting.qsize() == 3)
        model.gate.set()
        for number, connection in enumerate(connections):
            actions = unpack(connection.recv(SECONDS), 10_000)["actions"]
            assert actions[0, 1] == seen(number)["joint_pos"][0]
            connection.close()
    assert [len(each.ids) for each in model.seen] == [1, 3]


def test_health_browsers_and_the_limit_of_clients():
    import urllib.error
    import urllib.request

    with serving(ChunkPolicy(Model()), max_clients=1) as server:
        url = server.endpoint.replace("ws://", "http://")
        with urllib.request.urlopen(f"{url}/healthz", timeout=SECONDS) as found:
            assert found.status == 200
        with pytest.raises(websockets.exceptions.InvalidStatus, match="403"):
            connect(server.endpoint, origin="http://example.org")
        with connect(server.endpoint) as first:
            first.recv(SECONDS)
            with pytest.raises(websockets.exceptions.InvalidStatus, match="503"):
                connect(server.endpoint)


def test_who_asks_nothing_makes_room_for_a_new_client():
    model = ChunkPolicy(Model())
    with (
        serving(model, max_clients=1, idle_s=0.0) as server,
        connect(server.endpoint, compression=None) as idle,
    ):
        idle.recv(SECONDS)
        _, replies, _ = talk(server, pack(server.layout.observation(seen(0), {})))
        assert isinstance(replies[0], bytes)
        with pytest.raises(websockets.exceptions.ConnectionClosed, match="idle: connect anew"):
            idle.recv(SECONDS)


def test_off_loopback_only_with_a_token(tmp_path):
    with pytest.raises(DeftlyError, match="may be reached from other machines: give --keys DIR"):
        OpenpiServer(ChunkPolicy(Model()), "ws://0.0.0.0:0")
    new_keys(tmp_path / "keys")
    token = (tmp_path / "keys/robot/openpi.token").read_text().strip()
    assert (tmp_path / "keys/server/openpi.token").stat().st_mode & 0o777 == 0o600
    with serving(ChunkPolicy(Model()), keys=tmp_path / "keys/server") as server:
        for header in ({}, {"Authorization": "Api-Key x"}, {"Authorization": f"Bearer {token}"}):
            with pytest.raises(websockets.exceptions.InvalidStatus, match="401"):
                connect(server.endpoint, additional_headers=header)
        with pytest.raises(PolicyError, match="401"):
            OpenpiModel(server.endpoint, ARM)
        OpenpiModel(server.endpoint, ARM, keys=tmp_path / "keys/robot").close()
    (tmp_path / "keys/server/openpi.token").chmod(0o644)
    with pytest.raises(DeftlyError, match="secret that other users can read"):
        OpenpiServer(ChunkPolicy(Model()), LOOPBACK, keys=tmp_path / "keys/server")
    (tmp_path / "keys/server/openpi.token").unlink()
    with pytest.raises(DeftlyError, match=r"has no openpi\.token"):
        OpenpiServer(ChunkPolicy(Model()), LOOPBACK, keys=tmp_path / "keys/server")


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("ws://127.0.0.1", "is no endpoint"),
        ("ws://127.0.0.1:99999", "has no port"),
        ("ws://127.0.0.1:80/path", "is no endpoint"),
        ("tcp://127.0.0.1:80", "is no endpoint"),
        ("wss://127.0.0.1:8000", "with a proxy"),
        ("ws://203.0.113.7:8000", "reached from other machines"),
    ],
)
def test_addresses_that_cannot_be_served(endpoint, message):
    with pytest.raises(DeftlyError, match=message):
        OpenpiServer(ChunkPolicy(Model()), endpoint)


# -------------------------------------------------------------------- client


def droid_reply(value=0.3, horizon=10):
    chunk = np.full((horizon, 8), value, np.float64)
    return lambda observation: {"actions": chunk, "policy_timing": {"infer_ms": 1.0}}


def with_nan(column: int) -> np.ndarray:
    """A chunk of actions in DROID's layout in which one number of a row is not finite."""
    chunk = np.full((10, 8), 0.3)
    chunk[4, column] = np.nan
    return chunk


def test_our_client_drives_a_server_of_openpis():
    got = []

    def infer(observation):
        got.append(observation)
        return droid_reply()(observation)

    with openpi_server(infer) as endpoint:
        policy = ChunkPolicy(OpenpiModel(endpoint, ARM), ChunkConfig(executed=8))
        robot = OneRobot(policy)
        for step in range(9):
            decision = robot.infer(seen(step))
        policy.close()
    assert len(got) == 2
    assert set(got[0]) == {
        "observation/exterior_image_1_left",
        "observation/wrist_image_left",
        "observation/joint_position",
        "observation/gripper_position",
        "prompt",
        "speed",
    }
    assert got[0]["prompt"] == "pick up the cube"
    np.testing.assert_array_equal(got[1]["observation/exterior_image_1_left"], seen(8)["front"])
    np.testing.assert_allclose(decision.action, [0.2, 0.2, 0.2, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"\xc1", "no msgpack"),
        ({"action": 1}, "no array 'actions'"),
        ({"actions": np.zeros(8)}, r"shape \(8,\)"),
        ({"actions": np.zeros((10, 7))}, r"shape \(10, 7\), expected \(..., 8\)"),
        ({"actions": np.zeros((0, 8))}, r"shape \(0, 8\)"),
        ({"actions": np.zeros((10, 8), np.int64)}, "no array 'actions'"),
        ({"actions": np.full((10, 8), np.nan)}, "not finite"),
        ({"actions": with_nan(7)}, "not finite"),  # the gripper's: no word to close it
        ({"actions": with_nan(4)}, "not finite"),  # of a joint that the arm does not have
        (array(dtype="|O"), "only numbers are read"),
        (bytes(2**20 + 1), "the connection broke"),
        (
            ZeroDivisionError("no such thing"),
            "the server failed: ZeroDivisionError: no such thing$",
        ),
    ],
)
def test_replies_that_are_none(reply, message):
    def infer(_):
        if isinstance(reply, Exception):
            raise reply
        return reply

    with openpi_server(infer) as endpoint:
        policy = ChunkPolicy(OpenpiModel(endpoint, ARM))
        with pytest.raises(PolicyError, match=message):
            OneRobot(policy).infer(seen(0))
        policy.close()


def test_no_answer_in_time_and_the_next_call_connects_anew():
    gate = threading.Event()
    calls = []

    def infer(observation):
        calls.append(1)
        if len(calls) == 1:
            gate.wait(SECONDS)
        return droid_reply(0.1 * len(calls))(observation)

    with openpi_server(infer) as endpoint:
        model = OpenpiModel(endpoint, ARM, timeout=0.05)
        policy = OneRobot(ChunkPolicy(model))
        with pytest.raises(PolicyError, match=r"no answer within 0.05 s"):
            policy.infer(seen(0))
        gate.set()
        model.timeout = SECONDS
        assert policy.infer(seen(0)).action[0] == pytest.approx(0.2 / 1.5)  # not the late one
        policy.close()


def test_who_is_not_there_or_is_another_robots_is_named():
    with pytest.raises(PolicyError, match=r"no policy server at ws://127\.0\.0\.1:9"):
        OpenpiModel("ws://127.0.0.1:9", ARM)
    with pytest.raises(PolicyError, match="anybody could answer there"):
        OpenpiModel("ws://203.0.113.7:8000", ARM)
    with (
        openpi_server(droid_reply()) as endpoint,
        pytest.raises(PolicyError, match="does not say for which robot"),
    ):
        OpenpiModel(endpoint)
    with serving(ChunkPolicy(Model())) as server:
        with pytest.raises(PolicyError, match="under another contract"):
            OpenpiModel(server.endpoint, CONTRACT)
        assert OpenpiModel(server.endpoint).contract == ARM


# ------------------------------------------------------------- in the commands


def test_a_server_of_our_own_messages_answers_while_a_slow_model_thinks():
    model = Model()
    model.gate.clear()
    policy = ChunkPolicy(model, ChunkConfig(late=3), ahead=True)
    with running(policy) as server:
        robots = [OneRobot(Client(server.endpoint, ARM, timeout=SECONDS)) for _ in range(2)]
        for robot in robots:
            robot.reset()
        for _ in range(3):
            for number, robot in enumerate(robots):  # nothing is there yet: they hold
                targets = robot.infer(seen(number)).targets
                np.testing.assert_allclose(targets, seen(number)["joint_pos"], atol=1e-6)
        with pytest.raises(PolicyError, match="no action chunk for 3 control periods"):
            robots[0].infer(seen(0))
        model.gate.set()
        wait_for(lambda: policy._asker._answers.qsize() or policy.delays)
        wait_for(lambda: sum(len(each.ids) for each in model.seen) == 2)  # in one call or in two
        wait_for(lambda: decides(robots[1], seen(1)))
        for robot in robots:
            robot.close()
    policy.close()


def decides(robot, signals) -> bool:
    """Whether a robot is moved by its chunk yet."""
    try:
        return bool(robot.infer(signals).action[1] == signals["joint_pos"][0])
    except PolicyError:
        return False


def test_run_asks_ahead_and_takes_the_contract_of_who_tells_it():
    with serving(ChunkPolicy(Model())) as server:
        args = RunArgs(driver="fake", policy=server.endpoint, chunk=ChunkConfig(executed=5))
        source, like = find_source(None, args)
        contract, policy = open_policy(source, like, args)
        assert contract == ARM
        assert isinstance(policy, ChunkPolicy)
        assert policy.ahead
        assert policy.executed == 5
        policy.close()
    with openpi_server(droid_reply()) as endpoint:
        args = RunArgs(driver="fake", policy=endpoint)
        source, like = find_source(None, args)
        with pytest.raises(PolicyError, match="give --settings-from with a run or bundle"):
            open_policy(source, like, args)
        task = "jaka-pick-cube"
        args = RunArgs(driver="fake", policy=endpoint)
        source, like = find_source(task, args)
        contract, policy = open_policy(source, like, args, task)
        cls = api.load_task(task)
        assert contract == cls(cls.Config()).contract()
        policy.close()


def test_a_policy_that_drives_from_python_asks_ahead_too(monkeypatch):
    with serving(ChunkPolicy(Model())) as server:
        policy = api.load_policy(server.endpoint, ahead=True)
        assert isinstance(policy, ChunkPolicy)
        assert (policy.ahead, policy.model.timeout) == (True, 10.0)
        assert not api.load_policy(server.endpoint).ahead
        policy.close()
    asked = []

    def refuse(*_, **how):
        asked.append(how)
        raise PolicyError("not here")

    monkeypatch.setattr(api, "load_policy", refuse)
    with pytest.raises(PolicyError, match="not here"):
        api.drive(FakeDriver, "ws://127.0.0.1:9")
    assert asked == [{"ahead": True}]


def test_serve_takes_the_protocol_from_the_address():
    args = ServeArgs(bind=LOOPBACK, openpi=OpenpiConfig(layout="droid"), max_clients=3)
    server = made(ChunkPolicy(Model()), args)
    assert isinstance(server, OpenpiServer)
    assert server.layout.name == "droid"
    assert server.max_clients == 3
    server.close()


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    with pytest.raises(DeftlyError, match=r'pip install "deftly\[openpi\]"'):
        OpenpiServer(ChunkPolicy(Model()), LOOPBACK)
    with pytest.raises(DeftlyError, match=r'pip install "deftly\[openpi\]"'):
        OpenpiModel("ws://127.0.0.1:8000", ARM)
