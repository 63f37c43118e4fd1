"""Meshes of triangles: STL, of text and binary, and the polygons of Wavefront OBJ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from deftly.scan import readers, text
from deftly.scan.cloud import Cloud

STL_HEAD, STL_TRIANGLE = 84, 50
"""Bytes of a binary STL before its triangles, and of one."""


def fans(polygons: Sequence[Sequence[int]]) -> np.ndarray:
    """Triangles (m, 3) of polygons, each a fan from its first corner. Raises ValueError for too many."""
    found = []
    for corners in polygons:
        if len(corners) < 3:
            raise ValueError(f"it has a face of {len(corners)} corners")
        found += [(corners[0], *corners[i : i + 2]) for i in range(1, len(corners) - 1)]
        if len(found) > readers.MAX_FACES:
            raise ValueError(f"it has more than {readers.MAX_FACES} triangles: simplify it")
    return np.array(found, np.int64).reshape(-1, 3)


def welded(corners: np.ndarray) -> Cloud:
    """A mesh of the corners of its triangles (3 m, 3), in which equal corners are one point."""
    points, faces = np.unique(corners, axis=0, return_inverse=True)
    return Cloud(points.astype(np.float64), None, faces.reshape(-1, 3))


def read_stl(file: BinaryIO) -> Cloud:
    """The mesh of an `.stl` file. Raises ValueError if it is none."""
    head = file.read(STL_HEAD)
    count = int.from_bytes(head[80:84], "little")
    size = readers.bytes_left(file)
    if len(head) == STL_HEAD and size == count * STL_TRIANGLE:
        return _read_stl_binary(file, count)
    if not head.lstrip().lower().startswith(b"solid"):
        raise ValueError(
            f"it promises {count} triangles of {STL_TRIANGLE} bytes, and holds {size} bytes"
        )
    file.seek(0)
    return _read_stl_text(file)


def _read_stl_binary(file: BinaryIO, count: int) -> Cloud:
    readers.require_count(count, STL_TRIANGLE, file, "triangles", readers.MAX_FACES)
    record = np.dtype([("normal", "<f4", (3,)), ("corners", "<f4", (3, 3)), ("colour", "<u2")])
    data = file.read(count * STL_TRIANGLE)
    triangles = np.frombuffer(data, record)["corners"]
    return welded(triangles.reshape(-1, 3))


def _read_stl_text(file: BinaryIO) -> Cloud:
    found = [np.empty((0, 3))]
    count = 0
    for lines in text.blocks(file):
        own = [line[6:] for line in lines if line[:6].lower() == "vertex"]
        count += len(own)
        if count > 3 * readers.MAX_FACES:
            raise ValueError(f"it has more than {readers.MAX_FACES} triangles: simplify it")
        found.append(text.numbers(own, range(3)))
    if count == 0 or count % 3:
        raise ValueError(f"it has {count} corners, and a triangle has three")
    return welded(np.concatenate(found))


def read_obj(file: BinaryIO) -> Cloud:
    """The points and polygons of an `.obj` file; its materials and textures are left out."""
    found = [np.empty((0, 3))]
    polygons: list[list[int]] = []
    count = 0
    for lines in text.blocks(file):
        points = []
        for line in lines:
            word, *values = line.split()
            if word == "v":
                points.append(" ".join(values[:3]))
            elif word == "f":
                polygons.append([_corner(value, count + len(points)) for value in values])
        found.append(text.numbers(points, range(3)))
        count += len(points)
        if max(count, len(polygons)) > readers.MAX_FACES:
            raise ValueError(f"it has more than {readers.MAX_FACES} points or faces: simplify it")
    return Cloud(np.concatenate(found), None, fans(polygons))


def _corner(word: str, count: int) -> int:
    """The point that a corner of a face names: `7`, `7/1/3`, or `-1` for the last one so far."""
    number = int(word.partition("/")[0])
    if number == 0:
        raise ValueError("it has a face with point 0, and points are counted from 1")
    return number - 1 if number > 0 else count + number
