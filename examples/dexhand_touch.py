"""A task of a DexHand 021 in one file, written along docs/add-a-task.md: touch a ball with the tip of the index finger.

deftly train examples/dexhand_touch.py env.num_envs=256
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
from deftly.contract import Derive, Observe, PolicyContract, Signal
from deftly.robots import dexhand021
from deftly.robots.dexhand021 import HAND
from deftly.sim import scene
from deftly.tasks import Noise, Report, State, Task, task

ROBOT = dexhand021.RIGHT
INDEX = 1  # of the pads, the thumb's first
BALL = (0.25, 0.0, 0.35)  # m: the middle of where it may be


@dataclass(frozen=True)
class Weights:
    """Weights of the reward terms. The first two are differences of a potential: no cycle earns anything."""

    reach: Annotated[float, Doc("Progress of the fingertip towards the ball.")] = 3.0
    hold: Annotated[float, Doc("Progress of the count of steps at the ball.")] = 1.0
    success: Annotated[float, Doc("Once, when it has been touched for long enough.")] = 1.0
    action_rate: Annotated[float, Doc("Squared change of the action.")] = -0.0002
    time: Annotated[float, Doc("Each step.")] = -0.005


@dataclass(frozen=True)
class TouchConfig(TaskConfig):
    """Parameters of the task; lengths in m, z up from the ground."""

    rate: float = 25.0
    episode_steps: int = 100
    spread: Annotated[float, Ge(0), Doc("The ball is within this much of its middle place, m.")] = (
        0.1
    )
    radius: Annotated[float, Gt(0), Doc("Radius of the ball, m.")] = 0.02
    hold_steps: Annotated[int, Ge(1), Doc("Consecutive steps of touch.")] = 5
    weights: Annotated[Weights, Doc("Weights of the reward terms.")] = field(
        default_factory=Weights
    )


@task("dexhand-touch")
class Touch(Task):
    """Touch a ball in the air with the index finger of a DexHand 021.

    Observation (47): all joints (m, rad), the way from the pad of the index finger to the ball (m), the last action.
    Action (18): velocities of the carrier's six joints and of the twelve finger motors.
    Success: the pad is in the ball, which nothing feels, for `hold_steps` consecutive steps.
    """

    Config = TouchConfig
    cfg: TouchConfig
    report = Report(metrics={"final_distance": "distance from the ball's centre at the end, m"})

    def scene(self) -> mujoco.MjSpec:
        """The hand in the air, and a ball that is only drawn."""
        s = ROBOT.spec()
        scene.prepare(s)
        scene.add_floor(s, 0.0)
        ball = s.worldbody.add_body(name="ball", mocap=True, pos=BALL)
        red = [0.8, 0.2, 0.2, 0.7]
        ball.add_geom(size=[self.cfg.radius, 0, 0], rgba=red, contype=0, conaffinity=0)
        scene.add_camera(s, "front", eye=(0.75, -0.6, 0.6), target=(0.15, 0.0, 0.35), fovy=45)
        home = {joint.name: joint.home for joint in ROBOT.joints}
        scene.add_home(s, {**home, "ARTz": 0.4})
        return s

    def contract(self) -> PolicyContract:
        """What the hand's other tasks command; the pad is computed from the joints."""
        return PolicyContract(
            robot=ROBOT.interface(Signal("ball_pos", 3, "m", "base")),
            rate=self.cfg.rate,
            observe_terms=(Observe("joint_pos"), Observe("to_ball", (5.0,)), Observe("action")),
            act_terms=dexhand021.act(0.25, 0.5, 1.0, lowpass=0.4),
            derive=(
                Derive("pad", "forward_kinematics", site=f"f_pad{INDEX + 1}"),
                Derive("to_ball", "difference", ("ball_pos", "pad")),
            ),
        )

    def signals(self, s: State) -> dict[str, Tensor]:
        """Joint positions, and where the ball is."""
        return {"joint_pos": s.joint_pos, "ball_pos": s.body("ball")}

    def reset(self, s: State, mask: Tensor) -> None:
        """The hand stands at home; the ball is anywhere near its middle place."""
        spread = self.cfg.spread
        s.place("ball", mask, s.tensor(BALL) + s.uniform(mask, -spread, spread, 3))

    def start(self, s: State, mask: Tensor) -> None:
        """An episode's potential starts where the finger does."""
        s.remember("potential", mask, self._potential(s))

    def update(self, s: State) -> None:
        """Count the steps at the ball, and note what was gained in this one."""
        held, was = s.zeros("held"), s.zeros("potential", 2)
        held[:] = torch.where(self._distance(s) < self.cfg.radius, held + 1, 0.0)
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
        }

    def success(self, s: State) -> Tensor:
        """Touched for long enough."""
        return s.zeros("held") >= self.cfg.hold_steps

    def metrics(self, s: State) -> dict[str, Tensor]:
        """How far from the ball the episode ended, m."""
        return {"final_distance": self._distance(s)}

    def noise(self) -> dict[str, Noise]:
        """What measures the ball errs a little."""
        return {"ball_pos": Noise(gaussian=0.001)}

    def _distance(self, s: State) -> Tensor:
        return (s.body("ball") - HAND.pad_positions(s)[:, INDEX]).norm(dim=-1)

    def _potential(self, s: State) -> Tensor:
        """How far the episode has come, `(num_envs, 2)`, each in 0 .. 1: reach, hold."""
        held = s.zeros("held") / self.cfg.hold_steps
        return torch.stack((1 - torch.tanh(5 * self._distance(s)), held), -1)
