"""Run a policy for some episodes and keep the figures of each: what evaluation, play and training share."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from deftly import runs
from deftly.config import EnvConfig, RunsConfig, SimConfig, flag_words, parse, split_task, with_task
from deftly.deploy.policy import Decision, Policy, Signals
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.learn import checkpoint
from deftly.learn.checkpoint import Checkpoint
from deftly.tasks import Task, load

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

    `seed` and `purpose` (`VALIDATE`, `EVALUATE`, ...) decide every draw: the same arguments give the same figures bit
    for bit, and torch's own random state is left as it was. `policy` is called with `stochastic=True` if asked. Of
    `env_cfg`, num_envs is not used.
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
    watch = on_step or (lambda env, running: None)
    values, nothing = {}, torch.full((env.num_envs,), torch.nan, dtype=torch.float64)
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


class Listener:
    """Takes the place of an environment's sensors and keeps what they gave: the signals that the contract reads."""

    def __init__(self, env: Env):
        self.sensors, self.state = env._sensors, env._sensors.state
        self.signals: dict[str, np.ndarray] = {}
        """Of the first environment, by signal name: (size,) float32."""

    def read(self, signals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The readings of one step."""
        return self._keep(self.sensors.read(signals))

    def reset(self, signals: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """The first readings of an episode."""
        return self._keep(self.sensors.reset(signals, ids))

    def _keep(self, readings: dict[str, Tensor]) -> dict[str, Tensor]:
        self.signals = {name: value[0].numpy().copy() for name, value in readings.items()}
        return readings


def drive(env: Env, policy: Policy, seed: int) -> Iterator[tuple[Signals, Tensor, Decision]]:
    """Drive one episode of one environment as a robot is driven: by a policy that is given signals and nothing else.

    Yields after each step what the policy was given and decided, and in between the observation (1, obs_size) that
    training would have shown it; `env.ended` tells how the episode ended.
    """
    listener = Listener(env)
    env._sensors, env.auto_reset = listener, False  # type: ignore[assignment]
    try:
        env.seed(seed)
        env.reset()
        policy.reset(listener.signals)
        while True:
            signals, obs = listener.signals, env.obs["policy"]
            decision = policy.infer(signals)
            env.step(torch.from_numpy(decision.action)[None])
            yield signals, obs, decision
            if env.ended:
                return
    finally:
        env._sensors = listener.sensors


@dataclass(frozen=True)
class Settings:
    """What a simulation is built from."""

    sim: SimConfig = field(default_factory=SimConfig)


def rebuild(spec: str, settings: Mapping[str, Any]) -> tuple[Task, SimConfig]:
    """The task and physics of a bundle's settings. Raises DeftlyError if the task, by name or file, has others now."""
    cls = load(spec)
    try:
        with redirect_stderr(io.StringIO()):
            args: Any = parse(with_task(Settings, cls.Config), flag_words(settings), prog="deftly")
    except SystemExit:
        raise DeftlyError(f"the settings of the bundle do not fit {spec} as it is now: export it again") from None
    return cls(args.task), args.sim


def find_policy(spec: str | None, task: str, cfg: RunsConfig) -> Path:
    """The checkpoint folder that a user means; None is the task's newest run, else the shipped policy."""
    if spec not in (None, "shipped"):
        return runs.find_checkpoint(spec, task, cfg)
    if spec is None:
        with suppress(DeftlyError):
            return runs.find_checkpoint("latest", task, cfg)
    own = checkpoint.shipped(task)
    if own is None:
        place = f" in '{cfg.root}'" if spec is None else ""
        raise DeftlyError(f"no policy for {task}{place}, none is shipped: train one, 'deftly train {task}'")
    return own


def prepare(stage: type[Any], verb: str, argv: Sequence[str]) -> tuple[Task, Any, Checkpoint | None]:
    """Task, arguments and policy of `deftly VERB TASK ...`; no policy if the stage has an `agent` that needs none.

    The task and physics with which the checkpoint was trained go in as the first `--config` file: the user's files
    and what is typed override them.
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
        sections = ("task", "sim") if found.task == cls.name else ("sim",)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="deftly-") as file:
            yaml.safe_dump({name: found.config[name] for name in sections if name in found.config}, file)
            file.flush()
            args = parse(stage, ["--config", file.name, *flags], prog=prog)
    task = cls(args.task)
    if found:
        found.require(task)
    return task, args, found
