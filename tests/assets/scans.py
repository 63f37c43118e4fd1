"""Synthetic scans, and files of each format."""

import struct

import numpy as np


def box(count=3000, sides=(0.06, 0.08, 0.12), faces=range(6), seed=0):
    """Points on sides of a box about the origin: its faces 0 to 5 are -x, +x, -y, +y, -z, +z."""
    rng = np.random.default_rng(seed)
    half = np.array(sides) / 2
    areas = np.array([half[(f // 2 + 1) % 3] * half[(f // 2 + 2) % 3] for f in faces])
    chosen = rng.choice(list(faces), size=count, p=areas / areas.sum())
    points = rng.uniform(-half, half, size=(count, 3))
    points[np.arange(count), chosen // 2] = np.where(chosen % 2, 1, -1) * half[chosen // 2]
    return points


def sphere(count=3000, radius=0.05, seed=0):
    """Points on a sphere about the origin; divided by the radius, they are its normals."""
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return radius * points / np.linalg.norm(points, axis=1, keepdims=True)


def tilted(points):
    """Points as a camera sees them that looks at a table from above: turned, and 1 m away."""
    a = np.radians(130)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    return points @ turn.T + (0.1, -0.2, 1.0)


def table(things, count=6000, side=0.8, seed=0):
    """Things on a table of 0.8 m, seen by a camera: their points, from z = 0 up, and those of the table beside them."""
    rng = np.random.default_rng(seed)
    top = np.column_stack([rng.uniform(-side / 2, side / 2, (count, 2)), np.zeros(count)])
    for thing in things:
        low, high = thing[:, :2].min(0), thing[:, :2].max(0)
        top = top[~((top[:, :2] > low) & (top[:, :2] < high)).all(1)]
    points = np.concatenate([top, *things])
    return tilted(points + rng.normal(0, 0.0003, points.shape))


CUBE_CORNERS = np.array(list(np.ndindex(2, 2, 2)), float) * 0.06
CUBE_FACES = np.array(
    [
        (0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1),
        (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3),
    ]
)  # fmt: skip


def pcd(points, data="ascii", **changes):
    """A `.pcd`; `changes` replace lines of the header."""
    count = len(points)
    lines = {
        "VERSION": "0.7", "FIELDS": "x y z rgb", "SIZE": "4 4 4 4", "TYPE": "F F F U", "COUNT": "1 1 1 1",
        "WIDTH": count, "HEIGHT": 1, "POINTS": count, "DATA": data,
    } | changes  # fmt: skip
    head = "".join(f"{key} {value}\n" for key, value in lines.items()).encode()
    table = np.zeros(count, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4")])
    table["x"], table["y"], table["z"] = np.reshape(points, (-1, 3)).T
    if data == "ascii":
        return head + "".join(f"{x!s} {y!s} {z!s} {c}\n" for x, y, z, c in table).encode()
    if data == "binary":
        return head + table.tobytes()
    raw = b"".join(table[name].tobytes() for name in ("x", "y", "z", "rgb"))
    packed = lzf(raw)
    return head + struct.pack("<II", len(packed), len(raw)) + packed


def lzf(data):
    """Data as LZF, in literal runs, and runs of one byte as copies."""
    out, at = bytearray(), 0
    while at < len(data):
        run = 1
        while run < 264 and at + run < len(data) and data[at + run] == data[at]:
            run += 1
        if run > 10:  # a literal, then the byte before it again and again
            out += bytes([0, data[at], 7 << 5, run - 1 - 9, 0])
            at += run
        else:
            piece = data[at : at + 8]
            out += bytes([len(piece) - 1]) + piece
            at += len(piece)
    return bytes(out)


def ply(points, faces=None, order="<", normals=None):
    """A `.ply`: `order` is "<", ">" or "=" for text."""
    names = {"<": "binary_little_endian", ">": "binary_big_endian", "=": "ascii"}
    columns = ["x", "y", "z", *(("nx", "ny", "nz") if normals is not None else ())]
    head = f"ply\nformat {names[order]} 1.0\nelement vertex {len(points)}\n"
    head += "".join(f"property float {name}\n" for name in columns)
    if faces is not None:
        head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\n"
    data = (head + "end_header\n").encode()
    table = points if normals is None else np.hstack([points, normals])
    if order == "=":
        data += "".join(" ".join(map(str, row)) + "\n" for row in table.tolist()).encode()
        data += "".join(f"{len(f)} {' '.join(map(str, f))}\n" for f in faces or ()).encode()
        return data
    data += np.asarray(table, order + "f4").tobytes()
    for face in () if faces is None else faces:
        data += bytes([len(face)]) + np.asarray(face, order + "i4").tobytes()
    return data


def stl(points, faces):
    """A binary `.stl`."""
    record = np.zeros(len(faces), [("n", "<f4", 3), ("corners", "<f4", (3, 3)), ("c", "<u2")])
    record["corners"] = np.asarray(points)[np.asarray(faces)]
    return b"\0" * 80 + struct.pack("<I", len(faces)) + record.tobytes()


def stl_text(points, faces):
    """An `.stl` of text."""
    lines = ["solid thing"]
    for face in faces:
        corners = [f"vertex {x} {y} {z}" for x, y, z in np.asarray(points)[list(face)].tolist()]
        lines += ["facet normal 0 0 0", "outer loop", *corners, "endloop", "endfacet"]
    return "\n".join([*lines, "endsolid"]).encode()


def obj(points, faces):
    """An `.obj`."""
    lines = [f"v {x} {y} {z}" for x, y, z in np.asarray(points).tolist()]
    lines += ["f " + " ".join(f"{i + 1}/1/1" for i in face) for face in faces]
    return "\n".join(lines).encode()


def xyz(points):
    """An `.xyz`."""
    return "\n".join(" ".join(map(str, row)) for row in np.asarray(points).tolist()).encode()
