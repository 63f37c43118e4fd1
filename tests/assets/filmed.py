"""The toy task with a camera above it and words, so that demonstrations of it take a moment."""

from pathlib import Path

import mujoco
import numpy as np

from deftly.policy.protocol import ContractPolicy
from deftly.sim import scene
from deftly.tasks import load, task

Slider = load(str(Path(__file__).with_name("slider.py")))
FILE = str(Path(__file__))


@task("filmed")
class Filmed(Slider):
    prompts = ("push the block to the middle", "centre the block")

    def scene(self):
        s = super().scene()
        scene.add_camera(s, "front", eye=(1.5, -1.5, 1.5), target=(0.0, 0.0, 0.1), fovy=60)
        s.worldbody.add_light(
            pos=[0, 0, 4], dir=[0, 0, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
        )
        return s


def home(observation):
    """Drives the block to the middle: the last two numbers of the positions are the newest."""
    return np.clip(-4.0 * observation[:, 2:4], -1, 1).astype(np.float32)


def expert(filmed):
    return ContractPolicy(filmed.contract(), home)
