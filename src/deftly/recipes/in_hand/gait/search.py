"""Searches for gaits: CMA-ES from scratch, over strokes where a task has them, and evolution strategies from a gait."""

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

from deftly.config import INPUT_FILE, EnvConfig, PPOConfig, Settings, SimConfig, Suffix, TaskConfig
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.recipes.in_hand.gait.gaits import SCALE, Gaits
from deftly.recipes.in_hand.gait.strokes import TipPaths
from deftly.recipes.in_hand.protocol import context, strokes
from deftly.tasks import Task

MOMENTUM = 0.9
"""Of the estimated gradient, over generations."""
OUTLIERS = 0.03
"""Fraction of the differences of reward, at each end, that are clipped."""
FREQUENCY = 0.65
"""Of a search from scratch, Hz."""
STROKES_STD = 1.0
"""Initial standard deviation of a search over strokes."""
HOME_STD = 0.5
"""Likewise of one from standing still at home."""
SETTLE_S = 1.0
"""Time in which a robot reaches its gait before it is judged, s."""


@dataclass(frozen=True)
class GaitSettings(Settings):
    """Settings of the search for a gait and of its cloning into a policy."""

    sim: Annotated[SimConfig, Doc("The physics engine.")] = field(default_factory=SimConfig)
    task: Annotated[TaskConfig, Doc("The task's own settings.")] = field(default_factory=TaskConfig)
    train: Annotated[
        PPOConfig, Doc("The network, as in the training that follows; and the seed.")
    ] = field(default_factory=PPOConfig)
    gait: Annotated[
        Path | None,
        Suffix(".npz"),
        INPUT_FILE,
        Doc("Go on from this gait.npz instead of searching from scratch."),
    ] = None
    generations: Annotated[int, Ge(0), Doc("Generations of CMA-ES from scratch.")] = 80
    population: Annotated[int, Ge(4), Doc("Candidates of a generation.")] = 32
    trials: Annotated[int, Ge(1), Doc("Randomized robots on which each candidate is tried.")] = 3
    ascent: Annotated[
        int,
        Ge(0),
        Doc("Steps of evolution strategies from the gait found or given; 0 leaves it as it is."),
    ] = 100
    pairs: Annotated[
        int,
        Ge(1),
        Doc(
            "Antithetic pairs of a step: a robot each, which tries a perturbation and its opposite."
        ),
    ] = 192
    sigma: Annotated[float, Gt(0), Doc("Standard deviation of the perturbations.")] = 0.15
    step: Annotated[float, Gt(0), Doc("Step size along the estimated gradient.")] = 0.6
    seconds: Annotated[
        float, Gt(0), Doc("Time over which each trial is judged, s, after a second of settling.")
    ] = 8.0
    loss: Annotated[float, Ge(0), Doc("Penalty of a lost trial, in reward.")] = 5.0
    frequency: Annotated[
        float | None,
        Gt(0),
        Doc("Of the gait, Hz; unset: 0.65, or what the gait given has. The search keeps it."),
    ] = None
    rounds: Annotated[
        int,
        Ge(1),
        Doc("Rounds of DAgger; in each, the student drives a larger fraction of the robots."),
    ] = 10
    std: Annotated[float, Gt(0), Doc("Exploration noise that the student starts with.")] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.generations and not self.gait:
            raise DeftlyError("--generations 0 goes on from a gait: give it, --gait RUN/gait.npz")


class Trials:
    """Rollouts of gaits on a task's randomized robots."""

    def __init__(self, task: Task, args: GaitSettings, num_envs: int):
        contract = task.contract()
        acts = contract.act_terms
        all_joints = len(acts) == 1 and acts[0].joints == contract.joint_names
        if not all_joints or acts[0].kind != "delta":
            raise DeftlyError(
                f"{task.name}: a gait is searched for tasks whose actions are deltas of all joints alone"
            )
        self.args = args
        self.delta = torch.tensor(acts[0].scale)
        env_config = EnvConfig(num_envs=num_envs, noise=False)
        self.env = Env(task, env_config, args.sim, args.train.seed, "gait")
        self.env.auto_reset = False
        self.home = torch.tensor(self.env.contract.home())

    @torch.no_grad()
    def run(self, gaits: Callable[[Tensor | None], Gaits], robots: int) -> Tensor:
        """Try a gait in each environment: its reward per second, `(num_envs,)`; once lost it earns no more.

        `gaits` makes them of the contexts. So many different robots are drawn anew, and repeated.
        """
        env = self.env
        env.reset()
        self._repeat_robots(robots)
        gait = gaits(context(env.task, env.state))
        env.task.curriculum(env.state, {"success": 0.0})
        rate = env.contract.rate
        settle = round(SETTLE_S * rate)
        running = torch.ones(env.num_envs, dtype=torch.bool)
        earned = torch.zeros(env.num_envs)
        for k in range(settle + round(self.args.seconds * rate)):
            judged = k >= settle
            judged_steps = max(0, k - settle)
            phase = 2 * math.pi * gait.frequency * judged_steps / rate
            change = gait.targets(phase) - env.state.command
            step = env.step(change / self.delta)
            lost = running & step.terminated & judged
            earned += step.reward * running * judged
            earned -= self.args.loss * lost
            running &= ~step.terminated
        return earned / self.args.seconds

    def _repeat_robots(self, count: int) -> None:
        """Give all environments the states of the first `count`, in turn."""
        rows = torch.arange(self.env.num_envs) % count
        state = self.env.state_dict()
        for name, value in state.items():
            shared = name.startswith(("generator", "scale/"))
            if not shared:
                state[name] = value[rows]
        self.env.load_state_dict(state)


class CMASearch:
    """CMA-ES (Hansen 2016, arXiv:1604.00772) from scratch.

    All candidates of a generation meet the same robots, and each generation meets others. Candidates are parameters of
    strokes, or of the joints themselves where the task has no strokes.
    """

    def __init__(self, task: Task, args: GaitSettings):
        import cma

        self.args = args
        gaits = args.population + 1  # and the mean
        self.trials = Trials(task, args, gaits * args.trials)
        self.env = self.trials.env
        frequency = args.frequency or FREQUENCY
        own = strokes(task)
        if own:
            paths = TipPaths(task, own, self.env.contract, frequency, args.sim.threads)
            self.gaits = paths.gaits
            size = paths.size
            std = STROKES_STD
        else:
            self.gaits = self._near_home
            size = len(SCALE) * len(self.trials.home)
            std = HOME_STD
        options = {
            "popsize": args.population,
            "seed": args.train.seed + 1,
            "verbose": -9,
            "CMA_diagonal": not own,
        }
        self._cma = cma.CMAEvolutionStrategy(np.zeros(size), std, options)

    @property
    def best(self) -> Gaits:
        """The gait at the mean of the search distribution."""
        return self.gaits(np.asarray(self._cma.mean)[None])

    def generation(self) -> dict[str, float]:
        """Try a population; returns the reward per second of the search distribution's mean and of the candidates."""
        candidates = self._cma.ask()
        tried = np.array([*candidates, self._cma.mean])
        rewards = self.rewards(tried)
        population = rewards[:-1]
        self._cma.tell(candidates, (-population).tolist())
        return {
            "middle": float(rewards[-1]),
            "mean": float(population.mean()),
            "best": float(population.max()),
        }

    def rewards(self, parameters: np.ndarray) -> Tensor:
        """Mean reward per second of each row's gait over its trials, `(n,)`."""
        trials = self.args.trials
        gaits = self.gaits(parameters).repeat(trials)
        rewards = self.trials.run(lambda _: gaits, trials)
        return rewards.view(-1, trials).mean(1)

    def _near_home(self, parameters: np.ndarray) -> Gaits:
        return Gaits.decode(parameters, self.trials.home, self.args.frequency or FREQUENCY)


class EvolutionStrategy:
    """Evolution strategies with antithetic sampling (Salimans et al. 2017, arXiv:1703.03864) from a gait.

    Each pair of opposite perturbations is tried on the same robot. The gradient of a single pair is mostly noise; the
    mean of all, and of generations, is not. Where the task has a context by which gaits may differ, there are two of
    them, for its least and its greatest, mixed in between.
    """

    def __init__(self, task: Task, args: GaitSettings, gait: Gaits):
        self.args = args
        self.trials = Trials(task, args, 2 * args.pairs)
        self.env = self.trials.env
        self.mixed = context(task, self.env.state) is not None
        self._frequency = float(gait.timed(args.frequency).frequency[0])
        self._parameters = self.encode(gait)
        self._momentum = np.zeros_like(self._parameters)
        self._rng = np.random.default_rng(args.train.seed)
        self._generation = 0

    @property
    def best(self) -> Gaits:
        """The gait reached, or the two that are mixed."""
        contexts = torch.tensor([-1.0, 1.0] if self.mixed else [0.0])
        parameters = self._parameters[None].repeat(len(contexts), 0)
        return self.decode(parameters, contexts)

    def encode(self, gait: Gaits) -> np.ndarray:
        """Parameters of the gait at context 0 and, if gaits are mixed, half the difference of the ends."""
        vectors = gait.encode(self.trials.home)
        middle = (vectors[0] + vectors[-1]) / 2
        half_difference = (vectors[-1] - vectors[0]) / 2
        return np.concatenate((middle, half_difference)) if self.mixed else middle

    def decode(
        self,
        parameters: np.ndarray,
        context: Tensor | None,
        perturbation: np.ndarray | float = 0.0,
    ) -> Gaits:
        """A gait for each row of parameters, and its context; its own vector perturbed by so much."""
        if self.mixed and context is not None:
            middle, half_difference = np.split(parameters, 2, 1)
            weight = context.double().numpy()[:, None]
            parameters = middle + weight * half_difference
        return Gaits.decode(parameters + perturbation, self.trials.home, self._frequency)

    def generation(self) -> dict[str, float]:
        """Take a step; returns the mean reward per second of the perturbed gaits."""
        directions = self._rng.standard_normal((self.args.pairs, self._num_directions()))
        rewards, contexts = self._antithetic_rewards(directions)
        gradient = self._gradient(rewards, directions, contexts)
        self._generation += 1
        new = (1 - MOMENTUM) * gradient
        self._momentum = MOMENTUM * self._momentum + new
        bias_correction = 1 - MOMENTUM**self._generation
        step = self.args.step * self._momentum / bias_correction
        self._parameters = self._parameters + step
        return {"around": float(rewards.mean())}

    def _num_directions(self) -> int:
        """Size of the vector of one gait."""
        return len(self._parameters) // 2 if self.mixed else len(self._parameters)

    def _antithetic_rewards(self, directions: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Reward per second of the gaits perturbed along the directions, (2, pairs): there, and the opposite way.

        And the context of each pair, (pairs,); 0 if there is none.
        """
        pairs = len(directions)
        contexts = np.zeros(pairs)
        parameters = self._parameters[None].repeat(2 * pairs, 0)
        both_ways = np.concatenate((directions, -directions))
        perturbation = self.args.sigma * both_ways

        def gaits(context: Tensor | None) -> Gaits:
            if context is not None:
                contexts[:] = context[:pairs].numpy()
            return self.decode(parameters, context, perturbation)

        rewards = self.trials.run(gaits, pairs)
        return rewards.view(2, pairs), contexts

    def _gradient(
        self, rewards: Tensor, directions: np.ndarray, contexts: np.ndarray
    ) -> np.ndarray:
        """Estimated gradient of the reward by the parameters, from rewards (2, pairs) along directions."""
        difference = (rewards[0] - rewards[1]).double().numpy()
        low, high = np.quantile(difference, [OUTLIERS, 1 - OUTLIERS])
        difference = difference.clip(low, high)
        slopes = difference[:, None] * directions / (2 * self.args.sigma)
        middle = slopes.mean(0)
        if not self.mixed:
            return middle
        # by the half difference, in units in which contexts have a standard deviation of 1
        weighted = slopes * contexts[:, None]
        half_difference = weighted.mean(0) / max(contexts.std(), 1e-6)
        return np.concatenate((middle, half_difference))
