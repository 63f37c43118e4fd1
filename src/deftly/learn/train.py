"""Train a task under given settings."""

import secrets
from dataclasses import replace

from deftly.config import TrainArgs
from deftly.learn import checkpoint
from deftly.learn.ppo import Ranks
from deftly.learn.trainer import Training
from deftly.tasks import load


def train(name: str, args: TrainArgs, source: checkpoint.Checkpoint | None = None) -> Training:
    """Train the task `name` (or task file) under `args`, resuming from `source` if given; returns what it came to."""
    task = load(name)(args.task)
    task.require()
    if source is not None:
        source.require(task)
    elif args.train.seed < 0:
        args = replace(args, train=replace(args.train, seed=secrets.randbelow(2**31)))
    training = Training(name, task, args, Ranks.join(), source)
    training.run_all()
    return training
