"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347), in one file.

With generalized advantage estimation (arXiv:1506.02438), a clipped value loss, and a step size that adapts to the KL
divergence of each step, as rsl-rl does it. Three things differ from what is usual, none of them in the mathematics:

- An episode that time cut off is bootstrapped from the value of its true last observation.
- Values of a rollout are computed at once after it, since nothing needs them before: few large products instead of
  many small ones.
- Observations are normalized and shuffled once an update, and the minibatches are slices of that.

With `symmetry`, an update learns from the mirror image of each step as well (Mittal et al. 2024, arXiv:2403.04359).

`docs/decisions.md` says what was measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deftly.config import PPOConfig
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.learn import optimizers
from deftly.learn.networks import (
    Network,
    NetworkSpec,
    Policy,
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
)
from deftly.learn.ranks import Ranks
from deftly.tasks import Mirror

CRITIC_RATE = 1e-3
"""Step size while the critic learns alone."""
MIN_RATE, MAX_RATE, RATE_FACTOR = 1e-5, 1e-2, 1.5
"""Bounds of the adaptive step size and the factor of a change, as in rsl-rl."""
PRIVILEGED = "critic"
"""The group of observations that only the critic sees; it holds what the policy sees as well."""


class Rollout(NamedTuple):
    """What some steps of all environments gave; the leading axes are `(steps, num_envs)`."""

    actor_inputs: Tensor  # (..., size of the actor's input), not normalized
    critic_inputs: Tensor
    means: Tensor  # (..., action_size) of the policy's distribution
    actions: Tensor  # (..., action_size) drawn from it
    rewards: Tensor  # (...)
    ended: Tensor  # (...) bool: the next row of this environment belongs to another episode


class Samples(NamedTuple):
    """Steps to learn from, shuffled: the leading axis counts them."""

    actor_inputs: Tensor  # normalized
    critic_inputs: Tensor  # normalized
    means: Tensor  # of the distribution from which the actions were drawn
    actions: Tensor
    log_probs: Tensor  # (n,) of the actions then
    values: Tensor  # (n,) of the critic then
    returns: Tensor  # (n,) that the critic is to learn
    advantages: Tensor  # (n,) normalized


class PPO:
    """One learner on `env`. `actor` and `critic` are the networks; settings are documented in `PPOConfig`."""

    algorithm = "ppo"
    metric_names = (
        *("std", "learning_rate", "kl", "time/collect", "time/update"),
        *("loss/value", "loss/surrogate", "loss/entropy"),
    )

    def __init__(self, env: Env, settings: PPOConfig, ranks: Ranks | None = None):
        self.env, self.settings, self.ranks = env, settings, ranks or Ranks()
        self.device = env.device
        self.steps_per_iteration = settings.steps * env.num_envs
        settings.require_for(env.num_envs)
        self.mirror = _mirror(env) if settings.symmetry else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.actor = actor_network(env, settings).to(self.device)
            self.critic = critic_network(env, settings).to(self.device)
        self.networks: Mapping[str, Network] = {"actor": self.actor, "critic": self.critic}
        self.ranks.broadcast_(self.networks.values())
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, fused=True)
        self.learning_rate = settings.learning_rate
        self.iterations = 0
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(
            settings.seed + self.ranks.rank
        )  # each process explores for itself

    @property
    def numbers(self) -> dict[str, float]:
        """The adapted step size."""
        return {"learning_rate": self.learning_rate}

    def policy(self) -> Policy:
        """The actor as it is now; it goes on changing."""
        return Policy(self.actor)

    def iterate(self) -> dict[str, float]:
        """One rollout and one update."""
        start = time.perf_counter()
        if self.iterations == 0 and self.settings.restart_std is not None:
            self.actor.std.data.fill_(self.settings.restart_std)
        critic_only = self.iterations < self.settings.critic_warmup
        rollout, finals = self._collect()
        collected = time.perf_counter()
        samples = self._samples(rollout, finals)
        losses = self._update(samples, critic_only)
        self._normalize_with(rollout)
        self.iterations += 1
        ended = time.perf_counter()
        return {
            "std": float(self.actor.bounded_std().detach().mean()),
            "learning_rate": self.learning_rate,
            "time/collect": collected - start,
            "time/update": ended - collected,
            **losses,
        }

    # ---------------------------------------------------------------------- rollout

    @torch.no_grad()
    def _collect(self) -> tuple[Rollout, Finals]:
        """Drive the environments for some steps under the policy's distribution."""
        env, actor, critic = self.env, self.actor, self.critic
        rows = _empty_rollout(self.settings.steps, env, actor, critic)
        finals = Finals()
        std = actor.bounded_std()
        for t in range(self.settings.steps):
            rows.actor_inputs[t] = actor.gather(env.obs)
            rows.critic_inputs[t] = critic.gather(env.obs)
            rows.means[t] = actor(rows.actor_inputs[t])
            noise = torch.randn(rows.means[t].shape, generator=self.generator, device=self.device)
            rows.actions[t] = rows.means[t] + std * noise
            step = env.step(rows.actions[t])
            rows.rewards[t] = step.reward
            rows.ended[t] = step.terminated | step.truncated
            late = step.truncated.nonzero().squeeze(-1)
            if len(late):
                finals.add(t, late, critic.gather(step.final_obs)[late])
        return rows, finals

    @torch.no_grad()
    def _samples(self, rollout: Rollout, finals: Finals) -> Samples:
        """Returns and advantages of a rollout, and its steps in random order."""
        critic = self.critic
        std = self.actor.bounded_std()
        critic_inputs = critic.normalizer(rollout.critic_inputs)
        values = critic.layers(critic_inputs).squeeze(-1)
        last_value = critic(critic.gather(self.env.obs)).squeeze(-1)
        rewards = finals.bootstrap(rollout.rewards, critic, self.settings.gamma)
        advantages = self._advantages(rewards, values, last_value, rollout.ended)
        samples = Samples(
            actor_inputs=self.actor.normalizer(rollout.actor_inputs),
            critic_inputs=critic_inputs,
            means=rollout.means,
            actions=rollout.actions,
            log_probs=gaussian_log_prob(rollout.actions, rollout.means, std),
            values=values,
            returns=advantages + values,
            advantages=(advantages - advantages.mean()) / (advantages.std() + 1e-8),
        )
        flat = Samples(*(value.flatten(0, 1) for value in samples))
        if self.mirror is not None:
            images = self._images(_in_mirror(rollout, self.mirror), samples)
            flat = Samples(*(torch.cat(pair) for pair in zip(flat, images, strict=True)))
        count = len(flat.returns)
        order = torch.randperm(count, generator=self.generator, device=self.device)
        return Samples(*(value.index_select(0, order) for value in flat))

    def _images(self, mirrored: Rollout, samples: Samples) -> Samples:
        """The steps as a mirror shows them, `(steps * num_envs, ...)`: as likely, and worth as much, as the steps."""
        actor_inputs = self.actor.normalizer(mirrored.actor_inputs)
        critic_inputs = self.critic.normalizer(mirrored.critic_inputs)
        images = samples._replace(
            actor_inputs=actor_inputs,
            critic_inputs=critic_inputs,
            means=self.actor.layers(actor_inputs),
            actions=mirrored.actions,
            values=self.critic.layers(critic_inputs).squeeze(-1),
        )
        return Samples(*(value.flatten(0, 1) for value in images))

    def _advantages(
        self, rewards: Tensor, values: Tensor, last_value: Tensor, ended: Tensor
    ) -> Tensor:
        """Generalized advantage estimates, `(steps, num_envs)`."""
        gamma, lam = self.settings.gamma, self.settings.lam
        goes_on = 1.0 - ended.float()
        advantages = torch.empty_like(rewards)
        following = torch.zeros_like(last_value)
        next_value = last_value
        for t in reversed(range(len(rewards))):
            error = rewards[t] + gamma * goes_on[t] * next_value - values[t]
            following = error + gamma * lam * goes_on[t] * following
            advantages[t] = following
            next_value = values[t]
        return advantages

    # ----------------------------------------------------------------------- update

    def _update(self, samples: Samples, critic_only: bool) -> dict[str, float]:
        """Take gradient steps, `epochs` times through the samples; returns mean losses and divergence."""
        self.actor.requires_grad_(not critic_only)
        old_std = self.actor.bounded_std().detach().clone()
        totals = torch.zeros(4, device=self.device)
        for batch in self._minibatches(samples):
            std = self.actor.bounded_std()
            means = self.actor.layers(batch.actor_inputs)
            values = self.critic.layers(batch.critic_inputs).squeeze(-1)
            kl = gaussian_kl(batch.means, old_std, means.detach(), std.detach()).mean()
            self._set_learning_rate(kl, critic_only)
            entropy = gaussian_entropy(std)
            surrogate_loss = self._surrogate_loss(batch, means, std)
            value_loss = self._value_loss(batch, values)
            policy_loss = surrogate_loss - self.settings.entropy * entropy
            loss = self.settings.value_coef * value_loss
            if not critic_only:
                loss = loss + policy_loss
            self._step(loss)
            totals += torch.stack((value_loss, surrogate_loss, entropy, kl)).detach()
        value, surrogate, entropy, kl = (
            totals / (self.settings.epochs * self.settings.minibatches)
        ).tolist()
        return {"loss/value": value, "loss/surrogate": surrogate, "loss/entropy": entropy, "kl": kl}

    def _minibatches(self, samples: Samples) -> Iterator[Samples]:
        """The same parts in each epoch; what is left over by a division that is not exact is not used."""
        size = len(samples.returns) // self.settings.minibatches
        parts = [
            Samples(*columns)
            for columns in zip(*(value.split(size) for value in samples), strict=True)
        ]
        for _ in range(self.settings.epochs):
            yield from parts[: self.settings.minibatches]

    def _set_learning_rate(self, kl: Tensor, critic_only: bool) -> None:
        """Adapt the step size so that a step changes the policy by about `desired_kl`."""
        rate = CRITIC_RATE
        if not critic_only:
            distance = float(self.ranks.mean_(kl.clone()))
            desired = self.settings.desired_kl
            if distance > 2 * desired:
                self.learning_rate = max(MIN_RATE, self.learning_rate / RATE_FACTOR)
            elif 0 < distance < desired / 2:
                self.learning_rate = min(MAX_RATE, self.learning_rate * RATE_FACTOR)
            rate = self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _surrogate_loss(self, batch: Samples, means: Tensor, std: Tensor) -> Tensor:
        ratio = (gaussian_log_prob(batch.actions, means, std) - batch.log_probs).exp()
        clipped = ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip)
        return torch.max(-batch.advantages * ratio, -batch.advantages * clipped).mean()

    def _value_loss(self, batch: Samples, values: Tensor) -> Tensor:
        change = (values - batch.values).clamp(-self.settings.clip, self.settings.clip)
        clipped = batch.values + change
        errors = torch.max((values - batch.returns).square(), (clipped - batch.returns).square())
        return errors.mean()

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.ranks.average_gradients(self.parameters)
        for network in self.networks.values():
            nn.utils.clip_grad_norm_(network.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()

    def _normalize_with(self, rollout: Rollout) -> None:
        """Take the rollout's observations into the normalizers, which are constant within an iteration."""
        rows = {"actor": rollout.actor_inputs, "critic": rollout.critic_inputs}
        if self.mirror is not None:
            mirrored = _in_mirror(rollout, self.mirror)
            rows["actor"] = torch.cat((rows["actor"], mirrored.actor_inputs))
            rows["critic"] = torch.cat((rows["critic"], mirrored.critic_inputs))
        if self.settings.keep_normalizer:
            del rows["actor"]
        for name, inputs in rows.items():
            self.networks[name].normalizer.update(inputs.flatten(0, 1), self.ranks)  # type: ignore[operator]

    # ------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """Optimizer, generator and counters, as a flat mapping of tensors."""
        counters = {
            "learning_rate": torch.tensor(self.learning_rate, dtype=torch.float64),
            "iterations": torch.tensor(self.iterations),
        }
        return {
            **optimizers.pack(self.optimizer),
            **counters,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        optimizers.unpack(self.optimizer, state)
        self.learning_rate = float(state["learning_rate"])
        self.iterations = int(state["iterations"])
        self.generator.set_state(state["generator"])


class Finals:
    """The last observations of episodes that time cut off in a rollout: the critic says what was to come there."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []
        self._envs: list[Tensor] = []
        self._inputs: list[Tensor] = []

    def add(self, t: int, envs: Tensor, inputs: Tensor) -> None:
        """Note the critic's inputs, `(len(envs), size)`, at the end of the episodes of `envs` in step `t`."""
        self._steps.append(torch.full_like(envs, t))
        self._envs.append(envs)
        self._inputs.append(inputs)

    def bootstrap(self, rewards: Tensor, critic: Network, gamma: float) -> Tensor:
        """Rewards, `(steps, num_envs)`, with the discounted value of what time cut off."""
        if not self._steps:
            return rewards
        values = critic(torch.cat(self._inputs)).squeeze(-1)
        where = (torch.cat(self._steps), torch.cat(self._envs))
        return rewards.index_put(where, gamma * values, accumulate=True)


def actor_network(env: Env, settings: PPOConfig) -> Network:
    """The policy's network for an environment: a Gaussian over actions, of every group that the robot observes."""
    inputs = {group: value.shape[-1] for group, value in env.obs.items() if group != PRIVILEGED}
    outputs = env.contract.action_size
    spec = NetworkSpec(inputs, outputs, settings.hidden, settings.activation, head="gaussian")
    return Network(spec, settings.init_std)


def critic_network(env: Env, settings: PPOConfig) -> Network:
    """The critic's network: the value of what the simulation knows."""
    inputs = {PRIVILEGED: env.obs[PRIVILEGED].shape[-1]}
    return Network(NetworkSpec(inputs, 1, settings.hidden, settings.activation))


def _mirror(env: Env) -> Mirror:
    """How the environment's task looks in a mirror; raises DeftlyError if it does not say."""
    mirror = env.task.mirror()
    if mirror is None:
        raise DeftlyError(
            f"train.symmetry needs a task whose left and right are alike, and {env.task.name} says nothing "
            "of it: leave it out, or give the task a method `mirror`"
        )
    return mirror


def _in_mirror(rollout: Rollout, mirror: Mirror) -> Rollout:
    """A rollout whose inputs and actions are mirrored."""
    actor_inputs = mirror.observation(rollout.actor_inputs)
    extra = rollout.critic_inputs[..., actor_inputs.shape[-1] :]
    critic_inputs = torch.cat((actor_inputs, mirror.privileged(extra)), -1)
    return rollout._replace(
        actor_inputs=actor_inputs,
        critic_inputs=critic_inputs,
        actions=mirror.action(rollout.actions),
    )


def _empty_rollout(steps: int, env: Env, actor: Network, critic: Network) -> Rollout:
    device = env.device

    def rows(*size: int) -> Tensor:
        return torch.empty(steps, env.num_envs, *size, device=device)

    return Rollout(
        actor_inputs=rows(actor.spec.input_size),
        critic_inputs=rows(critic.spec.input_size),
        means=rows(actor.spec.outputs),
        actions=rows(actor.spec.outputs),
        rewards=rows(),
        ended=torch.empty(steps, env.num_envs, dtype=torch.bool, device=device),
    )
