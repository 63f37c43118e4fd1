"""Images and inputs from a robot through client, wire and server to a policy of several inputs, and back."""

import dataclasses
import io
import sys
from contextlib import contextmanager

import msgpack
import numpy as np
import pytest
import zmq
from onnx import TensorProto, helper, numpy_helper
from toy_robot import CONTRACT, ROBOT, running

from deftly.contract import Input, Observe, PolicyContract, Signal
from deftly.errors import DeftlyError
from deftly.policy.protocol import ContractPolicy, OneRobot, OnnxNetwork, PolicyError
from deftly.serving.client import Client
from deftly.serving.wire import (
    MAX_FRAME,
    WireError,
    jpeg,
    max_frame,
    pack,
    read_image,
    read_inputs,
    unpack,
)

HEIGHT, WIDTH = 240, 320
SEEING = PolicyContract(
    robot=dataclasses.replace(
        ROBOT, signals=(*ROBOT.signals, Signal("front", (HEIGHT, WIDTH, 3), dtype="uint8"))
    ),
    rate=20,
    observe_terms=(Observe("joint_pos"), Observe("speed"), Observe("front", group="front")),
    act_terms=CONTRACT.act_terms,
    inputs=(Input("speed", 2), Input("prompt", dtype="text")),
)


def model(contract=SEEING, pixel=TensorProto.UINT8) -> bytes:
    """A network that looks: its actions are the mean of the image, the first joint, and the second speed."""
    size = contract.obs_size()
    ports = [
        helper.make_tensor_value_info("state", TensorProto.FLOAT, ["n", size]),
        helper.make_tensor_value_info("front", pixel, ["n", HEIGHT, WIDTH, 3]),
    ]
    action = helper.make_tensor_value_info("action", TensorProto.FLOAT, ["n", 3])
    picks = np.zeros((size, 3), np.float32)
    picks[0, 1] = picks[4, 2] = 1.0
    constants = [
        numpy_helper.from_array(picks, "picks"),
        numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
        numpy_helper.from_array(np.array([[1 / 255, 0, 0]], np.float32), "to_first"),
        numpy_helper.from_array(np.array([1]), "last"),
    ]
    nodes = [
        helper.make_node("Cast", ["front"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["flat"], keepdims=0),
        helper.make_node("Unsqueeze", ["flat", "last"], ["mean"]),
        helper.make_node("MatMul", ["mean", "to_first"], ["seen"]),
        helper.make_node("MatMul", ["state", "picks"], ["picked"]),
        helper.make_node("Add", ["seen", "picked"], ["action"]),
    ]
    graph = helper.make_graph(nodes, "g", ports, [action], constants)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()


@contextmanager
def raw(endpoint: str):
    """What asks a server with a message as it is, and gives its reply."""
    with zmq.Context.instance().socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.setsockopt(zmq.SNDTIMEO, 10_000)
        socket.connect(endpoint)

        def ask(message):
            socket.send(pack(message))
            return unpack(socket.recv())

        yield ask


def signals(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return {"joint_pos": rng.uniform(-0.5, 0.5, 3), "cube": np.zeros(3), "front": image}


@pytest.fixture(scope="module")
def network():
    return OnnxNetwork(model(), SEEING)


def test_an_image_and_inputs_reach_the_policy_and_its_decision_comes_back(network):
    local = OneRobot(ContractPolicy(SEEING, network))
    with running(ContractPolicy(SEEING, network)) as server:
        client = OneRobot(Client(server.endpoint, SEEING, timeout=10.0))
        client.policy.patience = 10.0  # type: ignore[attr-defined]
        inputs = {"speed": [0.25, -3.0], "prompt": "pick up the red cube"}
        client.reset()
        local.reset()
        for seed in range(3):
            there, here = (
                client.infer(signals(seed), inputs=inputs),
                local.infer(signals(seed), inputs=inputs),
            )
            np.testing.assert_array_equal(there.action, here.action)
            np.testing.assert_array_equal(there.targets, here.targets)
            seen = signals(seed)
            wanted = [
                seen["front"].mean() / 255,
                seen["joint_pos"][0],
                -1.0,
            ]  # the speed is clipped
            assert there.action == pytest.approx(wanted, abs=1e-4)
        assert client.infer(signals(0)).action[2] == 0.0  # the default
        client.close()


def test_what_does_not_fit_is_refused_and_the_session_goes_on(network):
    with running(ContractPolicy(SEEING, network)) as server:
        client = OneRobot(Client(server.endpoint, SEEING, timeout=10.0))
        client.policy.patience = 10.0  # type: ignore[attr-defined]
        client.reset()
        good = signals(1)
        for broken in (
            {**good, "front": good["front"][:-1]},
            {**good, "front": good["front"].astype(np.float32)},
            {**good, "front": np.zeros(3, np.uint8)},
            {**good, "cube": np.zeros(3, np.uint8)},
        ):
            with pytest.raises(
                PolicyError, match=r"is no image of 240 x|is no array of 3 numbers|reads at most"
            ):
                client.infer(broken)
        for inputs in (
            {"goal": 1.0},
            {"speed": [1.0]},
            {"prompt": "x" * 5000},
            {"speed": "fast"},
            {"prompt": [1.0]},
        ):
            with pytest.raises((PolicyError, ValueError)):
                client.infer(good, inputs=inputs)
        assert client.infer(good).action.shape == (3,)
        client.close()


def test_a_message_may_be_as_long_as_the_robots_images():
    assert max_frame(ROBOT) == MAX_FRAME
    most = max_frame(SEEING.robot)
    assert most == MAX_FRAME + HEIGHT * WIDTH * 3
    frame = pack({"signals": signals(0)})
    assert unpack(frame, most)["signals"]["front"]["dtype"] == "|u1"
    with pytest.raises(WireError, match="at most 65536 are read"):
        unpack(frame)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [0] * 12,
        {"dtype": "|u1", "shape": [2, 2, 3], "data": bytes(11)},
        {"dtype": "|u1", "shape": [2, 2, 3], "data": bytes(13)},
        {"dtype": "|u1", "shape": [12], "data": bytes(12)},
        {"dtype": "|u1", "shape": [-1, 2, 3], "data": bytes(12)},
        {"dtype": "|u1", "shape": [2.0, 2, 3, True], "data": bytes(12)},
        {"dtype": "<f4", "shape": [2, 2, 3], "data": bytes(48)},
        {"dtype": "|O", "shape": [2, 2, 3], "data": bytes(12)},
        {"dtype": "|u1", "shape": [2, 2, 3]},
        {"dtype": "|u1", "shape": [2, 2, 3], "data": "x" * 12},
        {"dtype": ["|u1"], "shape": [2, 2, 3], "data": bytes(12)},
    ],
)
def test_hostile_images_are_refused(value):
    value = msgpack.unpackb(msgpack.packb(value), raw=False)
    with pytest.raises(WireError, match="'eye' is no image of 2 x 2 x 3 bytes"):
        read_image(value, (2, 2, 3), "eye")


@pytest.mark.parametrize(
    "value", [[], "x", {"goal": [1.0]}, {"speed": None}, {"speed": [1.0] * 3}, {"prompt": 5}]
)
def test_hostile_inputs_are_refused(value):
    with pytest.raises(WireError):
        read_inputs(value, SEEING)
    assert read_inputs(None, SEEING) == read_inputs({}, SEEING) == {}


def test_a_network_of_other_inputs_is_refused():
    with pytest.raises(DeftlyError, match="the contract wants"):
        OnnxNetwork(model(pixel=TensorProto.FLOAT), SEEING)
    with pytest.raises(DeftlyError, match=r"'observation', 'tensor\(float\)', "):
        OnnxNetwork(model(), CONTRACT)


def test_a_bundle_of_a_policy_that_sees(tmp_path):
    from deftly.policy import bundle

    network = OnnxNetwork(model(), SEEING)
    rows = [signals(seed) for seed in range(3)]
    stacked = {
        s.name: np.stack([row[s.name] for row in rows]).astype(s.dtype) for s in SEEING.signals
    }
    golden = {f"signal/{name}": value for name, value in stacked.items()} | bundle.replay(
        SEEING, network, stacked
    )
    assert golden["observation/front"].dtype == np.uint8
    np.savez(file := io.BytesIO(), **golden)
    files = {
        bundle.NETWORK: model(),
        bundle.SPEC: SEEING.to_json().encode(),
        bundle.ROBOT: bundle.robot_config(SEEING).encode(),
        bundle.GOLDEN: file.getvalue(),
        bundle.REPORT: b"{}",
    }
    facts = {
        "task": "seeing",
        "deftly": "0",
        "contract": SEEING.hash,
        "settings": {"task": {}, "sim": {}},
    }
    bundle.write(
        tmp_path / "b",
        files,
        {**facts, "checkpoint": {"label": "none", "sha256": "", "iteration": 0}},
    )
    found = bundle.load(tmp_path / "b")
    assert found.contract == SEEING
    policy = found.policy()
    robot = OneRobot(policy)
    robot.reset()
    np.testing.assert_array_equal(robot.infer(rows[0]).action, golden["action"][0])


def smooth() -> np.ndarray:
    """An image that a JPEG changes little."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack((rows // 2, columns // 2, rows // 2), -1).astype(np.uint8)


def test_images_as_jpeg_come_back_nearly_as_they_were(network):
    pytest.importorskip("PIL")
    seen = {**signals(0), "front": smooth()}
    value = msgpack.unpackb(msgpack.packb(jpeg(smooth(), 90)), raw=False)
    assert len(value["data"]) < smooth().nbytes / 10
    found = read_image(value, smooth().shape, "front")
    assert np.abs(found.astype(int) - smooth()).mean() < 2
    with running(ContractPolicy(SEEING, network)) as server:
        client = OneRobot(Client(server.endpoint, SEEING, timeout=10.0, quality=90))
        client.reset()
        assert client.infer(seen).action[0] == pytest.approx(smooth().mean() / 255, abs=0.01)
        client.close()


@pytest.mark.parametrize("kind", ["size", "grey", "cut", "png", "text", "nothing"])
def test_hostile_jpegs_are_refused(kind):
    images = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    size = (9, 8) if kind == "size" else (8, 8)
    images.new("L" if kind == "grey" else "RGB", size).save(
        file, "PNG" if kind == "png" else "JPEG"
    )
    data = {"cut": file.getvalue()[:-30], "text": "x", "nothing": b""}.get(kind, file.getvalue())
    with pytest.raises(WireError, match="'eye' is no JPEG of 8 x 8 x 3"):
        read_image({"format": "jpeg", "data": data}, (8, 8, 3), "eye")


def test_a_jpeg_is_refused_where_nothing_reads_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        WireError, match="'eye' is a JPEG, which needs Pillow here: pip install pillow"
    ):
        read_image({"format": "jpeg", "data": b"x"}, (8, 8, 3), "eye")


def test_messages_of_version_1_are_answered_in_it(network):
    with running(ContractPolicy(SEEING, network)) as server, raw(server.endpoint) as ask:
        for version, code in ((1, None), (2, None), (3, "bad-version"), (True, "bad-version")):
            reply = ask({"v": version, "type": "ping", "seq": 0, "time": 0.0})
            assert reply.get("code") == code
            assert reply["v"] == (version if code is None else 2)
