import pytest
from cube_settings import CubeArgs, read

from deftly.config import TrainArgs
from deftly.config.help import help_text


def test_help_shows_inherited_and_task_fields(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "--task.rate NUMBER",
        "Control rate, Hz. [> 0, default 50.0]",
        "Reward per metre of lift.",
    ):
        assert part in text
    assert "--task.ranges.cube-x NUMBER" in text
    assert "File of grasps." in text


def test_help_begins_with_the_usage():
    text = help_text(TrainArgs, "deftly train TASK")
    assert text.startswith("usage: deftly train TASK [settings]\n\nTrain a policy")
    assert "\nenv: The batch of environments" in text


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_help_fits_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_text(CubeArgs, "deftly train TASK").splitlines()
    assert max(map(len, lines)) <= max(columns, 86)


def test_a_field_takes_one_or_two_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    lines = help_text(TrainArgs, "deftly train TASK").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("  --")]
    assert [
        lines[i] for i in starts if "".join(line[:3] for line in lines[i + 1 : i + 3]) == 6 * " "
    ] == []
    assert len(starts) > 40


def test_a_task_s_own_settings_are_the_defaults_that_are_shown():
    filed = {"train": {"init_std": 0.25}, "env": {"num_envs": 77}}
    before, after = help_text(TrainArgs, "x"), help_text(TrainArgs, "x", filed=filed)
    assert "default 0.25" not in before
    assert "default 0.25" in after
    assert "default 77" in after
    assert len(after.splitlines()) == len(before.splitlines())
