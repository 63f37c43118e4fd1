"""The comparison of algorithms: one training of each on the toy task, what it says and draws."""

import json
from pathlib import Path

import pytest

from deftly.errors import DeftlyError
from deftly_bench import algorithms, main

SLIDER = str(Path(__file__).parents[1] / "assets/slider.py")


def test_what_it_took_is_read_from_the_trainings_tables(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text(
        "iteration,steps,seconds,eval_success\n1,100,2.5,\n2,200,5.0,0.25\n3,300,7.5,1.0\n"
    )
    assert [*algorithms.evaluations(table)] == [(5.0, 200.0, 0.25), (7.5, 300.0, 1.0)]
    assert algorithms.last(table, "steps") == 300


def test_the_summary_is_of_those_that_reached_it():
    runs = [
        {"algorithm": "sac", "reached": True, "seconds": 10.0, "steps": 100.0},
        {"algorithm": "sac", "reached": True, "seconds": 30.0, "steps": 500.0},
        {"algorithm": "sac", "reached": False, "seconds": 99.0, "steps": 999.0},
        {"algorithm": "ddpg", "reached": False, "seconds": 99.0, "steps": 999.0},
    ]
    assert algorithms.summary(runs) == {
        "sac": {"reached": 2, "of": 3, "seconds": 20.0, "steps": 300.0},
        "ddpg": {"reached": 0, "of": 1},
    }


def test_an_unknown_algorithm_is_refused_in_one_line():
    with pytest.raises(DeftlyError, match="algorithms"):
        main([SLIDER, "--algorithms", "ppp"])
    with pytest.raises(DeftlyError, match=r"no task 'nothing'"):
        main(["nothing", "--algorithms"])


def test_without_names_all_are_meant():
    words = algorithms.without_bare_flag(["task", "--algorithms", "--seeds", "2"])
    assert words == ["task", "--seeds", "2"]
    assert algorithms.without_bare_flag(["task", "--algorithms"]) == ["task"]
    assert algorithms.without_bare_flag(["--algorithms", "sac"]) == ["--algorithms", "sac"]


@pytest.mark.slow
def test_two_algorithms_on_the_toy_task(tmp_path, capsys):
    out = tmp_path / "result.json"
    words = [SLIDER, "--algorithms", "ppo", "sac", "--seeds", "1", "--num-envs", "16"]
    words += ["--minutes", "2", "--eval-episodes", "32", "--success", "0.5", "--out", str(out)]
    assert main(words) == 0
    result = json.loads(out.read_text())
    assert [run["algorithm"] for run in result["runs"]] == ["ppo", "sac"]
    assert all(run["evaluations"] for run in result["runs"])
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "ppo seed 1" in capsys.readouterr().out
