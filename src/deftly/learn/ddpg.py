"""Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv:1509.02971), and TD3 (Fujimoto et al. 2018,
arXiv:1802.09477), which adds a second critic, noise of the target policy, and an actor that learns less often.

What they share with other algorithms that learn from a replay buffer is in `deftly.learn.off_policy`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deftly.config import TD3Config
from deftly.config.sections import DeterministicConfig
from deftly.env import Env
from deftly.learn.off_policy import OffPolicy
from deftly.learn.ranks import Ranks
from deftly.learn.replay import Obs, Transitions

METRICS: tuple[str, ...] = (
    "q",
    "loss/critic",
    "loss/actor",
    "buffer",
    "time/collect",
    "time/update",
)


class DDPG(OffPolicy):
    """One learner on `env`; settings are documented in `DDPGConfig`, for TD3 in `TD3Config`.

    Environments explore with noise of different size: some stay close to the policy, others try what is far from it.
    With `action_l2` large actions cost the actor something, as in Andrychowicz et al. 2017 (arXiv:1707.01495): an actor
    whose actions are at the limits of the tanh hardly learns any more.
    """

    algorithm = "ddpg"
    metric_names: tuple[str, ...] = METRICS
    num_critics = 1
    settings: DeterministicConfig

    def __init__(self, env: Env, settings: DeterministicConfig, ranks: Ranks | None = None):
        super().__init__(
            env, settings, ranks, head="tanh", num_critics=self.num_critics, slow=["actor"]
        )
        self.noise = torch.linspace(*settings.noise, env.num_envs, device=self.device)[:, None]

    def explore(self, obs: Obs) -> Tensor:
        """The policy's actions with noise."""
        return self._noisy(self.actor(self.actor.gather(obs)), self.noise)

    def learn(self, batch: Transitions) -> dict[str, Tensor]:
        """A gradient step of the critic, and of the actor if it is its turn."""
        with torch.no_grad():
            next_actions = self.target_actions(batch.next_obs)
            next_value = self.target_value(batch.next_obs, next_actions)
        losses = self.learn_critics(batch, next_value)
        if self.is_actors_turn:
            actions = self.actor(self.actor.gather(batch.obs))
            value = self.values(self.critics[:1], batch.obs, actions)
            size = self.settings.action_l2 * actions.square().mean()
            losses |= self.learn_actor(size - value.mean())
        return losses

    @property
    def is_actors_turn(self) -> bool:
        """Whether this gradient step is one of the actor too."""
        return True

    def target_actions(self, obs: Obs) -> Tensor:
        """What the target policy does, `(n, action_size)`."""
        target = self.targets["actor"]
        return target(target.gather(obs))

    def _noisy(self, actions: Tensor, std: Tensor | float, most: float = 2.0) -> Tensor:
        """Actions with Gaussian noise of at most `most`, within [-1, 1]."""
        noise = torch.randn(actions.shape, generator=self.generator, device=self.device)
        return (actions + (std * noise).clamp(-most, most)).clamp(-1.0, 1.0)


class TD3(DDPG):
    """One learner on `env`; settings are documented in `TD3Config`."""

    algorithm = "td3"
    num_critics = 2

    def __init__(self, env: Env, settings: TD3Config, ranks: Ranks | None = None):
        super().__init__(env, settings, ranks)
        self._td3 = settings

    @property
    def is_actors_turn(self) -> bool:
        """Every `policy_delay` gradient steps."""
        return self.updates % self._td3.policy_delay == 0

    def target_actions(self, obs: Obs) -> Tensor:
        """What the target policy does, smoothed by noise, `(n, action_size)`."""
        cfg = self._td3
        return self._noisy(super().target_actions(obs), cfg.target_noise, cfg.target_noise_clip)
