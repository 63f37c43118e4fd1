"""A task outside the package: push a block along a rail to x = 0. Small enough that every test can afford it."""

from dataclasses import dataclass, field

import mujoco
import torch

from deftly.config import TaskConfig
from deftly.contract import Act, Joint, Observe, PolicyContract, RobotInterface, Signal
from deftly.sim import scene
from deftly.sim.pushes import Push
from deftly.sim.randomize import Randomize
from deftly.sim.sensors import Noise
from deftly.tasks import Task, task

XML = """
<mujoco>
  <option timestep="0.01" integrator="implicitfast"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1"/>
    <body name="block" pos="0 0 .1">
      <joint name="x" type="slide" axis="1 0 0" range="-1 1" damping="2" armature=".1" frictionloss=".1"/>
      <joint name="y" type="slide" axis="0 1 0" range="-1 1" damping="2"/>
      <geom name="block" type="box" size=".05 .05 .05" mass="1" contype="0" conaffinity="0"/>
    </body>
    <body name="ball" pos="0 1 .1">
      <freejoint name="ball"/>
      <geom name="ball" type="sphere" size=".1" mass=".5"/>
    </body>
  </worldbody>
  <actuator>
    <position name="x" joint="x" kp="100" kv="20"/>
    <position name="y" joint="y" kp="100" kv="20"/>
  </actuator>
</mujoco>
"""


@dataclass(frozen=True)
class Weights:
    near: float = 1.0
    moved: float = -0.1


@dataclass(frozen=True)
class SliderConfig(TaskConfig):
    episode_steps: int = 20
    goal: float = 0.05
    start: float = 0.5
    push: float = 0.0
    noise: Noise = field(default_factory=Noise)
    randomize: tuple[Randomize, ...] = ()
    stop_on_success: bool = True
    weights: Weights = field(default_factory=Weights)


@task("slider")
class Slider(Task):
    Config = SliderConfig

    def scene(self):
        s = mujoco.MjSpec.from_string(XML)
        scene.add_home(s, {"x": 0.0, "y": 0.0})
        return s

    def contract(self):
        robot = RobotInterface(
            name="slider",
            joints=(Joint("x", -1, 1, 0, 2, "m"), Joint("y", -1, 1, 0, 2, "m")),
            signals=(Signal("joint_pos", 2, "m"), Signal("joint_vel", 2, "m/s")),
        )
        return PolicyContract(
            robot=robot,
            rate=self.cfg.rate,
            observe_terms=(
                Observe("joint_pos", history=2),
                Observe("joint_vel", (0.5,)),
                Observe("action"),
            ),
            act_terms=(Act(("x", "y"), "velocity", (1.0,), lowpass=0.3),),
        )

    def signals(self, s):
        return {"joint_pos": s.joint_pos, "joint_vel": s.joint_vel}

    def privileged(self, s):
        return s.pose("ball")[:, :3]

    def reset(self, s, mask):
        s.set_joint_pos(mask, s.uniform(mask, -self.cfg.start, self.cfg.start, 2))

    def start(self, s, mask):
        s.zeros("travel")

    def update(self, s):
        s.store["travel"] += s.joint_vel[:, 0].abs() * s.dt

    def rewards(self, s):
        return {"near": torch.exp(-s.joint_pos[:, 0].square()), "moved": s.store["travel"]}

    def success(self, s):
        return s.joint_pos.norm(dim=-1) < self.cfg.goal

    def failed(self, s):
        return {"far": s.joint_pos[:, 0].abs() > 0.9}

    def metrics(self, s):
        return {"travel": s.store["travel"]}

    def randomize(self):
        return self.cfg.randomize

    def noise(self):
        return {"joint_pos": self.cfg.noise}

    def pushes(self):
        return (Push("block", (self.cfg.push, self.cfg.push), 0.5, 0.1),) if self.cfg.push else ()
