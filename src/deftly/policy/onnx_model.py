"""ONNX models read as data, before any library takes them: only what a policy's network needs, all else refused.

A model is a protobuf message (https://protobuf.dev/programming-guides/encoding, `onnx.proto` of ONNX). The base install
has no `onnx`, and its checker would not do: it lets fields pass that it does not know. Here each message has its list
of fields; another field, one that stands twice, or one of another type makes the model none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

Values = list[Any]
Fields = Mapping[str, Values]
"""The fields of a message by name: numbers, or the bytes of texts, packed numbers and other messages."""

MODEL = {
    1: "ir_version",
    2: "producer_name",
    3: "producer_version",
    4: "domain",
    5: "model_version",
    6: "doc_string",
    7: "graph",
    8: "opset_import",
    14: "metadata_props",
}
OPSET = {1: "domain", 2: "version"}
PROPERTY = {1: "key", 2: "value"}
GRAPH = {
    1: "node",
    2: "name",
    5: "initializer",
    10: "doc_string",
    11: "input",
    12: "output",
    13: "value_info",
    16: "metadata_props",
}
NODE = {
    1: "input",
    2: "output",
    3: "name",
    4: "op_type",
    5: "attribute",
    6: "doc_string",
    7: "domain",
    9: "metadata_props",
}
ATTRIBUTE = {
    1: "name",
    2: "f",
    3: "i",
    4: "s",
    5: "t",
    6: "g",
    7: "floats",
    8: "ints",
    9: "strings",
    11: "graphs",
    13: "doc_string",
    20: "kind",
}
TENSOR = {
    1: "dims",
    2: "data_type",
    4: "float_data",
    5: "int32_data",
    7: "int64_data",
    8: "name",
    9: "raw_data",
    10: "double_data",
    12: "doc_string",
    13: "external_data",
    14: "data_location",
    16: "metadata_props",
}
PORT = {1: "name", 2: "type", 3: "doc_string", 4: "metadata_props"}
TYPE = {1: "tensor_type", 6: "denotation"}
TENSOR_TYPE = {1: "elem_type", 2: "shape"}
SHAPE = {1: "dim"}
DIMENSION = {1: "dim_value", 2: "dim_param", 3: "denotation"}

REPEATED = {
    *("node", "initializer", "input", "output", "value_info", "attribute", "opset_import"),
    *("metadata_props", "floats", "ints", "strings", "graphs", "dims", "dim", "external_data"),
    *("float_data", "int32_data", "int64_data", "double_data"),
}
INTEGERS = {
    *("ir_version", "model_version", "version", "kind", "i", "ints", "dims", "data_type"),
    *("int32_data", "int64_data", "data_location", "elem_type", "dim_value"),
}
FLOATS = {"f": 4, "floats": 4, "float_data": 4, "double_data": 8}
"""Fields of numbers of fixed size, and that size in bytes."""
KINDS = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
"""The field in which an attribute of a kind has its value; graphs and types are not among them."""
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}
"""Bytes of an element by type of tensor: float, uint8, int8, int32, int64, bool, float16, double."""
DATA_FIELDS = {1: "float_data", 7: "int64_data", 11: "double_data"}
"""Where a tensor has its numbers if not in `raw_data`; the other types in `int32_data`."""
INT64 = 7
MAX_FIELDS = 100_000
"""Most fields and packed integers that are read: an empty message of two bytes takes a hundred in memory."""
MAX_NODES = 4096
"""Most operators; onnxruntime 1.32 prepares 5,000 in a third of a second."""
MAX_RANK = 8
MAX_INTEGERS = 64
"""Most numbers of a constant whose values decide a shape."""


@dataclass(frozen=True)
class Tensor:
    """A constant."""

    kind: int
    dims: tuple[int, ...]
    fields: Fields

    def integers(self) -> list[int]:
        """Its values, if it is a short list of int64. Raises ValueError for others."""
        if self.kind != INT64 or prod(self.dims) > MAX_INTEGERS:
            raise ValueError(f"a shape is given by a constant that is no short list: {self.dims}")
        raw = self.fields["raw_data"]
        if raw:
            return list(struct.unpack(f"<{len(raw[0]) // 8}q", raw[0]))
        return self.fields["int64_data"]


@dataclass(frozen=True)
class Node:
    """An operator with its inputs and its output by name; an input that is left out is empty."""

    operator: str
    inputs: list[str]
    output: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Port:
    """An input of the network, or a tensor of which the model says the shape; None: any number."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Model:
    """What a model computes."""

    inputs: list[Port]
    claims: list[Port]
    """Shapes that the model claims of its outputs and of what is between."""
    constants: Mapping[str, Tensor]
    nodes: list[Node]


def read(data: bytes) -> Model:
    """Read a model. Raises ValueError, in words, for what has no place in a policy's network."""
    return _Reader().model(memoryview(data))


class _Reader:
    """Reads messages, so many fields at most."""

    def __init__(self) -> None:
        self.left = MAX_FIELDS

    def model(self, data: memoryview) -> Model:
        model = self.fields(data, MODEL, "the model")
        self.properties(model)
        for opset in model["opset_import"]:
            _require_standard(self.fields(opset, OPSET, "an opset"), "the model")
        if not model["graph"]:
            raise ValueError("the model has no graph")
        graph = self.fields(model["graph"][0], GRAPH, "the graph")
        self.properties(graph)
        if len(graph["node"]) > MAX_NODES:
            raise ValueError(f"it has {len(graph['node'])} operators, at most {MAX_NODES} are run")
        return Model(
            inputs=[self.port(port) for port in graph["input"]],
            claims=[self.port(port) for port in (*graph["output"], *graph["value_info"])],
            constants=self.constants(graph["initializer"]),
            nodes=[self.node(node) for node in graph["node"]],
        )

    def constants(self, tensors: Values) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for data in tensors:
            name, tensor = self.tensor(data)
            if name in found:
                raise ValueError(f"the constant '{name}' stands twice")
            found[name] = tensor
        return found

    def node(self, data: memoryview) -> Node:
        node = self.fields(data, NODE, "an operator")
        self.properties(node)
        operator = _text(node, "op_type")
        _require_standard(node, f"operator '{operator}'")
        outputs = [str(name, "utf-8") for name in node["output"] if len(name)]
        if len(outputs) != 1:
            raise ValueError(f"operator '{operator}' has {len(outputs)} outputs, not one")
        attributes: dict[str, Any] = {}
        for part in node["attribute"]:
            name, value = self.attribute(part, operator)
            if name in attributes:
                raise ValueError(f"operator '{operator}' has '{name}' twice")
            attributes[name] = value
        inputs = [str(name, "utf-8") for name in node["input"]]
        return Node(operator, inputs, outputs[0], attributes)

    def attribute(self, data: memoryview, operator: str) -> tuple[str, Any]:
        attribute = self.fields(data, ATTRIBUTE, f"an attribute of '{operator}'")
        if attribute["g"] or attribute["graphs"]:
            raise ValueError(
                f"the operator '{operator}' holds a graph of its own, which is not run"
            )
        name, kind = _text(attribute, "name"), _number(attribute, "kind")
        given = [field for field in KINDS.values() if attribute[field]]
        own = KINDS.get(kind)
        if own is None or not set(given) <= {own}:
            raise ValueError(f"attribute '{name}' is of kind {kind}, with {given or 'nothing'}")
        values = attribute[own]
        if own in REPEATED:
            return name, values
        if own == "t":
            return name, self.tensor(values[0])[1] if values else None
        return name, values[0] if values else 0

    def tensor(self, data: memoryview) -> tuple[str, Tensor]:
        tensor = self.fields(data, TENSOR, "a constant")
        self.properties(tensor)
        if tensor["external_data"] or _number(tensor, "data_location"):
            raise ValueError(
                "it takes weights from other files (external data), which are not read"
            )
        name, kind = _text(tensor, "name"), _number(tensor, "data_type")
        dims = tuple(tensor["dims"])
        _require_dims(dims, name)
        if kind not in ITEM_BYTES:
            raise ValueError(f"the constant '{name}' is of type {kind}, which is not run")
        _require_complete(tensor, name, kind, prod(dims))
        return name, Tensor(kind, dims, tensor)

    def port(self, data: memoryview) -> Port:
        port = self.fields(data, PORT, "a port")
        self.properties(port)
        name = _text(port, "name")
        if not port["type"]:
            raise ValueError(f"'{name}' has no type")
        kind = self.fields(port["type"][0], TYPE, f"the type of '{name}'")
        if not kind["tensor_type"]:
            raise ValueError(f"'{name}' is no tensor")
        tensor = self.fields(kind["tensor_type"][0], TENSOR_TYPE, f"the type of '{name}'")
        shape = (
            self.fields(tensor["shape"][0], SHAPE, f"the shape of '{name}'")["dim"]
            if tensor["shape"]
            else []
        )
        dims = [self.fields(dim, DIMENSION, f"the shape of '{name}'") for dim in shape]
        sizes = tuple(dim["dim_value"][0] if dim["dim_value"] else None for dim in dims)
        _require_dims(tuple(size or 0 for size in sizes), name)
        return Port(name, sizes)

    def properties(self, owner: Fields) -> None:
        """Notes that are of no meaning here; but a hostile one may hold anything."""
        for each in owner["metadata_props"]:
            self.fields(each, PROPERTY, "a note")

    # ------------------------------------------------------------------ encoding

    def fields(self, data: memoryview, known: Mapping[int, str], what: str) -> dict[str, Values]:
        """The fields of a message. Raises ValueError unless all are known, and of their type."""
        found: dict[str, Values] = {name: [] for name in known.values()}
        place = 0
        while place < len(data):
            key, place = _varint(data, place)
            number, wire = key >> 3, key & 7
            if number not in known:
                raise ValueError(f"{what} has the field {number}, which no policy needs")
            name = known[number]
            value, place = _value(data, place, wire)
            found[name].extend(self.typed(name, value, wire))
            self.spend(1)
            if len(found[name]) > 1 and name not in REPEATED:
                raise ValueError(f"{what} has '{name}' twice")
        return found

    def typed(self, name: str, value: Any, wire: int) -> Values:
        """A field's value, or its values if they are packed. Raises ValueError if it is of another type."""
        if name in INTEGERS:
            values = [value] if wire == VARINT else [*self.packed(value)] if wire == BYTES else []
        elif name in FLOATS:
            values = _floats(value, FLOATS[name], wire)
        else:
            return [value] if wire == BYTES else _refuse(name)
        if not values and not (wire == BYTES and name in REPEATED and not len(value)):
            _refuse(name)
        return [_signed(each) if isinstance(each, int) else each for each in values]

    def packed(self, data: memoryview) -> Iterator[int]:
        place = 0
        while place < len(data):
            value, place = _varint(data, place)
            self.spend(1)
            yield value

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError(f"it has more than {MAX_FIELDS} fields")


VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Types of the encoding."""


def _value(data: memoryview, place: int, wire: int) -> tuple[Any, int]:
    """The value at a place, and where the next field begins."""
    if wire == VARINT:
        return _varint(data, place)
    if wire == BYTES:
        size, place = _varint(data, place)
    elif wire in (FIXED32, FIXED64):
        size = 4 if wire == FIXED32 else 8
    else:
        raise ValueError("it is no protobuf message")
    if place + size > len(data):
        raise ValueError("it is cut off")
    return data[place : place + size], place + size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """The number at a place, 7 bits in a byte, at most 64 in all, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("it is cut off")
        byte, place = data[place], place + 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (1 << 64) - 1, place
    raise ValueError("it is no protobuf message")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _floats(data: Any, size: int, wire: int) -> Values:
    """Numbers of fixed size, one or packed, as one piece: nobody here reads them, but counts them."""
    fits = wire == (FIXED32 if size == 4 else FIXED64) or (wire == BYTES and len(data) % size == 0)
    return [data] if fits and len(data) else []


def _refuse(name: str) -> Any:
    raise ValueError(f"'{name}' is of another type")


def _text(fields: Fields, name: str) -> str:
    return str(fields[name][0], "utf-8") if fields[name] else ""


def _number(fields: Fields, name: str) -> int:
    return fields[name][0] if fields[name] else 0


def _require_standard(fields: Fields, what: str) -> None:
    """Raise ValueError unless a domain is that of ONNX's own operators."""
    domain = _text(fields, "domain")
    if domain not in ("", "ai.onnx"):
        raise ValueError(f"{what} is of the domain '{domain}', not of ONNX's own operators")


def _require_dims(dims: tuple[int, ...], name: str) -> None:
    if len(dims) > MAX_RANK or any(size < 0 for size in dims):
        raise ValueError(f"'{name}' is of the shape {[*dims][:MAX_RANK]}")


def _require_complete(tensor: Fields, name: str, kind: int, count: int) -> None:
    """Raise ValueError unless a constant brings as many numbers as its shape says."""
    field, size = DATA_FIELDS.get(kind, "int32_data"), ITEM_BYTES[kind]
    given = {each for each in ("raw_data", "int32_data", *DATA_FIELDS.values()) if tensor[each]}
    if given == {"raw_data"}:
        found = len(tensor["raw_data"][0]) / size
    elif field in FLOATS:
        found = sum(map(len, tensor[field])) / FLOATS[field]
    else:
        found = len(tensor[field])
    if found != count or given not in ({"raw_data"}, {field}, set()):
        raise ValueError(f"the constant '{name}' of {count} numbers brings {found:g}")
