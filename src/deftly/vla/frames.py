"""The frames of a data set in memory, as batches: what the robot saw, and the chunk of actions that followed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deftly.vla.features import ACTION, IMAGES, OBS_STATE


class Frames(NamedTuple):
    """All frames of a data set; arrays lead with the frames."""

    images: dict[str, np.ndarray]
    """By camera, (n, size, size, 3) uint8."""
    state: np.ndarray
    """(n, k) float32."""
    action: np.ndarray
    """(n, m) float32."""
    last: np.ndarray
    """Index of the last frame of each frame's episode, (n,)."""
    prompts: list[str]
    """What the robot was told, for each frame."""

    def __len__(self) -> int:
        return len(self.state)

    @property
    def size(self) -> int:
        """Width and height of the images, pixels."""
        return next(iter(self.images.values())).shape[1]

    def batch(self, rows: np.ndarray, chunk: int) -> dict[str, Any]:
        """What a model learns from: observations, and `chunk` actions from each row on.

        Actions beyond the end of an episode repeat its last, and are marked in `action_is_pad` (b, chunk).
        """
        after = rows[:, None] + np.arange(chunk)
        padded = after > self.last[rows, None]
        actions = self.action[np.minimum(after, self.last[rows, None])]
        return {
            **{IMAGES + name: to_float(each[rows]) for name, each in self.images.items()},
            OBS_STATE: torch.from_numpy(self.state[rows]),
            ACTION: torch.from_numpy(actions),
            "action_is_pad": torch.from_numpy(padded),
            "task": [self.prompts[row] for row in rows],
        }


def to_float(images: np.ndarray) -> Tensor:
    """Images (n, height, width, 3) uint8 as a model takes them: (n, 3, height, width) float32 in 0 .. 1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255.0


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Images (n, height, width, 3) uint8 in another size, square, antialiased; the same code learns and acts."""
    if not size or images.shape[1] == size:
        return images
    found = functional.interpolate(
        to_float(images), size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return (found * 255.0).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
