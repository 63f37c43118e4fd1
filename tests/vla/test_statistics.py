"""Normalization statistics: right, and refused where they are others."""

import numpy as np
import pytest

from deftly.errors import DeftlyError
from deftly.vla import statistics
from deftly.vla.features import ACTION, OBS_STATE


def test_they_are_those_of_numpy():
    rows = np.random.default_rng(0).normal(3, 2, (5000, 2))
    found = statistics.of_numbers(rows, np.ones(2))
    np.testing.assert_allclose(found["mean"], rows.mean(0), atol=1e-5)
    np.testing.assert_allclose(found["std"], rows.std(0), atol=1e-5)
    np.testing.assert_allclose(found["q99"], np.quantile(rows, 0.99, axis=0), atol=1e-5)


def test_a_joint_that_never_moved_does_not_magnify_its_noise():
    rows = np.stack([np.full(100, 1.57), np.linspace(-1, 1, 100)], -1)
    found = statistics.of_numbers(rows, np.array([6.28, 2.0]))
    assert found["std"][0] == pytest.approx(0.0628)
    assert found["q99"][0] - found["q01"][0] > 0.1


def test_of_images_they_are_of_each_colour_in_0_to_1():
    images = np.zeros((300, 4, 4, 3), np.uint8)
    images[..., 1] = 255
    images[:150, ..., 2] = 255
    found = statistics.of_images(images)
    np.testing.assert_allclose(np.ravel(found["mean"]), [0, 1, 0.5], atol=1e-5)
    np.testing.assert_allclose(np.ravel(found["std"]), [1e-3, 1e-3, 0.5], atol=1e-4)
    assert np.shape(found["mean"]) == (3, 1, 1)


@pytest.fixture
def whole():
    rows = np.random.default_rng(0).normal(0, 1, (50, 3))
    each = statistics.of_numbers(rows, np.ones(3))
    return {OBS_STATE: each, ACTION: dict(each)}


def test_the_same_are_taken_and_others_named(whole):
    statistics.require_same(whole, dict(reversed(whole.items())), "another")
    other = {**whole, ACTION: statistics.of_numbers(np.ones((9, 3)), np.ones(3))}
    with pytest.raises(
        DeftlyError, match="statistics of a checkpoint are others, first those of 'action'"
    ):
        statistics.require_same(whole, other, "a checkpoint")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: tree.pop(ACTION), "'action' is missing"),
        (lambda tree: tree[OBS_STATE].pop("std"), "'std' is missing"),
        (lambda tree: tree[ACTION].update(mean=[1.0]), "'mean' of 'action' is not 3 finite"),
        (
            lambda tree: tree[ACTION].update(std=[1.0, 0.0, 1.0]),
            "'std' of 'action' is not positive",
        ),
        (lambda tree: tree[ACTION].update(q01=[None, 1, 1]), "statistics"),
        (lambda tree: tree[ACTION].update(q01=[9.0, 0, 0]), "'q01' of 'action' is above its 'q99'"),
        (
            lambda tree: tree[ACTION].update(max=[-9.0, 9, 9]),
            "'min' of 'action' is above its 'max'",
        ),
    ],
)
def test_damaged_ones_are_refused_in_a_line(whole, change, says):
    change(whole)
    with pytest.raises(DeftlyError, match=says):
        statistics.parse(whole, {OBS_STATE: (3,), ACTION: (3,)}, "a file")
    with pytest.raises(DeftlyError, match="no whole normalization statistics"):
        statistics.parse([], {OBS_STATE: (3,)}, "a file")
