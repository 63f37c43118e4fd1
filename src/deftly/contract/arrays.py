"""Array operations that numpy and torch share, found through the arrays themselves: neither library is imported."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from deftly.contract.schema import ContractError

Array = Any
"""A numpy.ndarray or a torch.Tensor of floating point."""
Memory = dict[str, Array]
"""What a contract remembers between two steps."""


def library(array: Array) -> Any:
    """The library an array belongs to, numpy or torch."""
    return _library_of(type(array))


@functools.cache
def _library_of(kind: type) -> Any:
    package, _, _ = kind.__module__.partition(".")
    return sys.modules[package]


@functools.cache
def dtype_name(dtype: Any) -> str:
    """The name of a dtype of either library, which takes numpy some microseconds to write."""
    return str(dtype)


def require_float(array: Array) -> None:
    """Raise ContractError for an array of whole numbers, which would be truncated in silence."""
    if "float" not in dtype_name(array.dtype):
        raise ContractError(
            f"signals and actions are floating point, got an array of {array.dtype}"
        )


class Like:
    """Makes arrays of the library, dtype and device of another array."""

    def __init__(self, array: Array):
        require_float(array)
        self._library = library(array)
        self._dtype = array.dtype
        self._device = array.device

    def numbers(self, values: Sequence[Any]) -> Array:
        """Floating point numbers."""
        return self._library.asarray(values, dtype=self._dtype, device=self._device)

    def unless(self, idle: float, values: Sequence[float]) -> Array | None:
        """The numbers; None if all are `idle`, which changes nothing."""
        if set(values) == {idle}:
            return None
        return self.numbers(values)

    def indices(self, values: Sequence[int]) -> Array:
        """Whole numbers, to pick by."""
        dtype = self._library.int64
        return self._library.asarray(list(values), dtype=dtype, device=self._device)


class Constants:
    """Constants of a record as arrays, made once for each library, dtype and device."""

    def __init__(self, make: Callable[[Like], Any]):
        self._make = make
        self._made: dict[Any, Any] = {}

    def like(self, array: Array) -> Any:
        """The constants to compute with this array."""
        key = (type(array), array.dtype, array.device)
        if key not in self._made:
            self._made[key] = self._make(Like(array))
        return self._made[key]


def pick(values: Array, columns: Array | None) -> Array:
    """These columns of the last axis, by the fast way of either library; None picks them all, in their order."""
    if columns is None:
        return values
    if _has_index_select(type(values)):
        return values.index_select(-1, columns)
    return values.take(columns, -1)


def pick_rows(values: Array, rows: Array) -> Array:
    """These rows of the first axis, by the fast way of either library."""
    if _has_index_select(type(values)):
        return values.index_select(0, rows)
    return values.take(rows, 0)


@functools.cache
def _has_index_select(kind: type) -> bool:
    return hasattr(kind, "index_select")


def clip(value: Array, lower: Array, upper: Array) -> Array:
    """Each element within its limits; NaN stays NaN. Three times as fast as numpy's `clip` on a robot's few joints."""
    xp = library(value)
    return xp.minimum(xp.maximum(value, lower), upper)


def all_finite(array: Array) -> bool:
    """Whether all elements are finite. To count them takes a third of the time of numpy's `all` on a few joints."""
    xp = library(array)
    return int(xp.count_nonzero(xp.isfinite(array))) == math.prod(array.shape)


def join(parts: Sequence[Array]) -> Array:
    """Arrays behind each other along the last axis."""
    if len(parts) == 1:
        return parts[0]
    return library(parts[0]).concatenate(list(parts), -1)
