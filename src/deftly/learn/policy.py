"""A trained network as a `Policy`: torch inside an environment, numpy on a robot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from deftly.contract import Memory, PolicyContract
from deftly.contract.arrays import Array
from deftly.env import group_of
from deftly.policy.protocol import ContractPolicy, Signals, as_seen


class NetworkPolicy(ContractPolicy):
    """A torch network under a contract.

    Tensors stay tensors, on their device: an environment judges numbers that are not finite itself.

    Args:
        contract: Under which the network was trained.
        network: Observation (n, obs_size), or observations by group, to actions (n, action_size).
        stochastic: Draw actions from the network's distribution: it is called with `stochastic=True`, and takes torch's
            own random numbers.
    """

    def __init__(
        self, contract: PolicyContract, network: Callable[..., Tensor], stochastic: bool = False
    ):
        def act(obs: Any) -> Array:
            return _called(network, obs, {"stochastic": True} if stochastic else {})

        super().__init__(contract, act, not stochastic)

    def _read(self, signals: Signals) -> dict[str, Array]:
        if all(isinstance(value, Tensor) for value in signals.values()):
            return dict(signals)
        return as_seen(signals)

    def _keep_finite(self, rows: list[int], memory: Memory, action: Array, targets: Array) -> None:
        if isinstance(action, Tensor):
            self._keep(rows, memory)
        else:
            super()._keep_finite(rows, memory, action, targets)


def _called(network: Callable[..., Tensor], obs: Any, how: Mapping[str, Any]) -> Array:
    """The network's actions, of the library of its observation."""
    if isinstance(obs, Mapping):
        tensors: Any = {group_of(name): torch.as_tensor(value) for name, value in obs.items()}
        is_torch = all(isinstance(value, Tensor) for value in obs.values())
    else:
        tensors = torch.as_tensor(obs)
        is_torch = isinstance(obs, Tensor)
    action = network(tensors, **how)
    return action if is_torch else action.numpy()
