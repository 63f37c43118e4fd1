"""From clouds to bodies. Scans are small, so that each test takes a second."""

import json

import mujoco
import numpy as np
import pytest
import scans
from trimesh import Trimesh, creation

from deftly import objects
from deftly.commands import main as cli
from deftly.errors import DeftlyError
from deftly.scan import accept, ingest, model, segment, solid, surface, units
from deftly.scan import report as scan_report
from deftly.scan.cloud import (
    Cloud,
    denoised,
    extent,
    finite,
    thinned,
    without_outliers,
    without_strays,
)
from deftly.scan.settings import ScanSettings

BALL = scans.sphere(800)
CUBE = Trimesh(scans.CUBE_CORNERS, scans.CUBE_FACES, process=False)


# ------------------------------------------------------------------ clouds


def test_points_without_numbers_and_doubles_go():
    points = np.array([[0, 0, 0], [np.nan, 0, 0], [1, 0, 0], [0, 0, 0], [np.inf, 0, 0]])
    assert finite(Cloud(points)).points.tolist() == [[0, 0, 0], [1, 0, 0]]
    normals = np.array([[0, 0, 2.0], [0, 0, 1], [0, 0, 0], [0, 0, 1], [0, 0, 1]])
    kept = finite(Cloud(points, normals))
    assert (kept.points.tolist(), kept.normals.tolist()) == ([[0, 0, 0]], [[0, 0, 1]])


def test_a_cloud_is_thinned_evenly():
    cloud = thinned(Cloud(scans.box(20_000)), 1000)
    assert 500 < len(cloud) <= 1000
    assert extent(cloud.points) == pytest.approx(0.12, rel=0.02)


def test_outliers_go_and_the_others_stay():
    far = np.random.default_rng(1).uniform(-1, 1, (20, 3))
    kept = without_outliers(Cloud(np.concatenate([BALL, far]))).points
    assert len(kept) > 0.98 * len(BALL)
    assert np.linalg.norm(kept, axis=1).max() < 0.2


def test_one_wild_point_changes_nothing():
    wild = Cloud(np.concatenate([BALL, [[1e9, 0, 0]]]))
    assert without_strays(wild).points.tolist() == BALL.tolist()
    same = Cloud(np.ones((5, 3)))
    assert without_strays(same) is same


def test_noise_is_averaged_out():
    points = scans.box(4000)
    noisy = points + np.random.default_rng(1).normal(0, 0.001, points.shape)
    shell = [
        np.abs(np.abs(p) - [0.03, 0.04, 0.06]).min(1).mean()
        for p in (noisy, denoised(noisy, 0.008))
    ]
    assert shell[1] < 0.6 * shell[0]


# ------------------------------------------------------------------ units


@pytest.mark.parametrize(
    ("length", "metres"), [(0.15, 0.15), (1.9, 1.9), (12.0, 0.12), (190.0, 0.19), (2000.0, 2.0)]
)
def test_units_are_guessed(length, metres):
    factor, how = units.factor(length, "auto", None)
    assert factor * length == pytest.approx(metres)
    assert "guessed" in how


@pytest.mark.parametrize(
    ("length", "unit"), [(1e-6, "auto"), (1e7, "auto"), (1e-3, "mm"), (10.0, "m")]
)
def test_a_grain_and_a_town_are_refused(length, unit):
    with pytest.raises(DeftlyError, match="--units m, cm, mm or in"):
        units.factor(length, unit, None)


def test_a_size_counts_before_units():
    assert units.factor(1e7, "auto", 0.2)[0] * 1e7 == pytest.approx(0.2)
    assert units.factor(4.0, "in", None)[0] == 0.0254


# ------------------------------------------------------------------ things


def cut(points, scene="auto"):
    return segment.cut(Cloud(points), scene, np.random.default_rng(0))


def test_things_on_a_table_are_cut_out():
    box = scans.box(1500, (0.06, 0.08, 0.12)) + np.array([0.1, 0.1, 0.06])
    ball = scans.sphere(1500, 0.05) + np.array([-0.15, -0.1, 0.05])
    things = sorted(cut(scans.table([box, ball])), key=lambda thing: extent(thing.cloud.points))
    assert [thing.stood for thing in things] == [True, True]
    for thing, height in zip(things, (0.1, 0.12)):
        assert thing.cloud.points[:, 2].max() == pytest.approx(height, abs=0.004)
        assert 1000 < len(thing.cloud) <= 1500
        ground = segment.grounded(thing.cloud).points
        assert ground[:, 2].min() == 0


def test_a_mass_that_each_of_several_things_is_given_is_said():
    things = [scans.sphere(500, 0.05) + np.array([x, 0.0, 0.05]) for x in (-0.2, 0.2)]
    cloud = Cloud(scans.table(things))
    for mass, said in ((None, []), (0.2, ["each of the 2 things is given 0.2 kg (--mass)"])):
        _, _, notes = ingest._things(cloud, ScanSettings(mass=mass))
        assert notes == said


@pytest.mark.parametrize("faces", [range(6), (1, 3, 5), (1, 5)])
def test_a_box_alone_is_no_table(faces):
    points = scans.box(3000, (0.07, 0.07, 0.2), faces)
    (thing,) = cut(points)
    assert not thing.stood
    assert len(thing.cloud) == 3000


def test_a_bump_on_a_side_is_no_thing_on_a_table():
    front = scans.box(4000, (0.07, 0.07, 0.2), (1, 3, 5))
    bump = scans.box(300, (0.006, 0.03, 0.03)) + np.array([0.038, 0, 0])
    (thing,) = cut(np.concatenate([front, bump]))
    assert not thing.stood
    assert len(thing.cloud) > 4200


def test_what_most_points_stand_on_is_the_table():
    thing = scans.box(1500, (0.06, 0.08, 0.12)) + np.array([0.1, 0.1, 0.06])
    wall = scans.box(6000, (2.0, 1.0, 0)) + np.array([0, 0, 3.0])
    bumps = scans.box(300, (0.2, 0.2, 0.1)) + np.array([0.2, 0.2, 2.95])
    (found,) = cut(np.concatenate([scans.table([thing]), wall, bumps]))
    assert found.stood
    assert found.cloud.points[:, 2].max() == pytest.approx(0.12, abs=0.006)


def test_things_apart_are_cut_and_may_be_kept_together():
    points = np.concatenate([BALL, BALL + np.array([0.3, 0, 0])])
    assert [len(thing.cloud) for thing in cut(points)] == [800, 800]
    assert [len(thing.cloud) for thing in cut(points, "object")] == [1600]
    assert cut(BALL, "table") == []


# ------------------------------------------------------------------ surfaces


def test_a_ball_without_normals():
    found = surface.shrink_wrap(Cloud(BALL))
    assert (found.method, found.closing) == ("shrink-wrap", "")
    assert found.mesh.is_watertight
    assert found.mesh.volume == pytest.approx(4 / 3 * np.pi * 0.05**3, rel=0.12)
    assert surface.distance_to_surface(found.mesh, BALL).mean() < 0.01 * 0.1
    assert surface.unseen(found.mesh, BALL) == 0


def test_a_ball_with_normals():
    found = surface.reconstruct(Cloud(BALL, BALL / 0.05))
    assert (found.method, found.closing) == ("Poisson", "")
    assert found.mesh.is_watertight
    assert found.mesh.volume == pytest.approx(4 / 3 * np.pi * 0.05**3, rel=0.05)


def test_normals_that_point_inward_are_turned():
    found = surface.reconstruct(Cloud(BALL, -BALL / 0.05))
    assert found.method == "Poisson"
    assert found.mesh.volume == pytest.approx(4 / 3 * np.pi * 0.05**3, rel=0.05)


def test_normals_that_do_not_agree_are_not_used():
    signs = np.random.default_rng(0).choice([-1, 1], (len(BALL), 1))
    found = surface.reconstruct(Cloud(BALL, signs * BALL / 0.05))
    assert found.method == "shrink-wrap"
    assert found.mesh.volume > 4e-4


def test_half_a_ball_is_closed_straight():
    half = scans.sphere(2000)
    half = half[half[:, 2] > 0]
    found = surface.shrink_wrap(Cloud(half))
    assert "of all directions" in found.closing
    assert found.mesh.is_watertight
    assert found.mesh.volume == pytest.approx(2 / 3 * np.pi * 0.05**3, rel=0.25)
    assert surface.unseen(found.mesh, half) > accept.INVENTED


def test_a_ball_with_a_hole_is_nearly_whole():
    holed = scans.sphere(2000)
    holed = holed[holed[:, 2] > -0.035]
    found = surface.shrink_wrap(Cloud(holed))
    assert "of all directions" in found.closing
    assert found.mesh.volume > 0.75 * 4 / 3 * np.pi * 0.05**3


# ------------------------------------------------------------------ solids


def test_a_closed_mesh_is_kept():
    assert isinstance(solid.whole(Cloud(CUBE.vertices, None, CUBE.faces)), Trimesh)
    inside_out = solid.whole(Cloud(CUBE.vertices, None, CUBE.faces[:, ::-1]))
    assert inside_out.volume == pytest.approx(0.06**3)


def ring_that_overlaps():
    """A square rod bent into a ring, so far that its end goes into its beginning."""
    rod = creation.box((1.0, 0.02, 0.02)).subdivide().subdivide().subdivide()
    along, across, z = np.asarray(rod.vertices).T
    turn, radius = 2.2 * np.pi * along, 0.05 + across
    return np.column_stack([radius * np.cos(turn), radius * np.sin(turn), z]), rod.faces


@pytest.mark.parametrize("problem", ["open", "inside out", "2 pieces", "intersects itself"])
def test_a_mesh_that_bounds_no_solid_is_not(problem):
    faces, points = CUBE.faces.copy(), CUBE.vertices.copy()
    if problem == "open":
        faces = faces[:-1]
    elif problem == "inside out":
        faces[0] = faces[0, ::-1]
    elif problem == "2 pieces":
        points, faces = np.concatenate([points, points + 1]), np.concatenate([faces, faces + 8])
    else:
        points, faces = ring_that_overlaps()
    assert problem in solid.whole(Cloud(points, None, faces))


def test_a_pinched_mesh_is_parted():
    points = np.concatenate([CUBE.vertices, CUBE.vertices + np.array([0.06, 0.06, 0])])
    both = Trimesh(points, np.concatenate([CUBE.faces, CUBE.faces + 8]), process=False)
    both.merge_vertices()
    assert not both.is_watertight
    parted = solid.manifold(np.asarray(both.vertices), np.asarray(both.faces))
    assert parted.is_watertight
    assert parted.volume in (pytest.approx(0.06**3), pytest.approx(2 * 0.06**3))


def test_mass_and_inertia_of_a_cube():
    body = solid.body(surface.Surface(CUBE, "mesh", ""), 500.0, None, 16, 0)
    assert body.mass == pytest.approx(500 * 0.06**3)
    assert body.centre == pytest.approx([0.03] * 3)
    assert body.inertia == pytest.approx(np.eye(3) * body.mass * 0.06**2 / 6, abs=1e-12)
    assert len(body.parts) == 1
    assert solid.body(surface.Surface(CUBE, "mesh", ""), 500.0, 0.2, 16, 0).mass == pytest.approx(
        0.2
    )


def test_a_grasp_is_as_wide_as_the_box_across():
    corners = np.array(list(np.ndindex(2, 2, 2))) * (0.04, 0.1, 0.2)
    assert accept.grasp_width(corners, np.array([1.0, 0, 0, 0])) == pytest.approx((0.04, 0.0))
    lying = np.array([1.0, 0, 1, 0]) / np.sqrt(2)  # z along x
    assert accept.grasp_width(corners, lying)[0] == pytest.approx(0.1)


# ------------------------------------------------------------------ the whole


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cube")
    (folder / "my cube.stl").write_bytes(scans.stl(1000 * scans.CUBE_CORNERS, scans.CUBE_FACES))
    (made,) = ingest.ingest(folder / "my cube.stl", ScanSettings())
    assert made.record["unseen_fraction"] == 0.0  # far apart as its eight corners are
    return ingest.write(made, folder / "out")


def test_a_cube_is_accepted(cube):
    found = objects.load(cube)
    assert found.name == "my_cube"
    assert found.accepted
    assert found.size == pytest.approx((0.06,) * 3)
    assert found.mass == pytest.approx(0.108)
    assert found.grasp_width == pytest.approx(0.06, abs=1e-3)
    assert found.rest[0][0] == pytest.approx(0.03, abs=1e-3)
    assert len(found.rest) == 6
    assert found.record["units"] == "mm (guessed by its size)"
    assert found.record["drop"]["penetration"] < accept.PENETRATION
    assert (cube / "report.html").read_text().count("<tr>") > 20


def test_the_body_of_a_folder_is_the_one_that_was_measured(cube):
    model_ = objects.load(cube).spec().compile()
    assert model_.body("my_cube").mass == pytest.approx(0.108)
    assert model_.body("my_cube").ipos == pytest.approx([0] * 3)
    assert model_.body("my_cube").inertia == pytest.approx([0.108 * 0.06**2 / 6] * 3, rel=1e-5)
    touching = [i for i in range(model_.ngeom) if model_.geom_contype[i]]
    assert len(touching) == 1


def test_an_object_goes_into_a_scene(cube):
    spec = mujoco.MjSpec()
    spec.attach(objects.load(cube).spec(), prefix="a_", frame=spec.worldbody.add_frame())
    assert spec.compile().body("a_my_cube").mass == pytest.approx(0.108)


@pytest.mark.parametrize("change", ["schema", "mass", "missing", "mesh", "text"])
def test_a_folder_that_was_changed_is_refused(cube, tmp_path, change):
    folder = tmp_path / "my_cube"
    folder.mkdir()
    for file in cube.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    record = json.loads((folder / "object.json").read_text())
    if change == "schema":
        record["schema"] = "x"
    elif change == "mass":
        record["mass"] = -1
    elif change == "missing":
        del record["rest"]
    (folder / "object.json").write_text("{" if change == "text" else json.dumps(record))
    if change == "mesh":
        (folder / "surface.stl").write_bytes(b"")
    with pytest.raises(DeftlyError, match="scan") as caught:
        objects.load(folder)
    assert "\n" not in str(caught.value)


def test_the_same_seed_makes_the_same_files(tmp_path):
    (tmp_path / "ball.xyz").write_bytes(scans.xyz(scans.sphere(300)))
    made = [ingest.ingest(tmp_path / "ball.xyz", ScanSettings(parts=1))[0] for _ in range(2)]
    assert made[0].files == made[1].files
    assert json.dumps(made[0].record) == json.dumps(made[1].record)


def test_what_rocks_a_little_is_at_rest_and_what_rocks_much_is_not():
    """The faces that a scan's surface has are a little convex, never quite flat."""
    floor = '<geom type="plane" size="1 1 .1"/>'
    body = '<body><freejoint/><geom type="ellipsoid" size=".03 .03 .01" friction=".8 0 0"/></body>'
    lens = mujoco.MjModel.from_xml_string(
        f'<mujoco><option timestep=".002"/><worldbody>{floor}{body}</worldbody></mujoco>'
    )
    hull = np.array([[0, 0, -0.01], [0, 0, 0.01]])
    little = accept.drop(lens, (1.0, 0.003, 0.0, 0.0), hull)  # by 0.3 degrees, slower and slower
    assert little.seconds < 1.2
    assert little.penetration < accept.PENETRATION
    assert accept.drop(lens, (1.0, 0.05, 0.0, 0.0), hull).seconds > 2.0  # by 6 degrees


@pytest.mark.slow
def test_a_cloud_of_a_cube_comes_to_rest(tmp_path):
    rng, faces = np.random.default_rng(0), []
    for axis in range(3):
        for side in (-1, 1):
            face = rng.uniform(-1, 1, (1500, 3))
            face[:, axis] = side
            faces.append(face)
    (tmp_path / "cube.xyz").write_bytes(scans.xyz(0.03 * np.concatenate(faces)))
    (made,) = ingest.ingest(tmp_path / "cube.xyz", ScanSettings())
    assert made.record["drop"]["seconds"] < 1.0
    assert made.record["drop"]["penetration"] < 2e-4
    assert len(made.record["rest"]) == 6
    assert made.record["accepted"]


def test_what_lies_beside_an_object_comes_along_and_edits_are_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(scan_report, "pictures", lambda made: {})
    (tmp_path / "ball.xyz").write_bytes(scans.xyz(scans.sphere(300)))
    (made,) = ingest.ingest(tmp_path / "ball.xyz", ScanSettings(parts=1))
    folder = ingest.write(made, tmp_path / "out")
    (folder / "notes.txt").write_text("of mine")
    (folder / "photos").mkdir()
    (folder / "photos/front.txt").write_text("a picture")
    page = (folder / "report.html").read_text()
    (folder / "report.html").write_text("old")
    assert ingest.write(made, tmp_path / "out") == folder
    assert (folder / "notes.txt").read_text() == "of mine"
    assert (folder / "photos/front.txt").read_text() == "a picture"
    assert (folder / "report.html").read_text() == page
    model_file = folder / "object.xml"
    edited = model_file.read_text().replace("mujoco", "mujoco ", 1)
    model_file.write_text(edited)
    with pytest.raises(DeftlyError, match=r"object\.xml' was changed since it was made"):
        ingest.write(made, tmp_path / "out")
    assert model_file.read_text() == edited


NOTHING = {
    "one.xyz": (b"0 0 0\n", "1 different points"),
    "same.xyz": (b"1 1 1\n" * 500, "1 different points"),
    "nan.xyz": (b"nan nan nan\n" * 500, "0 different points"),
    "inf.xyz": (b"inf -inf 1e999\n" * 500, "0 different points"),
    "line.xyz": (scans.xyz(np.arange(100)[:, None] * np.ones(3)), "a plane or a line"),
    "plane.xyz": (scans.xyz(scans.box(500, (0.1, 0.1, 0))), "a plane or a line"),
    "grain.xyz": (scans.xyz(BALL * 1e-5), "--units"),
    "town.xyz": (scans.xyz(BALL * 1e5 * 1e3), "--units"),
    "flat.stl": (scans.stl(scans.CUBE_CORNERS * (1, 1, 0), scans.CUBE_FACES), "plane or a line"),
    "nothing.stl": (scans.stl(scans.CUBE_CORNERS, np.empty((0, 3), int)), "different points"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_makes_no_body_is_refused_in_a_line(tmp_path, name, capsys):
    data, said = NOTHING[name]
    (tmp_path / name).write_bytes(data)
    assert cli.main(["scan", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nobody_elses_folder_is_replaced(tmp_path, capsys):
    (tmp_path / "cube.stl").write_bytes(scans.stl(scans.CUBE_CORNERS, scans.CUBE_FACES))
    (tmp_path / "cube").mkdir()
    (tmp_path / "cube/mine.txt").write_text("mine")
    assert cli.main(["scan", str(tmp_path / "cube.stl"), "--out", str(tmp_path)]) == 2
    assert "no scanned object" in capsys.readouterr().err
    assert (tmp_path / "cube/mine.txt").read_text() == "mine"


def test_files_are_asked_for_and_of_different_names(tmp_path, capsys):
    assert cli.main(["scan", "--out", str(tmp_path / "out")]) == 2
    assert "deftly scan FILE... --out DIR" in capsys.readouterr().err
    for name in ("a.xyz", "a.stl"):
        (tmp_path / name).write_bytes(b"")
    files = [str(tmp_path / name) for name in ("a.xyz", "a.stl")]
    assert cli.main(["scan", *files, "--out", str(tmp_path / "out")]) == 2
    assert "called 'a'" in capsys.readouterr().err


def test_a_body_that_sinks_or_rolls_away_is_not_accepted():
    fine = {
        "watertight": True, "faces": 12, "volume": 2e-4, "hull_volume": 2e-4, "mass": 0.1, "parts": 1,
        "inertia": (np.eye(3) * 1e-4).tolist(), "parts_to_surface": 0.0, "distance_fraction": 0.001, "size": [0.06],
        "cloud_to_surface": 1e-4, "unseen_fraction": 0.0, "closing": "", "grasp_width": 0.06,
        "drop": {"seconds": 0.5, "penetration": 1e-4},
    }  # fmt: skip
    assert {f.level for f in accept.check(fine, 16, 0.08)} == {"ok"}
    changes = {
        "watertight": {"watertight": False},
        "volume": {"volume": -2e-4},
        "inertia": {"inertia": np.diag([1e-4, 1e-4, 3e-4]).tolist()},
        "parts": {"parts": 17},
        "distance": {"distance_fraction": 0.03},
        "closed": {"unseen_fraction": 0.3},
        "drop": {"drop": {"seconds": None, "penetration": 0.0}},
        "grasp": {"grasp_width": 0.1},
    }
    for name, change in changes.items():
        bad = [f.name for f in accept.check(fine | change, 16, 0.08) if f.level != "ok"]
        assert bad == [name]
    assert model.part_file(3) == "part_03.stl"
