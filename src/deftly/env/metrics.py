"""What episodes earned and how they ended: sums over running episodes, metrics and statistics of those that ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from deftly.errors import DeftlyError
from deftly.sim.rows import Rows, wide

OWN = ("success", "steps", "time_out", "return", "reward_per_step", "action_change")
"""Metrics that every episode has, whatever its task."""
RESERVED = (*OWN, "env", "episodes", "nan", "seconds", "success_seconds")
PREFIXES = ("failed/", "reward/")


class EpisodeMetrics:
    """Adds up the reward terms of running episodes, and keeps statistics of the episodes that ended.

    Attributes:
        state: sums over the running episodes, saved with the environment: `terms (num_envs, number of terms)` and
            `action_change (num_envs,)`.
    """

    def __init__(self, num_envs: int, weights: Mapping[str, float], device: torch.device):
        self.weights = weights
        self.failures: list[str] = []
        self.names: list[str] = []
        self.state = {
            "terms": torch.zeros(num_envs, len(weights), device=device),
            "action_change": torch.zeros(num_envs, device=device),
        }
        self._episodes = torch.zeros((), dtype=torch.float64, device=device)
        self._totals = torch.zeros(0, dtype=torch.float64, device=device)

    def name_failures(self, failures: Iterable[str]) -> None:
        """Say which failures the task knows, once an episode has started; `physics` comes on top."""
        self.failures = [*failures, "physics"]
        failed = [f"failed/{name}" for name in self.failures]
        rewards = [f"reward/{name}" for name in self.weights]
        self.names = ["success", "steps", "time_out", *failed, *rewards, *OWN[3:]]
        self._totals = self._totals.new_zeros(len(self.names))

    def add(self, weighted: Tensor, action_change: Tensor) -> None:
        """Add a step: weighted reward terms `(terms, num_envs)` and the mean change of the action `(num_envs,)`."""
        self.state["terms"] += weighted.T
        self.state["action_change"] += action_change

    def end(
        self,
        rows: Rows,
        steps: Tensor,
        success: Tensor,
        failures: Mapping[str, Tensor],
        late: Tensor,
    ) -> Tensor:
        """Take some episodes into the statistics; the metrics `names` of them, `(len(names), rows.count)`."""
        flags = torch.stack([success, late, *(failures[name] for name in self.failures)], 1)
        head = rows.take(flags).float().T
        steps = rows.take(steps).float()
        length = steps.clip(min=1.0)
        terms = rows.take(self.state["terms"]).T
        total = terms.sum(0)
        change = rows.take(self.state["action_change"])
        tail = torch.stack((total, total / length, change / length))
        table = torch.cat((head[:1], steps[None], head[1:], terms, tail))
        self._totals += rows.of_mask(table).sum(1, dtype=torch.float64)
        self._episodes += rows.mask.sum()
        return table

    def take(self) -> dict[str, Tensor]:
        """Sums over the episodes that ended since the last call, and their count, as float64 numbers; starts anew."""
        taken = {"episodes": self._episodes, **dict(zip(self.names, self._totals.unbind()))}
        taken = {name: value.clone() for name, value in taken.items()}
        self._episodes.zero_()
        self._totals.zero_()
        return taken


class NanCounter:
    """Counts numbers that are not finite in rewards and signals, by the name of the term; they count as 0."""

    def __init__(self, device: torch.device):
        self._device = device
        self._counts: dict[str, Tensor] = {}
        self._taken = 0

    def clean(self, name: str, value: Tensor, broken: Tensor) -> Tensor:
        """`value (n, ...)` with 0 for what is not finite; of environments that are `broken (n,)` nothing is counted."""
        if all_finite(value):
            return value
        bad = ~value.isfinite()
        self.add(name, (bad & ~wide(broken, bad)).sum())
        return value.masked_fill(bad, 0.0)

    def clean_rewards(self, names: Iterable[str], values: Tensor, broken: Tensor) -> Tensor:
        """Reward terms `(terms, n)` with 0 for what is not finite, and for environments that are `broken (n,)`."""
        if all_finite(values):
            return values.masked_fill(broken, 0.0)
        bad = ~values.isfinite()
        for name, count in zip(names, (bad & ~broken).sum(1)):
            self.add(f"reward/{name}", count)
        return values.masked_fill(bad | broken, 0.0)

    def add(self, name: str, count: Tensor) -> None:
        """Add to the count of a name."""
        if name not in self._counts:
            self._counts[name] = torch.zeros((), dtype=torch.long, device=self._device)
        self._counts[name] += count

    @property
    def counts(self) -> dict[str, int]:
        """Counts since the start, of the names that had any."""
        return {name: int(count) for name, count in self._counts.items() if count}

    def take(self) -> Tensor:
        """How many there were since the last call, a float64 number on the device."""
        total = sum(self.counts.values())
        new, self._taken = total - self._taken, total
        return torch.tensor(new, dtype=torch.float64, device=self._device)


def all_finite(value: Tensor) -> bool:
    """Whether all numbers are surely finite. On a GPU the answer would have to be waited for, and nothing is sure."""
    return value.device.type == "cpu" and math.isfinite(value.sum().item())


def means(statistics: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over the episodes of `Env.statistics`, of one process or added up over several; `nan` stays a count.

    Nothing if no episode ended and nothing was NaN.
    """
    numbers = {name: float(value) for name, value in statistics.items()}
    episodes, nan = numbers.pop("episodes"), numbers.pop("nan")
    if not episodes:
        return {"nan": nan} if nan else {}
    return {**{name: value / episodes for name, value in numbers.items()}, "nan": nan}


# ------------------------------------------------------------------- what tasks give, checked by name


def check_vector(what: str, value: object, num_envs: int) -> None:
    """Raise DeftlyError unless a term has one number for each environment."""
    if not isinstance(value, Tensor):
        raise DeftlyError(
            f"{what} is a {type(value).__name__}, but a task gives a tensor with one number for each environment: "
            f"({num_envs},)"
        )
    if tuple(value.shape) != (num_envs,):
        shape = tuple(value.shape)
        raise DeftlyError(
            f"{what} has shape {shape}, but a task gives one number for each environment: ({num_envs},)"
        )


def check_rewards(terms: Mapping[str, Tensor], weights: Mapping[str, float], num_envs: int) -> None:
    """Raise DeftlyError if a reward term has no weight or the wrong shape, or a weight no term."""
    if terms.keys() != weights.keys():
        for name in terms:
            if name not in weights:
                raise DeftlyError(
                    f"reward term '{name}' has no weight: give Config.weights a field of this name"
                )
        missing = next(name for name in weights if name not in terms)
        raise DeftlyError(f"weight '{missing}' has no reward term: `rewards` gives {[*terms]}")
    for name, value in terms.items():
        check_vector(f"reward term '{name}'", value, num_envs)


def check_metrics(metrics: Mapping[str, Tensor], num_envs: int) -> None:
    """Raise DeftlyError if a metric has the wrong shape or the name of one that every episode has."""
    for name, value in metrics.items():
        check_metric_name(name)
        check_vector(f"metric '{name}'", value, num_envs)


def check_metric_name(name: str) -> None:
    """Raise DeftlyError if a task's metric is named like one that every episode has: it would replace it."""
    if name in RESERVED or name.startswith(PREFIXES):
        raise DeftlyError(
            f"metric '{name}' has a name of the environment's own metrics: call the task's another name"
        )


def check_flags(what: str, flags: Mapping[str, Tensor], num_envs: int) -> None:
    """Raise DeftlyError if a condition is not one boolean for each environment."""
    for name, value in flags.items():
        check_vector(f"{what} '{name}'", value, num_envs)
        if value.dtype != torch.bool:
            raise DeftlyError(
                f"{what} '{name}' is of {value.dtype}, but a condition is a boolean for each environment"
            )
