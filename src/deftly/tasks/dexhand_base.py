"""A DexHand 021 above the ground, and nothing to do: the task to try a new idea on."""

from dataclasses import dataclass, field
from typing import Annotated

import mujoco
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from typing_extensions import Doc

from deftly.config import ANGLE, LENGTH, SPEED, TaskConfig
from deftly.contract import COMMAND, Derive, Observe, PolicyContract, Signal
from deftly.robots import dexhand021
from deftly.robots.dexhand021 import BASE, DRIVEN, FINGERS, HAND
from deftly.sim import scene
from deftly.sim.randomize import Randomize
from deftly.sim.sensors import Noise
from deftly.sim.state import State
from deftly.tasks import Report, Task, task

ROBOT = dexhand021.RIGHT
CARRIER = len(BASE)
SOFT = 0.8  # fraction of a finger joint's range, about its middle, that is not near its limits
ON_GROUND = 0.012  # m: height of a pad or tip whose finger, of a radius of 9.5 mm, is on the ground
TOUCHED = 1.0  # N: a pad that is pressed with more is in contact


@dataclass(frozen=True)
class Weights:
    """Weights of the reward terms, those of seed 001."""

    alive: Annotated[float, Doc("Each step.")] = 0.1
    height_safety: Annotated[
        float, Doc("1 - exp(-20 (z - 0.02 m)), z of the lowest fingertip; 0 below.")
    ] = 1.0
    finger_velocity: Annotated[float, Doc("exp(-0.1 |v|), of the finger joints, rad/s.")] = 0.1
    hand_velocity: Annotated[float, Doc("exp(-0.2 |v|), of the carrier's slides, m/s.")] = 0.1
    hand_angular_velocity: Annotated[
        float, Doc("exp(-0.2 |v|), of the carrier's hinges, rad/s.")
    ] = 0.1
    joint_limit: Annotated[
        float, Doc("Fraction of the driven finger joints in the middle 80 % of their range.")
    ] = 0.5
    finger_acceleration: Annotated[
        float, Doc("exp(-2 |dv|), change of the finger joints' velocities in a step.")
    ] = 0.05
    hand_acceleration: Annotated[
        float, Doc("exp(-0.5 |dv|), change of the carrier's velocities in a step.")
    ] = 0.05
    contact_stability: Annotated[
        float, Doc("exp(-n), n pads that gained or lost contact in the step.")
    ] = 0.2
    success: Annotated[float, Doc("Once, at the end of the time.")] = 10.0
    failure: Annotated[float, Doc("Once, when a fingertip is on the ground.")] = -5.0


@dataclass(frozen=True)
class BaseConfig(TaskConfig):
    """Parameters of the task."""

    rate: float = 50.0
    episode_steps: int = 300
    height: Annotated[
        float, Gt(0), LENGTH, Doc("The hand starts at this height above the ground, m.")
    ] = 0.5
    hand_turn: Annotated[
        float, Ge(0), ANGLE, Doc("The hand starts turned by up to this much about each axis, rad.")
    ] = 0.2
    curl: Annotated[
        float, Ge(0), ANGLE, Doc("Driven finger joints start bent by up to this much, rad.")
    ] = 0.2
    base_speed: Annotated[
        float, Gt(0), SPEED, Doc("Speed of the carrier's slides at action 1, m/s.")
    ] = dexhand021.BASE_SPEED
    base_turn: Annotated[
        float, Gt(0), SPEED, Doc("Speed of the carrier's hinges at action 1, rad/s.")
    ] = dexhand021.BASE_TURN_SPEED
    finger_speed: Annotated[
        float, Gt(0), SPEED, Doc("Speed of the driven finger joints at action 1, rad/s.")
    ] = dexhand021.FINGER_SPEED
    lowpass: Annotated[float, Ge(0), Lt(1), Doc("Weight of the previous action.")] = 0.0
    weights: Annotated[Weights, Doc("Weights of the reward terms.")] = field(
        default_factory=Weights
    )


@task("dexhand-base")
class Base(Task):
    """Move a DexHand 021 about above the ground: a task to try things on.

    Observation (248), in the groups of seed 001:

    | index   | term           | meaning                                            | unit       |
    |---------|----------------|----------------------------------------------------|------------|
    | 0-25    | joint_pos      | carrier (6) and finger joints (20)                 | m, rad     |
    | 26-51   | joint_vel      | their velocities                                   | m/s, rad/s |
    | 52-77   | command        | their targets                                      | m, rad     |
    | 78-84   | hand           | pose of the hand, fingers along x and the palm down | m         |
    | 85-89   | touch          | force on the pads, up to 2 N                       | N          |
    | 90-107  | action         | the last filtered action                           |            |
    | 108-177 | tip, pad       | poses of fingertips and pads                       | m          |
    | 178-247 | tip, pad_from_hand | the same, as seen from the hand                | m          |

    Action (18), in [-1, 1]: velocities of the carrier's slides and hinges and of the twelve finger motors, integrated
    on the command.

    Success: the time is up. Failure: a fingertip is on the ground. Randomization: how the hand starts; servo gains.
    """

    Config = BaseConfig
    cfg: BaseConfig
    report = Report(
        selection="return",
        metrics={"lowest": "least height of a fingertip above the ground, m"},
        plots=(("seconds", "Episode length, s"), ("lowest", "Lowest fingertip, m")),
    )

    def scene(self) -> mujoco.MjSpec:
        """The hand above the ground; camera `front`."""
        s = ROBOT.spec()
        scene.prepare(s)
        scene.add_floor(s, 0.0, collides=True)
        scene.add_camera(s, "front", eye=(0.7, -0.6, 0.6), target=(0.1, 0.0, 0.45), fovy=45)
        home = {joint.name: joint.home for joint in ROBOT.joints}
        scene.add_home(s, {**home, "ARTz": self.cfg.height})
        return s

    def contract(self) -> PolicyContract:
        """Velocities of the carrier and of the twelve finger motors; joints, touch and poses are seen."""
        cfg = self.cfg
        interface = ROBOT.interface(
            Signal("joint_vel", len(ROBOT.joints), "m/s, rad/s"), Signal("touch", len(FINGERS), "N")
        )
        hand = Derive("hand", "forward_kinematics", site=dexhand021.PALM, pose=True)
        poses = [
            Derive(f"{kind}{i}", "forward_kinematics", site=f"f_{kind}{i}", pose=True)
            for kind in ("tip", "pad")
            for i in FINGERS
        ]
        seen = [
            Derive(f"{pose.name}_from_hand", "relative_pose", (hand.name, pose.name))
            for pose in poses
        ]
        observe = (
            *(Observe(name) for name in ("joint_pos", "joint_vel", COMMAND, hand.name)),
            Observe("touch", clip=(0.0, 2.0)),
            Observe("action"),
            *(Observe(pose.name) for pose in (*poses, *seen)),
        )
        act = dexhand021.act(cfg.base_speed, cfg.base_turn, cfg.finger_speed, cfg.lowpass)
        return PolicyContract(interface, cfg.rate, observe, act, derive=(hand, *poses, *seen))

    def signals(self, s: State) -> dict[str, Tensor]:
        """Joint positions and velocities, force on each pad."""
        return {"joint_pos": s.joint_pos, "joint_vel": s.joint_vel, "touch": HAND.pad_touch(s)}

    def reset(self, s: State, mask: Tensor) -> None:
        """Hand at its height, a little turned, fingers nearly open."""
        cfg = self.cfg
        joints = s.joint_pos.clone()
        joints[:, 3:CARRIER] += s.uniform(mask, -cfg.hand_turn, cfg.hand_turn, 3)
        bent = s.uniform(mask, 0.0, cfg.curl, len(DRIVEN))
        joints[:, CARRIER:] = HAND.finger_pos(bent)
        s.set_joint_pos(mask, joints)

    def start(self, s: State, mask: Tensor) -> None:
        """The hand is at rest and touches nothing."""
        s.remember("lowest", mask, self._lowest(s))

    def update(self, s: State) -> None:
        """What changed in the step, and how low the hand went."""
        touched = (HAND.pad_touch(s) > TOUCHED).to(s.dtype)
        before = s.zeros("touched", len(FINGERS))
        s.zeros("changes")[:] = (touched - before).abs().sum(-1)
        before[:] = touched
        count = len(ROBOT.joints)
        velocity = s.zeros("velocity", count)
        s.zeros("jolt", count)[:] = s.joint_vel - velocity
        velocity[:] = s.joint_vel
        lowest = s.zeros("lowest")
        lowest[:] = torch.minimum(lowest, self._lowest(s))

    def rewards(self, s: State) -> dict[str, Tensor]:
        """See `Weights`."""
        velocity = s.joint_vel
        jolt = s.zeros("jolt", len(ROBOT.joints))
        clearance = (self._lowest(s) - 0.02).clip(min=0.0)
        return {
            "alive": torch.ones_like(clearance),
            "height_safety": 1 - torch.exp(-20.0 * clearance),
            "finger_velocity": _calm(velocity[:, CARRIER:], 0.1),
            "hand_velocity": _calm(velocity[:, :3], 0.2),
            "hand_angular_velocity": _calm(velocity[:, 3:CARRIER], 0.2),
            "joint_limit": self._away_from_limits(s),
            "finger_acceleration": _calm(jolt[:, CARRIER:], 2.0),
            "hand_acceleration": _calm(jolt[:, :CARRIER], 0.5),
            "contact_stability": torch.exp(-s.zeros("changes")),
            "success": self.success(s),
            "failure": self.failed(s)["hit_ground"],
        }

    def failed(self, s: State) -> dict[str, Tensor]:
        """A fingertip is on the ground."""
        return {"hit_ground": self._lowest(s) < ON_GROUND}

    def success(self, s: State) -> Tensor:
        """The time is up, and nothing happened."""
        is_over = s.steps >= s.episode_steps
        return is_over & (self._lowest(s) >= ON_GROUND)

    def metrics(self, s: State) -> dict[str, Tensor]:
        """What `report` explains."""
        return {"lowest": s.zeros("lowest")}

    def randomize(self) -> tuple[Randomize, ...]:
        """Servo gains."""
        servos = tuple(joint.name for joint in ROBOT.joints)
        return tuple(Randomize(gain, 0.9, 1.1, servos, shared=True) for gain in ("kp", "kd"))

    def noise(self) -> dict[str, Noise]:
        """Encoders, and pads that miss small forces."""
        return {"joint_pos": Noise(gaussian=0.002), "touch": Noise(gaussian=0.05)}

    def _lowest(self, s: State) -> Tensor:
        """Height of the lowest fingertip or pad, `(num_envs,)`, m."""
        tips = torch.stack([s.site(f"f_tip{i}")[:, 2] for i in FINGERS], -1)
        pads = HAND.pad_positions(s)[..., 2]
        return torch.minimum(tips.amin(-1), pads.amin(-1))

    def _away_from_limits(self, s: State) -> Tensor:
        """Fraction of the driven finger joints that are not near their limits."""
        named = {joint.name: joint for joint in ROBOT.joints}
        driven = [named[name] for name in DRIVEN]
        columns = [ROBOT.joints.index(joint) for joint in driven]
        middle = s.tensor(tuple((joint.upper + joint.lower) / 2 for joint in driven))
        half = s.tensor(tuple((joint.upper - joint.lower) / 2 for joint in driven))
        distance = (s.joint_pos[:, columns] - middle).abs()
        inside = distance <= SOFT * half
        return inside.to(s.dtype).mean(-1)


def _calm(velocity: Tensor, rate: float) -> Tensor:
    """exp(-rate |v|), `(num_envs,)`."""
    return torch.exp(-rate * velocity.norm(dim=-1))
