"""The benchmark of the policy server: what is missing is missed, and a result says how much was asked."""

import pytest

from deftly.policy.protocol import PolicyError
from deftly_bench import serving


def test_a_robot_that_breaks_off_has_missed_its_requests(monkeypatch):
    robots = iter(range(serving.ROBOTS))

    def robot(endpoint, contract, period, count):
        if next(robots) == 3:
            raise PolicyError("refused")
        return [0.001] * count

    monkeypatch.setattr(serving, "run_robot", robot)
    monkeypatch.setattr(serving.threading, "excepthook", lambda _: None)
    found = serving.figures(serving.run_robots("", None, 0.5))
    assert (found["requests"], found["missed"]) == (80, 10)
    assert found["max_ms"] == pytest.approx(1.0)
