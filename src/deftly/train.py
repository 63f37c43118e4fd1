"""`deftly train TASK`: from nothing to a trained policy, resumable at any time."""

from __future__ import annotations

import dataclasses
import math
import os
import secrets
import shutil
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from deftly import runs
from deftly.config import (
    EnvConfig,
    PPOConfig,
    RunsConfig,
    SimConfig,
    TaskConfig,
    parse,
    split_task,
    to_yaml,
    with_task,
)
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.intervals import wilson
from deftly.learn import checkpoint
from deftly.learn.log import Csv, Progressed, Row, TensorBoard, Wandb
from deftly.learn.ppo import PPO, Ranks
from deftly.rollout import VALIDATE, run_episodes
from deftly.tasks import Task, load


@dataclass(frozen=True)
class TrainArgs:
    """Train a policy. Sections: sim, env, task, train, runs."""

    sim: SimConfig = field(default_factory=SimConfig)
    """The physics engine."""
    env: EnvConfig = field(default_factory=lambda: EnvConfig(num_envs=512))
    """The batch of environments."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """The task's own figures."""
    train: PPOConfig = field(default_factory=PPOConfig)
    """The learner."""
    runs: RunsConfig = field(default_factory=RunsConfig)
    """Where runs are kept."""
    name: str | None = None
    """A word for the name of the run's folder."""
    resume: str | None = None
    """Continue exactly where a run stopped: latest, a run, or a checkpoint folder."""
    init: str | None = None
    """Start from the weights of this checkpoint; everything else starts anew."""
    until_success: float | None = None
    """Stop once evaluation says with 95 % confidence that this share of episodes succeeds (or all of them did)."""
    eval_every: int = 25
    """Iterations between evaluations; 0 never evaluates."""
    eval_episodes: int = 200
    """Episodes of an evaluation, deterministic, on seeds that training never sees."""
    save_every: int = 50
    """Iterations between checkpoints."""
    keep_checkpoints: int = 3
    """Periodic checkpoints kept, besides the best."""
    tensorboard: bool = True
    """Write TensorBoard files into the run's folder."""
    wandb: bool = False
    """Log to Weights & Biases, if it is installed."""
    log_level: Literal["debug", "info", "warning"] = "info"
    """What to print: every iteration, a live table (each tenth iteration without a terminal), or only problems."""

    def __post_init__(self) -> None:
        if self.until_success is not None and not 0 < self.until_success <= 1:
            raise DeftlyError(f"until-success is {self.until_success}, but it must be above 0 and at most 1")
        for name, low in (("eval_every", 0), ("eval_episodes", 1), ("save_every", 1), ("keep_checkpoints", 1)):
            if getattr(self, name) < low:
                raise DeftlyError(f"{name.replace('_', '-')} is {getattr(self, name)}, but it must be {low} or more")
        if self.resume and self.init:
            raise DeftlyError("--resume continues a run and --init starts a new one: give one of them")
        if self.env.device != "cpu":
            raise DeftlyError(f"env.device is {self.env.device}, but this Deftly simulates on the CPU: use cpu")


def main(argv: list[str]) -> int:
    """The command line of the stage."""
    name, rest = split_task(argv)
    if "test=true" in (low := [w.lower().removeprefix("training.") for w in rest]):
        from deftly import play  # the seeds' way to test: `train task=... test=true`

        return play.main([*([name] if name else []), *(word for word, key in zip(rest, low) if key != "test=true")])
    if name is None and not {"-h", "--help"} & set(rest):
        raise DeftlyError("which task? `deftly train TASK`; `deftly tasks` lists them")
    if name is None:
        parse(TrainArgs, rest, prog="deftly train TASK")
        return 0
    args_type = with_task(TrainArgs, load(name).Config)
    prog = f"deftly train {name}"
    args = parse(args_type, rest, prog=prog)
    source = None
    if args.resume:
        source = checkpoint.load(runs.find_checkpoint(args.resume, load(name).name, args.runs))
        args = parse(args_type, ["--config", str(source.path / checkpoint.CONFIG), *rest], prog=prog)
    return train(name, args, source).exit_code


@dataclass(frozen=True)
class Result:
    """What a training came to."""

    run: Path
    """The run's folder."""
    iteration: int
    success: float
    """Success of the last evaluation, NaN if there was none."""
    seconds: float
    exit_code: int


def train(name: str, args: TrainArgs, source: checkpoint.Checkpoint | None = None) -> Result:
    """Train the task `name` (or task file) under `args`, resuming from `source` if given."""
    ranks = Ranks.join()
    task = load(name)(args.task)
    if source is not None:
        source.require(task)
    elif args.train.seed < 0:
        drawn = dataclasses.replace(args.train, seed=secrets.randbelow(2**31))
        args = dataclasses.replace(args, train=drawn)
    training = Training(name, task, args, ranks, source)
    try:
        return training.run_all()
    finally:
        training.close()


class Training:
    """One training: its environment, learner, run folder and logs. Only rank 0 logs, evaluates and saves."""

    def __init__(
        self, name: str, task: Task, args: TrainArgs, ranks: Ranks, source: checkpoint.Checkpoint | None = None
    ):
        self.given_name, self.task, self.args, self.ranks = name, task, args, ranks
        self.config = to_yaml(dataclasses.replace(args, resume=None, init=None))
        self.run = self._folder(source)
        sim = args.sim
        if ranks.size > 1 and not sim.threads:
            beside = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
            sim = dataclasses.replace(sim, threads=max(1, len(os.sched_getaffinity(0)) // beside))
        self.env = Env(
            task, args.env, sim, args.train.seed, purpose=f"train/{ranks.rank}", dump_dir=self.run / "broken"
        )
        self.env.stagger()
        self.ppo = PPO(self.env, args.train, ranks)
        self.iteration, self.seconds, self.success, self.best = 0, 0.0, math.nan, (-1.0, 0.0)
        self._stop_signal = 0
        self._last_saved = self._last_evaluated = -1
        self._speed: deque[float] = deque(maxlen=10)
        self._recent: Row = {}
        if source is not None:
            self._resume(source)
        elif args.init:
            start = checkpoint.load(runs.find_checkpoint(args.init, task.name, args.runs))
            start.require(task)
            start.load_into(self.ppo.models)
        self._writers: list[Any] = self._open_logs() if ranks.rank == 0 else []

    # ----------------------------------------------------------------- set-up

    def _folder(self, source: checkpoint.Checkpoint | None) -> Path:
        if source is not None:
            run = source.path.parent.parent
            if source.path.parent.name != "checkpoints":
                raise DeftlyError(f"{source.path} is not in a run's folder: start from its weights with --init")
            return run
        folder = (
            [str(runs.create(self.task.name, "train", self.args.runs, self.args.name))] if not self.ranks.rank else [""]
        )
        return Path(self.ranks.share_text(folder[0]))

    def _open_logs(self) -> list[Any]:
        (self.run / checkpoint.CONFIG).write_text(self.config)
        self.console = Console()
        self._show = Progressed(self.console, self.task.name, self.args.train.max_iterations, self.args.log_level)
        columns = ["iteration", "steps", "seconds", "seconds_left", "steps_per_second", "eval_success", "eval_steps"]
        learner = [
            "std",
            "learning_rate",
            "time/collect",
            "time/update",
            "loss/value",
            "loss/surrogate",
            "loss/entropy",
        ]
        csv = Csv(self.run / "metrics.csv", [*columns, *learner, "broken", *self.env.figures], self.iteration)
        writers: list[Any] = [self._show, csv]
        if self.args.tensorboard:
            writers.append(TensorBoard(self.run / "tensorboard", self.steps if self.iteration else 0))
        if self.args.wandb:
            writers.append(Wandb(self.run, dataclasses.asdict(self.args), "deftly"))
        return writers

    def close(self) -> None:
        """Close the logs."""
        for writer in self._writers:
            writer.close()

    # ------------------------------------------------------------------- loop

    @property
    def steps(self) -> int:
        """Environment steps of all processes so far."""
        return self.iteration * self.args.train.steps * self.env.num_envs * self.ranks.size

    def run_all(self) -> Result:
        """Iterate until the last iteration, the wanted success, or a signal; save at the end."""
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        if self.ranks.rank == 0 and self.args.log_level != "warning":
            self.console.print(f"run {self.run}", soft_wrap=True)
        try:
            reached = False
            while self.iteration < self.args.train.max_iterations and not reached:
                self._iterate()
                reached = self.ranks.agree(self._reached())
                if self.ranks.agree(bool(self._stop_signal)):
                    break
            self._save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.ranks.rank == 0:
            self._farewell(reached)
        failed = self.args.until_success is not None and not reached
        code = 128 + self._stop_signal if self._stop_signal else int(failed)
        return Result(self.run, self.iteration, self.success, self.seconds, code)

    def _iterate(self) -> None:
        start = time.perf_counter()
        figures = self.ppo.iterate()
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        if bad:
            raise DeftlyError(
                f"{bad[0]} is not finite in iteration {self.iteration + 1}: lower train.learning-rate; "
                f"the last good checkpoint is in {self.run / 'checkpoints'}"
            )
        self.iteration += 1
        episodes = self.env.progress()
        if self.ranks.rank:
            return
        row = {**figures, **self._episodes(episodes), "eval_success": math.nan, "broken": float(self.env.broken_count)}
        if self._evaluation_due():
            row.update(self._evaluate())
        took = time.perf_counter() - start
        self.seconds += took
        self._log(row, took)
        if self.iteration % self.args.save_every == 0:
            self._save()

    def _episodes(self, stats: Row) -> Row:
        """Means over the episodes that ended in this iteration; the last known where none did."""
        if stats:
            self._recent = {**stats, "episode_steps": stats["steps"]}
            del self._recent["steps"]
        return self._recent

    def _log(self, row: Row, took: float) -> None:
        self._speed.append(took)
        mean = sum(self._speed) / len(self._speed)
        row["iteration"], row["steps"], row["seconds"] = self.iteration, self.steps, self.seconds
        row["steps_per_second"] = self.args.train.steps * self.env.num_envs * self.ranks.size / mean
        row["seconds_left"] = (self.args.train.max_iterations - self.iteration) * mean
        for writer in self._writers:
            writer.write(row)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._stop_signal:
            raise KeyboardInterrupt
        self._stop_signal = number

    # ------------------------------------------------------------- evaluation

    def _evaluation_due(self) -> bool:
        every, until = self.args.eval_every, self.args.until_success
        if not every:
            return False
        if self.iteration % every == 0 or self.iteration == self.args.train.max_iterations:
            return True
        likely = until is not None and self._recent.get("success", 0.0) >= until
        return likely and self.iteration - self._last_evaluated >= 5

    def _evaluate(self) -> Row:
        policy = checkpoint.Policy(self.ppo.actor)
        episodes = run_episodes(
            self.task,
            policy,
            self.args.eval_episodes,
            seed=self.args.train.seed,
            purpose=VALIDATE,
            env_cfg=self.args.env,
            sim_cfg=self.args.sim,
        )
        self._last_evaluated = self.iteration
        self.success, steps = episodes.success_rate, float(episodes.values["steps"].mean())
        if (self.success, -steps) > self.best:
            self.best = (self.success, -steps)
            self._save(best=True)
        return {"eval_success": self.success, "eval_steps": steps}

    def _reached(self) -> bool:
        until = self.args.until_success
        if until is None or self._last_evaluated != self.iteration or math.isnan(self.success):
            return False
        low, _ = wilson(round(self.success * self.args.eval_episodes), self.args.eval_episodes)
        return low >= until or self.success == 1.0

    # -------------------------------------------------------- save and resume

    def _save(self, best: bool = False) -> None:
        if self.ranks.rank:
            return
        folder = self.run / "checkpoints" / f"iter_{self.iteration:06d}"
        if self._last_saved != self.iteration:
            numbers = {
                "learning_rate": self.ppo.algorithm.learning_rate,
                "success": -1.0 if math.isnan(self.success) else self.success,
                "best_success": self.best[0],
                "best_steps": self.best[1],
                "seconds": self.seconds,
            }
            state = {
                **{f"env/{k}": v for k, v in self.env.state_dict().items()},
                **{f"ppo/{k}": v for k, v in self.ppo.tensors().items()},
            }
            checkpoint.save(
                folder,
                self.ppo.models,
                self.env.contract,
                self.config,
                self.task.name,
                self.iteration,
                numbers,
                state,
            )
            self._last_saved = self.iteration
        checkpoint.link(folder.with_name("last"), folder)
        if best:
            checkpoint.link(folder.with_name("best"), folder)
        self._prune(folder.parent)

    def _prune(self, folder: Path) -> None:
        linked = {(folder / name).resolve() for name in ("last", "best")}
        periodic = sorted(p for p in folder.glob("iter_*") if p.resolve() not in linked)
        for old in periodic[: -self.args.keep_checkpoints or None]:
            shutil.rmtree(old, ignore_errors=True)

    def _resume(self, source: checkpoint.Checkpoint) -> None:
        if self.ranks.size > 1:
            raise DeftlyError(
                "a run of several processes cannot be resumed exactly: start from its weights with --init"
            )
        state = source.state()
        parts = {p: {k[4:]: v for k, v in state.items() if k.startswith(p)} for p in ("env/", "ppo/")}
        source.load_into(self.ppo.models)
        self.env.load_state_dict(parts["env/"])
        self.ppo.load(parts["ppo/"], source.numbers["learning_rate"])
        self.iteration, self.seconds = source.iteration, source.numbers["seconds"]
        self.best = (source.numbers["best_success"], source.numbers["best_steps"])
        self._last_saved = self.iteration

    def _farewell(self, reached: bool) -> None:
        if self.args.log_level == "warning":
            return
        self._show.close()
        name = self.given_name
        if self._stop_signal:
            self.console.print(
                f"stopped and saved; go on with: deftly train {name} --resume {self.run}", soft_wrap=True
            )
        elif reached:
            self.console.print(
                f"{100 * self.success:.1f} % success over {self.args.eval_episodes} episodes "
                f"after {self.seconds / 60:.1f} minutes, {self.steps / 1e6:.2f} M steps"
            )
        elif self.args.until_success is not None:
            self.console.print(
                f"stopped at iteration {self.iteration} below the wanted success: raise train.max-iterations"
            )
        self.console.print(f"measure it: deftly eval {name} --checkpoint {self.run}", soft_wrap=True)
