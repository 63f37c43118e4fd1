"""A replay buffer on the device of the environments, which gives n-step transitions with their true ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Obs = Mapping[str, Tensor]
"""Observations by group, each `(n, size)`."""


class Transitions(NamedTuple):
    """What was seen and done, and what came of it in the next steps; the leading axis counts them."""

    obs: Obs
    actions: Tensor  # (n, action_size)
    returns: Tensor  # (n,) discounted sum of the rewards of the steps until `next_obs`
    discounts: Tensor  # (n,) of the value of `next_obs`; 0 where the episode terminated
    next_obs: Obs  # some steps later, or at the end of the episode if that came first


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
        sizes |= {"actions": (action_size,), "rewards": (), "terminated": (), "ended": ()}
        flags = ("terminated", "ended")
        self._columns = {
            name: torch.zeros(
                self.rows,
                num_envs,
                *size,
                dtype=torch.bool if name in flags else torch.float32,
                device=device,
            )
            for name, size in sizes.items()
        }
        self._groups = tuple(obs_sizes)

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
        self.written += 1

    def sample(
        self, count: int, n_step: int, gamma: float, generator: torch.Generator
    ) -> Transitions:
        """Draw transitions with replacement, uniformly over those with `n_step - 1` rows after them.

        Rewards are summed over up to `n_step` steps, never beyond an episode's end; what follows is worth
        `discounts` of its value. One that time cut off goes on in value, one that terminated does not.
        """
        kept = min(self.written, self.rows)
        device = self._columns["rewards"].device
        starts = kept - n_step + 1
        ages = torch.randint(starts, (count,), generator=generator, device=device)
        first = (ages + (self.written - kept)) % self.rows
        envs = torch.randint(self.num_envs, (count,), generator=generator, device=device)
        steps = torch.arange(n_step, device=device)[:, None]
        rows = (first + steps) % self.rows  # (n_step, count)
        goes_on = 1.0 - self._columns["ended"][rows, envs].float()
        # Whether step k of the window still belongs to the episode of its first.
        belongs = torch.cat((torch.ones_like(goes_on[:1]), goes_on[:-1])).cumprod(0)
        powers = gamma**steps
        returns = (powers * belongs * self._columns["rewards"][rows, envs]).sum(0)
        length = belongs.sum(0).long()
        last = (first + length - 1) % self.rows
        terminated = self._columns["terminated"][last, envs]
        return Transitions(
            obs=self._obs("obs", first, envs),
            actions=self._columns["actions"][first, envs],
            returns=returns,
            discounts=torch.where(terminated, 0.0, gamma**length),
            next_obs=self._obs("next_obs", last, envs),
        )

    def newest(self, rows: int) -> Obs:
        """What was seen in the newest rows, `(rows * num_envs, size)` by group; of all that it holds at most."""
        rows = min(rows, self.written, self.rows)
        where = torch.arange(self.written - rows, self.written) % self.rows
        return {group: self._columns[f"obs/{group}"][where].flatten(0, 1) for group in self._groups}

    def _obs(self, kind: str, rows: Tensor, envs: Tensor) -> Obs:
        return {group: self._columns[f"{kind}/{group}"][rows, envs] for group in self._groups}

    def state_dict(self) -> dict[str, Tensor]:
        """The rows that were written, and how many there were, as a flat mapping of tensors."""
        kept = min(self.written, self.rows)
        columns = {name: column[:kept] for name, column in self._columns.items()}
        return {**columns, "written": torch.tensor(self.written)}

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
