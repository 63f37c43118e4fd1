"""A network from anybody is judged before any library runs it: what is run is known, ends soon, and fits in memory."""

import random
import re
import time
from itertools import pairwise

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from deftly.policy import onnx_model
from deftly.policy.onnx_bounds import UnboundedError, _Sizes, require_bounded
from deftly.policy.onnx_shapes import RULES

SEEN = 6
F, FLOAT, INT64 = np.float32, TensorProto.FLOAT, TensorProto.INT64
value = helper.make_tensor_value_info


def make(nodes, constants=None, seen=(SEEN,), out=("n", 2), opset=18, **more) -> bytes:
    """A model of these operators, from `observation` to `action`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [value("observation", FLOAT, ["n", *seen])],
        [value("action", FLOAT, out)],
        [
            numpy_helper.from_array(np.array(array), name)
            for name, array in (constants or {}).items()
        ],
        **more,
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def node(operator, *inputs, into="action", **attributes):
    return helper.make_node(operator, inputs or ["observation"], [into], **attributes)


def refused(model: bytes) -> str:
    """Why a model is not run; it is said in one line, and soon."""
    started = time.process_time()
    with pytest.raises(UnboundedError) as caught:
        require_bounded(model, "x.onnx")
    assert time.process_time() - started < 5
    text = str(caught.value)
    assert text.startswith("x.onnx is no ONNX model that runs here: ")
    assert text.isprintable()
    assert len(text) < 400
    return text


# ---------------------------------------------------------------------- what is run

W = np.ones((SEEN, 4), F)
FUNCTIONS = [name for name, rule in RULES.items() if rule.__name__ == "_same" and name != "Not"]
PAIRS = ("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "PRelu", "Sub", "Sum")
TRUTHS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
CASES = {
    **{name: ([node(name)], {}) for name in FUNCTIONS},
    **{name: ([node(name, "observation", "w")], {"w": np.ones((5, 1, SEEN), F)}) for name in PAIRS},
    **{
        name: (
            [
                node(name, "observation", "w", into="b"),
                node("Not", "b", into="c"),
                node("And", "b", "c", into="d"),
                node("Or", "b", "d", into="e"),
                node("Where", "e", "observation", "w"),
            ],
            {"w": np.ones((2, 1, 1), F)},
        )
        for name in TRUTHS
    },
    "Clip": ([node("Clip", "observation", "", "w")], {"w": F(1)}),
    "BatchNormalization": ([node("BatchNormalization", *("observation", *"wwww"))], {"w": W[:, 0]}),
    "LayerNormalization": ([node("LayerNormalization", "observation", "w")], {"w": W[:, 0]}),
    "Cast": ([node("Cast", into="i", to=INT64), node("Cast", "i", to=FLOAT)], {}),
    "Gemm": ([node("Gemm", "observation", "w", "c", transB=1)], {"w": W.T, "c": F(1)}),
    "MatMul": ([node("MatMul", "observation", "w")], {"w": W}),
    "MatMul of stacks": ([node("MatMul", "observation", "w")], {"w": np.ones((7, SEEN, 4), F)}),
    "Concat": ([node("Concat", "observation", "observation", axis=-1)], {}),
    "Expand": ([node("Expand", "observation", "s")], {"s": [3, 1, SEEN]}),
    "Gather": ([node("Gather", "observation", "s", axis=1)], {"s": [[5, 0, 1], [2, 2, 2]]}),
    "Reshape": ([node("Reshape", "observation", "s")], {"s": [0, -1, 3]}),
    "Reshape as torch writes it": (
        [node("Reshape", "observation", "s", allowzero=1)],
        {"s": [-1, 2, 3]},
    ),
    "Reshape of all": ([node("Reshape", "observation", "s")], {"s": [-1, 2, 3]}),
    "Slice": (
        [node("Slice", "observation", "start", "end", "axis", "step")],
        {"start": [-1], "end": [-(2**62)], "axis": [1], "step": [-2]},
    ),
    "Slice of rows": (
        [node("Slice", "observation", "start", "end")],
        {"start": [0, 1], "end": [2**62, -1]},
    ),
    "Unsqueeze": ([node("Unsqueeze", "observation", "s")], {"s": [-1, 1]}),
    "Squeeze": (
        [node("Unsqueeze", "observation", "s", into="x"), node("Squeeze", "x", "s")],
        {"s": [1, -1]},
    ),
    "Transpose": (
        [node("Unsqueeze", "observation", "s", into="x"), node("Transpose", "x", perm=[0, 2, 1])],
        {"s": [1]},
    ),
    "Constant": (
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(W)),
            node("MatMul", "observation", "c"),
        ],
        {},
    ),
    "ReduceSum": ([node("ReduceSum", "observation", "s", keepdims=0)], {"s": [-1]}),
    "ReduceMean": ([node("ReduceMean", "observation", "s")], {"s": [1]}),
    "ReduceMax of all": ([node("ReduceMax")], {}),
    "ReduceMin of none": ([node("ReduceMin", noop_with_empty_axes=1)], {}),
}
IMAGE = (3, 8, 9)
IMAGES = {
    "Conv": (
        [node("Conv", "observation", "w", pads=[1, 0, 2, 1])],
        {"w": np.ones((5, 3, 3, 2), F)},
    ),
    "Conv of groups": (
        [node("Conv", "observation", "w", group=3, strides=[2, 1], dilations=[1, 3])],
        {"w": np.ones((6, 1, 3, 2), F)},
    ),
    "MaxPool": ([node("MaxPool", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)], {}),
    "AveragePool": ([node("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 0, 0])], {}),
    "GlobalAveragePool": ([node("GlobalAveragePool")], {}),
    "GlobalMaxPool": ([node("GlobalMaxPool")], {}),
    "Flatten": ([node("Flatten")], {}),
    "InstanceNormalization": (
        [node("InstanceNormalization", "observation", "w", "w")],
        {"w": np.ones(3, F)},
    ),
}


@pytest.mark.parametrize("robots", [1, 3])
@pytest.mark.parametrize("kind", {**CASES, **IMAGES})
def test_a_rule_says_the_shape_that_onnxruntime_computes(kind, robots):
    seen = IMAGE if kind in IMAGES else (SEEN,)
    nodes, constants = {**CASES, **IMAGES}[kind]
    model = make(nodes, constants, seen, None, opset=20)
    require_bounded(model, "x.onnx")
    sizes = _Sizes(onnx_model.read(model), robots)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(["action"], {"observation": np.full((robots, *seen), 0.5, F)})
    assert sizes.shapes["action"] == found.shape
    assert sizes.work >= found.size


def test_every_operator_that_is_run_is_tried_above():
    tried = {each.op_type for nodes, _ in (*CASES.values(), *IMAGES.values()) for each in nodes}
    assert set(RULES) <= tried | {"ReduceL2", "ReduceSumSquare"}


# ------------------------------------------------------------------------- what is not


def body():
    """A graph as `Loop`, `If` and `Scan` have one."""
    ports = [value("i", INT64, []), value("c", TensorProto.BOOL, []), value("x", FLOAT, None)]
    nodes = [node("Identity", "c", into="d"), node("Add", "x", "x", into="y")]
    return helper.make_graph(
        nodes, "body", ports, [value("d", TensorProto.BOOL, []), value("y", FLOAT, None)]
    )


def doubled(times: int) -> list:
    """A chain in which each tensor is twice as long as the one before."""
    names = ["observation", *(f"x{i}" for i in range(times - 1)), "action"]
    return [node("Concat", name, name, into=after, axis=1) for name, after in pairwise(names)]


ONES = np.ones((1, 1), F)
HOSTILE = {
    "a loop": (
        [node("Loop", "n", "", "observation", body=body())],
        {"n": 2**62},
        "'Loop' holds a graph of its own",
    ),
    "a loop elsewhere": (
        [node("Identity"), node("Scan", into="y", body=body(), num_scan_inputs=1)],
        {},
        "'Scan' holds a graph of its own",
    ),
    "a branch": (
        [node("If", "c", then_branch=body(), else_branch=body())],
        {"c": True},
        "'If' holds a graph of its own",
    ),
    "a graph in a harmless operator": (
        [node("Relu", body=body())],
        {},
        "'Relu' holds a graph of its own",
    ),
    "a constant of any size": (
        [node("ConstantOfShape", "s")],
        {"s": [1, 2**40]},
        "'ConstantOfShape' is none of those",
    ),
    "random numbers": ([node("RandomNormal", shape=[2**40])], {}, "'RandomNormal' is none"),
    "a range": ([node("Range", "a", "b", "c")], {"a": 0, "b": 2**62, "c": 1}, "'Range' is none"),
    "tiles": ([node("Tile", "observation", "s")], {"s": [1, 2**30]}, "'Tile' is none of those"),
    "an image made large": (
        [node("Resize", "observation", "", "", "s")],
        {"s": [1, 2**40]},
        "'Resize' is none of those",
    ),
    "a margin": ([node("Pad", "observation", "s")], {"s": [0, 2**40, 0, 0]}, "'Pad' is none"),
    "one hot": ([node("OneHot", "i", "d", "v")], {}, "'OneHot' is none of those"),
    "other software": ([node("Relu", domain="com.microsoft")], {}, "the domain 'com.microsoft'"),
    "an operator of nobody": ([node("Frobnicate\x1b[2J")], {}, r"'Frobnicate\?\[2J' is none"),
    "a large copy": (
        [node("Expand", "observation", "s")],
        {"s": [2**40, 1, SEEN]},
        "'action' has more than 16777216 numbers",
    ),
    "a large product of numbers": (
        [node("Expand", "w", "s", into="x"), node("Expand", "x", "t")],
        {"w": ONES, "s": [1, 2**62], "t": [2**62, 1]},
        "'x' has more than",
    ),
    "an outer product": (
        [node("MatMul", "a", "b")],
        {"a": np.ones((2**17, 1), F), "b": np.ones((1, 2**17), F)},
        "'action' has more than",
    ),
    "an outer sum": (
        [node("Add", "a", "b")],
        {"a": np.ones((2**17, 1), F), "b": np.ones((1, 2**17), F)},
        "'action' has more than",
    ),
    "an outer choice": (
        [node("Gather", "a", "i", axis=0)],
        {"a": np.ones((1, 2**15), F), "i": np.zeros(2**15, np.int64)},
        "'action' has more than",
    ),
    "much work": (
        [
            node("Expand", "w", "s", into="x"),
            *(node("MatMul", "x", "x", into=f"y{i}") for i in range(5)),
        ],
        {"w": ONES, "s": [1024, 1024]},
        "more than 4e\\+09 multiplications",
    ),
    "many large tensors": (
        [
            node("Expand", "w", "s", into="x"),
            *(node("Relu", "x", into=f"y{i}") for i in range(9)),
        ],
        {"w": ONES, "s": [4096, 4096]},
        "tensors have more than 67108864 numbers",
    ),
    "doubling": (doubled(60), {}, "has more than 16777216 numbers"),
    "a long chain": ([node("Relu", into=f"x{i}") for i in range(5000)], {}, "5000 operators"),
    "a convolution of patches": (
        [
            node("Expand", "w", "s", into="x"),
            node("Conv", "x", "k", pads=[99] * 4),
        ],
        {"w": np.ones((1, 1, 1, 1), F), "s": [1, 1, 200, 200], "k": np.ones((1, 1, 99, 99), F)},
        "has more than 16777216 numbers",
    ),
    "a margin of a convolution": (
        [node("Expand", "w", "s", into="x"), node("Conv", "x", "k", pads=[2**40] * 4)],
        {"w": np.ones((1, 1, 1, 1), F), "s": [1, 1, 9, 9], "k": np.ones((1, 1, 1, 1), F)},
        "has more than 16777216 numbers",
    ),
    "a pool of all": (
        [
            node("Expand", "w", "s", into="x"),
            node("AveragePool", "x", kernel_shape=[999, 999], pads=[998] * 4),
        ],
        {"w": np.ones((1, 1, 1, 1), F), "s": [1, 1, 999, 999]},
        "more than 4e\\+09 multiplications",
    ),
    "strides of nothing": (
        [node("MaxPool", kernel_shape=[1], strides=[0])],
        {},
        "not enough|below",
    ),
    "the square of the robots": (
        [node("Transpose", into="t"), node("MatMul", "observation", "t")],
        {},
        "'action' grows faster than the number of robots",
    ),
    "all pairs of robots": (
        [
            node("Unsqueeze", "observation", "s", into="x"),
            node("Sub", "observation", "x"),
        ],
        {"s": [1]},
        "'action' grows faster than the number of robots",
    ),
    "a shape from a signal": (
        [node("Cast", into="i", to=INT64), node("Reshape", "observation", "i")],
        {},
        "it depends on 'i', which only a run knows",
    ),
    "a shape of nothing": (
        [node("Reshape", "observation", "s", allowzero=1)],
        {"s": [0, -1]},
        "'allowzero' is not run",
    ),
    "what comes later": ([node("Add", "observation", "x")], {}, "'x' is not computed before"),
    "a circle": ([node("Add", "observation", "action")], {}, "'action' is not computed before"),
    "a name twice": ([node("Relu"), node("Relu")], {}, "'action' stands twice"),
    "a strange type": ([node("Cast", to=TensorProto.STRING)], {}, "type 8 is not run"),
    "complex numbers": ([], {"w": np.ones(2, np.complex64)}, "of type 14, which is not run"),
    "sizes that do not fit": (
        [node("MatMul", "observation", "w")],
        {"w": W.T},
        "6 columns times 4",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_network_is_refused_before_it_is_prepared(kind):
    nodes, constants, reason = HOSTILE[kind]
    seen = (3, 4) if kind == "strides of nothing" else (SEEN,)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort, "InferenceSession", lambda *_, **__: pytest.fail("prepared"))
        assert re.search(reason, refused(make(nodes, constants, seen)))


def changed(change) -> bytes:
    """The bytes of a good model after a change of its message."""
    model = ModelProto.FromString(make([node("MatMul", "observation", "w")], {"w": W}))
    change(model)
    return model.SerializeToString()


def grow(model):
    model.graph.initializer[0].dims[0] = 2**40


MESSAGES = {
    "functions": (
        lambda m: m.functions.add(name="f", domain="d"),
        "the model has the field 25, which no policy needs",
    ),
    "a training": (lambda m: m.training_info.add(), "field 20"),
    "another domain": (
        lambda m: m.opset_import.add(domain="ai.onnx.ml", version=3),
        "'ai.onnx.ml'",
    ),
    "sparse weights": (lambda m: m.graph.sparse_initializer.add(), "field 15"),
    "weights in files": (
        lambda m: m.graph.initializer[0].external_data.add(key="location", value="/etc/passwd"),
        "takes weights from other files",
    ),
    "weights said to be in files": (
        lambda m: setattr(m.graph.initializer[0], "data_location", 1),
        "takes weights from other files",
    ),
    "weights that are not there": (grow, "the constant 'w' of 4398046511104 numbers brings 24"),
    "no shape": (lambda m: m.graph.initializer[0].ClearField("dims"), "of 1 numbers brings 24"),
    "a negative size": (lambda m: m.graph.initializer[0].dims.append(-1), "of the shape"),
    "many axes": (lambda m: m.graph.initializer[0].dims.extend([1] * 50), "of the shape"),
    "weights twice": (
        lambda m: m.graph.initializer[0].float_data.append(1.0),
        "the constant 'w' of 24 numbers brings",
    ),
    "a claim about what is between": (
        lambda m: m.graph.value_info.append(value("x", FLOAT, [2**40])),
        "'x' has more than",
    ),
    "a claim about the output": (
        lambda m: m.graph.output[0].type.tensor_type.shape.dim.add(dim_value=2**40),
        "'action' has more than",
    ),
    "a sequence": (
        lambda m: m.graph.value_info.append(helper.make_tensor_sequence_value_info("x", 1, [2])),
        "field 4",
    ),
    "no graph": (lambda m: m.ClearField("graph"), "the model has no graph"),
    "an attribute of two kinds": (
        lambda m: m.graph.node[0].attribute.add(name="axis", type=2, i=1, ints=[2]),
        "attribute 'axis' is of kind 2",
    ),
    "an attribute twice": (
        lambda m: [m.graph.node[0].attribute.add(name="axis", type=2, i=1) for _ in "ab"],
        "'MatMul' has 'axis' twice",
    ),
    "two outputs": (lambda m: m.graph.node[0].output.append("y"), "'MatMul' has 2 outputs"),
    "a huge note": (lambda m: [m.metadata_props.add() for _ in range(101_000)], "100000 fields"),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_that_is_not_quite_a_policys_is_refused(kind):
    change, reason = MESSAGES[kind]
    assert reason in refused(changed(change))


GOOD = make([node("MatMul", "observation", "w")], {"w": W})


def field(number: int, data: bytes) -> bytes:
    """A field of bytes, as protobuf encodes it."""
    return bytes([number << 3 | 2, len(data)]) + data


ENCODINGS = {
    "nothing": (b"", "no graph"),
    "text": (b"not a model", "no protobuf message|field|cut off|another type"),
    "a second graph, which protobuf would merge": (GOOD + field(7, b""), "'graph' twice"),
    "cut off": (GOOD[:-1], "cut off|brings"),
    "a field from the future": (GOOD + bytes([200, 6, 0]), "the field 105"),
    "a group": (GOOD + b"\x3b\x3c", "no protobuf message"),
    "a graph that is a number": (bytes([7 << 3, 1]), "'graph' is of another type"),
    "a version that is text": (field(1, b"\xff"), "cut off"),
    "a number without end": (bytes([8]) + b"\xff" * 20, "no protobuf message"),
    "a length beyond the end": (bytes([7 << 3 | 2, 255, 255, 255, 255, 127]), "cut off"),
    "empty operators without end": (
        b"\x3a\xc0\x9a\x0c" + b"\x0a\x00" * 100_000,
        "fields|cut off",
    ),
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_bytes_that_are_no_model_are_refused(kind):
    data, reason = ENCODINGS[kind]
    assert re.search(reason, refused(data))


def test_bytes_with_anything_changed_are_read_or_refused():
    rng = random.Random(0)
    for _ in range(3000):
        data = bytearray(GOOD)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            require_bounded(bytes(data[: rng.randint(1, 2 * len(data))]), "x.onnx")
        except UnboundedError as error:
            assert str(error).isprintable()


def test_a_large_network_is_read_soon():
    wide = np.zeros((2048, 2048), F)
    nodes = [node("MatMul", "observation", "a", into="x"), node("MatMul", "x", "b", into="action")]
    model = make(nodes, {"a": np.zeros((SEEN, 2048), F), "b": wide})
    started = time.process_time()
    require_bounded(model, "x.onnx")
    assert time.process_time() - started < 0.1
