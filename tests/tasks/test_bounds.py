"""Numbers of tasks that nobody means are refused by their bounds, not found out by physics that breaks."""

import re
from typing import get_args

import pytest
from annotated_types import Le, Lt
from typing_extensions import Doc

from deftly.config.fields import hints_of
from deftly.errors import DeftlyError
from deftly.tasks import load, shipped

UNIT = re.compile(r", (?:rad|m|m/s|rad/s|kg|N)[.;:]")


@pytest.mark.parametrize("name", shipped())
def test_a_number_with_a_unit_has_an_upper_bound(name):
    hints = hints_of(load(name).Config)
    assert hints
    for field, hint in hints.items():
        kind, *marks = get_args(hint) or (hint,)
        texts = [mark.documentation for mark in marks if isinstance(mark, Doc)]
        has_unit = any(UNIT.search(text) for text in texts)
        if kind is float and has_unit:
            assert any(isinstance(mark, Le | Lt) for mark in marks), field


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("jaka-pick-cube", {"home_noise": 50.0}, "task.home-noise is 50.0, but it must be 0 or"),
        ("jaka-pick-cube", {"cube_x": (100.0, 100.0)}, "task.cube-x is 100.0 100.0, but it must"),
        ("jaka-pick-cube", {"speed": 1e9}, "task.speed is 1000000000.0, .* at most 3.14"),
        ("panda-pick-place", {"home_noise": 1e6}, "task.home-noise is 1000000.0, but it must"),
        ("panda-pick-place", {"goal_height": (0.0, 9.0)}, "task.goal-height is 0.0 9.0, but it"),
        ("dexhand-box", {"box_mass": 1e9}, "task.box-mass is 1000000000.0, .* at most 100"),
        ("leap-right-cube-rotate", {"mass": 1e9}, "task.mass is 1000000000.0, .* at most 100"),
        ("wildrobot-walk", {"lift": 50.0}, "task.lift is 50.0, .* at most 2"),
    ],
)
def test_what_no_robot_could_do_is_refused(name, settings, says):
    with pytest.raises(DeftlyError, match=says):
        load(name).Config(**settings)
