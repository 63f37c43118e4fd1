"""Proximal policy optimization: rsl-rl's algorithm and models under a loop of our own.

rsl-rl's runner pickles checkpoints, requires NCCL for several processes, and bootstraps a truncated episode from the
value before its last step. Here nothing is pickled, gloo serves CPUs, and the true final observation is valued.
"""

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from rsl_rl.algorithms import PPO as RslPPO
from rsl_rl.models import MLPModel
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict
from torch import Tensor, nn

from deftly.config import PPOConfig
from deftly.env import Env, Obs

CRITIC_RATE = 1e-3  # step size while the critic learns alone
GROUPS = {"actor": ["policy"], "critic": ["critic"]}


@dataclass(frozen=True)
class Ranks:
    """This process among those of a `torchrun`; rank 0 of 1 without it."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Self:
        """Join the process group that `torchrun` describes in the environment, over gloo."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        return cls(dist.get_rank(), size)

    def agree(self, flag: bool) -> bool:
        """Whether any process says so."""
        votes = torch.tensor(float(flag))
        if self.size > 1:
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes)

    def share_text(self, text: str) -> str:
        """What rank 0 gave, at every rank."""
        if self.size == 1:
            return text
        buffer = torch.tensor(list(text.encode().ljust(4096, b"\0")), dtype=torch.uint8)
        dist.broadcast(buffer, src=0)
        return bytes(buffer.tolist()).rstrip(b"\0").decode()


def actor_model(obs_size: int, action_size: int, cfg: PPOConfig) -> MLPModel:
    """The policy network: normalizer, layers, Gaussian head whose mean is the deterministic action."""
    head = {"class_name": "GaussianDistribution", "init_std": cfg.init_std, "std_range": (0.05, 2.0)}
    obs = TensorDict({"policy": torch.zeros(1, obs_size)}, batch_size=[1])
    return MLPModel(obs, GROUPS, "actor", action_size, cfg.hidden, cfg.activation, True, head)


class PPO:
    """One learner on `env`; the environment, `models`, `tensors()` and the learning rate decide its future."""

    def __init__(self, env: Env, cfg: PPOConfig, ranks: Ranks | None = None):
        self.env, self.cfg, self.ranks = env, cfg, ranks or Ranks()
        torch.manual_seed(cfg.seed)
        obs, action_size = _dict(env.obs), env.contract.action_size
        self.actor = actor = actor_model(env.contract.obs_size(), action_size, cfg)
        if cfg.keep_normalizer:
            actor.obs_normalizer.until = 0  # type: ignore[assignment]
        critic = MLPModel(obs, GROUPS, "critic", 1, cfg.hidden, cfg.activation, True)
        self.models: dict[str, nn.Module] = {"actor": actor, "critic": critic}
        storage = RolloutStorage("rl", env.num_envs, cfg.steps, obs, [action_size])
        shared = ("gamma", "lam", "learning_rate", "max_grad_norm", "desired_kl")
        settings: dict[str, Any] = {name: getattr(cfg, name) for name in shared}
        settings |= {"num_learning_epochs": cfg.epochs, "num_mini_batches": cfg.minibatches, "clip_param": cfg.clip}
        settings |= {"value_loss_coef": cfg.value_coef, "entropy_coef": cfg.entropy}
        group = {"global_rank": self.ranks.rank, "world_size": self.ranks.size, "local_rank": self.ranks.rank}
        settings["multi_gpu_cfg"] = group if self.ranks.size > 1 else None
        self.algorithm = RslPPO(actor, critic, storage, **settings)
        if self.ranks.size > 1:
            self.algorithm.broadcast_parameters()
            torch.manual_seed(cfg.seed + self.ranks.rank)  # each process explores for itself

    def iterate(self, critic_only: bool = False) -> dict[str, float]:
        """One rollout and one update. Returns losses, the mean exploration std, and seconds of either part."""
        start = time.perf_counter()
        self.actor.requires_grad_(not critic_only)
        self.algorithm.schedule = "fixed" if critic_only else "adaptive"
        for group in self.algorithm.optimizer.param_groups if critic_only else ():
            group["lr"] = CRITIC_RATE
        self.algorithm.train_mode()
        self._collect()
        collected = time.perf_counter()
        losses = self.algorithm.update()
        figures = {f"loss/{name}": float(value) for name, value in losses.items()}
        figures |= {"time/collect": collected - start, "time/update": time.perf_counter() - collected}
        std = float(self.actor.distribution.std_param.detach().mean())  # type: ignore[union-attr]
        return {**figures, "std": std, "learning_rate": self.algorithm.learning_rate}

    @torch.inference_mode()
    def _collect(self) -> None:
        env, algorithm = self.env, self.algorithm
        for _ in range(self.cfg.steps):
            step = env.step(algorithm.act(_dict(env.obs)))
            reward, late = step.reward, step.truncated.nonzero().squeeze(-1)
            if len(late):
                final = _dict({name: value[late] for name, value in step.final_obs.items()})
                reward = reward.index_add(0, late, self.cfg.gamma * algorithm.critic(final).squeeze(-1))
            algorithm.process_env_step(_dict(step.obs), reward, step.terminated | step.truncated, {})
        algorithm.compute_returns(_dict(env.obs))

    def tensors(self) -> dict[str, Tensor]:
        """Optimizer and random generator, as a flat mapping of tensors."""
        optimizer = self.algorithm.optimizer.state_dict()["state"]
        moments = {f"optimizer/{i}/{k}": torch.as_tensor(v) for i, s in optimizer.items() for k, v in s.items()}
        return {**moments, "generator": torch.get_rng_state()}

    def load(self, tensors: dict[str, Tensor], learning_rate: float) -> None:
        """Restore what `tensors` gave, and the adapted learning rate, which rsl-rl sets before each gradient step."""
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, i, key = name.split("/")
                state[int(i)][key] = value
        optimizer = self.algorithm.optimizer
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.algorithm.learning_rate = learning_rate
        torch.set_rng_state(tensors["generator"])


def _dict(obs: Obs) -> TensorDict:
    return TensorDict(obs, batch_size=[len(obs["policy"])])  # type: ignore[arg-type]
