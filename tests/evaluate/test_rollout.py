"""Running a policy: one episode an environment, the same each time, and nobody else's random numbers touched."""

import dataclasses
import math

import pytest
import torch

from deftly import console
from deftly.config import EnvConfig, SimConfig
from deftly.errors import DeftlyError
from deftly.evaluate import rollout
from deftly.evaluate.rollout import EVALUATE, VALIDATE, run_episodes


@pytest.fixture(scope="module")
def task(slider):
    return slider(1).task


def zero(obs):
    return torch.zeros(len(obs), 2)


def noisy(obs, stochastic=False):
    return torch.randn(len(obs), 2) if stochastic else zero(obs)


def run(task, policy=zero, episodes=6, seed=0, purpose=EVALUATE, **more):
    return run_episodes(
        task, policy, episodes, seed=seed, purpose=purpose, sim_cfg=SimConfig(threads=1), **more
    )


def same(a, b):
    return a.values.keys() == b.values.keys() and all(
        torch.equal(a.values[k].nan_to_num(-9), b.values[k].nan_to_num(-9)) for k in a.values
    )


def test_one_episode_of_each_environment(slider):
    task = slider(1, goal=0.3).task  # some start at the goal: short episodes are not run again
    ran = run(task, episodes=40, env_cfg=EnvConfig(episode_steps=7))
    assert len(ran) == 40
    assert all(len(value) == 40 and not value.isnan().any() for value in ran.values.values())
    assert ((ran.values["steps"] == 7) | (ran.values["success"] == 1)).all()
    assert 0 < ran.values["time_out"].mean() < 1
    assert ran.success_rate == ran.values["success"].mean()
    assert ran.rate == task.cfg.rate
    assert {
        "travel",
        "return",
        "action_change",
        "failed/far",
        "failed/physics",
        "reward/near",
    } <= set(ran.values)


def test_it_says_how_far_it_is_also_where_all_end_at_once(task, monkeypatch, capsys):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(rollout, "CHUNK", 4)
    run(task, episodes=6, env_cfg=EnvConfig(episode_steps=5), what="evaluating")
    lines = capsys.readouterr().err.splitlines()
    percents = [int(line.removeprefix("evaluating: ").partition("%")[0]) for line in lines]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    assert len(set(percents)) > 8  # 5 steps of the first four, 5 of the last two
    run(task, episodes=6, env_cfg=EnvConfig(episode_steps=5))
    assert not capsys.readouterr().err


def test_reproducible_bit_for_bit(task):
    assert same(run(task), run(task))
    assert same(run(task, noisy, stochastic=True), run(task, noisy, stochastic=True))
    assert not same(run(task), run(task, noisy, stochastic=True))


def test_threads_change_nothing(task):
    many = run_episodes(task, zero, 6, seed=0, purpose=EVALUATE, sim_cfg=SimConfig(threads=2))
    assert same(run(task), many)


def test_purposes_and_seeds_are_different_episodes(task):
    assert not same(run(task), run(task, seed=1))
    assert not same(run(task), run(task, purpose=VALIDATE))
    assert VALIDATE != "train" != EVALUATE


def test_chunks(task, monkeypatch):
    monkeypatch.setattr(rollout, "CHUNK", 4)
    sizes = []
    ran = run(task, episodes=10, on_step=lambda env, running: sizes.append(env.num_envs))
    assert len(ran) == 10
    assert sorted(set(sizes)) == [2, 4]
    returns = ran.values["return"]
    assert not torch.equal(returns[:4], returns[4:8])  # each chunk has draws of its own
    assert same(ran, run(task, episodes=10))


def test_the_random_state_of_a_training_is_left_alone(task):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(task, noisy, stochastic=True)
    assert torch.equal(before, torch.get_rng_state())


def test_watching(task):
    left = []
    run(task, episodes=5, on_step=lambda env, running: left.append(int(running.sum())))
    assert left[0] == 5
    assert left[-1] == 0
    assert left == sorted(left, reverse=True)


def test_a_policy_of_nans_ends(task):
    ran = run(task, lambda obs: torch.full((len(obs), 2), math.nan), episodes=2)
    assert ran.values["return"].isfinite().all()


def test_no_episodes(task):
    with pytest.raises(DeftlyError, match="episodes is 0, but it must be 1 or more"):
        run(task, episodes=0)


def test_episodes_are_frozen(task):
    with pytest.raises(dataclasses.FrozenInstanceError):
        run(task, episodes=1).rate = 1.0


def test_numbers_that_are_not_finite_are_said(slider, monkeypatch, capsys):
    """In an evaluation; a training counts them in its own rows."""
    task = slider(1, goal=0.0).task
    rewards = task.rewards
    broken = lambda s: {**rewards(s), "near": torch.nan * s.steps}  # noqa: E731
    monkeypatch.setattr(task, "rewards", broken)
    run(task, episodes=2)
    assert capsys.readouterr().err == ""
    run(task, episodes=2, what="evaluating")
    assert "are not finite, and counted as 0: reward/near " in capsys.readouterr().err
