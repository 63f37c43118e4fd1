"""Behavioural cloning of a gait with DAgger (Ross et al. 2011, arXiv:1011.0686): a network makes it from observations.

The teacher is the gait, which knows the command and the context; the student is the policy's network, which sees what a
policy sees.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deftly.config import EnvConfig
from deftly.console import progress
from deftly.env import Env
from deftly.learn.networks import Normalizer
from deftly.learn.ppo import PPO
from deftly.recipes.in_hand.gait.gaits import Gaits
from deftly.recipes.in_hand.gait.search import GaitSettings
from deftly.recipes.in_hand.protocol import context
from deftly.tasks import Task

if TYPE_CHECKING:
    from deftly.learn.checkpoint import Checkpoint

NUM_ENVS = 256
ROUND_STEPS = 100
"""Control steps of a round."""
ROUND_BATCHES = 400
"""Gradient steps of a round."""
LAST = 3
"""Factor by which the last round has more gradient steps."""
BATCH = 1024
LEARNING_RATE = 1e-3
FINAL_LEARNING_RATE = 1e-5
"""Learning rate of Adam at the end of the last round, to which it falls linearly."""
SATURATED = 0.95
OVERSHOOT = 1.3
"""Factor of a label where the command moves at its top speed: a mean of near misses would be slow."""
RETURN = 0.3
"""Fraction of its way back to the cycle that a command is to go in a step."""
CONTEXTS = 9
"""Values of a task's context for which there is a cycle each; the nearest is the teacher."""


def clone(task: Task, gait: Gaits, args: GaitSettings, start: Checkpoint | None = None) -> PPO:
    """A policy that makes the gait wherever its command is near the cycle; round by round, the student drives more.

    It starts from the weights of `start` if given, say of a student of a similar gait; their normalizer then stays.

    Where gaits differ by a context, robots that the student does not drive follow the gait of another context than
    their own. Else their commands would reveal the context, and the student would learn to read it there, where later
    it finds but its own estimate, instead of from the joints' tracking errors.
    """
    env_config = EnvConfig(num_envs=NUM_ENVS)
    env = Env(task, env_config, args.sim, args.train.seed, "gait/clone")
    env.stagger()
    keep = args.train.keep_normalizer or start is not None
    ppo_config = replace(args.train, init_std=args.std, keep_normalizer=keep)
    learner = PPO(env, ppo_config)
    if start is not None:
        start.load_into(learner.networks)
    optimizer = torch.optim.Adam(learner.actor.parameters(), lr=LEARNING_RATE)
    last_steps = LAST * ROUND_BATCHES
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, FINAL_LEARNING_RATE / LEARNING_RATE, last_steps
    )
    dataset = _Dataset(learner, _Teacher(env, gait), args.std)
    for turn in range(args.rounds):
        dataset.collect(turn / args.rounds)
        observations, labels = dataset.tensors()
        last = turn == args.rounds - 1
        batches = range(last_steps if last else ROUND_BATCHES)
        for _ in progress(batches, f"cloning, round {turn + 1} of {args.rounds}"):
            rows = torch.randint(len(observations), (BATCH,))
            actions = learner.actor(observations[rows])
            loss = (actions - labels[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if last:
                schedule.step()
    return learner


class _Teacher:
    """The action of the gait of a context, wherever a command is."""

    def __init__(self, env: Env, gait: Gaits):
        self.env = env
        contract = env.contract
        self._delta = torch.tensor(contract.act_terms[0].scale)
        mixed = len(gait.frequency) > 1
        self._grid = torch.linspace(-1.0, 1.0, CONTEXTS if mixed else 1)
        gaits = [gait.at(value[None]) for value in self._grid]
        self._cycles = [one.cycle(contract) for one in gaits]

    def act(self, contexts: Tensor) -> Tensor:
        """Actions (num_envs, num_joints) of the gaits of contexts (num_envs,)."""
        command = self.env.state.command
        change = along_cycle(command, contexts, self._grid, self._cycles)
        return (change / self._delta).clip(-1.0, 1.0)


class _Dataset:
    """Observations and the teacher's actions, aggregated over rounds."""

    def __init__(self, student: PPO, teacher: _Teacher, std: float):
        self._student = student
        self._teacher = teacher
        self._std = std
        self._observations: list[Tensor] = []
        self._labels: list[Tensor] = []

    @torch.no_grad()
    def collect(self, fraction: float) -> None:
        """Add a round in which the student drives a fraction of the robots, drawn anew in each step."""
        env = self._teacher.env
        actor = self._student.actor
        normalizer = actor.normalizer
        assert isinstance(normalizer, Normalizer)
        other = 2 * torch.rand(env.num_envs) - 1
        for _ in range(ROUND_STEPS):
            observation = actor.gather(env.obs).clone()
            own = context(env.task, env.state)
            label = self._teacher.act(other if own is None else own)
            saturated = label.abs() > SATURATED
            label *= torch.where(saturated, OVERSHOOT, 1.0)
            self._observations.append(observation)
            self._labels.append(label)
            if not self._student.settings.keep_normalizer:
                normalizer.update(observation, self._student.ranks)
            drives = torch.rand(env.num_envs, 1) < fraction
            student = actor(observation)
            teacher = self._teacher.act(other)
            action = torch.where(drives, student, teacher)
            noise = self._std * torch.randn(label.shape)
            env.step(action + noise)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Observations (samples, size), and labels (samples, num_joints)."""
        return torch.cat(self._observations), torch.cat(self._labels)


def along_cycle(
    command: Tensor, context: Tensor, grid: Tensor, cycles: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """How each command, (n, num_joints), goes on along the cycle, and back to it, rad.

    The cycle is that of the value of `grid` next to its context.
    """
    distance = (context[:, None] - grid).abs()
    which = distance.argmin(-1)
    change = torch.empty_like(command)
    for i, (cycle, after) in enumerate(cycles):
        rows = which == i
        own = command[rows]
        nearest = torch.cdist(own, cycle).argmin(-1)
        along = after[nearest] - cycle[nearest]
        back = RETURN * (cycle[nearest] - own)
        change[rows] = along + back
    return change
