"""`deftly train TASK`: from nothing to a trained policy, resumable at any time."""

import secrets
from dataclasses import dataclass, field, replace
from typing import Literal

from deftly import config, workspace
from deftly.config import EnvConfig, PPOConfig, RunsConfig, SimConfig, TaskConfig, parse, split_task, with_task
from deftly.errors import DeftlyError
from deftly.learn import checkpoint
from deftly.learn.ppo import Ranks
from deftly.learn.trainer import Training
from deftly.tasks import load


@dataclass(frozen=True)
class TrainArgs(config.Ranged):
    """Train a policy. Sections: sim, env, task, train, runs."""

    sim: SimConfig = field(default_factory=SimConfig)  # The physics engine.
    env: EnvConfig = field(default_factory=lambda: EnvConfig(num_envs=512))  # The batch of environments.
    task: TaskConfig = field(default_factory=TaskConfig)  # The task's own figures.
    train: PPOConfig = field(default_factory=PPOConfig)  # The learner.
    runs: RunsConfig = field(default_factory=RunsConfig)  # Where runs are kept.
    name: str | None = None  # A word for the name of the run's folder.
    resume: str | None = None  # Continue exactly where a run stopped: latest, a run, or a checkpoint folder.
    init: str | None = None  # Start from the weights of this checkpoint, also of another hand's; all else starts anew.
    until_success: float | None = None
    """Stop once evaluation says with 95 % confidence that this share of episodes succeeds (or all of them did)."""
    eval_every: int = 25  # Iterations between evaluations; 0 never evaluates.
    eval_episodes: int = 200  # Episodes of an evaluation, deterministic, on seeds that training never sees.
    save_every: int = 50  # Iterations between checkpoints.
    keep_checkpoints: int = 3  # Periodic checkpoints kept, besides the best.
    tensorboard: bool = True  # Write TensorBoard files into the run's folder.
    wandb: bool = False  # Log to Weights & Biases, if it is installed.
    log_level: Literal["debug", "info", "warning"] = "info"
    """What to print: every iteration, a live table (each tenth iteration without a terminal), or only problems."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.init:
            raise DeftlyError("--resume continues a run and --init starts a new one: give one of them")
        if self.env.device != "cpu":
            raise DeftlyError(f"env.device is {self.env.device}, but this Deftly simulates on the CPU: use cpu")


def main(argv: list[str]) -> int:
    """The command line of the stage."""
    name, rest = split_task(argv)
    if "test=true" in (low := [w.lower().removeprefix("training.") for w in rest]):
        from deftly.commands import play  # the seeds' way to test: `train task=... test=true`

        return play.main([*([name] if name else []), *(word for word, key in zip(rest, low) if key != "test=true")])
    if name is None:
        if {"-h", "--help"} & set(rest):
            parse(TrainArgs, rest, prog="deftly train TASK")
        raise DeftlyError("which task? `deftly train TASK`; `deftly tasks` lists them")
    task, prog, source = load(name), f"deftly train {name}", None
    args_type = with_task(TrainArgs, task.Config)
    args = parse(args_type, rest, prog=prog, filed=task.defaults)
    if args.init:
        args = replace(args, train=replace(args.train, keep_normalizer=True))
    if args.resume:
        source = checkpoint.load(workspace.find_checkpoint(args.resume, task.name, args.runs, "last"))
        args = parse(args_type, ["--config", str(source.path / checkpoint.CONFIG), *rest], prog=prog)
    return train(name, args, source).exit_code


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
