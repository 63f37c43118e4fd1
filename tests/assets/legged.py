"""A small robot on two legs: its interface, a kernel with a clock, and a scene in which it stands and falls."""

import dataclasses
import math
from dataclasses import dataclass

import mujoco
import numpy as np
import torch

from deftly.config import TaskConfig
from deftly.contract import (
    FAULTS,
    Act,
    Input,
    Joint,
    Limit,
    Observe,
    PolicyContract,
    RobotInterface,
    Signal,
)
from deftly.control.drivers import Reading
from deftly.control.safety import Kernel, SafetyConfig
from deftly.sim import scene
from deftly.tasks import Task, task

RATE = 50.0
NAMES = ("left_hip", "left_knee", "right_hip", "right_knee")
LEGS = RobotInterface(
    name="legs",
    joints=tuple(
        Joint(name, -0.8, 0.8, 0.0, 6.0, acceleration=120.0, lead=0.3, frozen=0.1) for name in NAMES
    ),
    signals=(
        Signal("joint_pos", 4, "rad"),
        Signal("orientation", 4, frame="world"),
        Signal("gyro", 3, "rad/s", "body"),
        Signal("voltage", 1, "V"),
        Signal("temperature", 4, "C"),
        Signal("torque", 4, "N m"),
    ),
    limits=(
        Limit("orientation", 0.0, 0.9, of="tilt"),
        Limit("gyro", 0.0, 15.0, of="norm"),
        Limit("voltage", 9.6, 13.0),
        Limit("temperature", -10.0, 70.0),
        Limit("torque", -4.0, 4.0),
    ),
    damps=FAULTS,
)
"""Every fault damps it."""
HALTS = dataclasses.replace(
    LEGS, damps=tuple(f for f in FAULTS if f not in ("operator", "policy-stale"))
)
"""One that holds when the operator, or a silent policy, lets it."""
CONTRACT = PolicyContract(
    robot=LEGS,
    rate=RATE,
    observe_terms=(Observe("joint_pos"), Observe("velocity")),
    act_terms=(Act(NAMES, "relative", (0.5,), lowpass=0.2),),
    inputs=(Input("velocity", 1, "m/s"),),
)


def measured(robot=LEGS, **signals):
    """What it measures upright and at home, but for what is given."""
    still = {
        "joint_pos": np.zeros(4),
        "orientation": np.array([1.0, 0.0, 0.0, 0.0]),
        "gyro": np.zeros(3),
        "voltage": np.array([12.0]),
        "temperature": np.full(4, 30.0),
        "torque": np.zeros(4),
    }
    return still | {name: np.asarray(value, float) for name, value in signals.items()}


def tilted(angle, axis=(1.0, 0.0, 0.0)):
    """The orientation of a body that leans by an angle, rad, about a horizontal axis."""
    return np.array([math.cos(angle / 2), *(math.sin(angle / 2) * np.array(axis))])


class Stand:
    """A kernel and a clock; the joints go where they are sent, with some noise, unless a tick says otherwise."""

    def __init__(self, robot=LEGS, **cfg):
        self.robot = robot
        self.kernel = Kernel(
            robot, RATE, SafetyConfig(**{"ramp_s": 0.0, "start_envelope": 1.0} | cfg)
        )
        self.now = 10.0
        self.rng = np.random.default_rng(0)

    def tick(self, targets=None, periods=1.0, heard_at=None, reading=..., **signals):
        self.now += periods / RATE
        command = self.kernel.command
        pose = np.zeros(4) if command is None or self.kernel.damps else command
        joints = np.clip(pose + self.rng.normal(0, 1e-3, 4), -0.8, 0.8)
        if reading is ...:
            reading = Reading(measured(self.robot, **{"joint_pos": joints} | signals), self.now)
        goal = np.zeros(4) if targets is None else targets
        return self.kernel.tick(self.now, reading, goal, heard_at=heard_at)

    def ready(self):
        self.tick()
        self.tick()
        return self

    def active(self):
        self.ready().kernel.start()
        self.tick()
        return self


XML = """
<mujoco>
  <compiler angle="radian"/>
  <option timestep="0.005" integrator="implicitfast"/>
  <default><joint damping=".2" armature=".02"/><position kp="80" kv="2" forcerange="-15 15"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1"/>
    <body name="trunk" pos="0 0 .42">
      <freejoint name="base"/>
      <geom type="box" size=".05 .08 .06" mass="1.5"/>
      <body name="left_thigh" pos="0 .06 -.05">
        <joint name="left_hip" axis="0 1 0" range="-.8 .8"/>
        <geom type="capsule" fromto="0 0 -.03 0 0 -.13" size=".02" mass=".3"/>
        <body name="left_shin" pos="0 0 -.16">
          <joint name="left_knee" axis="0 1 0" range="-.8 .8"/>
          <geom type="capsule" fromto="0 0 0 0 0 -.16" size=".02" mass=".2"/>
          <geom type="box" pos=".02 0 -.18" size=".09 .05 .01" mass=".1"/>
        </body>
      </body>
      <body name="right_thigh" pos="0 -.06 -.05">
        <joint name="right_hip" axis="0 1 0" range="-.8 .8"/>
        <geom type="capsule" fromto="0 0 -.03 0 0 -.13" size=".02" mass=".3"/>
        <body name="right_shin" pos="0 0 -.16">
          <joint name="right_knee" axis="0 1 0" range="-.8 .8"/>
          <geom type="capsule" fromto="0 0 0 0 0 -.16" size=".02" mass=".2"/>
          <geom type="box" pos=".02 0 -.18" size=".09 .05 .01" mass=".1"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="left_hip" joint="left_hip"/>
    <position name="left_knee" joint="left_knee"/>
    <position name="right_hip" joint="right_hip"/>
    <position name="right_knee" joint="right_knee"/>
  </actuator>
</mujoco>
"""


@dataclass(frozen=True)
class LeggedConfig(TaskConfig):
    """Stand for a while, or hang by the trunk."""

    episode_steps: int = 100
    hangs: bool = True


@task("legged")
class Legged(Task):
    """Two legs that stand where they are put, or swing freely."""

    Config = LeggedConfig

    def scene(self):
        xml = XML
        if self.cfg.hangs:
            xml = XML.replace('<freejoint name="base"/>', "").replace("0 0 .42", "0 0 .8")
        spec = mujoco.MjSpec.from_string(xml)
        scene.add_home(spec, dict.fromkeys(NAMES, 0.0))
        return spec

    def contract(self):
        return dataclasses.replace(CONTRACT, rate=self.cfg.rate)

    def signals(self, s):
        count = len(s.joint_pos)
        still = {
            name: torch.as_tensor(value).expand(count, -1) for name, value in measured().items()
        }
        if not self.cfg.hangs:
            still["orientation"] = s.pose("trunk")[:, 3:]
        return still | {"joint_pos": s.joint_pos}

    def reset(self, s, mask):
        s.set_joint_pos(mask, torch.zeros(4, dtype=s.dtype))

    def rewards(self, s):
        return {"still": -s.joint_pos.square().sum(-1)}

    def success(self, s):
        if self.cfg.hangs:
            return s.joint_pos[:, 0] < 9.0
        return s.pose("trunk")[:, 2] > 0.3

    def failed(self, s):
        return {}
