"""The ONNX operators that are run, each with its rule: of which shape its output is, and how much work it takes.

Enough for multilayer perceptrons, convolutions and attention. A rule knows the shapes of the inputs and the values of
constants; an operator whose output depends on other values has none. The definitions are those of
https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from math import prod

from deftly.policy.onnx_model import ITEM_BYTES, Node, Tensor

Shape = tuple[int, ...]
FUNCTION_WORK = 16
"""Multiplications that count for an element of exp, tanh, erf and their like."""


class Call:
    """An operator with its inputs, as its rule sees it.

    Attributes:
        inputs: shapes of the inputs; None for one that is left out.
        work: multiplications, where they are more than the numbers of the output.
        scratch: numbers that it keeps besides its output.
    """

    def __init__(self, node: Node, shapes: Mapping[str, Shape], constants: Mapping[str, Tensor]):
        self.node = node
        for name in node.inputs:
            if name and name not in shapes:
                raise ValueError(f"its input '{name}' is not computed before it")
        self.inputs = [shapes[name] if name else None for name in node.inputs]
        self.constants = constants
        self.work = 0
        self.scratch = 0

    def shape(self, place: int = 0) -> Shape:
        """The shape of an input. Raises ValueError if it is left out."""
        found = self.inputs[place]
        if found is None:
            raise ValueError(f"input {place} is left out")
        return found

    def given(self) -> list[Shape]:
        """The shapes of all inputs that are not left out."""
        return [shape for shape in self.inputs if shape is not None]

    def has(self, place: int) -> bool:
        """Whether an input is given."""
        return place < len(self.inputs) and self.inputs[place] is not None

    def values(self, place: int) -> list[int]:
        """The integers of an input. Raises ValueError unless they are constant."""
        name = self.node.inputs[place]
        if name not in self.constants:
            raise ValueError(f"it depends on '{name}', which only a run knows")
        return self.constants[name].integers()

    def integer(self, name: str, default: int) -> int:
        """An attribute of one integer."""
        found = self.node.attributes.get(name, default)
        if type(found) is not int:
            raise ValueError(f"'{name}' is no integer")
        return found

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute of several integers."""
        found = self.node.attributes.get(name, default)
        if not isinstance(found, (list, tuple)):
            raise ValueError(f"'{name}' are no integers")
        return [*found]

    def axis(self, default: int) -> int:
        """The attribute `axis`, counted from the front."""
        return _from_front(self.integer("axis", default), len(self.shape()))

    def axes(self) -> list[int] | None:
        """The axes as they stand in an attribute, or since opset 13 or 18 in an input; None if they are left out."""
        if self.has(1):
            return self.values(1)
        if "axes" in self.node.attributes:
            return self.integers("axes", ())
        return None


def _from_front(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of a tensor of {rank} axes")
    return axis % rank


def _require_sizes(sizes: Sequence[int], least: int = 0) -> None:
    if min(sizes, default=least) < least:
        raise ValueError(f"a size is below {least}: {[*sizes][:8]}")


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape to which numpy would repeat several. Raises ValueError if they do not fit."""
    found = []
    for sizes in zip_longest(*map(reversed, shapes), fillvalue=1):
        largest = max(sizes, key=lambda size: size != 1)
        if not {*sizes} <= {1, largest}:
            raise ValueError(f"the shapes {shapes} do not fit")
        found.append(largest)
    return tuple(reversed(found))


# ------------------------------------------------------------------------ number by number


def _same(call: Call) -> Shape:
    shape = call.shape()
    call.work = FUNCTION_WORK * prod(shape)
    return shape


def _elementwise(call: Call) -> Shape:
    shape = _broadcast(call.given())
    call.work = FUNCTION_WORK * prod(shape)
    return shape


def _cast(call: Call) -> Shape:
    kind = call.integer("to", 0)
    if kind not in ITEM_BYTES:
        raise ValueError(f"type {kind} is not run")
    return call.shape()


def _constant(call: Call) -> Shape:
    tensor = call.node.attributes.get("value")
    if not isinstance(tensor, Tensor):
        raise ValueError("it has no tensor")
    return tensor.dims


# ------------------------------------------------------------------------ matrices


def _gemm(call: Call) -> Shape:
    left, right = call.shape(0), call.shape(1)
    if call.integer("transA", 0):
        left = left[::-1]
    if call.integer("transB", 0):
        right = right[::-1]
    rows, inner = left
    return _product(call, (), rows, inner, right)


def _matmul(call: Call) -> Shape:
    left, right = call.shape(0), call.shape(1)
    if len(left) < 2 or len(right) < 2:
        raise ValueError(f"it multiplies vectors: {left}, {right}")
    *batch, rows, inner = left
    return _product(call, _broadcast([tuple(batch), right[:-2]]), rows, inner, right[-2:])


def _product(call: Call, batch: Shape, rows: int, inner: int, right: Shape) -> Shape:
    """The shape of the products of `(rows, inner)` matrices with the right ones."""
    other, columns = right
    if inner != other:
        raise ValueError(f"{inner} columns times {other} rows")
    shape = (*batch, rows, columns)
    call.work = inner * prod(shape)
    return shape


# ------------------------------------------------------------------------ arrangement


def _concat(call: Call) -> Shape:
    shapes, axis = call.given(), call.axis(0)
    before, after = shapes[0][:axis], shapes[0][axis + 1 :]
    for shape in shapes:
        if shape[:axis] != before or shape[axis + 1 :] != after:
            raise ValueError(f"the shapes {shapes} do not fit")
    length = sum(shape[axis] for shape in shapes)
    return (*before, length, *after)


def _expand(call: Call) -> Shape:
    wanted = call.values(1)
    _require_sizes(wanted)
    return _broadcast([call.shape(), tuple(wanted)])


def _flatten(call: Call) -> Shape:
    shape = call.shape()
    axis = call.axis(1)
    return prod(shape[:axis]), prod(shape[axis:])


def _gather(call: Call) -> Shape:
    shape, axis = call.shape(), call.axis(0)
    return (*shape[:axis], *call.shape(1), *shape[axis + 1 :])


def _reshape(call: Call) -> Shape:
    old, sizes = call.shape(), call.values(1)
    if call.integer("allowzero", 0) and 0 in sizes:  # torch says it of every shape
        raise ValueError("'allowzero' is not run: a size of 0 would be one")
    for place, size in enumerate(sizes):
        if size == 0:
            sizes[place] = old[place]
    if sizes.count(-1) == 1:
        known = -prod(sizes)
        sizes[sizes.index(-1)] = prod(old) // known
    _require_sizes(sizes)
    if prod(sizes) != prod(old):
        raise ValueError(f"{old} cannot become {sizes}")
    return tuple(sizes)


def _slice(call: Call) -> Shape:
    sizes = [*call.shape()]
    starts, ends = call.values(1), call.values(2)
    axes = call.values(3) if call.has(3) else range(len(starts))
    steps = call.values(4) if call.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = _from_front(axis, len(sizes))
        kept = range(sizes[place])[start:end:step]
        sizes[place] = len(kept)
    return tuple(sizes)


def _squeeze(call: Call) -> Shape:
    shape, axes = call.shape(), call.axes()
    if axes is None:
        return tuple(size for size in shape if size != 1)
    dropped = {_from_front(axis, len(shape)) for axis in axes}
    return _without(shape, dropped)


def _without(shape: Shape, dropped: set[int]) -> Shape:
    return tuple(size for axis, size in enumerate(shape) if axis not in dropped)


def _transpose(call: Call) -> Shape:
    shape = call.shape()
    axes = list(range(len(shape)))
    order = call.integers("perm", axes[::-1])
    if sorted(order) != axes:
        raise ValueError(f"{order} is no order of {len(shape)} axes")
    return tuple(shape[axis] for axis in order)


def _unsqueeze(call: Call) -> Shape:
    shape, axes = [*call.shape()], call.axes() or []
    rank = len(shape) + len(axes)
    for axis in sorted(_from_front(axis, rank) for axis in axes):
        shape.insert(axis, 1)
    return tuple(shape)


def _reduce(call: Call) -> Shape:
    shape, axes = call.shape(), call.axes()
    call.work = FUNCTION_WORK * prod(shape)
    if not axes and call.integer("noop_with_empty_axes", 0):
        return shape
    reduced = {_from_front(axis, len(shape)) for axis in axes or range(len(shape))}
    if not call.integer("keepdims", 1):
        return _without(shape, reduced)
    return tuple(1 if axis in reduced else size for axis, size in enumerate(shape))


# ------------------------------------------------------------------------ images


def _convolution(call: Call) -> Shape:
    count, channels, *image = call.shape(0)
    filters, inner, *kernel = call.shape(1)
    if channels != inner * call.integer("group", 1):
        raise ValueError(f"{channels} channels, filters of {inner}")
    windows = _windows(call, image, kernel)
    patch = inner * prod(kernel)
    call.work = count * filters * prod(windows) * patch
    call.scratch = count * channels * prod(windows) * prod(kernel)  # patches as columns of a matrix
    return (count, filters, *windows)


def _pool(call: Call) -> Shape:
    count, channels, *image = call.shape()
    kernel = call.integers("kernel_shape", ())
    shape = (count, channels, *_windows(call, image, kernel))
    call.work = prod(shape) * prod(kernel)
    return shape


def _windows(call: Call, image: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """How often a kernel fits along each axis of an image."""
    axes = len(image)
    if call.node.attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ValueError("'auto_pad' is not run: give 'pads'")
    strides = call.integers("strides", [1] * axes)
    dilations = call.integers("dilations", [1] * axes)
    pads = call.integers("pads", [0, 0] * axes)
    _require_sizes(pads)
    _require_sizes([*kernel, *strides, *dilations], least=1)
    sizes = zip(image, pads[:axes], pads[axes:], kernel, strides, dilations, strict=True)
    found = []
    for size, before, after, width, stride, dilation in sizes:
        room = before + size + after - dilation * (width - 1) - 1
        if call.integer("ceil_mode", 0):
            room += stride - 1
        found.append(max(0, room // stride + 1))
    return found


def _global_pool(call: Call) -> Shape:
    count, channels, *image = call.shape()
    call.work = prod(call.shape())
    return (count, channels) + (1,) * len(image)


RULES: dict[str, Callable[[Call], Shape]] = {
    "Abs": _same,
    "Add": _elementwise,
    "And": _elementwise,
    "AveragePool": _pool,
    "BatchNormalization": _same,
    "Cast": _cast,
    "Ceil": _same,
    "Clip": _same,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _convolution,
    "Cos": _same,
    "Div": _elementwise,
    "Elu": _same,
    "Equal": _elementwise,
    "Erf": _same,
    "Exp": _same,
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _same,
    "Gather": _gather,
    "Gelu": _same,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Greater": _elementwise,
    "GreaterOrEqual": _elementwise,
    "HardSigmoid": _same,
    "HardSwish": _same,
    "Identity": _same,
    "InstanceNormalization": _same,
    "LayerNormalization": _same,
    "LeakyRelu": _same,
    "Less": _elementwise,
    "LessOrEqual": _elementwise,
    "Log": _same,
    "LogSoftmax": _same,
    "MatMul": _matmul,
    "Max": _elementwise,
    "MaxPool": _pool,
    "Mean": _elementwise,
    "Min": _elementwise,
    "Mish": _same,
    "Mul": _elementwise,
    "Neg": _same,
    "Not": _same,
    "Or": _elementwise,
    "PRelu": _elementwise,
    "Pow": _elementwise,
    "Reciprocal": _same,
    "ReduceL2": _reduce,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "ReduceSumSquare": _reduce,
    "Relu": _same,
    "Reshape": _reshape,
    "Round": _same,
    "Selu": _same,
    "Sigmoid": _same,
    "Sign": _same,
    "Sin": _same,
    "Slice": _slice,
    "Softmax": _same,
    "Softplus": _same,
    "Softsign": _same,
    "Sqrt": _same,
    "Squeeze": _squeeze,
    "Sub": _elementwise,
    "Sum": _elementwise,
    "Tanh": _same,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise,
}
"""The rule of each operator that is run."""
