"""A toy robot on a floating base, which comes first in `qpos`, with an object between two of its joints."""

from dataclasses import dataclass, field

import mujoco
import torch

from deftly.config import TaskConfig
from deftly.contract import Act, Joint, Observe, PolicyContract, RobotInterface, Signal
from deftly.sim import scene
from deftly.tasks import Task, task

XML = """
<mujoco>
  <option timestep="0.005" integrator="implicitfast"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1"/>
    <body name="base" pos="0.3 0 0.5">
      <freejoint name="base"/>
      <geom name="base" type="box" size=".2 .1 .05" mass="5"/>
      <body name="left" pos="0 0.1 0">
        <joint name="left_hip" axis="0 1 0" range="-1 1" damping="1"/>
        <geom name="left" type="capsule" fromto="0 0 0 0 0 -.2" size=".03" mass=".5"/>
      </body>
      <body name="right" pos="0 -0.1 0">
        <joint name="right_hip" axis="0 1 0" range="-1 1" damping="1"/>
        <geom name="right" type="capsule" fromto="0 0 0 0 0 -.2" size=".03" mass=".5"/>
        <site name="foot" pos="0 0 -.2"/>
      </body>
    </body>
    <body name="marker" mocap="true" pos="1 0 0"/>
    <body name="ball" pos="0 2 .1">
      <freejoint name="ball_joint"/>
      <geom name="ball" type="sphere" size=".1" mass=".5"/>
    </body>
  </worldbody>
  <actuator>
    <position name="right_hip" joint="right_hip" kp="50" kv="5"/>
    <position name="left_hip" joint="left_hip" kp="50" kv="5"/>
  </actuator>
</mujoco>
"""
JOINTS = (
    Joint("right_hip", -1, 1, 0.4, 5),
    Joint("left_hip", -1, 1, -0.2, 5),
)  # not in the order of the model


@dataclass(frozen=True)
class Weights:
    alive: float = 1.0


@dataclass(frozen=True)
class FloatingConfig(TaskConfig):
    episode_steps: int = 20
    start: float = 0.3
    weights: Weights = field(default_factory=Weights)


@task("floating")
class Floating(Task):
    """Stand on a floating base."""

    Config = FloatingConfig

    def scene(self):
        s = mujoco.MjSpec.from_string(XML)
        scene.add_home(s, {j.name: j.home for j in JOINTS})
        return s

    def contract(self):
        return PolicyContract(
            robot=RobotInterface("floating", JOINTS, (Signal("joint_pos", 2, "rad"),)),
            rate=self.cfg.rate,
            observe_terms=(Observe("joint_pos"),),
            act_terms=(Act(("right_hip", "left_hip"), "delta", (0.1,)),),
        )

    def signals(self, s):
        return {"joint_pos": s.joint_pos}

    def reset(self, s, mask):
        s.set_joint_pos(mask, s.joint_pos + s.uniform(mask, -self.cfg.start, self.cfg.start, 2))

    def rewards(self, s):
        return {"alive": torch.ones_like(s.zeros("one"))}

    def success(self, s):
        return s.zeros("one") > 0
