"""The toy task with noisy sensors, and with settings that are all plain, so that a bundle can hold them."""

from dataclasses import dataclass, field
from pathlib import Path

from deftly.config import TaskConfig
from deftly.sim.sensors import Noise
from deftly.tasks import load, task

Slider = load(str(Path(__file__).with_name("slider.py")))


@dataclass(frozen=True)
class Weights:
    near: float = 1.0
    moved: float = -0.1


@dataclass(frozen=True)
class RailConfig(TaskConfig):
    episode_steps: int = 20
    goal: float = 0.05
    start: float = 0.5
    push: float = 0.0
    noise: Noise = field(default_factory=lambda: Noise(gaussian=0.01))
    weights: Weights = field(default_factory=Weights)


@task("rail")
class Rail(Slider):
    Config = RailConfig

    def randomize(self):
        return ()
