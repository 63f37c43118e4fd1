"""Walk with a WildRobot at a commanded speed and yaw rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import mujoco
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import Doc

from deftly.config import LENGTH, RISING
from deftly.contract import Derive, Input, Observe, PolicyContract
from deftly.robots import wildrobot
from deftly.robots.legged import (
    FOOT_METRICS,
    LEGGED_LADDER,
    SERVO_METRICS,
    LeggedConfig,
    Lowpass,
    PushForce,
    PushInterval,
    mirrored,
)
from deftly.robots.wildrobot import WILD
from deftly.sim.pushes import Push
from deftly.sim.randomize import Randomize
from deftly.sim.sensors import Noise
from deftly.sim.state import State
from deftly.tasks import Mirror, Report, Task, near, task

REACH = {"hip_pitch": 0.6, "hip_roll": 0.3, "knee": 0.7, "ankle_pitch": 0.5}
"""How far an action of 1 moves each joint from home, rad."""
MAX_SPEED = 0.7
"""Fastest speed that may be commanded, m/s."""
MAX_TURN = 0.3
"""Largest yaw rate that may be commanded, rad/s: without a hip yaw the robot turns on slipping feet."""

WEAR = ("torque", "overload", "action_rate", "slip", "impact")
"""Reward terms for what wears servos and feet."""


@dataclass(frozen=True)
class Weights:
    """Weights of the reward terms, each multiplied by the control period: terms are per second."""

    track: Annotated[float, Doc("exp(-error of the mean speed / 0.15 m/s).")] = 3.0
    speed: Annotated[float, Doc("exp(-(error of the speed / 0.25 m/s)2).")] = 0.5
    heading: Annotated[float, Doc("exp(-(error of the heading / 0.2 rad)2).")] = 1.0
    lateral: Annotated[
        float, Doc("Squared mean speed across the commanded heading, (m/s)2.")
    ] = -5.0
    swing: Annotated[
        float, Doc("Height of the foot that the gait has in the air, up to the gait's, in lifts.")
    ] = 3.0
    contact: Annotated[float, Doc("Feet that touch the ground as the gait has it, of two.")] = 1.0
    upright: Annotated[float, Doc("Squared tilt of the waist, rad2.")] = -3.0
    angular_velocity: Annotated[float, Doc("Squared roll and pitch rate, (rad/s)2.")] = -0.03
    bounce: Annotated[float, Doc("Squared vertical speed of the waist, (m/s)2.")] = -1.0
    height: Annotated[
        float, Doc("Squared distance from the home height, in units of 0.05 m.")
    ] = -0.2
    torque: Annotated[float, Doc("Squared torques, as fractions of the servo's, summed.")] = -0.1
    overload: Annotated[
        float, Doc("What torques exceed 0.7 of the servo's by, in units of the other 0.3, summed.")
    ] = -1.0
    action_rate: Annotated[float, Doc("Squared change of the action, summed.")] = -0.3
    slip: Annotated[float, Doc("Squared speed of feet on the ground, (m/s)2.")] = -1.0
    impact: Annotated[float, Doc("Force on a foot above 1.5 body weights, in body weights.")] = -0.5
    spread: Annotated[
        float, Doc("Squared lack of distance between the feet, in units of 0.05 m.")
    ] = -0.5
    fell: Annotated[float, Doc("Once, when the robot falls.")] = -300.0


@dataclass(frozen=True)
class WalkConfig(LeggedConfig):
    """Parameters of the task."""

    lowpass: Lowpass = 0.7
    push_force: PushForce = (1.0, 3.0)
    push_interval: PushInterval = 5.0
    speed: Annotated[
        tuple[float, Annotated[float, Le(MAX_SPEED)]],
        RISING,
        Doc("Range of the commanded forward speed, m/s."),
    ] = (0.2, 0.6)
    turn: Annotated[float, Ge(0), Le(MAX_TURN), Doc("Largest commanded yaw rate, rad/s.")] = (
        MAX_TURN
    )
    hold_s: Annotated[float, Gt(0), Doc("Mean time for which a command is held, s.")] = 10.0
    period: Annotated[float, Gt(0), Doc("Period of the gait, two steps, s.")] = 0.7
    lift: Annotated[float, Ge(0), LENGTH, Doc("How high the gait lifts a foot, m.")] = 0.035
    swing: Annotated[
        float, Gt(0), Le(0.5), Doc("Fraction of the period for which each foot is in the air.")
    ] = 0.42
    narrowest: Annotated[
        float, Ge(0), LENGTH, Doc("Distance of the feet across the heading that costs nothing, m.")
    ] = 0.13
    average_s: Annotated[
        float, Gt(0), Doc("Time constant with which mean speeds are taken, s.")
    ] = 0.6
    leniency: Annotated[
        float,
        Ge(0),
        Le(1),
        Doc("In training alone: fraction of what wears the servos that counts at least."),
    ] = 0.1
    push_growth: Annotated[
        float, Ge(0), Doc("In training alone: factor of the pushes' force once no episode fails.")
    ] = 2.0
    speed_growth: Annotated[
        float, Gt(0), Doc("In training alone: factor of the commands' range once no episode fails.")
    ] = 1.4
    slowest: Annotated[
        float,
        Ge(0),
        Le(1),
        Doc("In training alone: factor of the slowest command; 0: it stops and turns on the spot."),
    ] = 0.0
    weights: Annotated[Weights, Doc("Weights of the reward terms.")] = field(
        default_factory=Weights
    )


@task("wildrobot-walk")
class WildRobotWalk(Task):
    """Walk with a WildRobot at a commanded speed and yaw rate.

    Observation (38):

    | index | term                     | meaning                                          | unit             |
    |-------|--------------------------|--------------------------------------------------|------------------|
    | 0-2   | gravity                  | direction of gravity in the frame of the chest   |                  |
    | 3-5   | heading_angular_velocity | in the frame that shares the chest's yaw alone   | 5 rad/s          |
    | 6-13  | joint_pos                | left leg from hip to ankle, right leg; from home | half the range   |
    | 14-21 | joint_vel                | change of joint_pos since the last step          | 10 rad/s         |
    | 22-25 | foot_switches            | left toe, left heel, right toe, right heel       | 1: pressed       |
    | 26-33 | action                   | the last action after the low-pass               |                  |
    | 34    | speed                    | commanded forward speed                          | m/s              |
    | 35    | heading_error            | from the chest's heading to the commanded one    | rad              |
    | 36-37 | gait                     | sine and cosine of the gait's phase              |                  |

    Inputs: `speed` (m/s, forward) and `turn` (rad/s, to the left), by which the contract turns the commanded heading.
    Eight joints allow no more: there is no hip yaw to turn a leg, so turns are slow, and no sideways command.

    Action (8), in [-1, 1], low-passed: targets of the joints about home, times `REACH`. Equal actions of both legs are
    mirrored poses, as equal positions are.

    The gait is a clock: the left foot swings in the first half of `period`, the right one in the second.

    Success: still on its feet after the 10 s of the episode. Failure: the waist below `lowest` or tilted by more than
    `max_tilt`; it ends the episode.

    Curriculum, in training alone: with the fraction of episodes that end on their feet, the fastest command grows from
    the slowest, and pushes from nothing, to more than an evaluation has (`speed_growth`, `push_growth`); what wears
    the servos weighs more the better commands are followed.

    Randomization: that of every WildRobot task (`WildRobot.randomize`, `WildRobot.noise`); joints at the start;
    commands; pushes of `push_force` in a horizontal direction, at random times.
    """

    Config = WalkConfig
    defaults = {
        "env": {"num_envs": 512},
        "sim": {"preset": "fast"},
        "train": {
            "init_std": 0.4,
            "entropy": 0.003,
            "steps": 24,
            "epochs": 4,
            "max_iterations": 2000,
            "symmetry": True,
        },
    }
    ladder = LEGGED_LADDER
    cfg: WalkConfig
    report = Report(
        selection="return",
        metrics={
            "tracking_error": "mean distance of the mean speed along the commanded heading from the command, m/s",
            "lateral_drift": "distance from the commanded path across its heading, at the end, m",
            "heading_drift": "distance of the heading from the commanded one, at the end, rad",
            "forward_speed": "mean speed along the commanded heading, m/s",
            "command": "mean commanded speed, m/s",
            **FOOT_METRICS,
            **SERVO_METRICS,
        },
        plots=(
            ("seconds", "Time on the feet, s"),
            ("tracking_error", "Tracking error, m/s"),
            ("lateral_drift", "Lateral drift, m"),
        ),
        breakdown=("command", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
    )

    def scene(self) -> mujoco.MjSpec:
        """The robot on a floor; camera `front`."""
        return WILD.scene(self.cfg.ground)

    def contract(self) -> PolicyContract:
        """What every policy of the robot sees, the command and the clock; targets about home."""
        cfg = self.cfg
        inputs = (
            Input("speed", 1, "m/s", "heading", lower=(0.0,), upper=(MAX_SPEED,)),
            Input("turn", 1, "rad/s", "heading", lower=(-MAX_TURN,), upper=(MAX_TURN,)),
        )
        derive = (
            *wildrobot.DERIVE,
            Derive("heading_error", "heading_error", ("orientation", "turn")),
            Derive("gait", "phase_clock", period=cfg.period),
        )
        observe = (
            *WILD.observe(),
            Observe("speed"),
            Observe("heading_error", clip=(-1.0, 1.0)),
            Observe("gait"),
        )
        act = WILD.act(REACH, cfg.lowpass)
        return PolicyContract(WILD.interface(), cfg.rate, observe, act, inputs, derive)

    def signals(self, s: State) -> dict[str, Tensor]:
        """Joint positions, inertial sensor, foot switches."""
        return WILD.signals(s)

    def inputs(self, s: State) -> dict[str, Tensor]:
        """The commands."""
        return {"speed": s.zeros("speed")[:, None], "turn": s.zeros("turn")[:, None]}

    def hear(self, s: State, said: Mapping[str, Tensor]) -> None:
        """Another operator's commands."""
        for name, value in said.items():
            s.zeros(name)[:] = value[:, 0]

    def privileged(self, s: State) -> Tensor:
        """The true motion, its means, and what the ground exerts."""
        return torch.cat(
            (
                WILD.privileged(s),
                s.zeros("mean_velocity", 2),
                20 * WILD.foot_pos(s)[..., 2],
                s.zeros("heading_error")[:, None],
            ),
            -1,
        )

    def mirror(self) -> Mirror:
        """Left and right are alike half a period of the gait later: the clock's sine and cosine are opposite."""
        command = (("same", 1), ("opposite", 1), ("opposite", 2))  # speed, heading error, gait
        motion = (
            ("vector", 2),
            ("sides", 2),
            ("opposite", 1),
        )  # mean velocity, feet, heading error
        return Mirror(
            observation=partial(mirrored, parts=(*wildrobot.OBSERVED, *command)),
            privileged=partial(mirrored, parts=(*wildrobot.PRIVILEGED, *motion)),
            action=partial(mirrored, parts=wildrobot.ACTION),
        )

    def reset(self, s: State, mask: Tensor) -> None:
        """Joints near home."""
        WILD.start_near_home(s, mask, self.cfg)

    def start(self, s: State, mask: Tensor) -> None:
        """Command something, and remember where the robot stands."""
        self._command(s, mask)
        WILD.start(s, mask)
        WILD.start_path(s, mask)

    def update(self, s: State) -> None:
        """What feet and servos did; the commanded path and the gait go on; commands change."""
        WILD.watch(s)
        WILD.follow_path(s, s.zeros("speed"), s.zeros("turn"), self.cfg.average_s)
        s.zeros("phase")[:] = (s.zeros("phase") + s.dt / self.cfg.period) % 1.0
        self._add_up(s)
        self._command(s, self._draw_change(s))

    def _add_up(self, s: State) -> None:
        """Sums for the report."""
        sums = {
            "error": self._speed_error(s).abs(),
            "forward": s.zeros("velocity", 2)[:, 0],
            "command": s.zeros("speed"),
        }
        for name, value in sums.items():
            s.zeros(f"sum_{name}")[:] += value

    def rewards(self, s: State) -> dict[str, Tensor]:
        """See `Weights`."""
        cfg, forces = self.cfg, WILD.foot_forces(s)
        loaded = forces > wildrobot.SWITCH_FORCE
        velocity, mean = s.zeros("velocity", 2), s.zeros("mean_velocity", 2)
        wanted = self._foot_heights(s)
        heights = WILD.foot_pos(s)[..., 2]
        rates = WILD.angular_velocity(s)[:, :2]
        width = (cfg.narrowest - WILD.stance_width(s)).clip(min=0.0)
        over = (forces / wildrobot.WEIGHT - 1.5).clip(min=0.0)
        load = s.joint_torque / wildrobot.TORQUE
        terms = {
            "track": torch.exp(-self._speed_error(s).abs() / 0.15),
            "speed": near(velocity[:, 0] - s.zeros("speed"), 0.25),
            "heading": near(s.zeros("heading_error"), 0.2),
            "lateral": mean[:, 1].square(),
            "swing": torch.minimum(heights.clip(min=0.0), wanted).sum(-1) / cfg.lift,
            "contact": (loaded == (wanted <= 0.0)).to(s.dtype).mean(-1),
            "upright": WILD.tilt(s).square(),
            "angular_velocity": rates.square().sum(-1),
            "bounce": s.velocity(WILD.base)[:, 2].square(),
            "height": ((WILD.height(s) - wildrobot.HOME_HEIGHT) / 0.05).square(),
            "torque": load.square().sum(-1),
            "overload": ((load.abs() - 0.7) / 0.3).clip(min=0.0).sum(-1),
            "action_rate": (s.action - s.last_action).square().sum(-1),
            "slip": WILD.slip(s, loaded),
            "impact": over.sum(-1),
            "spread": (width / 0.05).square(),
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
        steps = s.steps.clip(min=1)
        return {
            "tracking_error": s.zeros("sum_error") / steps,
            "lateral_drift": WILD.off_path(s)[:, 1].abs(),
            "heading_drift": s.zeros("heading_error").abs(),
            "forward_speed": s.zeros("sum_forward") / steps,
            "command": s.zeros("sum_command") / steps,
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

    def curriculum(self, s: State, progress: dict[str, float]) -> None:
        """Faster commands and harder pushes the fewer fall; more care for servos the better commands are followed."""
        full = self.cfg.weights.track * s.dt * progress["steps"]
        followed = progress["reward/track"] / max(full, 1e-6)
        care = self.cfg.leniency + (1.0 - self.cfg.leniency) * min(1.0, 2.0 * followed)
        goals: dict[str, float] = dict.fromkeys(WEAR, care)
        goals["fastest"] = self.cfg.speed_growth * progress["success"]
        goals["push"] = self.cfg.push_growth * progress["success"]
        for name, goal in goals.items():
            scale = s.scale.get(name, 0.0)
            s.scale[name] = scale + 0.05 * (goal - scale)
        s.scale["slowest"] = self.cfg.slowest

    def _command(self, s: State, mask: Tensor) -> None:
        """Draw new commands where `mask` is True."""
        slowest, fastest = self.cfg.speed
        grown = slowest + (fastest - slowest) * s.scale.get("fastest", 1.0)
        slowest *= s.scale.get("slowest", 1.0)
        s.remember("speed", mask, s.uniform(mask, slowest, min(grown, MAX_SPEED)))
        s.remember("turn", mask, s.uniform(mask, -self.cfg.turn, self.cfg.turn))

    def _draw_change(self, s: State) -> Tensor:
        """Whose command changes now, `(num_envs,)` bool."""
        drawn = torch.rand(s.num_envs, generator=s.generator, device=s.device)
        return drawn < s.dt / self.cfg.hold_s

    def _speed_error(self, s: State) -> Tensor:
        """Mean speed along the commanded heading less the mean command, `(num_envs,)`, m/s."""
        return s.zeros("mean_velocity", 2)[:, 0] - s.zeros("mean_command")

    def _foot_heights(self, s: State) -> Tensor:
        """How high the gait has the feet now, `(num_envs, 2)`, m; 0 for a foot on the ground."""
        phase = s.zeros("phase")
        legs = torch.stack((phase, (phase + 0.5) % 1.0), -1)
        first = (0.5 - self.cfg.swing) / 2  # swing in the middle of the leg's half
        part = ((legs - first) / self.cfg.swing).clip(0.0, 1.0)
        in_air = (part > 0.0) & (part < 1.0)
        return self.cfg.lift * (math.pi * part).sin().square() * in_air
