"""Polygon files (PLY, Turk 1994): ascii, and binary of both byte orders; points, normals and polygons."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from deftly.console import printable
from deftly.scan import readers, text
from deftly.scan.cloud import Cloud
from deftly.scan.mesh_files import fans

NUMBERS = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
LISTS = ("vertex_indices", "vertex_index")
MAX_PROPERTIES = 1000


@dataclass
class Element:
    """A table of the file."""

    name: str
    count: int
    properties: list[tuple[str, ...]] = field(default_factory=list)
    """Name and type, or name, type of the length and type of the items of a list."""

    @property
    def plain(self) -> bool:
        """Whether each record has the same size."""
        return all(len(found) == 2 for found in self.properties)

    def dtype(self, order: str) -> np.dtype:
        """A record of fixed size."""
        return np.dtype([(name, order + kind[0]) for name, *kind in self.properties])


def read(file: BinaryIO) -> Cloud:
    """The cloud of a `.ply` file, with triangles if it has any. Raises ValueError if it is none."""
    order, elements = _header(file)
    names = [element.name for element in elements]
    if "vertex" not in names:
        raise ValueError("it has no element 'vertex'")
    at = names.index("vertex")
    vertex = elements[at]
    before = elements[:at]
    if not all(element.plain for element in [*before, vertex]):
        raise ValueError("it has lists before or among its vertices, which is not read")
    columns = [found[0] for found in vertex.properties]
    rows = readers.Rows.of(columns, ("nx", "ny", "nz"))
    has_faces = names[at + 1 : at + 2] == ["face"]
    face = elements[at + 1] if has_faces else None
    if order == "=":
        return _read_text(file, before, vertex, face, rows)
    for element in before:
        size = element.dtype(order).itemsize
        count = readers.require_count(element.count, size, file, element.name)
        file.seek(size * count, 1)
    return _read_binary(file, vertex, face, rows, order)


def _read_binary(
    file: BinaryIO, vertex: Element, face: Element | None, rows: readers.Rows, order: str
) -> Cloud:
    """The cloud of a binary file from its vertices on."""
    dtype = vertex.dtype(order)
    readers.require_count(vertex.count, dtype.itemsize, file, "points")
    if face is None or not face.count:
        records = readers.read_records(file, dtype, vertex.count, rows)
        return rows.cloud(records)
    _require_mesh(vertex)
    data = file.read(dtype.itemsize * vertex.count)
    table = np.frombuffer(data, dtype)
    columns = [table[name] for name in ("x", "y", "z")]
    points = np.stack(columns, -1).astype(np.float64)
    return Cloud(points, None, _read_faces(file, face, order))


def _header(file: BinaryIO) -> tuple[str, list[Element]]:
    """The byte order, `=` for text, and the elements."""
    if file.readline(readers.MAX_HEADER).strip() != b"ply":
        raise ValueError("it does not begin with 'ply'")
    order, elements = "", []
    while True:
        line = file.readline(readers.MAX_HEADER)
        if not line.endswith(b"\n") or file.tell() > readers.MAX_HEADER:
            raise ValueError("its header has no end")
        content = line.decode("ascii", "replace")
        match content.split():
            case ["end_header"]:
                break
            case ["format", kind, _] if kind in ORDERS:
                order = ORDERS[kind]
            case ["element", name, count] if re.fullmatch(r"-?\d{1,18}", count):
                readers.require_count(int(count), 0, file, printable(name, 40))
                elements.append(Element(name, int(count)))
            case ["property", "list", length, item, name] if elements:
                elements[-1].properties.append((name, _number(length), _number(item)))
            case ["property", kind, name] if elements:
                elements[-1].properties.append((name, _number(kind)))
            case ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise ValueError(f"its header has the line '{printable(content, 80)}'")
    _require_unique(elements)
    if not order:
        raise ValueError("its header has no format")
    return order, elements


def _require_unique(elements: list[Element]) -> None:
    """Raise ValueError for an element with two properties of one name."""
    for element in elements:
        names = [found[0] for found in element.properties]
        if len(set(names)) < len(names):
            raise ValueError(f"its element '{printable(element.name, 40)}' has a property twice")


def _number(kind: str) -> str:
    if kind not in NUMBERS:
        raise ValueError(f"its header has the type '{printable(kind, 40)}'")
    return NUMBERS[kind]


def _read_text(
    file: BinaryIO, before: list[Element], vertex: Element, face: Element | None, rows: readers.Rows
) -> Cloud:
    """The cloud of a file of text."""
    if any(element.count for element in before):
        raise ValueError(
            "its vertices are not its first element, which is read only of binary files"
        )
    if face is None or not face.count:
        table, _ = readers.read_lines(file, vertex.count, rows)
        return rows.cloud(table)
    _require_mesh(vertex)
    _require_faces(face, file)
    table, lines = readers.read_lines(file, vertex.count, rows)
    for more in text.blocks(file):
        lines += more
        if len(lines) >= face.count:
            break
    if len(lines) < face.count:
        raise ValueError(f"its header promises {face.count} faces, and it holds {len(lines)}")
    polygons = []
    for line in lines[: face.count]:
        count, *corners = line.split()
        polygons.append([int(corner) for corner in corners[: int(count)]])
    return Cloud(rows.cloud(table).points, None, fans(polygons))


def _require_mesh(vertex: Element) -> None:
    """Raise ValueError for a mesh of too many points, of which none can be left out."""
    if vertex.count > readers.KEPT_POINTS:
        raise ValueError(
            f"it is a mesh of {vertex.count} points, at most {readers.KEPT_POINTS} are read"
        )


def _require_faces(face: Element, file: BinaryIO) -> None:
    """Raise ValueError for faces that are not lists of points, or too many."""
    readers.require_count(face.count, 1, file, "faces", readers.MAX_FACES)
    first = face.properties[0] if face.properties else ()
    is_list = len(first) == 3
    if not is_list or first[0] not in LISTS:
        raise ValueError("its faces do not begin with the list 'vertex_indices'")


def _read_faces(file: BinaryIO, face: Element, order: str) -> np.ndarray:
    """Triangles (m, 3) of binary polygons."""
    _require_faces(face, file)
    if not all(len(found) == 2 for found in face.properties[1:]):
        raise ValueError("its faces have a second list, which is not read")
    (_, length, item), *others = face.properties
    kinds = (order + length, order + item)
    rest = [(name, order + kind[0]) for name, *kind in others]
    triangle = np.dtype([("", kinds[0]), ("corners", kinds[1], (3,)), *rest])
    start = file.tell()
    size = triangle.itemsize * face.count
    found = np.frombuffer(file.read(size), np.uint8)
    if len(found) == size:
        records = found.view(triangle)
        counts = records[triangle.names[0]]  # type: ignore[index]
        if (counts == 3).all():
            return records["corners"].astype(np.int64)
    file.seek(start)
    polygons = _polygons(file, face.count, kinds, np.dtype(rest).itemsize)
    return fans(polygons)


def _polygons(file: BinaryIO, count: int, kinds: tuple[str, str], skip: int) -> list[list[int]]:
    """The corners of binary polygons of any number of corners."""
    length, item = map(np.dtype, kinds)
    found = []
    for _ in range(count):
        head = file.read(length.itemsize)
        is_whole = len(head) == length.itemsize
        corners = int(np.frombuffer(head, length)[0]) if is_whole else -1
        readers.require_count(corners, item.itemsize, file, "corners of a face")
        data = file.read(item.itemsize * corners)
        found.append(np.frombuffer(data, item).tolist())
        file.seek(skip, 1)
    return found
