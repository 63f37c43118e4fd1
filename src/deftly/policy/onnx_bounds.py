"""Which networks of a bundle are run: those of known operators, with bounds on memory and work known beforehand.

A bundle may come from anybody, and a network is a program: `Loop` runs for ever, `Expand` makes gigabytes of a number.
"""

from __future__ import annotations

from math import prod

from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.policy import onnx_model
from deftly.policy.onnx_model import Model, Node, Port, Tensor
from deftly.policy.onnx_shapes import RULES, Call, Shape

MAX_TENSOR = 1 << 24
"""Most numbers of one tensor, for one robot: 64 MiB in float32; an image of 640x480 with 54 channels."""
MAX_TENSORS = 1 << 26
"""Most numbers of all tensors together, for one robot."""
MAX_WORK = 4_000_000_000
"""Most multiplications for one robot. A ResNet-50 takes 3.8e9 (He et al. 2016, table 1)."""
MANY = 256
"""Robots with which the growth of each tensor is judged: it must not be more than their number."""


class UnboundedError(DeftlyError):
    """A network that is not run: an operator that is not known, or too much memory or work."""


def require_bounded(model: bytes, what: str) -> None:
    """Raise UnboundedError, one line, unless a network ends soon and takes little memory, whoever made it.

    Args:
        model: The ONNX model.
        what: What it is, for the message.
    """
    try:
        parsed = onnx_model.read(model)
        alone, many = _Sizes(parsed, 1), _Sizes(parsed, MANY)
        for name, shape in alone.shapes.items():
            if prod(many.shapes[name]) > MANY * prod(shape):
                raise ValueError(f"'{name}' grows faster than the number of robots")
    except ValueError as error:
        reason = printable(error, 200)
        raise UnboundedError(f"{what} is no ONNX model that runs here: {reason}") from None


class _Sizes:
    """The shape of every tensor of a model for a number of robots. Raises ValueError beyond a bound."""

    def __init__(self, model: Model, robots: int):
        self.robots = robots
        self.constants: dict[str, Tensor] = {}
        self.shapes: dict[str, Shape] = {}
        self.numbers = self.work = 0
        for name, tensor in model.constants.items():
            self.add_constant(name, tensor)
        for port in model.inputs:
            self.add(port.name, self.shape_of(port))
        for port in model.claims:
            self.require_small(port.name, prod(self.shape_of(port)))
        for node in model.nodes:
            self.add_node(node)

    def shape_of(self, port: Port) -> Shape:
        return tuple(self.robots if size is None else size for size in port.shape)

    def add_constant(self, name: str, tensor: Tensor) -> None:
        self.constants[name] = tensor
        self.add(name, tensor.dims)

    def add_node(self, node: Node) -> None:
        if node.operator not in RULES:
            raise ValueError(f"the operator '{node.operator}' is none of those that are run")
        try:
            call = Call(node, self.shapes, self.constants)
            shape = RULES[node.operator](call)
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise ValueError(f"{node.operator} of '{node.output}': {error}") from None
        if node.operator == "Constant":
            self.constants[node.output] = node.attributes["value"]
        self.require_small(node.output, call.scratch)
        self.add(node.output, shape)
        self.work += max(call.work, prod(shape))
        if self.work > MAX_WORK * self.robots:
            raise ValueError(f"it takes more than {MAX_WORK:.0e} multiplications for a robot")

    def add(self, name: str, shape: Shape) -> None:
        if name in self.shapes:
            raise ValueError(f"'{name}' stands twice")
        self.shapes[name] = shape
        count = prod(shape)
        self.require_small(name, count)
        self.numbers += count
        if self.numbers > MAX_TENSORS * self.robots:
            raise ValueError(f"its tensors have more than {MAX_TENSORS} numbers for a robot")

    def require_small(self, name: str, count: int) -> None:
        if count > MAX_TENSOR * self.robots:
            raise ValueError(f"'{name}' has more than {MAX_TENSOR} numbers for a robot")
