"""Recordings: what is in them, and that they are whole."""

import json

import numpy as np
import pytest

from deftly.commands.record import main as record_main
from deftly.control import log
from deftly.data import record
from deftly.errors import DeftlyError


def make(exported, path, *more):
    words = [
        exported.task,
        "--bundle",
        str(exported.bundle),
        "--noise",
        "--latency-ms",
        "20",
        "--seed",
        "3",
    ]
    assert record_main([*words, "--out", str(path), *more]) == 0
    return log.read(path)


def test_a_recording_says_how_it_came_about(exported, tmp_path):
    found = make(exported, tmp_path / "a.npz", "--episodes", "2", "--safety.ramp-s", "0.5")
    facts, rows = found.facts, found.rows
    steps = facts["steps"]
    assert len(found) == steps.sum() + 2  # and a tick in READY each
    assert facts["num_steps"] == steps.sum()
    assert (str(facts["task"]), int(facts["seed"]), float(facts["rate"])) == ("rail", 3, 20.0)
    assert float(facts["step_dt"]) == 0.05
    assert (bool(facts["noise"]), float(facts["latency_ms"])) == (True, 20.0)
    assert json.loads(str(facts["safety"]))["ramp_s"] == 0.5
    assert json.loads(str(facts["settings"]))["task"]["episode_steps"] == 20
    assert str(facts["policy"]) == str(exported.bundle)
    assert len(str(facts["policy_sha256"])) == 64
    assert facts["state0"].shape[0] == len(facts["success"]) == len(facts["end"]) == 2
    assert not np.array_equal(*facts["state0"])
    assert sorted(set(rows["episode"].tolist())) == [0, 1]
    assert np.isfinite(rows["command"]).all()
    assert np.isfinite(rows["action"][rows["decided"]]).all()


def test_the_same_words_give_the_same_recording(exported, tmp_path):
    one, other = (make(exported, tmp_path / f"{name}.npz") for name in "ab")
    for name, values in one.rows.items():
        if not name.endswith("_ms"):
            np.testing.assert_array_equal(values, other.rows[name], name)
    np.testing.assert_array_equal(one.facts["state0"], other.facts["state0"])


def test_a_number_of_steps_cuts_the_last_episode_off(exported, tmp_path):
    found = make(exported, tmp_path / "a.npz", "--num-steps", "33")
    assert found.facts["num_steps"] == found.facts["steps"].sum() == 33
    assert found.rows["decided"].sum() == 33
    assert found.facts["end"][-1] == "cut_off"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--out FILE.npz"),
        (["--out", "x.csv"], "it must be a .npz file, such as x.npz"),
        (["--num-steps=-1"], "it must be 0 or more"),
    ],
)
def test_what_cannot_be_done_is_one_line(exported, words, message):
    with pytest.raises(DeftlyError, match=message):
        record_main([exported.task, "--bundle", str(exported.bundle), *words])


def test_a_policy_that_cannot_start_is_no_endless_recording(exported, tmp_path):
    words = ["--num-steps", "9", "--safety.start-envelope", "0.001"]
    with pytest.raises(DeftlyError, match="ended before its first step, fault/envelope"):
        make(exported, tmp_path / "a.npz", *words)
    assert not list(tmp_path.iterdir())


def interrupted(at, monkeypatch):
    """Ctrl-C in an episode."""
    whole = record.run_episode

    def until(robot, policy, safety, episode, **more):
        if episode == at:
            raise KeyboardInterrupt
        return whole(robot, policy, safety, episode, **more)

    monkeypatch.setattr(record, "run_episode", until)


def test_an_interrupt_leaves_the_whole_episodes(exported, tmp_path, monkeypatch):
    interrupted(2, monkeypatch)
    with pytest.raises(DeftlyError, match="has 2 of 9 episodes: it was interrupted"):
        make(exported, tmp_path / "a.npz", "--episodes", "9")
    assert len(log.read(tmp_path / "a.npz").facts["end"]) == 2


def test_an_interrupt_before_the_first_episode_writes_nothing(exported, tmp_path, monkeypatch):
    interrupted(0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make(exported, tmp_path / "a.npz", "--episodes", "9")
    assert not (tmp_path / "a.npz").exists()


def test_no_more_is_recorded_than_can_be_read_back(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "max_ticks", lambda contract: 60)
    for words in (("--episodes", "61"), ("--num-steps", "61")):
        with pytest.raises(DeftlyError, match="a recording holds 60 steps, and these are 61"):
            make(exported, tmp_path / "a.npz", *words)
    with pytest.raises(DeftlyError, match=r"has \d of 30 episodes: .* holds no more"):
        make(exported, tmp_path / "a.npz", "--episodes", "30")
    assert 30 < len(log.read(tmp_path / "a.npz")) <= 60


def test_an_episode_that_no_recording_holds_is_refused(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "max_ticks", lambda contract: 15)
    with pytest.raises(DeftlyError, match=r"holds 15 steps, and an episode has up to \d+: make"):
        make(exported, tmp_path / "a.npz")


def test_what_a_recording_replaces_is_said(exported, tmp_path, capsys):
    make(exported, tmp_path / "a.npz")
    assert "which replaces" not in capsys.readouterr().out
    make(exported, tmp_path / "a.npz")
    assert "which replaces what was there" in capsys.readouterr().out
