"""A task in one file, outside the package: move the pinch point of a JAKA Zu5 to a random point and stay there.

deftly train examples/reach_target.py env.num_envs=256
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import mujoco
import torch
from annotated_types import Ge, Gt
from torch import Tensor
from typing_extensions import Doc

from deftly.config import TaskConfig
from deftly.contract import Act, Derive, Observe, PolicyContract, Signal
from deftly.robots import jaka_zu5
from deftly.robots.jaka_zu5 import ARM
from deftly.sim import scene
from deftly.tasks import Noise, Randomize, Report, State, Task, task


@dataclass(frozen=True)
class Weights:
    """Weights of the reward terms. The first two are differences of a potential: no cycle earns anything."""

    reach: Annotated[float, Doc("Progress towards the target.")] = 3.0
    hold: Annotated[float, Doc("Progress of the count of steps at the target.")] = 1.0
    success: Annotated[float, Doc("Once, when the target has been held.")] = 1.0
    action_rate: Annotated[float, Doc("Squared change of the action.")] = -0.001
    time: Annotated[float, Doc("Each step.")] = -0.01
    low: Annotated[
        float,
        Doc("Once, when the gripper comes too low: an early end must not pay."),
    ] = -3.0


@dataclass(frozen=True)
class ReachConfig(TaskConfig):
    """Parameters of the task; lengths in m, in the arm's base frame (z up, the table top is z = 0)."""

    rate: Annotated[float, Doc("Control rate, Hz.")] = 15.0
    episode_steps: Annotated[int, Doc("Steps until an episode is truncated.")] = 100
    target_low: Annotated[
        tuple[float, float, float], Doc("Nearest corner of the box in which targets are drawn, m.")
    ] = (0.40, -0.20, 0.10)
    target_high: Annotated[tuple[float, float, float], Doc("Farthest corner of that box, m.")] = (
        0.60,
        0.20,
        0.35,
    )
    tolerance: Annotated[float, Gt(0), Doc("Distance that counts as being there, m.")] = 0.02
    hold_steps: Annotated[int, Ge(1), Doc("Consecutive steps to stay there.")] = 10
    speed: Annotated[float, Gt(0), Doc("Joint speed at action 1, rad/s.")] = 1.2
    weights: Annotated[Weights, Doc("Weights of the reward terms.")] = field(
        default_factory=Weights
    )


@task("jaka-reach")
class Reach(Task):
    """Move the pinch point of a JAKA Zu5 to a random point and stay there.

    Observation (10): arm joints 1 to 6 and the finger (rad, m); pinch point to target in the base frame (3, m).
    Action (3): velocity of joints 1 to 3. The wrist follows, so that the tool points down.
    Success: within `tolerance` of the target for `hold_steps` consecutive steps. Failure: pinch point below 3 cm.
    Randomization: target; servo gains (x 0.9 .. 1.1). Sensor noise: 1 mm on the way to the target.
    """

    Config = ReachConfig
    cfg: ReachConfig
    report = Report(metrics={"final_distance": "distance from the target at the end, m"})

    def scene(self) -> mujoco.MjSpec:
        """The arm on a table; a green ball, which nothing touches, marks the target."""
        s = jaka_zu5.spec()
        scene.prepare(s)
        scene.add_floor(s, -0.75)
        scene.add_table(s, centre=(0.35, 0.0), half=(0.55, 0.5), height=0.75)
        ball = s.worldbody.add_body(name="target", mocap=True, pos=[0.5, 0.0, 0.2])
        ball.add_geom(
            size=[self.cfg.tolerance, 0, 0], rgba=[0.1, 0.7, 0.3, 0.6], contype=0, conaffinity=0
        )
        scene.add_camera(s, "front", eye=(1.45, -1.0, 0.75), target=(0.28, 0.0, 0.24), fovy=40)
        scene.add_home(s, {j.name: j.home for j in jaka_zu5.ROBOT.joints})
        return s

    def contract(self) -> PolicyContract:
        """Velocity control of three joints, the wrist coupled to them; the gripper keeps its last command."""
        return PolicyContract(
            robot=jaka_zu5.ROBOT.interface(Signal("target_pos", 3, "m", "base")),
            rate=self.cfg.rate,
            observe_terms=(Observe("joint_pos"), Observe("to_target")),
            act_terms=(
                Act(("joint_1", "joint_2", "joint_3"), "velocity", (self.cfg.speed,), lowpass=0.4),
            ),
            derive=(
                Derive("pinch_pos", "forward_kinematics", site="pinch"),
                Derive("to_target", "difference", ("target_pos", "pinch_pos")),
            ),
        )

    def signals(self, s: State) -> dict[str, Tensor]:
        """Joint positions, and where the target is."""
        return {"joint_pos": s.joint_pos, "target_pos": s.body("target")}

    def reset(self, s: State, mask: Tensor) -> None:
        """The arm stands at home; the target is anywhere in its box."""
        low, high = s.tensor(self.cfg.target_low), s.tensor(self.cfg.target_high)
        s.place("target", mask, low + (high - low) * s.uniform(mask, 0.0, 1.0, 3))

    def start(self, s: State, mask: Tensor) -> None:
        """An episode's potential starts where the arm does."""
        s.remember("potential", mask, self._potential(s))

    def update(self, s: State) -> None:
        """Count the steps at the target, and note what was gained in this one."""
        held, was = s.zeros("held"), s.zeros("potential", 2)
        held[:] = torch.where(self._distance(s) < self.cfg.tolerance, held + 1, 0.0)
        now = self._potential(s)
        s.zeros("gain", 2)[:] = now - was
        was[:] = now

    def rewards(self, s: State) -> dict[str, Tensor]:
        """See `Weights`."""
        reach, hold = s.zeros("gain", 2).unbind(-1)
        return {
            "reach": reach,
            "hold": hold,
            "success": self.success(s),
            "action_rate": (s.action - s.last_action).square().sum(-1),
            "time": torch.ones_like(reach),
            "low": self.failed(s)["low"],
        }

    def failed(self, s: State) -> dict[str, Tensor]:
        """The gripper is about to hit the table."""
        return {"low": ARM.tool(s)[:, 2] < 0.03}

    def success(self, s: State) -> Tensor:
        """Long enough at the target."""
        return s.zeros("held") >= self.cfg.hold_steps

    def metrics(self, s: State) -> dict[str, Tensor]:
        """How far from the target the episode ended, m."""
        return {"final_distance": self._distance(s)}

    def randomize(self) -> tuple[Randomize, ...]:
        """Gains of the arm's servos."""
        arm = tuple(joint.name for joint in jaka_zu5.ROBOT.joints[:6])
        return (
            Randomize("kp", 0.9, 1.1, arm, shared=True),
            Randomize("kd", 0.9, 1.1, arm, shared=True),
        )

    def noise(self) -> dict[str, Noise]:
        """What measures the target errs a little."""
        return {"target_pos": Noise(gaussian=0.001)}

    def _distance(self, s: State) -> Tensor:
        return (s.body("target") - ARM.tool(s)).norm(dim=-1)

    def _potential(self, s: State) -> Tensor:
        """How far the episode has come, `(num_envs, 2)`, each in 0 .. 1: reach, hold."""
        return torch.stack(
            (1 - torch.tanh(5 * self._distance(s)), s.zeros("held") / self.cfg.hold_steps), -1
        )
