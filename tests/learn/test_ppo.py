"""PPO: advantages, bootstrapping, adaptation of the step size, and that it learns."""

from dataclasses import replace

import pytest
import torch

from deftly.config import PPOConfig
from deftly.errors import DeftlyError
from deftly.learn.learner import make_learner
from deftly.learn.networks import Network, NetworkSpec
from deftly.learn.ppo import MAX_RATE, PPO, Finals
from deftly.tasks import Mirror

CFG = PPOConfig(steps=4, hidden=(8,), epochs=2, minibatches=2)


def test_advantages_are_generalized_advantage_estimates(slider):
    """The definition: discounted sums of one-step errors, cut off where an episode ended."""
    torch.manual_seed(0)
    ppo = PPO(slider(3), CFG)
    steps = 6
    rewards, values = torch.randn(2, steps, 3)
    last, ended = torch.randn(3), torch.rand(steps, 3) < 0.3
    found = ppo._advantages(rewards, values, last, ended)
    following = torch.cat((values[1:], last[None]))
    for i in range(3):
        for t in range(steps):
            expected, weight = 0.0, 1.0
            for k in range(t, steps):
                value = 0.0 if ended[k, i] else float(following[k, i])
                expected += weight * float(rewards[k, i] + CFG.gamma * value - values[k, i])
                if ended[k, i]:
                    break
                weight *= CFG.gamma * CFG.lam
            assert float(found[t, i]) == pytest.approx(expected, abs=1e-4)


def test_what_time_cuts_off_is_worth_the_value_of_its_true_end():
    critic = Network(NetworkSpec({"critic": 2}, 1, (4,)))
    finals, inputs = Finals(), torch.randn(3, 2)
    finals.add(1, torch.tensor([0, 2]), inputs[:2])
    finals.add(3, torch.tensor([1]), inputs[2:])
    rewards = torch.ones(4, 3)
    found = finals.bootstrap(rewards, critic, 0.5)
    values = critic(inputs).squeeze(-1)
    expected = torch.ones(4, 3)
    expected[1, 0] += 0.5 * values[0]
    expected[1, 2] += 0.5 * values[1]
    expected[3, 1] += 0.5 * values[2]
    assert torch.allclose(found, expected)
    assert torch.equal(rewards, torch.ones(4, 3))


def test_truncated_episodes_are_bootstrapped_from_the_observation_before_the_reset(slider):
    env = slider(4, env={"episode_steps": 3}, goal=-1.0)
    ppo = PPO(env, CFG)
    seen = []
    step = env.step

    def watched(action):
        result = step(action)
        if result.truncated.any():
            seen.append(result.final_obs["critic"][result.truncated])
        return result

    env.step = watched
    _, finals = ppo._collect()
    assert seen
    assert torch.equal(torch.cat(finals._inputs), torch.cat(seen))


MINUS = Mirror(torch.neg, torch.neg, torch.neg)
"""The toy in a mirror: where its rail's middle is the goal, its world is the same."""


def asymmetry(ppo: PPO) -> float:
    """By how much the mean action for mirrored inputs differs from the mirrored mean action."""
    torch.manual_seed(0)
    inputs = torch.randn(64, ppo.actor.spec.input_size)
    with torch.no_grad():
        return float((ppo.actor(-inputs) + ppo.actor(inputs)).abs().mean())


def learner(slider, symmetry: bool) -> PPO:
    env = slider(16, goal=0.0)
    env.task.mirror = lambda: MINUS
    return PPO(env, replace(CFG, steps=8, symmetry=symmetry))


def test_symmetry_adds_the_mirror_image_of_each_step(slider):
    ppo = learner(slider, True)
    rollout, finals = ppo._collect()
    samples = ppo._samples(rollout, finals)
    count = 8 * 16
    assert len(samples.returns) == 2 * count
    order = samples.actions[:, 0].sort().indices
    assert torch.allclose(samples.actions[order], -samples.actions[order.flip(0)], atol=1e-6)
    assert torch.allclose(samples.advantages[order], samples.advantages[order.flip(0)], atol=1e-6)
    assert sum(len(batch.returns) for batch in ppo._minibatches(samples)) == 2 * count * CFG.epochs


def test_symmetry_makes_a_policy_treat_both_sides_alike(slider):
    found = []
    for symmetry in (False, True):
        ppo = learner(slider, symmetry)
        for _ in range(30):
            ppo.iterate()
        found.append(asymmetry(ppo))
    assert found[1] < 0.7 * found[0]


def test_symmetry_of_a_task_that_says_nothing_of_it_is_refused(slider):
    with pytest.raises(
        DeftlyError, match=r"symmetry needs a task .* give the task a method `mirror`"
    ):
        PPO(slider(2), replace(CFG, symmetry=True))


def test_a_training_from_other_weights_can_explore_anew_and_a_resumed_one_goes_on(slider):
    ppo = PPO(slider(4), replace(CFG, init_std=0.1, restart_std=0.4, learning_rate=1e-5))
    ppo.iterate()
    assert ppo.actor.std.detach() == pytest.approx(torch.full((2,), 0.4), abs=0.01)
    ppo.actor.std.data.fill_(0.2)
    ppo.iterate()
    assert ppo.actor.std.detach() == pytest.approx(torch.full((2,), 0.2), abs=0.01)


def test_the_step_size_follows_the_divergence(slider):
    ppo = PPO(slider(2), replace(CFG, desired_kl=0.01, learning_rate=1e-3))
    ppo._set_learning_rate(torch.tensor(0.03), False)
    assert ppo.learning_rate == pytest.approx(1e-3 / 1.5)
    ppo._set_learning_rate(torch.tensor(0.001), False)
    ppo._set_learning_rate(torch.tensor(0.01), False)
    assert ppo.learning_rate == pytest.approx(1e-3)
    for _ in range(50):
        ppo._set_learning_rate(torch.tensor(0.001), False)
    assert ppo.learning_rate == MAX_RATE == ppo.optimizer.param_groups[0]["lr"]


def test_the_critic_learns_alone_at_first(slider):
    ppo = PPO(slider(4), replace(CFG, critic_warmup=1, keep_normalizer=True))
    actor = {name: value.clone() for name, value in ppo.actor.state_dict().items()}
    critic = {name: value.clone() for name, value in ppo.critic.state_dict().items()}
    ppo.iterate()
    assert all(torch.equal(value, actor[name]) for name, value in ppo.actor.state_dict().items())
    assert not torch.equal(ppo.critic.state_dict()["layers.0.weight"], critic["layers.0.weight"])
    ppo.iterate()
    assert not torch.equal(ppo.actor.state_dict()["layers.0.weight"], actor["layers.0.weight"])
    assert torch.equal(ppo.actor.state_dict()["normalizer.mean"], actor["normalizer.mean"])


def test_more_minibatches_than_samples_are_refused(slider):
    with pytest.raises(
        DeftlyError, match=r"train\.minibatches is 9, but a rollout has only 8 samples"
    ):
        PPO(slider(2), replace(CFG, minibatches=9))


def test_a_division_that_is_not_exact_leaves_the_rest_out(slider):
    assert PPO(slider(3), replace(CFG, minibatches=5)).iterate()["kl"] >= 0


def test_torchs_own_random_state_is_left_alone(slider):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    PPO(slider(2), CFG).iterate()
    assert torch.equal(before, torch.get_rng_state())


def test_metrics_are_those_it_names(slider):
    learner = make_learner(slider(2), CFG)
    assert set(learner.iterate()) == set(learner.metric_names)
    assert learner.steps_per_iteration == 8


def test_it_learns_to_push_the_block_home(slider):
    """The mean reward of an untrained policy is exceeded clearly after 15 iterations, on one seed that is fixed."""
    env = slider(32, env={"episode_steps": 10}, stop_on_success=False)
    env.stagger()
    ppo = PPO(env, PPOConfig(steps=8, hidden=(32,), epochs=4, minibatches=2))
    rewards = []
    for _ in range(15):
        ppo.iterate()
        if found := env.progress():
            rewards.append(found["reward_per_step"])
    first, last = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
    assert last > first + 0.05
