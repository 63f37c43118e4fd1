import textwrap
from pathlib import Path

import pytest

from deftly.commands import doctor
from deftly.commands import main as cli
from deftly.config import RunsConfig
from deftly.console import Finding
from deftly.tasks import load

TASK = "jaka-pick-cube"


@pytest.fixture
def quick(monkeypatch):
    """A doctor that neither renders nor measures."""
    monkeypatch.setattr(doctor, "rendering", lambda: Finding("rendering", "ok", "not tried"))
    monkeypatch.setattr(doctor, "physics", lambda: Finding("physics", "ok", "not tried"))


def of(findings, name):
    return next(finding for finding in findings if finding.name == name)


def broken(tmp_path, body):
    """The cube task with a method or more replaced."""
    file = tmp_path / "mine.py"
    head = """
        import torch
        from deftly.tasks import task
        from deftly.tasks.jaka_pick_cube import PickCube

        @task("mine")
        class Mine(PickCube):
    """
    file.write_text(textwrap.dedent(head) + textwrap.indent(textwrap.dedent(body), "    "))
    return load(str(file))


def test_machine_and_installation_are_fit_here(capsys, quick, tmp_path):
    assert cli.main(["doctor", "--runs.root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for name in (
        "cores",
        "memory",
        "disk",
        "Python",
        "mujoco",
        "torch",
        "gymnasium",
        "GPU",
        "torch threads",
    ):
        assert f" {name} " in out
    assert "fail" not in out


def test_task_is_sound(capsys, quick):
    assert cli.main(["doctor", TASK]) == 0
    out = capsys.readouterr().out
    for part in (
        "11 observations, 4 actions",
        "keyframe",
        "every term has a weight",
        "are finite",
        "surrogate",
    ):
        assert part in out


def test_robot_signals_and_start_are_checked_in_seconds(capsys, quick):
    assert cli.main(["doctor", "wildrobot-walk"]) == 0
    out = capsys.readouterr().out
    for part in (
        "robot masses",
        "3.3 kg in all",
        "robot joint order",
        "robot gravity hold",
        "foot_switches 4",
        "held by the servos",
    ):
        assert part in out


def test_a_home_that_does_not_hold_itself_fails(tmp_path):
    """The robot starts with its knees bent and its hips straight, and falls back."""
    file = tmp_path / "squat.py"
    file.write_text(
        textwrap.dedent("""
            from deftly.tasks import task
            from deftly.tasks.wildrobot_stand import WILD, WildRobotStand

            @task("squat")
            class Squat(WildRobotStand):
                def reset(self, s, mask):
                    s.set_joint_pos(mask, s.joint_pos + s.tensor((-0.3, 0, 0.9, -0.4) * 2))
        """)
    )
    found = of(doctor.examine(load(str(file))), "hold")
    assert found.level == "fail"
    assert "fell after" in found.text


def test_a_robot_that_nobody_knows_is_said(tmp_path):
    file = Path(__file__).parents[1] / "assets" / "floating.py"
    found = of(doctor.examine(load(str(file))), "robot")
    assert found.level == "warn"
    assert "give the task an attribute `robot`" in found.text


def test_unknown_task(capsys, quick):
    assert cli.main(["doctor", "jaka-pick-cubes"]) == 2
    assert "did you mean 'jaka-pick-cube'" in capsys.readouterr().err


def test_versions():
    wanted = {wanted.name: wanted for wanted in doctor.requirements()}
    assert {"numpy", "mujoco", "torch"} <= set(wanted)
    assert not {"viser", "pytest"} & set(wanted)
    assert doctor.package(wanted["mujoco"]).level == "ok"
    assert doctor.package(wanted["mujoco"], "3.2.0").level == "warn"
    found = doctor.package(wanted["mujoco"], "4.0.0")
    assert found.level == "fail"
    assert "sparse Cholesky" in found.text
    assert doctor.package(wanted["torch"], "2.13.0+cu128").level == "ok"


def test_base_installation(monkeypatch, capsys, quick):
    """Without the train extra: warnings that say what to install; a task cannot be examined."""
    find, version = doctor.util.find_spec, doctor.metadata.version

    def installed(name):
        if name in ("torch", "mujoco", "gymnasium"):
            raise doctor.metadata.PackageNotFoundError(name)
        return version(name)

    def missing(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(
        doctor.util, "find_spec", lambda name: None if name in ("torch", "mujoco") else find(name)
    )
    monkeypatch.setattr(doctor.metadata, "version", installed)
    monkeypatch.setattr("deftly.tasks.load", missing)
    assert cli.main(["doctor"]) == 0
    assert 'pip install "deftly[train]"' in capsys.readouterr().out
    assert cli.main(["doctor", TASK]) == 1
    assert 'needs torch: pip install "deftly[train]"' in capsys.readouterr().err


def test_missing_base_package_fails():
    assert doctor.package(doctor.Requirement("surely-not-installed")).level == "fail"


def test_unwritable_disk(tmp_path, monkeypatch):
    assert doctor.disk(tmp_path / "new" / "root").level == "ok"
    found = doctor.disk(Path("/proc"))
    assert found.level == "fail"
    assert "--runs.root" in found.text


def test_little_memory_and_disk(monkeypatch):
    monkeypatch.setattr(doctor, "MEMORY_GB", 1e9)
    assert doctor.memory().level == "warn"
    monkeypatch.setattr(doctor, "DISK_GB", 1e9)
    assert doctor.disk(RunsConfig().root).level == "warn"


def test_rendering_says_what_to_install(monkeypatch):
    monkeypatch.setattr(doctor, "RENDER", "raise SystemExit(1)")
    found = doctor.rendering()
    assert found.level == "warn"
    assert "apt-get install" in found.text


def test_reference_scene():
    found = doctor.physics(seconds=0.05)
    assert found.level == "ok"
    assert "steps/s" in found.text


def test_reward_without_weight_is_named(tmp_path):
    cls = broken(
        tmp_path,
        """
        def rewards(self, s):
            return {**super().rewards(s), "bonus": torch.ones(s.num_envs)}
        """,
    )
    found = of(doctor.examine(cls), "rewards")
    assert found.level == "fail"
    assert "'bonus' has no weight" in found.text


def test_weight_without_reward_is_named(tmp_path):
    cls = broken(
        tmp_path,
        """
        def rewards(self, s):
            return {k: v for k, v in super().rewards(s).items() if k != "lift"}
        """,
    )
    assert "'lift' has no reward term" in of(doctor.examine(cls), "rewards").text


def test_reward_that_is_not_finite_is_named(tmp_path):
    cls = broken(
        tmp_path,
        """
        def rewards(self, s):
            return {**super().rewards(s), "reach": torch.full((s.num_envs,), torch.nan)}
        """,
    )
    found = of(doctor.examine(cls), "steps")
    assert found.level == "fail"
    assert "'reach' is not finite" in found.text


def test_error_says_where(tmp_path):
    cls = broken(
        tmp_path,
        """
        def signals(self, s):
            raise KeyError("elbow")
        """,
    )
    found = of(doctor.examine(cls), "task")
    assert found.level == "fail"
    assert "KeyError: 'elbow'" in found.text
    assert "mine.py:" in found.text


@pytest.mark.parametrize(
    ("warp", "level", "said"),
    [
        (None, "ok", "not installed"),
        ("3.17.0", "ok", "mujoco-warp 3.17.0"),
        ("3.11.2", "warn", "3.11.2 beside mujoco 3.1"),
    ],
)
def test_the_engine_on_warp_fits_mujoco(monkeypatch, warp, level, said):
    def version(name):
        found = {"mujoco": "3.17.0", "mujoco-warp": warp}[name]
        if found is None:
            raise doctor.metadata.PackageNotFoundError
        return found

    monkeypatch.setattr(doctor.metadata, "version", version)
    found = doctor.engines()
    assert found.level == level
    assert said in found.text


WATCHER = str(Path(__file__).parents[1] / "assets/watcher.py")


def test_a_task_of_images_is_sound(capsys, quick):
    """PPO does not learn from images: that is said, and is no fault of the task."""
    assert cli.main(["doctor", WATCHER]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 observations and images (front), 2 actions" in out
    assert "warn learning not tried: the policy sees images (front)" in out
    assert "deftly distill watcher" in out
