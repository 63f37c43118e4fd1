import numpy as np
import pytest
import torch

from deftly.commands.grasps import main as grasps_main
from deftly.errors import DeftlyError
from deftly.objects.grasp_cache import Grasps
from deftly.tasks import load

TASK = "leap-right-cube-rotate"
SMALL = ["--num-envs", "16", "--num-sizes", "3", "--per-size", "8", "--settle-s", "1"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("grasps") / "right.npz"
    assert grasps_main([TASK, *SMALL, "--out", str(path), "--no-render"]) == 0
    return path


def contract(name: str = TASK):
    cls = load(name)
    return cls(cls.Config()).contract()


def rewrite(path, tmp_path, **changes):
    with np.load(path, allow_pickle=False) as file:
        content = {**{name: file[name] for name in file.files}, **changes}
    np.savez(tmp_path / "changed.npz", **{k: v for k, v in content.items() if v is not None})
    return tmp_path / "changed.npz"


def test_a_cache_says_what_it_holds(cache):
    with np.load(cache, allow_pickle=False) as file:
        assert str(file["schema"]) == "deftly.grasps/1"
        assert str(file["hand"]) == "leap-right"
        assert str(file["contract"]) == contract().hash
        assert [*map(str, file["joint_names"])] == [*contract().joint_names]
        sizes, counts = np.unique(file["cube_half"], return_counts=True)
        assert sizes == pytest.approx([0.03375, 0.0375, 0.04125])
        assert (counts == 8).all()  # balanced over the sizes
        assert file["joint_pos"].shape == (24, 16)
        assert file["cube_pose"].shape == (24, 7)


def test_the_same_seed_finds_the_same_grasps(cache, tmp_path):
    again = tmp_path / "again.npz"
    grasps_main([TASK, *SMALL, "--out", str(again), "--no-render"])
    with np.load(cache) as a, np.load(again) as b:
        assert all((a[name] == b[name]).all() for name in a.files)


def test_an_episode_starts_from_pose_and_joints_of_a_grasp_of_its_size(cache):
    from dataclasses import replace

    from deftly.config import EnvConfig, SimConfig
    from deftly.env import Env

    cls = load(TASK)
    env = Env(
        cls(replace(cls.Config(), grasps=cache, ready_s=(0.0, 0.0))),
        EnvConfig(num_envs=32),
        SimConfig(threads=1),
        0,
    )
    found = Grasps.load(cache, TASK, contract())
    half = env.task._half(env.state)
    for i in range(32):
        same = (found.joint_pos - env.state.joint_pos[i]).abs().amax(-1) < 1e-6
        assert same.sum() == 1
        row = int(same.nonzero()[0])
        assert env.state.joint("cube")[i] == pytest.approx(found.cube_pose[row], abs=1e-9)
        # half the step between the cache's sizes
        assert abs(found.cube_half[row] - half[i]) <= 0.0019


def test_draw_takes_every_grasp_of_the_nearest_size(cache):
    found = Grasps.load(cache, TASK, contract())
    joints, _ = found.draw(torch.full((8,), 0.038, dtype=torch.float64), torch.arange(8) / 8)
    assert (joints == found.joint_pos[8:16]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": "deftly.grasps/9"}, "schema"),
        ({"hand": "leap-left"}, "leap-left"),
        ({"joint_names": np.array(["a"] * 16)}, "holds grasps of"),
        ({"joint_pos": np.zeros((3, 16))}, "corrupt"),
        ({"cube_pose": np.full((24, 7), np.nan)}, "not finite"),
        ({"cube_half": None}, "as a grasp cache: it holds no 'cube_half'"),
    ],
)
def test_a_foreign_or_corrupt_cache_is_refused_in_one_line(cache, tmp_path, changes, words):
    with pytest.raises(DeftlyError, match=words) as refused:
        Grasps.load(rewrite(cache, tmp_path, **changes), TASK, contract())
    assert "\n" not in str(refused.value)
    assert "deftly grasps" in str(refused.value)


def test_a_missing_and_a_broken_file_are_refused(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nonsense")
    for path in (tmp_path / "none.npz", tmp_path / "broken.npz"):
        with pytest.raises(DeftlyError, match="deftly grasps"):
            Grasps.load(path, TASK, contract())


def test_training_stops_at_a_foreign_cache_before_it_makes_a_run(cache, capsys, tmp_path):
    from deftly.commands.main import main

    flags = [
        "--task.grasps",
        str(cache),
        "train.max_iterations=1",
        "env.num_envs=4",
        "--runs.root",
        str(tmp_path),
    ]
    assert main(["train", "leap-left-cube-rotate", *flags]) != 0
    assert "leap-left" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_bad_arguments(tmp_path):
    for flags in (["--out", "x.json"], ["--out", "x.npz", "--num-sizes", "0"]):
        with pytest.raises(DeftlyError, match="but"):
            grasps_main([TASK, *flags])
    with pytest.raises(DeftlyError, match="without a grasp cache"):
        grasps_main(["jaka-pick-cube", "--out", str(tmp_path / "x.npz")])


@pytest.mark.parametrize(
    "name", ["leap-right-cube-rotate", "leap-left-cube-rotate", "leap-left-custom-cube-rotate"]
)
def test_a_sample_of_each_shipped_cache_still_holds(name):
    """Grasps of every size, started as an episode starts, on the plain hand: none is lost, the cube stays put."""
    from deftly.config import EnvConfig, SimConfig
    from deftly.env import Env

    cls = load(name)
    task = cls(cls.Config())
    found = Grasps.load(None, name, task.contract())
    sizes, counts = torch.unique(found.cube_half, return_counts=True)
    assert len(sizes) == 32
    assert counts.min() == counts.max() == 64
    env = Env(task, EnvConfig(num_envs=64, noise=False), SimConfig(threads=1), 5)
    env.auto_reset = False
    held = torch.ones(64, dtype=torch.bool)
    for _ in range(40):
        held &= ~env.step(torch.zeros(64, 16)).terminated
    assert held.all()
    metrics = task.metrics(env.state)
    assert metrics["mean_drift"].median() < 0.004
    assert metrics["mean_tilt"].median() < 0.08
    assert metrics["net_turns"].abs().max() < 0.1
