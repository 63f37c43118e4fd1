"""A replay buffer on the device of the environments, which gives n-step transitions with their true ends.

Of a task with goals it can give some transitions as if a goal had been what was reached later in the same episode:
hindsight experience replay (Andrychowicz et al. 2017, arXiv:1707.01495), with goals from the future of the episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from deftly.tasks import Goals

Obs = Mapping[str, Tensor]
"""Observations by group, each `(n, size)`."""


LATEST = 64
"""How far ahead a goal in hindsight may be, steps."""


AT_GOAL = 0.1
"""Which fraction is taken of the goals in hindsight that a transition begins at.

Most do where most objects lie still: they tell that nothing need be done. Leaving them out is the filter of Manela and
Biess 2019 (arXiv:1905.05498); some stay, which tell that one is to stay.
"""

DRAWS = 4
"""How often a transition with a goal in hindsight is drawn, as long as the filter leaves it out."""


class Transitions(NamedTuple):
    """What was seen and done, and what came of it in the next steps; the leading axis counts them."""

    obs: Obs
    actions: Tensor  # (n, action_size)
    returns: Tensor  # (n,) discounted sum of the rewards of the steps until `next_obs`
    discounts: Tensor  # (n,) of the value of `next_obs`; 0 where the episode terminated
    next_obs: Obs  # some steps later, or at the end of the episode if that came first

    def split(self, count: int) -> Iterator[Transitions]:
        """Parts of `count` transitions each, in their order."""
        for start in range(0, len(self.actions), count):
            part = slice(start, start + count)
            yield Transitions(
                {group: value[part] for group, value in self.obs.items()},
                self.actions[part],
                self.returns[part],
                self.discounts[part],
                {group: value[part] for group, value in self.next_obs.items()},
            )


class ReplayBuffer:
    """The newest steps of all environments, row by row.

    Args:
        num_envs: Environments, the transitions of a row.
        capacity: Transitions that are kept; full rows of them.
        obs_sizes: Numbers of each group of observations.
        action_size: Numbers of an action.
        device: Where it lies.
    """

    def __init__(
        self,
        num_envs: int,
        capacity: int,
        obs_sizes: Mapping[str, int],
        action_size: int,
        device: torch.device | str = "cpu",
    ):
        self.num_envs = num_envs
        self.rows = capacity // num_envs
        self.written = 0
        """Rows written since the start; those that are kept are the newest `rows` of them."""
        sizes = {f"obs/{group}": (size,) for group, size in obs_sizes.items()}
        sizes |= {f"next_obs/{group}": (size,) for group, size in obs_sizes.items()}
        sizes |= {"actions": (action_size,), "rewards": ()}
        sizes |= {"terminated": (), "ended": (), "episode": ()}
        types = {"terminated": torch.bool, "ended": torch.bool, "episode": torch.long}
        self._columns = {
            name: torch.zeros(
                self.rows, num_envs, *size, dtype=types.get(name, torch.float32), device=device
            )
            for name, size in sizes.items()
        }
        self._groups = tuple(obs_sizes)
        self._episode = torch.zeros(num_envs, dtype=torch.long, device=device)

    def __len__(self) -> int:
        """Transitions that it holds."""
        return min(self.written, self.rows) * self.num_envs

    def add(
        self,
        obs: Obs,
        actions: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        next_obs: Obs,
    ) -> None:
        """Write a step of all environments over the oldest row.

        `next_obs` is the true observation at its end, also where an episode ended. Tensors lead with `num_envs`.
        """
        row = self.written % self.rows
        for group in self._groups:
            self._columns[f"obs/{group}"][row] = obs[group]
            self._columns[f"next_obs/{group}"][row] = next_obs[group]
        self._columns["actions"][row] = actions
        self._columns["rewards"][row] = rewards
        self._columns["terminated"][row] = terminated
        self._columns["ended"][row] = terminated | truncated
        self._columns["episode"][row] = self._episode
        self._episode += terminated | truncated
        self.written += 1

    def sample(
        self,
        count: int,
        n_step: int,
        gamma: float,
        generator: torch.Generator,
        goals: Goals | None = None,
        hindsight: float = 0.0,
    ) -> Transitions:
        """Draw transitions with replacement, uniformly over those with `n_step - 1` rows after them.

        Rewards are summed over up to `n_step` steps, never beyond an episode's end; what follows is worth
        `discounts` of its value. One that time cut off goes on in value, one that terminated does not.

        Args:
            count: How many.
            n_step: Steps whose rewards are summed.
            gamma: Discount of a step.
            generator: Of the draws.
            goals: The task's, if some goals are to be replaced.
            hindsight: The share of transitions whose goal is replaced; see `AT_GOAL`.
        """
        device = self._columns["rewards"].device
        ages, envs = self._draw(count, n_step, generator)
        relabelled = None
        if goals is not None and hindsight > 0:
            ages, envs, *relabelled = self._with_hindsight(
                ages, envs, n_step, generator, goals, hindsight
            )
        steps = torch.arange(n_step, device=device)[:, None]
        window = self._row(ages + steps)  # (n_step, count)
        goes_on = 1.0 - self._columns["ended"][window, envs].float()
        # Whether step k of the window still belongs to the episode of its first.
        belongs = torch.cat((torch.ones_like(goes_on[:1]), goes_on[:-1])).cumprod(0)
        length = belongs.sum(0).long()
        first, last = window[0], self._row(ages + length - 1)
        obs, next_obs = self._obs("obs", first, envs), self._obs("next_obs", last, envs)
        rewards = self._columns["rewards"][window, envs]
        if goals is not None and relabelled is not None:
            chosen, goal = relabelled
            obs = _where(chosen, goals.with_goal(obs, goal), obs)
            next_obs = _where(chosen, goals.with_goal(next_obs, goal), next_obs)
            achieved = goals.achieved(self._seen("next_obs", ages + steps, envs))
            rewards = torch.where(chosen, goals.goal_reward(achieved, goal), rewards)
        terminated = self._columns["terminated"][last, envs]
        return Transitions(
            obs=obs,
            actions=self._columns["actions"][first, envs],
            returns=(gamma**steps * belongs * rewards).sum(0),
            discounts=torch.where(terminated, 0.0, gamma**length),
            next_obs=next_obs,
        )

    def _draw(self, count: int, n_step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Transitions with `n_step - 1` rows after them: how many rows younger than the oldest, and environments."""
        kept = min(self.written, self.rows)
        device = self._columns["rewards"].device
        ages = torch.randint(kept - n_step + 1, (count,), generator=generator, device=device)
        envs = torch.randint(self.num_envs, (count,), generator=generator, device=device)
        return ages, envs

    def _with_hindsight(
        self,
        ages: Tensor,
        envs: Tensor,
        n_step: int,
        generator: torch.Generator,
        goals: Goals,
        hindsight: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Transitions (ages and environments), which of them get a goal in hindsight, and the goals; see `AT_GOAL`.

        What the filter leaves out is drawn again, and keeps its own goal if it leaves out that, too.
        """
        count, device = len(ages), ages.device
        wanted = torch.rand(count, generator=generator, device=device) < hindsight
        takes_any = torch.rand(count, generator=generator, device=device) < AT_GOAL
        chosen = torch.zeros_like(wanted)
        waiting = wanted.nonzero().squeeze(-1)
        goal = goals.achieved(self._seen("obs", ages, envs))
        for draw in range(DRAWS):
            if draw > 0:
                ages[waiting], envs[waiting] = self._draw(len(waiting), n_step, generator)
            of, at = ages[waiting], envs[waiting]
            begins = goals.achieved(self._seen("obs", of, at))
            reached = goals.achieved(self._seen("next_obs", self._later(of, at, generator), at))
            is_there = goals.goal_reward(begins, reached) >= goals.goal_reward(reached, reached)
            taken = takes_any[waiting] | ~is_there
            goal[waiting[taken]] = reached[taken]
            chosen[waiting[taken]] = True
            waiting = waiting[~taken]
        return ages, envs, chosen, goal

    def _row(self, ages: Tensor) -> Tensor:
        """Where rows are that are so many rows younger than the oldest."""
        return (ages + (self.written - min(self.written, self.rows))) % self.rows

    def _later(self, ages: Tensor, envs: Tensor, generator: torch.Generator) -> Tensor:
        """The age of a row of the same episode, not before the given ones, `(count,)`.

        It is drawn up to `LATEST` rows ahead; as long as that is in another episode, the distance is halved.
        """
        kept = min(self.written, self.rows)
        draw = torch.rand(len(ages), generator=generator, device=ages.device)
        ahead = (draw * (kept - ages).clamp(max=LATEST)).long()
        episode = self._columns["episode"][self._row(ages), envs]
        for _ in range(LATEST.bit_length()):
            is_other = self._columns["episode"][self._row(ages + ahead), envs] != episode
            ahead = torch.where(is_other, ahead // 2, ahead)
        return ages + ahead

    def newest(self, rows: int) -> Obs:
        """What was seen in the newest rows, `(rows * num_envs, size)` by group; of all that it holds at most."""
        rows = min(rows, self.written, self.rows)
        where = torch.arange(self.written - rows, self.written) % self.rows
        return {group: self._columns[f"obs/{group}"][where].flatten(0, 1) for group in self._groups}

    def _obs(self, kind: str, rows: Tensor, envs: Tensor) -> Obs:
        return {group: self._columns[f"{kind}/{group}"][rows, envs] for group in self._groups}

    def _seen(self, kind: str, ages: Tensor, envs: Tensor) -> Obs:
        """As `_obs`, by age; a group is read when it is asked for. Rows lie far apart: reading is what takes time."""
        rows = self._row(ages)
        return _OnDemand(self._groups, lambda group: self._columns[f"{kind}/{group}"][rows, envs])

    def state_dict(self) -> dict[str, Tensor]:
        """The rows that were written, and how many there were, as a flat mapping of tensors."""
        kept = min(self.written, self.rows)
        columns = {name: column[:kept] for name, column in self._columns.items()}
        return {**columns, "written": torch.tensor(self.written), "episodes": self._episode}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave. Raises ValueError if it was of another size."""
        self.written = int(state["written"])
        kept = min(self.written, self.rows)
        for name, column in self._columns.items():
            saved = state[name]
            if saved.shape != (kept, *column.shape[1:]):
                raise ValueError(
                    f"the replay buffer was of {tuple(saved.shape)}: use the saved train.buffer"
                )
            column[:kept] = saved
        self._episode = state["episodes"].to(self._episode.device, copy=True)


class _OnDemand(Mapping[str, Tensor]):
    """Observations by group, each made when it is asked for."""

    def __init__(self, groups: tuple[str, ...], make: Callable[[str], Tensor]):
        self._groups = groups
        self._make = make

    def __getitem__(self, group: str) -> Tensor:
        return self._make(group)

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)


def _where(chosen: Tensor, one: Obs, other: Obs) -> Obs:
    """Rows of `one` where `chosen`, `(n,)`, is True, else of `other`."""
    return {group: torch.where(chosen[:, None], one[group], other[group]) for group in other}
