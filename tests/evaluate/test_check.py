"""The check of a bundle: each line can fail, and says why."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest

from deftly.commands import main as cli
from deftly.config import RunsConfig
from deftly.contract import Act, Coupling, Joint, Observe, PolicyContract, RobotInterface, Signal
from deftly.errors import DeftlyError
from deftly.evaluate import check, handover
from deftly.evaluate.check import CheckSettings, examine
from deftly.learn import checkpoint
from deftly.policy import bundle
from deftly.robots import jaka_zu5
from deftly.tasks import load, shipped


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported.bundle, tmp_path / "b")


@pytest.fixture
def args(exported, tmp_path):
    return CheckSettings(task=exported.task, runs=RunsConfig(root=tmp_path))


def levels(folder, args):
    return {f.name: f.level for f in examine(folder, args)}


def line(folder, args, name):
    return next(f for f in examine(folder, args) if f.name == name)


def put(folder, name, data):
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "checksums.json").read_text())
    manifest["files"][name] = hashlib.sha256(data).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(manifest))


def two(a=None, acts=None, couplings=()):
    robot = RobotInterface(
        name="two",
        joints=(a or Joint("a", -1, 1, 0.2, 2), Joint("b", 0, 0.04, 0.04, 0.15, "m", grips=True)),
        signals=(Signal("joint_pos", 2),),
        couplings=couplings,
    )
    return PolicyContract(
        robot=robot,
        rate=20.0,
        observe_terms=(Observe("joint_pos", history=2),),
        act_terms=acts or (Act(("a",), "velocity", lowpass=0.9), Act(("b",), "gripper")),
    )


def test_a_fresh_bundle_is_fine(exported, args, capsys):
    found = examine(exported.bundle, args)
    assert {f.name for f in found if f.level != "ok"} == {"eval.json"}
    assert len(found) == 11
    texts = {f.name: f.text for f in found}
    assert "as with torch" in texts["closed loop"]
    assert "8 episodes" in texts["eval.json"]
    flags = ["--task", exported.task, "--episodes", "3"]
    assert cli.main(["check", str(exported.bundle), *flags]) == 0
    assert "3 episodes: " in capsys.readouterr().out
    assert cli.main(["check", "--bundle", str(exported.bundle), *flags]) == 0
    for words in (
        ["--bundle", str(exported.bundle)],
        [f"bundle={exported.bundle}"],
        [str(exported.bundle)],
    ):
        assert cli.main(["check", *words, f"task={exported.task}"]) == 0
        assert "as with torch" in capsys.readouterr().out


def test_a_task_that_is_named_first_is_the_one_that_is_meant(exported, capsys):
    given = ["--policy", str(exported.bundle)]
    assert cli.main(["check", "wildrobot-walk", *given]) == 1
    assert "not for wildrobot-walk" in capsys.readouterr().out
    assert cli.main(["check", exported.task, *given]) == 0


def test_a_damaged_bundle_fails_in_one_line(copy, args, capsys):
    (copy / "policy.onnx").write_bytes(b"")
    found = examine(copy, args)
    assert [(f.name, f.level) for f in found] == [("bundle", "fail")]
    assert cli.main(["check", str(copy)]) == 1
    assert "policy.onnx is not what was exported" in capsys.readouterr().out


def test_a_bundle_that_is_not_there_is_a_mistyped_command(capsys, tmp_path):
    for words in (
        ["check"],
        ["check", str(tmp_path / "x")],
        ["check", "--bundle", str(tmp_path / "x")],
    ):
        assert cli.main(words) == 2
        assert "deftly export TASK" in capsys.readouterr().err
    assert cli.main(["check", str(tmp_path), "--bundle", str(tmp_path)]) == 2
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    assert cli.main(["check", str(tmp_path / "run")]) == 2
    assert "no task, but a folder: give it as --policy" in capsys.readouterr().err
    assert cli.main(["check", "bundel"]) == 2
    assert "no bundle 'bundel' here, and no task 'bundel'" in capsys.readouterr().err


def test_golden_vectors_that_are_off(copy, args):
    with np.load(copy / "golden.npz", allow_pickle=False) as file:
        arrays = dict(file)
    arrays["action"][2] += 1e-4
    np.savez(copy / "g.npz", allow_pickle=False, **arrays)
    put(copy, "golden.npz", (copy / "g.npz").read_bytes())
    golden = line(copy, args, "golden")
    assert golden.level == "fail"
    assert "action differs by 0.0001, at most 1e-05" in golden.text


def test_a_robot_config_that_says_something_else(copy, args):
    text = (copy / "robot_config.yaml").read_text()
    put(copy, "robot_config.yaml", text.replace("upper: 1.0", "upper: 2.0", 1).encode())
    assert line(copy, args, "robot_config.yaml").level == "fail"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r.update(contract="0"), "measured under another contract"),
        (lambda r: r["policy"].update(sha256="0"), "measured with another checkpoint"),
        (lambda r: r.pop("success"), "is no report"),
        (lambda r: r["success"].update(rate="high"), "is no report"),
        (lambda r: r.update(success=5), "is no report"),
    ],
)
def test_a_report_of_something_else(copy, args, change, match):
    report = json.loads((copy / "eval.json").read_text())
    change(report)
    put(copy, "eval.json", json.dumps(report).encode())
    found = line(copy, args, "eval.json")
    assert found.level == "fail"
    assert match in found.text


# ------------------------------------------------------------------------- home


def test_home_is_held():
    assert not [*check._home_problems(two())]
    for kind, scale in (
        ("absolute", ()),
        ("relative", (0.5,)),
        ("delta", (0.1,)),
        ("velocity", ()),
    ):
        for lowpass in (0.0, 0.9):
            acts = (Act(("a",), kind, scale, lowpass), Act(("b",), "gripper"))
            assert not [*check._home_problems(two(acts=acts))], kind


def test_a_home_that_is_not_held_is_named():
    half_open = two(Joint("a", -1, 1, 0.2, 2, grips=True), acts=(Act(("a", "b"), "gripper"),))
    assert [p.split(":")[0] for p in check._home_problems(half_open)] == ["a"]
    coupled = two(acts=(Act(("b",), "gripper"),), couplings=(Coupling("a", (("b", 1.0),), 0.2),))
    assert [*check._home_problems(coupled)] == [
        "a: home is 0.2 rad, its target 0.24000000000000002"
    ]
    assert not [
        *check._home_problems(
            two(Joint("a", -1, 1, 0.24, 2), coupled.act_terms, coupled.robot.couplings)
        )
    ]


def test_the_home_of_the_jaka():
    """Its coupled joints hold home if their numbers are those of the couplings, not rounded to four digits."""
    cls = load("jaka-pick-cube")
    contract = cls(cls.Config()).contract()
    problems = [*check._home_problems(contract)]
    rounded = abs(jaka_zu5.HOME[4] - jaka_zu5.HALF_PI) > check.HOME_TOLERANCE
    assert [p.split(":")[0] for p in problems] == (
        ["joint_4", "joint_5", "joint_6"] if rounded else []
    )


# ----------------------------------------------------------------------- limits


def test_targets_stay_within_limits():
    assert not [*check._limit_problems(two())]


def test_a_contract_that_leaves_its_limits_is_named(monkeypatch):
    act = PolicyContract.act

    def careless(self, action, memory):
        targets, memory = act(self, action, memory)
        return targets + np.array([0.0, 1e-3], np.float32), memory

    monkeypatch.setattr(PolicyContract, "act", careless)
    assert [*check._limit_problems(two())] == ["b: a target outside 0 .. 0.04"]


# ------------------------------------------------------------------ closed loop


def test_a_policy_that_is_not_the_one_that_was_trained(copy, args, exported):
    """A network with one weight changed, golden vectors and checksums made to fit: only the closed loop can tell."""
    import onnx

    found = bundle.load(copy)
    model = onnx.load(copy / "policy.onnx")
    bias = next(t for t in model.graph.initializer if list(t.dims) == [2])
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1e-3), bias.name)
    )
    put(copy, "policy.onnx", model.SerializeToString())
    network = bundle.OnnxNetwork((copy / "policy.onnx").read_bytes(), found.contract)
    signals = {s.name: found.golden[f"signal/{s.name}"] for s in found.contract.signals}
    named = {f"signal/{name}": value for name, value in signals.items()}
    np.savez(
        copy / "g.npz",
        allow_pickle=False,
        **named,
        **bundle.replay(found.contract, network, signals),
    )
    put(copy, "golden.npz", (copy / "g.npz").read_bytes())
    assert {name for name, level in levels(copy, args).items() if level == "fail"} == {
        "closed loop"
    }
    assert "actions differ by 0.001, at most 1e-05" in line(copy, args, "closed loop").text


def test_another_checkpoint_is_refused(exported, args, tmp_path):
    source = checkpoint.load(exported.checkpoint)
    other = tmp_path / "other"
    networks = {"actor": source.policy().actor}
    task = load(args.task)(load(args.task).Config())
    checkpoint.write(
        other, task, networks, contract=source.contract, config="train: {}\n", iteration=1
    )
    given = CheckSettings(task=args.task, against=str(other), runs=args.runs)
    found = line(exported.bundle, given, "closed loop")
    assert found.level == "fail"
    assert "sha256 is another" in found.text


def test_the_checkpoint_may_lie_in_the_bundle(copy, args, exported):
    manifest = json.loads((copy / "checksums.json").read_text())
    manifest["checkpoint"]["label"] = "gone"
    (copy / "checksums.json").write_text(json.dumps(manifest))
    found = line(copy, args, "closed loop")
    assert found.level == "warn"
    assert "its checkpoint 'gone' is not here" in found.text
    shutil.copytree(exported.checkpoint, copy / "checkpoint")
    assert line(copy, args, "closed loop").level == "ok"


def test_a_task_that_is_not_deftlys(exported, args):
    found = line(exported.bundle, CheckSettings(runs=args.runs), "closed loop")
    assert found.level == "warn"
    assert "for the task 'rail', none of Deftly's" in found.text
    assert "--task FILE" in found.text


@pytest.mark.parametrize("given", [None, "jaka-pick-cube"])
def test_a_bundle_that_names_a_file_as_its_task_runs_none_of_it(copy, args, tmp_path, given):
    trap, sprung = tmp_path / "trap.py", tmp_path / "sprung"
    trap.write_text(f"import pathlib\npathlib.Path({str(sprung)!r}).touch()\n")
    manifest = json.loads((copy / "checksums.json").read_text())
    for name in (str(trap), f"{trap}:rail"):
        (copy / "checksums.json").write_text(json.dumps({**manifest, "task": name}))
        found = line(copy, CheckSettings(task=given, runs=args.runs), "closed loop")
        assert not sprung.exists()
        assert found.level == ("fail" if given else "warn")
        assert "not checked: the bundle was made for the task" in found.text


def test_another_task_is_refused(exported, args):
    found = line(
        exported.bundle, CheckSettings(task="jaka-pick-cube", runs=args.runs), "closed loop"
    )
    assert found.level == "fail"
    assert "jaka-pick-cube" in found.text


def test_a_task_that_is_asked_for_and_missing_fails(exported, args):
    found = line(exported.bundle, CheckSettings(task="gone.py", runs=args.runs), "closed loop")
    assert found.level == "fail"
    assert "no task file gone.py" in found.text


def test_without_the_train_extra_it_says_so(exported, args, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "deftly.evaluate.handover", None)
    monkeypatch.delattr("deftly.evaluate.handover", raising=False)
    found = line(exported.bundle, args, "closed loop")
    assert found.level == "warn"
    assert 'pip install "deftly[train]"' in found.text


def test_no_episodes():
    with pytest.raises(DeftlyError, match="episodes is 0"):
        CheckSettings(episodes=0)


@pytest.mark.parametrize("name", shipped())
def test_a_pose_goes_to_an_action_and_back(name):
    contract = load(name)(load(name).Config()).contract()
    assert list(check._pose_problems(contract)) == []


def test_an_action_that_misses_its_pose_is_named(monkeypatch):
    contract = two(acts=(Act(("a",), "absolute", lowpass=0.5), Act(("b",), "gripper")))
    assert list(check._pose_problems(contract)) == []
    exact = PolicyContract.action_for

    def off(self, targets, memory):
        return exact(self, targets, memory) + 1e-3

    monkeypatch.setattr(PolicyContract, "action_for", off)
    (problem,) = check._pose_problems(contract)
    assert problem.startswith("a: targets are off by 0.0005")


def test_a_bundle_of_a_robot_that_was_guarded_less_is_warned_of(
    exported, args, monkeypatch, capsys
):
    rebuild = handover.rebuild

    def guarded(*given):
        task, sim = rebuild(*given)
        contract = task.contract()
        joints = tuple(dataclasses.replace(j, frozen=0.1) for j in contract.robot.joints)
        robot = dataclasses.replace(contract.robot, joints=joints)
        better = dataclasses.replace(contract, robot=robot)
        monkeypatch.setattr(task, "contract", lambda: better)
        return task, sim

    monkeypatch.setattr(handover, "rebuild", guarded)
    texts = {f.name: f.text for f in examine(exported.bundle, args)}
    assert "as with torch" in texts["closed loop"]
    assert "guards it less: robot.joints[0].frozen is absent there, 0.1 here" in (
        capsys.readouterr().err
    )
