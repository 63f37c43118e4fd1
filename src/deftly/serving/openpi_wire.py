"""The messages of openpi's websocket protocol, as `openpi-client` 0.1 speaks it: msgpack maps that hold numpy arrays.

An array is a map of four entries with bytes as keys, `__ndarray__`, `data`, `dtype` and `shape`; a numpy scalar one of
three, `__npgeneric__`, `data` and `dtype`. Types are booleans, integers and floats: nothing here is ever unpickled.

docs/wire.md has the conversation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from deftly.console import printable
from deftly.contract import RobotInterface
from deftly.serving.wire import MAX_FRAME, PACKED, WireError, no_msgpack

ROBOT, RESET, APPLIED = "robot", "reset", "applied"
"""What a message may say beside an observation, to a server of Deftly."""
INSTALL = 'needs the package websockets: pip install "deftly[openpi]"'
MAX_ITEMS = 4096
"""Elements of the longest list and map."""
MAX_AXES = 8
SLACK = 2**20
"""Bytes by which a message may be longer than it need be: a client may tell more than is asked for."""
LARGER = 4
"""How many times as large as the contract's images may be: one line on their size beats a closed connection."""
DTYPES = {
    order + kind: np.dtype(order + kind)
    for order in ("", "<", ">", "|", "=")
    for kind in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}
"""Types of arrays by their names."""
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_BOUNDS = {"max_ext_len": 0, "max_array_len": MAX_ITEMS, "max_map_len": MAX_ITEMS}


def max_message(robot: RobotInterface) -> int:
    """Bytes of the longest message of a client of this robot."""
    images = sum(signal.size for signal in robot.signals if signal.is_image)
    return MAX_FRAME + SLACK + LARGER * images


def pack(message: Mapping[str, Any]) -> bytes:
    """The bytes of a message. Raises TypeError for arrays of other types than numbers."""
    return msgpack.packb(message, default=_encoded, buf_size=PACKED)  # type: ignore[return-value]


def unpack(data: bytes, most: int) -> dict[str, Any]:
    """The message of some bytes; arrays in it are read-only views of them.

    Raises WireError if they are more than `most`, no map with text as keys, or hold an array that is none of numbers.
    """
    if len(data) > most:
        raise WireError(f"message of {len(data)} bytes, at most {most} are read")
    try:
        message = msgpack.unpackb(data, object_hook=_decoded, **_BOUNDS)
    except WireError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise no_msgpack(error) from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise WireError("message is no map with text as keys")
    return message


def _encoded(value: object) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.str not in DTYPES:
        kind = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"cannot send a value of type {kind}")
    if isinstance(value, np.generic):
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    data = np.ascontiguousarray(value)
    return {_ARRAY: True, b"data": data.data, b"dtype": value.dtype.str, b"shape": value.shape}


def _decoded(entries: dict[Any, Any]) -> Any:
    """A map, or the array or the number that it stands for."""
    if _ARRAY in entries:
        return _array(entries)
    if _SCALAR in entries:
        return _scalar(entries)
    return entries


def _array(entries: Mapping[Any, Any]) -> np.ndarray:
    dtype = _dtype(entries)
    data: Any = entries.get(b"data")
    shape: Any = entries.get(b"shape")
    if not isinstance(shape, list) or len(shape) > MAX_AXES:
        raise WireError(f"an array has the shape {printable(shape, 60)}")
    if not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise WireError(f"an array has the shape {printable(shape, 60)}")
    size = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or size != len(data):
        raise WireError(f"an array of {shape} numbers of {dtype} has other bytes than these need")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(entries: Mapping[Any, Any]) -> np.generic:
    dtype, number = _dtype(entries), entries.get(b"data")
    if not isinstance(number, int | float):
        raise WireError(f"{printable(number, 60)} is no number of {dtype}")
    try:
        with np.errstate(over="ignore"):
            return dtype.type(number)
    except (OverflowError, ValueError):
        raise WireError(f"{printable(number, 60)} is no number of {dtype}") from None


def _dtype(entries: Mapping[Any, Any]) -> np.dtype[Any]:
    """The type of the numbers. Raises WireError for objects, text, records and whatever else is none."""
    name = entries.get(b"dtype")
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError(f"an array has the type {printable(name, 40)}, and only numbers are read")
    return DTYPES[name]
