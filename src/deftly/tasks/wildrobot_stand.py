"""Stand a WildRobot on its feet while it is pushed."""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import mujoco
from torch import Tensor
from typing_extensions import Doc

from deftly.contract import PolicyContract
from deftly.contract.derive import angle_between
from deftly.robots import wildrobot
from deftly.robots.legged import (
    FOOT_METRICS,
    LEGGED_LADDER,
    SERVO_METRICS,
    LeggedConfig,
    mirrored,
)
from deftly.robots.wildrobot import WILD
from deftly.sim.pushes import Push
from deftly.sim.randomize import Randomize
from deftly.sim.sensors import Noise
from deftly.sim.state import State
from deftly.tasks import Mirror, Report, Task, near, task

REACH = {"hip_pitch": 0.5, "hip_roll": 0.3, "knee": 0.5, "ankle_pitch": 0.4}
"""How far an action of 1 moves each joint from home, rad."""


@dataclass(frozen=True)
class Weights:
    """Weights of the reward terms, each multiplied by the control period: terms are per second."""

    upright: Annotated[float, Doc("exp(-(tilt / 0.15 rad)2).")] = 1.0
    still: Annotated[float, Doc("exp(-(speed / 0.15 m/s)2), of the waist over the ground.")] = 0.5
    height: Annotated[float, Doc("exp(-((height - home) / 0.03 m)2), of the waist.")] = 0.5
    angular_velocity: Annotated[
        float, Doc("Squared angular velocity of the waist, (rad/s)2.")
    ] = -0.02
    pose: Annotated[float, Doc("Squared distance of the joints from home, rad2.")] = -0.3
    torque: Annotated[float, Doc("Squared torques, as fractions of the servo's, summed.")] = -0.05
    saturation: Annotated[float, Doc("Servos at more than 95 % of their torque.")] = -0.2
    action_rate: Annotated[float, Doc("Squared change of the action, summed.")] = -0.2
    slip: Annotated[float, Doc("Squared speed of feet on the ground, (m/s)2.")] = -1.0
    contact: Annotated[float, Doc("Feet off the ground.")] = -0.2
    fell: Annotated[float, Doc("Once, when the robot falls.")] = -200.0


@dataclass(frozen=True)
class StandConfig(LeggedConfig):
    """Parameters of the task."""

    weights: Annotated[Weights, Doc("Weights of the reward terms.")] = field(
        default_factory=Weights
    )


@task("wildrobot-stand")
class WildRobotStand(Task):
    """Stand a WildRobot on its feet while it is pushed.

    Observation (34):

    | index | term                     | meaning                                          | unit             |
    |-------|--------------------------|--------------------------------------------------|------------------|
    | 0-2   | gravity                  | direction of gravity in the frame of the chest   |                  |
    | 3-5   | heading_angular_velocity | in the frame that shares the chest's yaw alone   | 5 rad/s          |
    | 6-13  | joint_pos                | left leg from hip to ankle, right leg; from home | half the range   |
    | 14-21 | joint_vel                | change of joint_pos since the last step          | 10 rad/s         |
    | 22-25 | foot_switches            | left toe, left heel, right toe, right heel       | 1: pressed       |
    | 26-33 | action                   | the last action after the low-pass               |                  |

    Action (8), in [-1, 1], low-passed: targets of the joints about home, times `REACH`. Equal actions of both legs are
    mirrored poses, as equal positions are.

    Success: still on its feet after the 10 s of the episode. Failure: the waist below `lowest` or tilted by more than
    `max_tilt`; it ends the episode.

    Randomization: that of every WildRobot task (`WildRobot.randomize`, `WildRobot.noise`); joints at the start; pushes
    of `push_force` in a horizontal direction for `push_steps`, at random times.
    """

    Config = StandConfig
    defaults = {
        "env": {"num_envs": 512},
        "sim": {"preset": "fast"},
        "train": {"init_std": 0.3, "steps": 24, "epochs": 4, "max_iterations": 300},
    }
    ladder = LEGGED_LADDER
    cfg: StandConfig
    report = Report(
        selection="return",
        metrics={
            "drift": "distance of the waist from where it started, over the ground, m",
            "heading_drift": "angle by which the waist has turned about the vertical, rad",
            "sway": "mean tilt of the waist, rad",
            **FOOT_METRICS,
            **SERVO_METRICS,
        },
        plots=(
            ("seconds", "Time on the feet, s"),
            ("drift", "Drift, m"),
            ("sway", "Mean tilt, rad"),
        ),
    )

    def scene(self) -> mujoco.MjSpec:
        """The robot on a floor; camera `front`."""
        return WILD.scene(self.cfg.ground)

    def contract(self) -> PolicyContract:
        """What every policy of the robot sees, and targets about home."""
        act = WILD.act(REACH, self.cfg.lowpass)
        return PolicyContract(
            WILD.interface(), self.cfg.rate, WILD.observe(), act, derive=wildrobot.DERIVE
        )

    def signals(self, s: State) -> dict[str, Tensor]:
        """Joint positions, inertial sensor, foot switches."""
        return WILD.signals(s)

    def privileged(self, s: State) -> Tensor:
        """The true motion, and what ground and pushes exert."""
        return WILD.privileged(s)

    def mirror(self) -> Mirror:
        """Left and right are alike."""
        return Mirror(
            observation=partial(mirrored, parts=wildrobot.OBSERVED),
            privileged=partial(mirrored, parts=wildrobot.PRIVILEGED),
            action=partial(mirrored, parts=wildrobot.ACTION),
        )

    def reset(self, s: State, mask: Tensor) -> None:
        """Joints near home."""
        WILD.start_near_home(s, mask, self.cfg)

    def start(self, s: State, mask: Tensor) -> None:
        """Remember where the robot stands."""
        s.remember("origin", mask, s.pose(WILD.base)[:, :2])
        s.remember("first_heading", mask, WILD.heading(s))
        WILD.start(s, mask)

    def update(self, s: State) -> None:
        """What the feet do, and sums for the report."""
        WILD.watch(s)
        s.zeros("sum_tilt")[:] += WILD.tilt(s)

    def rewards(self, s: State) -> dict[str, Tensor]:
        """See `Weights`."""
        loaded = WILD.foot_forces(s) > wildrobot.SWITCH_FORCE
        speed = s.velocity(WILD.base)[:, :2].norm(dim=-1)
        away = s.joint_pos - s.tensor(wildrobot.ROBOT.interface().home())
        load = s.joint_torque / wildrobot.TORQUE
        terms = {
            "upright": near(WILD.tilt(s), 0.15),
            "still": near(speed, 0.15),
            "height": near(WILD.height(s) - wildrobot.HOME_HEIGHT, 0.03),
            "angular_velocity": WILD.angular_velocity(s).square().sum(-1),
            "pose": away.square().sum(-1),
            "torque": load.square().sum(-1),
            "saturation": WILD.saturated(s).sum(-1),
            "action_rate": (s.action - s.last_action).square().sum(-1),
            "slip": WILD.slip(s, loaded),
            "contact": (~loaded).sum(-1),
            "fell": WILD.fell(s, self.cfg),
        }
        return {name: value * s.dt for name, value in terms.items()}

    def failed(self, s: State) -> dict[str, Tensor]:
        """It fell."""
        return {"fell": WILD.fell(s, self.cfg)}

    def success(self, s: State) -> Tensor:
        """On its feet when the time is up."""
        return (s.steps >= s.episode_steps) & ~WILD.fell(s, self.cfg)

    def metrics(self, s: State) -> dict[str, Tensor]:
        """What `report` explains."""
        moved = s.pose(WILD.base)[:, :2] - s.zeros("origin", 2)
        return {
            "drift": moved.norm(dim=-1),
            "heading_drift": angle_between(s.zeros("first_heading"), WILD.heading(s)).abs(),
            "sway": s.zeros("sum_tilt") / s.steps.clip(min=1),
            **WILD.foot_metrics(s),
            **WILD.servo_metrics(s),
        }

    def randomize(self) -> tuple[Randomize, ...]:
        """Links, servos, mounting and ground."""
        return WILD.randomize(self.cfg.ground)

    def noise(self) -> dict[str, Noise]:
        """Encoders, inertial sensor, foot switches."""
        return WILD.noise(self.cfg.gyro_bias)

    def pushes(self) -> tuple[Push, ...]:
        """Forces on the waist."""
        return WILD.pushes(self.cfg)
