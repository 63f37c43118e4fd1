"""Run a policy for some episodes and keep the figures of each: what evaluation, play and training share."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor

from deftly import runs
from deftly.config import EnvConfig, RunsConfig, SimConfig, TaskConfig, parse, with_task
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.learn import checkpoint
from deftly.learn.checkpoint import Checkpoint
from deftly.tasks import Task

VALIDATE = "validate"
"""Purpose of the episodes on which a training chooses its best checkpoint."""
EVALUATE = "evaluate"
"""Purpose of the held out episodes of a report; no training sees them, nor those of `VALIDATE`."""
CHUNK = 512
"""Most environments stepped side by side."""

Act = Callable[[Tensor], Tensor]
"""A policy: observation (n, obs_size) to action (n, action_size)."""
OnStep = Callable[[Env, Tensor], None]
"""Called before the first and after each step, with which environments still run, (n,) bool."""
Stage = TypeVar("Stage")


@dataclass(frozen=True)
class Episodes:
    """The figures of some episodes, one value each, in the order of the episodes."""

    values: dict[str, Tensor]
    """Name to (episodes,) float64: what `Env.ended` holds but `env`; NaN where an episode has none."""
    rate: float
    """Control rate, Hz."""
    seconds: float
    """Wall time."""

    @property
    def success_rate(self) -> float:
        """Share of the episodes that succeeded."""
        return float(self.values["success"].mean())

    def __len__(self) -> int:
        return len(self.values["success"])


@torch.no_grad()
def run_episodes(
    task: Task,
    policy: Callable[..., Tensor],
    episodes: int,
    *,
    seed: int,
    purpose: str,
    env_cfg: EnvConfig | None = None,
    sim_cfg: SimConfig | None = None,
    stochastic: bool = False,
    on_step: OnStep | None = None,
) -> Episodes:
    """Run exactly `episodes` episodes: the first of each environment, which favours neither short nor long.

    The same arguments give the same figures bit for bit; torch's own random state is left as it was.

    Args:
        task: what to do.
        policy: observation (n, obs_size) to action (n, action_size); called with `stochastic=True` if asked.
        episodes: how many, in chunks of at most `CHUNK` environments.
        seed: with `purpose`, decides every draw.
        purpose: `VALIDATE` or `EVALUATE`.
        env_cfg: which disturbances act; its `num_envs` is not used.
        sim_cfg: physics preset and threads.
        stochastic: draw actions from the policy's distribution instead of its mean.
        on_step: watches, for example to record a video.
    """
    if episodes < 1:
        raise DeftlyError(f"episodes is {episodes}, but it must be 1 or more")
    start = time.perf_counter()
    act = partial(policy, stochastic=True) if stochastic else policy
    cfg, parts = env_cfg or EnvConfig(), []
    with torch.random.fork_rng(devices=[]):
        for chunk, first in enumerate(range(0, episodes, CHUNK)):
            name = f"{purpose}/{chunk}" if chunk else purpose
            env = Env(task, replace(cfg, num_envs=min(CHUNK, episodes - first)), sim_cfg, seed, name)
            torch.manual_seed(env.state.generator.initial_seed() + 1)  # of a stochastic policy
            parts.append(_run_chunk(env, act, on_step))
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Episodes(values, task.contract().rate, time.perf_counter() - start)


def _run_chunk(env: Env, act: Act, on_step: OnStep | None) -> dict[str, Tensor]:
    running = torch.ones(env.num_envs, dtype=torch.bool)
    values: dict[str, Tensor] = {}
    if on_step:
        on_step(env, running)
    while running.any():
        env.step(act(env.obs["policy"]))
        if env.ended:
            _keep(env.ended, running, values)
        if on_step:
            on_step(env, running)
    return values


def _keep(ended: dict[str, Tensor], running: Tensor, values: dict[str, Tensor]) -> None:
    """Take the figures of environments whose first episode ended, which then run no longer."""
    first = running[ended["env"]]
    ids = ended["env"][first]
    for name, value in ended.items():
        if name != "env":
            whole = values.setdefault(name, torch.full((len(running),), torch.nan, dtype=torch.float64))
            whole[ids] = value[first].double()
    running[ids] = False


def find_policy(spec: str | None, task: str, cfg: RunsConfig) -> Path:
    """The checkpoint folder that a user means; None is the task's newest run, else the shipped policy."""
    own = checkpoint.shipped(task)
    if spec == "shipped":
        if own is None:
            raise DeftlyError(f"no policy is shipped for {task}: train one with 'deftly train {task}'")
        return own
    if spec is not None:
        return runs.find_checkpoint(spec, task, cfg)
    try:
        return runs.find_checkpoint("latest", task, cfg)
    except DeftlyError:
        if own is not None:
            return own
    raise DeftlyError(
        f"no policy for {task}: no run in '{cfg.root}' and none shipped; "
        f"train one with 'deftly train {task}', or give --checkpoint PATH"
    )


def parse_saved(stage: type[Stage], task: type[Task], found: Checkpoint, argv: Sequence[str], prog: str) -> Stage:
    """Parse a stage's arguments over the task and physics with which a checkpoint was trained.

    The saved sections go in as the first `--config` file: the user's files and what is typed override it.
    """
    sections = ("task", "sim") if found.task == task.name else ("sim",)
    saved = {name: found.config[name] for name in sections if name in found.config}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="deftly-") as file:
        yaml.safe_dump(saved, file)
        file.flush()
        return parse(with_task(stage, task.Config), ["--config", file.name, *argv], prog=prog)


def make_task(task: type[Task], args: Any) -> Task:
    """The task with the settings in the `task` section of parsed arguments."""
    cfg: TaskConfig = args.task
    return task(cfg)
