"""panda-pick-place: an expert does it through the task's own actions; what success, reward and observation are."""

import ctypes.util

import mujoco
import numpy as np
import pytest
import torch

from deftly.config import EnvConfig, SimConfig
from deftly.env import Env
from deftly.robots import panda
from deftly.tasks import load
from deftly.tasks.panda_pick_place import CUBE

GAINS = ("reach", "grasp", "carry", "hold")
DOWN = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
"""The hand's axes when the tool points down and the fingers move along y."""


UPRIGHT = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)


def make(num_envs: int, plain: bool = True, **task) -> Env:
    cls = load("panda-pick-place")
    task = {"objects": ("cube",), **task}
    quiet = {"randomize": False, "noise": False} if plain else {}
    return Env(
        cls(cls.Config(**task)), EnvConfig(num_envs=num_envs, **quiet), SimConfig(threads=1), 3
    )


class Expert:
    """Over the object, down, close, to the goal: by damped least squares on the arm's Jacobian."""

    def __init__(self, env: Env):
        self.env, self.model = env, env.model
        self.data = mujoco.MjData(env.model)
        self.site = env.model.site("tool").id
        self.closing = np.zeros(env.num_envs)

    def act(self) -> torch.Tensor:
        rows = [self._one(i) for i in range(self.env.num_envs)]
        return torch.tensor(np.stack(rows), dtype=torch.float32)

    def towards(self, i: int, goal: np.ndarray) -> np.ndarray:
        """Joint speeds, in units of the task's `speed`, that carry the commanded tool point to `goal`, tool down."""
        self.data.qpos[:7] = self.env.state.command[i, :7].numpy()
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        jacobian = np.zeros((6, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, jacobian[:3], jacobian[3:], self.site)
        axes = self.data.site_xmat[self.site].reshape(3, 3)
        turn = 0.5 * sum(np.cross(axes[:, k], DOWN[:, k]) for k in range(3))
        wanted = np.concatenate((4.0 * (goal - self.data.site_xpos[self.site]), 4.0 * turn))
        j = jacobian[:, :7]
        speed = j.T @ np.linalg.solve(j @ j.T + 1e-4 * np.eye(6), wanted)
        limit = self.env.task.cfg.speed
        return speed / max(limit, np.abs(speed).max())

    def _one(self, i: int) -> np.ndarray:
        s = self.env.state
        centre, tool = (x[i].numpy() for x in (self.env.task.things.position(s), s.site("tool")))
        if s.steps[i] == 0:
            self.closing[i] = 0
        aside = np.linalg.norm((tool - centre)[:2])
        if self.closing[i] or (aside < 0.006 and abs(tool[2] - centre[2]) < 0.006):
            self.closing[i] += 1
        goal = centre + np.array([0, 0, 0.0 if aside < 0.01 else 0.07])
        if self.closing[i] > 10:
            goal = tool + (s.zeros("goal", 3)[i].numpy() - centre)
        hand = [1.0, 1.0] if self.closing[i] else [-1.0, -1.0]
        return np.concatenate((self.towards(i, goal), hand))


@pytest.fixture(scope="module")
def expert_run():
    """An episode of four experts, with randomization: success, steps, sums of the terms, the last observation."""
    env = make(4, plain=False)
    env.auto_reset = False
    expert = Expert(env)
    success = torch.zeros(4, dtype=torch.bool)
    sums = None
    for _ in range(200):
        step = env.step(expert.act())
        success |= step.success
        if bool(success.any()) and sums is None:
            sums = torch.stack(
                [env.episode_rewards[name] / env._weights[name] for name in GAINS], -1
            )
        if bool(success.all()):
            break
    return env, success, sums


def test_an_expert_does_it(expert_run):
    env, success, _ = expert_run
    assert success.all()
    metrics = env.task.metrics(env.state)
    assert float(metrics["distance"].max()) < 0.05
    assert metrics["time_to_grasp"].isfinite().all()


def test_an_expert_picks_up_what_was_scanned():
    """Grasped at the grasp frame, which is all that the expert knows of them."""
    env = make(4, plain=False, objects=("pawn", "tee"))
    env.auto_reset = False
    assert env.task.things.drawn(env.state).unique().tolist() == [0, 1]
    expert, success = Expert(env), torch.zeros(4, dtype=torch.bool)
    for _ in range(120):
        success |= env.step(expert.act()).success
        if bool(success.all()):
            break
    assert success.all()


def test_potentials_are_paid_once(expert_run):
    """Whatever the way: each sums to the change of a number within 0 .. 1."""
    env, _, sums = expert_run
    assert float(sums.min()) > -1.0
    assert float(sums.max()) <= 1.0 + 1e-5
    assert env.state.store["potential"][:, 3].max() == pytest.approx(1.0)


def test_the_observation_is_the_documented_33():
    env = make(3)
    env.step(torch.zeros(3, 9))
    obs, s = env.obs["policy"], env.state
    assert obs.shape == (3, 33)
    tool, centre, goal = (
        s.site("tool").float(),
        env.task.things.position(s).float(),
        s.zeros("goal", 3).float(),
    )
    assert torch.allclose(obs[:, :3], tool, atol=1e-5)
    assert torch.allclose(obs[:, 7:10], centre, atol=1e-6)
    assert torch.allclose(obs[:, 14:17], centre - tool, atol=1e-5)
    assert torch.allclose(obs[:, 17:20], goal - centre, atol=1e-6)
    assert torch.allclose(obs[:, 20:23], goal, atol=1e-6)
    fingers = s.joint_pos[:, 7:].float() / panda.FINGER_TRAVEL
    assert torch.allclose(obs[:, 23:25], fingers, atol=1e-5)
    assert torch.allclose(obs[:, 3:7].norm(dim=-1), torch.ones(3), atol=1e-5)
    assert torch.allclose(obs[:, 25:32] * panda.FINGER_TRAVEL, torch.tensor(CUBE[:7]), atol=1e-6)
    assert torch.allclose(obs[:, 32], torch.ones(3))


def test_goals_are_in_their_range_and_away_from_the_object():
    env = make(500, least_way=0.1)
    goal, start = env.state.zeros("goal", 3), env.task.things.position(env.state)
    assert float((goal - start).norm(dim=-1).min()) >= 0.1 - 1e-6
    cfg = env.task.cfg
    for axis, (low, high) in enumerate((cfg.goal_x, cfg.goal_y)):
        assert low <= float(goal[:, axis].min()) <= float(goal[:, axis].max()) <= high
    assert float(goal[:, 2].min()) >= cfg.object_half
    assert float(goal[:, 2].max()) <= cfg.object_half + 0.2 + 1e-6


def test_what_is_moved_to_the_goal_counts_only_when_it_stays():
    env = make(1, hold_steps=3, goal_height=(0.0, 0.0), least_way=0.0)
    env.auto_reset = False
    s, everywhere = env.state, torch.ones(1, dtype=torch.bool)
    goal = s.zeros("goal", 3).clone()
    env.task.things.place(s, everywhere, goal, UPRIGHT)
    env.sim.forward(everywhere)
    seen = [bool(env.step(torch.zeros(1, 9)).success) for _ in range(3)]
    assert seen == [False, False, True]
    env.task.things.place(s, everywhere, goal + s.tensor((0.06, 0.0, 0.0)), UPRIGHT)
    env.sim.forward(everywhere)
    assert not bool(env.step(torch.zeros(1, 9)).success)
    assert float(s.zeros("held")) == 0


def test_the_sparse_reward_is_one_still_at_the_goal_and_minus_one_elsewhere():
    env = make(2, reward="sparse", goal_height=(0.0, 0.0), least_way=0.0)
    env.auto_reset = False
    s = env.state
    goal = s.zeros("goal", 3)
    goal[0] = env.task.things.position(s)[0]
    goal[1] = env.task.things.position(s)[1] + s.tensor((0.2, 0.0, 0.0))
    assert env.step(torch.zeros(2, 9)).reward.tolist() == [1.0, -1.0]


def test_under_a_sparse_reward_an_episode_goes_on_when_the_object_fell():
    """Else throwing it off the table would be worth more than to try."""
    env = make(1, reward="sparse")
    s, everywhere = env.state, torch.ones(1, dtype=torch.bool)
    below = torch.tensor([[0.5, 0.0, -0.1]], dtype=s.dtype)
    env.task.things.place(s, everywhere, below, UPRIGHT)
    env.sim.forward(everywhere)
    step = env.step(torch.zeros(1, 9))
    assert not bool(step.terminated)
    assert float(step.reward) == -1.0


def test_under_a_sparse_reward_an_episode_goes_on_at_the_goal():
    """An end there would be worth less than to stay, so that a policy would learn to come and never be still."""
    assert make(2, reward="dense").task.cfg.stop_on_success
    assert not make(2, reward="sparse").task.cfg.stop_on_success


def test_training_may_start_at_the_object_and_an_evaluation_does_not():
    env = make(128, plain=False, objects=("cube", "sphere", "pawn"), start_grasped=0.5)
    task, s = env.task, env.state

    def away():
        return (s.site("tool") - task.things.position(s)).norm(dim=-1)

    env.reset()
    at_home = s.joint_pos.clone()
    assert (away() > 0.1).all(), "before training says so, all start at home"

    env.adapt({"success": 0.0})
    env.reset()
    around = away() < 1e-3
    moved = (s.joint_pos - at_home)[:, :7].norm(dim=-1) > 0.15  # home itself differs by less
    assert 16 < around.sum() < 48
    assert 40 < moved.sum() < 80
    assert (away()[~around] > 0.02).all()
    lying = task.things.position(s)[:, 2].clone()
    close = torch.zeros(128, 9)
    close[around, 7:] = 1.0
    close[~around, 7:] = -1.0
    for _ in range(8):
        env.step(close)
    gripped = s.zeros("gripped") > 0.5
    assert gripped[around].float().mean() > 0.95
    assert not gripped[~around].any()
    risen = (task.things.position(s)[:, 2] - lying)[~around]
    assert risen.abs().max() < 0.005, "an open hand on the way to the object leaves it where it is"


def test_an_object_that_falls_ends_the_episode():
    env = make(1)
    s, everywhere = env.state, torch.ones(1, dtype=torch.bool)
    below = torch.tensor([[0.5, 0.0, -0.1]], dtype=s.dtype)
    env.task.things.place(s, everywhere, below, UPRIGHT)
    env.sim.forward(everywhere)
    step = env.step(torch.zeros(1, 9))
    assert bool(step.terminated)
    assert not bool(step.success)
    assert float(step.reward) < -2.5


def test_the_tilt_is_zero_when_the_tool_points_down():
    env = make(1)
    assert float(env.task._tilt(env.state)) < 1e-2


def test_a_goal_in_hindsight_is_seen_as_if_it_had_been_given():
    """Observations with another goal are those that the environment makes for it."""
    env = make(2, reward="sparse")
    env.auto_reset = False
    goals = env.task.goals
    before = env.step(torch.zeros(2, 9))
    other = torch.tensor([[0.45, 0.1, 0.1, 0.3], [0.5, -0.1, 0.05, 0.0]])
    changed = goals.with_goal(before.obs, other)
    env.state.zeros("goal", 3)[:] = other[:, :3].to(env.state.dtype)
    now = env._observe(torch.zeros(2, dtype=torch.bool))
    for group in ("policy", "critic"):
        assert torch.allclose(changed[group], now[group], atol=1e-6)
    achieved = goals.achieved(before.obs)
    things = env.task.things
    speed = things.velocity(env.state)[:, :3].norm(dim=-1, keepdim=True)
    seen = torch.cat((things.position(env.state), speed), -1).float()
    assert torch.allclose(achieved, seen, atol=1e-6)
    assert goals.goal_reward(achieved, achieved + 0.01).tolist() == [1.0, 1.0]
    assert goals.goal_reward(achieved, achieved + 0.05).tolist() == [-1.0, -1.0]
    assert make(1).task.goals is None
    cls = load("panda-pick-place")
    assert cls(cls.Config(reward="sparse", observation="rgb")).goals is None


def test_the_speed_that_hindsight_reads_is_the_object_s():
    """It lies in what the critic sees, at a place that has to be right."""
    env = make(3, reward="sparse")
    s, everywhere = env.state, torch.ones(3, dtype=torch.bool)
    goal = s.zeros("goal", 3).clone()
    env.task.things.place(s, everywhere, goal + s.tensor((0.0, 0.0, 0.04)), UPRIGHT.expand(3, 4))
    env.sim.forward(everywhere)
    falls = env.step(torch.zeros(3, 9))
    achieved = env.task.goals.achieved(falls.obs)
    expected = env.task.things.velocity(s)[:, :3].norm(dim=-1).float()
    assert float(expected.min()) > 0.2
    assert torch.allclose(achieved[:, 3], expected, atol=1e-5)
    assert falls.reward.tolist() == [0.0, 0.0, 0.0]
    there = torch.cat((s.zeros("goal", 3), s.zeros("goal", 1)), -1).float()
    assert env.task.goals.goal_reward(achieved, there).tolist() == [0.0, 0.0, 0.0]


# ------------------------------------------------------------------------ images

needs_gl = pytest.mark.skipif(
    not any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa")),
    reason="no GL library is installed",
)


def contract(observation: str, **task):
    cls = load("panda-pick-place")
    return cls(cls.Config(observation=observation, **task)).contract()


@pytest.mark.parametrize(
    ("observation", "size", "signals"),
    [
        ("state", 33, ("joint_pos", "object_pose")),
        ("rgb_and_state", 33, ("joint_pos", "object_pose", "front", "wrist")),
        ("rgb", 22, ("joint_pos", "front", "wrist")),
    ],
)
def test_what_a_policy_sees_under_each_setting(observation, size, signals):
    found = contract(observation, image_size=24)
    assert tuple(signal.name for signal in found.signals) == signals
    assert found.obs_size() == size
    cameras = tuple(name for name in signals if name in ("front", "wrist"))
    assert found.groups == ("state", *cameras)
    assert all(found.group_shape(name) == (24, 24, 3) for name in cameras)


def test_all_settings_mean_the_same_by_an_action():
    terms = [contract(name).act_terms for name in ("state", "rgb_and_state", "rgb")]
    assert terms[0] == terms[1] == terms[2]


def test_numbers_beside_images_tell_nothing_of_the_object():
    found = contract("rgb")
    signals = {"joint_pos": np.array((*panda.HOME, 0.04, 0.02))}
    signals |= {name: np.zeros((64, 64, 3), np.uint8) for name in ("front", "wrist")}
    inputs = {"goal": np.array([0.5, 0.1, 0.3])}
    seen = found.observe(signals, found.reset(signals, inputs), inputs)[0]["state"]
    tool = seen[:3]
    assert seen[7:16] == pytest.approx([*panda.HOME, 1.0, 0.5])
    assert seen[16:19] == pytest.approx(inputs["goal"] - tool)
    assert seen[19:] == pytest.approx(inputs["goal"])


@needs_gl
def test_images_show_the_object_in_both_cameras():
    """The object is the one thing that is blue; light, colours and cameras as they are by default."""
    env = make(6, observation="rgb", image_size=32)
    for name, least in (("front", 3), ("wrist", 8)):
        image = env.obs[name].int()
        blue = image[..., 2] - image[..., 0] > 60
        assert (blue.flatten(1).sum(1) >= least).all()
    assert env.obs["front"].shape == (6, 32, 32, 3)
    assert env.obs["policy"].shape == (6, 22)


@needs_gl
def test_images_differ_by_more_than_where_the_object_is():
    env = make(4, plain=False, observation="rgb", image_size=16)
    corner = env.obs["front"][:, -1, 0].int()  # of the table
    assert ((corner - corner[0]).abs().amax(-1)[1:] > 8).all()
    fields = env._randomizer.fields
    assert {"light_diffuse", "light_dir", "mat_rgba", "cam_pos", "cam_quat"} <= set(fields)
    assert "light_diffuse" not in make(1, plain=False)._randomizer.fields
