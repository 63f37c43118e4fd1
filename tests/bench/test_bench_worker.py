"""The benchmark of the worker thread: what it measures, and that a call that hangs is given up."""

import json

import pytest

from deftly.errors import DeftlyError
from deftly_bench import worker


def test_it_measures_hand_over_and_giving_up(tmp_path, capsys):
    out = tmp_path / "worker.json"
    worker.main(["--calls", "100", "--hangs", "10", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found == json.loads(capsys.readouterr().out)
    assert found["nothing"]["worker"]["p50_ms"] > found["nothing"]["direct"]["p50_ms"]
    assert found["given up late"]["calls"] == 10
    assert found["given up late"]["p50_ms"] >= 0
    assert len(found["targets"]) == 2


def test_too_few_calls_are_refused_in_one_line():
    with pytest.raises(DeftlyError, match="calls must be 100 or more"):
        worker.main(["--calls", "3"])
