"""WildRobot's tasks: the contract's table, the start, mirror symmetry of sensing and acting, commands, and falls."""

import mujoco
import pytest
import torch

from deftly.config import EnvConfig, SimConfig, parse
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.evaluate.rollout import decide
from deftly.learn.policy import NetworkPolicy
from deftly.robots import wildrobot
from deftly.robots.wildrobot import WILD
from deftly.tasks import load
from deftly.tasks.wildrobot_walk import MAX_SPEED

QUIET = {"randomize": False, "noise": False, "pushes": False}
TASKS = ("wildrobot-stand", "wildrobot-walk")
FLIP = torch.tensor([1.0, -1.0, 1.0])
"""A vector's mirror image in the plane between the legs; of an angular velocity, its negative."""


def make(name: str, num_envs: int = 2, env: dict | None = None, **task) -> Env:
    cls = load(name)
    cfg = EnvConfig(num_envs=num_envs, **{**QUIET, **(env or {})})
    return Env(cls(cls.Config(**task)), cfg, SimConfig(preset="fast", threads=1), 3)


def mirrored(obs: torch.Tensor) -> torch.Tensor:
    """The first 34 numbers of the observation of a robot that is the mirror image."""

    def swap(legs: torch.Tensor) -> torch.Tensor:
        left, right = legs.chunk(2, -1)
        return torch.cat((right, left), -1)

    gravity, rates, pos, vel, switches, action = obs[:, :34].split([3, 3, 8, 8, 4, 8], -1)
    parts = (gravity * FLIP, -rates * FLIP, swap(pos), swap(vel), swap(switches), swap(action))
    return torch.cat(parts, -1)


def privileged_of(env: Env) -> torch.Tensor:
    return env.task.privileged(env.state).float()


@pytest.mark.parametrize(("name", "size"), [(TASKS[0], 34), (TASKS[1], 38)])
def test_contract_is_the_documented_table(name, size):
    env = make(name, 1)
    assert env.contract.obs_size() == size
    assert env.contract.action_size == 8
    assert env.contract.rate == 50.0
    seen = [term.term for term in env.contract.observe_terms][:6]
    sensed = ["gravity", "heading_angular_velocity", "joint_pos", "joint_vel", "foot_switches"]
    assert seen == [*sensed, "action"]


@pytest.mark.parametrize("name", TASKS)
def test_an_episode_starts_at_home_with_the_action_that_holds_it(name):
    env = make(name, 3, joint_noise=0.0)
    obs = env.obs["policy"]
    assert obs[:, :3] == pytest.approx(torch.tensor([0.0, 0.0, -1.0]).expand(3, 3), abs=1e-6)
    for part in (obs[:, 3:22], obs[:, 26:34]):
        assert part.abs().max() < 1e-6
    assert (obs[:, 22:26] == 1.0).all()
    targets, _ = env.contract.act(torch.zeros(3, 8), env._memory)
    home = torch.tensor(env.contract.home()).expand(3, 8)
    assert torch.allclose(targets, home)


@pytest.mark.parametrize("name", TASKS)
def test_holding_home_stands_for_the_whole_episode(name):
    env = make(name, 2, episode_steps=150)
    for _ in range(150):
        step = env.step(torch.zeros(2, 8))
    assert step.success.all()
    assert step.truncated.all()


def test_mirrored_robots_see_and_do_mirrored_things():
    """Two robots from mirrored starts under mirrored actions stay each other's mirror image, on every axis."""
    env = make("wildrobot-stand", 2, joint_noise=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        own = torch.rand(1, 8, generator=generator) - 0.5
        left, right = own.chunk(2, -1)
        step = env.step(torch.cat((own, torch.cat((right, left), -1))))
        assert torch.allclose(mirrored(step.obs["policy"][:1]), step.obs["policy"][1:], atol=1e-3)
        known = env.task.mirror().privileged(privileged_of(env)[:1])
        assert torch.allclose(known, privileged_of(env)[1:], atol=2e-2)
    rolled = env.obs["policy"][0, :6].abs()
    assert rolled[[1, 3, 5]].min() > 1e-3


@pytest.mark.parametrize("name", TASKS)
def test_the_mirror_of_the_mirror_is_the_robot(name):
    env = make(name, 4)
    mirror = env.task.mirror()
    rows = {
        "observation": torch.randn(4, env.contract.obs_size()),
        "privileged": torch.randn(4, privileged_of(env).shape[-1]),
        "action": torch.randn(4, 8),
    }
    for which, value in rows.items():
        image = getattr(mirror, which)(value)
        assert not torch.allclose(image, value)
        assert torch.equal(getattr(mirror, which)(image), value)
    assert torch.equal(
        mirror.observation(rows["observation"])[:, :34], mirrored(rows["observation"])
    )


def test_a_mirrored_walker_sees_the_mirrored_command_half_a_period_later():
    env = make("wildrobot-walk", 1, joint_noise=0.0, turn=0.3)
    seen = []
    for _ in range(35):
        seen.append(env.obs["policy"].clone())
        env.step(torch.zeros(1, 8))
    image = env.task.mirror().observation(seen[10])
    assert image[0, 34] == seen[10][0, 34]
    assert image[0, 35] == -seen[10][0, 35]
    half = round(0.5 * env.task.cfg.period * 50)
    phase = 2 * torch.pi * torch.tensor(10 / 35 + half / 35)
    assert image[0, 36:38] == pytest.approx(torch.stack((phase.sin(), phase.cos())), abs=0.1)


def test_falling_over_ends_the_episode_and_costs():
    env = make("wildrobot-stand", 1)
    env.auto_reset = False
    action = torch.tensor([[0.0, 0.0, 0.0, 1.0] * 2])
    for _ in range(200):
        step = env.step(action)
        if step.terminated:
            break
    assert step.terminated
    assert not step.success
    assert env.ended["failed/fell"] == 1
    assert env.episode_rewards["fell"] < -1


def test_pushes_are_on_the_waist_for_as_long_as_they_say():
    env = make(
        "wildrobot-stand", 64, env={"pushes": True}, push_force=(3.0, 3.0), push_interval=0.5
    )
    waist = env.model.body("waist").id
    lasted, longest = torch.zeros(64), 0.0
    for _ in range(60):
        env.step(torch.zeros(64, 8))
        force = env.sim.bind("xfrc_applied")[:, waist, :3].norm(dim=-1)
        assert ((force == 0) | ((force - 3.0).abs() < 1e-5)).all()
        lasted = torch.where(force > 0, lasted + 1, 0.0)
        longest = max(longest, float(lasted.max()))
    assert longest in (6.0, 12.0)


# ------------------------------------------------------------------ walking


def test_the_policy_sees_the_command_and_its_heading():
    env = make("wildrobot-walk", 8, speed=(0.2, 0.6), turn=0.3, joint_noise=0.0)
    said = env.inputs
    assert env.obs["policy"][:, 34] == pytest.approx(said["speed"][:, 0])
    assert (said["speed"] >= 0.2).all()
    assert said["speed"].std() > 0.05
    assert env.obs["policy"][:, 35].abs().max() < 1e-6
    turn = said["turn"][:, 0]
    for _ in range(25):
        env.step(torch.zeros(8, 8))
    assert env.obs["policy"][:, 35] == pytest.approx(0.5 * turn, abs=0.03)


def test_a_policy_that_decides_from_signals_and_commands_sees_what_training_sees():
    """As evaluation and a robot run it: readings with noise, inputs, commands that change."""
    env = make("wildrobot-walk", 3, env={"noise": True}, turn=0.3, hold_s=0.2)
    seen = []

    def network(obs, stochastic=False):
        seen.append(obs)
        return 0.3 * torch.sin(7.0 * obs[:, :8])

    policy = NetworkPolicy(env.contract, network)
    policy.reset()
    for _ in range(30):
        known = env.obs["policy"].clone()
        action = decide(env, policy)
        assert torch.allclose(seen[-1], known, atol=1e-5)
        env.step(action)
    assert env.inputs["speed"].shape == (3, 1)


def test_another_operator_takes_the_tasks_place_until_he_is_gone():
    env = make("wildrobot-walk", 3, speed=(0.3, 0.6), turn=0.3, hold_s=0.1)
    env.hear({"speed": 0.2, "turn": [-0.1]})
    for _ in range(30):
        assert (env.inputs["speed"] == 0.2).all()
        assert (env.inputs["turn"] == torch.tensor(-0.1)).all()
        env.step(torch.zeros(3, 8))
        assert env.obs["policy"][:, 34].tolist() == pytest.approx([0.2] * 3)
    judged = env.task.metrics(env.state)
    assert judged["command"].tolist() == pytest.approx([0.2] * 3, abs=0.02)
    env.hear(None)
    for _ in range(30):
        env.step(torch.zeros(3, 8))
    assert (env.inputs["speed"] >= 0.3).all()
    with pytest.raises(DeftlyError, match="'height' is no input of the policy"):
        env.hear({"height": 1.0})


def test_the_task_and_the_contract_agree_on_gait_and_heading():
    env = make("wildrobot-walk", 4, turn=0.3)
    for _ in range(37):
        env.step(torch.zeros(4, 8))
    phase = 2 * torch.pi * env.state.zeros("phase").float()
    assert torch.allclose(env.obs["policy"][:, 36], phase.sin(), atol=1e-4)
    assert torch.allclose(env.obs["policy"][:, 37], phase.cos(), atol=1e-4)
    own = env.state.zeros("heading_error").float()
    assert torch.allclose(env.obs["policy"][:, 35], own, atol=1e-4)


def test_left_foot_swings_first():
    env = make("wildrobot-walk", 1)
    heights = []
    for _ in range(30):
        env.step(torch.zeros(1, 8))
        heights.append(env.task._foot_heights(env.state)[0])
    left, right = torch.stack(heights).T
    assert left.argmax() < 15 < right.argmax()
    assert left.max() == pytest.approx(env.task.cfg.lift, rel=0.05)
    assert not ((left > 0) & (right > 0)).any()


def test_drift_is_measured_in_the_world():
    """A robot carried sideways and turned has drifted, whatever it sees of it."""
    env = make("wildrobot-walk", 1, speed=(0.3, 0.3))
    env.step(torch.zeros(1, 8))
    before = env.task.metrics(env.state)
    pose = env.state.pose("waist")
    mask = torch.ones(1, dtype=torch.bool)
    moved = pose[:, :3] + torch.tensor([[0.0, 0.25, 0.0]])
    quat = torch.tensor([[0.995, 0.0, 0.0, 0.0998]], dtype=pose.dtype)
    env.state.place("waist", mask, moved, quat)
    env.task.update(env.state)
    after = env.task.metrics(env.state)
    assert float(after["lateral_drift"] - before["lateral_drift"]) == pytest.approx(0.25, abs=0.01)
    assert float(after["heading_drift"]) == pytest.approx(0.2, abs=0.01)


def test_tracking_error_compares_like_with_like():
    """A robot that stands has the error of its command once both means have settled."""
    env = make("wildrobot-walk", 1, speed=(0.4, 0.4), episode_steps=300)
    for _ in range(299):
        env.step(torch.zeros(1, 8))
    error = float(env.task._speed_error(env.state))
    assert error == pytest.approx(-0.4, abs=0.02)
    assert float(env.task.metrics(env.state)["tracking_error"]) == pytest.approx(0.36, abs=0.04)


def test_faster_commands_and_pushes_come_with_success_and_care_with_tracking():
    env = make("wildrobot-walk", 256, speed=(0.2, 0.6))
    task, s = env.task, env.state
    everyone = torch.ones(256, dtype=torch.bool)
    nothing = {"success": 0.0, "steps": 500.0, "reward/track": 0.0}
    task.curriculum(s, nothing)
    task._command(s, everyone)
    assert 0.19 < float(s.zeros("speed").max()) <= 0.2
    assert s.scale["push"] == 0.0
    for _ in range(200):
        task.curriculum(s, {**nothing, "success": 1.0})
    task._command(s, everyone)
    assert 0.68 < float(s.zeros("speed").max()) <= MAX_SPEED
    assert 0.0 <= float(s.zeros("speed").min()) < 0.05  # it stops, and turns on the spot
    assert s.scale["push"] == pytest.approx(task.cfg.push_growth, abs=1e-3)
    assert s.scale["torque"] == pytest.approx(task.cfg.leniency, abs=1e-3)
    half = 0.5 * task.cfg.weights.track * 10.0
    for _ in range(200):
        task.curriculum(s, {**nothing, "success": 1.0, "reward/track": half})
    assert s.scale["torque"] == pytest.approx(1.0, abs=1e-3)


def test_an_evaluation_commands_no_more_than_the_task_says():
    env = make("wildrobot-walk", 256, env={"pushes": True}, speed=(0.2, 0.6), push_interval=0.1)
    assert float(env.state.zeros("speed").max()) <= 0.6
    assert float(env.state.zeros("speed").min()) >= 0.2
    for _ in range(10):
        env.step(torch.zeros(256, 8))
    assert float(env.sim.bind("xfrc_applied").norm(dim=-1).max()) <= 3.0


def test_speed_is_held_where_nothing_is_random():
    """The contract clips what an operator asks beyond the trained range."""
    env = make("wildrobot-walk", 1)
    signals = {name: value[0].numpy() for name, value in env.signals.items()}
    memory = env.contract.reset(signals)
    obs, _ = env.contract.observe(signals, memory, {"speed": [5.0]})
    assert obs["state"][34] == pytest.approx(0.7)


def test_saturation_counts_servos_at_their_limit():
    env = make("wildrobot-stand", 1)
    force = env.sim.bind("actuator_force")
    assert not WILD.saturated(env.state).any()
    assert force.abs().max() < wildrobot.TORQUE


def test_settings_out_of_range_are_refused():
    cls = load("wildrobot-walk")
    for wrong in (
        {"turn": 2.0},
        {"speed": (2.0, 2.0)},
        {"speed": (-1.0, 0.0)},
        {"push_force": (-5.0, -2.0)},
        {"ground": {"friction": (-1.0, 1.0)}},
    ):
        with pytest.raises(DeftlyError, match=next(iter(wrong)).replace("_", "-")):
            parse(cls.Config, [], prog="task", filed=wrong)


def test_a_robot_that_walks_away_stays_on_a_drawn_floor_and_in_the_light():
    model = make("wildrobot-walk", 1).drawn
    assert model.geom("floor").size[:2].tolist() == [0, 0]  # without end
    (casting,) = [i for i in range(model.nlight) if model.light(i).castshadow[0]]
    light = model.light(casting)
    assert model.body(int(light.bodyid[0])).name == WILD.base
    assert light.mode[0] == mujoco.mjtCamLight.mjCAMLIGHT_TRACK.value
