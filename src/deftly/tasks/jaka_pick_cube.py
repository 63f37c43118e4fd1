"""Pick a cube up with a JAKA Zu5 arm."""

from dataclasses import dataclass, field
from typing import Annotated

import mujoco
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from typing_extensions import Doc

from deftly.config import ANGLE, FORCE, LENGTH, MASS, PLACE, SPEED, TaskConfig
from deftly.contract import Act, Derive, Observe, PolicyContract, Signal
from deftly.robots import jaka_zu5
from deftly.robots.jaka_zu5 import ARM
from deftly.sim import scene
from deftly.sim.randomize import Randomize
from deftly.sim.sensors import Noise
from deftly.sim.state import State
from deftly.tasks import Report, Task, near, task

MAX_PRESS = 300.0
"""Force on the table up to which the reward counts it, N: a rare crash is not to drown what else is learned."""


@dataclass(frozen=True)
class Weights:
    """Weights of the reward terms. The first four terms are differences of a potential: no cycle earns anything.

    `press` is the rise of a maximum, so that an episode pays for its largest force, once, however long it presses.
    """

    reach: Annotated[float, Doc("Progress of the open gripper towards the cube, from above.")] = 2.0
    grasp: Annotated[
        float,
        Doc(
            "Progress of closing around the cube (0.4) and of pressing it with both fingers (0.6)."
        ),
    ] = 1.5
    lift: Annotated[
        float,
        Doc(
            "Progress of the gripped cube to 3 cm above the success height: not to hover just below."
        ),
    ] = 2.0
    hold: Annotated[float, Doc("Progress of the count of steps held at the height.")] = 1.0
    success: Annotated[float, Doc("Once, when the cube has been held.")] = 2.0
    action_rate: Annotated[float, Doc("Squared change of the action.")] = -0.001
    press: Annotated[
        float,
        Doc(
            "Rise of the episode's largest force of the fingers on the table, in units of 100 N, at most 3."
        ),
    ] = -0.2
    time: Annotated[float, Doc("Each step.")] = -0.01
    fell: Annotated[
        float, Doc("Once, when the cube falls off the table: an early end must not pay.")
    ] = -3.0


@dataclass(frozen=True)
class PickCubeConfig(TaskConfig):
    """Parameters of the task; lengths in m, in the arm's base frame (z up, the table top is z = 0)."""

    rate: float = 15.0
    cube_x: Annotated[tuple[float, float], PLACE, Doc("Where the cube starts: range of x, m.")] = (
        0.40,
        0.60,
    )
    cube_y: Annotated[tuple[float, float], PLACE, Doc("Where the cube starts: range of y, m.")] = (
        -0.10,
        0.10,
    )
    cube_yaw: Annotated[
        float,
        Ge(0),
        ANGLE,
        Doc("The cube starts turned by up to this much, rad; the fingers square it."),
    ] = 0.15
    cube_half: Annotated[float, Gt(0.012), Lt(0.04), Doc("Half the cube's edge, m.")] = 0.03
    cube_mass: Annotated[float, Gt(0), MASS, Doc("Mass of the cube, kg.")] = 0.08
    home_noise: Annotated[
        float, Ge(0), Le(0.5), Doc("Joints 1 to 3 start within this much of home, rad.")
    ] = 0.05
    success_height: Annotated[
        float,
        Gt(0),
        LENGTH,
        Doc("Height of the cube's centre above the table that counts as lifted, m."),
    ] = 0.10
    hold_steps: Annotated[
        int,
        Ge(1),
        Doc("Consecutive steps for which the cube must be gripped at that height, and still."),
    ] = 15
    hold_speed: Annotated[
        float, Gt(0), SPEED, Doc("Speed of the cube below which it counts as still, m/s.")
    ] = 0.10
    grip_height: Annotated[
        float,
        Ge(0),
        LENGTH,
        Doc("In rewards alone: how far above the cube's centre the pinch point is to grip it, m."),
    ] = 0.01
    press_limit: Annotated[
        float,
        Gt(0),
        FORCE,
        Doc(
            "Force on the table that is hard, N: what the gripper itself can exert, `GRIPPER_FORCE`."
        ),
    ] = jaka_zu5.GRIPPER_FORCE
    speed: Annotated[
        float, Gt(0), Le(3.14), Doc("Joint speed at action 1, rad/s: at most the arm's limit.")
    ] = 1.2
    lowpass: Annotated[float, Ge(0), Lt(1), Doc("Weight of the previous action of the arm.")] = 0.4
    caution: Annotated[
        float,
        Ge(0),
        Doc(
            "How many times heavier action rate and press weigh once every episode of training succeeds."
        ),
    ] = 10.0
    patience: Annotated[
        float,
        Ge(1),
        Doc(
            "In training alone: how many times faster the held cube may move while no episode succeeds."
        ),
    ] = 5.0
    weights: Annotated[Weights, Doc("Weights of the reward terms.")] = field(
        default_factory=Weights
    )


@task("jaka-pick-cube")
class PickCube(Task):
    """Pick the red cube up with a JAKA Zu5 and hold it with its centre 10 cm above the table.

    Observation (11):

    | index | term      | meaning                              | unit | range of the term   |
    |-------|-----------|--------------------------------------|------|---------------------|
    | 0-5   | joint_pos | arm joints 1 to 6                    | rad  | joint limits        |
    | 6     | joint_pos | opening of a finger, divided by 0.04 | m    | 0 .. 0.04           |
    | 7-9   | cube_pos  | cube centre in the base frame        | m    | the table           |
    | 10    | cube_dist | pinch point to cube centre           | m    | 0 .. 1.5            |

    `cube_dist` is no signal: the contract computes it from the measured joints and cube position, noise and all.

    Action (4), in [-1, 1]:

    | index | meaning                                                                        |
    |-------|--------------------------------------------------------------------------------|
    | 0-2   | velocity of joints 1 to 3, times `speed`, integrated on the command            |
    | 3     | gripper: above 0 closes, else opens                                            |

    Joints 4 to 6 follow, so that the tool points straight down and the fingers stay square to the base frame:
    q4 = pi/2 - q2 - q3, q5 = pi/2, q6 = pi/2 + q1. (Seed 003 locked the wrist, which tilts the tool.)

    Success: cube centre at least `success_height` above the table, pressed by both fingers and slower than
    `hold_speed`, for `hold_steps` steps in a row; ends the episode. Failure: the cube falls 5 cm below the table top.

    Curriculum, in training alone: while few episodes succeed, the cube may move up to `patience` times faster in the
    hold, since exploration shakes the arm; as more do, `action_rate` and `press` weigh up to `caution` times more.

    Randomization: cube position, yaw, mass (x 0.7 .. 1.3) and friction (x 0.7 .. 1.2); home pose; gains of the servos
    (x 0.9 .. 1.1). Sensor noise: cube position, 1 mm standard deviation and 2 mm bias.
    """

    Config = PickCubeConfig
    # A policy that explores wanders off in a full episode: short ones keep it near the cube. An action of 1 moves the
    # pinch point by 4 cm in a step, and beside the cube a finger has 2 cm. `deftly eval` runs full episodes.
    defaults = {
        "env": {"num_envs": 256, "episode_steps": 75},
        "train": {"init_std": 0.5, "desired_kl": 0.02},
    }
    cfg: PickCubeConfig
    prompts = (
        "pick up the red cube",
        "grasp the red cube and lift it",
        "take the cube from the table",
        "lift the red block off the table and hold it",
        "raise the red cube",
    )
    report = Report(
        metrics={
            "time_to_grasp": "time until the first grip, s",
            "slips": "times the object slipped out in the air",
            "peak_press": "largest force of the fingers on the table, as it is at the end of each control period, N",
            "hard_press": "fraction of episodes in which that was more than press_limit",
        },
        plots=(
            ("seconds", "Episode length, s"),
            ("time_to_grasp", "Time to the first grip, s"),
            ("peak_press", "Largest force on the table, N"),
        ),
    )

    def scene(self) -> mujoco.MjSpec:
        """The arm on a table with one cube; cameras `front` and `wrist`."""
        cfg = self.cfg
        s = jaka_zu5.spec()
        scene.prepare(s)
        scene.add_floor(s, -0.75)
        scene.add_table(s, centre=(0.35, 0.0), half=(0.55, 0.5), height=0.75)
        scene.add_box(s, "cube", cfg.cube_half, cfg.cube_mass, rgba=(0.85, 0.15, 0.12, 1.0))
        x = sum(cfg.cube_x) / 2
        y = sum(cfg.cube_y) / 2
        s.body("cube").pos = [x, y, cfg.cube_half]
        ARM.add_touch(s, "cube")
        ARM.add_touch(s, "world")
        ARM.add_wrist_camera(s)
        scene.add_camera(s, "front", eye=(1.45, -1.0, 0.75), target=(0.28, 0.0, 0.24), fovy=40)
        home = {joint.name: joint.home for joint in jaka_zu5.ROBOT.joints}
        scene.add_home(s, home)
        return s

    def contract(self) -> PolicyContract:
        """Velocity control of three joints and the gripper, at `rate`."""
        robot, cfg = jaka_zu5.ROBOT, self.cfg
        interface = robot.interface(Signal("cube_pos", 3, "m", "base"))
        derive = (
            Derive("pinch_pos", "forward_kinematics", site="pinch"),
            Derive("cube_offset", "difference", ("pinch_pos", "cube_pos")),
            Derive("cube_dist", "norm", ("cube_offset",)),
        )
        joint_scale = (1, 1, 1, 1, 1, 1, 1 / jaka_zu5.FINGER_TRAVEL)
        observe = (Observe("joint_pos", joint_scale), Observe("cube_pos"), Observe("cube_dist"))
        arm = Act(("joint_1", "joint_2", "joint_3"), "velocity", (cfg.speed,), cfg.lowpass)
        act = (arm, Act(("gripper",), "gripper", (jaka_zu5.GRIPPER_SPEED,)))
        return PolicyContract(interface, cfg.rate, observe, act, derive=derive)

    def signals(self, s: State) -> dict[str, Tensor]:
        """Joint positions and cube position."""
        return {"joint_pos": s.joint_pos, "cube_pos": _cube(s)}

    def privileged(self, s: State) -> Tensor:
        """Joint velocities, cube velocity, pinch point relative to the cube, grip, fraction of the steps to hold."""
        held = s.zeros("held")[:, None] / self.cfg.hold_steps
        away = ARM.tool(s) - _cube(s)
        grip = s.zeros("gripped")[:, None]
        return torch.cat(
            (s.joint_vel, s.velocity("cube")[:, :3], 10 * away, grip, held, s.last_action), -1
        )

    def reset(self, s: State, mask: Tensor) -> None:
        """Cube anywhere in its range, arm near home with the wrist coupled to it."""
        cfg = self.cfg
        joints = s.joint_pos.clone()
        joints[:, :3] += s.uniform(mask, -cfg.home_noise, cfg.home_noise, 3)
        joints[:, 3] = jaka_zu5.HALF_PI - joints[:, 1] - joints[:, 2]
        joints[:, 5] = jaka_zu5.HALF_PI + joints[:, 0]
        s.set_joint_pos(mask, joints)
        x = s.uniform(mask, *cfg.cube_x)
        y = s.uniform(mask, *cfg.cube_y)
        half_yaw = s.uniform(mask, -cfg.cube_yaw, cfg.cube_yaw) / 2
        nothing = torch.zeros_like(x)
        position = torch.stack((x, y, nothing + cfg.cube_half), -1)
        turned = torch.stack((half_yaw.cos(), nothing, nothing, half_yaw.sin()), -1)
        s.place("cube", mask, position, turned)

    def start(self, s: State, mask: Tensor) -> None:
        """An episode's potential starts where the arm does."""
        gripped = self._gripped(s)
        s.remember("gripped", mask, gripped)
        s.remember("potential", mask, self._potential(s, gripped))
        s.remember("time_to_grasp", mask, torch.nan)

    def update(self, s: State) -> None:
        """Count the steps held, note when the cube was gripped and how often it slipped from the fingers."""
        cfg = self.cfg
        gripped = self._gripped(s)
        height = _cube(s)[:, 2]
        held = s.zeros("held")
        was = s.zeros("potential", 4)
        speed = s.velocity("cube")[:, :3].norm(dim=-1)
        still = speed < cfg.hold_speed * s.scale.get("hold_speed", 1.0)
        is_high = height >= cfg.success_height
        held[:] = torch.where(gripped & is_high & still, held + 1, 0.0)
        grasped = s.zeros("time_to_grasp")
        peak = s.zeros("peak_press")
        for_the_first_time = gripped & grasped.isnan()
        grasped[:] = torch.where(for_the_first_time, s.steps * s.dt, grasped)
        before = peak.clip(max=MAX_PRESS)
        peak[:] = torch.maximum(peak, self._pressure(s))
        s.zeros("press_rise")[:] = peak.clip(max=MAX_PRESS) - before
        slips = s.zeros("slips")
        was_grasped = was[:, 1] > 0.5
        in_air = height > cfg.cube_half + 0.01
        slips += was_grasped & ~gripped & in_air
        s.zeros("gripped")[:] = gripped
        now = self._potential(s, gripped)
        s.zeros("gain", 4)[:] = now - was
        was[:] = now

    def rewards(self, s: State) -> dict[str, Tensor]:
        """See `Weights`."""
        return {
            **dict(zip(("reach", "grasp", "lift", "hold"), s.zeros("gain", 4).unbind(-1))),
            "success": self.success(s),
            "action_rate": (s.action - s.last_action).square().sum(-1),
            "press": s.zeros("press_rise") / 100.0,
            "time": torch.ones_like(s.zeros("held")),
            "fell": self.failed(s)["cube_fell"],
        }

    def failed(self, s: State) -> dict[str, Tensor]:
        """The cube is off the table."""
        return {"cube_fell": _cube(s)[:, 2] < -0.05}

    def success(self, s: State) -> Tensor:
        """Held at the height for long enough."""
        return s.zeros("held") >= self.cfg.hold_steps

    def metrics(self, s: State) -> dict[str, Tensor]:
        """What `report` explains."""
        own = {name: s.store[name] for name in ("time_to_grasp", "slips", "peak_press")}
        hard_press = own["peak_press"] > self.cfg.press_limit
        return {**own, "hard_press": hard_press.to(s.dtype)}

    def randomize(self) -> tuple[Randomize, ...]:
        """Cube mass and friction, servo gains."""
        arm = tuple(link[0] for link in jaka_zu5.LINKS)
        return (
            Randomize("mass", 0.7, 1.3, ("cube",)),
            Randomize("friction", 0.7, 1.2, ("cube", "pad_left", "pad_right"), shared=True),
            *(Randomize(gain, 0.9, 1.1, arm, shared=True) for gain in ("kp", "kd")),
        )

    def noise(self) -> dict[str, Noise]:
        """A camera's error of the cube's position."""
        return {"cube_pos": Noise(gaussian=0.001, bias=0.002)}

    def curriculum(self, s: State, progress: dict[str, float]) -> None:
        """With success, what wears the hardware weighs more, and the hold is judged more strictly."""
        caution = 1.0 + (self.cfg.caution - 1.0) * progress["success"]
        failure = 1.0 - progress["success"]
        patience = 1.0 + (self.cfg.patience - 1.0) * failure
        for name, wanted in (
            ("action_rate", caution),
            ("press", caution),
            ("hold_speed", patience),
        ):
            scale = s.scale.get(name, 1.0)
            s.scale[name] = scale + 0.05 * (wanted - scale)

    def _gripped(self, s: State) -> Tensor:
        """Both fingers press the cube, and it is between their tips."""
        return ARM.is_grasping(s, "cube", within=1.2 * self.cfg.cube_half)

    def _pressure(self, s: State) -> Tensor:
        """Force of the fingers on the table, N."""
        return ARM.touch(s, "world").sum(-1)

    def _potential(self, s: State, gripped: Tensor) -> Tensor:
        """How far the episode has come, `(num_envs, 4)`, each in 0 .. 1: reach, grasp, lift, hold."""
        cfg = self.cfg
        cube = _cube(s)
        opening = s.joint("gripper")
        grip = s.tensor((0.0, 0.0, cfg.grip_height))
        away = ARM.tool(s) - cube - grip
        aside = away[:, :2].norm(dim=-1)
        # a funnel: off to the side, the place to be is higher up
        above = (1.5 * (aside - 0.01)).clip(0.0, 0.08)
        off_height = away[:, 2] - above
        distance = (aside.square() + off_height.square()).sqrt()
        # a gripper too closed for the cube counts less
        room = (opening / (cfg.cube_half - 0.012)).clip(0.0, 1.0)
        reach = (1 - torch.tanh(5 * distance)) * (0.5 + 0.5 * room)
        around = near(away.norm(dim=-1), 0.025)
        closed = 1 - opening / jaka_zu5.FINGER_TRAVEL
        grasp = 0.4 * around * closed + 0.6 * gripped
        whole = cfg.success_height + 0.03 - cfg.cube_half
        rise = (cube[:, 2] - cfg.cube_half) / whole
        held = s.zeros("held") / cfg.hold_steps
        lift = gripped * rise.clip(0.0, 1.0)
        return torch.stack((reach, grasp, lift, held), -1)


def _cube(s: State) -> Tensor:
    """Centre of the cube, `(num_envs, 3)`, m."""
    return s.pose("cube")[:, :3]
