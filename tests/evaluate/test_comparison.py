"""Two reports side by side: differences with intervals, paired where the episodes are the same."""

import json

import numpy as np
import pytest

from deftly.commands import main as cli
from deftly.errors import DeftlyError
from deftly.evaluate.comparison import (
    Side,
    compare,
    difference,
    means,
    read_side,
    require_metrics,
)


def command(exported, out, *more: str) -> list[str]:
    few = ("--episodes", "6", "--sim.threads", "1", "--video", "False")
    where = ("--policy", str(exported.checkpoint), "--runs.root", str(exported.root))
    return ["eval", exported.task, *few, *where, "--out", str(out), *more]


@pytest.fixture(scope="module")
def before(exported, tmp_path_factory):
    out = tmp_path_factory.mktemp("before")
    assert cli.main(command(exported, out)) == 0
    return out


def test_the_same_episodes_are_compared_in_pairs(exported, before, tmp_path, capsys):
    """The same policy on the same episodes: no difference at all, in any pair."""
    more = ("--compare", str(before), "--by", "reward_per_step", "action_change")
    assert cli.main(command(exported, tmp_path, *more)) == 0
    out = capsys.readouterr().out
    assert "reward_per_step: +0 (95 % interval +0 to +0, paired), cannot be told apart" in out
    assert "action_change: +0 (95 % interval" in out
    assert "success cannot be told apart at the 5 % level, p = 1" in out


def test_other_episodes_are_not(exported, before, tmp_path, capsys):
    more = ("--compare", str(before), "--seed", "1")
    assert cli.main(command(exported, tmp_path, *more)) == 0
    out = capsys.readouterr().out
    assert "reward_per_step: " in out
    assert "paired" not in out


def test_the_default_is_reward_per_step(before):
    side = read_side(before)
    table, lines = compare(side, side)
    assert lines[-2].startswith("reward_per_step: +0 (")
    assert lines[-1].startswith("success cannot be told apart")
    assert [column.header for column in table.columns][-1] == "95 % interval"


def test_pairs_tell_a_small_difference(before):
    old = read_side(before)
    assert old.values is not None
    noise = 1e-4 * np.random.default_rng(0).normal(size=6)
    better = {**old.values, "reward_per_step": old.values["reward_per_step"] + 0.01 + noise}
    new = Side(old.report, better)
    _, lines = compare(old, new)
    assert "paired), differs at the 5 % level" in lines[-2]
    found = difference(old, new, "reward_per_step")
    assert found is not None
    assert found.low < 0.01 < found.high
    _, alone = compare(Side(old.report), new)
    assert "cannot be told apart" in alone[-2]  # without its episodes it is too little to tell


def test_pairs_of_success_are_tested_by_what_changed(before):
    old = read_side(before)
    assert old.values is not None
    report = {**old.report, "episodes": 6}
    lost = {**old.values, "success": np.zeros(6)}
    won = {**old.values, "success": np.ones(6)}
    _, lines = compare(Side(report, lost), Side(report, won))
    assert lines[-1] == "success differs at the 5 % level, p = 0.031"  # 2 / 2^6


def test_an_unknown_metric_is_named(exported, before, tmp_path, capsys):
    words = command(exported, tmp_path / "x", "--compare", str(before), "--by", "reward_per_stp")
    assert cli.main(words) == 2
    assert "did you mean 'reward_per_step'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    with pytest.raises(DeftlyError, match="which the report lacks"):
        require_metrics(("nonsense",), means(read_side(before).report))


@pytest.mark.parametrize("text", ["", "episode,steps\n0,x\n", "episode,steps\n0\n", "a,b\n1,2\n"])
def test_a_damaged_table_of_episodes_is_refused(before, tmp_path, text):
    (tmp_path / "eval.json").write_text((before / "eval.json").read_text())
    (tmp_path / "episodes.csv").write_text(text)
    with pytest.raises(DeftlyError, match=r"episodes\.csv is not the episodes of a report"):
        read_side(tmp_path)


def test_a_report_without_its_episodes_is_one_of_its_summaries(before, tmp_path):
    (tmp_path / "eval.json").write_text((before / "eval.json").read_text())
    assert read_side(tmp_path).values is None


@pytest.mark.parametrize("value", ["x", [1], {"mean": 1, "std": "x", "count": 3}])
def test_metrics_of_a_wrong_type_are_refused(before, tmp_path, value):
    report = json.loads((before / "eval.json").read_text())
    report["metrics"]["steps"] = value
    (tmp_path / "eval.json").write_text(json.dumps(report))
    with pytest.raises(DeftlyError, match=r"eval\.json is not a report"):
        read_side(tmp_path)
