"""A network that makes a gait from what a policy sees."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deftly.config import EnvConfig
from deftly.env import Env
from deftly.learn.networks import Normalizer
from deftly.learn.ppo import PPO
from deftly.recipes.in_hand.gait.gaits import Gaits
from deftly.recipes.in_hand.gait.search import GaitSettings
from deftly.recipes.in_hand.protocol import context
from deftly.tasks import Task

ROUND_STEPS, ROUND_BATCHES, LAST = (
    100,
    400,
    3,
)  # control and gradient steps of a round of cloning; the last has thrice
CLONE_RATE = 1e-3, 1e-5  # step size of Adam, and to where it falls in the last round
OVERSHOOT = 1.3  # of what is learned where a command moves at its top speed: a mean of near misses would be slow
BACK = 0.3  # share of its way back to the cycle that a command is to go in a step
CONTEXTS = 9  # values of a task's context, of whose gaits the nearest is cloned


def clone(task: Task, gait: Gaits, args: GaitSettings) -> PPO:
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
    cycles = [gait.at(value[None]).cycle(env.contract) for value in grid]
    normalizer = actor.normalizer
    assert isinstance(normalizer, Normalizer)
    optimizer = torch.optim.Adam(actor.parameters(), lr=CLONE_RATE[0])
    falling = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, CLONE_RATE[1] / CLONE_RATE[0], LAST * ROUND_BATCHES
    )
    seen: list[Tensor] = []
    labels: list[Tensor] = []
    for turn in range(args.rounds):
        with torch.no_grad():
            other = 2 * torch.rand(env.num_envs) - 1
            for _ in range(ROUND_STEPS):
                obs = actor.gather(env.obs).clone()
                here, own = env.state.command, context(task, env.state)
                label, drive = (
                    (_change(here, value, grid, cycles) / delta).clip(-1.0, 1.0)
                    for value in (other if own is None else own, other)
                )
                label *= torch.where(label.abs() > 0.95, OVERSHOOT, 1.0)
                seen.append(obs)
                labels.append(label)
                normalizer.update(obs, learner.ranks)
                pupil = torch.rand(env.num_envs, 1) < turn / args.rounds
                env.step(
                    torch.where(pupil, actor(obs), drive) + args.std * torch.randn(label.shape)
                )
        inputs, wanted = torch.cat(seen), torch.cat(labels)
        last = turn == args.rounds - 1
        for _ in range(ROUND_BATCHES * (LAST if last else 1)):
            rows = torch.randint(len(inputs), (1024,))
            optimizer.zero_grad()
            (actor(inputs[rows]) - wanted[rows]).square().mean().backward()
            optimizer.step()
            if last:
                falling.step()
    return learner


def _change(
    command: Tensor, context: Tensor, grid: Tensor, cycles: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """How each command, (n, num_joints), goes on along the cycle, and back to it.

    The cycle is that of the value of `grid` next to its context.
    """
    which, change = (context[:, None] - grid).abs().argmin(-1), torch.empty_like(command)
    for i, (cycle, after) in enumerate(cycles):
        rows = which == i
        nearest = torch.cdist(command[rows], cycle).argmin(-1)
        change[rows] = after[nearest] - cycle[nearest] + BACK * (cycle[nearest] - command[rows])
    return change
