"""Our update is that of rsl-rl: same weights, same rollout, same order of samples, same weights afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from deftly.config import PPOConfig
from deftly.learn.networks import Network
from deftly.learn.ppo import PPO

# rsl-rl takes seconds to import, which every process of the tests would spend while it collects them.
if TYPE_CHECKING:
    from rsl_rl.algorithms import PPO as Reference
    from rsl_rl.models import MLPModel
    from tensordict import TensorDict

CFG = PPOConfig(steps=6, hidden=(16, 16), epochs=3, minibatches=2)
NUM_ENVS = 16


def test_an_update_is_that_of_rsl_rl(slider, monkeypatch):
    env = slider(NUM_ENVS)
    env.stagger()
    ours = PPO(env, CFG)
    theirs = reference(ours)
    for _ in range(3):
        rollout, finals = ours._collect()
        rewards = finals.bootstrap(rollout.rewards, ours.critic, CFG.gamma).detach()
        store(theirs, rollout, rewards)
        with torch.inference_mode():
            theirs.compute_returns(groups(ours.actor.gather(env.obs), env.obs["critic"]))
        order = torch.randperm(NUM_ENVS * CFG.steps)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randperm", lambda n, order=order, **_: order)
            losses = ours._update(ours._samples(rollout, finals), critic_only=False)
            ours._normalize_with(rollout)
            expected = theirs.update()
        for name, value in expected.items():
            assert losses[f"loss/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5)
        assert ours.learning_rate == pytest.approx(theirs.learning_rate)
        for network, model in ((ours.actor, theirs.actor), (ours.critic, theirs.critic)):
            state = model.state_dict()
            for name, value in network.state_dict().items():
                assert torch.allclose(
                    value.float(), state[renamed(name)].float().squeeze(0), atol=2e-5
                ), name


def reference(ours: PPO) -> Reference:
    """rsl-rl's learner with the weights and settings of ours."""
    from rsl_rl.algorithms import PPO as Reference
    from rsl_rl.models import MLPModel
    from rsl_rl.storage import RolloutStorage

    obs = groups(ours.actor.gather(ours.env.obs), ours.env.obs["critic"])
    sets = {"actor": ["state"], "critic": ["critic"]}
    head = {
        "class_name": "GaussianDistribution",
        "init_std": CFG.init_std,
        "std_range": (0.05, 2.0),
    }
    actions = ours.actor.spec.outputs
    actor = MLPModel(obs, sets, "actor", actions, CFG.hidden, CFG.activation, True, head)
    critic = MLPModel(obs, sets, "critic", 1, CFG.hidden, CFG.activation, True)
    give(ours.actor, actor)
    give(ours.critic, critic)
    return Reference(
        actor,
        critic,
        RolloutStorage("rl", NUM_ENVS, CFG.steps, obs, [actions]),
        num_learning_epochs=CFG.epochs,
        num_mini_batches=CFG.minibatches,
        clip_param=CFG.clip,
        gamma=CFG.gamma,
        lam=CFG.lam,
        value_loss_coef=CFG.value_coef,
        entropy_coef=CFG.entropy,
        learning_rate=CFG.learning_rate,
        max_grad_norm=CFG.max_grad_norm,
        desired_kl=CFG.desired_kl,
    )


def groups(state: torch.Tensor, critic: torch.Tensor) -> TensorDict:
    from tensordict import TensorDict

    return TensorDict({"state": state, "critic": critic}, batch_size=[len(state)])


def renamed(name: str) -> str:
    """The name of a parameter of ours in rsl-rl."""
    if name == "std":
        return "distribution.std_param"
    if name == "normalizer.count":
        return "obs_normalizer.count"
    return name.replace("layers.", "mlp.").replace("normalizer.", "obs_normalizer._")


def give(network: Network, model: MLPModel) -> None:
    """Write the weights of ours into a model of rsl-rl."""
    state = model.state_dict()
    for name, value in network.state_dict().items():
        state[renamed(name)].copy_(value)


@torch.inference_mode()
def store(theirs: Reference, rollout, rewards: torch.Tensor) -> None:
    """Let rsl-rl remember our rollout as its own."""
    theirs.train_mode()
    actor = theirs.actor
    for t in range(CFG.steps):
        obs = groups(rollout.actor_inputs[t], rollout.critic_inputs[t])
        theirs.act(obs)
        actor.distribution.update(actor.mlp(actor.get_latent(obs)))
        theirs.transition.actions = rollout.actions[t]
        theirs.transition.actions_log_prob = actor.get_output_log_prob(rollout.actions[t])
        theirs.process_env_step(obs, rewards[t], rollout.ended[t], {})
