"""What a learning algorithm offers to the trainer. A new one is a file in this folder and a class of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from deftly.config import DDPGConfig, DistillConfig, LearnerConfig, PPOConfig, SACConfig, TD3Config
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.learn.networks import Network, Policy
from deftly.learn.ranks import Ranks

Metrics = dict[str, float]
"""An iteration's metrics by name, such as `loss/value`."""


class Learner(Protocol):
    """One algorithm that learns on the environments of one process.

    The environment, `networks` and `state_dict` decide its future: whoever restores all three continues bit for bit.
    An algorithm that learns off-policy keeps its replay buffer in the state, on the device of the environment, and
    takes what an action led to from `Step.final_obs`, which is the true observation where an episode ended.
    """

    algorithm: str
    """Name in the configuration (`--train.algorithm`) and in checkpoints."""
    env: Env
    networks: Mapping[str, Network]
    """By name; `actor` is the policy."""
    metric_names: tuple[str, ...]
    """What `iterate` gives."""

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of this process in an iteration."""
        ...

    @property
    def numbers(self) -> Metrics:
        """Adapted settings that say how far the learner is, such as `learning_rate`; for who reads a checkpoint."""
        ...

    def iterate(self) -> Metrics:
        """Step the environments and learn from it once."""
        ...

    def policy(self) -> Policy:
        """The actor as it is now; it goes on changing."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What the networks do not hold: optimizer, random generator, counters, as a flat mapping of tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        ...


def make_learner(env: Env, settings: LearnerConfig, ranks: Ranks | None = None) -> Learner:
    """The learner whose settings these are. Raises DeftlyError if it does not learn from what the task shows."""
    if not isinstance(settings, DistillConfig):
        _require_numbers(env, settings.algorithm)
    if isinstance(settings, PPOConfig):
        from deftly.learn.ppo import PPO

        return PPO(env, settings, ranks)
    if isinstance(settings, DistillConfig):
        from deftly.learn.distill import Distillation

        return Distillation(env, settings, ranks)
    if isinstance(settings, SACConfig):
        from deftly.learn.sac import SAC

        return SAC(env, settings, ranks)
    if isinstance(settings, TD3Config):
        from deftly.learn.ddpg import TD3

        return TD3(env, settings, ranks)
    if isinstance(settings, DDPGConfig):
        from deftly.learn.ddpg import DDPG

        return DDPG(env, settings, ranks)
    raise DeftlyError(f"no learner has settings of type {type(settings).__name__}")


def _require_numbers(env: Env, algorithm: str) -> None:
    """Raise DeftlyError if the observation has images."""
    contract = env.contract
    images = [group for group in contract.groups if contract.is_image(group)]
    if images:
        seen = (
            f"the policy sees images ({', '.join(images)}), from which {algorithm} does not learn"
        )
        raise DeftlyError(
            f"{seen}: train a policy that sees numbers, and `deftly distill {env.task.name} --teacher RUN`"
        )
