"""The replay buffer: n-step returns, true ends of episodes, and what it forgets."""

import pytest
import torch

from deftly.learn.replay import ReplayBuffer

GAMMA = 0.9
ENVS, SIZE = 3, 2


def filled(rows: int, capacity_rows: int):
    """A buffer, and the steps that were written: each observation says its step and environment."""
    torch.manual_seed(0)
    buffer = ReplayBuffer(ENVS, capacity_rows * ENVS, {"policy": SIZE}, 1)
    steps = []
    for t in range(rows):
        obs = torch.stack((torch.full((ENVS,), float(t)), torch.arange(ENVS).float()), -1)
        terminated = torch.rand(ENVS) < 0.2
        truncated = (torch.rand(ENVS) < 0.2) & ~terminated
        step = {
            "obs": {"policy": obs},
            "actions": torch.randn(ENVS, 1),
            "rewards": torch.randn(ENVS),
            "terminated": terminated,
            "truncated": truncated,
            "next_obs": {"policy": obs + 0.5},
        }
        buffer.add(**step)
        steps.append(step)
    return buffer, steps


@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize("rows", [8, 13, 27])
def test_returns_are_discounted_sums_up_to_the_end_of_an_episode(n_step, rows):
    buffer, steps = filled(rows, 10)
    found = buffer.sample(500, n_step, GAMMA, torch.Generator().manual_seed(1))
    starts = set()
    for i in range(500):
        t, env = (int(number) for number in found.obs["policy"][i])
        starts.add(t)
        expected, weight, last = 0.0, 1.0, t
        for last in range(t, t + n_step):
            expected += weight * float(steps[last]["rewards"][env])
            weight *= GAMMA
            if steps[last]["terminated"][env] or steps[last]["truncated"][env]:
                break
        assert float(found.returns[i]) == pytest.approx(expected, abs=1e-5)
        discount = 0.0 if steps[last]["terminated"][env] else weight
        assert float(found.discounts[i]) == pytest.approx(discount, abs=1e-6)
        assert found.next_obs["policy"][i].tolist() == [last + 0.5, env + 0.5]
        assert torch.equal(found.actions[i], steps[t]["actions"][env])
    assert starts == set(range(max(0, rows - 10), rows - n_step + 1))


def test_parts_of_a_draw_are_its_rows_in_their_order():
    buffer, _ = filled(20, 10)
    found = buffer.sample(30, 2, GAMMA, torch.Generator().manual_seed(1))
    parts = list(found.split(10))
    assert [len(part.actions) for part in parts] == [10, 10, 10]
    for name in ("actions", "returns", "discounts"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(together, getattr(found, name))
    for name in ("obs", "next_obs"):
        together = torch.cat([getattr(part, name)["policy"] for part in parts])
        assert torch.equal(together, getattr(found, name)["policy"])


def test_it_holds_the_newest_rows():
    buffer, _ = filled(4, 10)
    assert len(buffer) == 4 * ENVS
    buffer, _ = filled(25, 10)
    assert len(buffer) == 10 * ENVS
    newest = buffer.newest(3)["policy"]
    assert newest[:, 0].tolist() == [22.0] * ENVS + [23.0] * ENVS + [24.0] * ENVS
    assert len(buffer.newest(100)["policy"]) == 10 * ENVS


@pytest.mark.parametrize("rows", [4, 25])
def test_it_is_restored(rows):
    buffer, _ = filled(rows, 10)
    state = {name: value.clone() for name, value in buffer.state_dict().items()}
    again = ReplayBuffer(ENVS, 10 * ENVS, {"policy": SIZE}, 1)
    again.load_state_dict(state)
    draws = [b.sample(50, 2, GAMMA, torch.Generator().manual_seed(3)) for b in (buffer, again)]
    for one, two in zip(*draws):
        pairs = zip(one.values(), two.values()) if isinstance(one, dict) else [(one, two)]
        assert all(torch.equal(*pair) for pair in pairs)
    with pytest.raises(ValueError, match=r"use the saved train\.buffer"):
        ReplayBuffer(ENVS, 3 * ENVS, {"policy": SIZE}, 1).load_state_dict(state)


class Positions:
    """Goals that are numbers: the first of an observation is what is achieved, the second the goal."""

    def achieved(self, obs):
        return obs["policy"][..., :1]

    def with_goal(self, obs, goal):
        return {"policy": torch.cat((obs["policy"][..., :1], goal), -1)}

    def goal_reward(self, achieved, goal):
        return torch.where((achieved - goal).abs().squeeze(-1) < 0.1, 1.0, -1.0)


@pytest.mark.parametrize("n_step", [1, 3])
def test_goals_in_hindsight_are_what_the_episode_reached_later(n_step):
    buffer, _ = filled(27, 20)
    found = buffer.sample(
        800, n_step, GAMMA, torch.Generator().manual_seed(2), Positions(), hindsight=1.0
    )
    later = set()
    for i in range(800):
        t = int(found.obs["policy"][i][0])
        reached = float(found.obs["policy"][i][1])
        # Rewards say in which of the window's steps the goal was reached.
        goal_step = int(reached - 0.5)
        assert reached == goal_step + 0.5
        assert t <= goal_step
        later.add(goal_step - t)
        expected, weight = 0.0, 1.0
        for k in range(n_step):
            expected += weight * (1.0 if t + k == goal_step else -1.0)
            weight *= GAMMA
            if float(found.next_obs["policy"][i][0]) == t + k + 0.5:
                break
        assert float(found.returns[i]) == pytest.approx(expected, abs=1e-5)
        assert float(found.next_obs["policy"][i][1]) == reached
    assert max(later) >= 3
    assert 0 in later


def test_goals_in_hindsight_never_come_from_the_next_episode():
    buffer, steps = filled(27, 20)
    found = buffer.sample(800, 1, GAMMA, torch.Generator().manual_seed(2), Positions(), 1.0)
    # The same draws without hindsight say which environment each is of.
    plain = buffer.sample(800, 1, GAMMA, torch.Generator().manual_seed(2))
    for i in range(800):
        t, env = (int(number) for number in plain.obs["policy"][i])
        goal_step = int(float(found.obs["policy"][i][1]) - 0.5)
        assert int(found.obs["policy"][i][0]) == t
        between = range(t, goal_step)
        ended = [steps[k]["terminated"][env] or steps[k]["truncated"][env] for k in between]
        assert not any(ended)


def test_some_goals_stay():
    buffer, _ = filled(27, 20)
    found = buffer.sample(2000, 1, GAMMA, torch.Generator().manual_seed(2), Positions(), 0.25)
    plain = buffer.sample(2000, 1, GAMMA, torch.Generator().manual_seed(2))
    same = (found.returns == plain.returns).float().mean()
    assert 0.7 < float(same) < 0.8


def test_few_goals_in_hindsight_tell_that_nothing_need_be_done():
    """Of what never moves, all that is reached later is where it is already."""
    buffer = ReplayBuffer(ENVS, 20 * ENVS, {"policy": SIZE}, 1)
    none = torch.zeros(ENVS, dtype=torch.bool)
    still = {"policy": torch.tensor([[3.0, 9.0]]).expand(ENVS, SIZE)}
    for _ in range(20):
        buffer.add(still, torch.zeros(ENVS, 1), -torch.ones(ENVS), none, none, still)
    found = buffer.sample(2000, 1, GAMMA, torch.Generator().manual_seed(2), Positions(), 1.0)
    replaced = found.obs["policy"][:, 1] != 9.0
    assert 0.07 < float(replaced.float().mean()) < 0.13
    assert (found.returns == torch.where(replaced, 1.0, -1.0)).all()


def test_what_the_filter_leaves_out_is_drawn_again():
    """In one environment of four the thing moves with each step, in the others it lies still."""
    buffer = ReplayBuffer(4, 40 * 4, {"policy": SIZE}, 1)
    none = torch.zeros(4, dtype=torch.bool)
    for t in range(40):
        here = torch.tensor([[t, -9.0]] + [[-5.0, -9.0]] * 3)
        there = torch.tensor([[t + 1.0, -9.0]] + [[-5.0, -9.0]] * 3)
        buffer.add(
            {"policy": here}, torch.zeros(4, 1), -torch.ones(4), none, none, {"policy": there}
        )
    found = buffer.sample(4000, 1, GAMMA, torch.Generator().manual_seed(2), Positions(), 1.0)
    replaced = found.obs["policy"][:, 1] != -9.0
    moves = found.obs["policy"][:, 0] != -5.0
    assert replaced[moves].all()
    assert 0.63 < float(moves.float().mean()) < 0.7  # a fourth if each were drawn once
    assert 0.07 < float(replaced[~moves].float().mean()) * float((~moves).float().mean()) < 0.11
