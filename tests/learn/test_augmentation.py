"""Images are moved and relit at random, by what was asked for, and decided by the generator."""

import pytest
import torch

from deftly.learn.augmentation import relit, shifted


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def images(count: int = 64) -> torch.Tensor:
    """A black image with one white pixel in the middle, count times."""
    made = torch.zeros(count, 16, 16, 3, dtype=torch.uint8)
    made[:, 8, 8] = 255
    return made


@pytest.mark.parametrize("pixels", [1, 3])
def test_a_shift_moves_the_whole_image_by_all_of_its_ways(pixels):
    moved = shifted(images(256), pixels, generator())
    assert moved.dtype == torch.uint8
    assert (moved.flatten(1).sum(1) == 3 * 255).all()
    _, rows, columns, _ = torch.nonzero(moved, as_tuple=True)
    for ways in (rows - 8, columns - 8):
        assert set(ways.tolist()) == set(range(-pixels, pixels + 1))
    assert not torch.equal(rows, columns)


def test_a_border_is_repeated():
    bright = torch.full((32, 8, 8, 3), 200, dtype=torch.uint8)
    assert torch.equal(shifted(bright, 4, generator()), bright)


def test_a_gain_is_within_its_bounds_and_of_each_colour():
    grey = torch.full((500, 2, 2, 3), 100, dtype=torch.uint8)
    lit = relit(grey, 0.3, generator())
    assert lit.dtype == torch.uint8
    assert lit.min() >= 70
    assert lit.max() <= 130
    assert lit.min() < 75
    assert lit.max() > 125
    assert torch.equal(lit[:, :1, :1].expand_as(lit), lit)
    assert (lit[:, 0, 0, 0] != lit[:, 0, 0, 1]).any()


def test_white_stays_white():
    white = torch.full((50, 2, 2, 3), 255, dtype=torch.uint8)
    assert relit(white, 0.5, generator()).max() == 255


def test_the_generator_decides():
    for change in (lambda g: shifted(images(), 3, g), lambda g: relit(images() + 40, 0.3, g)):
        assert torch.equal(change(generator()), change(generator()))
