import mujoco
import numpy as np
import pytest
import torch

from deftly.config import EnvConfig, SimConfig
from deftly.env import Env
from deftly.robots import jaka_zu5
from deftly.robots.jaka_zu5 import ARM
from deftly.tasks import load
from deftly.tasks.jaka_pick_cube import MAX_PRESS

GAINS = ("reach", "grasp", "lift", "hold")
COUPLED = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -1, -1], [0, 0, 0], [1, 0, 0]]
)  # joints 1-6 by joints 1-3
LIFT = 0.14  # m, height to which the expert carries the cube


def make(num_envs: int, plain: bool = True, **env) -> Env:
    cls = load("jaka-pick-cube")
    quiet = {"randomize": False, "noise": False} if plain else {}
    return Env(
        cls(cls.Config()), EnvConfig(num_envs=num_envs, **{**quiet, **env}), SimConfig(threads=1), 3
    )


class Expert:
    """Carries the pinch point over the cube, down, closes, and up, through the task's own four actions."""

    def __init__(self, env: Env):
        self.env, self.model = env, env.model
        self.data = mujoco.MjData(env.model)
        self.site = env.model.site("pinch").id
        self.closing = np.zeros(env.num_envs)

    def act(self) -> torch.Tensor:
        return torch.tensor(
            np.stack([self._one(i) for i in range(self.env.num_envs)]), dtype=torch.float32
        )

    def towards(self, i: int, goal: np.ndarray) -> np.ndarray:
        """Actions of the three joints that carry the commanded pinch point to `goal`."""
        jacobian = np.zeros((3, self.model.nv))
        self.data.qpos[:6] = self.env.state.command[i, :6].numpy()
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_jacSite(self.model, self.data, jacobian, None, self.site)
        speed = 4.0 * (goal - self.data.site_xpos[self.site])
        return np.linalg.solve(jacobian[:, :6] @ COUPLED, speed).clip(-1.2, 1.2) / 1.2

    def _one(self, i: int) -> np.ndarray:
        cube, pinch = (
            x[i].numpy() for x in (self.env.state.pose("cube")[:, :3], self.env.state.site("pinch"))
        )
        if self.env.state.steps[i] == 0:
            self.closing[i] = 0
        aside = np.linalg.norm((pinch - cube)[:2])
        if self.closing[i] or (aside < 0.006 and abs(pinch[2] - cube[2]) < 0.006):
            self.closing[i] += 1
        goal = cube + np.array([0, 0, 0.0 if aside < 0.01 else 0.07])
        if self.closing[i] > 6:
            goal = np.array([cube[0], cube[1], LIFT])
        return np.append(self.towards(i, goal), 1.0 if self.closing[i] else -1.0)


def unweighted(env: Env) -> torch.Tensor:
    """Sums of the four potential terms over the episodes so far, without their weights, `(num_envs, 4)`."""
    return torch.stack([env.episode_rewards[name] / env._weights[name] for name in GAINS], -1)


def potential(env: Env) -> torch.Tensor:
    return env.state.store["potential"].float().clone()


@pytest.fixture(scope="module")
def expert_run():
    """One episode of four experts: success, steps, and what each episode's terms summed to."""
    env = make(4, plain=False)
    env.auto_reset = False
    expert, start, results = Expert(env), potential(env), {}
    for _ in range(150):
        step = env.step(expert.act())
        for i in (step.terminated | step.truncated).nonzero().flatten().tolist():
            sums = unweighted(env)[i], (potential(env) - start)[i]
            results.setdefault(
                i, (bool(step.success[i]), int(env.state.steps[i]), *sums, env.ended)
            )
        if len(results) == 4:
            break
    return results


def test_scripted_expert_succeeds_in_randomized_noisy_episodes(expert_run):
    assert len(expert_run) == 4
    for success, steps, *_ in expert_run.values():
        assert success
        assert steps < 120


def test_expert_earns_every_term(expert_run):
    for *_, sums, difference, _ in expert_run.values():
        assert sums.tolist() == pytest.approx(difference.tolist(), abs=1e-4)
        assert sums.sum() <= 4
        assert (sums[1:] > 0.5).all()
        assert 0.2 < sums[0] <= 1


def test_grasp_is_timed_and_nothing_slips(expert_run):
    for success, steps, *_, ended in expert_run.values():
        assert success
        assert (ended["slips"] == 0).all()
        assert (ended["time_to_grasp"] < steps / 15).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_potential_terms_telescope_in_any_episode(seed):
    env = make(16, plain=False, episode_steps=40)
    env.auto_reset = False
    start, generator = potential(env), torch.Generator().manual_seed(seed)
    for i in range(40):
        if i % 8 == 0:
            move = 2 * torch.rand(16, 4, generator=generator) - 1
        env.step(move)
    assert torch.allclose(unweighted(env), potential(env) - start, atol=1e-4)
    assert (unweighted(env).sum(-1) <= 4).all()


def test_random_policy_never_succeeds():
    env, generator = make(32, plain=False), torch.Generator().manual_seed(0)
    for _ in range(200):
        assert not env.step(2 * torch.rand(32, 4, generator=generator) - 1).success.any()
    assert env.broken_count == 0


def test_hovering_earns_nothing():
    env = make(4)
    env.step(torch.zeros(4, 4) - torch.eye(4)[3])  # the filter comes to rest
    before = unweighted(env)
    for _ in range(40):
        env.step(torch.zeros(4, 4) - torch.eye(4)[3])
    assert (unweighted(env) - before).abs().max() < 0.01


def test_cycling_earns_nothing():
    env, still = make(4), torch.tensor([0.0, 0, 0, -1])
    for _ in range(5):
        env.step(still.repeat(4, 1))
    pose, before, moved = env.state.joint_pos[:, :6].clone(), unweighted(env), []
    for joint in range(3):
        for direction in (1.0, -1.0, -1.0, 1.0):
            move = still.repeat(4, 1)
            move[:, joint] = 0.5 * direction
            for _ in range(6):
                env.step(move)
                moved.append((unweighted(env) - before).abs().max())
    for _ in range(10):
        env.step(still.repeat(4, 1))
    assert max(moved) > 0.1
    assert (env.state.joint_pos[:, :6] - pose).abs().max() < 0.01
    assert (unweighted(env) - before).abs().max() < 0.02


def test_grasping_and_letting_go_earns_nothing():
    env = make(2)
    expert = Expert(env)
    for _ in range(40):
        env.step(expert.act())
        if (expert.closing > 5).all():
            break
    assert (potential(env)[:, 1] > 0.7).all()
    sums = [unweighted(env)[:, 1]]
    for gripper in (-1.0, 1.0, -1.0):
        for _ in range(8):
            env.step(torch.tensor([0.0, 0, 0, gripper]).repeat(2, 1))
        sums.append(unweighted(env)[:, 1])
    assert ((sums[2] > 0.5) & (sums[2] <= 1)).all()
    assert sums[1].abs().max() < 1e-6
    assert sums[3].abs().max() < 1e-6


def test_pressing_the_table_costs_by_the_largest_force_once():
    """The cost follows the reported peak; it does not grow while the force lasts, nor when a lesser one follows."""
    env = make(2)
    expert, peaks, costs = Expert(env), [], []
    for depth in (
        0.14,
        -0.10,
        -0.10,
        0.14,
        -0.01,
    ):  # m, of the pinch point: above, into the table, ..., a touch
        for _ in range(20):
            goal = np.array([0.5, 0.2, depth])
            env.step(
                torch.tensor(
                    np.stack([[*expert.towards(i, goal), -1.0] for i in range(2)]),
                    dtype=torch.float32,
                )
            )
        peaks.append(env.state.store["peak_press"].clone())
        costs.append(env.episode_rewards["press"] / env._weights["press"])
    assert not peaks[0].any()
    assert (peaks[1] > 60).all()
    for peak, cost in zip(peaks, costs):
        torch.testing.assert_close(cost.double(), peak.clip(max=MAX_PRESS) / 100, atol=1e-4, rtol=0)
    assert torch.equal(peaks[4], peaks[2])


def test_expert_never_presses_the_table(expert_run):
    for *_, ended in expert_run.values():
        assert (ended["peak_press"] == 0).all()


def test_gripping_above_the_centre_earns_most():
    """Of some heights of the pinch point over the cube, `grip_height` has the highest potential."""
    env = make(1)
    expert, cube = Expert(env), env.state.pose("cube")[0, :3].numpy().copy()
    best = {}
    for above in (-0.01, 0.0, 0.01, 0.02, 0.03):
        env.reset()
        cube = env.state.pose("cube")[0, :3].numpy().copy()
        for height in (0.08, above):
            for _ in range(25):
                goal = cube + np.array([0, 0, height])
                env.step(torch.tensor([[*expert.towards(0, goal), -1.0]], dtype=torch.float32))
        best[above] = float(potential(env)[0, 0])
    assert max(best, key=best.get) == env.task.cfg.grip_height


def test_training_alone_has_short_episodes():
    cls = load("jaka-pick-cube")
    assert (
        cls.defaults["env"]["episode_steps"]
        < cls.Config().episode_steps
        == make(1).episode_steps
        == 200
    )


def test_wrist_keeps_the_tool_down_while_the_arm_moves():
    env = make(8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        move = 2 * torch.rand(8, 4, generator=generator) - 1
        env.step(move)
        q = env.state.command.double()
        assert torch.allclose(q[:, 3], np.pi / 2 - q[:, 1] - q[:, 2], atol=1e-5)
        assert torch.allclose(q[:, 5], np.pi / 2 + q[:, 0], atol=1e-5)


def test_cube_off_the_table_is_a_failure():
    env = make(2)
    env.state.pose("cube")[1, :3] = torch.tensor([2.0, 0, -0.1], dtype=torch.float64)
    step = env.step(torch.zeros(2, 4))
    assert step.terminated.tolist() == [False, True]
    assert not step.success.any()
    assert step.reward[1] < -2


def test_episodes_start_in_the_stated_ranges():
    env = make(256)
    cfg, cube = env.task.cfg, env.state.pose("cube")
    for axis, (low, high) in enumerate((cfg.cube_x, cfg.cube_y)):
        assert low - 1e-6 < cube[:, axis].min() < low + 0.02
        assert high - 0.02 < cube[:, axis].max() < high + 1e-6
    home = torch.tensor(jaka_zu5.HOME, dtype=torch.float64)
    away = (env.state.joint_pos[:, :3] - home[:3]).abs()
    assert 0.9 * cfg.home_noise < away.max() <= cfg.home_noise + 1e-9
    assert torch.allclose(env.state.joint_pos[:, 3], np.pi / 2 - env.state.joint_pos[:, 1:3].sum(1))
    assert not ARM.touch(env.state, "cube").any()


def test_the_distance_to_the_cube_is_computed_from_what_is_measured():
    """The policy's distance has the error of the measured cube, as it would on a robot."""
    env = make(8, plain=False, randomize=False)
    for _ in range(3):
        step = env.step(torch.zeros(8, 4))
        pinch, seen = env.state.site("pinch"), step.final_obs["policy"].double()
        measured = (pinch - seen[:, 7:10]).norm(dim=-1)
        true = (pinch - env.state.joint("cube")[:, :3]).norm(dim=-1)
        torch.testing.assert_close(seen[:, 10], measured, atol=1e-5, rtol=0)
        assert (measured - true).abs().max() > 1e-4
    assert [s.name for s in env.contract.signals] == ["joint_pos", "cube_pos"]
