"""What decides behind a policy server: a policy, or a recording that is replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from deftly.contract import Contract, Memory
from deftly.errors import DeftlyError
from deftly.policy.protocol import Network, Signals


class Step(NamedTuple):
    """What one robot asks for one control step."""

    signals: Signals
    memory: Any
    applied: np.ndarray | None
    """(num_joints,) float32: what the robot was commanded last, if not the last targets."""


class Brain(Protocol):
    """What decides. A memory is never changed in place: the server keeps the old one if a step fails."""

    contract: Contract

    def reset(self, signals: Signals) -> Any:
        """The memory of an episode that starts where the robot is."""
        ...

    def infer(self, batch: Sequence[Step]) -> list[tuple[np.ndarray, np.ndarray, Any]]:
        """Action (action_size,), targets (num_joints,) and new memory for each step of different robots."""
        ...


class PolicyBrain:
    """A network under a contract: one call of the network for all robots that ask together."""

    def __init__(self, contract: Contract, network: Network):
        self.contract, self.network = contract, network
        shape = self.network(np.zeros((2, contract.obs_size), np.float32)).shape
        if shape != (2, contract.action_size):
            raise DeftlyError(
                f"the network answers {shape} for 2 robots, the contract wants (2, {contract.action_size})"
            )

    def reset(self, signals: Signals) -> Memory:
        """The contract's memory."""
        return self.contract.reset(signals)

    def infer(self, batch: Sequence[Step]) -> list[tuple[np.ndarray, np.ndarray, Memory]]:
        """The contract's steps around one call of the network."""
        observed = []
        for signals, memory, applied in batch:
            memory = memory if applied is None else self.contract.follow(applied, memory)
            observed.append(self.contract.observe(signals, memory))
        actions = self.network(np.stack([obs for obs, _ in observed]))
        return [(action, *self.contract.act(action, memory)) for action, (_, memory) in zip(actions, observed)]
