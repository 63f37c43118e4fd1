"""An image on its whole way: from the simulation through client and server to a policy that sees nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import watcher
from toy_robot import running

from deftly.config import EnvConfig, SimConfig
from deftly.env import Env
from deftly.evaluate.evaluate import EvalSettings, measure
from deftly.evaluate.source import PolicySource
from deftly.policy.protocol import ContractPolicy
from deftly.tasks import load
from deftly.twin.loop import LoopArgs
from deftly.twin.robot import SimRobot
from deftly.twin.sim2sim import run_sim2sim

FILE = str(Path(watcher.__file__))


@pytest.fixture
def task():
    cls = load(FILE)
    return cls(cls.Config(episode_steps=60, goal=0.08))


def homing(groups):
    """Drives the block to the middle of the image."""
    return np.clip(-5 * watcher.find(groups["front"]), -1, 1).astype(np.float32)


def test_an_environment_shows_the_image_in_a_group_of_its_own(task):
    env = Env(task, EnvConfig(num_envs=3), SimConfig(threads=1))
    assert set(env.obs) == {"policy", "front", "critic"}
    for _ in range(5):
        step = env.step(torch.zeros(3, 2))
        assert step.obs["front"].dtype == torch.uint8
        assert torch.equal(step.obs["front"], watcher.paint(env.state.joint_pos))
    before = env.obs["front"].clone()
    env.reset(torch.tensor([False, True, False]))
    changed = (env.obs["front"] != before).flatten(1).any(-1)
    assert changed.tolist() == [False, True, False]


def test_a_policy_may_see_an_image_and_no_numbers(task):
    found = task.contract()
    (front,) = (term for term in found.observe_terms if term.group == "front")
    alone = replace(found, observe_terms=(front,))
    task.contract = lambda: alone
    env = Env(task, EnvConfig(num_envs=2), SimConfig(threads=1))
    step = env.step(torch.zeros(2, 2))
    assert set(step.obs) == {"front", "critic"}
    assert step.obs["critic"].shape == (2, 3)  # what the task adds


def test_the_simulated_robot_measures_the_image(task):
    robot = SimRobot(task)
    image = robot.read().signals["front"]
    assert (image.shape, image.dtype) == ((watcher.SIZE, watcher.SIZE, 3), np.uint8)
    assert np.abs(watcher.find(image[None]) - robot.view.joint_pos.numpy()).max() < 0.03


def test_a_policy_that_sees_succeeds_through_the_socket(task):
    """In the environment of training, and on the simulated robot under its control loop."""
    with running(ContractPolicy(task.contract(), homing)) as server:
        source = PolicySource("endpoint", server.endpoint, None)
        trained = EvalSettings(episodes=6, sim=SimConfig(threads=1))
        result, _ = measure(task, source, trained)
        assert result["success"]["rate"] == 1.0
        result, _ = run_sim2sim(SimRobot(task), source, LoopArgs(episodes=3))
        assert result["success"]["rate"] == 1.0


def test_a_policy_that_is_shown_darkness_does_not_succeed(task):
    """The image alone tells it where to go: else the test above would show nothing."""

    def blind(groups):
        return homing({"front": np.zeros_like(groups["front"])})

    with running(ContractPolicy(task.contract(), blind)) as server:
        source = PolicySource("endpoint", server.endpoint, None)
        result, _ = measure(task, source, EvalSettings(episodes=6, sim=SimConfig(threads=1)))
        assert result["success"]["rate"] < 0.5
