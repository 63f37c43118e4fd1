"""Run a policy for some episodes and keep the metrics of each: what evaluation, play and training share."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from deftly.config import EnvConfig, SimConfig
from deftly.console import Progress
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.learn.policy import NetworkPolicy
from deftly.policy.protocol import Policy
from deftly.tasks import Task

VALIDATE = "validate"  # purpose of the episodes on which a training chooses its best checkpoint
EVALUATE = "evaluate"  # purpose of the held out episodes of a report; no training sees them, nor those of VALIDATE
CHUNK = 512  # most environments stepped side by side
Network = Callable[..., Tensor]  # observation (n, obs_size) to action (n, action_size)
OnStep = Callable[
    [Env, Tensor], None
]  # called before the first and after each step, with who still runs, (n,) bool


@dataclass(frozen=True)
class Episodes:
    """The metrics of some episodes, in their order."""

    values: dict[
        str, Tensor
    ]  # name to (episodes,) float64: what `Env.ended` holds but `env`; NaN where there is none
    rate: float  # of control, Hz
    seconds: float  # wall time
    samples: int = 1  # times that each start was run: all starts in their order, then all again
    sections: dict[str, Any] = field(default_factory=dict)
    """What the world in which they ran adds to a report."""

    @property
    def success_rate(self) -> float:
        """Fraction of the episodes that succeeded."""
        return float(self.values["success"].mean())

    def __len__(self) -> int:
        return len(self.values["success"])


class World(Protocol):
    """Where a policy is evaluated: the environment of training, or the simulated robot and its control loop."""

    name: str
    """`env` or `twin`, in a report."""
    task: Task
    seed: int

    @property
    def conditions(self) -> Mapping[str, Any]:
        """Physics and disturbances, as a report has them."""
        ...

    def metric_names(self) -> list[str]:
        """The metrics of its episodes, known before one has run."""
        ...

    def run(self, policy: Policy, episodes: int) -> Episodes:
        """Run exactly so many episodes of a policy, which sees signals and nothing else."""
        ...


@torch.no_grad()
def run_episodes(
    task: Task,
    policy: Policy | Network,
    episodes: int,
    *,
    seed: int,
    purpose: str,
    env_cfg: EnvConfig | None = None,
    sim_cfg: SimConfig | None = None,
    stochastic: bool = False,
    on_step: OnStep | None = None,
    what: str = "",
    sample: int = 0,
) -> Episodes:
    """Run exactly `episodes` episodes: the first of each environment, which favours neither short nor long.

    `seed` and `purpose` (`VALIDATE`, `EVALUATE`, ...) decide every draw: the same arguments give the same metrics bit
    for bit, and torch's own random state is left as it was. A `policy` decides from signals, as on a robot; a bare
    network is taken under the task's contract, and `stochastic` is for that alone. Of `env_cfg`, num_envs is not used.
    With `what`, such as "evaluating", it shows how far it is. Another `sample` starts alike, and a stochastic policy
    draws other actions.
    """
    if episodes < 1:
        raise DeftlyError(f"episodes is {episodes}, but it must be 1 or more")
    start = time.perf_counter()
    acts = _as_policy(task, policy, stochastic)
    cfg, parts = env_cfg or EnvConfig(), []
    not_finite: Counter[str] = Counter()
    with torch.random.fork_rng(devices=[]), Progress(episodes, what) as shown:
        watch = _Shown(shown, on_step) if what else on_step
        for chunk, first in enumerate(range(0, episodes, CHUNK)):
            name = f"{purpose}/{chunk}" if chunk else purpose
            env = Env(
                task, replace(cfg, num_envs=min(CHUNK, episodes - first)), sim_cfg, seed, name
            )
            torch.manual_seed(
                env.state.generator.initial_seed() + 1 + sample
            )  # of a stochastic policy
            parts.append(_run_chunk(env, acts, watch))
            not_finite.update(env.nan_counts)
    if what and not_finite:
        named = ", ".join(f"{name} {count}" for name, count in not_finite.items())
        said = f"warning: numbers of {task.name} are not finite, and counted as 0: {named}"
        print(said, file=sys.stderr)
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Episodes(values, task.contract().rate, time.perf_counter() - start)


def repeated(samples: Sequence[Episodes]) -> Episodes:
    """Several samples of the same starts as one."""
    first = samples[0]
    if len(samples) == 1:
        return first
    values = {name: torch.cat([each.values[name] for each in samples]) for name in first.values}
    seconds = sum(each.seconds for each in samples)
    return Episodes(values, first.rate, seconds, len(samples), first.sections)


class _Shown:
    """Says after each step how many of the episodes are done; those of a chunk may all end with the time limit."""

    def __init__(self, shown: Progress, on_step: OnStep | None):
        self._shown, self._on_step = shown, on_step
        self._env: Env | None = None
        self._before = self._steps = 0

    def __call__(self, env: Env, running: Tensor) -> None:
        if env is not self._env:
            self._before += self._env.num_envs if self._env else 0
            self._env, self._steps = env, 0
        if self._on_step:
            self._on_step(env, running)
        ended = 1.0 - float(running.float().mean())
        self._shown.reach(
            self._before + env.num_envs * min(1.0, max(ended, self._steps / env.episode_steps))
        )
        self._steps += 1


def _as_policy(task: Task, policy: Policy | Network, stochastic: bool) -> Policy:
    """The policy itself, or a bare network under the task's contract."""
    if hasattr(policy, "infer"):
        return cast("Policy", policy)
    return NetworkPolicy(task.contract(), cast("Network", policy), stochastic)


def decide(env: Env, policy: Policy) -> Tensor:
    """The action of each environment, `(num_envs, action_size)`, by a policy that sees signals and nothing else."""
    decision = policy.infer(env.signals, env.inputs, applied=env.state.command)
    return torch.as_tensor(decision.action)


def _run_chunk(env: Env, policy: Policy, on_step: OnStep | None) -> dict[str, Tensor]:
    running = torch.ones(env.num_envs, dtype=torch.bool)
    nothing = torch.full((env.num_envs,), torch.nan, dtype=torch.float64)
    values: dict[str, Tensor] = {}
    watch = on_step or (lambda env, running: None)
    watch(env, running)
    policy.reset()
    while running.any():
        env.step(decide(env, policy))
        if env.ended:
            policy.reset(env.ended["env"].tolist())
            first = running[env.ended["env"]]  # later episodes of an environment do not count
            ids = env.ended["env"][first]
            for name, value in env.ended.items():
                values.setdefault(name, nothing.clone())[ids] = value[first].double()
            running[ids] = False
        watch(env, running)
    del values["env"]
    return values
