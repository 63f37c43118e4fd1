"""Images as observations: what the cameras of a scene see in a batch of environments."""

import ctypes.util
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from deftly.config import EnvConfig, SimConfig
from deftly.contract import Signal
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.render.cameras import Cameras
from deftly.tasks import load
from deftly.twin.robot import SimRobot

pytestmark = pytest.mark.skipif(
    not any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa")),
    reason="no GL library is installed",
)
SEEKER = str(Path(__file__).parents[1] / "assets/seeker.py")
STILL = torch.zeros(4, 2)


def task(observation="rgb"):
    cls = load(SEEKER)
    return cls(cls.Config(observation=observation))


def make(num_envs=4, seed=0, **env):
    return Env(task(), EnvConfig(num_envs=num_envs, **env), SimConfig(threads=1), seed)


def where_red(image: torch.Tensor) -> np.ndarray:
    """The place of the mark, (2,), in units of half the image: to the right, upwards."""
    red = image[..., 0].double() - image[..., 1:].double().amax(-1)
    weight = (red - 40).clip(min=0)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    mean = [float((weight * axis).sum() / weight.sum()) for axis in (columns, -rows)]
    return (np.array(mean) - (7.5, -7.5)) / 8


def test_each_environment_sees_its_own_scene():
    env = make(8, randomize=False)
    assert env.obs["top"].shape == (8, 16, 16, 3)
    assert env.obs["top"].dtype == torch.uint8
    half = 1.9 * np.tan(np.radians(25))  # of what the image shows at the height of the mark, m
    for image, mark in zip(env.obs["top"], env.state.store["mark"]):
        seen = where_red(image) * half
        assert np.abs(np.abs(seen) - mark.abs().numpy()).max() < 0.12


def test_images_follow_the_step_and_a_reset_draws_only_its_own():
    env = make()
    before = env.obs["top"].clone()
    step = env.step(torch.ones(4, 2))
    assert not torch.equal(step.obs["top"], before)
    env.auto_reset = False
    drawn = []
    cameras = env._cameras
    assert cameras is not None
    images = cameras.images
    cameras.images = lambda sim, ids, fields: drawn.append(list(ids)) or images(sim, ids, fields)  # type: ignore[method-assign]
    before = env.obs["top"].clone()
    env.reset(torch.tensor([False, True, False, True]))
    changed = (env.obs["top"] != before).flatten(1).any(-1)
    assert changed.tolist() == [False, True, False, True]
    assert drawn == [[1, 3]]


def test_the_seed_decides_what_images_show():
    one, same, other = make(seed=3), make(seed=3), make(seed=4)
    assert torch.equal(one.obs["top"], same.obs["top"])
    assert not torch.equal(one.obs["top"], other.obs["top"])


def test_images_differ_by_what_is_randomized():
    plain = make(randomize=False)
    corners = plain.obs["top"][:, 0, 0].int()
    assert (corners == corners[0]).all()  # of the floor
    corners = make().obs["top"][:, 0, 0].int()
    assert ((corners - corners[0]).abs().amax(-1)[1:] > 5).all()


def test_a_restored_environment_continues_with_the_same_images():
    env, again = make(seed=1), make(seed=2)
    for _ in range(3):
        env.step(STILL)
    again.load_state_dict(env.state_dict())
    assert torch.equal(again.obs["top"], env.obs["top"])
    for _ in range(30):  # beyond the end of the episodes
        action = torch.full((4, 2), 0.3)
        assert torch.equal(again.step(action).obs["top"], env.step(action).obs["top"])


def test_the_simulated_robot_sees_what_an_environment_does():
    robot = SimRobot(task())
    image = robot.read().signals["top"]
    assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)
    cameras = Cameras(robot.model, [Signal("top", (16, 16, 3), dtype="uint8")])
    with cameras:
        (again,) = cameras.images(robot.sim, [0])["top"]
    np.testing.assert_array_equal(image, again)


def test_an_image_without_a_camera_is_named():
    made = task()
    model = make().drawn
    with pytest.raises(DeftlyError, match=r"the image 'side', and no camera .*\['top'\]"):
        Cameras(model, [Signal("side", (16, 16, 3), dtype="uint8")])
    made.signals = lambda s: {}
    with pytest.raises(DeftlyError, match="`signals` gives"):
        Env(made, EnvConfig(num_envs=1), SimConfig(threads=1))


def test_an_environment_that_is_gone_lets_go_of_its_context():
    env = make()
    cameras = env._cameras
    assert cameras is not None
    closed = []
    cameras.callback(closed.append, True)
    gone = weakref.ref(env)
    del env
    gc.collect()
    assert gone() is None
    assert closed == [True]
