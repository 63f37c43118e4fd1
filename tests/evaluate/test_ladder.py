"""The ladder of conditions: what each rung changes, the report, its page and comparison, and gates in a file."""

import json
import re

import pytest

import deftly
from deftly.commands import main as cli
from deftly.commands.eval import EvalArgs
from deftly.config import LADDER, EnvConfig, Rung, RunsConfig, SimConfig
from deftly.errors import DeftlyError
from deftly.evaluate import ladder, ladder_report
from deftly.evaluate.evaluate import EvalSettings
from deftly.evaluate.gates import read_gates
from deftly.evaluate.source import resolve
from deftly.tasks import load, shipped

SETTINGS = EvalSettings(episodes=6, sim=SimConfig(threads=1))
FAR = Rung(
    "far",
    "starts farther away",
    {"env": {"noise": False}},
    levels={x: {"task": {"start": x, "goal": 0.02}} for x in (0.01, 0.4, 0.8)},
    unit="m",
)
"""The untrained policy stays where it starts: half succeed somewhere between."""
LONG = Rung("long", "longer", seconds=2.0, most_episodes=2)
NOISY = Rung("noisy", "noisier", {"task": {"noise": {"gaussian": 0.5}}}, stochastic=True)


@pytest.fixture(scope="module")
def found(exported):
    """The task and the policy."""
    cls = load(exported.task)
    runs = RunsConfig(root=exported.root)
    return cls(cls.Config()), resolve(str(exported.checkpoint), cls.name, runs)


@pytest.fixture(scope="module")
def climbed(found):
    gates = {"far": ("half>=0.001",), "long": ("steps<=40", "success>1")}
    reports = [*ladder.Ladder(*found, SETTINGS, (FAR, LONG, NOISY), gates).climb()]
    assert len(reports) == 3
    return {"command": "deftly eval rail --ladder", **reports[-1]}


def entry(result, name):
    return next(one for one in result["rungs"] if one["name"] == name)


# ------------------------------------------------------------------ rungs


def test_a_rung_with_levels_finds_where_half_succeed(climbed):
    far = entry(climbed, "far")
    assert [one["level"] for one in far["conditions"]][:2] == [0.01, 0.4]
    rates = [one["success"]["rate"] for one in far["conditions"]]
    assert rates[0] == 1.0
    assert rates[-1] < 0.5
    assert 0.01 < far["half"] < 0.4
    low, high = far["interval95"]
    assert low <= far["half"] <= high
    assert all(one["disturbances"]["noise"] is False for one in far["conditions"])


def test_no_severer_level_is_tried_where_none_succeed(climbed, found):
    levels = {x: {"task": {"start": 0.5, "goal": 1e-6}} for x in (1.0, 2.0, 3.0)}
    hopeless = Rung("hopeless", "none", levels=levels)
    (result,) = ladder.Ladder(*found, SETTINGS, (hopeless,)).climb()
    only = result["rungs"][0]
    assert [one["level"] for one in only["conditions"]] == [1.0]
    assert only["half"] is None
    assert "fewer than half succeed at every level" in ladder_report.conclusion(result)[0]
    assert ladder.level_means(only) == {"half": None}


def test_a_rung_has_its_own_length_and_episodes(climbed):
    long = entry(climbed, "long")["conditions"][0]
    assert (long["episodes"], entry(climbed, "long")["seconds"]) == (2, 2.0)
    assert entry(climbed, "noisy")["seconds"] == 1.0
    assert long["success"]["wilson95"][0] < 1.0
    assert set(long["metrics"]) == {"seconds", "reward_per_step"}
    low, high = long["metrics"]["seconds"]["mean95"]
    assert low <= long["metrics"]["seconds"]["mean"] <= high


def test_a_ladder_is_reproducible(climbed, found):
    again = [*ladder.Ladder(*found, SETTINGS, (NOISY,)).climb()][-1]

    def measured(result):
        conditions = entry(result, "noisy")["conditions"]
        return [{**one, "wall_seconds": 0.0} for one in conditions]

    assert measured(again) == measured(climbed)


def test_the_gates_of_a_ladder(climbed):
    assert [gate["holds"] for gate in entry(climbed, "far")["gates"]] == [True]
    assert [gate["holds"] for gate in entry(climbed, "long")["gates"]] == [True, False]
    assert not ladder.passed(climbed)
    lines = ladder_report.conclusion(climbed)
    assert any(line.startswith("gate long: success>1: measured") for line in lines)


def test_a_level_that_all_survive_is_what_a_gate_may_count_on():
    survived = {"level": 30.0, "success": {"rate": 0.9}}
    assert ladder.level_means({"conditions": [survived], "half": None}) == {"half": 30.0}
    assert ladder.level_means({"conditions": [survived], "half": 12.0}) == {"half": 12.0}
    assert ladder.level_means({"conditions": [], "half": None}) == {"half": None}


def test_what_cannot_be_done_is_skipped_and_fails_its_gates(exported, found):
    task, _ = found
    bundle = resolve(str(exported.bundle), task.name, RunsConfig(root=exported.root))
    rungs = ladder.choose(LADDER, ("stochastic", "wider"))
    (*_, result) = ladder.Ladder(
        task, bundle, SETTINGS, rungs, {"stochastic": ("success>=0",)}
    ).climb()
    assert "gives its mean action alone" in entry(result, "stochastic")["skipped"]
    assert entry(result, "wider")["skipped"] == "the task has no randomization"
    assert not ladder.passed(result)
    lines = ladder_report.conclusion(result)
    assert lines[1] == "wider: skipped, the task has no randomization"
    assert lines[2] == "gate stochastic: success>=0: measured no value, FAILED"
    assert "skipped: the task has no randomization" in ladder_report.html(result, task)


@pytest.mark.parametrize(
    ("rung", "message"),
    [
        (
            Rung("x", "", {"task": {"goall": 1.0}}),
            "rung 'x': task has no setting 'goall', did you mean 'goal'",
        ),
        (
            Rung("x", "", {"env": {"pushs": True}}),
            "rung 'x': env has no setting 'pushs', did you mean 'pushes'",
        ),
        (
            Rung("x", "", levels={1.0: {"task": {"noise": {"gausian": 1.0}}}}),
            r"task.noise has no setting 'gausian', did you mean 'gaussian'",
        ),
        (Rung("x", "", {"env": {"latency_ms": (5.0, 1.0)}}), "env.latency-ms is 5.0 1.0"),
        (Rung("x", "", {"task": {"rate": 33.0}}), "rail"),
    ],
)
def test_wrong_rungs_are_refused_before_an_episode(found, rung, message):
    with pytest.raises(DeftlyError, match=message):
        ladder.Ladder(*found, SETTINGS, (rung,))


@pytest.mark.parametrize("name", shipped())
def test_the_rungs_of_every_shipped_task_fit_it(name):
    cls = load(name)
    names = [rung.name for rung in cls.ladder]
    assert len(names) == len(set(names))
    for rung in cls.ladder:
        levels = list(rung.levels)
        assert levels == sorted(levels) or levels == sorted(levels, reverse=True)
        for level in (None, *levels):
            one = ladder.Ladder.__new__(ladder.Ladder)
            object.__setattr__(one, "task", cls(cls.Config()))
            object.__setattr__(one, "settings", SETTINGS)
            task, settings = one._condition(rung, level)
            assert task.contract().hash == one.task.contract().hash
            assert settings.episodes <= SETTINGS.episodes


# ------------------------------------------------------------------ page and file


def test_the_page_and_the_file(climbed, found, tmp_path):
    page = ladder_report.write(tmp_path, climbed, found[0]).read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"src=|url\((?!#)|@import|<script|<link|href=\"http", page)
    assert page.count("<svg") == 1
    assert "half succeed at" in page
    assert "deftly eval rail --ladder" in page
    text = (tmp_path / "ladder.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == json.loads(json.dumps(climbed))
    assert ladder.read(tmp_path) == json.loads(text)


def test_the_page_escapes_text(climbed, found):
    bad = "<img src=x onerror=alert(1)>"
    hostile = json.loads(json.dumps(climbed))
    hostile |= {"task": bad, "robot": bad, "command": bad}
    for one in hostile["rungs"]:
        one |= {"name": bad, "what": bad, "unit": bad}
    assert "<img" not in ladder_report.html(hostile, found[0])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"schema": "deftly.ladder/1"}', '{"schema": 1}']
)
def test_foreign_ladders(text, tmp_path):
    path = tmp_path / "ladder.json"
    path.write_text(text)
    with pytest.raises(DeftlyError, match=r"ladder\.json"):
        ladder.read(path)


def test_comparison_of_ladders(climbed):
    worse = json.loads(json.dumps(climbed))
    first = entry(worse, "far")["conditions"][0]
    first |= {"success": {"rate": 0.0, "count": 0, "wilson95": [0.0, 0.4]}}
    first["metrics"]["reward_per_step"]["mean"] -= 0.3
    side, lines = ladder_report.compare(climbed, worse)
    assert lines == ["success differs at the 5 % level: far 0.01 m"]
    changes = [str(cell) for cell in side.columns[-1]._cells]
    assert changes[0].startswith("-0.3 (")
    _, same = ladder_report.compare(climbed, climbed, ("seconds",))
    assert same == ["success differs at the 5 % level: under no condition"]


def test_a_comparison_says_what_only_one_ladder_has(climbed):
    less = json.loads(json.dumps(climbed))
    less["rungs"] = [rung for rung in less["rungs"] if rung["name"] != "far"]
    _, lines = ladder_report.compare(climbed, less)
    assert any(line.startswith("only before: far 0.01 m") for line in lines)
    _, lines = ladder_report.compare(less, climbed)
    assert any(line.startswith("only now: far 0.01 m") for line in lines)
    assert not any(line.startswith("only before") for line in lines)


# ------------------------------------------------------------------ the command


def command(exported, *more: str) -> list[str]:
    few = ("--episodes", "2", "--env.episode-steps", "5", "--sim.threads", "1")
    where = ("--policy", str(exported.checkpoint), "--runs.root", str(exported.root))
    return ["eval", exported.task, *few, *where, *more]


def test_the_command(exported, tmp_path, capsys):
    gates = tmp_path / "gates.yaml"
    gates.write_text("nominal: [steps <= 5, success >= 0 %]\n")
    rungs = ("--rungs", "nominal", "quiet", "--gates", str(gates))
    assert cli.main(command(exported, *rungs, "--out", str(tmp_path / "a"))) == 0
    out = capsys.readouterr().out
    assert "quiet: success " in out
    assert "gate nominal: steps<=5: measured 5, holds" in out
    gates.write_text("nominal: [steps < 5]\n")
    again = ("--out", str(tmp_path / "b"), "--compare", str(tmp_path / "a"))
    assert cli.main(command(exported, *rungs, *again)) == 1
    assert "success differs at the 5 % level: under no condition" in capsys.readouterr().out
    kept = json.loads((tmp_path / "b/ladder.json").read_text())
    assert [rung["name"] for rung in kept["rungs"]] == ["nominal", "quiet"]
    assert "--rungs nominal quiet" in kept["command"]


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (
            {},
            [],
            "the earlier ladder measured nominal, and this one does quiet: nothing is in both",
        ),
        ({"rungs": []}, [], "the earlier ladder measured nothing, and this one does quiet"),
        (
            {},
            ["nominal", "--by", "stepz"],
            "metric 'stepz', which the report lacks; it has seconds, reward_per_step",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_measured(
    change, flags, message, exported, climbed, tmp_path, capsys
):
    earlier = json.loads(json.dumps(climbed))
    earlier["rungs"] = [{**entry(earlier, "long"), "name": "nominal"}]
    path = tmp_path / "ladder.json"
    path.write_text(json.dumps({**earlier, **change}))
    words = ("--rungs", "quiet", *flags, "--compare", str(path), "--out", str(tmp_path / "out"))
    assert cli.main(command(exported, *words)) == 2
    told = capsys.readouterr()
    assert re.search(message, " ".join(told.err.split()))
    assert "success" not in told.out
    assert not (tmp_path / "out").exists()


def test_the_function(exported):
    gates = {"quiet": ["steps<=20", "steps>=20"]}
    where = {"runs": {"root": str(exported.root)}, "sim": {"threads": 1}, "episodes": 2}
    result = deftly.evaluate_ladder(
        exported.task, exported.checkpoint, rungs=["quiet"], gates=gates, **where
    )
    assert [gate["holds"] for gate in entry(result, "quiet")["gates"]] == [True, True]
    assert ladder.passed(result)
    with pytest.raises(DeftlyError, match="no rung 'loud'"):
        deftly.evaluate_ladder(exported.task, exported.checkpoint, rungs=["loud"], **where)


def test_a_file_of_gates_for_a_plain_evaluation(exported, tmp_path, capsys):
    gates = tmp_path / "gates.yaml"
    gates.write_text("- steps <= 5\n- success > 1\n")
    plain = ("--gates", str(gates), "--video", "False", "--out", str(tmp_path / "a"))
    assert cli.main(command(exported, *plain)) == 1
    out = capsys.readouterr().out
    assert "gate steps<=5: measured 5, holds" in out
    assert "gate success>1: measured" in out


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (
            "nominal: [stepz<3]",
            ["--ladder"],
            "rung 'nominal' names the unknown metric 'stepz', did you mean 'steps'",
        ),
        ("nomnal: [steps<3]", ["--ladder"], "unknown rung 'nomnal', did you mean 'nominal'"),
        ("quiet: [steps<3]", ["--rungs", "nominal"], "rung 'quiet', which --rungs leaves out"),
        ("nominal: [steps<3e999]", ["--ladder"], "is too large a number"),
        (
            "latency: [success>=0.5]",
            ["--ladder"],
            "'latency' names the unknown metric 'success'; known are half",
        ),
        ("nominal: [steps]", ["--ladder"], "cannot read the gate 'steps'"),
        ("nominal: [steps<3]", [], "add --ladder"),
        ("[steps<3]", ["--ladder"], "does not say of which rung"),
        ("[stepz<3]", [], "unknown metric 'stepz', did you mean 'steps'"),
        ("nominal: steps<3", ["--ladder"], "'nominal' has no list of gates"),
        ("3", ["--ladder"], "neither a list of gates nor a mapping"),
        ("", ["--ladder"], "neither a list of gates nor a mapping"),
        ("a: [b: {c", ["--ladder"], "gates.yaml"),
    ],
)
def test_files_of_gates_that_are_refused(exported, tmp_path, capsys, text, flags, message):
    gates = tmp_path / "gates.yaml"
    gates.write_text(text)
    words = command(exported, "--gates", str(gates), *flags, "--out", str(tmp_path / "a"))
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "a").exists()


def test_a_file_of_gates_is_bounded(tmp_path):
    path = tmp_path / "gates.yaml"
    path.write_text("[" + "success>=0.9, " * 30_000 + "]")
    with pytest.raises(DeftlyError, match=r"gates\.yaml"):
        read_gates(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ladder": True, "stochastic": True}, "--rungs stochastic"),
        ({"rungs": ("push",), "wider": 2.0}, "--rungs wider"),
        ({"ladder": True, "video": True}, "leave out --video"),
        ({"ladder": True, "gate": ("success>=0.9",)}, "--gates FILE"),
        ({"by": ("steps",)}, "add --compare"),
    ],
)
def test_settings_that_do_not_go_together(given, message):
    with pytest.raises(DeftlyError, match=message):
        EvalArgs(env=EnvConfig(), **given)


def test_an_unknown_rung_is_named(exported, capsys):
    assert cli.main(command(exported, "--rungs", "nomial")) == 2
    assert "no rung 'nomial', did you mean 'nominal'" in capsys.readouterr().err
