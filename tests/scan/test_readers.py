import io
import os
import struct
import zipfile

import numpy as np
import pytest
import scans
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deftly.errors import DeftlyError
from deftly.scan import readers

POINTS = scans.box(200).astype(np.float32).astype(float)
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
CUBE = (scans.CUBE_CORNERS, scans.CUBE_FACES)
CLOUDS = {
    "ascii.pcd": scans.pcd(POINTS),
    "binary.pcd": scans.pcd(POINTS, "binary"),
    "packed.pcd": scans.pcd(POINTS, "binary_compressed"),
    "little.ply": scans.ply(POINTS),
    "big.ply": scans.ply(POINTS, order=">"),
    "text.ply": scans.ply(POINTS, order="="),
    "cloud.xyz": scans.xyz(POINTS),
    "upper.PCD": scans.pcd(POINTS),
}
MESHES = {
    "little.ply": scans.ply(*CUBE),
    "big.ply": scans.ply(*CUBE, order=">"),
    "quads.ply": scans.ply(scans.CUBE_CORNERS, QUADS),
    "text.ply": scans.ply(scans.CUBE_CORNERS, QUADS, order="="),
    "binary.stl": scans.stl(*CUBE),
    "text.stl": scans.stl_text(*CUBE),
    "cube.obj": scans.obj(*CUBE),
    "quads.obj": scans.obj(scans.CUBE_CORNERS, QUADS),
    "last.obj": scans.obj(*CUBE).split(b"\nf ")[0] + b"\nf -8 -7 -5\nf -8 -5 -6",
}


def read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return readers.read(tmp_path / name)


@pytest.mark.parametrize("name", CLOUDS)
def test_points_are_read(tmp_path, name):
    cloud = read(tmp_path, name, CLOUDS[name])
    assert cloud.points == pytest.approx(POINTS, abs=1e-7)
    assert cloud.normals is None
    assert cloud.faces is None


@pytest.mark.parametrize("name", MESHES)
def test_triangles_are_read(tmp_path, name):
    cloud = read(tmp_path, name, MESHES[name])
    corners = cloud.points[cloud.faces]
    doubled = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert np.linalg.norm(doubled, axis=1) == pytest.approx([0.06**2] * len(corners))
    if name != "last.obj":
        volume = np.einsum("ni,ni->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
        assert abs(volume) == pytest.approx(0.06**3)


@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
def test_fields_in_any_order_and_of_any_size(tmp_path, data):
    table = np.zeros(5, [("_", "u1", (3,)), ("normal_x", "<f4"), ("z", "<f8"), ("y", "<i2"), ("x", "<f8"),
                         ("normal_y", "<f4"), ("normal_z", "<f4")])  # fmt: skip
    for i, name in enumerate(("x", "y", "z", "normal_x", "normal_y", "normal_z")):
        table[name] = 10 * i + np.arange(5)
    head = (
        "FIELDS _ normal_x z y x normal_y normal_z\nSIZE 1 4 8 2 8 4 4\nTYPE U F F I F F F\n"
        f"COUNT 3 1 1 1 1 1 1\nWIDTH 5\nHEIGHT 1\nDATA {data}\n"
    ).encode()
    if data == "ascii":
        rows = [np.hstack([np.ravel(value) for value in row]) for row in table.tolist()]
        body = "\n".join(" ".join(map(str, row)) for row in rows).encode()
    elif data == "binary":
        body = table.tobytes()
    else:
        raw = b"".join(table[name].tobytes() for name in table.dtype.names)
        packed = scans.lzf(raw)
        body = struct.pack("<II", len(packed), len(raw)) + packed
    cloud = read(tmp_path, "fields.pcd", head + body)
    steps = np.arange(5)[:, None]
    assert (cloud.points == steps + np.array([0, 10, 20])).all()
    assert (cloud.normals == steps + np.array([30, 40, 50])).all()


@pytest.mark.parametrize("order", ["<", ">", "="])
def test_normals_of_a_ply(tmp_path, order):
    points = scans.sphere(50)
    cloud = read(tmp_path, "n.ply", scans.ply(points, order=order, normals=points / 0.05))
    assert cloud.normals == pytest.approx(points / 0.05, abs=1e-6)


def test_normals_of_an_xyz_are_known_by_their_length(tmp_path):
    points = scans.sphere(50)
    rows = np.hstack([points, points / 0.05])
    assert read(tmp_path, "n.xyz", scans.xyz(rows)).normals == pytest.approx(points / 0.05)
    colours = np.hstack([points, np.full((50, 3), 200.0)])
    assert read(tmp_path, "c.xyz", scans.xyz(colours)).normals is None


@pytest.mark.parametrize(
    "text", [b"x,y,z\n1,2,3\n", b"1\n1 2 3\n", b"# scan\n1 2 3\r\n\r\n", b"// scan\n1;2;3"]
)
def test_an_xyz_may_have_a_header_commas_and_comments(tmp_path, text):
    assert read(tmp_path, "a.xyz", text).points.tolist() == [[1, 2, 3]]


def test_points_that_are_no_numbers_are_kept_for_later(tmp_path):
    points = read(tmp_path, "a.xyz", b"1 2 3\nnan nan nan\n1e300 0 0\ninf 0 0").points
    assert np.isfinite(points).all(1).tolist() == [True, False, False, False]


def test_of_too_many_points_every_second_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "KEPT_POINTS", 120)
    monkeypatch.setattr("deftly.scan.text.BLOCK", 700)
    for name, data in CLOUDS.items():
        kept = read(tmp_path, name, data).points
        wanted = POINTS[::2] if name != "cloud.xyz" else kept
        assert kept == pytest.approx(wanted, abs=1e-7)
        assert len(kept) <= 120


def zip_bomb():
    """A hundred kilobytes that unpack to a hundred megabytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scan.xyz", bytes(100_000_000))
    return file.getvalue()


HEAD = b"ply\nformat binary_little_endian 1.0\nelement vertex %d\n" + b"".join(
    b"property float %c\n" % axis for axis in b"xyz"
)
BOMB = b"\x00\x00" + b"\xe0\xff\x00" * 1000
ZIP_BOMB = zip_bomb()
DAMAGED = {
    "empty.pcd": b"",
    "empty.ply": b"",
    "empty.stl": b"",
    "empty.xyz": b"",
    "noise.pcd": bytes(range(256)) * 300,
    "noise.ply": bytes(range(256)) * 300,
    "noise.stl": bytes(range(256)) * 300,
    "noise.obj": b"v " + bytes(range(128, 256)) * 3,
    "noise.xyz": bytes(range(128, 256)) * 600,
    "long.xyz": b"1 " * 50_000,
    "two.xyz": b"1 2\n3 4\n",
    "ragged.xyz": b"1 2 3\n4 5\n",
    "words.xyz": b"1 2 3\na b c\n",
    "negative.pcd": scans.pcd(POINTS, "binary", POINTS=-5),
    "huge.pcd": scans.pcd(POINTS, "binary", POINTS=10**15),
    "promised.pcd": scans.pcd(POINTS, "binary", POINTS=10**7),
    "promised_text.pcd": scans.pcd(POINTS, POINTS=10**7),
    "bomb.pcd": scans.pcd([], "binary", POINTS=16_000_000, DATA="binary_compressed")
    + struct.pack("<II", len(BOMB), 256_000_000)
    + BOMB,
    "small_bomb.pcd": scans.pcd([], "binary", POINTS=1000, DATA="binary_compressed")
    + struct.pack("<II", len(BOMB), 16_000)
    + BOMB,
    "back.pcd": scans.pcd([], "binary", POINTS=16, DATA="binary_compressed")
    + struct.pack("<II", 3, 256)
    + b"\xe0\xff\x09",
    "cut.pcd": CLOUDS["binary.pcd"][:-1],
    "cut_packed.pcd": CLOUDS["packed.pcd"][:-1],
    "no_head.pcd": scans.pcd([], "binary", POINTS=1, DATA="binary_compressed") + b"\0\0",
    "size.pcd": scans.pcd(POINTS, SIZE="-4 4 4 4"),
    "size_3.pcd": scans.pcd(POINTS, SIZE="3 4 4 4"),
    "count.pcd": scans.pcd(POINTS, COUNT="1000000000 1 1 1"),
    "no_x.pcd": scans.pcd(POINTS, FIELDS="a y z rgb"),
    "product.pcd": scans.pcd(POINTS, "binary").replace(b"POINTS 200\n", b"").replace(b"WIDTH 200", b"WIDTH -200"),
    "negative.ply": HEAD % -7 + b"end_header\n",
    "huge.ply": HEAD % 10**12 + b"end_header\n",
    "promised.ply": HEAD % 10**6 + b"end_header\n",
    "endless.ply": HEAD % 3 + b"comment x\n" * 10_000,
    "corners.ply": HEAD % 0
    + b"element face 1\nproperty list uint int vertex_indices\nend_header\n"
    + struct.pack("<I", 2**31),
    "minus.ply": HEAD % 0 + b"element face 1\nproperty list char int vertex_indices\nend_header\n\xff",
    "beyond.ply": scans.ply(scans.CUBE_CORNERS, [(0, 1, 99)]),
    "twice.ply": b"ply\nformat ascii 1.0\nelement vertex 1\n" + b"property float x\n" * 3 + b"end_header\n1 2 3\n",
    "list.ply": b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list int int x\nend_header\n",
    "promised.stl": b"\0" * 80 + struct.pack("<I", 2**32 - 1),
    "odd.stl": b"solid x\nvertex 1 2 3\nvertex 1 2 3\n",
    "zero.obj": b"v 0 0 0\nf 0 0 0\n",
    "beyond.obj": b"v 0 0 0\nf 1 2 3\n",
    "before.obj": b"v 0 0 0\nf -1 -2 -3\n",
    "edge.obj": b"v 0 0 0\nv 1 0 0\nf 1 2\n",
    **{f"zip.{suffix}": ZIP_BOMB for suffix in ("pcd", "ply", "stl", "obj", "xyz")},
    "scan.las": b"LASF",
    "scan": b"1 2 3",
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_a_line(tmp_path, name):
    with pytest.raises(DeftlyError) as caught:
        read(tmp_path, name, DAMAGED[name])
    said = str(caught.value)
    assert "\n" not in said
    assert said.isprintable()
    assert name in said


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.ply").mkdir()
    os.mkfifo(tmp_path / "fifo.xyz")
    (tmp_path / "zero.stl").symlink_to("/dev/zero")
    (tmp_path / "loop.obj").symlink_to("loop.obj")
    for name in ("folder.ply", "missing.ply", "fifo.xyz", "zero.stl", "loop.obj"):
        with pytest.raises(DeftlyError, match=name):
            readers.read(tmp_path / name)


WHOLE = {f"cloud_{name}": data for name, data in CLOUDS.items()} | MESHES


@pytest.mark.parametrize("name", WHOLE)
def test_whatever_is_changed_in_a_file_it_is_read_or_refused(tmp_path, name):
    whole = WHOLE[name]

    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, len(whole)), st.binary(max_size=6), st.integers(0, 6))
    def run(at, new, left_out):
        try:
            cloud = read(tmp_path, name, whole[:at] + new + whole[at + left_out :])
        except DeftlyError as error:
            assert "\n" not in str(error)
        else:
            assert cloud.points.ndim == 2

    run()


def test_a_nan_that_signals_is_dropped_without_a_warning(tmp_path, recwarn):
    points = POINTS.astype("<f4")
    points.view("<u4")[3, 1] = 0x7FA00000  # the exponent of a NaN, the quiet bit unset
    header, _, _ = scans.ply(POINTS).partition(b"end_header\n")
    found = read(tmp_path, "cloud.ply", header + b"end_header\n" + points.tobytes())
    assert len(found.points) in (len(points), len(points) - 1)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
