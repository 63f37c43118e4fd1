"""Train a task under given settings, from nothing or from where a run stopped."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console

from deftly import workspace
from deftly.config import DistillConfig, SimConfig, TrainArgs, to_yaml
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.files import WriteError, write_text
from deftly.learn import checkpoint, custom_reward, log, transfer
from deftly.learn.distill import teacher_place
from deftly.learn.learner import make_learner
from deftly.learn.ranks import Ranks
from deftly.learn.trainer import Callback, Trainer
from deftly.tasks import Task, load


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
    if args.train.torch_deterministic:
        _require_deterministic()
    task = load(name)(args.task)
    task.require()
    args, start = _checked(task, args, source, ranks)
    custom = _custom_reward(args, source)
    if custom is not None:
        task = custom_reward.added(task, custom, args.reward_only)
    env = Env(
        task, args.env, _shared_threads(args.sim, ranks), args.train.seed, f"train/{ranks.rank}"
    )
    if custom is not None:
        custom_reward.require(custom, env)
    env.stagger()
    learner = make_learner(env, args.train, ranks)
    if start is not None:
        taken = {name: net for name, net in learner.networks.items() if name in start.networks}
        start.load_into(taken)
    with ExitStack() as stack:
        run = _run_folder(task, args, source, ranks)
        if ranks.first:
            stack.enter_context(workspace.lock(run))
        env.sim.dump_dir = run / "broken"
        settings = to_yaml(replace(args, resume=None, init=None, render=None))
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
            if source is not None:
                _set_aside(run, source.iteration)
            _describe(run, settings, custom, source, args)
            trainer.writers = [*_files(trainer, args), *writers]
            for writer in trainer.writers:
                stack.callback(writer.close)
        trainer.train()
    return trainer


def _describe(
    run: Path,
    settings: str,
    custom: custom_reward.CustomReward | None,
    source: checkpoint.Checkpoint | None,
    args: TrainArgs,
) -> None:
    """Write what a run needs besides its checkpoints. A new run for which that fails is deleted."""
    try:
        write_text(run / checkpoint.CONFIG, settings)
        if custom is not None and source is None:
            custom_reward.save(run, custom)
    except WriteError as error:
        if source is None:
            workspace.discard(run, "train", args.runs)
        raise WriteError(f"{error}; {workspace.ELSEWHERE}") from error


def _set_aside(run: Path, iteration: int) -> None:
    """Keep what a run came to after an older checkpoint that it now goes on from: later checkpoints, and its metrics.

    They go into a folder of the run. Beside them the new checkpoints, of earlier iterations, would be deleted as older.
    """
    checkpoints = run / "checkpoints"
    found = {
        int(folder.name.removeprefix("iter_")): folder for folder in checkpoints.glob("iter_*")
    }
    later = {number: folder for number, folder in found.items() if number > iteration}
    if not later:
        return
    last = max(later)
    aside = run / later[last].name.replace("iter", "until")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}_")
    (aside / "checkpoints").mkdir(parents=True)
    with suppress(FileNotFoundError):
        shutil.copy(run / workspace.METRICS, aside)
    for folder in later.values():
        folder.rename(aside / "checkpoints" / folder.name)
    if iteration in found:
        workspace.link(checkpoints / "last", found[iteration])
    if not workspace.follow(checkpoints / "best").is_dir():
        (checkpoints / "best").unlink(missing_ok=True)
    print(
        f"{run.name} had gone on to iteration {last}: its checkpoints after iteration {iteration} and its "
        f"{workspace.METRICS} are kept in {aside}",
        file=sys.stderr,
    )


def _checked(
    task: Task, args: TrainArgs, source: checkpoint.Checkpoint | None, ranks: Ranks
) -> tuple[TrainArgs, checkpoint.Checkpoint | None]:
    """The settings with what is left open decided, and the checkpoint whose weights are taken over, if any."""
    if args.wandb:
        log.require_wandb()
    if source is not None:
        if source.path.parent.name != "checkpoints":
            raise DeftlyError(
                f"{source.path} is not in a run's folder: start from its weights with --init"
            )
        source.require(task)
        return args, None
    learner = args.train
    if learner.seed < 0:
        learner = replace(learner, seed=int(ranks.share_text(str(secrets.randbelow(2**31)))))
    if isinstance(learner, DistillConfig):
        learner = replace(learner, teacher=_teacher(learner, task, args))
    start = None
    if args.init:
        start = checkpoint.load(checkpoint.find(args.init, task.name, args.runs))
        start = transfer.adapted(start, task)
        start.require_algorithm(args.train.algorithm)
        learner = replace(learner, keep_normalizer=True)  # a shifted input would be another policy
    return replace(args, train=learner), start


def _custom_reward(
    args: TrainArgs, source: checkpoint.Checkpoint | None
) -> custom_reward.CustomReward | None:
    """The user's reward: of his file, or where a run goes on, of the copy that it keeps."""
    if args.reward and getattr(args.train, "hindsight", 0.0) > 0:
        raise DeftlyError(
            "--reward is not known for goals that were replaced in hindsight: leave out one of the two"
        )
    if source is not None:
        return custom_reward.of_run(source.path.parent.parent, args.reward)
    return custom_reward.read(args.reward) if args.reward else None


def _require_deterministic() -> None:
    """Let torch refuse algorithms whose results differ from run to run; cuBLAS is told before it starts."""
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # of torch's notes on reproducibility
    torch.use_deterministic_algorithms(True)


def _teacher(settings: DistillConfig, task: Task, args: TrainArgs) -> str:
    """The folder of the teacher's checkpoint, or `shipped`, which is the same on every computer."""
    if not settings.teacher:
        example = "shipped" if task.teacher else "RUN"
        raise DeftlyError(f"which teacher? `deftly distill {task.name} --teacher {example}`")
    place = teacher_place(settings.teacher, task, args.runs)
    return settings.teacher if settings.teacher == "shipped" else str(place.resolve())


def _shared_threads(sim: SimConfig, ranks: Ranks) -> SimConfig:
    """The settings of the physics with the cores of this machine divided among its ranks."""
    if ranks.size == 1 or sim.threads:
        return sim
    return replace(sim, threads=max(1, len(os.sched_getaffinity(0)) // ranks.on_this_machine))


def _run_folder(
    task: Task, args: TrainArgs, source: checkpoint.Checkpoint | None, ranks: Ranks
) -> Path:
    if source is not None:
        return source.path.parent.parent
    made = str(workspace.create(task.name, "train", args.runs, args.name)) if ranks.first else ""
    return Path(ranks.share_text(made))


def _files(trainer: Trainer, args: TrainArgs) -> Iterator[log.Writer]:
    """The writers that the settings ask for."""
    console = Console(quiet=args.log_level == "warning")
    console.print(f"run {trainer.run}", soft_wrap=True)
    table = log.metrics(trainer.run / workspace.METRICS, trainer.columns, trainer.iteration)
    yield log.sturdy(table, workspace.METRICS)
    if args.tensorboard:
        events = log.tensorboard(trainer.run / "tensorboard", trainer.steps)
        yield log.sturdy(events, "TensorBoard")
    if args.wandb:
        yield log.wandb(trainer.run, asdict(args))
    shown = log.progress(
        console, trainer.env.task.name, trainer.max_iterations, args.log_level, args.log_every
    )
    yield log.sturdy(shown, "progress")
