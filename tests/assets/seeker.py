"""A toy task of images: drive a block to a red mark, which a policy sees in numbers or in an image of 16x16 pixels.

The images are drawn: tests of it need OpenGL.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import mujoco
import torch

from deftly.config import TaskConfig
from deftly.contract import Act, Observe, Signal
from deftly.learn import checkpoint
from deftly.learn.networks import Network, NetworkSpec
from deftly.sim import scene
from deftly.sim.randomize import Randomize
from deftly.tasks import load, task

Slider = load(str(Path(__file__).with_name("slider.py")))
SIZE = 16


@dataclass(frozen=True)
class Weights:
    near: float = 1.0


@dataclass(frozen=True)
class SeekerConfig(TaskConfig):
    episode_steps: int = 30
    observation: Literal["state", "rgb"] = "state"
    weights: Weights = field(default_factory=Weights)


@task("seeker")
class Seeker(Slider):
    Config = SeekerConfig

    def scene(self):
        s = super().scene()
        s.geom("floor").rgba = (0.3, 0.3, 0.3, 1)
        s.geom("ball").rgba = (0, 0, 0, 0)
        s.geom("block").rgba = (0.2, 0.2, 0.9, 1)
        mark = s.worldbody.add_body(name="mark", mocap=True)
        mark.add_geom(
            name="mark",
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            size=[0.12, 0, 0],
            rgba=(1, 0.1, 0.1, 1),
            contype=0,
            conaffinity=0,
        )
        s.worldbody.add_light(pos=[0, 0, 3], dir=[0, 0, -1])
        scene.add_camera(s, "top", eye=(0, 0, 2), target=(0, 0.001, 0), fovy=50)
        scene.add_home(s, {"x": 0.0, "y": 0.0})
        return s

    def contract(self):
        c = super().contract()
        if self.cfg.observation == "state":
            other, seen = Signal("mark", 2, "m"), Observe("mark")
        else:
            other = Signal("top", (SIZE, SIZE, 3), dtype="uint8")
            seen = Observe("top", group="top")
        joint_pos = c.robot.signal("joint_pos")
        robot = replace(c.robot, signals=(joint_pos, other))
        act = (Act(("x", "y"), "velocity", (1.0,)),)
        return type(c)(robot, c.rate, (Observe("joint_pos"), seen), act)

    def signals(self, s):
        own = {"joint_pos": s.joint_pos}
        return own if self.cfg.observation == "rgb" else {**own, "mark": mark_of(s)}

    def reset(self, s, mask):
        s.set_joint_pos(mask, s.uniform(mask, -0.5, 0.5, 2))
        place = s.uniform(mask, -0.6, 0.6, 3)
        place[:, 2] = 0.1
        s.place("mark", mask, place)
        s.remember("mark", mask, place[:, :2])

    def rewards(self, s):
        return {"near": -away(s)}

    def success(self, s):
        return away(s) < 0.15

    def randomize(self):
        return (
            Randomize("light", 0.7, 1.3),
            Randomize("color", -0.1, 0.1, ("floor", "mark"), op="add"),
            Randomize("camera_position", -0.02, 0.02, ("top",), op="add"),
        )

    def noise(self):
        return {}

    def pushes(self):
        return ()


def mark_of(s) -> torch.Tensor:
    """Where the mark is, (num_envs, 2), m."""
    return s.zeros("mark", 2)


def away(s) -> torch.Tensor:
    """Distance of the block from the mark, (num_envs,), m."""
    return (s.joint_pos - mark_of(s)).norm(dim=-1)


def write_teacher(folder: Path) -> Path:
    """A checkpoint of a policy that sees the mark in numbers, and drives there: one linear layer."""
    made = Seeker(SeekerConfig())
    spec = NetworkSpec({"policy": 4}, 2, (), normalizer="none", head="gaussian")
    actor = Network(spec)
    gain = 3.0 * torch.eye(2)
    with torch.no_grad():
        actor.layers[0].weight.copy_(torch.cat((-gain, gain), 1))
        actor.layers[0].bias.zero_()
    config = "task:\n  observation: state\n"
    checkpoint.write(folder, made, {"actor": actor}, contract=made.contract(), config=config)
    return folder
