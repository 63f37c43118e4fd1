import dataclasses
import subprocess
import sys

import mujoco
import pytest
import yaml

from deftly.commands import main as cli
from deftly.commands import tasks
from deftly.contract import Observe
from deftly.tasks import load, shipped

TASK = "jaka-pick-cube"


def run(capsys, *argv):
    status = cli.main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_names_are_bare_and_import_nothing_heavy():
    code = "import sys; from deftly.commands.main import main; main(['tasks', '--names']); print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30
    )
    *names, modules = result.stdout.splitlines()
    assert names == list(shipped())
    assert not {"torch", "mujoco", "tyro", "rich", "numpy"} & set(modules.split())


def test_tasks_lists_every_task(capsys):
    status, out, _ = run(capsys, "tasks")
    assert status == 0
    (line,) = (line for line in out.splitlines() if line.split()[0] == TASK)
    for part in ("Pick the red cube up", "jaka-zu5", "11", "4", "15 Hz"):
        assert part in line


def test_task_is_shown_whole(capsys):
    status, out, _ = run(capsys, "tasks", TASK)
    cls = load(TASK)
    contract = cls(cls.Config()).contract()
    assert status == 0
    assert contract.hash in out
    assert "Randomization: cube position" in out
    for part in (
        "Joints",
        "Signals",
        "Observation (11)",
        "Action (4)",
        "Coupled joints",
        "Reward terms",
    ):
        assert f"{part}\n" in out
    assert all(name in out for name in contract.joint_names)


def test_observation_and_action_are_counted_through(capsys):
    _, out, _ = run(capsys, "tasks", TASK)
    starts = [line.split()[:2] for line in out.splitlines()]
    for row in (["0-6", "joint_pos"], ["7-9", "cube_pos"], ["10", "cube_dist"], ["3", "gripper"]):
        assert row in starts


def test_a_stride_counts_the_steps_that_are_seen(capsys, monkeypatch):
    cls = load(TASK)
    terms = (Observe("joint_pos", history=5, stride=2), Observe("cube_dist"))
    contract = dataclasses.replace(cls(cls.Config()).contract(), observe_terms=terms)
    monkeypatch.setattr(cls, "contract", lambda _: contract)
    _, out, _ = run(capsys, "tasks", TASK)
    rows = [line.split() for line in out.splitlines()]
    assert any(row[:2] == ["0-20", "joint_pos"] and row[-2:] == ["5", "2"] for row in rows)
    assert ["21", "cube_dist"] in [row[:2] for row in rows]


def test_tasks_are_listed_without_the_train_extra(capsys, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(tasks.tasks, "load", missing)
    status, out, _ = run(capsys, "tasks")
    assert status == 0
    assert "Pick the red cube up" in out


def test_shipped_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "POLICIES", tmp_path)
    assert tasks.shipped_policy(TASK) == "no"
    (tmp_path / TASK / "checkpoint").mkdir(parents=True)
    (tmp_path / TASK / "checkpoint/weights.safetensors").touch()
    assert tasks.shipped_policy(TASK) == "yes"
    (tmp_path / TASK / "eval.json").write_text('{"success": {"rate": 0.965, "count": 193}}')
    assert tasks.shipped_policy(TASK) == "yes, 96.5% success"


def test_robots(capsys):
    status, out, _ = run(capsys, "robots")
    assert status == 0
    assert "jaka-zu5" in out
    assert "25.4 kg" in out
    status, out, _ = run(capsys, "robots", "jaka-zu5")
    assert status == 0
    assert "gravity hold" in out


def test_robot_that_fails_its_check(capsys, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(
        "import dataclasses\nfrom deftly.robots.jaka_zu5 import ROBOT\n"
        "ROBOT = dataclasses.replace(ROBOT, joints=ROBOT.joints[::-1])\n"
    )
    status, out, _ = run(capsys, "robots", str(file))
    assert status == 1
    assert "fail" in out


def test_robot_xml_is_all_there_is_on_stdout(capsys):
    status, out, err = run(capsys, "robots", "jaka-zu5", "--xml")
    assert (status, err) == (0, "")
    assert mujoco.MjModel.from_xml_string(out).nu == 7


def test_robot_picture(capsys, tmp_path):
    file = tmp_path / "jaka.png"
    status, _, err = run(capsys, "robots", "jaka-zu5", "--png", str(file))
    if "no OpenGL" in err:
        pytest.skip(err)
    assert status == 0
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["tasks", "jaka-pick-cub"], "did you mean 'jaka-pick-cube'"),
        (["robots", "jaka"], "did you mean 'jaka-zu5'"),
        (["robots", "jaka-zu5", "--png", "x.jpg"], "such as x.png"),
        (["robots", "--xml"], "show one robot"),
        (["config"], "config needs a task: deftly config"),
        (["config", "nothing"], "no task 'nothing'"),
        (["config", TASK, "trian"], "no section 'trian': it is one of sim, env, task, train, runs"),
    ],
)
def test_wrong_input_is_refused_in_one_line(capsys, argv, says):
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert says in err
    assert err.count("\n") == 1


def test_config_can_be_fed_back(capsys, tmp_path):
    status, out, _ = run(capsys, "config", TASK, "numEnvs=77", "task.speed=0.9", "--name", "odd")
    assert status == 0
    tree = yaml.safe_load(out)
    assert (tree["env"]["num_envs"], tree["task"]["speed"], tree["name"]) == (77, 0.9, "odd")
    assert out.startswith(f"# deftly train {TASK} --config FILE\n")
    assert "# Environments stepped side by side." in out
    file = tmp_path / "config.yaml"
    file.write_text(out)
    assert run(capsys, "config", TASK, "--config", str(file))[1] == out


def test_config_prints_what_a_task_is_trained_with(capsys):
    defaults = load(TASK).defaults
    tree = yaml.safe_load(run(capsys, "config", TASK)[1])
    for section in ("env", "train"):
        assert defaults[section].items() <= tree[section].items()


def test_config_prints_a_section_that_trains_by_its_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, _ = run(capsys, "config", TASK, "train", "train.steps=9")
    assert list(yaml.safe_load(out)) == ["train"]
    (tmp_path / "MyTaskPPO.yaml").write_text(out)
    assert run(capsys, "config", TASK, "train", "train=MyTaskPPO")[1] == out
