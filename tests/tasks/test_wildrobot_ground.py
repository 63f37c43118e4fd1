"""Conditions that no WildRobot was trained under: slopes, uneven and slippery ground, a wrong gyroscope, one push."""

import math
from dataclasses import replace

import pytest
import torch

from deftly.config import EnvConfig, SimConfig
from deftly.contract.derive import projected_gravity
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.robots.legged import Ground
from deftly.robots.wildrobot import WILD
from deftly.sim import scene
from deftly.tasks import load

QUIET = {"randomize": False, "noise": False, "pushes": False}
TASKS = ("wildrobot-stand", "wildrobot-walk")


def make(name: str = TASKS[0], num_envs: int = 2, env: dict | None = None, **task) -> Env:
    cls = load(name)
    cfg = EnvConfig(num_envs=num_envs, **{**QUIET, **(env or {})})
    return Env(cls(cls.Config(**task)), cfg, SimConfig(preset="fast", threads=1), 3)


@pytest.mark.parametrize("name", TASKS)
def test_the_ground_is_flat_and_level_unless_set(name):
    env = make(name)
    assert env.model.opt.gravity.tolist() == [0.0, 0.0, -9.81]
    assert [env.model.geom(i).name for i in range(env.model.ngeom)] == [
        "floor",
        *(f"{side}_{part}" for side in ("left", "right") for part in ("toe", "heel", "inner")),
    ]
    assert env.state.pose("waist")[:, :2].tolist() == [[0.0, 0.0]] * 2


@pytest.mark.parametrize("uphill", [0.0, 0.5 * math.pi, 2.0, -3.0])
@pytest.mark.parametrize("name", TASKS)
def test_a_slope_leans_towards_where_it_rises(name, uphill):
    """A robot at right angles to a slope leans back where it looks uphill; its sensor and tilt know the vertical."""
    env = make(name, ground=Ground(slope=0.2, uphill=uphill), joint_noise=0.0)
    across = math.sin(0.2)
    down = [-across * math.cos(uphill), -across * math.sin(uphill), -math.cos(0.2)]
    assert env.obs["policy"][0, :3].tolist() == pytest.approx(down, abs=1e-6)
    measured = projected_gravity(env.signals["orientation"])
    assert measured[0].tolist() == pytest.approx(down, abs=1e-6)
    assert WILD.tilt(env.state).tolist() == pytest.approx([0.2, 0.2], abs=1e-6)
    assert env.model.opt.gravity @ env.model.opt.gravity == pytest.approx(9.81**2)


def test_a_robot_slides_down_a_slope_with_little_friction():
    ground = Ground(slope=0.3, uphill=0.5 * math.pi, friction=(0.1, 0.1))
    env = make(env={"randomize": True}, ground=ground)
    for _ in range(25):
        env.step(torch.zeros(2, 8))
    moved = env.state.pose("waist")[:, :2]
    assert (moved[:, 1] < -0.05).all()  # away from where it rises, to the left
    assert (moved[:, 0].abs() < 0.05).all()


def test_uneven_ground_lies_under_feet_that_start_somewhere_on_it():
    env = make(num_envs=16, ground=Ground(tiles=0.02), joint_noise=0.0)
    tiles = [env.model.geom(i) for i in range(env.model.ngeom) if "tile" in env.model.geom(i).name]
    tops = torch.tensor([float(tile.pos[2] + tile.size[2]) for tile in tiles])
    assert len(tiles) == scene.TILES[0] * scene.TILES[1]
    assert 0.0 <= tops.min() < 0.002 < 0.018 < tops.max() <= 0.02
    place = env.state.pose("waist")[:, :3]
    assert place[:, :2].abs().max() <= 0.5
    assert place[:, :2].std() > 0.1
    assert place[:, 2].tolist() == pytest.approx([WILD_HEIGHT + 0.02] * 16, abs=1e-6)
    for _ in range(40):
        env.step(torch.zeros(16, 8))
    heights = WILD.foot_pos(env.state)[..., 2]
    assert (heights > -0.003).all()  # it stands on tiles, not in them
    assert (heights[:, 0] - heights[:, 1]).abs().max() > 0.004
    assert WILD.foot_forces(env.state).sum() > 0


WILD_HEIGHT = 0.4567  # m, of the waist at home


def test_the_friction_of_the_soles_is_a_range_of_the_task():
    env = make(num_envs=4, env={"randomize": True}, ground=Ground(friction=(0.25, 0.25)))
    assert env.state.parameter("geom_friction", "left_toe")[:, 0].tolist() == pytest.approx(
        [0.2] * 4
    )
    usual = make(num_envs=256, env={"randomize": True})
    drawn = usual.state.parameter("geom_friction", "left_toe")[:, 0] / 0.8
    assert 0.6 <= drawn.min() < 0.65 < 1.25 < drawn.max() <= 1.3


def test_a_gyroscope_is_off_by_the_same_in_every_episode():
    """Beside the bias that is drawn, which is at most 0.02 rad/s, and white noise of 0.03 rad/s."""
    env = make(num_envs=512, env={"noise": True}, gyro_bias=(0.1, 0.0, -0.2))
    mean = env.signals["angular_velocity"].mean(0).tolist()
    assert mean == pytest.approx([0.1, 0.0, -0.2], abs=0.006)
    env.reset()
    assert env.signals["angular_velocity"].mean(0).tolist() == pytest.approx(mean, abs=0.01)
    without = make(gyro_bias=(0.1, 0.0, -0.2))
    assert without.signals["angular_velocity"].abs().max() < 1e-6  # env.noise is off


@pytest.mark.parametrize("ground", [{"friction": (0.0, 1.0)}, {"slope": 1.0}, {"tiles": -0.1}])
def test_ground_out_of_range_is_refused(ground):
    with pytest.raises(DeftlyError, match=f"task.ground.{next(iter(ground))} is"):
        load(TASKS[0]).Config(ground=Ground(**ground))


def test_an_offset_fits_its_signal():
    with pytest.raises(DeftlyError, match="offset has 2 numbers, the signal 3"):
        task = load(TASKS[0])(load(TASKS[0]).Config())
        task.cfg = replace(task.cfg)
        task.noise = lambda: WILD.noise((0.1, 0.2))
        Env(task, EnvConfig(num_envs=1), SimConfig(preset="fast", threads=1))


def test_an_episode_has_as_many_pushes_as_it_may():
    cfg = {"push_force": (4.0, 4.0), "push_interval": 0.1, "push_steps": 2, "most_pushes": 2}
    env = make(num_envs=16, env={"pushes": True}, **cfg)
    waist, starts = env.model.body("waist").id, torch.zeros(16)
    before = torch.zeros(16, dtype=torch.bool)
    for _ in range(100):
        env.step(torch.zeros(16, 8))
        pushed = env.sim.bind("xfrc_applied")[:, waist, :2].norm(dim=-1) > 0
        starts += pushed & ~before
        before = pushed
    assert env.state.steps.min() == 100
    assert env.state_dict()["pushes/count"].tolist() == [[2.0]] * 16
    assert starts.max() == 2.0
    env.reset()
    assert not env.state_dict()["pushes/count"].any()


@pytest.mark.parametrize("name", TASKS)
def test_feet_that_are_carried_over_the_ground_slip(name):
    env = make(name, 1, joint_noise=0.0)
    env.step(torch.zeros(1, 8))
    assert float(env.task.metrics(env.state)["slip"]) < 0.02
    feet = env.state.zeros("foot_pos", 2, 3)
    feet[:, :, 1] -= 0.01  # as if they had been elsewhere a step ago, 0.02 s
    WILD.watch(env.state)
    metrics = env.task.metrics(env.state)
    assert float(metrics["slip"]) == pytest.approx(0.25, abs=0.02)  # 0.5 m/s, mean over two steps
    assert float(metrics["peak_impact"]) == pytest.approx(16.2, abs=2.0)


def test_a_stand_that_turns_has_drifted():
    env = make(num_envs=1, joint_noise=0.0)
    env.step(torch.zeros(1, 8))
    pose = env.state.pose("waist")
    turned = torch.tensor([[math.cos(0.15), 0.0, 0.0, math.sin(0.15)]], dtype=pose.dtype)
    env.state.place("waist", torch.ones(1, dtype=torch.bool), pose[:, :3].clone(), turned)
    assert float(env.task.metrics(env.state)["heading_drift"]) == pytest.approx(0.3, abs=0.01)
