"""One training: its run, environment, learner and logs, from the first iteration to the last."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from deftly import workspace
from deftly.config import to_yaml
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.evaluate.rollout import VALIDATE, run_episodes
from deftly.files import write_text
from deftly.learn import checkpoint, log
from deftly.learn.ppo import PPO, Ranks
from deftly.stats import wilson
from deftly.tasks import Task

if TYPE_CHECKING:
    from deftly.config import TrainArgs

COLUMNS = ("iteration", "steps", "seconds", "seconds_left", "steps_per_second", "eval_success", "eval_steps")
LEARNER = ("std", "learning_rate", "time/collect", "time/update", "loss/value", "loss/surrogate", "loss/entropy")


class Training:
    """One training. Only rank 0 logs, evaluates and saves; `success` is the last evaluation's, NaN before the first."""

    def __init__(self, name: str, task: Task, args: TrainArgs, ranks: Ranks, source: checkpoint.Checkpoint | None):
        self.given_name, self.task, self.args, self.ranks = name, task, args, ranks
        self.config = to_yaml(replace(args, resume=None, init=None))
        self.run = self._folder(source)
        sim = args.sim
        if ranks.size > 1 and not sim.threads:
            beside = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
            sim = replace(sim, threads=max(1, len(os.sched_getaffinity(0)) // beside))
        purpose, broken = f"train/{ranks.rank}", self.run / "broken"
        self.env = Env(task, args.env, sim, args.train.seed, purpose, broken)
        self.env.stagger()
        self.ppo = PPO(self.env, args.train, ranks)
        self.iteration, self.seconds, self.success, self.best = 0, 0.0, math.nan, (-1e9, 0.0)
        self.exit_code, self._stop_signal, self._reached = 0, 0, False
        self._last_saved = self._last_evaluated = -1
        self._speed: deque[float] = deque(maxlen=10)
        self._recent: log.Row = {}
        if source is not None:
            self._resume(source)
        elif args.init:
            start = checkpoint.load(workspace.find_checkpoint(args.init, task.name, args.runs))
            start.require(task, any_robot=True)
            start.load_into(self.ppo.models)
        self.console = Console(quiet=ranks.rank > 0 or args.log_level == "warning")
        self._writers = [] if ranks.rank else list(self._open_logs())

    def _folder(self, source: checkpoint.Checkpoint | None) -> Path:
        if source is None:
            made = "" if self.ranks.rank else workspace.create(self.task.name, "train", self.args.runs, self.args.name)
            return Path(self.ranks.share_text(str(made)))
        if source.path.parent.name != "checkpoints":
            raise DeftlyError(f"{source.path} is not in a run's folder: start from its weights with --init")
        return source.path.parent.parent

    def _resume(self, source: checkpoint.Checkpoint) -> None:
        if self.ranks.size > 1:
            advice = "start from its weights with --init"
            raise DeftlyError(f"a run of several processes cannot be resumed exactly: {advice}")
        state, numbers = source.state(), source.numbers
        parts = {p: {k[4:]: v for k, v in state.items() if k.startswith(p)} for p in ("env/", "ppo/")}
        source.load_into(self.ppo.models)
        self.env.load_state_dict(parts["env/"])
        self.ppo.load(parts["ppo/"], numbers["learning_rate"])
        self.iteration = self._last_saved = source.iteration
        self.seconds, self.best = numbers["seconds"], (numbers["best"], numbers["best_tie"])

    def _open_logs(self) -> Iterator[log.Writer]:
        write_text(self.run / checkpoint.CONFIG, self.config)
        args, columns = self.args, [*COLUMNS, *LEARNER, "broken", *self.env.metric_names]
        columns += [f"eval_{self.task.report.selection}"] * bool(self.task.report.selection)
        yield log.metrics(self.run / "metrics.csv", columns, self.iteration)
        if args.tensorboard:
            yield log.tensorboard(self.run / "tensorboard", self.steps)
        if args.wandb:
            yield log.wandb(self.run, asdict(args))
        yield log.progress(self.console, self.task.name, args.train.max_iterations, args.log_level)

    def close(self) -> None:
        """Close the logs; the last table on the terminal stays."""
        while self._writers:
            self._writers.pop().close()

    @property
    def steps(self) -> int:
        """Environment steps of all processes so far."""
        return self.iteration * self.args.train.steps * self.env.num_envs * self.ranks.size

    def run_all(self) -> None:
        """Iterate until the last iteration, the wanted success, or a signal; save at the end and set `exit_code`."""
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        stopped = False
        try:
            self.console.print(f"run {self.run}", soft_wrap=True)
            while self.iteration < self.args.train.max_iterations and not (self._reached or stopped):
                self._iterate()
                self._reached = self.ranks.agree(self._reached)
                stopped = self.ranks.agree(bool(self._stop_signal))
            if not self.ranks.rank:
                self._save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.close()
        self._farewell()
        failed = self.args.until_success is not None and not self._reached
        self.exit_code = 128 + self._stop_signal if self._stop_signal else int(failed)

    def _on_signal(self, number: int, _: object) -> None:
        if self._stop_signal:
            raise KeyboardInterrupt
        self._stop_signal = number

    def _iterate(self) -> None:
        start = time.perf_counter()
        row = self.ppo.iterate(critic_only=self.iteration < self.args.train.critic_warmup)
        if bad := [name for name, value in row.items() if not math.isfinite(value)]:
            advice = f"lower train.learning-rate; the last good checkpoint is in {self.run / 'checkpoints'}"
            raise DeftlyError(f"{bad[0]} is not finite in iteration {self.iteration + 1}: {advice}")
        self.iteration += 1
        if episodes := self.env.progress():  # where none ended, the last known means stay
            self._recent = {"episode_steps" if k == "steps" else k: v for k, v in episodes.items()}
        if self.ranks.rank:
            return
        row |= {**self._recent, "broken": float(self.env.broken_count)}
        row |= self._evaluate_if_due()
        self._speed.append(time.perf_counter() - start)
        self.seconds += self._speed[-1]
        mean = sum(self._speed) / len(self._speed)
        row |= {"iteration": self.iteration, "steps": self.steps, "seconds": self.seconds}
        row["steps_per_second"] = self.steps / self.iteration / mean
        row["seconds_left"] = (self.args.train.max_iterations - self.iteration) * mean
        for writer in self._writers:
            writer.write({name: value for name, value in row.items() if not math.isnan(value)})
        if self.iteration % self.args.save_every == 0:
            self._save()

    def _evaluate_if_due(self) -> log.Row:
        args, every, until = self.args, self.args.eval_every, self.args.until_success
        last = self.iteration == args.train.max_iterations
        likely = until is not None and self._recent.get("success", 0.0) >= until
        early = likely and self.iteration - self._last_evaluated >= 5
        if not every or not (self.iteration % every == 0 or last or early):
            return {}
        policy, which = checkpoint.Policy(self.ppo.actor), {"seed": args.train.seed, "purpose": VALIDATE}
        episodes = run_episodes(self.task, policy, args.eval_episodes, **which, env_cfg=args.env, sim_cfg=args.sim)
        self._last_evaluated = self.iteration
        self.success, steps = episodes.success_rate, float(episodes.values["steps"].mean())
        row = {"eval_success": self.success, "eval_steps": steps}
        quality = (self.success, -steps)
        if headline := self.task.report.selection:
            row[f"eval_{headline}"] = float(episodes.values[headline].nanmean())
            quality = (row[f"eval_{headline}"], self.success)
        if quality > self.best:
            self.best = quality
            self._save(best=True)
        if until is not None:
            low, _ = wilson(round(self.success * args.eval_episodes), args.eval_episodes)
            self._reached = low >= until or self.success == 1.0
        return row

    def _save(self, best: bool = False) -> None:
        folder = self.run / "checkpoints" / f"iter_{self.iteration:06d}"
        if self._last_saved != self.iteration:
            numbers = dict(zip(("best", "best_tie"), self.best))
            numbers |= {"learning_rate": self.ppo.algorithm.learning_rate, "seconds": self.seconds}
            numbers["success"] = -1.0 if math.isnan(self.success) else self.success
            state = {"env": self.env.state_dict(), "ppo": self.ppo.tensors()}
            flat = {f"{part}/{k}": v for part, tensors in state.items() for k, v in tensors.items()}
            contract, task = self.env.contract, self.task.name
            checkpoint.save(folder, self.ppo.models, contract, self.config, task, self.iteration, numbers, flat)
            self._last_saved = self.iteration
        for name in ("last", "best") if best else ("last",):
            workspace.link(folder.with_name(name), folder)
        linked = {folder.with_name(name).resolve() for name in ("last", "best")}
        periodic = sorted(p for p in folder.parent.glob("iter_*") if p.resolve() not in linked)
        for old in periodic[: -self.args.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)

    def _farewell(self) -> None:
        say = partial(self.console.print, soft_wrap=True)
        if self._stop_signal:
            say(f"stopped and saved; go on with: deftly train {self.given_name} --resume {self.run}")
        elif self._reached:
            cost = f"{self.seconds / 60:.1f} minutes, {self.steps / 1e6:.2f} M steps"
            say(f"{100 * self.success:.1f} % success over {self.args.eval_episodes} episodes after {cost}")
        elif self.args.until_success is not None:
            say(f"stopped at iteration {self.iteration} below the wanted success: raise train.max-iterations")
        say(f"measure it: deftly eval {self.given_name} --checkpoint {self.run}")
