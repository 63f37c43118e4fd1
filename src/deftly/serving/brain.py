"""What decides behind a policy server: a policy, or a recording that is replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from deftly.contract import Inputs, Memory, PolicyContract
from deftly.errors import DeftlyError
from deftly.policy.protocol import Network, Signals, blank, stacked


class Step(NamedTuple):
    """What one robot asks for one control step."""

    signals: Signals
    memory: Any
    applied: np.ndarray | None
    """(num_joints,) float32: what the robot was commanded last, if not the last targets."""
    inputs: Inputs | None = None
    """What an operator or planner says; a missing one takes its default."""


class Brain(Protocol):
    """What decides. A memory is never changed in place: the server keeps the old one if a step fails."""

    contract: PolicyContract

    def reset(self, signals: Signals, inputs: Inputs | None = None) -> Any:
        """The memory of an episode that starts where the robot is."""
        ...

    def infer(self, batch: Sequence[Step]) -> list[tuple[np.ndarray, np.ndarray, Any]]:
        """Action (action_size,), targets (num_joints,) and new memory for each step of different robots."""
        ...


class PolicyBrain:
    """A network under a contract: one call of the network for all robots that ask together."""

    def __init__(self, contract: PolicyContract, network: Network):
        self.contract, self.network = contract, network
        shape = self.network(blank(contract, 2)).shape
        if shape != (2, contract.action_size):
            raise DeftlyError(
                f"the network answers {shape} for 2 robots, the contract wants (2, {contract.action_size})"
            )

    def reset(self, signals: Signals, inputs: Inputs | None = None) -> Memory:
        """The contract's memory."""
        return self.contract.reset(signals, inputs)

    def infer(self, batch: Sequence[Step]) -> list[tuple[np.ndarray, np.ndarray, Memory]]:
        """The contract's steps around one call of the network."""
        observed, memories = [], []
        for signals, memory, applied, inputs in batch:
            memory = memory if applied is None else self.contract.follow(applied, memory)
            groups, memory = self.contract.observe(signals, memory, inputs)
            observed.append(groups)
            memories.append(memory)
        actions = self.network(stacked(self.contract, observed))
        return [(action, *self.contract.act(action, memory)) for action, memory in zip(actions, memories)]
