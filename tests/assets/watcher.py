"""The toy task seen by a camera: its policy is shown an image, and no position.

The image is painted from the state, a white square on black, so that tests need no OpenGL.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from deftly.contract import Observe, Signal
from deftly.tasks import load, task

Slider = load(str(Path(__file__).with_name("slider.py")))
SIZE = 48
"""Pixels of a side; the image shows -1 to 1 m of both axes."""


def paint(positions):
    """Images (n, SIZE, SIZE, 3) uint8 of blocks at (n, 2), m: row and column are x and y."""
    places = ((positions + 1) / 2 * (SIZE - 1)).round().long().clip(0, SIZE - 1)
    images = torch.zeros(len(positions), SIZE, SIZE, 3, dtype=torch.uint8)
    images[torch.arange(len(positions)), places[:, 0], places[:, 1]] = 255
    return images


def find(images):
    """Where the block is in images (n, SIZE, SIZE, 3): (n, 2), m."""
    brightest = images[..., 0].reshape(len(images), -1).argmax(-1)
    places = np.stack(np.unravel_index(brightest, (SIZE, SIZE)), -1)
    return places / (SIZE - 1) * 2 - 1


@task("watcher")
class Watcher(Slider):
    def contract(self):
        c = super().contract()
        front = Signal("front", (SIZE, SIZE, 3), "", dtype="uint8")
        robot = replace(c.robot, signals=(*c.robot.signals, front))
        seen = (Observe("joint_vel"), Observe("front", group="front"))
        return replace(c, robot=robot, observe_terms=seen)

    def signals(self, s):
        return {**super().signals(s), "front": paint(s.joint_pos)}
