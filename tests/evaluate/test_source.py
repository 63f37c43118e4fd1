"""Which policy is meant: the same words in every command, said in the first line, and the same whatever form it has."""

import importlib
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from openpi_arm import serving
from toy_robot import running

from deftly import workspace
from deftly.commands import main as cli
from deftly.config import RunsConfig, SimConfig
from deftly.contract import JOINT_POS
from deftly.errors import DeftlyError
from deftly.evaluate.evaluate import EvalSettings, measure
from deftly.evaluate.source import (
    PolicySource,
    of_bundle,
    of_checkpoint,
    of_task,
    policy_words,
    prepare,
    resolve,
)
from deftly.files import write_json
from deftly.learn import checkpoint
from deftly.tasks import load

SHIPPED = "jaka-pick-cube"
MORE = {
    "eval": ["--video", "False", "--episodes", "2"],
    "play": ["--video", "x.mp4"],
    "serve": ["--bind", "tcp://127.0.0.1:*"],
    "sim2sim": ["--episodes", "1"],
    "run": ["--driver", "fake", "--seconds", "0.05"],
    "export": ["--episodes", "2"],
    "record": ["--out", "x.npz"],
    "check": [],
}
"""What each command needs beside a task and a policy."""


class Opened(DeftlyError):
    """The policy was opened: far enough."""


@pytest.fixture
def said(monkeypatch, tmp_path, capsys):
    """The first line of what a command prints until it opens its policy."""

    def opened(*_, **__):
        raise Opened("far enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PolicySource, "open", opened)
    monkeypatch.setattr("deftly.evaluate.export.to_onnx", opened)

    def run(command: str, words: list[str]) -> str:
        module = importlib.import_module(f"deftly.commands.{command}")
        capsys.readouterr()
        with suppress(DeftlyError):
            module.main([*words, *MORE[command]])
        lines = capsys.readouterr().out.splitlines()
        return lines[0] if lines else ""

    return run


@pytest.mark.parametrize("command", [name for name in MORE if name != "serve"])
@pytest.mark.parametrize("word", ["part", "folder", "default"])
def test_the_same_word_means_the_same_policy_in_every_command(command, word, exported, said):
    words = {
        "part": ["--policy", "rail_train"],
        "folder": ["--policy", str(exported.checkpoint)],
        "default": [],
    }[word]
    if command == "check":
        task = []
        words = words or ["--policy", "latest"]
    else:
        task = [exported.task]
    run = exported.checkpoint.parent.parent
    expected = f"policy: run {run.name} (iteration 1)"
    assert said(command, [*task, *words, "--runs.root", str(exported.root)]) == expected


@pytest.mark.parametrize("command", [name for name in MORE if name != "serve"])
def test_what_nobody_trained_is_shipped(command, said):
    iteration = resolve("shipped", SHIPPED, RunsConfig(), "bundle").iteration
    assert said(command, [SHIPPED]) == f"policy: shipped (iteration {iteration})"


@pytest.mark.parametrize("command", ["eval", "play", "sim2sim", "run", "record"])
def test_older_names_of_the_flag_mean_the_same(command, exported, said):
    expected = f"policy: bundle {exported.bundle} (iteration 1)"
    for words in (["--bundle", str(exported.bundle)], [f"bundle={exported.bundle}"]):
        assert said(command, [exported.task, *words]) == expected


def test_serve_finds_what_the_others_find(exported):
    from deftly.commands.serve import ServeArgs, find

    runs = RunsConfig(root=exported.root)
    for word in (None, "rail_train", str(exported.bundle)):
        assert (
            find(exported.task, ServeArgs(policy=word, runs=runs)).line
            == resolve(word, "rail", runs).line
        )


def test_a_hostile_folder_does_nothing_to_the_terminal(exported, tmp_path, capsys):
    folder = shutil.copytree(exported.bundle, tmp_path / "a\x1b[2Jb\x07 c\u202e")
    assert resolve(str(folder), None, RunsConfig(root=tmp_path)).line.isprintable()
    for argv in (["check", str(folder)], ["check", f"{folder}/nothing"], ["check", f"{folder}.x"]):
        cli.main(argv)
        said = capsys.readouterr()
        assert all(c.isprintable() or c == "\n" for c in said.out + said.err)
        assert "a?[2Jb" in said.out + said.err


def test_the_shipped_policy_is_one_in_both_forms():
    forms = [resolve("shipped", SHIPPED, RunsConfig(), form) for form in ("checkpoint", "bundle")]
    assert forms[0].sha256 == forms[1].sha256
    assert forms[0].line == forms[1].line
    assert forms[0].contract == forms[1].contract


def test_a_bundle_that_is_named_as_a_task_is_to_be_given_as_a_policy(exported, monkeypatch):
    monkeypatch.chdir(exported.bundle.parent)
    with pytest.raises(DeftlyError, match="is no task, but a folder: give it as --policy"):
        resolve(None, exported.bundle.name, RunsConfig(root=exported.root / "none"))


def test_a_misspelt_task_is_not_to_be_trained(tmp_path):
    with pytest.raises(DeftlyError) as found:
        resolve(None, "dexhand-bxo", RunsConfig(root=tmp_path))
    assert "did you mean 'dexhand-box'" in str(found.value)
    assert "deftly train" not in str(found.value)


SERVE, RUN = ["serve", "--bind", "tcp://127.0.0.1:*"], ["run", "--driver", "fake"]


@pytest.mark.parametrize("command", [SERVE, RUN, ["check"]])
@pytest.mark.parametrize("spec", [None, "shipped", "latest", "latest_test"])
def test_a_task_that_there_is_not_is_said_not_to_be_there(command, spec, tmp_path, capsys):
    verb, *words = command
    words += [] if spec is None else ["--policy", spec]
    words += ["--runs.root", str(tmp_path)]
    may_be_bundle = "no bundle 'nosuch' here, and " if (verb, spec) == ("check", None) else ""
    said = f"error: {may_be_bundle}no task 'nosuch' (`deftly tasks` lists them"
    assert cli.main([verb, "nosuch", *words]) == 2
    assert capsys.readouterr().err.startswith(said)
    assert cli.main([verb, "jaka-pick-cub", *words]) == 2
    assert "no task 'jaka-pick-cub', did you mean 'jaka-pick-cube'?" in capsys.readouterr().err


def test_a_task_of_the_users_is_one_though_it_has_no_policy(tmp_path):
    """In a file, or by the name that its runs have."""
    file = str(Path(__file__).parents[1] / "assets/slider.py")
    with pytest.raises(DeftlyError, match="no policy for slider"):
        of_task(None, file, RunsConfig(root=tmp_path))
    with pytest.raises(DeftlyError, match="no policy is shipped for slider"):
        of_task("shipped", file, RunsConfig(root=tmp_path))
    with pytest.raises(DeftlyError, match="no task 'slider'"):
        of_task(None, "slider", RunsConfig(root=tmp_path))
    workspace.create("slider", "train", RunsConfig(root=tmp_path))
    with pytest.raises(DeftlyError, match="no policy for slider"):
        of_task(None, "slider", RunsConfig(root=tmp_path))


def test_the_older_name_of_a_task_finds_its_policy():
    assert of_task("shipped", "BoxGrasping", RunsConfig()).task == "dexhand-box"


def test_a_policy_of_a_robot_that_was_guarded_less_is_taken_with_a_warning(capsys):
    source = resolve("shipped", "wildrobot-stand", RunsConfig())
    own = source.contract
    joints = tuple(replace(joint, excitation=0.0) for joint in own.robot.joints)
    contract = replace(own, robot=replace(own.robot, joints=joints))
    older = replace(source, loaded=replace(source.loaded, contract=contract))
    older.require(own, "wildrobot-stand")
    said = capsys.readouterr().err
    assert "warning: shipped is of an interface of its robot that guards it less" in said
    assert "robot.joints[0].excitation is" in said
    source.require(own, "wildrobot-stand")
    assert not capsys.readouterr().err
    with pytest.raises(DeftlyError, match="made under another contract"):
        source.require(contract, "wildrobot-stand")


@pytest.mark.parametrize(
    ("spec", "task", "message"),
    [
        (None, "slider", r"no policy for slider: no run .* 'deftly train slider'"),
        (None, None, "name a task, or give --policy"),
        ("shipped", None, "shipped needs a task"),
        ("shipped", "slider", "no policy is shipped for slider"),
        ("latest", "slider", "no train run of slider"),
        ("ws://host", "slider", "is no endpoint"),
    ],
)
def test_what_is_not_there_is_one_line(spec, task, message, tmp_path):
    with pytest.raises(DeftlyError, match=message) as found:
        resolve(spec, task, RunsConfig(root=tmp_path))
    assert "\n" not in str(found.value)


def test_a_bundle_beside_an_endpoint_gives_the_settings():
    words = ["slider", "--bundle", "b", "--server-endpoint", "tcp://127.0.0.1:1"]
    expected = ["slider", "--settings-from", "b", "--policy", "tcp://127.0.0.1:1"]
    assert policy_words(words) == expected
    assert policy_words(["checkpoint=a", "seed=1"]) == ["--policy=a", "seed=1"]
    with pytest.raises(DeftlyError, match="give one --policy"):
        policy_words(["--bundle", "a", "--checkpoint", "b"])


def test_a_policy_of_another_robot_is_refused_in_a_line_of_words(exported):
    found = of_checkpoint(checkpoint.load(exported.checkpoint))
    cls = load(SHIPPED)
    with pytest.raises(
        DeftlyError, match=r"is a policy of rail \(robot slider\), not of jaka-pick-cube"
    ) as error:
        found.require(cls(cls.Config()).contract(), SHIPPED)
    assert "{" not in str(error.value)


def test_latest_test_is_what_the_newest_test_run_measured(tmp_path):
    runs = RunsConfig(root=tmp_path)
    with pytest.raises(DeftlyError, match="no test run of jaka-pick-cube"):
        resolve("latest_test", SHIPPED, runs)
    folder = workspace.create(SHIPPED, "test", runs)
    with pytest.raises(DeftlyError, match="does not say which policy it measured"):
        resolve("latest_test", SHIPPED, runs)
    write_json(folder / "eval.json", {"policy": {"label": "shipped"}})
    assert resolve("latest_test", SHIPPED, runs).kind == "shipped"


@pytest.mark.parametrize("name", ["runs/x/nn/checkpoint_1000.pth", "model.pt", "model.zip"])
def test_a_checkpoint_of_another_system_is_one_line(name, tmp_path):
    with pytest.raises(DeftlyError, match="a checkpoint is a folder: name the run, or RUN:iter"):
        resolve(name, SHIPPED, RunsConfig(root=tmp_path))


# ------------------------------------------------------------ one policy in three forms


def test_checkpoint_bundle_and_endpoint_have_the_same_episodes(exported):
    cls = load(exported.task)
    task = cls(cls.Config())
    bundled = of_bundle(exported.bundle)
    settings = EvalSettings(episodes=12, sim=SimConfig(threads=1))
    with running(bundled.open()) as server, serving(bundled.open()) as websocket:
        endpoints = [PolicySource("endpoint", each.endpoint, None) for each in (server, websocket)]
        sources = (of_checkpoint(checkpoint.load(exported.checkpoint)), bundled, *endpoints)
        measured = [measure(task, source, settings) for source in sources]
    (_, first), *others = measured
    for report, values in others:
        assert report["success"] == measured[0][0]["success"]
        for name in ("success", "steps", "time_out"):
            np.testing.assert_array_equal(values[name], first[name])
        np.testing.assert_allclose(values["return"], first["return"], rtol=1e-3)


def test_only_a_checkpoint_can_be_drawn_from(exported):
    cls = load(exported.task)
    settings = EvalSettings(episodes=2, stochastic=True, sim=SimConfig(threads=1))
    with pytest.raises(
        DeftlyError, match=r"is a bundle and gives its mean action: leave out --stochastic"
    ):
        measure(cls(cls.Config()), of_bundle(exported.bundle), settings)
    with pytest.raises(DeftlyError, match="is an endpoint and gives its mean action"):
        measure(cls(cls.Config()), PolicySource("endpoint", "tcp://127.0.0.1:1", None), settings)
    drawn, _ = measure(
        cls(cls.Config()), of_checkpoint(checkpoint.load(exported.checkpoint)), settings
    )
    assert drawn["stochastic"] is True


def test_samples_of_the_same_starts_differ_and_the_interval_allows_for_it(exported):
    cls = load(exported.task)
    source = of_checkpoint(checkpoint.load(exported.checkpoint))
    settings = EvalSettings(episodes=4, samples=3, stochastic=True, sim=SimConfig(threads=1))
    found, values = measure(cls(cls.Config()), source, settings)
    assert found["episodes"] == 12
    assert found["samples"] == 3
    assert found["success"]["effective"] <= 12
    returns = values["return"].reshape(3, 4)
    assert (np.ptp(returns, axis=0) > 0).all()  # drawn anew
    once, first = measure(cls(cls.Config()), source, replace(settings, samples=1))
    np.testing.assert_array_equal(first["return"], returns[0])
    assert "samples" not in once
    with pytest.raises(DeftlyError, match="--samples runs each start again"):
        measure(cls(cls.Config()), source, replace(settings, stochastic=False))


def test_the_policy_sees_signals_alone(exported):
    policy = of_bundle(exported.bundle).open()
    signals = {s.name: np.zeros((3, s.size), np.float32) for s in policy.contract.signals}
    decision = policy.infer(signals)
    assert decision.action.shape == (3, policy.contract.action_size)
    assert decision.targets.shape == signals[JOINT_POS].shape


def test_threads_are_the_computers_not_the_policys():
    """The shipped hand's checkpoint was made with one."""
    from deftly.commands.eval import EvalArgs

    words = ["leap-right-cube-rotate", "--policy", "shipped"]
    _, args, source = prepare(EvalArgs, "eval", words)
    assert source is not None
    assert source.settings(load("leap-right-cube-rotate"))["sim"]["threads"] == 1
    assert args.sim.threads == 0
    assert prepare(EvalArgs, "eval", [*words, "--sim.threads", "2"])[1].sim.threads == 2
