"""What `deftly train` makes of the older systems' words for a test."""

import pytest

from deftly.commands import eval as evaluation
from deftly.commands import main as cli
from deftly.commands import play


@pytest.fixture
def called(monkeypatch, tmp_path):
    """The commands that were called, each with its words."""
    calls = []
    monkeypatch.chdir(tmp_path)
    for module in (evaluation, play):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "main", lambda words, name=name: calls.append((name, words)))
    return calls


LATEST = ["cube", "checkpoint=latest"]


@pytest.mark.parametrize(
    ("words", "calls"),
    [
        (["test=true", "task=cube", "checkpoint=latest"], [("play", LATEST)]),
        (["cube", "training.test=True", "checkpoint=latest"], [("play", LATEST)]),
        (["cube", "--test", "checkpoint=latest"], [("play", LATEST)]),
        (["cube", "test=true", "env.render=false"], [("eval", ["cube"])]),
        (
            ["cube", "test=true", "render=false", "env.recordVideo=true"],
            [("eval", ["cube", "env.recordVideo=true"])],
        ),
        (["cube", "test=true", "recordVideo=true"], [("eval", ["cube", "recordVideo=true"])]),
        (
            ["cube", "test=true", "render=true", "env.recordVideo=true"],
            [("eval", ["cube", "env.recordVideo=true"]), ("play", ["cube", "render=true"])],
        ),
        (["cube", "-cn", "test_render"], [("play", ["cube", "-cn", "test_render"])]),
        (["cube", "config=test_record"], [("eval", ["cube", "config=test_record"])]),
        (["cube", "config=test_record", "render=true"], None),
    ],
)
def test_a_test_is_a_view_or_a_measurement(called, words, calls):
    cli.main(["train", *words])
    names = [name for name, _ in called]
    if calls is None:
        assert names == ["eval", "play"]
    else:
        assert called == calls


def test_a_measurement_that_fails_shows_nothing(called, monkeypatch):
    monkeypatch.setattr(evaluation, "main", lambda words: 1)
    assert cli.main(["train", "cube", "test=true", "render=true", "recordVideo=true"]) == 1
    assert called == []


def test_a_test_that_is_off_is_a_training(called, capsys):
    assert cli.main(["train", "test=false"]) == 2
    assert "which task?" in capsys.readouterr().err
    assert called == []


def test_launchers_of_several_processes_add_a_word(called):
    cli.main(["--local-rank=1", "train", "cube", "test=true"])
    assert called == [("play", ["cube"])]
