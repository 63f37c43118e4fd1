"""The messages between a policy server and its robots: msgpack maps of bounded size, checked against the contract.

An array is a map `{"dtype": "<f4" or "<f8", "shape": [n], "data": bytes}`, or a plain list of numbers; an image is
`{"dtype": "|u1", "shape": [height, width, 3], "data": bytes}` or `{"format": "jpeg", "data": bytes}`. Nothing is ever
built from a peer's bytes but numbers, text, lists, maps and images of the contract's size.

docs/wire.md describes the messages for those who speak them from another language.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from deftly.console import printable
from deftly.contract import PolicyContract, RobotInterface
from deftly.contract.arrays import all_finite
from deftly.contract.terms import MAX_PROMPT
from deftly.errors import DeftlyError

VERSION = 2
SPOKEN = (1, 2)
"""Versions that are answered, in their own; in 1 no image is a JPEG."""
JPEG = "jpeg"
MAX_FRAME = 65_536
"""Bytes of the longest message that is read, in either direction, apart from images: see `max_frame`."""
MAX_LIST, MAX_MAP = 512, 256
"""Elements of the longest list and map: msgpack sets aside the memory that a header claims, at every depth."""
PACKED = 2**19
"""Bytes into which a message is packed before more are taken: two images of 224 x 224 fit."""
_BOUNDS = {"max_ext_len": 0, "max_array_len": MAX_LIST, "max_map_len": MAX_MAP}
IMAGE = "|u1"
"""Type of an image's numbers: one byte each."""
DTYPES = {"<f4": np.dtype("<f4"), "<f8": np.dtype("<f8")}


class WireError(DeftlyError):
    """A message that is no message, or does not fit the contract."""


def pack(message: Mapping[str, Any]) -> bytes:
    """The bytes of a message; arrays in it may be numpy's."""
    return _THREAD.packer.pack(message)


def max_frame(robot: RobotInterface) -> int:
    """Bytes of the longest message to or from this robot: its images come on top of everything else."""
    images = [signal.size for signal in robot.signals if signal.is_image]
    return MAX_FRAME + sum(images)


def unpack(frame: bytes | memoryview, most: int = MAX_FRAME) -> dict[str, Any]:
    """The message of some bytes.

    Raises WireError if they are more than `most`, or no msgpack map with text as keys.
    """
    if len(frame) > most:
        raise WireError(f"message of {len(frame)} bytes, at most {most} are read")
    try:
        message = msgpack.unpackb(frame, raw=False, strict_map_key=True, **_BOUNDS)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise no_msgpack(error) from None
    has_text_keys = isinstance(message, dict) and {*map(type, message)} <= {str}
    if not has_text_keys:
        raise WireError("message is no map with text as keys")
    return message


def no_msgpack(error: Exception) -> WireError:
    """Why some bytes are no message; some of msgpack's own errors say nothing."""
    reason = printable(error, 100)
    if isinstance(error, msgpack.StackError | RecursionError):
        reason = "lists and maps in it are nested too deeply"
    if isinstance(error, msgpack.FormatError):
        reason = "a byte in it (0xc1) means nothing"
    return WireError(f"message is no msgpack: {reason or type(error).__name__}")


def read_array(value: object, size: int, name: str) -> np.ndarray:
    """An array of a message as `(size,)` float32. Raises WireError unless it is that long and finite in float32."""
    try:
        if isinstance(value, dict):
            array = np.frombuffer(value["data"], DTYPES[value["dtype"]])
            shape = value["shape"]
        else:
            numbers = isinstance(value, list) and all(type(x) in (int, float) for x in value)
            array, shape = np.array(value if numbers else None, np.float64), [size]
        if shape != [size] or array.shape != (size,):
            raise ValueError
        if array.dtype.itemsize == 4:
            array = array.copy()
        else:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise WireError(f"'{name}' is no array of {size} numbers") from None
    if not all_finite(array):
        raise WireError(f"'{name}' holds a number that is not finite")
    return array


def as_rows(arrays: list[np.ndarray]) -> np.ndarray:
    """Arrays of one shape as the rows of one; that of a single robot, the usual case, is not copied."""
    if len(arrays) > 1:
        return np.stack(arrays)
    return arrays[0][None]


def read_image(value: object, shape: tuple[int, ...], name: str) -> np.ndarray:
    """An image of a message, of exactly this shape, uint8. Raises WireError for anything else."""
    if isinstance(value, dict) and value.get("format") == JPEG:
        return _decoded(value.get("data"), shape, name)
    try:
        if not isinstance(value, dict):
            raise ValueError
        if value["dtype"] != IMAGE or value["shape"] != list(shape):
            raise ValueError
        return np.frombuffer(value["data"], np.uint8).reshape(shape)
    except (KeyError, TypeError, ValueError):
        size = " x ".join(map(str, shape))
        raise WireError(f"'{name}' is no image of {size} bytes") from None


def jpeg(image: np.ndarray, quality: int) -> dict[str, Any]:
    """An image `(height, width, 3)` uint8 for a message, compressed with loss: the less, the higher `quality`, 1 to 95.

    Raises WireError where Pillow is missing.
    """
    file = io.BytesIO()
    _pillow().fromarray(image).save(file, format="JPEG", quality=quality)
    return {"format": JPEG, "data": file.getvalue()}


def _decoded(data: object, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The image of a JPEG, whose size is known before it is decoded. Raises WireError unless it is that of `shape`."""
    images = _pillow(name)
    try:
        if not isinstance(data, bytes):
            raise ValueError
        with images.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if (image.height, image.width, len(image.getbands())) != shape:
                raise ValueError
            return np.asarray(image)
    except Exception:  # of a damaged file: several kinds
        raise WireError(f"'{name}' is no JPEG of {' x '.join(map(str, shape))}") from None


def _pillow(name: str = "") -> Any:
    """Pillow's module of images. Raises WireError where it is missing."""
    try:
        from PIL import Image
    except ImportError:
        what = f"'{name}' is a JPEG, which" if name else "a JPEG"
        raise WireError(
            f"{what} needs Pillow here: pip install pillow, or send images raw"
        ) from None
    return Image


def read_inputs(value: object, contract: PolicyContract) -> dict[str, Any]:
    """The inputs of a message, each `(size,)` float32 or text; there may be none of them.

    Raises WireError naming the one that is unknown or wrong.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise WireError("'inputs' is no map of arrays and texts")
    known = {given.name: given for given in contract.inputs}
    found = {}
    for name, said in value.items():
        if name not in known:
            raise WireError(
                f"'{str(name)[:40]}' is no input of the policy, which has {list(known)}"
            )
        if not known[name].is_text:
            found[name] = read_array(said, known[name].size, name)
        elif isinstance(said, str) and len(said) <= MAX_PROMPT:
            found[name] = said
        else:
            raise WireError(f"'{name}' is no text of at most {MAX_PROMPT} characters")
    return found


def read_signals(value: object, robot: RobotInterface) -> dict[str, np.ndarray]:
    """The signals of a message, each `(size,)` float32, or `(height, width, 3)` uint8 of an image.

    Raises WireError naming the one that is missing or wrong.
    """
    if not isinstance(value, dict):
        raise WireError("'signals' is no map of arrays")
    known = [s.name for s in robot.signals]
    if len(value) != len(known) or not value.keys() >= {*known}:
        raise _wrong_names(value, known, robot.name)
    found = {}
    for signal in robot.signals:
        said = value[signal.name]
        if signal.is_image:
            found[signal.name] = read_image(said, signal.shape, signal.name)
        else:
            found[signal.name] = read_array(said, signal.size, signal.name)
    return found


def _wrong_names(value: Mapping[Any, object], known: list[str], robot: str) -> WireError:
    """Which name of a message's signals is wrong, or missing."""
    for name in value:
        if name not in known:
            return WireError(f"'{str(name)[:40]}' is no signal of {robot}, which has {known}")
    missing = next(name for name in known if name not in value)
    return WireError(f"signal '{missing}' is missing")


def _encode(value: object) -> dict[str, Any]:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"cannot send a {type(value).__name__}")
    if value.dtype.kind != "f" and value.dtype != np.uint8:
        raise TypeError(f"cannot send a {type(value).__name__}")
    dtype = IMAGE if value.dtype.kind == "u" else "<f8" if value.dtype.itemsize == 8 else "<f4"
    data = np.ascontiguousarray(value, DTYPES.get(dtype))
    return {"dtype": dtype, "shape": list(value.shape), "data": data.data}


class _Thread(threading.local):
    """What packs the messages of a thread: its memory is taken once."""

    def __init__(self) -> None:
        self.packer = msgpack.Packer(default=_encode, buf_size=PACKED)


_THREAD = _Thread()
