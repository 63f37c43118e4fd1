"""Scan files: `.pcd`, `.ply`, `.stl`, `.obj` and `.xyz`, read with care.

A header is held against the size of the file before anything is allocated, text is read block by block, and of more
than two million points every second, third, ... is kept: 10 million points take less than 2 GiB. The readers of
libraries (trimesh 5, for one) believe a header's counts, and some take any `.ply` with a list for a mesh.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from deftly.config import suggest
from deftly.console import printable
from deftly.errors import DeftlyError
from deftly.files import open_plain
from deftly.scan import text
from deftly.scan.cloud import Cloud

MAX_BYTES = 2 << 30
MAX_POINTS = 50_000_000
"""Most points that a header may promise."""
KEPT_POINTS = 2_000_000
MAX_FACES = 1_000_000
MAX_HEADER = 64 << 10
"""Longest header of a file, bytes."""
LARGEST = 1e12
"""Coordinates beyond this are no measurement, and are dropped as NaN is."""


def read(path: Path) -> Cloud:
    """The points of a scan file, with normals or triangles if it has them, in the units of the file.

    Points that are not finite are still in it. Raises FileError, one line, for a file that is not what its name says.
    """
    reader = _readers().get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_readers())
        near = suggest(path.suffix.lower(), _readers())
        raise DeftlyError(
            f"'{printable(path)}' is none of {known}{near}: export the scan as one of them"
        )
    with open_plain(path, f"a {path.suffix.lower()} scan", MAX_BYTES) as file:
        return _bounded(reader(file))


def _readers() -> dict[str, Callable[[BinaryIO], Cloud]]:
    from deftly.scan import mesh_files, pcd, ply

    return {
        ".pcd": pcd.read,
        ".ply": ply.read,
        ".stl": mesh_files.read_stl,
        ".obj": mesh_files.read_obj,
        ".xyz": read_xyz,
    }


def _bounded(cloud: Cloud) -> Cloud:
    """The cloud with NaN for coordinates that are none; ValueError for triangles of points that it lacks."""
    plausible = np.abs(cloud.points) <= LARGEST
    points = np.where(plausible, cloud.points, np.nan)
    faces = cloud.faces
    if faces is None or not len(faces):
        return Cloud(points, cloud.normals)
    if faces.min() < 0 or faces.max() >= len(points):
        raise ValueError(f"its triangles name points that are not among its {len(points)}")
    return Cloud(points, None, faces)


# ------------------------------------------------------------------ what the formats share


@dataclass(frozen=True)
class Rows:
    """Which columns of a table of points hold what."""

    position: tuple[int, int, int]
    normal: tuple[int, int, int] | None

    @classmethod
    def of(cls, names: list[str], normal: tuple[str, str, str]) -> Rows:
        """By the names of the columns. Raises ValueError without x, y and z."""
        if missing := [name for name in "xyz" if name not in names]:
            raise ValueError(f"it has no '{missing[0]}' among its fields {printable(names)}")
        x, y, z = (names.index(name) for name in "xyz")
        if not all(name in names for name in normal):
            return cls((x, y, z), None)
        nx, ny, nz = (names.index(name) for name in normal)
        return cls((x, y, z), (nx, ny, nz))

    @property
    def columns(self) -> list[int]:
        """Positions first, then normals."""
        return [*self.position, *(self.normal or ())]

    def cloud(self, table: np.ndarray) -> Cloud:
        """Of the numbers of `columns`, (n, 3) or (n, 6)."""
        table = table.reshape(-1, len(self.columns)).astype(np.float64, copy=False)
        normals = None if self.normal is None else table[:, 3:]
        return Cloud(table[:, :3], normals)


def bytes_left(file: BinaryIO) -> int:
    """How many bytes of a file are still to be read."""
    size = os.fstat(file.fileno()).st_size
    return size - file.tell()


def require_count(count: int, size: int, file: BinaryIO, what: str, limit: int = MAX_POINTS) -> int:
    """The count of a header; ValueError unless so many records of at least `size` bytes are in what is left."""
    if not 0 <= count <= limit:
        raise ValueError(f"its header promises {count} {what}, and 0 to {limit} are read")
    left = bytes_left(file)
    if count * size > left:
        raise ValueError(
            f"its header promises {count} {what} of {size} bytes or more, and it holds {left} bytes"
        )
    return count


def step_for(count: int) -> int:
    """Every how many rows one is kept, so that at most KEPT_POINTS are."""
    return max(1, math.ceil(count / KEPT_POINTS))


def read_records(file: BinaryIO, dtype: np.dtype, count: int, rows: Rows) -> np.ndarray:
    """The columns of interest, (kept, 3 or 6), of `count` records of fixed size, every `step_for(count)`-th."""
    step = step_for(count)
    names = [(dtype.names or ())[column] for column in rows.columns]
    steps_at_once = max(1, text.BLOCK // (dtype.itemsize * step))
    at_once = step * steps_at_once
    found = []
    for first in range(0, count, at_once):
        size = dtype.itemsize * min(at_once, count - first)
        table = np.frombuffer(file.read(size), dtype)[::step]
        with np.errstate(invalid="ignore"):  # a NaN that signals; who judges the points drops it
            columns = [table[name].astype(np.float64) for name in names]
        found.append(np.stack(columns, -1))
    return np.concatenate(found) if found else np.empty((0, len(names)))


def read_lines(file: BinaryIO, count: int, rows: Rows) -> tuple[np.ndarray, list[str]]:
    """The columns of interest of `count` lines of text, as `read_records`; and the lines that were read beyond them."""
    step = step_for(count)
    found = [np.empty((0, len(rows.columns)))]
    done = 0
    if not count:
        return found[0], []
    for lines in text.blocks(file):
        own = lines[: count - done]
        found.append(text.numbers(own[-done % step :: step], rows.columns))
        done += len(own)
        if done == count:
            return np.concatenate(found), lines[len(own) :]
    raise ValueError(f"its header promises {count} points, and it holds {done}")


# ------------------------------------------------------------------ xyz


def read_xyz(file: BinaryIO) -> Cloud:
    """Points as lines of text, `x y z` first; three more columns are normals if they have unit length.

    A first line that is no row of numbers, or counts the others, is left out.
    """
    step, rows, done = 1, None, 0
    found = []
    for lines in text.blocks(file):
        if rows is None and lines:
            lines = lines[_has_header(lines) :]
            rows = _xyz_rows(lines)
            blocks = math.ceil(bytes_left(file) / text.BLOCK + 1)
            step = step_for(len(lines) * blocks)
        if rows is None:
            continue
        kept = lines[-done % step :: step]
        found.append(text.numbers(kept, rows.columns))
        done += len(lines)
    if rows is None:
        raise ValueError("it holds no points")
    return rows.cloud(np.concatenate(found))


def _has_header(lines: list[str]) -> bool:
    words = lines[0].split()
    try:
        [float(word) for word in words]
    except ValueError:
        return True
    return len(words) == 1 < len(lines)


def _xyz_rows(lines: list[str]) -> Rows | None:
    """What the columns are; None without lines."""
    if not lines:
        return None
    table = text.numbers(lines[:1000])
    columns = table.shape[1]
    if columns < 3:
        raise ValueError(f"it has lines of {columns} numbers, and x y z are three")
    if columns in (6, 7):
        length = np.linalg.norm(table[:, 3:6], axis=-1)
        off_unit = np.abs(length[np.isfinite(length)] - 1)
        if off_unit.max(initial=0.0) < 0.02:
            return Rows((0, 1, 2), (3, 4, 5))
    return Rows((0, 1, 2), None)
