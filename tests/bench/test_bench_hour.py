"""The benchmark of an hour, for seconds."""

import json

import pytest

from deftly.errors import DeftlyError
from deftly_bench import hour


def test_a_robot_walks_as_it_is_told_and_memory_is_watched(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(hour, "LOG_S", 2.0)
    monkeypatch.setattr(hour, "SAMPLE_S", 1.0)
    monkeypatch.setattr(hour, "COMMAND_S", 3.0)
    monkeypatch.setattr(hour, "GROWTH_MB", 1e6)  # libraries are still getting warm
    monkeypatch.setattr(hour.os, "sched_setaffinity", lambda *_: None)
    out = tmp_path / "hour.json"
    assert hour.main(["--fast", "True", "--seconds", "10", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["ticks"] == pytest.approx(501, abs=2)
    assert found["memory_mb"]["last"] > 50
    assert found["targets"] == {"memory grows by < 1e+06 MB": True}
    assert (found["status"], found["falls"]) == (0, 0)


@pytest.mark.parametrize(
    ("words", "said"), [(["--seconds", "5"], "seconds is 5"), (["--core", "999"], "core is 999")]
)
def test_what_makes_no_sense_is_refused(words, said):
    with pytest.raises(DeftlyError, match=said):
        hour.main(words)
