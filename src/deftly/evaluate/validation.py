"""Evaluation during training: which checkpoint is the best, and whether the wanted success is reached."""

from __future__ import annotations

import math
from typing import Self

from deftly.config import EnvConfig, SimConfig, TrainArgs
from deftly.evaluate.rollout import VALIDATE, Episodes, run_episodes
from deftly.learn.learner import Metrics
from deftly.learn.trainer import Trainer
from deftly.stats import wilson
from deftly.tasks import Task, load

EARLY = 5
"""Fewest iterations between evaluations that come before their time, because training looks good enough."""


class Validation:
    """A callback of a training: evaluates its policy, deterministic, on episodes that training never sees.

    It tells the trainer which checkpoint is the best, by the task's selection metric if it has one, else by success and
    then by few steps; and it ends the training when `until_success` is reached.

    Attributes:
        success: of the last evaluation; NaN before the first.
        reached: whether evaluation said with 95 % confidence that `until_success` is reached, or all succeeded.
    """

    def __init__(
        self,
        task: Task,
        env: EnvConfig | None = None,
        sim: SimConfig | None = None,
        *,
        seed: int = 0,
        every: int = 25,
        episodes: int = 200,
        until_success: float | None = None,
    ):
        """
        Args:
            task: The task that is trained.
            env: Disturbances, as in the training; `num_envs` is not used.
            sim: The physics engine, as in the training.
            seed: Decides which episodes.
            every: Iterations between evaluations; 0 never evaluates.
            episodes: Episodes of an evaluation.
            until_success: The success, as a fraction, at which the training ends; None: never.
        """
        self.task, self.env, self.sim, self.seed = task, env, sim, seed
        self.every, self.episodes, self.until_success = every, episodes, until_success
        self.success = math.nan
        self.reached = False
        self._last = -math.inf

    @classmethod
    def of(cls, name: str, args: TrainArgs) -> Self:
        """The validation that the settings of a training ask for; `name` is the task's name or file."""
        return cls(
            load(name)(args.task),
            args.env,
            args.sim,
            seed=max(args.train.seed, 0),
            every=args.eval_every,
            episodes=args.eval_episodes,
            until_success=args.until_success,
        )

    @property
    def columns(self) -> list[str]:
        """The metrics that an evaluation adds."""
        own = [f"eval_{self.task.report.selection}"] if self.task.report.selection else []
        return ["eval_success", "eval_steps", *own]

    def __call__(self, trainer: Trainer, metrics: Metrics) -> None:
        """Evaluate if it is time."""
        if not self._is_due(trainer, metrics.get("success", 0.0)):
            return
        self._last = trainer.iteration
        policy = trainer.learner.policy()
        which = {"seed": self.seed, "purpose": VALIDATE, "env_cfg": self.env, "sim_cfg": self.sim}
        results = run_episodes(self.task, policy, self.episodes, **which)
        self.success = results.success_rate
        trainer.numbers["success"] = self.success
        metrics |= self._metrics(results)
        trainer.keep_best(self._quality(metrics))
        if self.until_success is not None and self._is_reached(self.until_success):
            self.reached = True
            trainer.stop()

    def _is_due(self, trainer: Trainer, training_success: float) -> bool:
        if not self.every:
            return False
        if trainer.iteration % self.every == 0 or trainer.is_last_iteration:
            return True
        likely = self.until_success is not None and training_success >= self.until_success
        return likely and trainer.iteration - self._last >= EARLY

    def _metrics(self, results: Episodes) -> Metrics:
        metrics = {
            "eval_success": results.success_rate,
            "eval_steps": float(results.values["steps"].mean()),
        }
        if headline := self.task.report.selection:
            metrics[f"eval_{headline}"] = float(results.values[headline].nanmean())
        return metrics

    def _quality(self, metrics: Metrics) -> tuple[float, float]:
        if self.task.report.selection:
            return metrics[f"eval_{self.task.report.selection}"], metrics["eval_success"]
        return metrics["eval_success"], -metrics["eval_steps"]

    def _is_reached(self, wanted: float) -> bool:
        low, _ = wilson(round(self.success * self.episodes), self.episodes)
        return low >= wanted or self.success == 1.0
