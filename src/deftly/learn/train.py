"""`deftly train TASK`: from nothing to a trained policy, resumable at any time."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_type_hints

from rich.console import Console

from deftly import config, workspace
from deftly.config import EnvConfig, PPOConfig, RunsConfig, SimConfig, TaskConfig, parse, split_task, to_yaml, with_task
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.files import write_text
from deftly.learn import checkpoint, log
from deftly.learn.learner import make_learner
from deftly.learn.ranks import Ranks
from deftly.learn.trainer import Callback, Trainer
from deftly.tasks import Task, load

if TYPE_CHECKING:
    from deftly.evaluate.validation import Validation


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
    if args.resume:
        source = checkpoint.load(workspace.find_checkpoint(args.resume, task.name, args.runs, "last"))
        for section in fields(args_type):
            source.require_settings(section.name, get_type_hints(args_type)[section.name])
        args = parse(args_type, ["--config", str(source.path / checkpoint.CONFIG), *rest], prog=prog)
        if source.iteration >= args.train.max_iterations:
            done = f"{source.path} is already at iteration {source.iteration} of {args.train.max_iterations}"
            print(f"{done}: nothing to do; go on with --train.max-iterations {2 * source.iteration}")
            return 0
    from deftly.evaluate.validation import Validation

    validation = Validation(
        task(args.task),
        args.env,
        args.sim,
        seed=max(args.train.seed, 0),
        every=args.eval_every,
        episodes=args.eval_episodes,
        until_success=args.until_success,
    )
    trainer = train(name, args, source, callbacks=[validation])
    if trainer.ranks.first and args.log_level != "warning":
        _farewell(name, trainer, validation)
    if trainer.stop_signal:
        return 128 + trainer.stop_signal
    return int(args.until_success is not None and not validation.reached)


def _farewell(name: str, trainer: Trainer, validation: Validation) -> None:
    if trainer.stop_signal:
        print(f"stopped and saved; go on with: deftly train {shlex.join([name, '--resume', str(trainer.run)])}")
    elif validation.reached:
        cost = f"{trainer.seconds / 60:.1f} minutes, {trainer.steps / 1e6:.2f} M steps"
        print(f"{100 * validation.success:.1f} % success over {validation.episodes} episodes after {cost}")
    elif validation.until_success is not None:
        print(f"stopped at iteration {trainer.iteration} below the wanted success: raise train.max-iterations")
    print(f"measure it: deftly eval {shlex.join([name, '--checkpoint', str(trainer.run)])}")


def train(
    name: str,
    args: TrainArgs,
    source: checkpoint.Checkpoint | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    writers: Sequence[log.Writer] = (),
) -> Trainer:
    """Train a task; returns the trainer, whose `run` is the folder of the run.

    Nothing is written before everything that can be refused was checked: a training that is refused leaves no run.

    Args:
        name: The task's name, or the file that defines it.
        args: All settings.
        source: A checkpoint whose run is continued.
        callbacks: Called after each iteration, such as a `deftly.evaluate.validation.Validation`.
        writers: Where metrics go besides the files of the run.
    """
    ranks = Ranks.join()
    task = load(name)(args.task)
    task.require()
    args, start = _checked(task, args, source, ranks)
    env = Env(task, args.env, _shared_threads(args.sim, ranks), args.train.seed, f"train/{ranks.rank}")
    env.stagger()
    learner = make_learner(env, args.train, ranks)
    if start is not None:
        start.load_into(learner.networks)
    with ExitStack() as stack:
        run = _run_folder(task, args, source, ranks)
        if ranks.first:
            stack.enter_context(workspace.lock(run))
        env.sim.dump_dir = run / "broken"
        settings = to_yaml(replace(args, resume=None, init=None))
        trainer = Trainer(
            env,
            learner,
            run,
            settings,
            ranks=ranks,
            callbacks=callbacks,
            max_iterations=args.train.max_iterations,
            save_every=args.save_every,
            keep_checkpoints=args.keep_checkpoints,
        )
        if source is not None:
            trainer.resume(source)
        if ranks.first:
            write_text(run / checkpoint.CONFIG, settings)
            trainer.writers = [*_files(trainer, args), *writers]
            for writer in trainer.writers:
                stack.callback(writer.close)
        trainer.train()
    return trainer


def _checked(
    task: Task, args: TrainArgs, source: checkpoint.Checkpoint | None, ranks: Ranks
) -> tuple[TrainArgs, checkpoint.Checkpoint | None]:
    """The settings with what is left open decided, and the checkpoint whose weights are taken over, if any."""
    if args.wandb:
        log.require_wandb()
    if source is not None:
        if source.path.parent.name != "checkpoints":
            raise DeftlyError(f"{source.path} is not in a run's folder: start from its weights with --init")
        source.require(task)
        return args, None
    learner = args.train
    if learner.seed < 0:
        learner = replace(learner, seed=int(ranks.share_text(str(secrets.randbelow(2**31)))))
    start = None
    if args.init:
        start = checkpoint.load(workspace.find_checkpoint(args.init, task.name, args.runs))
        start.require(task, any_robot=True)
        learner = replace(learner, keep_normalizer=True)  # a shifted input would be another policy
    return replace(args, train=learner), start


def _shared_threads(sim: SimConfig, ranks: Ranks) -> SimConfig:
    """The settings of the physics with the cores of this machine divided among its ranks."""
    if ranks.size == 1 or sim.threads:
        return sim
    return replace(sim, threads=max(1, len(os.sched_getaffinity(0)) // ranks.on_this_machine))


def _run_folder(task: Task, args: TrainArgs, source: checkpoint.Checkpoint | None, ranks: Ranks) -> Path:
    if source is not None:
        return source.path.parent.parent
    made = str(workspace.create(task.name, "train", args.runs, args.name)) if ranks.first else ""
    return Path(ranks.share_text(made))


def _files(trainer: Trainer, args: TrainArgs) -> Iterator[log.Writer]:
    """The writers that the settings ask for."""
    console = Console(quiet=args.log_level == "warning")
    console.print(f"run {trainer.run}", soft_wrap=True)
    yield log.metrics(trainer.run / "metrics.csv", trainer.columns, trainer.iteration)
    if args.tensorboard:
        yield log.tensorboard(trainer.run / "tensorboard", trainer.steps)
    if args.wandb:
        yield log.wandb(trainer.run, asdict(args))
    yield log.progress(console, trainer.env.task.name, trainer.max_iterations, args.log_level)
