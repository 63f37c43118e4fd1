"""Point Cloud Data files of the Point Cloud Library: `DATA` ascii, binary and binary_compressed."""

from __future__ import annotations

import re
import struct
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from deftly.console import printable
from deftly.scan import readers
from deftly.scan.cloud import Cloud

TYPES = {"F": "f", "I": "i", "U": "u"}
SIZES = {"F": (4, 8), "I": (1, 2, 4, 8), "U": (1, 2, 4, 8)}
MAX_FIELDS = 1000
EXPANSION = 90
"""LZF packs at most 264 bytes into 3."""


class Header(NamedTuple):
    """What the lines before the data say."""

    dtype: np.dtype
    points: int
    data: str
    rows: readers.Rows
    columns: readers.Rows
    """The columns of text, in which a field of several numbers has several."""


def read(file: BinaryIO) -> Cloud:
    """The cloud of a `.pcd` file. Raises ValueError if it is none."""
    header = _header(file)
    if header.data == "ascii":
        table, _ = readers.read_lines(file, header.points, header.columns)
    elif header.data == "binary":
        readers.require_count(header.points, header.dtype.itemsize, file, "points")
        table = readers.read_records(file, header.dtype, header.points, header.rows)
    else:
        table = _read_compressed(file, header)
    return header.rows.cloud(table)


def _header(file: BinaryIO) -> Header:
    lines = _header_lines(file)
    data = " ".join(lines["DATA"]).lower()
    if data not in ("ascii", "binary", "binary_compressed"):
        raise ValueError(
            f"its DATA is '{printable(data, 40)}', not ascii, binary or binary_compressed"
        )
    dtype, widths = _record(lines)
    names = [name.lower() for name in dtype.names or ()]
    rows = readers.Rows.of(names, ("normal_x", "normal_y", "normal_z"))
    first = np.cumsum([0, *widths])
    columns = readers.Rows(
        tuple(int(first[i]) for i in rows.position),  # type: ignore[arg-type]
        rows.normal and tuple(int(first[i]) for i in rows.normal),  # type: ignore[arg-type]
    )
    return Header(dtype, _count(lines, file), data, rows, columns)


def _header_lines(file: BinaryIO) -> dict[str, list[str]]:
    """The words after the first of each line, by the first in capitals, up to the line DATA."""
    lines: dict[str, list[str]] = {}
    while "DATA" not in lines:
        line = file.readline(readers.MAX_HEADER)
        if not line or file.tell() > readers.MAX_HEADER:
            raise ValueError(
                "it has no line 'DATA ascii', 'DATA binary' or 'DATA binary_compressed'"
            )
        content, _, _ = line.decode("ascii", "replace").partition("#")
        word, *values = content.split() or [""]
        lines[word.upper()] = values
    return lines


def _count(lines: dict[str, list[str]], file: BinaryIO) -> int:
    """The number of points, by POINTS or by WIDTH times HEIGHT."""
    if "POINTS" in lines:
        count = _integers(lines, "POINTS", 1)[0]
    else:
        width = _integers(lines, "WIDTH", 1)[0]
        height = _integers(lines, "HEIGHT", 1)[0]
        count = width * height
    return readers.require_count(count, 0, file, "points")


def _record(lines: dict[str, list[str]]) -> tuple[np.dtype, list[int]]:
    """A point as it is stored, and how many numbers each of its fields has."""
    names = lines.get("FIELDS", [])
    if not 0 < len(names) <= MAX_FIELDS:
        raise ValueError("its header has no FIELDS")
    kinds = [kind.upper() for kind in lines.get("TYPE", [])]
    sizes = _integers(lines, "SIZE", len(names))
    counts = [1] * len(names)
    if "COUNT" in lines:
        counts = _integers(lines, "COUNT", len(names))
    if len(kinds) != len(names):
        raise ValueError(f"it has {len(names)} FIELDS and {len(kinds)} TYPEs")
    fields = []
    for i, (name, kind, size, count) in enumerate(zip(names, kinds, sizes, counts)):
        known = size in SIZES.get(kind, ())
        if not known or not 1 <= count <= MAX_FIELDS:
            raise ValueError(f"its field '{printable(name, 40)}' is of TYPE {kind:.9} SIZE {size}")
        unique = name if name not in names[:i] else f"{name} {i}"  # padding is called _ each time
        number = f"<{TYPES[kind]}{size}"
        fields.append((unique, number) if count == 1 else (unique, number, (count,)))
    return np.dtype(fields), counts


def _integers(lines: dict[str, list[str]], key: str, count: int) -> list[int]:
    words = lines.get(key, [])
    whole = [re.fullmatch(r"[+-]?\d{1,18}", word) for word in words]
    if len(words) != count or not all(whole):
        told = printable(" ".join(words), 40)
        raise ValueError(f"its {key} is '{told}', not {count} whole numbers")
    return [int(word) for word in words]


def _read_compressed(file: BinaryIO, header: Header) -> np.ndarray:
    """The columns of interest: the fields are stored one after the other, packed together by LZF."""
    head = file.read(8)
    if len(head) < 8:
        raise ValueError("it ends after its header")
    packed, size = struct.unpack("<II", head)
    _require_sizes(packed, size, file, header)
    raw = unpack_lzf(file.read(packed), size)
    step = readers.step_for(header.points)
    fields: Any = header.dtype.fields
    names = header.dtype.names or ()
    found = []
    for column in header.rows.columns:
        kind, offset = fields[names[column]][:2]
        start = offset * header.points
        values = np.frombuffer(raw, kind, header.points, start)
        found.append(values[::step].astype(np.float64))
    return np.stack(found, -1)


def _require_sizes(packed: int, size: int, file: BinaryIO, header: Header) -> None:
    """Raise ValueError unless the points take `size` bytes, and so many can come out of those that are packed."""
    expected = header.points * header.dtype.itemsize
    if size != expected:
        raise ValueError(f"it unpacks to {size} bytes, and {header.points} points take {expected}")
    left = readers.bytes_left(file)
    if packed > left or size > EXPANSION * packed:
        raise ValueError(f"it says that {packed} bytes unpack to {size}, and has {left}")
    if size > readers.MAX_BYTES // 2:
        raise ValueError(f"it unpacks to {size} bytes, more than are read: thin it")


def unpack_lzf(data: bytes, size: int) -> bytearray:
    """The `size` bytes that were packed by LZF (Lehmann's liblzf). Raises ValueError if it is damaged.

    A byte below 32 is a literal run of one more; else its upper three bits are a length, its lower five and the next
    byte how far back the copy begins.
    """
    out = bytearray()
    at, end = 0, len(data)
    try:
        while at < end:
            control = data[at]
            at += 1
            if control < 32:
                out += data[at : at + control + 1]
                at += control + 1
            else:
                length = control >> 5
                if length == 7:
                    length += data[at]
                    at += 1
                start = len(out) - ((control & 31) << 8) - data[at] - 1
                at += 1
                _copy(out, start, length + 2)
            if len(out) > size:
                break
    except IndexError:
        raise ValueError("its packed data are cut off") from None
    if len(out) != size:
        raise ValueError(f"its packed data do not unpack to {size} bytes")
    return out


def _copy(out: bytearray, start: int, length: int) -> None:
    """Append `length` bytes from `start` on, which may run into what is appended."""
    if start < 0:
        raise ValueError("its packed data point before their beginning")
    piece = out[start : start + length]
    repeats = -(-length // len(piece))
    out += (piece * repeats)[:length]
