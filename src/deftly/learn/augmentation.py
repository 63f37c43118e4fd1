"""Images changed at random while a policy learns from them, so that it does not lean on what may differ later.

Shifts are DrQ's (Kostrikov et al. 2020, arXiv:2004.13649): a camera that is turned a little. Gains are another light.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to so many pixels both ways; what comes in at a border repeats it.

    Args:
        images: `(n, height, width, 3)`.
        pixels: Longest way along each axis, pixels.
        generator: Decides, on the device of the images.
    """
    count, height, width, _ = images.shape
    device = images.device
    shape = (2, count, 1)
    down, right = torch.randint(-pixels, pixels + 1, shape, generator=generator, device=device)
    rows = torch.arange(height, device=device) + down
    columns = torch.arange(width, device=device) + right
    rows = rows.clip(0, height - 1)
    columns = columns.clip(0, width - 1)
    every = torch.arange(count, device=device)
    return images[every[:, None, None], rows[:, :, None], columns[:, None, :]]


def relit(images: Tensor, gain: float, generator: torch.Generator) -> Tensor:
    """Each image brighter or darker, by factors from `1 - gain` to `1 + gain` of red, green and blue.

    Args:
        images: `(n, height, width, 3)` uint8.
        gain: Below 1.
        generator: Decides, on the device of the images.
    """
    shape = (len(images), 1, 1, 3)
    draw = torch.rand(shape, generator=generator, device=images.device)
    factor = 1.0 + gain * (2.0 * draw - 1.0)
    lit = (images * factor).round().clip(0, 255)
    return lit.to(torch.uint8)
