import math

import pytest
import torch

from deftly.config import EnvConfig, SimConfig
from deftly.env import Env
from deftly.robots.dexhand021 import BASE, DRIVEN, FINGERS, HAND, finger_joints
from deftly.tasks import OLDER_NAMES, load
from deftly.tasks.dexhand_box import ABOVE, BOX, HALF_EDGE, MIRRORED, _reach

QUIET = {"randomize": False, "noise": False}
CENTRED = {
    "box_xy": 0.0,
    "box_yaw": 0.0,
    "hand_xyz": 0.0,
    "hand_turn": 0.0,
    "thumb": 0.0,
    "curl": 0.0,
}
GRASP = {
    "ARTx": -0.122,
    "ARTy": -0.012,
    "ARTz": 0.194,
    "ARRy": 0.395,
}  # m, rad: the carrier around the box
OPEN = dict.fromkeys((f"f_joint{i}_2" for i in (2, 3, 4, 5)), 0.91) | {"f_joint1_1": 1.33}
CLOSED = {
    "f_joint1_1": 1.33,
    "f_joint1_2": 0.44,
    "f_joint1_3": 0.31,
    **dict.fromkeys((f"f_joint{i}_2" for i in (2, 3, 4, 5)), 1.25),
    **dict.fromkeys((f"f_joint{i}_3" for i in (2, 3, 4, 5)), 0.48),
}


def make(name: str = "dexhand-box", num_envs: int = 2, env: dict | None = None, **task) -> Env:
    cls = load(name)
    config = EnvConfig(num_envs=num_envs, **{**QUIET, **(env or {})})
    return Env(cls(cls.Config(**task)), config, SimConfig(threads=1), 3)


class Script:
    """Goes around where the box is, closes, lifts: the same movement whatever happens, through the task's actions."""

    def __init__(self, env: Env, side: float = 1.0):
        self.env, self.side = env, side
        self.start = env.state.joint_pos.clone()

    def goal(self, driven: dict[str, float], height: float) -> torch.Tensor:
        carrier = [GRASP.get(name, 0.0) + height * (name == "ARTz") for name in BASE]
        for i, name in enumerate(BASE):
            carrier[i] *= self.side if name in MIRRORED else 1.0
        fingers = HAND.finger_pos(
            torch.tensor([[driven.get(name, 0.0) for name in DRIVEN]]).double()
        )
        return torch.cat((torch.tensor([carrier]).double(), fingers), -1)

    def act(self) -> torch.Tensor:
        """Blends of the poses by time: above, around, closed, up."""
        step = int(self.env.state.steps[0])
        poses = [self.start, self.goal(OPEN, 0.0), self.goal(CLOSED, 0.0), self.goal(CLOSED, 0.09)]
        target = poses[0]
        for pose, (begin, end) in zip(poses[1:], ((0, 90), (100, 160), (180, 300)), strict=True):
            target = target + (pose - target) * min(1.0, max(0.0, (step - begin) / (end - begin)))
        return self.env.contract.action_for(target.float(), self.env._memory).float()


@pytest.fixture(scope="module")
def runs() -> dict[str, list]:
    """One scripted episode of each hand: steps, whether it succeeded, the box's path, what the report has."""
    found = {}
    for hand in ("right", "left"):
        env = make(num_envs=1, hand=hand, success_height=0.1, hold_steps=50, **CENTRED)
        script, path = Script(env, -1.0 if hand == "left" else 1.0), []
        for _ in range(450):
            step = env.step(script.act())
            path.append(step.final_obs["critic"][0, 136:139] / 5)
            if step.terminated[0] or step.truncated[0]:
                break
        found[hand] = [len(path), bool(step.success[0]), torch.stack(path), env.ended]
    return found


def test_a_blind_script_lifts_the_box_and_holds_it(runs):
    _, success, path, ended = runs["right"]
    assert success
    assert path[-1, 2] > 0.1
    assert ended["slips"] == 0
    assert 0 <= ended["depth"] < 1.5
    assert 2.0 < ended["time_to_grasp"] < 4.0
    assert ended["box_edge"] == pytest.approx(50.0)


def test_the_left_hand_does_the_mirrored_thing(runs):
    steps, success, path, _ = runs["left"]
    assert success
    assert abs(steps - runs["right"][0]) <= 5
    mirrored = path[150:200] * torch.tensor([1.0, -1.0, 1.0])
    assert torch.allclose(mirrored, runs["right"][2][150:200], atol=2e-3)


def test_older_names_are_the_tasks():
    assert {old: load(old).name for old in OLDER_NAMES} == {
        "BaseTask": "dexhand-base",
        "BlindGrasping": "dexhand-blind",
        "BoxGrasping": "dexhand-box",
    }


def test_twelve_motions_become_twenty():
    driven = torch.rand(3, len(DRIVEN), generator=torch.Generator().manual_seed(0))
    joints = dict(zip(finger_joints(), HAND.finger_pos(driven).T, strict=True))
    by_name = dict(zip(DRIVEN, driven.T, strict=True))
    assert torch.equal(joints["f_joint5_1"], 2 * by_name["f_joint2_1"])
    assert torch.equal(joints["f_joint4_1"], by_name["f_joint2_1"])
    assert torch.equal(joints["f_joint1_4"], by_name["f_joint1_3"])
    assert joints["f_joint3_1"].abs().max() == 0


# ---------------------------------------------------------------- what the policy knows


@pytest.mark.parametrize("name", ["dexhand-box", "dexhand-blind"])
def test_policy_does_not_see_the_box_and_the_critic_does(name):
    env = make(name)
    before = {group: value.clone() for group, value in env.obs.items()}
    everyone = torch.ones(2, dtype=torch.bool)
    env.state.place(BOX, everyone, torch.tensor([[0.3, 0.2, 0.025]] * 2).double())
    env.sim.forward()
    seen, _ = env.contract.observe(env.task.signals(env.state), env._memory, env.inputs)
    seen = {"policy": seen["state"].float()}
    critic = env.task.privileged(env.state)
    assert torch.allclose(seen["policy"], before["policy"], atol=1e-5)
    assert not torch.allclose(critic.float(), before["critic"][:, -critic.shape[1] :], atol=1e-2)


def test_a_teacher_sees_the_box_too():
    blind, seeing = make(num_envs=2), make(num_envs=2, see_box=True)
    shown = seeing.obs["policy"][:, 136:]
    assert torch.allclose(shown, seeing.state.pose(BOX).float())
    assert torch.equal(seeing.obs["policy"][:, :136], blind.obs["policy"])


def test_episodes_start_as_configured():
    env = make(num_envs=256, env={"randomize": True})
    box, joints = env.state.pose(BOX), env.state.joint_pos
    assert box[:, :2].abs().max() <= 0.02
    assert box[:, :2].std() > 0.008
    assert (joints[:, 2] - ABOVE["ARTz"]).abs().max() <= 0.05
    assert joints[:, BASE.index("ARRy")].mean() == pytest.approx(ABOVE["ARRy"], abs=0.03)
    assert joints[:, 6].max() <= math.pi / 2
    edges = 2e3 * env.state.parameter("geom_size", BOX)[:, 0]
    assert 45 <= edges.min() < 46
    assert 54 < edges.max() <= 55
    assert box[:, 2] == pytest.approx(edges / 2e3, abs=1e-9)
    assert (HAND.depth(env.state, BOX) == 0).all()


# ---------------------------------------------------------------- reward, by hand


class Placed:
    """A state in which the pads are where a test wants them, seen from a box at the origin."""

    def __init__(self, pads: list[tuple[float, float, float]]):
        self.pads = torch.tensor([pads], dtype=torch.float64)

    def site(self, name: str) -> torch.Tensor:
        return self.pads[:, int(name[-1]) - 1]

    def pose(self, body: str) -> torch.Tensor:
        return torch.tensor([[0.0, 0, 0, 1, 0, 0, 0]], dtype=torch.float64)

    def parameter(self, field: str, name: str) -> torch.Tensor:
        return torch.full((1, 3), HALF_EDGE, dtype=torch.float64)


@pytest.mark.parametrize(
    ("thumb", "fingers", "reach"),
    [
        ((-0.025, 0, 0), (0.025, 0, 0), 1.0),
        ((-0.125, 0, 0), (0.125, 0, 0), 1 - math.tanh(0.8)),
        ((0, 0, 0.025), (0, 0, 0.025), 0.2),
        ((0, 0.025, 0), (0.025, 0, 0), 0.6),
        ((-0.02, 0, 0), (0.05, 0, 0), 1 - math.tanh(0.1)),
    ],
)
def test_reach_is_high_at_opposite_faces(thumb, fingers, reach):
    found = _reach(Placed([thumb, fingers, fingers, fingers, (1, 1, 1)]))  # type: ignore[arg-type]
    assert found.item() == pytest.approx(reach, abs=1e-9)


def test_penalties_of_a_known_step():
    env = make()
    s = env.state
    s.last_action = torch.zeros(2, 18)
    s.action = torch.full((2, 18), 0.5)
    s.zeros("depth_now")[:] = torch.tensor([0.0004, 0.0025])
    s.zeros("press_now")[:] = torch.tensor([1.0, 12.0])
    terms = env.task.rewards(s)
    assert terms["action_rate"].tolist() == pytest.approx([4.5, 4.5])
    assert terms["depth"].tolist() == pytest.approx([0.0, 2.0])
    assert terms["press"].tolist() == pytest.approx([0.0, 1.0])
    assert terms["time"].tolist() == [1.0, 1.0]
    assert terms["squeeze"].tolist() == [0.0, 0.0]
    assert not terms["failure"].any()


def test_turning_the_hand_costs():
    env = make(hand="left", **CENTRED)
    joints = env.state.joint_pos.clone()
    assert env.task.rewards(env.state)["turn"].abs().max() < 1e-12
    joints[1, 3:6] += torch.tensor([0.1, -0.2, 0.2])
    env.state.set_joint_pos(torch.tensor([False, True]), joints)
    assert env.task.rewards(env.state)["turn"].tolist() == pytest.approx([0.0, 0.09])


def test_success_is_a_hold_of_hold_steps():
    env = make()
    env.state.zeros("held")[:] = torch.tensor([99.0, 100.0])
    assert env.task.success(env.state).tolist() == [False, True]
    assert env.task.rewards(env.state)["success"].tolist() == [False, True]


def test_potential_terms_telescope():
    env = make(num_envs=8, env={"episode_steps": 60, "randomize": True})
    env.auto_reset = False
    start = env.state.store["potential"].clone()
    generator = torch.Generator().manual_seed(0)
    for i in range(60):
        if i % 10 == 0:
            move = 2 * torch.rand(8, 18, generator=generator) - 1
        env.step(move)
    sums = torch.stack(
        [env.episode_rewards[n] / env._weights[n] for n in ("reach", "grasp", "lift", "hold")], -1
    )
    assert torch.allclose(sums.double(), env.state.store["potential"] - start, atol=1e-4)


# ---------------------------------------------------------------- how it may fail


def sunk(env: Env, depth: float) -> None:
    """Put the box under the straight index finger's third link, a level capsule, so deep (m) that it is in the top."""
    s, everyone = env.state, torch.ones(env.num_envs, dtype=torch.bool)
    straight = torch.zeros_like(s.joint_pos)
    straight[:, BASE.index("ARTz")] = 0.5
    s.set_joint_pos(everyone, straight)
    env.sim.forward()
    link = env.model.geom("f_link2_3")
    position = env.sim.bind("geom_xpos")[:, link.id].clone()
    position[:, 2] += depth - link.size[0] - HALF_EDGE
    s.place(BOX, everyone, position, torch.tensor([[1.0, 0, 0, 0]] * env.num_envs).double())
    env.sim.forward()


@pytest.mark.parametrize(("depth", "fails"), [(0.002, False), (0.004, True)])
def test_depth_in_the_box_is_measured_and_ends_the_episode(depth, fails):
    env = make()
    sunk(env, depth)
    assert HAND.depth(env.state, BOX).tolist() == pytest.approx([depth] * 2, abs=1e-4)
    env.task.update(env.state)
    assert env.task.metrics(env.state)["depth"].tolist() == pytest.approx(
        [1e3 * depth] * 2, abs=0.1
    )
    assert env.task.failed(env.state)["penetrated"].tolist() == [fails] * 2


def test_palm_on_the_ground_and_a_box_far_away_fail():
    env = make(num_envs=3)
    s = env.state
    joints = s.joint_pos.clone()
    joints[1, 2] = 0.02
    s.set_joint_pos(torch.tensor([False, True, False]), joints)
    box = torch.tensor([[0.0, 0.0, 0.025], [0.0, 0.0, 0.025], [0.7, 0.0, 0.025]]).double()
    s.place(BOX, torch.tensor([False, False, True]), box)
    env.sim.forward()
    failed = env.task.failed(s)
    assert failed["hit_ground"].tolist() == [False, True, False]
    assert failed["box_too_far"].tolist() == [False, False, True]


def test_random_policy_never_succeeds():
    env, generator = make(num_envs=16, env={"randomize": True}), torch.Generator().manual_seed(0)
    for _ in range(300):
        assert not env.step(2 * torch.rand(16, 18, generator=generator) - 1).success.any()
    assert env.broken_count == 0


def test_a_push_comes_once_when_the_box_was_held_for_half_the_time(monkeypatch):
    env = make(push_force=5.0, hold_steps=20)
    s, task = env.state, env.task
    box = env.model.body(BOX).id
    forces = []
    monkeypatch.setattr(task, "_gripped", lambda s: torch.tensor([True, False]))
    s.place(BOX, torch.ones(2, dtype=torch.bool), torch.tensor([[0.0, 0.0, 0.5]] * 2).double())
    for _ in range(18):
        task.update(s)
        forces.append(env.sim.bind("xfrc_applied")[:, box, :3].norm(dim=-1).clone())
    pushed = [round(float(force[0]), 6) for force in forces]
    assert pushed == [0.0] * 9 + [5.0] * 5 + [0.0] * 4
    assert all(force[1] == 0 for force in forces)


# ---------------------------------------------------------------- three stages


def test_a_hand_that_waits_fails_after_the_first_stage():
    env = make("dexhand-blind", num_envs=1, pregrasp_s=0.4, **CENTRED)
    env.auto_reset = False
    for step in range(1, 20):
        assert not env.step(torch.zeros(1, 18)).terminated.any()
        assert env.inputs["stage"].item() == 0
        assert env.inputs["progress"].item() == pytest.approx(step / 20)
    assert env.step(torch.zeros(1, 18)).terminated.all()
    assert env.ended["failed/pregrasp_failed"].tolist() == [1.0]


def test_stages_follow_each_other(monkeypatch):
    env = make("dexhand-blind", num_envs=4, pregrasp_s=0.1, grasp_s=0.2, firm_s=0.06, **CENTRED)
    env.auto_reset = False
    task, s = env.task, env.state
    grips = torch.tensor([True, True, False, True])
    monkeypatch.setattr(task, "_is_around", lambda s: torch.tensor([True, True, True, False]))
    monkeypatch.setattr(task, "_gripped", lambda s: grips)

    def step(times: int) -> list[float]:
        for _ in range(times):
            task.update(s)
        return s.zeros("stage").tolist()

    assert step(4) == [0, 0, 0, 0]
    assert step(1) == [1, 1, 1, 1]
    assert task.failed(s)["pregrasp_failed"].tolist() == [False, False, False, True]
    assert task.rewards(s)["stage"].tolist() == [True, True, True, False]
    assert step(3)[:3] == [2, 2, 1]
    grips = torch.tensor([True, False, False, True])
    step(2)
    assert not task.failed(s)["grasp_lost"].any()
    step(5)
    assert task.failed(s)["contact_failed"].tolist()[:3] == [False, False, True]
    assert task.failed(s)["grasp_lost"].tolist()[:3] == [False, True, False]


def test_no_stage_but_the_last_counts_a_lift():
    env = make("dexhand-blind", num_envs=3, **CENTRED)
    s = env.state
    s.zeros("stage")[:] = torch.tensor([0.0, 1.0, 2.0])
    assert env.task._may_lift(s).tolist() == [False, False, True]
    seen = env.task.inputs(s)
    assert seen["stage"].tolist() == [[0.0], [1.0], [2.0]]


# ---------------------------------------------------------------- the base task


def test_base_task_rewards_by_hand():
    env = make("dexhand-base", hand_turn=0.0, curl=0.0)
    terms = env.task.rewards(env.state)
    lowest = 0.5 + min(env.state.site(f"f_pad{i}")[0, 2].item() - 0.5 for i in FINGERS)
    assert env.task._lowest(env.state)[0].item() <= lowest
    clearance = env.task._lowest(env.state)[0].item() - 0.02
    assert terms["height_safety"][0].item() == pytest.approx(1 - math.exp(-20 * clearance))
    assert terms["alive"].tolist() == [1.0, 1.0]
    assert terms["joint_limit"].tolist() == [0.0, 0.0]  # straight fingers are at their limits
    calm = ("finger_velocity", "hand_velocity", "hand_angular_velocity", "contact_stability")
    assert all(terms[name].tolist() == pytest.approx([1.0, 1.0]) for name in calm)


def test_base_task_is_done_at_the_end_and_fails_on_the_ground():
    env = make("dexhand-base", num_envs=1, env={"episode_steps": 5})
    ends = [env.step(torch.zeros(1, 18)) for _ in range(5)]
    assert [bool(end.success) for end in ends] == [False] * 4 + [True]
    env = make("dexhand-base", num_envs=1, height=0.2)
    env.auto_reset = False
    down = torch.zeros(1, 18)
    down[0, 2] = -1.0
    for _ in range(60):
        step = env.step(down)
        if step.terminated:
            break
    assert env.ended["failed/hit_ground"].tolist() == [1.0]
