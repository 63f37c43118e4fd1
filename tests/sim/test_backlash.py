"""The play of gears between commands and links."""

import pytest
import torch

from deftly.errors import DeftlyError
from deftly.sim.randomize import Randomize, widen

N = 50
PLAY = Randomize("backlash", 0.02, 0.04, ("x",), op="add")


def targets(env, commands) -> torch.Tensor:
    """Where the links of both joints are told to go, `(commands, num_envs, 2)`."""
    return torch.stack([env._backlash(torch.full((N, 2), told)).clone() for told in commands])


def test_a_command_that_turns_round_loses_the_play_first(slider):
    env = slider(N, goal=0.0, randomize=(PLAY,))
    width = 2 * env._backlash.state["half"][:, 0]
    assert 0.02 <= width.min() < 0.025 < 0.035 < width.max() <= 0.04
    ahead, further, back, far_back = targets(env, (0.8, 0.9, 0.89, 0.2))[..., 0]
    assert torch.allclose(ahead, 0.8 - width / 2)
    assert torch.allclose(further, 0.9 - width / 2)
    assert torch.equal(back, further)  # within the play
    assert torch.allclose(far_back, 0.2 + width / 2)


def test_joints_that_are_not_named_have_none(slider):
    env = slider(N, goal=0.0, randomize=(PLAY,))
    commands = (0.8, 0.9, 0.89, 0.2)
    expected = torch.tensor(commands)[:, None].expand(-1, N)
    assert torch.equal(targets(env, commands)[..., 1], expected)


def test_actuators_get_what_is_left_of_the_command(slider):
    env = slider(N, goal=0.0, randomize=(PLAY,))
    for _ in range(5):
        env.step(torch.ones(N, 2))
    left = env.state.command - env._backlash.state["half"]
    assert torch.allclose(env.sim.bind("ctrl").float(), left, atol=1e-6)


def test_an_episode_starts_in_the_middle_of_a_new_play(slider):
    env = slider(N, goal=0.0, randomize=(PLAY,))
    before = env._backlash.state["half"][:, 0].clone()
    env.step(torch.ones(N, 2))
    env.reset()
    assert (env._backlash.state["half"][:, 0] != before).all()
    assert torch.allclose(env._backlash.state["target"], env.state.joint_pos.float())


def test_it_goes_on_bit_for_bit(slider):
    env = slider(N, goal=0.0, randomize=(PLAY,))
    env.step(torch.ones(N, 2))
    saved = env.state_dict()
    action = torch.linspace(-1, 1, N)[:, None].expand(-1, 2)
    there = env.step(action).obs["policy"].clone()
    other = slider(N, goal=0.0, randomize=(PLAY,))
    other.load_state_dict(saved)
    assert torch.equal(other.step(action).obs["policy"], there)


def test_wider_ranges_stay_possible():
    assert widen(Randomize("backlash", 0.0, 0.02, op="add"), 1.5).low == 0.0


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (Randomize("backlash", 0.5, 1.0), "give op="),
        (Randomize("backlash", -0.1, 0.1, op="add"), "from 0 up"),
        (Randomize("backlash", 0.0, 0.1, ("elbow",), op="add"), "no joint 'elbow'"),
    ],
)
def test_what_cannot_be_is_one_line(slider, entry, says):
    with pytest.raises(DeftlyError, match=says):
        slider(4, goal=0.0, randomize=(entry,))
