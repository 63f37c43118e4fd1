"""Evaluation: statistics against published numbers, gates, comparison, the report and its page."""

import csv
import ctypes.util
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml

from deftly import workspace
from deftly.commands import main as cli
from deftly.commands.eval import EvalArgs
from deftly.commands.eval import main as eval_main
from deftly.config import (
    EnvConfig,
    PPOConfig,
    RunsConfig,
    SimConfig,
    parse,
    to_yaml,
    with_setting,
    with_task,
)
from deftly.errors import DeftlyError
from deftly.evaluate import report
from deftly.evaluate.comparison import Side, compare, read_report
from deftly.evaluate.evaluate import measure
from deftly.evaluate.gates import check_gate, read_gate
from deftly.evaluate.source import policy_words
from deftly.files import WriteError
from deftly.learn import checkpoint
from deftly.learn.networks import Network, NetworkSpec
from deftly.stats import wilson
from deftly.tasks import load

TASK = "jaka-pick-cube"
SHORT = ("--episodes", "3", "--env.episode-steps", "20", "--sim.threads", "1", "--video", "False")


@dataclass(frozen=True)
class Saved:
    sim: SimConfig = field(default_factory=SimConfig)
    train: PPOConfig = field(default_factory=PPOConfig)


def make_task(**cfg):
    cls = load(TASK)
    return cls(cls.Config(**cfg))


def make_checkpoint(root: Path, **cfg) -> Path:
    """A train run with one untrained checkpoint."""
    task = make_task(**cfg)
    contract, train = task.contract(), PPOConfig(hidden=(16,))
    config = with_task(Saved, type(task.cfg))(SimConfig(preset="fast"), train, task.cfg)  # type: ignore[call-arg]
    folder = workspace.create(TASK, "train", RunsConfig(root=root)) / "checkpoints/iter_000007"
    actor = Network(
        NetworkSpec({"state": contract.obs_size()}, contract.action_size, (16,), head="gaussian")
    )
    checkpoint.write(
        folder, task, {"actor": actor}, contract=contract, config=to_yaml(config), iteration=7
    )
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("ws")
    make_checkpoint(root)
    return root


@pytest.fixture(scope="module")
def result(root):
    """A report folder."""
    assert eval_main([TASK, *SHORT, "--runs.root", str(root), "--out", str(root / "out")]) == 0
    return root / "out"


def run(root: Path, *more: str) -> int:
    return eval_main([TASK, *SHORT, "--runs.root", str(root), "--out", str(root / "again"), *more])


# ----------------------------------------------------------------------- gates


def a_report(rate=0.9, total=100, **more):
    count = round(rate * total)
    success = {"rate": rate, "count": count, "wilson95": list(wilson(count, total))}
    metrics = {
        "steps": {"mean": 40.0},
        "time_to_grasp": {"mean": None},
        "failed/cube_fell": {"mean": 0.0},
    }
    same = dict.fromkeys(
        ("world", "task", "contract", "seed", "preset", "disturbances", "stochastic"), 0
    )
    base = {
        "schema": report.SCHEMA,
        "episodes": total,
        "success": success,
        "metrics": metrics,
        "broken_physics": 0,
    }
    return {**same, **base, **more}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("success>=0.9", True),
        ("success>0.9", False),
        ("success >= 90%", True),
        ("steps<=40", True),
        ("steps<4e1", False),
        ("steps>-.5", True),
        ("failed/cube_fell<=0", True),
        ("broken_physics<1", True),
        ("time_to_grasp<100", False),  # no episode has one
    ],
)
def test_gates(text, holds):
    assert check_gate(text, report.means(a_report()))["holds"] is holds


@pytest.mark.parametrize(
    "text", ["success", "success=0.9", "success==1", ">=1", "success>=x", "__import__('os')>1", ""]
)
def test_gates_that_cannot_be_read(text):
    with pytest.raises(DeftlyError, match="write METRIC>=NUMBER"):
        EvalArgs(gate=(text,))


def test_no_gate_asks_for_a_success_above_1():
    with pytest.raises(DeftlyError, match="write the gate 'success>=95' as 'success>=95%'"):
        EvalArgs(gate=("success>=95",))
    assert read_gate("success>=95%") == ("success", ">=", 0.95)
    assert read_gate("steps<80") == ("steps", "<", 80)


def test_a_gate_on_an_unknown_metric_names_the_nearest():
    with pytest.raises(DeftlyError, match="unknown metric 'sucess', did you mean 'success'"):
        check_gate("sucess>1", report.means(a_report()))


def test_no_gate_is_lost_when_the_flag_is_repeated():
    words = [
        "--gate",
        "success>=0.9",
        "--seed",
        "1",
        "--gate",
        "steps<5",
        "slips<=1",
        "episodes=9",
        "gate=return>0",
    ]
    args = parse(EvalArgs, words, prog="deftly eval")
    assert args.gate == ("success>=0.9", "steps<5", "slips<=1", "return>0")
    assert (args.seed, args.episodes) == (1, 9)


@pytest.mark.parametrize(
    "given",
    [
        ["--policy", "part"],
        ["--policy=part"],
        ["policy=part"],
        ["--checkpoint", "part"],
        ["--checkpoint=part"],
        ["checkpoint=part"],
        ["training.checkpoint=part"],
        [],
    ],
)
def test_the_policy_is_replaced_by_the_exact_one(given):
    expected = ["--seed", "1", "--gate", "steps<5", "--policy", "runs/a b"]
    words = policy_words(["--seed", "1", *given, "--gate", "steps<5"])
    assert with_setting(words, "policy", "runs/a b") == expected


# ---------------------------------------------------------------------- report


def test_report(root, result):
    text = (result / "eval.json").read_text()
    data = json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    found = checkpoint.load(workspace.find_checkpoint("latest", TASK, RunsConfig(root=root)))
    assert data["schema"] == "deftly.eval/2"
    assert (data["task"], data["robot"], data["episodes"], data["seed"]) == (TASK, "jaka-zu5", 3, 0)
    assert data["contract"] == found.contract.hash == make_task().contract().hash
    assert data["policy"]["iteration"] == 7
    assert Path(data["policy"]["label"]) == found.path
    assert re.fullmatch("[0-9a-f]{64}", data["policy"]["sha256"])
    assert data["preset"] == "fast"  # the training's
    assert data["disturbances"] == {
        "randomize": True,
        "noise": True,
        "pushes": True,
        "latency_ms": [0.0, 0.0],
    }
    assert data["success"]["wilson95"] == pytest.approx(wilson(data["success"]["count"], 3))
    assert data["metrics"]["time_to_grasp"]["missing"] == 3
    assert data["metrics"]["time_to_grasp"]["mean"] is None
    assert data["metrics"]["seconds"]["mean"] == pytest.approx(
        data["metrics"]["steps"]["mean"] / 15
    )
    assert data["command"].startswith(f"deftly eval {TASK}")
    rows = list(csv.DictReader((result / "episodes.csv").open()))
    assert len(rows) == 3
    assert rows[0]["time_to_grasp"] == ""
    assert float(rows[0]["steps"]) == 20
    assert sorted(path.name for path in result.iterdir()) == [
        "episodes.csv",
        "eval.json",
        "report.html",
    ]


@pytest.mark.parametrize(
    "given", [["--checkpoint", "{}"], ["--checkpoint={}"], ["checkpoint={}"], []]
)
def test_the_saved_command_names_the_checkpoint_once(root, given):
    partial = f"{TASK}_train"
    found = checkpoint.load(workspace.find_checkpoint(partial, TASK, RunsConfig(root=root)))
    assert run(root, *(word.format(partial) for word in given), "--gate", "steps<99") == 0
    words = shlex.split(json.loads((root / "again/eval.json").read_text())["command"])
    assert words[:3] == ["deftly", "eval", TASK]
    assert words[-2:] == ["--policy", found.label]
    assert words.count("--policy") == 1
    assert not any("checkpoint" in word for word in words[2:-1])
    if not given:
        assert eval_main(words[2:]) == 0


def test_the_page_needs_nothing_else(result):
    page = (result / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "src=" not in page
    assert not re.search(r"url\((?!#)|@import|<script|<link|href=\"http", page)
    assert "deftly eval jaka-pick-cube" in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_escapes_text(result):
    data = json.loads((result / "eval.json").read_text())
    bad = "<img src=x onerror=alert(1)>"
    data |= {"task": bad, "robot": bad, "command": bad, "contract": bad, "version": bad}
    data["policy"] |= {"label": bad}
    data["metrics"] |= {bad: data["metrics"]["steps"], f"reward/{bad}": data["metrics"]["steps"]}
    data["gates"] = [{"gate": bad, "measured": None, "holds": False}]
    values = {name: np.ones(3) for name in ("success", "steps", "seconds")}
    assert "<img" not in report.html(data, values)


def test_the_page_carries_a_small_video(result, tmp_path):
    data = json.loads((result / "eval.json").read_text())
    values = {name: np.ones(3) for name in ("success", "steps", "seconds", "start_x", "start_y")}
    video = tmp_path / "video.mp4"
    video.write_bytes(b"0" * 100)
    assert "data:video/mp4;base64,MDAw" in report.html(data, values, video)
    video.write_bytes(b"0" * report.MAX_INLINE_VIDEO)
    page = report.html(data, values, video)
    assert 'src="video.mp4"' in page
    assert "Success by start position" in page


def test_measure_is_reproducible(root):
    found = checkpoint.load(workspace.find_checkpoint("latest", TASK, RunsConfig(root=root)))
    args = EvalArgs(
        episodes=2, env=EnvConfig(episode_steps=5), sim=SimConfig(threads=1), stochastic=True
    )
    (first, _), (again, _) = (measure(make_task(), found, args) for _ in range(2))
    for data in (first, again):
        del data["wall_seconds"]
    assert first == again
    other, _ = measure(
        make_task(), found, EvalArgs(episodes=2, env=EnvConfig(episode_steps=5), seed=3)
    )
    assert other["metrics"]["return"] != first["metrics"]["return"]


def test_what_is_typed_beats_a_file_beats_what_was_saved(root, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        yaml.safe_dump(
            {"sim": {"preset": "accurate"}, "task": {"hold_steps": 3, "success_height": 0.2}}
        )
    )
    assert run(root, "--config", str(mine), "--episodes", "1", "--task.hold-steps", "4") == 0
    assert json.loads((root / "again/eval.json").read_text())["preset"] == "accurate"


def test_another_contract_is_refused_by_name(root):
    with pytest.raises(DeftlyError, match=r"another contract.*rate"):
        run(root, "--task.rate", "20")


def test_exit_status_of_gates(root, capsys):
    assert run(root, "--gate", "steps<=20", "--gate", "success<=1") == 0
    assert run(root, "--gate", "steps<=20", "--gate", "success>=0.99") == 1
    out = capsys.readouterr().out
    assert "gate success>=0.99: measured 0, FAILED" in out
    assert "gate steps<=20: measured 20, holds" in out


def test_a_test_run_is_made(root):
    assert eval_main([TASK, *SHORT, "--runs.root", str(root)]) == 0
    assert (root / "runs/latest_test/eval.json").is_file()


def test_what_was_measured_is_said_where_no_report_can_be_written(root, monkeypatch, capsys):
    """As on a disk that is full: the run is gone, and the one before is the latest again."""
    assert eval_main([TASK, *SHORT, "--runs.root", str(root)]) == 0
    before = workspace.follow(root / "runs/latest_test")
    runs = sorted((root / "runs_all").iterdir())

    def full(*_, **__):
        raise WriteError("cannot write 'eval.json': No space left on device")

    monkeypatch.setattr(report, "write", full)
    capsys.readouterr()
    with pytest.raises(WriteError, match=r"No space left on device; choose .* --runs\.root DIR"):
        eval_main([TASK, *SHORT, "--runs.root", str(root)])
    assert "success" in capsys.readouterr().out
    assert sorted((root / "runs_all").iterdir()) == runs
    assert workspace.follow(root / "runs/latest_test") == before


@pytest.mark.skipif(
    not any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa")),
    reason="no GL library is installed",
)
def test_video(root):
    short = ("--episodes", "1", "--env.episode-steps", "2", "--camera", "wrist")
    assert run(root, *short, "--video", "None") == 0  # the default
    assert (root / "again/video.mp4").stat().st_size > 500
    assert "data:video/mp4" in (root / "again/report.html").read_text()


def test_what_was_measured_is_kept_and_said_before_the_video(root, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("deftly.render.write_video", interrupted)
    short = ("--episodes", "1", "--env.episode-steps", "2", "--out", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run(root, *short, "--video", "True")
    assert "report: " in capsys.readouterr().out
    assert json.loads((tmp_path / "eval.json").read_text())["episodes"] == 1
    assert "data:video/mp4" not in (tmp_path / "report.html").read_text()


def test_a_new_report_has_no_video_of_an_earlier_ones_episodes(root, tmp_path):
    (tmp_path / "video.mp4").write_text("somebody's own")
    short = ("--episodes", "1", "--env.episode-steps", "2", "--out", str(tmp_path))
    assert run(root, *short, "--video", "False") == 0
    assert (tmp_path / "video.mp4").exists()
    assert run(root, *short, "--video", "False") == 0
    assert not (tmp_path / "video.mp4").exists()


def test_no_video_without_opengl(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MUJOCO_GL", "off")
    out = ("--out", str(tmp_path), "--video")
    with pytest.raises(DeftlyError, match="forbids rendering"):
        run(root, *out)
    assert not list(tmp_path.iterdir())
    assert run(root, *out, "None") == 0
    assert capsys.readouterr().out.count("no video: MUJOCO_GL=off forbids rendering") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "episodes.csv",
        "eval.json",
        "report.html",
    ]


def test_the_page_explains_its_figures(result):
    page = (result / "report.html").read_text()
    names = json.loads((result / "eval.json").read_text())["metrics"]
    assert {"peak_press", "time_to_grasp", "slips", "action_change"} <= set(names)
    assert all(
        report.meaning(name, load(TASK)) and report.meaning(name, load(TASK)) in page
        for name in names
    )


def test_errors_are_one_line(root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    (root / "taken").write_text("")
    cases = {
        (): "eval needs a task",
        ("jaka-pick-cub",): "did you mean 'jaka-pick-cube'",
        (TASK, "checkpoint=nonsense"): "no run or checkpoint 'nonsense'",
        (TASK, "episodes=0"): "episodes is 0",
        (
            TASK,
            "--compare",
            "nowhere.json",
        ): "compare is nowhere.json, but there is no such file or folder",
        (TASK, *SHORT, "--gate", "stepz<3"): "unknown metric 'stepz', did you mean 'steps'",
    }
    for words, expected in cases.items():
        assert cli.main(["eval", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert expected in error
    assert cli.main(["eval", TASK, "--out", "taken", *SHORT]) == 2
    assert "out is taken, but that is a file: name another folder" in capsys.readouterr().err


# --------------------------------------------------------------------- compare


def test_comparison(root, result, capsys):
    assert run(root, "--compare", str(result / "eval.json"), "--seed", "1") == 0
    out = capsys.readouterr().out
    assert "warning: seed differs, 0 before and 1 now" in out
    assert "success cannot be told apart at the 5 % level, p = 1" in out
    assert "difference" in out


def test_comparison_tells_a_difference():
    _, lines = compare(Side(a_report(0.5)), Side(a_report(0.9)))
    assert "success differs at the 5 % level" in lines[-1]
    assert not any("warning" in line for line in lines)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"schema": "other/1"}', '{"schema": "deftly.eval/2"}']
)
def test_foreign_reports(text, tmp_path):
    path = tmp_path / "eval.json"
    path.write_text(text)
    with pytest.raises(DeftlyError, match=r"eval\.json"):
        read_report(path)


@pytest.mark.parametrize("gates", [None, 3, [{}], {}, [None]])
def test_a_report_with_odd_gates(result, tmp_path, gates):
    report = json.loads((result / "eval.json").read_text())
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({**report, "gates": gates}))
    if gates == {}:
        assert read_report(path)["gates"] == {}
        return
    with pytest.raises(DeftlyError, match=r"eval\.json is not a report"):
        read_report(path)


def test_binary_report(tmp_path):
    path = tmp_path / "eval.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DeftlyError, match="as a report of"):
        read_report(tmp_path)
