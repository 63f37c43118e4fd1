"""Bundles: what was written is read back, and whatever is wrong with one is refused in one line that names the file."""

import dataclasses
import hashlib
import io
import json
import os
import time
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from deftly.contract import Act, Input, Joint, Observe, PolicyContract, RobotInterface, Signal
from deftly.errors import DeftlyError
from deftly.files import WriteError
from deftly.policy import bundle
from deftly.policy.bundle import (
    GOLDEN,
    LIMITS,
    MANIFEST,
    NETWORK,
    REPORT,
    ROBOT,
    SPEC,
    BundleError,
    load,
)
from deftly.policy.protocol import OneRobot

CONTRACT = PolicyContract(
    robot=RobotInterface(
        name="two",
        joints=(Joint("a", -1, 1, 0.2, 2), Joint("b", 0, 0.04, 0.04, 0.15, "m", grips=True)),
        signals=(Signal("joint_pos", 2), Signal("cube_pos", 3, "m")),
    ),
    rate=20.0,
    observe_terms=(Observe("joint_pos", history=2), Observe("cube_pos", (2.0,)), Observe("action")),
    act_terms=(Act(("a",), "velocity", lowpass=0.3), Act(("b",), "gripper")),
)
STEPS = 6


SEEN = CONTRACT.obs_size()


def model(outputs=2, inputs=SEEN, weights=None) -> bytes:
    """A linear network."""
    w = np.random.default_rng(0).normal(0, 0.3, (inputs, outputs)).astype(np.float32)
    tensor = onnx.numpy_helper.from_array(w, "w")
    if weights:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=weights)
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k])
        for n, k in (("observation", inputs), ("action", outputs))
    ]
    node = helper.make_node("MatMul", ["observation", "w"], ["action"])
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [tensor])
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def npz(arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


STEERED = dataclasses.replace(
    CONTRACT,
    inputs=(
        Input("way", 2, "m/s", lower=(-1.0, 0.0), upper=(1.0, 3.0)),
        Input("prompt", dtype="text", text="go"),
    ),
    observe_terms=(*CONTRACT.observe_terms, Observe("way")),
)
"""A policy that is told where to go, and why."""


def golden(contract=CONTRACT, inputs=bundle.NO_INPUTS):
    rng = np.random.default_rng(1)
    signals = {
        s.name: rng.uniform(0, 0.5, (STEPS, s.size)).astype(np.float32) for s in contract.signals
    }
    network = bundle.OnnxNetwork(model(inputs=contract.obs_size()), contract)
    named = {f"signal/{name}": value for name, value in signals.items()}
    named |= {f"input/{name}": value for name, value in inputs.items()}
    return {**named, **bundle.replay(contract, network, signals, inputs)}


def files(contract=CONTRACT, inputs=bundle.NO_INPUTS):
    return {
        NETWORK: model(inputs=contract.obs_size()),
        SPEC: contract.to_json().encode(),
        ROBOT: bundle.robot_config(contract).encode(),
        GOLDEN: npz(golden(contract, inputs)),
        REPORT: b'{"schema": "deftly.eval/2"}',
    }


FACTS = {
    "task": "two",
    "deftly": "0.1.0",
    "contract": CONTRACT.hash,
    "checkpoint": {"label": "runs/x", "sha256": "0" * 64, "iteration": 3},
    "settings": {"task": {"rate": 20.0}, "sim": {"preset": "fast"}},
}


@pytest.fixture
def folder(tmp_path):
    bundle.write(tmp_path / "b", files(), FACTS)
    return tmp_path / "b"


def put(folder, name, data):
    """Replace a file, and its checksum with it."""
    (folder / name).write_bytes(data)
    edit(folder, lambda m: m["files"].update({name: hashlib.sha256(data).hexdigest()}))


def edit(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def refused(folder, match):
    with pytest.raises(BundleError, match=match) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


# -------------------------------------------------------------------- what is fine


def test_what_was_written_is_read(folder):
    found = load(folder)
    assert found.task == "two"
    assert found.contract == CONTRACT
    assert found.manifest == {"schema": bundle.SCHEMA, **FACTS, "files": found.manifest["files"]}
    assert list(found.manifest["files"]) == list(LIMITS)
    assert found.robot_config["robot"] == "two"
    assert [j["name"] for j in found.robot_config["joints"]] == ["a", "b"]
    assert found.report == {"schema": "deftly.eval/2"}
    assert found.golden["targets"].shape == (STEPS, 2)
    assert max(found.golden_errors().values()) == 0


def test_its_policy_does_what_the_golden_vectors_say(folder):
    found = load(folder)
    policy = OneRobot(found.policy())
    rows = found.golden
    for i in range(STEPS):
        signals = {s.name: rows[f"signal/{s.name}"][i] for s in CONTRACT.signals}
        action, targets = policy.infer(signals)
        np.testing.assert_allclose(action, rows["action"][i], atol=1e-6)
        np.testing.assert_allclose(targets, rows["targets"][i], atol=1e-6)


def test_what_else_lies_there_is_not_looked_at(folder):
    (folder / "checkpoint").mkdir()
    (folder / "README.md").symlink_to("/dev/null")
    load(folder)


def test_the_folder_itself_may_be_a_link(folder, tmp_path):
    (tmp_path / "newest").symlink_to("b")
    assert load(tmp_path / "newest").task == "two"


# --------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("name", LIMITS)
def test_a_flipped_bit(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, f"{name} is not what was exported.*copy the bundle again, or export it again")


@pytest.mark.parametrize("name", LIMITS)
def test_truncated(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    refused(folder, f"{name} is not what was exported")
    (folder / name).write_bytes(b"")
    refused(folder, f"{name} is not what was exported")


@pytest.mark.parametrize("name", LIMITS)
def test_missing(folder, name):
    (folder / name).unlink()
    refused(folder, f"{name}' as a part of a bundle: no such file; copy the bundle again")


@pytest.mark.parametrize("name", [*LIMITS, MANIFEST])
def test_a_link_or_a_folder_or_a_pipe_is_no_file(folder, name):
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    refused(folder, f"{name}' as a part of a bundle: it is a link, not a file")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, f"{name}' as a part of a bundle: it is a folder, not a file")
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    refused(folder, f"{name}' as a part of a bundle: it is a pipe, not a file")


@pytest.mark.parametrize("name", [*LIMITS, MANIFEST])
def test_too_large_files_are_not_read(folder, name, monkeypatch):
    with (folder / name).open("r+b") as file:
        file.truncate(LIMITS.get(name, bundle.MB) + 1)  # a sparse file
    refused(
        folder,
        f"{name}' as a part of a bundle: it has [0-9]+ bytes, at most [0-9]+ [KM]iB are read",
    )


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"5"])
def test_a_manifest_of_nonsense(folder, data):
    (folder / MANIFEST).write_bytes(data)
    refused(folder, MANIFEST)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"- 1",
        b"a: [",
        b"\xff",
        b"!!python/object/apply:os.getcwd []",
        b"!!int ''",
        b"!!bool x",
    ],
)
def test_a_robot_config_of_nonsense(folder, data):
    put(folder, ROBOT, data)
    refused(folder, ROBOT)


# ---------------------------------------------------------------------- the manifest


@pytest.mark.parametrize(
    "name", ["../policy.onnx", "/etc/passwd", "more.txt", "policy.onnx/", "a\\b", ""]
)
def test_names_that_no_bundle_has(folder, name):
    edit(folder, lambda m: m["files"].update({name: "0" * 64}))
    refused(folder, "files holds the unknown")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m["files"].pop(NETWORK), "files lacks 'policy.onnx'"),
        (lambda m: m["files"].update({NETWORK: 5}), "policy.onnx is 5, expected a str"),
        (lambda m: m.pop("task"), "lacks 'task'"),
        (lambda m: m.update(more=1), "holds the unknown 'more'"),
        (lambda m: m.update(files=[NETWORK]), "files is .* expected a mapping"),
        (lambda m: m.update(task="a\x1b[2Jb"), "task is 'a.x1b.2Jb', expected a str"),
        (lambda m: m["checkpoint"].update(iteration=True), "iteration is True, expected a int"),
        (lambda m: m["settings"].update(task=None), "settings: task is None"),
        (
            lambda m: m.update(contract="0" * 64),
            "policy_spec.json is not the contract that checksums.json names",
        ),
    ],
)
def test_a_manifest_that_is_not_quite_one(folder, change, match):
    edit(folder, change)
    refused(folder, match)


def test_another_schema_of_ours_is_named(folder):
    edit(folder, lambda m: m.update(schema="deftly.bundle/0", deftly="0.0.7"))
    refused(
        folder,
        r"a bundle of schema 'deftly.bundle/0', written by Deftly '0.0.7'; this Deftly reads deftly.bundle/1",
    )
    edit(folder, lambda m: m.update(schema="deftly.bundle/2", deftly=["x"]))
    refused(folder, r"a bundle of schema 'deftly.bundle/2'")


def test_another_systems_bundle_is_named(tmp_path):
    spec = {"contract_name": "wildrobot_policy", "contract_version": "1.0.0", "spec_version": 1}
    texts = {NETWORK: model(), SPEC: json.dumps(spec).encode(), ROBOT: b"robot_name: wildrobot\n"}
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
    refused(
        tmp_path,
        r"a bundle of another system, 'wildrobot_policy' '1.0.0'; this Deftly reads deftly.bundle/1",
    )
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in texts.items()}
    (tmp_path / MANIFEST).write_text(json.dumps(digests))
    refused(
        tmp_path,
        r"a bundle of another system, 'wildrobot_policy' '1.0.0'; this Deftly reads deftly.bundle/1",
    )


def test_no_bundle_at_all(tmp_path):
    refused(
        tmp_path,
        "holds no bundle; this Deftly reads deftly.bundle/1, which 'deftly export TASK' writes",
    )
    refused(tmp_path / "nothing", "no folder .*'deftly export TASK' makes one")
    with pytest.raises(BundleError, match="no bundle 'nothing'"):
        bundle.find("nothing")
    assert bundle.find(str(tmp_path)) == tmp_path


def test_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "SHIPPED", tmp_path / "policies")
    assert bundle.shipped("pick") is None
    assert bundle.all_shipped() == []
    bundle.write(tmp_path / "policies/pick", files(), FACTS)
    assert bundle.shipped("pick") == bundle.find("pick") == tmp_path / "policies/pick"
    assert bundle.all_shipped() == ["pick"]
    assert bundle.shipped("../policies/pick") is None


# ----------------------------------------------- what no checksum tells, since it fits


@pytest.mark.parametrize("weights", ["w.bin", "/etc/passwd", "../w.bin"])
def test_weights_in_other_files(folder, weights):
    put(folder, NETWORK, model(weights=weights))
    refused(folder, "policy.onnx .* takes weights from other files")


def with_nodes(nodes, constants=()) -> bytes:
    """The linear network, after operators that lead nowhere."""
    found = onnx.load_from_string(model())
    found.graph.node.extend(nodes)
    found.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in constants
    )
    return found.SerializeToString()


def test_a_network_that_loops_is_refused_before_it_is_prepared(folder, monkeypatch):
    """Also one that passes its golden vectors: the loop computes nothing that is asked for."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )
    loop = helper.make_node("Loop", ["count", "go"], [], body=body)
    constants = [("count", np.int64(2**62)), ("go", np.bool_(True))]
    put(folder, NETWORK, with_nodes([loop], [(n, np.array(v)) for n, v in constants]))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("prepared"))
    refused(folder, "policy.onnx is no ONNX model that runs here: .*'Loop'")


def test_a_network_that_takes_gigabytes_is_refused_before_it_is_prepared(folder, monkeypatch):
    nodes = [helper.make_node("Expand", ["observation", "sizes"], ["huge"])]
    put(folder, NETWORK, with_nodes(nodes, [("sizes", np.array([2**30, 1, SEEN]))]))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("prepared"))
    refused(folder, "policy.onnx is no ONNX model that runs here: 'huge' has more than")


def test_a_tensor_may_be_named_location(folder):
    nodes = [helper.make_node("Identity", ["observation"], ["location"])]
    put(folder, NETWORK, with_nodes(nodes))
    assert load(folder).task == "two"


def test_golden_vectors_that_take_too_long(folder, monkeypatch):
    """Whatever the bounds let pass ends before its next operator."""
    found = load(folder)
    whole = bundle.OnnxNetwork.__call__

    def slow(network, obs):
        time.sleep(0.3)
        return whole(network, obs)

    monkeypatch.setattr(bundle, "GOLDEN_SECONDS", 0.1)
    monkeypatch.setattr(bundle.OnnxNetwork, "__call__", slow)
    with pytest.raises(BundleError, match=r"its golden vectors take more than 0\.1 s"):
        found.golden_errors()


def test_golden_vectors_without_end(folder):
    arrays = {name: np.repeat(value, 200, axis=0) for name, value in golden().items()}
    put(folder, GOLDEN, npz(arrays))
    refused(folder, "golden.npz has 1200 steps, at most 1000 are computed again")


@pytest.mark.parametrize("sizes", [{"outputs": 3}, {"inputs": CONTRACT.obs_size() + 1}])
def test_a_network_of_other_dimensions(folder, sizes):
    put(folder, NETWORK, model(**sizes))
    with pytest.raises(Exception, match="the contract wants") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_network_that_is_none(folder):
    put(folder, NETWORK, b"not a model")
    with pytest.raises(Exception, match=r"policy\.onnx is no ONNX model"):
        load(folder)


def test_a_contract_in_another_form(folder):
    put(folder, SPEC, json.dumps(json.loads(CONTRACT.to_json()), indent=1).encode())
    refused(folder, "policy_spec.json is not in the contract's canonical form")
    put(folder, SPEC, b'{"schema": "deftly.contract/0"}')
    refused(folder, r"policy_spec.json: contract schema is 'deftly.contract/0'")


@pytest.mark.parametrize("name", ["observation", "action", "targets"])
def test_golden_vectors_that_are_off(folder, name):
    arrays = golden()
    arrays[name][3, 1] += 1e-4
    put(folder, GOLDEN, npz(arrays))
    refused(folder, f"computes other {name} here than golden.npz holds, by 0.0001")
    assert load(folder, verify_golden=False).golden_errors()[name] == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize(
    "change",
    [
        lambda g: g.update(targets=np.array([[None] * 2] * STEPS)),  # pickled
        lambda g: g.update(extra=g["action"]),
        lambda g: g.pop("action"),
        lambda g: g.pop("signal/cube_pos"),
        lambda g: g.update(action=g["action"][:, :1]),
        lambda g: g.update(action=g["action"][1:]),
        lambda g: g.update(action=g["action"].astype(np.float64)),
        lambda g: g.update(action=np.full_like(g["action"], np.nan)),
        lambda g: g.update({n: v[:0] for n, v in g.items()}),
        lambda g: g.update(action=np.float32(1)),
    ],
)
def test_golden_arrays_that_do_not_fit(folder, change):
    arrays = golden()
    change(arrays)
    put(folder, GOLDEN, npz(arrays))
    refused(folder, GOLDEN)


def steered(folder, inputs):
    bundle.write(folder, files(STEERED, inputs), {**FACTS, "contract": STEERED.hash})
    return load(folder)


def test_golden_inputs_are_drawn_over_their_range():
    drawn = bundle.draw_inputs(STEERED, 200)
    assert drawn.keys() == {"way"}, "no network sees a text"
    way = drawn["way"]
    assert (way.shape, way.dtype) == ((200, 2), np.float32)
    assert way[:3].tolist() == [[0.0, 0.0], [-1.0, 0.0], [1.0, 3.0]]
    assert (way.min(0) >= (-1.0, 0.0)).all()
    assert (way.max(0) <= (1.0, 3.0)).all()
    assert (np.ptp(way[3:], axis=0) > (1.8, 2.7)).all()
    assert (bundle.draw_inputs(STEERED, 2)["way"] == way[:2]).all()


def test_golden_vectors_hold_what_the_operator_said(tmp_path):
    found = steered(tmp_path / "b", bundle.draw_inputs(STEERED, STEPS))
    assert found.golden["observation"][:, -2:] == pytest.approx(found.golden["input/way"])
    assert max(found.golden_errors().values()) == 0
    arrays = dict(found.golden)
    arrays["input/way"] = arrays["input/way"] - 0.01
    put(tmp_path / "b", GOLDEN, npz(arrays))
    refused(tmp_path / "b", r"computes other observation here than golden.npz holds, by 0\.01")


def test_golden_vectors_without_inputs_are_those_of_an_older_bundle(tmp_path):
    found = steered(tmp_path / "b", bundle.NO_INPUTS)
    assert (found.golden["observation"][:, -2:] == 0.0).all()


@pytest.mark.parametrize("name", ["input/prompt", "input/odd", "input/way"])
def test_golden_inputs_that_do_not_fit(name, tmp_path):
    steered(tmp_path / "b", {})
    put(tmp_path / "b", GOLDEN, npz({**golden(STEERED), name: np.zeros((STEPS, 3), np.float32)}))
    refused(tmp_path / "b", GOLDEN)


def test_a_pickle_in_the_golden_file_is_not_run(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    arrays = {**golden(), "action": np.array([Trap()])}
    put(folder, GOLDEN, npz(arrays))
    refused(folder, GOLDEN)
    assert not (tmp_path / "sprung").exists()


def test_a_golden_file_with_another_kind_of_member(folder):
    file = io.BytesIO(npz(golden()))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("action", b"text")
    put(folder, GOLDEN, file.getvalue())
    refused(folder, GOLDEN)


def test_bytes_of_any_kind_are_refused_in_one_line(folder):
    rng, whole = np.random.default_rng(0), {name: (folder / name).read_bytes() for name in LIMITS}
    for _ in range(120):
        name = str(rng.choice([*LIMITS]))
        data = np.frombuffer(whole[name], np.uint8).copy()
        data[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
        put(folder, name, data[: rng.integers(1, len(data) + 1)].tobytes())
        try:
            load(folder)
        except DeftlyError as error:
            assert "\n" not in str(error)
        put(folder, name, whole[name])


def test_a_golden_file_that_unpacks_to_too_much(folder):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("action.npy", bytes(LIMITS[GOLDEN] + 1))
    put(folder, GOLDEN, file.getvalue())
    refused(folder, "golden.npz' as a part of a bundle: it unpacks to more than 16 MiB")


@pytest.mark.parametrize(
    "header", [b"{'a", b"{\n  'a': 1,\n 'b': 2}", b"{'descr': (", b"(" * 5000, b"\0"]
)
def test_a_golden_header_of_nonsense(folder, header):
    """numpy answers these with TokenError, IndentationError, OverflowError and their like."""
    part = b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header
    huge = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}" % 10**30
    for data in (part, b"\x93NUMPY\x01\0" + len(huge).to_bytes(2, "little") + huge):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("action.npy", data)
        put(folder, GOLDEN, file.getvalue())
        refused(folder, "golden.npz' as a part of a bundle: ")


def test_a_golden_header_that_claims_too_much(folder):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 2)}
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("action.npy", header.getvalue())
    put(folder, GOLDEN, file.getvalue())
    refused(folder, GOLDEN)


# --------------------------------------------------------------------------- writing


def test_a_newer_bundle_replaces_an_older_one_and_keeps_what_lay_beside(folder):
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/weights").write_text("w")
    (folder / "notes.txt").write_text("n")
    bundle.write(folder, files(), {**FACTS, "deftly": "9"})
    assert load(folder).manifest["deftly"] == "9"
    assert (folder / "checkpoint/weights").read_text() == "w"
    assert (folder / "notes.txt").read_text() == "n"
    assert [p.name for p in folder.parent.iterdir()] == ["b"]


def test_an_empty_folder_is_a_place(tmp_path):
    (tmp_path / "b").mkdir()
    bundle.write(tmp_path / "b", files(), FACTS)
    load(tmp_path / "b")


def test_what_is_no_bundle_is_never_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("mine", "file", "dangling"):
        with pytest.raises(BundleError, match="is no bundle of this Deftly: choose another folder"):
            bundle.write(tmp_path / name, files(), FACTS)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"


def test_a_place_where_nothing_can_be_written_is_said_before_the_work(tmp_path):
    """Root may write anywhere, but in a file there are no folders for anybody."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="file/b': not a directory: name another folder"):
        bundle.require_place(tmp_path / "file" / "b")


def test_a_full_disk_keeps_the_old_bundle(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left on device; what was there is kept"):
        bundle.write(folder, files(), {**FACTS, "deftly": "9"})
    monkeypatch.undo()
    assert load(folder).manifest["deftly"] == "0.1.0"
    assert [p.name for p in folder.parent.iterdir()] == ["b"]


def test_files_that_make_no_bundle_are_not_written(tmp_path):
    part = files()
    del part[REPORT]
    with pytest.raises(BundleError, match=r"files lacks 'eval\.json'"):
        bundle.write(tmp_path / "b", part, FACTS)
    assert not (tmp_path / "b").exists()
