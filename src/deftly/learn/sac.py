"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905), with an adapted temperature and two critics.

What it shares with other algorithms that learn from a replay buffer is in `deftly.learn.off_policy`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deftly.config import SACConfig
from deftly.env import Env
from deftly.learn.off_policy import OffPolicy
from deftly.learn.ranks import Ranks
from deftly.learn.replay import Obs, Transitions


class SAC(OffPolicy):
    """One learner on `env`; settings are documented in `SACConfig`."""

    algorithm = "sac"
    metric_names = (
        *("temperature", "entropy", "q", "loss/critic", "loss/actor"),
        *("buffer", "time/collect", "time/update"),
    )
    settings: SACConfig

    def __init__(self, env: Env, settings: SACConfig, ranks: Ranks | None = None):
        super().__init__(env, settings, ranks, head="squashed_gaussian", num_critics=2)
        start = math.log(settings.temperature)
        self.log_temperature = torch.full((), start, device=self.device, requires_grad=True)
        self.target_entropy = settings.target_entropy * env.contract.action_size
        self.optimizers["temperature"] = torch.optim.Adam(
            [self.log_temperature], lr=settings.learning_rate
        )

    def explore(self, obs: Obs) -> Tensor:
        """Actions drawn from the policy."""
        return self.actor.draw(self.actor.gather(obs), self.generator)

    def learn(self, batch: Transitions) -> dict[str, Tensor]:
        """A gradient step of the critics, of the actor, and of the temperature."""
        temperature = self.log_temperature.exp().detach()
        with torch.no_grad():
            next_actions, next_log_probs = self._act(batch.next_obs)
            next_value = self.target_value(batch.next_obs, next_actions)
            soft_value = next_value - temperature * next_log_probs
        losses = self.learn_critics(batch, soft_value)

        actions, log_probs = self._act(batch.obs)
        value = self.values(self.critics, batch.obs, actions).amin(0)
        losses |= self.learn_actor((temperature * log_probs - value).mean())

        entropy = -log_probs.detach().mean()
        self.take_step(
            "temperature",
            self.log_temperature * (entropy - self.target_entropy),
            [self.log_temperature],  # type: ignore[list-item]
        )
        return {**losses, "temperature": temperature, "entropy": entropy}

    def _act(self, obs: Obs) -> tuple[Tensor, Tensor]:
        return self.actor.squashed(self.actor.gather(obs), self.generator)

    def state_dict(self) -> dict[str, Tensor]:
        """What is shared, and the temperature."""
        return {**super().state_dict(), "log_temperature": self.log_temperature.detach()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        super().load_state_dict(state)
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
