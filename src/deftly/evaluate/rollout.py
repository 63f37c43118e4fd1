"""Run a policy for some episodes and keep the figures of each: what evaluation, play and training share."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deftly import workspace
from deftly.config import EnvConfig, RunsConfig, SimConfig, parse, split_task, with_task
from deftly.console import Progress
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.learn import checkpoint
from deftly.learn.checkpoint import Checkpoint
from deftly.tasks import Task, load

VALIDATE = "validate"  # purpose of the episodes on which a training chooses its best checkpoint
EVALUATE = "evaluate"  # purpose of the held out episodes of a report; no training sees them, nor those of VALIDATE
CHUNK = 512  # most environments stepped side by side
Act = Callable[[Tensor], Tensor]  # a policy: observation (n, obs_size) to action (n, action_size)
OnStep = Callable[[Env, Tensor], None]  # called before the first and after each step, with who still runs, (n,) bool


@dataclass(frozen=True)
class Episodes:
    """The figures of some episodes, in their order."""

    values: dict[str, Tensor]  # name to (episodes,) float64: what `Env.ended` holds but `env`; NaN where there is none
    rate: float  # of control, Hz
    seconds: float  # wall time

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
    what: str = "",
) -> Episodes:
    """Run exactly `episodes` episodes: the first of each environment, which favours neither short nor long.

    `seed` and `purpose` (`VALIDATE`, `EVALUATE`, ...) decide every draw: the same arguments give the same figures bit
    for bit, and torch's own random state is left as it was. `policy` is called with `stochastic=True` if asked. Of
    `env_cfg`, num_envs is not used.
    With `what`, such as "evaluating", it shows how far it is.
    """
    if episodes < 1:
        raise DeftlyError(f"episodes is {episodes}, but it must be 1 or more")
    start = time.perf_counter()
    act = partial(policy, stochastic=True) if stochastic else policy
    cfg, parts = env_cfg or EnvConfig(), []
    with torch.random.fork_rng(devices=[]), Progress(episodes, what) as shown:
        watch = _Shown(shown, on_step) if what else on_step
        for chunk, first in enumerate(range(0, episodes, CHUNK)):
            name = f"{purpose}/{chunk}" if chunk else purpose
            env = Env(task, replace(cfg, num_envs=min(CHUNK, episodes - first)), sim_cfg, seed, name)
            torch.manual_seed(env.state.generator.initial_seed() + 1)  # of a stochastic policy
            parts.append(_run_chunk(env, act, watch))
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Episodes(values, task.contract().rate, time.perf_counter() - start)


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
        self._shown.reach(self._before + env.num_envs * min(1.0, max(ended, self._steps / env.episode_steps)))
        self._steps += 1


def _run_chunk(env: Env, act: Act, on_step: OnStep | None) -> dict[str, Tensor]:
    running = torch.ones(env.num_envs, dtype=torch.bool)
    values, nothing = {}, torch.full((env.num_envs,), torch.nan, dtype=torch.float64)
    watch = on_step or (lambda env, running: None)
    watch(env, running)
    while running.any():
        env.step(act(env.obs["policy"]))
        if env.ended:
            first = running[env.ended["env"]]  # later episodes of an environment do not count
            ids = env.ended["env"][first]
            for name, value in env.ended.items():
                values.setdefault(name, nothing.clone())[ids] = value[first].double()
            running[ids] = False
        watch(env, running)
    del values["env"]
    return values


def find_policy(spec: str | None, task: str, cfg: RunsConfig) -> Path:
    """The checkpoint folder that a user means; None is the task's newest run, else the shipped policy."""
    if spec not in (None, "shipped"):
        return workspace.find_checkpoint(spec, task, cfg)
    if spec is None:
        with suppress(DeftlyError):
            return workspace.find_checkpoint("latest", task, cfg)
    if own := checkpoint.shipped(task):
        return own
    place = "" if spec else f" in '{cfg.root}'"
    raise DeftlyError(f"no policy for {task}{place}, none is shipped: train one, 'deftly train {task}'")


def saved_settings(found: Checkpoint, cls: type[Task]) -> dict[str, Any]:
    """The settings of task and physics with which a checkpoint was trained, as far as they still exist.

    Those of another task, be it of the same name, are left out. What was renamed since is named on the terminal.
    """
    kinds = {"task": cls.Config, "sim": SimConfig} if found.is_of(cls) else {"sim": SimConfig}
    for section, kind in kinds.items():
        if unknown := found.unknown_settings(section, kind):
            names = ", ".join(unknown[:5])
            print(f"{found.path / checkpoint.CONFIG}: {names} left out: {kind.__name__} has no such setting (any more)")
    return {section: found.known_settings(section, kind) for section, kind in kinds.items()}


def prepare(stage: type[Any], verb: str, argv: Sequence[str]) -> tuple[Task, Any, Checkpoint | None]:
    """Task, arguments and policy of `deftly VERB TASK ...`; no policy if the stage has an `agent` that needs none.

    Files and words of the user override the task and physics with which the checkpoint was trained.
    """
    name, flags = split_task(argv)
    prog = f"deftly {verb} {name or 'TASK'}"
    if name is None:
        parse(stage, flags, prog=prog)  # answers --help
        raise DeftlyError(f"{verb} needs a task: deftly {verb} TASK; 'deftly tasks' lists them")
    cls = load(name)
    stage = with_task(stage, cls.Config)
    args, found = parse(stage, flags, prog=prog), None
    if getattr(args, "agent", "trained") == "trained":
        found = checkpoint.load(find_policy(args.checkpoint, cls.name, args.runs))
        filed = saved_settings(found, cls)
        args = parse(stage, flags, prog=prog, filed=filed, origin=str(found.path / checkpoint.CONFIG))
    task = cls(args.task)
    if found:
        found.require(task)
    return task, args, found
