"""`deftly gait TASK`: a periodic movement that earns reward, found without a gradient, and a policy that makes it.

Exploration by noise seldom finds how fingers take turns, and on a few cores there is no time to wait for luck. A search
over gaits, in which each joint follows two harmonics of one frequency, finds a first one in minutes: CMA-ES on the
task's own reward, each candidate tried on several randomized hands. Halfway, the fingers of the gait found are tried at
other phases, since a search of small steps does not find how fingers take turns. Where a task names a figure by which a
gait may differ (`Task.context`: the size of what is held), two gaits are sought from then on, for its least and its
greatest, and mixed in between. Near a good gait chance decides more than a small change does, and CMA-ES wanders; from
there `--optimizer ascent` follows an estimate of the gradient, slowly. A network then learns to make the gait from what
a policy sees. The figure is not part of that: the policy has to feel it. `deftly train TASK --init RUN` goes on from
there.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from deftly import robots, runs
from deftly.config import EnvConfig, PPOConfig, RunsConfig, SimConfig, TaskConfig, parse, split_task, to_yaml, with_task
from deftly.contract import Contract
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.learn import checkpoint
from deftly.learn.ppo import PPO
from deftly.rollout import VALIDATE, run_episodes
from deftly.sim.render import whole
from deftly.tasks import Task, load

SCHEMA = "deftly.gait/2"
SPREAD = (0.15, 0.15, 0.15, 0.05, 0.05)  # of the first candidates, rad: centre, sine and cosine, their second harmonic
LOG_FREQUENCY = 0.3  # likewise, of the logarithm of a frequency in Hz
ROUND_STEPS, ROUND_BATCHES, LAST = 100, 400, 3  # control and gradient steps of a round of cloning; the last has thrice
CLONE_RATE = 1e-3, 1e-5  # step size of Adam, and to where it falls in the last round
REFINE = 0.15  # sigma of a search that goes on from a gait
MOMENTUM = 0.9  # of the estimated gradient, over generations
OUTLIERS = 0.03  # share of the differences of reward, at each end, that count no more than the next
OVERSHOOT = 1.3  # of what is learned where a command moves at its top speed: a mean of near misses would be slow
CONTEXTS = 9  # values of a task's context, of whose gaits the nearest is cloned
CYCLES = 20  # of which the first is left out: periods at which a cloned gait is looked at


@dataclass(frozen=True)
class GaitArgs:
    """Search for a gait and clone it into a policy: `deftly gait TASK`."""

    sim: SimConfig = field(default_factory=SimConfig)  # The physics engine.
    task: TaskConfig = field(default_factory=TaskConfig)  # The task's own figures.
    train: PPOConfig = field(default_factory=PPOConfig)  # The network, as in the training that follows; and the seed.
    runs: RunsConfig = field(default_factory=RunsConfig)  # Where runs are kept.
    gait: Path | None = None  # Start from this gait.npz instead of standing still.
    optimizer: Literal["cma", "ascent"] = "cma"  # To find a gait; to improve one that is good.
    generations: int = 80  # Generations of the search; 0 only clones the gait given.
    phases: int = 6  # Halfway, each finger (branch of the robot) is tried at so many phases; 1: as it is.
    population: int = 48  # Candidates of a generation.
    trials: int = 8  # Randomized hands on which each is tried.
    seconds: float = 12.0  # How long each trial is judged, s, after a second of getting there.
    loss: float = 3.0  # Reward that a lost trial is worth less.
    frequency: float = 0.6  # Frequency of the first candidates, Hz.
    sigma: float | None = None  # How far (first) candidates are spread; unset: 0.5, and 0.12 for ascent.
    step: float = 0.5  # How far ascent goes along the gradient in a generation.
    rounds: int = 10  # Rounds of cloning; in each, the policy drives a larger share of the hands.
    std: float = 0.2  # Exploration noise that the cloned policy starts with.
    name: str | None = "gait"  # A word for the name of the run's folder.

    def __post_init__(self) -> None:
        for name, least in (("generations", 0), ("phases", 1), ("population", 4), ("trials", 1), ("rounds", 1)):
            if getattr(self, name) < least:
                raise DeftlyError(f"{name} is {getattr(self, name)}, but it must be {least} or more")
        if not self.generations and not self.gait:
            raise DeftlyError("--generations 0 clones a gait: give it, --gait RUN/gait.npz")
        if not all(x > 0 for x in (self.seconds, self.frequency, self.spread, self.step, self.std)):
            raise DeftlyError("seconds, frequency, sigma, step and std must be above 0")

    @property
    def spread(self) -> float:
        """Sigma, or its default."""
        return {"cma": 0.5, "ascent": 0.12}[self.optimizer] if self.sigma is None else self.sigma


@dataclass(frozen=True)
class Gaits:
    """Several gaits side by side: joint targets are a centre and two harmonics of the phase, rad."""

    frequency: Tensor  # (n,) Hz
    shape: Tensor  # (n, 5, num_joints): centre; sine and cosine of the phase, then of twice the phase

    @classmethod
    def decode(cls, numbers: np.ndarray, home: Tensor, frequency: float) -> Gaits:
        """Gaits of vectors `(n, 1 + 5 * num_joints)` near zero; zero stands at home."""
        x = torch.from_numpy(np.asarray(numbers)).float()
        shape = torch.tensor(SPREAD)[:, None] * x[:, 1:].reshape(len(x), len(SPREAD), -1)
        shape[:, 0] += home
        return cls(frequency * torch.exp(LOG_FREQUENCY * x[:, 0]), shape)

    def encode(self, home: Tensor, frequency: float) -> np.ndarray:
        """The inverse of `decode`."""
        shape = self.shape.clone()
        shape[:, 0] -= home
        first = torch.log(self.frequency / frequency)[:, None] / LOG_FREQUENCY
        return torch.cat((first, (shape / torch.tensor(SPREAD)[:, None]).flatten(1)), 1).double().numpy()

    def targets(self, phase: Tensor) -> Tensor:
        """Joint targets `(n, num_joints)` at phases `(n,)`, rad."""
        waves = torch.stack(
            (torch.ones_like(phase), phase.sin(), phase.cos(), (2 * phase).sin(), (2 * phase).cos()), -1
        )
        return (self.shape * waves[..., None]).sum(1)

    def ahead(self, phases: Tensor) -> Gaits:
        """The same gaits with each joint ahead by its phase (num_joints,), rad."""
        shape = self.shape.clone()
        for harmonic in (1, 2):
            sine, cosine = self.shape[:, 2 * harmonic - 1], self.shape[:, 2 * harmonic]
            c, s = (harmonic * phases).cos(), (harmonic * phases).sin()
            shape[:, 2 * harmonic - 1], shape[:, 2 * harmonic] = c * sine - s * cosine, s * sine + c * cosine
        return Gaits(self.frequency, shape)

    def at(self, context: Tensor) -> Gaits:
        """A mixture for each context (n,): the first gait at -1, the last at 1."""
        part = (1 + context) / 2
        frequency = self.frequency[0] ** (1 - part) * self.frequency[-1] ** part
        return Gaits(frequency, torch.lerp(self.shape[0], self.shape[-1], part[:, None, None]))

    def cycle(self, contract: Contract) -> tuple[Tensor, Tensor]:
        """Commands (m, num_joints) through which the first gait goes, each with the one after it, rad.

        They are not its targets: an action changes a command by so much and no more.
        """
        delta = torch.tensor(contract.act_terms[0].scale)
        lower, upper = torch.tensor([(j.lower, j.upper) for j in contract.joints]).T
        period = float(contract.rate / self.frequency[0])
        command, seen = self.targets(torch.zeros_like(self.frequency))[:1], []
        for k in range(round(CYCLES * period)):
            wanted = self.targets(2 * math.pi * k / period * torch.ones_like(self.frequency))[:1]
            command = (command + (wanted - command).clip(-delta, delta)).clip(lower, upper)
            seen.append(command)
        settled = torch.cat(seen)[round(period) :]
        return settled[:-1], settled[1:]

    def save(self, path: Path, task: Task) -> None:
        """Write the gaits whole or not at all."""
        names = np.array(task.contract().joint_names)
        parts = {name: value.numpy() for name, value in vars(self).items()}
        with whole(path) as scratch, scratch.open("wb") as file:
            np.savez(file, schema=SCHEMA, task=task.name, joint_names=names, **parts)

    @classmethod
    def load(cls, path: Path, task: Task) -> Gaits:
        """Read what `save` wrote. Raises DeftlyError if it is no gait of this task's joints."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in ("schema", "joint_names", *cls.__dataclass_fields__)}
        except Exception as error:  # numpy and zipfile raise many kinds
            reason = " ".join(str(error).split())[:100]
            raise DeftlyError(f"{path} is no gait ({reason}): give the gait.npz of a run of 'deftly gait'") from None
        if str(found["schema"]) != SCHEMA or [*map(str, found["joint_names"])] != [*task.contract().joint_names]:
            raise DeftlyError(f"{path} is no gait of this task's joints: search for one, deftly gait {task.name}")
        gait = cls(*(torch.from_numpy(found[name]).float() for name in cls.__dataclass_fields__))
        if len(gait.frequency) not in (1, 2) or gait.shape.shape != (
            *gait.frequency.shape,
            len(SPREAD),
            len(found["joint_names"]),
        ):
            raise DeftlyError(f"{path} is corrupt: its shape has the size {tuple(gait.shape.shape)}")
        return gait


class Trials:
    """Gaits are tried on a task's randomized robots. Numbers stand for a gait, or for two that are mixed."""

    def __init__(self, task: Task, args: GaitArgs, num_envs: int):
        acts = task.contract().act_terms
        if len(acts) != 1 or acts[0].kind != "delta" or acts[0].joints != task.contract().joint_names:
            raise DeftlyError(f"{task.name}: a gait is searched for tasks whose actions are deltas of all joints alone")
        self.args, self.delta = args, torch.tensor(acts[0].scale)
        self.env = Env(task, EnvConfig(num_envs=num_envs, noise=False), args.sim, args.train.seed, "gait")
        self.env.auto_reset = False
        self.home = torch.tensor(self.env.contract.home())
        self.mixed = bool(args.gait) and self.mixable
        still = torch.cat((self.home[None], torch.zeros(len(SPREAD) - 1, len(self.home))))[None]
        known = Gaits.load(args.gait, task) if args.gait else Gaits(torch.tensor([args.frequency]), still)
        self.first = self.encode(known)
        """Numbers of the gait from which to start."""

    @property
    def mixable(self) -> bool:
        """Whether the task has a context by which gaits may differ."""
        return self.env.task.context(self.env.state) is not None

    def encode(self, gait: Gaits) -> np.ndarray:
        """Numbers of the gait at context 0 and, if gaits are mixed, half of what the ends differ."""
        numbers = gait.encode(self.home, self.args.frequency)
        middle, half = (numbers[0] + numbers[-1]) / 2, (numbers[-1] - numbers[0]) / 2
        return np.concatenate((middle, half)) if self.mixed else middle

    def decode(self, numbers: np.ndarray, context: Tensor | None, change: np.ndarray | float = 0.0) -> Gaits:
        """A gait for each row of numbers, and its context; its own numbers changed by so much."""
        if self.mixed and context is not None:
            middle, half = np.split(numbers, 2, 1)
            numbers = middle + context.double().numpy()[:, None] * half
        return Gaits.decode(numbers + change, self.home, self.args.frequency)

    def ends(self, numbers: np.ndarray) -> Gaits:
        """The gait of these numbers; two, for contexts -1 and 1, if they are mixed."""
        contexts = torch.tensor([-1.0, 1.0] if self.mixed else [0.0])
        return self.decode(numbers[None].repeat(len(contexts), 0), contexts)

    @torch.no_grad()
    def run(self, gaits: Callable[[Tensor | None], Gaits], robots: int) -> Tensor:
        """Try a gait in each environment: its reward per second, `(num_envs,)`; once lost it earns no more.

        `gaits` makes them of the contexts. So many different robots are drawn anew, and repeated.
        """
        env, args = self.env, self.args
        env.reset()
        rows = torch.arange(env.num_envs) % robots
        drawn = env.state_dict().items()
        env.load_state_dict({k: v if k.startswith(("generator", "scale/")) else v[rows] for k, v in drawn})
        each = gaits(env.task.context(env.state))
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
    """CMA-ES over gaits: all of a generation meet the same robots, and each generation meets others."""

    def __init__(self, task: Task, args: GaitArgs):
        self.args, self.trials = args, Trials(task, args, (args.population + 1) * args.trials)
        self.env = self.trials.env
        self._begin(self.trials.first, args.spread)

    def _begin(self, start: np.ndarray, sigma: float) -> None:
        import cma

        options = {"popsize": self.args.population, "CMA_diagonal": True, "verbose": -9}
        self._cma = cma.CMAEvolutionStrategy(start, sigma, {**options, "seed": self.args.train.seed + 1})

    @property
    def best(self) -> Gaits:
        """The gait in the middle of the search, or the two that are mixed."""
        return self.trials.ends(np.asarray(self._cma.mean))

    def generation(self) -> dict[str, float]:
        """Try a population; returns the reward per second of the gait in its middle and of the best candidate."""
        numbers = self._cma.ask()
        reward = self._try(np.array([*numbers, self._cma.mean]))
        self._cma.tell(numbers, (-reward[:-1]).tolist())
        return {"middle": float(reward[-1]), "best": float(reward[:-1].max())}

    def mix(self) -> None:
        """Seek two gaits from now on, if the task has a context by which they may differ."""
        if self.trials.mixable and not self.trials.mixed:
            gait, self.trials.mixed = self.best, True
            self._begin(self.trials.encode(gait), REFINE)

    def take_turns(self) -> tuple[float, float]:
        """Try the branches of the robot (fingers) at other phases, and go on from the best.

        Returns the reward per second of the gait as it was, and as it is.
        """
        gait, args, names = self.best, self.args, self.env.contract.joint_names
        columns = [[names.index(name) for name in branch] for branch in robots.branches(robots.of(self.env.task))]
        turns = [*itertools.product(range(args.phases), repeat=len(columns) - 1)]
        phases = torch.zeros(len(turns), len(names))
        for i, branch in enumerate(columns[1:]):  # of which only those to the first matter
            phases[:, branch] = torch.tensor(turns)[:, i, None] * 2 * math.pi / args.phases
        numbers, each = np.stack([self.trials.encode(gait.ahead(phase)) for phase in phases]), args.population + 1
        rewards = []
        for first in range(0, len(numbers), each):
            self.env.seed(args.train.seed)  # the same robots for all
            part = numbers[first : first + each]
            rewards.append(self._try(np.resize(part, (each, numbers.shape[1])))[: len(part)])
        reward = torch.cat(rewards)
        best = int(reward.argmax())
        if best:  # else the search goes on as it was
            self._begin(numbers[best], REFINE)
        return float(reward[0]), float(reward[best])

    def _try(self, numbers: np.ndarray) -> Tensor:
        """Mean reward per second of each row's gait over its trials, `(n,)`."""
        each = numbers.repeat(self.args.trials, 0)
        reward = self.trials.run(lambda context: self.trials.decode(each, context), self.args.trials)
        return reward.view(-1, self.args.trials).mean(1)


class Ascent:
    """Steps along an estimate of the gradient: gaits are tried in pairs, changed this way and that, on a robot a pair.

    A single pair tells next to nothing. Their mean, and that over generations, tells enough.
    """

    def __init__(self, task: Task, args: GaitArgs):
        self.args, self._pairs = args, args.population * args.trials // 2
        self.trials = Trials(task, args, 2 * self._pairs)
        self.env, self._numbers = self.trials.env, self.trials.first
        self._rng, self._generation = np.random.default_rng(args.train.seed), 0
        self._momentum = np.zeros_like(self._numbers)

    @property
    def best(self) -> Gaits:
        """The gait reached, or the two that are mixed."""
        return self.trials.ends(self._numbers)

    def generation(self) -> dict[str, float]:
        """Take a step; returns the mean reward per second of the gaits around."""
        size = len(self._numbers) // (2 if self.trials.mixed else 1)
        way, contexts = self._rng.standard_normal((self._pairs, size)), np.zeros(self._pairs)
        both, change = self._numbers[None].repeat(2 * self._pairs, 0), self.args.spread * np.concatenate((way, -way))

        def around(context: Tensor | None) -> Gaits:
            if context is not None:
                contexts[:] = context[: self._pairs].numpy()
            return self.trials.decode(both, context, change)

        reward = self.trials.run(around, self._pairs)
        gained = (reward[: self._pairs] - reward[self._pairs :]).double().numpy()
        gained = gained.clip(*np.quantile(gained, [OUTLIERS, 1 - OUTLIERS]))
        slope = gained[:, None] * way / (2 * self.args.spread)
        gradient = slope.mean(0)
        if self.trials.mixed:  # of the half difference, in units in which contexts spread by 1
            gradient = np.concatenate((gradient, (slope * contexts[:, None]).mean(0) / max(contexts.std(), 1e-6)))
        self._generation += 1
        self._momentum = MOMENTUM * self._momentum + (1 - MOMENTUM) * gradient
        self._numbers = self._numbers + self.args.step * self._momentum / (1 - MOMENTUM**self._generation)
        return {"around": float(reward.mean())}


def clone(task: Task, gait: Gaits, args: GaitArgs) -> PPO:
    """A policy that makes the gait wherever its command is near the cycle: round by round, it drives more itself.

    Where gaits differ by a context, those that it does not drive follow the gait of another context than their own.
    Else their commands would tell the context, and the policy would learn to read it there, where it finds but its own
    belief later, rather than to feel it.
    """
    env = Env(task, EnvConfig(num_envs=256), args.sim, args.train.seed, "gait/clone")
    env.stagger()
    learner = PPO(env, replace(args.train, init_std=args.std))
    actor, delta = learner.actor, torch.tensor(env.contract.act_terms[0].scale)
    grid = torch.linspace(-1.0, 1.0, CONTEXTS if len(gait.frequency) > 1 else 1)
    cycles = [gait.at(context[None]).cycle(env.contract) for context in grid]
    optimizer = torch.optim.Adam(actor.parameters(), lr=CLONE_RATE[0])
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, CLONE_RATE[1] / CLONE_RATE[0], LAST * ROUND_BATCHES)
    seen: list[Tensor] = []
    labels: list[Tensor] = []
    for turn in range(args.rounds):
        with torch.no_grad():
            other = 2 * torch.rand(env.num_envs) - 1
            for _ in range(ROUND_STEPS):
                obs: Any = {"policy": env.obs["policy"].clone()}
                here, own = env.state.command, task.context(env.state)
                label, drive = (
                    ((_goals(here, context, grid, cycles) - here) / delta).clip(-1.0, 1.0)
                    for context in (other if own is None else own, other)
                )
                label *= torch.where(label.abs() > 0.95, OVERSHOOT, 1.0)
                seen.append(obs["policy"])
                labels.append(label)
                actor.update_normalization(obs)
                pupil = torch.rand(env.num_envs, 1) < turn / args.rounds
                env.step(torch.where(pupil, actor(obs), drive) + args.std * torch.randn(label.shape))
        inputs, wanted = torch.cat(seen), torch.cat(labels)
        last = turn == args.rounds - 1
        for _ in range(ROUND_BATCHES * (LAST if last else 1)):
            rows = torch.randint(len(inputs), (1024,))
            optimizer.zero_grad()
            (actor({"policy": inputs[rows]}) - wanted[rows]).square().mean().backward()
            optimizer.step()
            if last:
                falling.step()
    return learner


def _goals(command: Tensor, context: Tensor, grid: Tensor, cycles: list[tuple[Tensor, Tensor]]) -> Tensor:
    """What follows each command, (n, num_joints), on the cycle of the value of `grid` that is next to its context."""
    which, goals = (context[:, None] - grid).abs().argmin(-1), torch.empty_like(command)
    for i, (cycle, after) in enumerate(cycles):
        rows = which == i
        goals[rows] = after[torch.cdist(command[rows], cycle).argmin(-1)]
    return goals


def main(argv: list[str]) -> int:
    """Run `deftly gait`."""
    name, rest = split_task(argv)
    if name is None:
        parse(GaitArgs, rest, prog="deftly gait TASK")
        raise DeftlyError("a gait for which task? deftly gait TASK; 'deftly tasks' lists them")
    cls: Any = load(name)
    defaults = {section: cls.defaults[section] for section in ("sim", "train") if section in cls.defaults}
    args = parse(with_task(GaitArgs, cls.Config), rest, prog=f"deftly gait {name}", filed=defaults)
    task, console = cls(args.task), Console()
    search = Search(task, args) if args.optimizer == "cma" else Ascent(task, args)
    start = time.perf_counter()
    run = runs.create(task.name, "train", args.runs, args.name)
    for generation in range(1, args.generations + 1):
        if isinstance(search, Search) and generation == args.generations // 2 + 1:
            if args.phases > 1:
                before, after = search.take_turns()
                console.print(f"fingers at other phases: reward {before:.3f}/s, now {after:.3f}/s", highlight=False)
            search.mix()
        rewards = ", ".join(f"{name} {value:.3f}/s" for name, value in search.generation().items())
        search.best.save(run / "gait.npz", task)
        steps = generation * search.env.num_envs * (args.seconds + 1) * search.env.contract.rate
        spent = f"{(time.perf_counter() - start) / 60:.1f} min, {steps / 1e6:.2f} M steps"
        console.print(f"generation {generation}: reward {rewards}, {spent}", highlight=False)
    gait = search.best
    gait.save(run / "gait.npz", task)
    learner = clone(task, gait, args)
    save(run, task, learner, args)
    which: dict[str, Any] = {"seed": args.train.seed, "purpose": VALIDATE, "sim_cfg": args.sim}
    values = run_episodes(task, checkpoint.Policy(learner.actor), 64, **which).values
    what = f", {task.headline} {values[task.headline].nanmean():.3f}" if task.headline else ""
    console.print(f"cloned: success {values['success'].mean():.1%} of 64 episodes{what}", highlight=False)
    console.print(f"go on with: deftly train {name} --init {run}", soft_wrap=True)
    return 0


def save(run: Path, task: Task, learner: PPO, args: GaitArgs) -> None:
    """A checkpoint of the cloned policy, from which training starts."""
    folder = run / "checkpoints" / "iter_000000"
    (run / checkpoint.CONFIG).write_text(to_yaml(args))
    contract = learner.env.contract
    checkpoint.save(folder, learner.models, contract, to_yaml(args), task.name, 0, {"success": -1.0}, None)
    for link in ("last", "best"):
        runs.link(folder.with_name(link), folder)
