"""Searches for gaits: CMA-ES from nothing, over strokes where a task has them, and ascent from a gait that is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor
from typing_extensions import Doc

from deftly.config import EnvConfig, PPOConfig, Settings, SimConfig, Suffix, TaskConfig
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.recipes.in_hand.gait.gaits import SPREAD, Gaits
from deftly.recipes.in_hand.gait.strokes import TipPaths
from deftly.recipes.in_hand.protocol import context, strokes
from deftly.tasks import Task

MOMENTUM = 0.9  # of the estimated gradient, over generations
OUTLIERS = 0.03  # share of the differences of reward, at each end, that count no more than the next
FREQUENCY = 0.65  # Hz, of a search from nothing
STILL = 0.5  # sigma of a search from standing still; of one over strokes it is 1


@dataclass(frozen=True)
class GaitSettings(Settings):
    """How a gait is searched for and cloned into a policy."""

    sim: Annotated[SimConfig, Doc("The physics engine.")] = field(default_factory=SimConfig)
    task: Annotated[TaskConfig, Doc("The task's own figures.")] = field(default_factory=TaskConfig)
    train: Annotated[
        PPOConfig, Doc("The network, as in the training that follows; and the seed.")
    ] = field(default_factory=PPOConfig)
    gait: Annotated[
        Path | None,
        Suffix(".npz"),
        Doc("Go on from this gait.npz instead of searching from nothing."),
    ] = None
    generations: Annotated[int, Ge(0), Doc("Generations of the search from nothing.")] = 80
    population: Annotated[int, Ge(4), Doc("Candidates of each.")] = 32
    trials: Annotated[int, Ge(1), Doc("Randomized robots on which each candidate is tried.")] = 3
    ascent: Annotated[
        int,
        Ge(0),
        Doc(
            "Steps along an estimated gradient from the gait found or given; 0 leaves it as it is."
        ),
    ] = 100
    pairs: Annotated[
        int, Ge(1), Doc("Robots of such a step, each of which tries a change and its opposite.")
    ] = 192
    sigma: Annotated[float, Gt(0), Doc("How large these changes are.")] = 0.15
    step: Annotated[float, Gt(0), Doc("How far one step goes along the gradient.")] = 0.6
    seconds: Annotated[
        float, Gt(0), Doc("How long each trial is judged, s, after a second of getting there.")
    ] = 8.0
    loss: Annotated[float, Ge(0), Doc("Reward that a lost trial is worth less.")] = 5.0
    frequency: Annotated[
        float | None,
        Gt(0),
        Doc("Of the gait, Hz; unset: 0.65, or what the gait given has. The search keeps it."),
    ] = None
    rounds: Annotated[
        int,
        Ge(1),
        Doc("Rounds of cloning; in each, the policy drives a larger share of the robots."),
    ] = 10
    std: Annotated[float, Gt(0), Doc("Exploration noise that the cloned policy starts with.")] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.generations and not self.gait:
            raise DeftlyError("--generations 0 goes on from a gait: give it, --gait RUN/gait.npz")


class Trials:
    """Gaits are tried on a task's randomized robots."""

    def __init__(self, task: Task, args: GaitSettings, num_envs: int):
        acts = task.contract().act_terms
        if (
            len(acts) != 1
            or acts[0].kind != "delta"
            or acts[0].joints != task.contract().joint_names
        ):
            raise DeftlyError(
                f"{task.name}: a gait is searched for tasks whose actions are deltas of all joints alone"
            )
        self.args, self.delta = args, torch.tensor(acts[0].scale)
        self.env = Env(
            task, EnvConfig(num_envs=num_envs, noise=False), args.sim, args.train.seed, "gait"
        )
        self.env.auto_reset = False
        self.home = torch.tensor(self.env.contract.home())

    @torch.no_grad()
    def run(self, gaits: Callable[[Tensor | None], Gaits], robots: int) -> Tensor:
        """Try a gait in each environment: its reward per second, `(num_envs,)`; once lost it earns no more.

        `gaits` makes them of the contexts. So many different robots are drawn anew, and repeated.
        """
        env, args = self.env, self.args
        env.reset()
        rows = torch.arange(env.num_envs) % robots
        drawn = env.state_dict().items()
        env.load_state_dict(
            {k: v if k.startswith(("generator", "scale/")) else v[rows] for k, v in drawn}
        )
        each = gaits(context(env.task, env.state))
        env.task.curriculum(env.state, {"success": 0.0})
        rate, warm = env.contract.rate, round(env.contract.rate)
        running, earned = torch.ones(env.num_envs, dtype=torch.bool), torch.zeros(env.num_envs)
        for k in range(warm + round(args.seconds * rate)):
            wanted = each.targets(2 * math.pi * each.frequency * max(0, k - warm) / rate)
            step = env.step((wanted - env.state.command) / self.delta)
            earned += step.reward * running * (k >= warm)
            earned -= args.loss * (running & step.terminated & (k >= warm))
            running &= ~step.terminated
        return earned / args.seconds


class Search:
    """CMA-ES from nothing: all of a generation meet the same robots, and each generation meets others.

    Its numbers are those of strokes, or of the joints themselves where the task names none.
    """

    def __init__(self, task: Task, args: GaitSettings):
        import cma

        self.args, self.trials = args, Trials(task, args, (args.population + 1) * args.trials)
        self.env, start = self.trials.env, strokes(task)
        if start:
            paths = TipPaths(
                task, start, self.env.contract, args.frequency or FREQUENCY, args.sim.threads
            )
            self.gaits, size, sigma = paths.gaits, paths.size, 1.0
        else:
            self.gaits, size, sigma = self._near_home, len(SPREAD) * len(self.trials.home), STILL
        options = {"popsize": args.population, "seed": args.train.seed + 1, "verbose": -9}
        self._cma = cma.CMAEvolutionStrategy(
            np.zeros(size), sigma, {**options, "CMA_diagonal": not start}
        )

    @property
    def best(self) -> Gaits:
        """The gait in the middle of the search."""
        return self.gaits(np.asarray(self._cma.mean)[None])

    def generation(self) -> dict[str, float]:
        """Try a population; returns the reward per second of the gait in its middle and of the best candidate."""
        numbers = self._cma.ask()
        reward = self.rewards(np.array([*numbers, self._cma.mean]))
        self._cma.tell(numbers, (-reward[:-1]).tolist())
        return {
            "middle": float(reward[-1]),
            "mean": float(reward[:-1].mean()),
            "best": float(reward[:-1].max()),
        }

    def rewards(self, numbers: np.ndarray) -> Tensor:
        """Mean reward per second of each row's gait over its trials, `(n,)`."""
        each = self.gaits(numbers).repeat(self.args.trials)
        return self.trials.run(lambda _: each, self.args.trials).view(-1, self.args.trials).mean(1)

    def _near_home(self, numbers: np.ndarray) -> Gaits:
        return Gaits.decode(numbers, self.trials.home, self.args.frequency or FREQUENCY)


class Ascent:
    """Steps along an estimate of the gradient: gaits are tried in pairs, changed this way and that, on a robot a pair.

    A single pair tells next to nothing. Their mean, and that over generations, tells enough. Where the task names a
    figure by which gaits may differ, there are two of them, for its least and its greatest, mixed in between.
    """

    def __init__(self, task: Task, args: GaitSettings, gait: Gaits):
        self.args, self.trials = args, Trials(task, args, 2 * args.pairs)
        self.env = self.trials.env
        self.mixed = context(task, self.env.state) is not None
        self._frequency = float(gait.timed(args.frequency).frequency[0])
        self._numbers = self.encode(gait)
        self._rng, self._generation = np.random.default_rng(args.train.seed), 0
        self._momentum = np.zeros_like(self._numbers)

    @property
    def best(self) -> Gaits:
        """The gait reached, or the two that are mixed."""
        contexts = torch.tensor([-1.0, 1.0] if self.mixed else [0.0])
        return self.decode(self._numbers[None].repeat(len(contexts), 0), contexts)

    def encode(self, gait: Gaits) -> np.ndarray:
        """Numbers of the gait at context 0 and, if gaits are mixed, half of what the ends differ."""
        numbers = gait.encode(self.trials.home)
        middle, half = (numbers[0] + numbers[-1]) / 2, (numbers[-1] - numbers[0]) / 2
        return np.concatenate((middle, half)) if self.mixed else middle

    def decode(
        self, numbers: np.ndarray, context: Tensor | None, change: np.ndarray | float = 0.0
    ) -> Gaits:
        """A gait for each row of numbers, and its context; its own numbers changed by so much."""
        if self.mixed and context is not None:
            middle, half = np.split(numbers, 2, 1)
            numbers = middle + context.double().numpy()[:, None] * half
        return Gaits.decode(numbers + change, self.trials.home, self._frequency)

    def generation(self) -> dict[str, float]:
        """Take a step; returns the mean reward per second of the gaits around."""
        pairs, sigma = self.args.pairs, self.args.sigma
        size = len(self._numbers) // (2 if self.mixed else 1)
        way, contexts = self._rng.standard_normal((pairs, size)), np.zeros(pairs)
        both, change = self._numbers[None].repeat(2 * pairs, 0), sigma * np.concatenate((way, -way))

        def around(context: Tensor | None) -> Gaits:
            if context is not None:
                contexts[:] = context[:pairs].numpy()
            return self.decode(both, context, change)

        reward = self.trials.run(around, pairs)
        gained = (reward[:pairs] - reward[pairs:]).double().numpy()
        gained = gained.clip(*np.quantile(gained, [OUTLIERS, 1 - OUTLIERS]))
        slope = gained[:, None] * way / (2 * sigma)
        gradient = slope.mean(0)
        if self.mixed:  # of the half difference, in units in which contexts spread by 1
            gradient = np.concatenate(
                (gradient, (slope * contexts[:, None]).mean(0) / max(contexts.std(), 1e-6))
            )
        self._generation += 1
        self._momentum = MOMENTUM * self._momentum + (1 - MOMENTUM) * gradient
        self._numbers = self._numbers + self.args.step * self._momentum / (
            1 - MOMENTUM**self._generation
        )
        return {"around": float(reward.mean())}
