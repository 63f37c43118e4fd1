"""What algorithms share that learn from a replay buffer: collecting, sampling, target networks, state.

Many environments step side by side, and each control step of all of them is followed by some gradient steps on large
batches, as in FastTD3 (Seo et al. 2025, arXiv:2505.22642). An algorithm is a subclass that says how it explores and
what a gradient step is.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deftly.config import OffPolicyConfig
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.learn import optimizers
from deftly.learn.networks import Head, Network, NetworkSpec, Policy, follow, take_in
from deftly.learn.ppo import PRIVILEGED
from deftly.learn.ranks import Ranks
from deftly.learn.replay import Obs, ReplayBuffer, Transitions

ACTION = "action"
"""The critics' last group of inputs."""
MAX_DRAWN = 65_536
"""Transitions that are drawn from the buffer at once, or a batch, if that is more: memory is bounded."""


class OffPolicy:
    """One learner on `env`: an actor, one critic or two, and their target networks.

    `actor` is the network that learns and explores. The policy is that network, or with `average` the moving average of
    its weights: single gradient steps disagree most on states that are rare, and the average errs less there.

    Args:
        env: The environments of this process.
        settings: Documented in `OffPolicyConfig`.
        ranks: The processes that train together; each has a buffer of its own.
        head: Of the actor's network.
        num_critics: Networks that learn the value of an action; the least value counts.
        slow: Names of the networks that have a target network.
    """

    algorithm: str
    metric_names: tuple[str, ...] = ("q", "loss/critic", "loss/actor", "buffer")

    def __init__(
        self,
        env: Env,
        settings: OffPolicyConfig,
        ranks: Ranks | None,
        *,
        head: Head,
        num_critics: int,
        slow: Iterable[str] = (),
    ):
        self.env = env
        self.settings = settings
        self.ranks = ranks or Ranks()
        self.device = env.device
        self.steps_per_iteration = settings.steps * env.num_envs
        settings.require_for(env.num_envs)
        if settings.hindsight > 0 and env.task.goals is None:
            raise DeftlyError(
                f"train.hindsight is {settings.hindsight:g}, but {env.task.name} has no goals to replace "
                "(some tasks have them under a sparse reward): leave it out"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.actor = actor_network(env, settings, head).to(self.device)
            self.critics = [
                critic_network(env, settings).to(self.device) for _ in range(num_critics)
            ]
        names = [f"critic_{i + 1}" for i in range(num_critics)]
        self.learning: Mapping[str, Network] = {
            "actor": self.actor,
            **dict(zip(names, self.critics)),
        }
        """The networks that take gradient steps."""
        self.ranks.broadcast_(self.learning.values())
        average = self.actor
        if settings.average:
            average = copy.deepcopy(self.actor).requires_grad_(False)
        self.networks: Mapping[str, Network] = {**self.learning, "actor": average}
        """What a checkpoint keeps: the policy, and the critics."""
        self.slow = (*names, *slow)
        self.targets: dict[str, Network] = {}
        """Copies that follow slowly; made at the first iteration, of what the networks are by then."""
        self._critic_parameters = [p for critic in self.critics for p in critic.parameters()]
        self._actor_parameters = [*self.actor.parameters()]
        rate = settings.learning_rate
        self.optimizers: dict[str, Optimizer] = {
            "actor": torch.optim.Adam(self._actor_parameters, lr=rate, fused=True),
            "critics": torch.optim.Adam(self._critic_parameters, lr=rate, fused=True),
        }
        sizes = {group: value.shape[-1] for group, value in env.obs.items()}
        action_size = env.contract.action_size
        self.buffer = ReplayBuffer(env.num_envs, settings.buffer, sizes, action_size, self.device)
        self.updates = 0
        """Gradient steps done."""
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(settings.seed + self.ranks.rank)

    # ------------------------------------------------------------ what an algorithm is

    def explore(self, obs: Obs) -> Tensor:
        """Actions in [-1, 1] to try, `(num_envs, action_size)`."""
        raise NotImplementedError

    def learn(self, batch: Transitions) -> dict[str, Tensor]:
        """Take a gradient step; returns losses by name, scalars. The target networks follow after it."""
        raise NotImplementedError

    # -------------------------------------------------------------------- an iteration

    @property
    def numbers(self) -> dict[str, float]:
        """None by default."""
        return {}

    def policy(self) -> Policy:
        """The actor, or the average of its weights, as it is now; it goes on changing."""
        return Policy(self.networks["actor"])

    def iterate(self) -> dict[str, float]:
        """Some control steps of all environments, each followed by gradient steps."""
        if not self.targets:
            if self.settings.average:  # --init gave its weights to the policy
                self.actor.load_state_dict(self.networks["actor"].state_dict())
            self._make_targets()
        collecting = updating = 0.0
        losses: dict[str, list[Tensor]] = defaultdict(list)
        for _ in range(self.settings.steps):
            start = time.perf_counter()
            self._collect()
            collected = time.perf_counter()
            if self._may_learn:
                for name, values in self._update().items():
                    losses[name] += values
            collecting += collected - start
            updating += time.perf_counter() - collected
        self._normalize()
        metrics = {name: float(torch.stack(values).mean()) for name, values in losses.items()}
        times = {"time/collect": collecting, "time/update": updating}
        return {**metrics, **times, "buffer": float(len(self.buffer))}

    @property
    def _may_learn(self) -> bool:
        has_rows = self.buffer.written >= self.settings.n_step
        return has_rows and len(self.buffer) >= self.settings.learning_starts

    @torch.no_grad()
    def _collect(self) -> None:
        obs = self.env.obs
        actions = self._random_actions() if self._is_at_the_start else self.explore(obs)
        step = self.env.step(actions)
        self.buffer.add(obs, actions, step.reward, step.terminated, step.truncated, step.final_obs)

    @property
    def _is_at_the_start(self) -> bool:
        """Whether actions are still random. A policy that --init brought explores by itself."""
        is_known = self.settings.keep_normalizer
        return self.buffer.written * self.env.num_envs < self.settings.learning_starts and (
            not is_known
        )

    def _random_actions(self) -> Tensor:
        size = (self.env.num_envs, self.env.contract.action_size)
        return 2 * torch.rand(size, generator=self.generator, device=self.device) - 1

    def _update(self) -> dict[str, list[Tensor]]:
        """Take the gradient steps that follow a control step; returns their losses by name."""
        losses: dict[str, list[Tensor]] = defaultdict(list)
        for batch in self._batches():
            for name, value in self.learn(batch).items():
                losses[name].append(value)
            self._follow()
            self.updates += 1
        return losses

    def _batches(self) -> Iterator[Transitions]:
        """The batches of these gradient steps, many drawn at once: rows lie far apart and are slow to read."""
        cfg = self.settings
        at_once = max(1, MAX_DRAWN // cfg.batch)
        for first in range(0, cfg.updates, at_once):
            count = min(at_once, cfg.updates - first) * cfg.batch
            drawn = self.buffer.sample(
                count, cfg.n_step, cfg.gamma, self.generator, self.env.task.goals, cfg.hindsight
            )
            yield from drawn.split(cfg.batch)

    def _normalize(self) -> None:
        """Take the iteration's observations into the normalizers. The critics leave actions as they are."""
        seen = self.buffer.newest(self.settings.steps)
        if not self.settings.keep_normalizer:
            self.actor.normalizer.update(self.actor.gather(seen), self.ranks)  # type: ignore[operator]
        rows = next(iter(seen.values()))
        size = self.env.contract.action_size
        actions = rows.new_zeros(len(rows), size)
        for critic in (*self.critics, *self._target_critics):
            normalizer = critic.normalizer
            normalizer.update(critic.gather({**seen, ACTION: actions}), self.ranks)  # type: ignore[operator]
            normalizer.var[-size:] = 1.0  # type: ignore[index]
        normalizer = self.actor.normalizer.state_dict()
        if "actor" in self.targets:
            self.targets["actor"].normalizer.load_state_dict(normalizer)
        if self.settings.average:
            self.networks["actor"].normalizer.load_state_dict(normalizer)

    # ------------------------------------------------------------------ critics and targets

    @property
    def _target_critics(self) -> list[Network]:
        return [network for name, network in self.targets.items() if name != "actor"]

    def values(self, critics: Iterable[Network], obs: Obs, actions: Tensor) -> Tensor:
        """What each critic says of actions, `(critics, n)`."""
        return torch.stack(
            [critic(critic.gather({**obs, ACTION: actions})).squeeze(-1) for critic in critics]
        )

    def target_value(self, obs: Obs, actions: Tensor) -> Tensor:
        """The least of the target critics' values, `(n,)` (Fujimoto et al. 2018)."""
        return self.values(self._target_critics, obs, actions).amin(0)

    def learn_critics(self, batch: Transitions, next_value: Tensor) -> dict[str, Tensor]:
        """Take a gradient step of the critics towards the returns and the value of what follows, `(n,)`."""
        target = batch.returns + batch.discounts * next_value
        values = self.values(self.critics, batch.obs, batch.actions)
        loss = (values - target).square().mean(-1).sum()
        self.take_step("critics", loss, self._critic_parameters)
        return {"loss/critic": loss.detach(), "q": values.detach().mean()}

    def learn_actor(self, loss: Tensor) -> dict[str, Tensor]:
        """Take a gradient step of the actor; the critics stay."""
        self.take_step("actor", loss, self._actor_parameters)
        return {"loss/actor": loss.detach()}

    def take_step(self, name: str, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        """Step one optimizer along the gradient, which the ranks average."""
        optimizer = self.optimizers[name]
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.ranks.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        optimizer.step()

    def _make_targets(self) -> None:
        self.targets = {
            name: copy.deepcopy(self.learning[name]).requires_grad_(False) for name in self.slow
        }

    def _follow(self) -> None:
        """Move the target networks towards the networks, and the average of the actor."""
        for name, target in self.targets.items():
            follow(target, self.learning[name], self.settings.tau)
        if self.settings.average:
            take_in(self.networks["actor"], self.actor, self.settings.average, self.updates)

    # ------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """Buffer, target networks, optimizers, generator and counter, as a flat mapping of tensors.

        Beside an average stands the actor: a checkpoint's network is the policy.
        """
        parts = {f"target/{name}": network.state_dict() for name, network in self.targets.items()}
        if self.settings.average:
            parts["learning/actor"] = self.actor.state_dict()
        parts["buffer"] = self.buffer.state_dict()
        state = {}
        for part, values in parts.items():
            state |= {f"{part}/{key}": value for key, value in values.items()}
        for name, optimizer in self.optimizers.items():
            state |= optimizers.pack(optimizer, f"optimizer/{name}")
        updates = torch.tensor(self.updates)
        counters = {"updates": updates, "generator": self.generator.get_state()}
        return {**state, **counters}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave, also where only one of the two trainings has an average.

        An average begins at the policy of a training that had none; without one, the newest weights are the policy.
        """
        newest = _part(state, "learning/actor/") or self.networks["actor"].state_dict()
        self.actor.load_state_dict(newest)
        self._make_targets()
        for name, network in self.targets.items():
            network.load_state_dict(_part(state, f"target/{name}/"))
        self.buffer.load_state_dict(_part(state, "buffer/"))
        for name, optimizer in self.optimizers.items():
            optimizers.unpack(optimizer, state, f"optimizer/{name}")
        self.updates = int(state["updates"])
        self.generator.set_state(state["generator"])


def actor_network(env: Env, settings: OffPolicyConfig, head: Head) -> Network:
    """The policy's network for an environment, of every group that the robot observes."""
    seen = {group: value for group, value in env.obs.items() if group != PRIVILEGED}
    inputs = {group: value.shape[-1] for group, value in seen.items()}
    outputs = env.contract.action_size
    spec = NetworkSpec(inputs, outputs, settings.hidden, settings.activation, head=head)
    return Network(spec)


def critic_network(env: Env, settings: OffPolicyConfig) -> Network:
    """A critic's network: the value of an action given what the simulation knows."""
    privileged = env.obs[PRIVILEGED].shape[-1]
    inputs = {PRIVILEGED: privileged, ACTION: env.contract.action_size}
    layers = (settings.hidden, settings.activation)
    spec = NetworkSpec(inputs, 1, *layers, layer_norm=settings.layer_norm)
    return Network(spec)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
