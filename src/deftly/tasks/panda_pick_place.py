"""Pick an object up with a Franka Panda and put it where one is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import mujoco
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from typing_extensions import Doc

from deftly.config import ANGLE, LENGTH, MASS, PLACE, SPEED, VISUAL_LADDER, TaskConfig
from deftly.contract import Act, Derive, Input, Observe, PolicyContract, Signal
from deftly.objects import items
from deftly.objects.assortment import Assortment
from deftly.objects.grasp_frame import Hand
from deftly.robots import panda
from deftly.robots.panda import ARM, FINGERS
from deftly.robots.reach import reach
from deftly.sim import scene
from deftly.sim.randomize import Randomize
from deftly.sim.sensors import Noise
from deftly.sim.state import State
from deftly.tasks import Report, Task, task

GOAL_LOW, GOAL_HIGH = (0.30, -0.25, 0.0), (0.70, 0.25, 0.40)
"""Corners of the box in which a goal may be, in the arm's base frame, m: what the arm reaches with its tool down."""
OBJECT, GOAL_OFFSET, GOAL = slice(7, 10), slice(17, 20), slice(20, 23)
"""Where the observation has the object's position, and what depends on the goal."""
VELOCITY = slice(51, 54)
"""Where what the critic sees has the object's velocity: behind 33 numbers of the policy and 18 of the joints."""
MAX_PRESS = 200.0
"""Force on the table up to which the reward counts it, N."""
CAMERAS = ("front", "wrist")
"""Whose images a policy sees with `task.observation` rgb or rgb_and_state, each in a group of the observation."""
VISUAL = (
    Randomize("light", 0.5, 1.5),
    Randomize("light_direction", -0.3, 0.3, op="add"),
    Randomize("material", 0.6, 1.3, ("wood", "deftly_floor", "panda_white", "panda_grey")),
    Randomize("pattern", 0.5, 2.0, ("wood", "deftly_floor")),
    Randomize("camera_position", -0.01, 0.01, op="add"),
    Randomize("camera_rotation", -0.03, 0.03, op="add"),
    Randomize("fovy", 0.95, 1.05),
)
"""What images show differently in each episode. Cameras: as one puts them up by hand, within 1 cm and 2 degrees."""
NEAR = 0.02
"""The stricter distance to the goal that the evaluation reports as well, m."""
GRASP_NEAR = 0.035
"""Distance of the tool point to the grasp point below which pressing pads are a grip, m."""
HAND = Hand(
    opening=2 * (panda.FINGER_TRAVEL - 0.002),  # 2 mm of room at each side
    pad=(panda.PAD_HALF[0], panda.PAD_HALF[2]),
    below=0.012,  # fingertips end 9.5 mm below the tool point
    above=0.038,  # the palm is 43 mm above it
)
"""What of the hand decides where objects are grasped."""
BESIDE = 0.001
"""Room between each finger and the object in an episode that starts with the hand around it, m."""
FREE_WAY = 0.8
"""Fraction of the way from home to around the object on which an open hand does not touch it."""
ABOVE = 0.0015
"""Height above the table at which objects start, m: a larger one is not to start in it."""
DIFFICULTY = "difficulty"
"""What the curriculum sets in `State.scale`, 0 .. 1."""
EASIER, HARDER = 0.4, 0.7
"""Success rates below and above which the curriculum changes the difficulty."""
GRASPED = "start_grasped"
"""Where `State.scale` has the share of episodes that begin at the object."""
CLIMB = 0.02
"""By how much it does in an iteration: from 0 to 1 in 50."""
CUBE = (0.025, 0.025, 0.025, 0.0, 0.0, 0.0, 0.025, 1.0)
"""`shape` of a cube of 5 cm."""
SHAPE_BOUNDS = (*(0.0,) * 3, *(-0.5,) * 3, 0.0, 0.0), (*(0.5,) * 6, 0.04, 1.0)
"""Smallest and largest numbers of `shape`."""

SHAPE_ERRORS = (*(1.0,) * 6, 0.3, 10.0)
"""What an error of `shape` is multiplied by: a width is measured better than a box; of the fill it is per m."""


@dataclass(frozen=True)
class Weights:
    """Weights of the reward terms. The first four are differences of a potential: no cycle earns anything."""

    reach: Annotated[float, Doc("Progress of the open hand towards the object, from above.")] = 2.0
    grasp: Annotated[
        float, Doc("Progress of closing around the object (0.4), and of pressing it (0.6).")
    ] = 1.5
    carry: Annotated[float, Doc("Progress of the gripped object towards the goal.")] = 4.0
    hold: Annotated[float, Doc("Progress of the count of steps at the goal.")] = 1.0
    success: Annotated[float, Doc("Once, when the object has stayed at the goal.")] = 2.0
    sparse: Annotated[
        float,
        Doc("1 with the object still at the goal, 0 with it moving there, -1 elsewhere."),
    ] = 0.0
    tilt: Annotated[float, Doc("Squared sine of the tool's angle to the vertical.")] = -0.1
    posture: Annotated[
        float, Doc("Squared distance from home of the joints that turn the elbow, rad2.")
    ] = -0.05
    action_rate: Annotated[float, Doc("Squared change of the action.")] = -0.001
    press: Annotated[
        float, Doc("Rise of the largest force of the fingers on the table, in units of 100 N.")
    ] = -0.2
    time: Annotated[float, Doc("Each step.")] = -0.01
    fell: Annotated[float, Doc("Once, when the object falls off the table.")] = -3.0


SPARSE = Weights(
    *(0.0,) * 5, sparse=1.0, tilt=0.0, posture=0.0, action_rate=0.0, press=0.0, time=0.0, fell=0.0
)
"""Weights of the sparse reward."""


@dataclass(frozen=True)
class PickPlaceConfig(TaskConfig):
    """Parameters of the task; lengths in m, in the arm's base frame (z up, the table top is z = 0)."""

    rate: float = 20.0
    episode_steps: int = 200
    object_x: Annotated[tuple[float, float], PLACE, Doc("Where the object starts: x, m.")] = (
        0.40,
        0.60,
    )
    object_y: Annotated[tuple[float, float], PLACE, Doc("Where the object starts: y, m.")] = (
        -0.15,
        0.15,
    )
    object_yaw: Annotated[
        float, Ge(0), ANGLE, Doc("The object starts turned by up to this much, rad.")
    ] = 0.3
    objects: Annotated[
        tuple[str, ...],
        Doc(
            "What is picked up, one of these in each episode: cube, sphere, cylinder, a shipped object, "
            "or a folder that deftly scan wrote."
        ),
    ] = ("cube", "sphere", "cylinder", "pawn", "tee")
    object_half: Annotated[
        float, Gt(0.01), Lt(0.036), Doc("Half the edge of a cube, radius of the others, m.")
    ] = 0.025
    object_mass: Annotated[
        float,
        Gt(0),
        MASS,
        Doc("Mass of cube, sphere and cylinder, kg; scanned objects bring theirs."),
    ] = 0.1
    object_size: Annotated[
        float | None,
        Gt(0),
        Lt(1),
        Doc("Longest side to which scanned objects are scaled, m; unset: as scanned."),
    ] = None
    shape_error: Annotated[
        float,
        Ge(0),
        Le(0.05),
        Doc(
            "Half range of an error of what the input `shape` says, drawn for each episode, m: a policy that is "
            "trained with it does not learn the numbers of its few objects by heart."
        ),
    ] = 0.0
    goal_x: Annotated[tuple[float, float], PLACE, Doc("Where the goal is: x, m.")] = (0.40, 0.60)
    goal_y: Annotated[tuple[float, float], PLACE, Doc("Where the goal is: y, m.")] = (-0.15, 0.15)
    goal_height: Annotated[
        tuple[float, float], PLACE, Doc("Height of the goal above where the object lies, m.")
    ] = (0.0, 0.2)
    least_way: Annotated[
        float, Ge(0), LENGTH, Doc("Goals are at least this far from where the object starts, m.")
    ] = 0.08
    home_noise: Annotated[
        float, Ge(0), Le(0.5), Doc("Joints start within this much of home, rad.")
    ] = 0.03
    distance_threshold: Annotated[
        float, Gt(0), LENGTH, Doc("Distance of the object to the goal that counts as there, m.")
    ] = 0.05
    hold_steps: Annotated[int, Ge(1), Doc("Steps in a row for which it must be there, still.")] = 10
    hold_speed: Annotated[
        float, Gt(0), SPEED, Doc("Speed of the object below which it counts as still, m/s.")
    ] = 0.10
    speed: Annotated[
        float, Gt(0), Le(2.175), Doc("Joint speed at action 1, rad/s: at most the arm's limit.")
    ] = 0.8
    lowpass: Annotated[float, Ge(0), Lt(1), Doc("Weight of the previous action of the arm.")] = 0.4
    observation: Annotated[
        Literal["state", "rgb_and_state", "rgb"],
        Doc("What the policy sees: numbers; images too; or images, the arm's joints and the goal."),
    ] = "state"
    image_size: Annotated[int, Ge(8), Le(1024), Doc("Edge of the square images, pixels.")] = 64
    reward: Annotated[
        Literal["dense", "sparse"],
        Doc("dense: `weights`; sparse: 1 still at the goal, 0 moving there, -1 elsewhere."),
    ] = "dense"
    curriculum: Annotated[
        bool,
        Doc(
            "Begin training with near and low goals and the objects that are easiest to grasp, and go on with success."
        ),
    ] = False
    start_grasped: Annotated[
        float,
        Ge(0),
        Le(1),
        Doc(
            "Share of training's episodes that begin at the object: half of them with the hand around it, half on the "
            "way there."
        ),
    ] = 0.0
    weights: Annotated[Weights, Doc("Weights of the reward terms.")] = field(
        default_factory=Weights
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ",".join(self.objects).split(",")
        stripped = [name.strip() for name in names]
        object.__setattr__(self, "objects", tuple(name for name in stripped if name))
        if self.reward == "sparse":
            object.__setattr__(self, "weights", SPARSE)
            # to end there would be worth less than to stay; see also `failed`
            object.__setattr__(self, "stop_on_success", False)


@task("panda-pick-place")
class PickPlace(Task):
    """Pick an object up with a Franka Panda and hold it still at a goal, on the table or in the air.

    Observation (33):

    | index | term          | meaning                                      | unit |
    |-------|---------------|----------------------------------------------|------|
    | 0-6   | tool_pose     | position and quaternion of the tool point    | m    |
    | 7-13  | object_pose   | position and quaternion of the object        | m    |
    | 14-16 | tool_offset   | object minus tool point                      | m    |
    | 17-19 | goal_offset   | goal minus object                            | m    |
    | 20-22 | goal          | where the object is to be (an input)         | m    |
    | 23-24 | fingers       | way of each finger from the middle           | m    |
    | 25-32 | shape         | size and shape of the object (an input)      | m    |

    All in the arm's base frame. `tool_pose` is no signal: the contract computes it from the measured joints. The
    object's frame is its grasp frame: its origin is where it is grasped, y is the direction in which it is narrowest.
    `shape` says in that frame half extents (3) and centre (3) of the box around it, half of its width between the
    fingers, and what fraction of the box it fills. One of `objects` is drawn for each episode.

    With `observation` rgb_and_state the policy also sees two images `(image_size, image_size, 3)` uint8, `front` and
    `wrist`. With rgb nothing measures the object: the policy sees these images, and beside them (22)

    | index | term          | meaning                                      | unit |
    |-------|---------------|----------------------------------------------|------|
    | 0-6   | tool_pose     | as above                                     | m    |
    | 7-15  | joint_pos     | joints of the arm, fingers                   | rad  |
    | 16-18 | goal_way      | goal minus tool point                        | m    |
    | 19-21 | goal          | as above                                     | m    |

    Action (9), in [-1, 1]:

    | index | meaning                                                                       |
    |-------|-------------------------------------------------------------------------------|
    | 0-6   | velocity of the arm's joints, times `speed`, integrated on the command        |
    | 7-8   | fingers: above 0 closes, else opens; the hand moves both together             |

    Success: the object is within `distance_threshold` of the goal and slower than `hold_speed`, for `hold_steps` steps
    in a row; ends the episode. Failure: the object falls 5 cm below the table top.

    Randomization, as factors unless said otherwise: which object; its position, yaw, mass (0.5 .. 2), friction (0.7 ..
    1.2, with the pads'), damping ratio of its contacts (0.6 .. 1, so that it bounces) and, unless it was scanned, size
    (0.95 .. 1.05); goal; home pose; gravity (0.97 .. 1.03); gains of the servos (0.9 .. 1.1) and damping of the joints
    (0.8 .. 1.25). Sensors: object pose with 1 mm standard deviation and 1 mm bias, up to a step late, one in 20 lost.
    With images also what they show: lights, colours of table, floor and arm, poses and angles of the cameras; see
    `VISUAL`.
    """

    Config = PickPlaceConfig
    defaults = {
        "env": {"num_envs": 256, "episode_steps": 100},
        "train": {"init_std": 0.5, "desired_kl": 0.02},
        "distill": {
            "buffer": 40_000,
            "minibatches": 4,
            "epochs": 4,
            "activation": "relu",
            "augment_shift": 4,
            "augment_gain": 0.7,
        },
    }
    cfg: PickPlaceConfig
    ladder = VISUAL_LADDER
    prompts = (
        "pick up the {object} and put it at the goal",
        "take the {object} and bring it to the goal",
        "move the {object} to where it belongs",
    )
    report = Report(
        metrics={
            "within_2_cm": "fraction of episodes that end within 2 cm of the goal",
            "distance": "distance to the goal at the end, m",
            "time_to_grasp": "time until the first grip, s",
            "slips": "times the object slipped out in the air",
            "peak_press": "largest force of the fingers on the table, N",
            "object": "which of the objects it was, counted from 0",
        },
        plots=(
            ("seconds", "Episode length, s"),
            ("distance", "Distance to the goal at the end, m"),
            ("time_to_grasp", "Time to the first grip, s"),
        ),
    )

    def __init__(self, cfg: TaskConfig):
        super().__init__(cfg)
        kinds = tuple(Path(name).name for name in self.cfg.objects)
        if len(kinds) == 1:
            self.prompts = tuple(text.replace("{object}", kinds[0]) for text in self.prompts)
        if len(kinds) > 1:
            self.report = replace(type(self).report, breakdown=("object", ()), kinds=kinds)

    @cached_property
    def things(self) -> Assortment:
        """The objects. Raises DeftlyError for one that is missing or does not fit the hand."""
        cfg = self.cfg
        found = items.find(cfg.objects, HAND, cfg.object_half, cfg.object_mass, cfg.object_size)
        return Assortment(found)

    def require(self) -> None:
        """Read the objects."""
        self.things  # noqa: B018

    @property
    def goals(self) -> "PickPlace | None":
        """Itself, if the reward is of the goal alone and the policy is told where the object is."""
        sees_object = self.cfg.observation != "rgb"
        return self if self.cfg.reward == "sparse" and sees_object else None

    @property
    def sees(self) -> bool:
        """Whether the policy sees images."""
        return self.cfg.observation != "state"

    def scene(self) -> mujoco.MjSpec:
        """The arm on a table with the objects; cameras `front`, closer if the policy sees its images, and `wrist`."""
        s = panda.spec()
        scene.prepare(s)
        scene.add_floor(s, -0.75)
        scene.add_table(s, centre=(0.35, 0.0), half=(0.55, 0.5), height=0.75)
        self.things.add(s)
        for body in (*self.things.bodies, "world"):
            ARM.add_touch(s, body)
        ARM.add_wrist_camera(s)
        if self.sees:
            scene.add_camera(s, "front", eye=(1.10, 0.0, 0.55), target=(0.45, 0.0, 0.08), fovy=45)
            scene.add_pattern(s, scene.WOOD.name)
        else:
            scene.add_camera(s, "front", eye=(1.55, -1.05, 0.85), target=(0.28, 0.0, 0.28), fovy=40)
        home = {joint.name: joint.home for joint in panda.ROBOT.joints}
        scene.add_home(s, home)
        return s

    def contract(self) -> PolicyContract:
        """Velocity control of seven joints, and the hand, at `rate`."""
        cfg = self.cfg
        measures_object = cfg.observation != "rgb"
        shape = (cfg.image_size, cfg.image_size, 3)
        cameras = CAMERAS if self.sees else ()
        signals = [Signal(name, shape, dtype="uint8") for name in cameras]
        if measures_object:
            signals.insert(0, Signal("object_pose", 7, "m, quaternion wxyz", "base"))
        goal = Input("goal", 3, "m", "base", lower=GOAL_LOW, upper=GOAL_HIGH, default=(0.5, 0, 0.2))
        inputs = [goal]
        arm = len(panda.LINKS)
        derive = (
            Derive("tool_pose", "forward_kinematics", site="tool", pose=True),
            Derive("tool_pos", "part", ("tool_pose",), count=3),
        )
        if measures_object:
            derive += (
                Derive("object_pos", "part", ("object_pose",), count=3),
                Derive("tool_offset", "difference", ("object_pos", "tool_pos")),
                Derive("goal_offset", "difference", ("goal", "object_pos")),
                Derive("fingers", "part", ("joint_pos",), first=arm, count=len(FINGERS)),
            )
            observe = (
                Observe("tool_pose"),
                Observe("object_pose"),
                Observe("tool_offset"),
                Observe("goal_offset"),
                Observe("goal"),
                Observe("fingers", (1 / panda.FINGER_TRAVEL,)),
                Observe("shape", (*(1 / panda.FINGER_TRAVEL,) * (items.CODE - 1), 1.0)),
            )
            inputs.append(Input("shape", items.CODE, "m", "object", *SHAPE_BOUNDS, default=CUBE))
        else:
            derive += (Derive("goal_way", "difference", ("goal", "tool_pos")),)
            normalized = (1 / panda.FINGER_TRAVEL,) * len(FINGERS)
            scale = (1.0,) * arm + normalized
            observe = (
                Observe("tool_pose"),
                Observe("joint_pos", scale),
                Observe("goal_way"),
                Observe("goal"),
            )
        observe += tuple(Observe(name, group=name) for name in cameras)
        act = (
            Act(tuple(panda.LINKS), "velocity", (cfg.speed,), cfg.lowpass),
            Act(FINGERS, "gripper", (panda.GRIP_SPEED,)),
        )
        interface = panda.ROBOT.interface(*signals)
        return PolicyContract(interface, cfg.rate, observe, act, tuple(inputs), derive)

    def signals(self, s: State) -> dict[str, Tensor]:
        """Joint positions and the object's pose; images are what the scene's cameras see."""
        if self.cfg.observation == "rgb":
            return {"joint_pos": s.joint_pos}
        pose = self.things.pose(s)
        quat = pose[:, 3:]
        upright = torch.where(quat[:, :1] < 0, -quat, quat)
        object_pose = torch.cat((pose[:, :3], upright), -1)
        return {"joint_pos": s.joint_pos, "object_pose": object_pose}

    def inputs(self, s: State) -> dict[str, Tensor]:
        """The goal of the episode, and what its object is like."""
        goal = {"goal": s.zeros("goal", 3)}
        if self.cfg.observation == "rgb":
            return goal
        shape = self.things.numbers(s, "code")
        if self.cfg.shape_error:
            shape = shape + s.zeros("shape_error", items.CODE)
        return {**goal, "shape": shape}

    def privileged(self, s: State) -> Tensor:
        """Joints, their velocities, the object's velocity, grip, fraction of the steps to hold."""
        held = s.zeros("held")[:, None] / self.cfg.hold_steps
        grip = s.zeros("gripped")[:, None]
        away = 10 * self._away(s, self.things.position(s))
        velocity = self.things.velocity(s)[:, :3]
        motion = (s.joint_pos, s.joint_vel, velocity)
        return torch.cat((*motion, away, grip, held, s.last_action), -1)

    def reset(self, s: State, mask: Tensor) -> None:
        """Object and goal anywhere in their ranges, the arm near home."""
        cfg = self.cfg
        joints = s.joint_pos.clone()
        arm = len(panda.LINKS)
        joints[:, :arm] += s.uniform(mask, -cfg.home_noise, cfg.home_noise, arm)
        s.set_joint_pos(mask, joints)
        self.things.draw(s, mask, _difficulty(s))
        x = s.uniform(mask, *cfg.object_x)
        y = s.uniform(mask, *cfg.object_y)
        half_yaw = s.uniform(mask, -cfg.object_yaw, cfg.object_yaw) / 2
        nothing = torch.zeros_like(x)
        height = self.things.numbers(s, "height") + ABOVE
        position = torch.stack((x, y, height), -1)
        quat = torch.stack((half_yaw.cos(), nothing, nothing, half_yaw.sin()), -1)
        self.things.place(s, mask, position, quat)
        if s.scale.get(GRASPED, 0.0) > 0:
            self._start_grasped(s, mask, position, half_yaw)
        s.remember("goal", mask, self._draw_goal(s, mask, position))
        if cfg.shape_error:
            error = s.uniform(mask, -cfg.shape_error, cfg.shape_error, items.CODE)
            s.remember("shape_error", mask, error * s.tensor(SHAPE_ERRORS))

    def _start_grasped(self, s: State, mask: Tensor, position: Tensor, half_yaw: Tensor) -> None:
        """Put the hand of some environments around the object, and as many on the way from home to there.

        The paper of hindsight experience replay starts half of its episodes with a grasped object. Starts on the way
        there lead to it: a reverse curriculum (Florensa et al. 2017, arXiv:1707.05300).

        `position (num_envs, 3)` and `half_yaw (num_envs,)` say where the object lies, m and rad.
        """
        home = s.joint_pos.double()
        nothing = torch.zeros_like(half_yaw)
        down = torch.stack((nothing, half_yaw.cos(), half_yaw.sin(), nothing), -1)
        pose = torch.cat((position, down), -1).to(home.dtype)
        arm = len(panda.LINKS)
        around = reach(panda.TOOL_KINEMATICS.like(home), home, pose, slice(0, arm))
        openings = self.things.numbers(s, "grip") + BESIDE
        around[:, arm:] = openings[:, None]
        way = s.uniform(mask, 0.0, FREE_WAY)[:, None]
        between = home.clone()
        there = (around - home)[:, :arm]
        between[:, :arm] += way * there
        draw = s.uniform(mask, 0.0, 1.0) / s.scale[GRASPED]
        grasps = draw[:, None] < 0.5
        joints = torch.where(grasps, around, between)
        chosen = mask & (draw < 1.0)
        s.set_joint_pos(chosen, joints.to(s.dtype))

    def _draw_goal(self, s: State, mask: Tensor, start: Tensor) -> Tensor:
        """A place in its range, `(num_envs, 3)`; one too close to the start is put higher.

        The easier the episodes are to be, the closer it is to the start, down to `least_way`, and to the table.
        """
        cfg = self.cfg
        difficulty = _difficulty(s)
        x = s.uniform(mask, *cfg.goal_x)
        y = s.uniform(mask, *cfg.goal_y)
        place = torch.stack((x, y), -1)
        height = difficulty * s.uniform(mask, *cfg.goal_height)
        way = place - start[:, :2]
        length = way.norm(dim=-1, keepdim=True)
        near = (cfg.least_way / length.clip(min=1e-9)).clip(max=1.0)
        way = way * (difficulty + (1 - difficulty) * near)
        goal_xy = start[:, :2] + way
        goal_z = start[:, 2] + height
        goal = torch.cat((goal_xy, goal_z[:, None]), -1)
        aside = way.norm(dim=-1)
        lacking_square = cfg.least_way**2 - aside.square()
        lacking = lacking_square.clip(min=0.0).sqrt()
        goal[:, 2] = torch.maximum(goal[:, 2], start[:, 2] + lacking)
        return goal

    def start(self, s: State, mask: Tensor) -> None:
        """An episode's potential starts where the arm does."""
        position = self.things.position(s)
        away = self._away(s, position)
        distance = self._distance(s, position)
        gripped = self._gripped(s, away)
        s.remember("gripped", mask, gripped)
        s.remember("way", mask, distance)
        s.remember("potential", mask, self._potential(s, gripped, away, distance))
        s.remember("time_to_grasp", mask, torch.nan)

    def update(self, s: State) -> None:
        """Count the steps at the goal, note when the object was gripped and how often it slipped."""
        cfg = self.cfg
        position = self.things.position(s)
        away = self._away(s, position)
        distance = self._distance(s, position)
        gripped = self._gripped(s, away)
        held = s.zeros("held")
        was = s.zeros("potential", 4)
        still = self._speed(s) < cfg.hold_speed
        at_goal = distance < cfg.distance_threshold
        held[:] = torch.where(at_goal & still, held + 1, 0.0)
        grasped = s.zeros("time_to_grasp")
        peak = s.zeros("peak_press")
        for_the_first_time = gripped & grasped.isnan()
        grasped[:] = torch.where(for_the_first_time, s.steps * s.dt, grasped)
        before = peak.clip(max=MAX_PRESS)
        press = ARM.touch(s, "world").sum(-1)
        peak[:] = torch.maximum(peak, press)
        s.zeros("press_rise")[:] = peak.clip(max=MAX_PRESS) - before
        in_air = position[:, 2] > self.things.numbers(s, "height") + 0.01
        slips = s.zeros("slips")
        was_gripped = s.zeros("gripped") > 0.5
        slips += was_gripped & ~gripped & in_air
        s.zeros("gripped")[:] = gripped
        now = self._potential(s, gripped, away, distance)
        s.zeros("gain", 4)[:] = now - was
        was[:] = now

    def rewards(self, s: State) -> dict[str, Tensor]:
        """See `Weights`."""
        turning = (0, 2, 4)
        home = s.tensor(tuple(panda.HOME[i] for i in turning))
        elbow = s.joint_pos[:, turning] - home
        gains = dict(zip(("reach", "grasp", "carry", "hold"), s.zeros("gain", 4).unbind(-1)))
        distance = self._distance(s, self.things.position(s))
        return {
            **gains,
            "success": self.success(s),
            "sparse": self._sparse(distance, self._speed(s)),
            "tilt": self._tilt(s),
            "posture": elbow.square().sum(-1),
            "action_rate": (s.action - s.last_action).square().sum(-1),
            "press": s.zeros("press_rise") / 100.0,
            "time": torch.ones_like(s.zeros("held")),
            "fell": self.failed(s)["object_fell"],
        }

    def failed(self, s: State) -> dict[str, Tensor]:
        """The object is off the table. Under the sparse reward that ends nothing.

        An end would spare the policy the -1 of each step, and it would learn to throw the object off the table.
        """
        fell = self.things.position(s)[:, 2] < -0.05
        return {"object_fell": fell & (self.cfg.reward != "sparse")}

    def success(self, s: State) -> Tensor:
        """At the goal for long enough."""
        return s.zeros("held") >= self.cfg.hold_steps

    def metrics(self, s: State) -> dict[str, Tensor]:
        """What `report` explains."""
        own = {name: s.store[name] for name in ("time_to_grasp", "slips", "peak_press")}
        distance = self._distance(s, self.things.position(s))
        near = (distance < NEAR).to(s.dtype)
        thing = self.things.drawn(s).to(s.dtype)
        return {**own, "distance": distance, "within_2_cm": near, "object": thing}

    def randomize(self) -> tuple[Randomize, ...]:
        """Objects, friction of the pads, gravity, the arm's servos and joints; what images show."""
        arm = tuple(panda.LINKS)
        things = self.things
        parts = tuple(part for item in things.items for part in item.parts)
        sized = tuple(item.body for item in things.items if item.is_primitive)
        return (
            Randomize("mass", 0.5, 2.0, things.bodies),
            Randomize("friction", 0.7, 1.2, (*parts, *ARM.pads), shared=True),
            Randomize("restitution", 0.6, 1.0, parts, shared=True),
            *((Randomize("size", 0.95, 1.05, sized),) if sized else ()),
            Randomize("gravity", 0.97, 1.03),
            Randomize("damping", 0.8, 1.25, arm, shared=True),
            *(Randomize(gain, 0.9, 1.1, arm, shared=True) for gain in ("kp", "kd")),
            *(
                (Randomize("color", -0.12, 0.2, things.shown, op="add"), *VISUAL)
                if self.sees
                else ()
            ),
        )

    def noise(self) -> dict[str, Noise]:
        """A camera's error of the object's pose, where one measures it; some come a step late, and some are lost."""
        if self.cfg.observation == "rgb":
            return {}
        return {"object_pose": Noise(gaussian=0.001, bias=0.001, delay=1, dropout=0.05)}

    def curriculum(self, s: State, progress: dict[str, float]) -> None:
        """Some episodes start at the object; with a curriculum they get harder while most succeed."""
        if self.cfg.start_grasped:
            s.scale[GRASPED] = self.cfg.start_grasped
        if self.cfg.curriculum:
            is_easy = progress["success"] > HARDER
            is_hard = progress["success"] < EASIER
            climb = is_easy - is_hard
            level = s.scale.get(DIFFICULTY, 0.0) + CLIMB * climb
            s.scale[DIFFICULTY] = min(max(level, 0.0), 1.0)

    # ------------------------------------------------------------------ goals in hindsight

    def achieved(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Where the object was seen, m, and its speed, m/s: `(..., 4)`."""
        velocity = obs["critic"][..., VELOCITY]
        speed = velocity.norm(dim=-1, keepdim=True)
        position = obs["policy"][..., OBJECT]
        return torch.cat((position, speed), -1)

    def with_goal(self, obs: Mapping[str, Tensor], goal: Tensor) -> dict[str, Tensor]:
        """The observations with another goal, the place of what was achieved; the critic's begins with the policy's."""
        place = goal[..., :3]
        changed = {group: value.clone() for group, value in obs.items()}
        for value in changed.values():
            value[..., GOAL_OFFSET] = place - value[..., OBJECT]
            value[..., GOAL] = place
        return changed

    def goal_reward(self, achieved: Tensor, goal: Tensor) -> Tensor:
        """The term `sparse`; of the goal only the place counts, of what was achieved also the speed."""
        offset = achieved[..., :3] - goal[..., :3]
        distance = offset.norm(dim=-1)
        return self._sparse(distance, achieved[..., 3])

    def _sparse(self, distance: Tensor, speed: Tensor) -> Tensor:
        """The term `sparse` for an object's distance to the goal, m, and its speed, m/s.

        Success asks for a still object. With 1 for one that moves through the goal as well, policies swing it there.
        """
        is_still = (speed < self.cfg.hold_speed).to(distance.dtype)
        return torch.where(distance < self.cfg.distance_threshold, is_still, -1.0)

    def _speed(self, s: State) -> Tensor:
        """Of the object, `(num_envs,)`, m/s."""
        velocity = self.things.velocity(s)[:, :3]
        return velocity.norm(dim=-1)

    def _distance(self, s: State, position: Tensor) -> Tensor:
        """Of the object, at `position (num_envs, 3)`, to the goal, `(num_envs,)`, m."""
        return (position - s.zeros("goal", 3)).norm(dim=-1)

    def _away(self, s: State, position: Tensor) -> Tensor:
        """The tool point as seen from the object at `position (num_envs, 3)`: `(num_envs, 3)`, m."""
        return ARM.tool(s) - position

    def _gripped(self, s: State, away: Tensor) -> Tensor:
        """Both fingers press the object, and its grasp point is between their tips; `away` is that of `_away`."""
        things = self.things
        touch = things.of_drawn(s, ARM.touches(s, things.bodies))
        pressed = (touch > 1.0).all(-1)
        return pressed & (away.norm(dim=-1) < GRASP_NEAR)

    def _tilt(self, s: State) -> Tensor:
        """Squared sine of the angle between the tool and the vertical."""
        return tool_axis(s)[:, :2].square().sum(-1)

    def _potential(self, s: State, gripped: Tensor, away: Tensor, to_goal: Tensor) -> Tensor:
        """How far the episode has come, `(num_envs, 4)`, each in 0 .. 1: reach, grasp, carry, hold.

        `away` is that of `_away`, `to_goal (num_envs,)` the distance of the object, m.
        """
        cfg = self.cfg
        things = self.things
        opening = s.joint(FINGERS[0])
        aside = away[:, :2].norm(dim=-1)
        # a funnel: off to the side, the place to be is higher up
        clear = things.numbers(s, "top") + 0.055
        above = (1.5 * (aside - 0.01)).clip(min=0.0)
        above = torch.minimum(above, clear)
        off_height = away[:, 2] - above
        distance = (aside.square() + off_height.square()).sqrt()
        # a hand more closed than one that holds the object counts less
        needed = (things.numbers(s, "grip") - 0.005).clip(min=0.005)
        room = (opening / needed).clip(0.0, 1.0)
        reach = (1 - torch.tanh(5 * distance)) * (0.5 + 0.5 * room)
        around = torch.exp(-(away.norm(dim=-1) / 0.025).square())
        closed = 1 - opening / panda.FINGER_TRAVEL
        grasp = 0.4 * around * closed + 0.6 * gripped
        way = to_goal / s.zeros("way").clip(min=cfg.least_way / 2)
        at_goal = to_goal < cfg.distance_threshold
        covered = (1 - way).clip(0.0, 1.0)
        carry = torch.where(gripped | at_goal, covered, 0.0)
        held = (s.zeros("held") / cfg.hold_steps).clip(max=1.0)
        return torch.stack((reach, grasp, carry, held), -1)


@dataclass(frozen=True)
class SeeingConfig(PickPlaceConfig):
    """Parameters of `panda-pick-place`, seen by cameras unless said otherwise."""

    observation: Annotated[
        Literal["state", "rgb_and_state", "rgb"],
        Doc("What the policy sees: images, the arm's joints and the goal; numbers; or both."),
    ] = "rgb"


@task("panda-pick-place-rgb")
class SeeingPickPlace(PickPlace):
    """Pick an object up with a Franka Panda and hold it still at a goal, seen by two cameras and not measured.

    `panda-pick-place` with `observation` rgb. `deftly distill panda-pick-place-rgb --teacher shipped` learns it from
    the policy that sees numbers.

    Observation: images `front` and `wrist`, each `(image_size, image_size, 3)` uint8, and 22 numbers: pose of the tool
    point (7), joints of the arm and fingers (9), goal minus tool point (3), goal (3); see the table there. Action (9),
    Success, Failure and Randomization as there, with what images show among it.
    """

    Config = SeeingConfig
    defaults = {**PickPlace.defaults, "env": {"num_envs": 64, "episode_steps": 100}}
    teacher = "panda-pick-place"


def _difficulty(s: State) -> float:
    """How hard episodes are to be, 0 .. 1: 1, as in evaluation, unless a curriculum says otherwise."""
    return s.scale.get(DIFFICULTY, 1.0)


def tool_axis(s: State) -> Tensor:
    """The direction in which the tool points, `(num_envs, 3)`, a unit vector of the world."""
    w, x, y, z = s.orientation("hand").unbind(-1)
    x_part = 2 * (x * z + w * y)
    y_part = 2 * (y * z - w * x)
    z_part = 1 - 2 * (x.square() + y.square())
    return torch.stack((x_part, y_part, z_part), -1)
