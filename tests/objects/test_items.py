"""Objects of `task.objects`: their grasp frame, their code, and one line for what cannot be used."""

import hashlib
import json
import shutil
from pathlib import Path

import mujoco
import numpy as np
import pytest

from deftly.errors import DeftlyError
from deftly.objects import items, load
from deftly.objects.grasp_frame import Hand, surface_points

HAND = Hand(opening=0.076, pad=(0.0085, 0.0085), below=0.012, above=0.038)


def find(*names, size=None):
    return items.find(names, HAND, 0.025, 0.1, size)


def compiled(item):
    """The object alone, at the origin."""
    spec = mujoco.MjSpec()
    spec.attach(item.build(), frame=spec.worldbody.add_frame(), prefix=items.PREFIX)
    return spec.compile()


@pytest.fixture
def folder(tmp_path):
    """A copy of a shipped object, whose record a test may change."""
    return Path(shutil.copytree(items.SHIPPED / "pawn", tmp_path / "pawn"))


def change(folder, **values):
    path = folder / "object.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_comes_with_the_package():
    assert items.shipped() == ["pawn", "tee"]
    for name in items.shipped():
        size = sum(file.stat().st_size for file in (items.SHIPPED / name).iterdir())
        assert size < 300_000


@pytest.mark.parametrize(
    ("name", "volume"),
    [
        ("cube", 0.05**3),
        ("sphere", 4 / 3 * np.pi * 0.025**3),
        ("cylinder", np.pi * 0.05 * 0.025**2),
    ],
)
def test_a_primitive_fills_what_its_code_says(name, volume):
    (item,) = find(name)
    assert item.fill == pytest.approx(volume / 0.05**3, rel=1e-3)
    assert item.code == (0.025, 0.025, 0.025, 0.0, 0.0, 0.0, 0.025, item.fill)
    assert item.height == item.top == 0.025
    assert compiled(item).body(item.body).mass == pytest.approx([0.1])


@pytest.mark.parametrize("name", ["pawn", "tee"])
def test_the_grasp_frame_of_a_scan(name):
    (item,), found = find(name), load(items.SHIPPED / name)
    model = compiled(item)
    points = surface_points(model)
    low, high = points.min(0), points.max(0)
    assert np.allclose((high - low) / 2, item.half, atol=1e-6)
    assert np.allclose((high + low) / 2, item.centre, atol=1e-6)
    # y is where it is narrowest; fingers closing there have the grasp point between them, and neither hits the table
    assert high[1] - low[1] == pytest.approx(found.grasp_width, abs=1e-3)
    between = points[(np.abs(points[:, 2]) <= 0.0085) & (np.abs(points[:, 0]) <= 0.0085), 1]
    assert between.min() < 0 < between.max()
    assert item.grip == pytest.approx(np.abs(between).max(), abs=1e-3)
    assert item.height >= HAND.below - 1e-9
    assert item.top <= HAND.above + 1e-9


@pytest.mark.parametrize("size", [None, 0.058])
def test_mass_and_inertia_are_those_of_the_scan(size):
    (item,), found = find("tee", size=size), load(items.SHIPPED / "tee")
    scale = 1.0 if size is None else size / max(found.size)
    body = compiled(item).body(item.body)
    assert body.mass[0] == pytest.approx(scale**3 * found.mass)
    moments = scale**5 * np.linalg.eigvalsh(np.array(found.record["inertia"]))
    assert sorted(body.inertia) == pytest.approx(moments, rel=1e-4)
    assert item.height == pytest.approx(scale * found.rest[0][0], abs=5e-4)
    assert max(item.half) == pytest.approx(scale * max(found.size) / 2, abs=1e-3)


def test_it_rests_where_it_was_said_to():
    """Put at its height above a plane, it stays there, upright."""
    (item,) = find("pawn")
    spec = item.build()
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.1])
    spec.option.timestep = 0.0025
    model = spec.compile()
    data = mujoco.MjData(model)
    data.qpos[2] = item.height
    mujoco.mj_step(model, data, nstep=200)
    assert data.qpos[:3] == pytest.approx([0, 0, item.height], abs=1e-3)
    assert abs(data.qpos[3]) > 0.999


def test_a_folder_is_an_object_too(folder):
    (item,), (shipped,) = find(f"{folder}/"), find("pawn")
    assert item.code == shipped.code


def test_an_object_too_wide_for_the_hand_is_named_and_scaled_as_advised():
    with pytest.raises(DeftlyError, match=r"'pawn' is 101 mm wide .* task\.object_size=") as caught:
        find("cube", "pawn", size=0.15)
    advised = float(str(caught.value).rpartition("=")[2])
    (item,) = find("pawn", size=advised)
    assert 2 * item.half[1] <= HAND.opening


@pytest.mark.parametrize("suffix", [".stl", ".pcd", ".PLY"])
def test_a_scan_is_refused_with_the_command_that_makes_an_object(tmp_path, suffix):
    file = tmp_path / f"bunny{suffix}"
    file.write_bytes(b"solid")
    with pytest.raises(DeftlyError, match=f"deftly scan {file} --out objects"):
        find(str(file))


WRONG = {
    "unknown": (("kube",), "no object 'kube': there are cube, sphere, cylinder, pawn, tee"),
    "nothing": ((), "name one or more"),
    "twice": (("cube", "cube"), "two objects are called 'cube'"),
    "missing": (("/nowhere/milk/",), "no object '/nowhere/milk/'"),
    "escapes": (("\x1b[31m",), r"no object .\?\[31m"),
}


@pytest.mark.parametrize("name", WRONG)
def test_names_that_mean_nothing_are_one_line(name):
    given, said = WRONG[name]
    with pytest.raises(DeftlyError, match=said) as caught:
        find(*given)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


RECORDS = {
    "not_accepted": ({"accepted": False}, "failed its acceptance"),
    "never_rests": ({"rest": []}, "failed its acceptance"),
    "no_direction": ({"grasp_yaw": None}, "is corrupt"),
    "no_orientation": ({"rest": [{"height": 0.02, "quat": [0, 0, 0, 0]}]}, "is corrupt"),
    "flat": ({"size": [0.04, 0.04, 0.0]}, "is corrupt"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_no_scan_writes_are_one_line(name, folder):
    values, said = RECORDS[name]
    change(folder, **values)
    with pytest.raises(DeftlyError, match=said) as caught:
        find(str(folder))
    assert "\n" not in str(caught.value)


def test_a_changed_mesh_is_noticed(folder):
    (folder / "part_00.stl").write_bytes(b"")
    with pytest.raises(DeftlyError, match="is not what was scanned"):
        find(str(folder))


def test_a_model_without_parts_is_refused(folder):
    text = (folder / "object.xml").read_text().replace('group="3"', 'group="3" contype="0"')
    (folder / "object.xml").write_text(text)
    digests = json.loads((folder / "object.json").read_text())["files"]
    digests["object.xml"] = hashlib.sha256(text.encode()).hexdigest()
    change(folder, files=digests)
    with pytest.raises(DeftlyError, match="is not what deftly scan writes"):
        find(str(folder))
