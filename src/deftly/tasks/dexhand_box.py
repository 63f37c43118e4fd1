"""Grasp a box with a DexHand 021 that does not see it, and lift it."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import mujoco
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from typing_extensions import Doc

from deftly.config import ANGLE, FORCE, LENGTH, MASS, POSITIVE_RANGE, SPEED, TaskConfig
from deftly.contract import COMMAND, JOINT_POS, Derive, Input, Observe, PolicyContract, Signal
from deftly.robots import dexhand021
from deftly.robots.dexhand021 import DRIVEN, FINGERS, HAND
from deftly.sim import scene
from deftly.sim.randomize import Randomize
from deftly.sim.sensors import Noise
from deftly.sim.state import State
from deftly.tasks import Report, Task, task

BOX = "box"
HALF_EDGE = 0.025  # m: the box of 5 cm of seed 001
FIRM = 0.3  # N: a fingertip that presses the box with more than this is in contact
GENTLE = 15.0  # N: what all fingertips together may press the box with at no cost
HINGES = slice(3, 6)  # of the joints: the carrier's
PUSH_S = 0.1  # s: how long a push lasts
LOWEST_PALM = 0.03  # m: below, the palm is on the ground
ABOVE = {"ARTx": -0.115, "ARTy": -0.012, "ARTz": 0.30, "ARRy": 0.4}
"""The carrier in the keyframe `home`, m and rad: fingers a little down, the box below between them and the thumb."""
MIRRORED = ("ARTy", "ARRx", "ARRz")
"""Joints of the carrier that move the other way for a left hand."""
STARTS_ANYWHERE = {"start_envelope": 3.0, "outside": 0.2, "lead": 1.5}
"""Bounds of the safety kernel: episodes start with fingers anywhere near open, which then press, and are pressed."""


@dataclass(frozen=True)
class Weights:
    """Weights of the reward terms. The first four are differences of a potential: no cycle earns anything."""

    reach: Annotated[
        float, Doc("Progress of the fingertips towards opposite sides of the box.")
    ] = 2.0
    grasp: Annotated[
        float, Doc("Progress of pressing the box with the thumb (0.2), a finger (0.2), both (0.6).")
    ] = 1.5
    lift: Annotated[float, Doc("Progress of the gripped box to 3 cm above the success height.")] = (
        4.0
    )
    hold: Annotated[float, Doc("Progress of the count of steps held at the height.")] = 2.0
    success: Annotated[float, Doc("Once, when the box has been held.")] = 2.0
    action_rate: Annotated[float, Doc("Squared change of the action.")] = -0.0002
    depth: Annotated[
        float, Doc("Depth of the hand in the box beyond 0.5 mm, mm, each step.")
    ] = -0.02
    press: Annotated[
        float, Doc("Force of the hand on the ground beyond 2 N, in units of 10 N, each step.")
    ] = -0.005
    turn: Annotated[
        float, Doc("Squared turn of the carrier's hinges away from palm down, rad2, each step.")
    ] = -0.03
    squeeze: Annotated[
        float, Doc("Force of all fingertips on the box beyond 15 N, in units of 10 N, each step.")
    ] = -0.01
    time: Annotated[float, Doc("Each step.")] = -0.001
    failure: Annotated[
        float, Doc("Once, when the episode fails: an early end must not pay.")
    ] = -1.5


@dataclass(frozen=True)
class BoxConfig(TaskConfig):
    """Parameters of the task; lengths in m, z up from the ground."""

    rate: float = 50.0
    episode_steps: int = 500
    hand: Annotated[Literal["right", "left"], Doc("Which hand grasps.")] = "right"
    box_xy: Annotated[
        float,
        Ge(0),
        LENGTH,
        Doc("The box starts within this much of the origin, along x and y, m."),
    ] = 0.02
    box_yaw: Annotated[
        float, Ge(0), ANGLE, Doc("The box starts turned by up to this much, rad.")
    ] = math.pi
    box_size: Annotated[
        tuple[float, float], POSITIVE_RANGE, Doc("Range of the box's edge, as a fraction of 5 cm.")
    ] = (0.9, 1.1)
    box_mass: Annotated[float, Gt(0), MASS, Doc("Mass of the box, kg.")] = 0.1
    hand_xyz: Annotated[
        float,
        Ge(0),
        LENGTH,
        Doc("The hand starts within this much of above the box, along each axis, m."),
    ] = 0.05
    hand_turn: Annotated[
        float, Ge(0), ANGLE, Doc("The hand starts turned by up to this much about each axis, rad.")
    ] = 0.15
    thumb: Annotated[
        float, Ge(0), ANGLE, Doc("The thumb starts rotated by up to this much, rad.")
    ] = math.pi / 2
    curl: Annotated[
        float,
        Ge(0),
        ANGLE,
        Doc("The other driven finger joints start bent by up to this much, rad."),
    ] = 0.3
    success_height: Annotated[
        float,
        Gt(0),
        LENGTH,
        Doc("Height of the box's centre above the ground that counts as lifted, m."),
    ] = 0.2
    hold_steps: Annotated[
        int, Ge(1), Doc("Consecutive steps for which the box must be held there: 2 s.")
    ] = 100
    max_depth: Annotated[
        float, Gt(0), LENGTH, Doc("Depth of the hand in the box that ends the episode, m.")
    ] = 0.003
    max_distance: Annotated[
        float,
        Gt(0),
        LENGTH,
        Doc("Distance from the hand's root to the box that ends the episode, m."),
    ] = 0.6
    base_speed: Annotated[
        float, Gt(0), SPEED, Doc("Speed of the carrier's slides at action 1, m/s.")
    ] = 0.25
    base_turn: Annotated[
        float, Gt(0), SPEED, Doc("Speed of the carrier's hinges at action 1, rad/s.")
    ] = 0.5
    finger_speed: Annotated[
        float, Gt(0), SPEED, Doc("Speed of the driven finger joints at action 1, rad/s.")
    ] = 1.0
    lowpass: Annotated[float, Ge(0), Lt(1), Doc("Weight of the previous action.")] = 0.5
    touch_history: Annotated[
        int, Ge(1), Doc("Steps of touch that the policy sees, every fifth of them.")
    ] = 21
    see_box: Annotated[
        bool,
        Doc("The policy sees the box's pose: a teacher for `deftly distill`, not for a robot."),
    ] = False
    push_force: Annotated[
        float,
        Ge(0),
        FORCE,
        Doc("Force that pushes the box aside for 0.1 s once it was held for half of the time, N."),
    ] = 0.0
    weights: Annotated[Weights, Doc("Weights of the reward terms.")] = field(
        default_factory=Weights
    )


class Box(Task):
    """What both tasks with a box share; `cfg` is a `BoxConfig`."""

    report = Report(
        metrics={
            "time_to_grasp": "time until the thumb and a finger first press the box, s",
            "slips": "times the grasp was lost in the air",
            "depth": "largest depth of the hand in the box, mm",
            "press": "largest force of the hand on the ground, N",
            "box_edge": "edge of the box, mm",
        },
        plots=(
            ("seconds", "Episode length, s"),
            ("time_to_grasp", "Time to the first grasp, s"),
            ("depth", "Deepest contact of hand and box, mm"),
        ),
        breakdown=("box_edge", (40.0, 44.0, 48.0, 52.0, 56.0, 60.0)),
    )

    def __init__(self, cfg: BoxConfig):
        super().__init__(cfg)
        self.robot = dexhand021.LEFT if cfg.hand == "left" else dexhand021.RIGHT

    def scene(self) -> mujoco.MjSpec:
        """The hand above the ground and the box on it; cameras `front` and `side`."""
        s = self.robot.spec()
        scene.prepare(s)
        scene.add_floor(s, 0.0, collides=True)
        scene.add_box(s, BOX, HALF_EDGE, self.cfg.box_mass, rgba=(0.90, 0.45, 0.15, 1.0))
        HAND.add_touch(s, BOX)
        HAND.add_press(s, "world")
        HAND.add_depth(s, BOX)
        scene.add_camera(s, "front", eye=(0.55, -0.45, 0.35), target=(0.0, 0.0, 0.12), fovy=45)
        scene.add_camera(s, "side", eye=(0.0, -0.65, 0.2), target=(-0.03, 0.0, 0.13), fovy=45)
        home = {joint.name: joint.home for joint in self.robot.joints}
        scene.add_home(s, {**home, **self._above()})
        return s

    def contract(self) -> PolicyContract:
        """Velocities of the carrier and of the twelve finger motors; joints, touch and pads are seen."""
        cfg = self.cfg
        count = len(self.robot.joints)
        box = [Signal("box_pose", 7, "m", "base")] if cfg.see_box else []
        interface = self.robot.interface(
            Signal("joint_vel", count, "m/s, rad/s"), Signal("touch", len(FINGERS), "N"), *box
        )
        pads = [Derive(f"pad{i}", "forward_kinematics", site=f"f_pad{i}") for i in FINGERS]
        lag = Derive("lag", "difference", (COMMAND, JOINT_POS))
        inputs = self._inputs()
        observe = (
            Observe("joint_pos"),
            Observe("joint_vel", (0.5,)),
            Observe("lag", (5.0,)),
            Observe("touch", (0.1,), clip=(0.0, 0.5), history=cfg.touch_history, stride=5),
            *(Observe(pad.name, (5.0,)) for pad in pads),
            Observe("action"),
            *(Observe(seen.name) for seen in (*inputs, *box)),
        )
        act = dexhand021.act(cfg.base_speed, cfg.base_turn, cfg.finger_speed, cfg.lowpass)
        return PolicyContract(interface, cfg.rate, observe, act, inputs, (lag, *pads))

    def signals(self, s: State) -> dict[str, Tensor]:
        """Joint positions and velocities, force on each pad."""
        box = {"box_pose": s.pose(BOX)} if self.cfg.see_box else {}
        own = {"joint_pos": s.joint_pos, "joint_vel": s.joint_vel, "touch": HAND.pad_touch(s)}
        return {**own, **box}

    def privileged(self, s: State) -> Tensor:
        """The box's pose, velocity and size, the fingertips from it, what has been reached."""
        away = (HAND.pad_positions(s) - _box(s)[:, None]).flatten(1)
        return torch.cat(
            (
                5 * _box(s),
                s.pose(BOX)[:, 3:],
                s.velocity(BOX) * s.tensor((2.0, 2.0, 2.0, 0.2, 0.2, 0.2)),
                _half(s)[:, None] / HALF_EDGE - 1.0,
                10 * away,
                0.5 * HAND.touch(s, BOX).clip(max=4.0),
                s.zeros("potential", 4),
                s.zeros("held")[:, None] / self.cfg.hold_steps,
            ),
            -1,
        )

    def reset(self, s: State, mask: Tensor) -> None:
        """Hand somewhere above the box, palm down, thumb and fingers anywhere near open."""
        cfg = self.cfg
        joints = s.joint_pos.clone()
        joints[:, :3] += s.uniform(mask, -cfg.hand_xyz, cfg.hand_xyz, 3)
        joints[:, 3:6] += s.uniform(mask, -cfg.hand_turn, cfg.hand_turn, 3)
        fractions = s.uniform(mask, 0.0, 1.0, len(DRIVEN))
        bent = fractions * s.tensor(self._most_bent())
        joints[:, 6:] = HAND.finger_pos(bent)
        s.set_joint_pos(mask, joints)
        half_yaw = s.uniform(mask, -cfg.box_yaw, cfg.box_yaw) / 2
        nothing = torch.zeros_like(half_yaw)
        turned = torch.stack((half_yaw.cos(), nothing, nothing, half_yaw.sin()), -1)
        xy = s.uniform(mask, -cfg.box_xy, cfg.box_xy, 2)
        position = torch.cat((xy, _half(s)[:, None]), -1)
        s.place(BOX, mask, position, turned)

    def start(self, s: State, mask: Tensor) -> None:
        """An episode's potential starts where the hand does."""
        s.remember("potential", mask, self._potential(s))
        s.remember("time_to_grasp", mask, torch.nan)
        if self.cfg.push_force:
            angle = s.uniform(mask, 0.0, 2 * math.pi)
            steps = round(PUSH_S * self.cfg.rate)
            s.remember("push_angle", mask, angle)
            s.remember("push_left", mask, float(steps))
            self._push(s, torch.zeros_like(mask))

    def update(self, s: State) -> None:
        """Count the steps held, note when the box was grasped, how often it slipped, how deep the hand went."""
        cfg = self.cfg
        gripped = self._gripped(s)
        height = _box(s)[:, 2]
        held = s.zeros("held")
        grasped = s.zeros("time_to_grasp")
        is_high = height > cfg.success_height
        counts = gripped & self._may_lift(s) & is_high
        held[:] = torch.where(counts, held + 1, 0.0)
        if cfg.push_force:
            left = s.zeros("push_left")
            held_half = held >= cfg.hold_steps / 2
            began = s.zeros("pushing") > 0
            now = (left > 0) & (held_half | began)
            self._push(s, now)
            left -= now.to(s.dtype)
            s.zeros("pushing")[:] = now
        for_the_first_time = gripped & grasped.isnan()
        grasped[:] = torch.where(for_the_first_time, s.steps * s.dt, grasped)
        was_gripped = s.zeros("gripped") > 0
        in_air = height > 2 * _half(s)
        s.zeros("slips")[:] += was_gripped & ~gripped & in_air
        s.zeros("gripped")[:] = gripped
        measured = (("depth", HAND.depth(s, BOX)), ("press", HAND.press(s, "world")))
        for name, now in measured:
            s.zeros(f"{name}_now")[:] = now
            largest = s.zeros(name)
            largest[:] = torch.maximum(largest, now)
        potential = self._potential(s)
        was = s.zeros("potential", 4)
        s.zeros("gain", 4)[:] = potential - was
        was[:] = potential

    def rewards(self, s: State) -> dict[str, Tensor]:
        """See `Weights`."""
        return {
            **dict(zip(("reach", "grasp", "lift", "hold"), s.zeros("gain", 4).unbind(-1))),
            "success": self.success(s),
            "action_rate": (s.action - s.last_action).square().sum(-1),
            "depth": (1e3 * s.zeros("depth_now") - 0.5).clip(min=0.0),
            "press": (s.zeros("press_now") - 2.0).clip(0.0, 50.0) / 10.0,
            "turn": (s.joint_pos[:, HINGES] - s.tensor(self._upright)).square().sum(-1),
            "squeeze": (HAND.touch(s, BOX).sum(-1) - GENTLE).clip(0.0, 50.0) / 10.0,
            "time": torch.ones_like(s.zeros("held")),
            "failure": torch.stack([*self.failed(s).values()]).any(0),
        }

    def failed(self, s: State) -> dict[str, Tensor]:
        """The hand deep in the box, the palm on the ground, or the box far from the hand."""
        palm = HAND.palm(s)
        return {
            "penetrated": s.zeros("depth_now") > self.cfg.max_depth,
            "hit_ground": palm[:, 2] < LOWEST_PALM,
            "box_too_far": (palm - _box(s)).norm(dim=-1) > self.cfg.max_distance,
        }

    def success(self, s: State) -> Tensor:
        """Held at the height for long enough."""
        return s.zeros("held") >= self.cfg.hold_steps

    def metrics(self, s: State) -> dict[str, Tensor]:
        """What `report` explains."""
        own = {name: s.zeros(name) for name in ("time_to_grasp", "slips", "press")}
        depth = 1e3 * s.zeros("depth")
        return {**own, "depth": depth, "box_edge": 2e3 * _half(s)}

    def randomize(self) -> tuple[Randomize, ...]:
        """Box and friction, servo gains."""
        servos = tuple(joint.name for joint in self.robot.joints)
        smallest, largest = self.cfg.box_size
        return (
            Randomize("size", smallest, largest, (BOX,)),
            Randomize("mass", 0.7, 1.5, (BOX,)),
            Randomize("friction", 0.7, 1.3, (BOX, *HAND.pads), shared=True),
            *(Randomize(gain, 0.9, 1.1, servos, shared=True) for gain in ("kp", "kd")),
        )

    def noise(self) -> dict[str, Noise]:
        """Encoders, and pads that miss small forces."""
        return {"joint_pos": Noise(gaussian=0.002), "touch": Noise(gaussian=0.05)}

    # ------------------------------------------------------------------- inside

    @property
    def _upright(self) -> tuple[float, ...]:
        """The carrier's hinges in the keyframe, rad."""
        above = self._above()
        return tuple(above.get(name, 0.0) for name in dexhand021.HINGES)

    def _above(self) -> dict[str, float]:
        """The carrier in the keyframe, which a left hand's mirrors."""
        side = -1.0 if self.cfg.hand == "left" else 1.0
        return {name: side * at if name in MIRRORED else at for name, at in ABOVE.items()}

    def _most_bent(self) -> tuple[float, ...]:
        """How far each driven finger joint may be bent at the start, rad; the spread a little."""
        cfg = self.cfg
        special = {"f_joint1_1": cfg.thumb, "f_joint2_1": 0.3 * cfg.curl}
        return tuple(special.get(name, cfg.curl) for name in DRIVEN)

    def _inputs(self) -> tuple[Input, ...]:
        return ()

    def _push(self, s: State, now: Tensor) -> None:
        """Push the box over the ground's plane in the step that follows, where `now` is True."""
        angle = s.zeros("push_angle")
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        force = self.cfg.push_force * direction
        body = s.sim.model.body(BOX).id
        s.sim.bind("xfrc_applied")[:, body, :2] = force * now[:, None]

    def _may_lift(self, s: State) -> Tensor:
        return torch.ones_like(s.zeros("held"), dtype=torch.bool)

    def _gripped(self, s: State) -> Tensor:
        """The thumb and a finger press the box."""
        touch = HAND.touch(s, BOX) > FIRM
        thumb = touch[:, 0]
        fingers = touch[:, 1:]
        return thumb & fingers.any(-1)

    def _potential(self, s: State) -> Tensor:
        """How far the episode has come, `(num_envs, 4)`, each in 0 .. 1: reach, grasp, lift, hold."""
        firm = (HAND.touch(s, BOX) / FIRM).clip(max=1.0)
        thumb = firm[:, 0]
        finger = firm[:, 1:].amax(-1)
        grasp = 0.2 * thumb + 0.2 * finger + 0.6 * thumb * finger
        risen = _box(s)[:, 2] - _half(s)
        whole = self.cfg.success_height + 0.03 - _half(s)
        rise = risen / whole
        lift = self._gripped(s) * rise.clip(0.0, 1.0)
        held = s.zeros("held") / self.cfg.hold_steps
        return torch.stack((_reach(s), grasp, lift, held), -1)


@task("dexhand-box")
class BoxGrasping(Box):
    """Grasp a box of 5 cm with a DexHand 021 that does not see it, and hold it 20 cm above the ground for 2 s.

    Observation (136):

    | index   | term      | meaning                                                        | unit      |
    |---------|-----------|----------------------------------------------------------------|-----------|
    | 0-25    | joint_pos | carrier (6) and finger joints (20)                             | m, rad    |
    | 26-51   | joint_vel | their velocities, times 0.5                                    | per s     |
    | 52-77   | lag       | command minus measured position: what presses, times 5         | m, rad    |
    | 78-102  | touch     | force on the five pads, times 0.1: now and 0.1 .. 0.4 s ago    | N         |
    | 103-117 | pad1 .. 5 | where the pads are, from the joints, times 5                   | m         |
    | 118-135 | action    | the last filtered action                                       |           |

    Action (18), in [-1, 1]: velocities of the carrier's three slides and three hinges, then of the twelve finger
    motors, integrated on the command; coupled joints follow. The box's pose is in nothing the policy sees: it knows
    where the box may be, within `box_xy`, and feels it. The critic sees it.

    Success: the box's centre above `success_height`, pressed by the thumb and a finger, for `hold_steps` steps in a
    row. Failure: the hand deeper than `max_depth` in the box, its palm on the ground, or the box `max_distance` away.

    Randomization: where the hand starts and how it is turned, how far thumb and fingers are bent; place and yaw of the
    box, its size (`box_size`), mass (x 0.7 .. 1.5) and friction (x 0.7 .. 1.3); gains of the servos (x 0.9 .. 1.1).
    Noise of encoders (2 mrad, 2 mm) and of touch (0.05 N).
    """

    Config = BoxConfig
    safety = STARTS_ANYWHERE
    # 18 elements of the action: the KL divergence of a step is a sum over them. A grasp and a hold take 5 s: with a
    # shorter horizon than that, a hasty grasp that is lost later pays as well as a careful one.
    defaults = {
        "env": {"num_envs": 512, "episode_steps": 300},
        "train": {
            "steps": 24,
            "gamma": 0.996,
            "init_std": 0.6,
            "desired_kl": 0.02,
            "entropy": 0.0,
        },
    }


@dataclass(frozen=True)
class BlindWeights(Weights):
    """Weights of the reward terms; beside those of `dexhand-box` stand those of the stages."""

    stage: Annotated[float, Doc("Once, at the end of each of the first two stages.")] = 1.0
    moved: Annotated[
        float, Doc("Speed of the box before the hand may grasp it, m/s, each step.")
    ] = -0.2
    failure: Annotated[
        float, Doc("Once, when the episode fails: an early end must not pay.")
    ] = -2.0


@dataclass(frozen=True)
class BlindConfig(BoxConfig):
    """Parameters of the task; those of the stages are seed 001's."""

    episode_steps: int = 650
    hand_xyz: Annotated[
        float,
        Ge(0),
        LENGTH,
        Doc("The hand starts within this much of above the box, along each axis, m."),
    ] = 0.1
    hand_turn: Annotated[
        float, Ge(0), ANGLE, Doc("The hand starts turned by up to this much about each axis, rad.")
    ] = 0.3
    curl: Annotated[
        float,
        Ge(0),
        ANGLE,
        Doc("The other driven finger joints start bent by up to this much, rad."),
    ] = math.pi / 6
    base_speed: Annotated[
        float, Gt(0), SPEED, Doc("Speed of the carrier's slides at action 1, m/s.")
    ] = 0.1
    pregrasp_s: Annotated[
        float,
        Gt(0),
        Doc("Stage 1: the hand goes around the box without moving it, for so long, s."),
    ] = 4.0
    grasp_s: Annotated[
        float, Gt(0), Doc("Stage 2: by then the thumb and a finger must press the box, s.")
    ] = 3.0
    firm_s: Annotated[
        float, Gt(0), Doc("For how long they must press it before stage 3, the lift, s.")
    ] = 0.5
    around: Annotated[
        float,
        Gt(0),
        LENGTH,
        Doc("After stage 1 thumb, index and middle pad are centred on the box within this, m."),
    ] = 0.08
    level: Annotated[
        float,
        Gt(0),
        LENGTH,
        Doc("After stage 1 these pads are on the box's height within this, m."),
    ] = 0.03
    drift: Annotated[
        float, Gt(0), LENGTH, Doc("Distance that stage 1 may move the box over the ground, m.")
    ] = 0.01
    still: Annotated[float, Gt(0), SPEED, Doc("Speed of the box after stage 1 at most, m/s.")] = (
        0.005
    )
    weights: Annotated[BlindWeights, Doc("Weights of the reward terms.")] = field(
        default_factory=BlindWeights
    )


@task("dexhand-blind")
class BlindGrasping(Box):
    """Grasp a box with a DexHand 021 that does not see it in three timed stages, and lift it as in dexhand-box.

    Stage 1, `pregrasp_s` long: the hand goes around the box and leaves it where it is. Stage 2, at most `grasp_s` long:
    thumb and a finger press it, for `firm_s`. Stage 3: it is lifted and held. The stage (0, 1, 2) and what has passed
    of its time, as a fraction, are inputs of the contract: on a robot, who runs it says them, by clock and touch.

    Observation (138): that of `dexhand-box`, then `stage` and `progress`. Action (18) and Randomization as there.

    Success as in `dexhand-box`, in stage 3. Failure besides: after stage 1 the hand is not around the box, or moved it;
    stage 2 ends without a grasp; stage 3 loses it for `firm_s`.
    """

    Config = BlindConfig
    safety = STARTS_ANYWHERE
    defaults = {**BoxGrasping.defaults, "env": {"num_envs": 512}}

    def inputs(self, s: State) -> dict[str, Tensor]:
        """The stage, and which fraction of its time has passed."""
        cfg, stage = self.cfg, s.zeros("stage")
        longest = torch.where(stage > 0, cfg.grasp_s, cfg.pregrasp_s)
        passed = s.zeros("stage_steps") * s.dt
        progress = (passed / longest).clip(max=1.0)
        return {"stage": stage[:, None], "progress": progress[:, None]}

    def start(self, s: State, mask: Tensor) -> None:
        """Remember where the box is."""
        s.remember("box_start", mask, _box(s))
        super().start(s, mask)

    def update(self, s: State) -> None:
        """Go on to the next stage where this one is done."""
        cfg = self.cfg
        stage = s.zeros("stage")
        steps = s.zeros("stage_steps")
        gripped = self._gripped(s)
        steps += 1
        firm = s.zeros("firm_steps")
        loose = s.zeros("loose_steps")
        holds = gripped & (stage == 1)
        lets_go = ~gripped & (stage == 2)
        firm[:] = torch.where(holds, firm + 1, 0.0)
        loose[:] = torch.where(lets_go, loose + 1, 0.0)
        is_over = steps * s.dt >= cfg.pregrasp_s - 1e-9
        is_firm = firm * s.dt >= cfg.firm_s - 1e-9
        waited = (stage == 0) & is_over
        s.zeros("misplaced")[:] = waited & ~self._is_around(s)
        grasped = (stage == 1) & is_firm
        passed = waited | grasped
        s.zeros("passed")[:] = passed
        stage += passed
        steps[:] = torch.where(passed, 0.0, steps)
        super().update(s)

    def rewards(self, s: State) -> dict[str, Tensor]:
        """See `BlindWeights`."""
        is_misplaced = s.zeros("misplaced") > 0
        passed = (s.zeros("passed") > 0) & ~is_misplaced
        early = s.zeros("stage") == 0
        return {
            **super().rewards(s),
            "stage": passed,
            "moved": early * s.velocity(BOX)[:, :3].norm(dim=-1),
        }

    def failed(self, s: State) -> dict[str, Tensor]:
        """Those of `dexhand-box`, and one for each stage."""
        cfg = self.cfg
        stage = s.zeros("stage")
        steps = s.zeros("stage_steps")
        return {
            **super().failed(s),
            "pregrasp_failed": s.zeros("misplaced") > 0,
            "contact_failed": (stage == 1) & (steps * s.dt >= cfg.grasp_s - 1e-9),
            "grasp_lost": s.zeros("loose_steps") * s.dt >= cfg.firm_s - 1e-9,
        }

    def _inputs(self) -> tuple[Input, ...]:
        nothing = (0.0,)
        return (
            Input("stage", lower=nothing, upper=(2.0,)),
            Input("progress", lower=nothing, upper=(1.0,)),
        )

    def _may_lift(self, s: State) -> Tensor:
        return s.zeros("stage") > 1

    def _is_around(self, s: State) -> Tensor:
        """Whether the first three pads are around the box, on its height, and it stands where it stood."""
        cfg = self.cfg
        box = _box(s)
        pads = HAND.pad_positions(s)[:, :3]
        off_height = (pads[..., 2] - box[:, None, 2]).abs()
        off_centre = (pads.mean(1) - box).norm(dim=-1)
        moved = (box - s.zeros("box_start", 3)).norm(dim=-1)
        speed = s.velocity(BOX)[:, :3].norm(dim=-1)
        level = off_height.amax(-1) < cfg.level
        around = off_centre < cfg.around
        still = speed < cfg.still
        return level & around & (moved < cfg.drift) & still

    def _potential(self, s: State) -> Tensor:
        """As in `dexhand-box`, but a grasp counts from stage 2 on, a lift in stage 3."""
        stage = s.zeros("stage")
        reach, grasp, lift, hold = super()._potential(s).unbind(-1)
        return torch.stack((reach, grasp * (stage > 0), lift * (stage > 1), hold), -1)


def _reach(s: State) -> Tensor:
    """1 where thumb and fingers are at opposite faces of the box, less the farther they are, `(num_envs,)`."""
    away = HAND.pad_positions(s) - _box(s)[:, None]
    thumb = away[:, 0]
    fingers = away[:, 1:4].mean(1)
    thumb_far = thumb.norm(dim=-1)
    fingers_far = fingers.norm(dim=-1)
    half = _half(s)
    off = (thumb_far - half).clip(min=0) + (fingers_far - half).clip(min=0)
    product = (thumb * fingers).sum(-1)
    opposed = -product / (thumb_far * fingers_far).clip(min=1e-6)
    return (1 - torch.tanh(4 * off)) * (0.6 + 0.4 * opposed)


def _box(s: State) -> Tensor:
    """Centre of the box, `(num_envs, 3)`, m."""
    return s.pose(BOX)[:, :3]


def _half(s: State) -> Tensor:
    """Half the box's edge, `(num_envs,)`, m."""
    return s.parameter("geom_size", BOX)[:, 0]
