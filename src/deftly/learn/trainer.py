"""One training, from its first iteration to its last: iterate, report, save.

What judges a training is given to it as callbacks (`deftly.evaluate.validation`, or a user's own): learning does not
know evaluation.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from deftly import workspace
from deftly.env import Env, means
from deftly.errors import DeftlyError
from deftly.files import MB, remove_folder
from deftly.learn import checkpoint
from deftly.learn.learner import Learner, Metrics
from deftly.learn.log import Writer
from deftly.learn.ranks import Ranks

Callback = Callable[["Trainer", Metrics], None]
"""Called by rank 0 after each iteration with its metrics, to which it may add.

It may call `keep_best` and `stop`, and read everything else. One that adds metrics every so often names them in an
attribute `columns`, so that they have a column in `metrics.csv`.
"""

COLUMNS = ("iteration", "steps", "seconds", "seconds_left", "steps_per_second")
"""Metrics that the trainer adds."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a training after its iteration, saved: Ctrl-C, a scheduler, a terminal that was closed."""
LARGE_STATE = 64 * MB
"""A training state beyond this, as one with a replay buffer is, stays in the newest checkpoint alone."""
SPEED_WINDOW = 10
"""Iterations over which speed and time left are averaged."""


class Trainer:
    """Trains one policy and keeps its run folder.

    Under several processes each has a trainer; rank 0 alone writes, prints and calls back.

    Attributes:
        iteration: iterations done.
        steps: environment steps done, by all processes.
        seconds: time spent.
        numbers: what callbacks want saved with each checkpoint, such as `success`.
        stop_signal: the signal that ended the training, or 0.
    """

    def __init__(
        self,
        env: Env,
        learner: Learner,
        run: Path,
        settings: str,
        *,
        ranks: Ranks | None = None,
        callbacks: Sequence[Callback] = (),
        max_iterations: int = 1000,
        save_every: int = 50,
        keep_checkpoints: int = 3,
    ):
        """
        Args:
            env: The environments of this process.
            learner: The algorithm.
            run: Folder of the run, which exists.
            settings: The configuration as YAML, kept with each checkpoint.
            ranks: The processes that train together.
            callbacks: Called after each iteration, in this order.
            max_iterations: Iterations after which the training ends.
            save_every: Iterations between checkpoints.
            keep_checkpoints: How many of these are kept, besides the best and the last.
        """
        self.env = env
        self.learner = learner
        self.run = run
        self.settings = settings
        self.ranks = ranks or Ranks()
        self.callbacks = callbacks
        self.writers: list[Writer] = []
        self.max_iterations = max_iterations
        self.save_every = save_every
        self.keep_checkpoints = keep_checkpoints
        self.iteration = 0
        self.steps = 0
        self.seconds = 0.0
        self.numbers: Metrics = {}
        self.stop_signal = 0
        self._best = (-math.inf, -math.inf)
        self._best_iteration = -1
        self._saved_iteration = -1
        self._stop_asked = False
        self._episodes: Metrics = {}
        self._speed: deque[float] = deque(maxlen=SPEED_WINDOW)

    @property
    def columns(self) -> list[str]:
        """Names of all metrics, in the order in which they are written."""
        added = [name for callback in self.callbacks for name in getattr(callback, "columns", ())]
        return [*COLUMNS, *added, *self.learner.metric_names, "broken", *self.env.metric_names]

    @property
    def is_last_iteration(self) -> bool:
        """Whether no iteration follows."""
        return self.iteration >= self.max_iterations

    def train(self) -> None:
        """Iterate until the last iteration, `stop`, or a signal. The last checkpoint is that of the end."""
        stopped = False
        with self._signals():
            started = time.perf_counter()
            while not (stopped or self.is_last_iteration):
                metrics = self._require_finite(self.learner.iterate())
                self.iteration += 1
                self.steps += self.learner.steps_per_iteration * self.ranks.size
                metrics |= self._episode_metrics()
                best = self._call_back(metrics)
                ended = time.perf_counter()
                self._report(metrics, ended - started)
                started = ended
                stops = self._stop_asked or self.stop_signal > 0
                best, stopped = self.ranks.any([best, stops])
                if best:
                    self._best_iteration = self.iteration
                if best or self.iteration % self.save_every == 0:
                    self.save()
            self.save()

    def stop(self) -> None:
        """End the training after this iteration; for callbacks."""
        self._stop_asked = True

    def keep_best(self, quality: tuple[float, float]) -> bool:
        """Make the newest checkpoint the best if it is better than all before it; for callbacks.

        `quality` is what is to be high, and what decides between equals. Returns whether it is the best.
        """
        if not quality > self._best:
            return False
        self._best = quality
        return True

    def resume(self, source: checkpoint.Checkpoint) -> None:
        """Continue where a checkpoint of this run was saved, bit for bit."""
        state = source.state(self.ranks.rank, self.ranks.size)
        source.load_into(self.learner.networks)
        try:
            _require_alike(state, self._state())
            self.env.load_state_dict(_part(state, "env/"))
            self.learner.load_state_dict(_part(state, "learner/"))
        except (KeyError, ValueError, RuntimeError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DeftlyError(
                f"{source.path}: its training state does not fit this training: {reason}"
            ) from None
        self.iteration = self._saved_iteration = source.iteration
        self.steps = source.steps
        numbers = dict(source.numbers)
        self.seconds = numbers.pop("seconds", 0.0)
        best = numbers.pop("best", -math.inf)
        best_tie = numbers.pop("best_tie", -math.inf)
        self._best = (best, best_tie)
        self._best_iteration = int(numbers.pop("best_iteration", -1))
        self.numbers = {
            name: value for name, value in numbers.items() if name not in self.learner.numbers
        }

    def save(self) -> None:
        """Write a checkpoint of this iteration, if there is none, and delete those that are no longer kept."""
        folder = self._folder(self.iteration)
        if self._saved_iteration != self.iteration:
            states = self.ranks.gather_bytes(checkpoint.pack_state(self._state()))
            if self.ranks.first:
                self._write(folder, states)
            self._saved_iteration = self.iteration
        if not self.ranks.first:
            return
        workspace.link(folder.with_name("last"), folder)
        if self._best_iteration == self.iteration:
            workspace.link(folder.with_name("best"), folder)
        self._delete_old()

    # ----------------------------------------------------------------- an iteration

    def _require_finite(self, metrics: Metrics) -> Metrics:
        for name, value in metrics.items():
            if not math.isfinite(value):
                advice = "lower train.learning-rate"
                if self._saved_iteration > 0:
                    advice += f"; the last good checkpoint is in {self.run / 'checkpoints'}"
                raise DeftlyError(
                    f"{name} is not finite in iteration {self.iteration + 1}: {advice}"
                )
        return metrics

    def _episode_metrics(self) -> Metrics:
        """Means over the episodes that ended at all ranks, by which each adapts its curriculum in the same way.

        Where none ended, the last known means stay.
        """
        newest = means(self.ranks.sum(self.env.statistics()))
        self.env.adapt(newest)
        if newest:
            self._episodes = {
                "episode_steps" if name == "steps" else name: value
                for name, value in newest.items()
            }
        return {**self._episodes, "broken": float(self.env.broken_count)}

    def _call_back(self, metrics: Metrics) -> bool:
        """Let the callbacks of rank 0 judge the iteration; returns whether it is the best so far."""
        before = self._best
        if self.ranks.first:
            metrics |= {"iteration": self.iteration, "steps": self.steps}
            for callback in self.callbacks:
                callback(self, metrics)
        return self._best != before

    def _report(self, metrics: Metrics, seconds: float) -> None:
        """Hand the iteration's metrics to the writers; one that is not known is left out, not NaN."""
        self.seconds += seconds
        self._speed.append(seconds)
        mean = sum(self._speed) / len(self._speed)
        metrics["seconds"] = self.seconds
        metrics["seconds_left"] = (self.max_iterations - self.iteration) * mean
        metrics["steps_per_second"] = self.learner.steps_per_iteration * self.ranks.size / mean
        known = {name: value for name, value in metrics.items() if not math.isnan(value)}
        for writer in self.writers:
            writer.write(known)

    # ------------------------------------------------------------------ checkpoints

    def _folder(self, iteration: int) -> Path:
        return self.run / "checkpoints" / f"iter_{iteration:06d}"

    def _state(self) -> dict[str, Tensor]:
        parts = {"env": self.env.state_dict(), "learner": self.learner.state_dict()}
        return {
            f"{part}/{name}": value
            for part, state in parts.items()
            for name, value in state.items()
        }

    def _write(self, folder: Path, states: Sequence[bytes]) -> None:
        numbers = {**self.numbers, **self.learner.numbers, "seconds": self.seconds}
        if self._best_iteration >= 0:
            numbers |= {
                "best": self._best[0],
                "best_tie": self._best[1],
                "best_iteration": self._best_iteration,
            }
        checkpoint.write(
            folder,
            self.env.task,
            self.learner.networks,
            contract=self.env.contract,
            config=self.settings,
            algorithm=self.learner.algorithm,
            iteration=self.iteration,
            steps=self.steps,
            numbers={name: value for name, value in numbers.items() if math.isfinite(value)},
            states=states,
            ranks=self.ranks.size,
        )

    def _delete_old(self) -> None:
        newest = self._folder(self.iteration)
        best = self._folder(self._best_iteration)
        kept = {newest.name, best.name}
        folders = self._folder(0).parent.glob("iter_*")
        periodic = sorted(folder for folder in folders if folder.name not in kept)
        for folder in periodic[: -self.keep_checkpoints]:
            remove_folder(folder)
        for folder in self._folder(0).parent.glob("iter_*"):
            if folder != newest:
                checkpoint.drop_state(folder, LARGE_STATE)

    # ---------------------------------------------------------------------- signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """A signal ends the training after its iteration; a second one at once."""
        previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: object) -> None:
        if self.stop_signal:
            raise KeyboardInterrupt
        self.stop_signal = number


def _require_alike(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise ValueError if what was saved differs in shape or type from what would be saved now.

    What is filled only while training (moments, target networks) is left to who loads it. Of a buffer the size of a row
    is known here.
    """
    for name in saved.keys() & own.keys():
        was = saved[name]
        now = own[name]
        is_buffer = name.startswith("learner/buffer/") and was.ndim == now.ndim > 1
        first = 1 if is_buffer else 0
        same_shape = was.shape[first:] == now.shape[first:]
        if not same_shape or was.dtype != now.dtype:
            raise ValueError(
                f"{name} is {tuple(was.shape)} {was.dtype}, here it would be {tuple(now.shape)} {now.dtype}: "
                "use the saved configuration"
            )


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
