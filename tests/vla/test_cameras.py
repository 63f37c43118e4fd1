"""A task seen through the cameras of its scene, in the environment of training and on the simulated robot."""

import filmed
import numpy as np
import pytest
import torch

from deftly.config import EnvConfig, SimConfig
from deftly.data.demonstrations import Film, Source, simulate
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.render import NoGLError
from deftly.tasks import load
from deftly.twin.robot import SimRobot
from deftly.vla.cameras import cameras_of, seen_through
from deftly.vla.features import seen_contract

SIZE = 32


@pytest.fixture
def task():
    cls = load(filmed.FILE)
    return cls(cls.Config(episode_steps=40, goal=0.08))


@pytest.fixture
def seen(task):
    contract = seen_contract(task.contract(), cameras_of(task), SIZE, task.prompts[0])
    try:
        found = seen_through(task, contract)
        assert found._eyes
    except NoGLError as error:
        pytest.skip(str(error))
    return found


def test_the_environment_shows_each_robot_its_own_image(seen):
    env = Env(seen, EnvConfig(num_envs=3), SimConfig(threads=1))
    assert set(env.signals) == {"joint_pos", "front"}
    images = env.signals["front"]
    assert (images.shape, images.dtype) == ((3, SIZE, SIZE, 3), torch.uint8)
    assert not torch.equal(images[0], images[1])
    before = images.clone()
    env.step(torch.ones(3, 2))
    assert not torch.equal(before, env.signals["front"])


def test_a_demonstrations_images_are_what_the_policy_sees_later(task, seen):
    """The same state gives the same pixels where it was collected and where it is evaluated."""
    source = Source(task, SimConfig(threads=1), 3, 2)
    env, episodes = simulate(source, filmed.expert(task), 0)
    film = Film(("front",), SIZE)
    first = next(film.frames(env, episodes[1]))["front"]
    film.close()
    again = Env(seen, EnvConfig(num_envs=2), SimConfig(threads=1), source.seed, "demos/0")
    assert np.array_equal(first, again.signals["front"][1].numpy())


def test_the_simulated_robot_sees_too(seen):
    robot = SimRobot(seen)
    image = robot.read().signals["front"]
    assert (image.shape, image.dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert image.max() > image.min()


def test_a_camera_that_is_none_is_refused(task):
    with pytest.raises(DeftlyError, match=r"no camera 'fornt' in the scene.*front"):
        cameras_of(task, ("fornt",))
    cls = load(str(filmed.FILE).replace("filmed", "slider"))
    with pytest.raises(DeftlyError, match="has no camera"):
        cameras_of(cls(cls.Config()))
