"""What sensors do to signals on their way to the policy: noise, bias, delay and dropout."""

import torch
from torch import Tensor

from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.tasks import Noise


class Sensors:
    """Corrupts signals that have a `Noise` entry; `state` holds what an episode carries: bias, delay, readings."""

    def __init__(self, noise: dict[str, Noise], contract: PolicyContract, num_envs: int, generator: torch.Generator):
        known = [signal.name for signal in contract.signals]
        if unknown := [name for name in noise if name not in known]:
            raise DeftlyError(f"noise on '{unknown[0]}', which is no signal of the contract: {known}")
        self._noise, self._generator = noise, generator
        self.state: dict[str, Tensor] = {}
        for name, n in noise.items():
            size = contract.source_size(name)
            self.state[f"{name}/bias"] = torch.zeros(num_envs, size)
            if n.delay or n.dropout:
                self.state[f"{name}/delay"] = torch.zeros(num_envs, dtype=torch.long)
                self.state[f"{name}/recent"] = torch.zeros(num_envs, n.delay + 1, size)
                self.state[f"{name}/reading"] = torch.zeros(num_envs, size)

    def read(self, signals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The readings of one step, from the true signals `(num_envs, size)`."""
        return {k: self._read(k, v, self._noise[k]) if k in self._noise else v for k, v in signals.items()}

    def reset(self, signals: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """The first readings of new episodes in `ids`, from their true signals `(len(ids), size)`."""
        return {k: self._start(k, v, self._noise[k], ids) if k in self._noise else v for k, v in signals.items()}

    def _read(self, name: str, value: Tensor, n: Noise) -> Tensor:
        value = self._white(value, n) + self.state[f"{name}/bias"]
        if f"{name}/recent" not in self.state:
            return value
        recent, reading = self.state[f"{name}/recent"], self.state[f"{name}/reading"]
        recent.copy_(torch.cat((recent[:, 1:], value[:, None]), 1))
        delayed = recent[torch.arange(len(value)), n.delay - self.state[f"{name}/delay"]]
        repeat = torch.rand(len(value), generator=self._generator) < n.dropout
        reading.copy_(torch.where(repeat[:, None], reading, delayed))
        return reading.clone()

    def _start(self, name: str, value: Tensor, n: Noise, ids: Tensor) -> Tensor:
        bias = n.bias * (2 * torch.rand(value.shape, generator=self._generator) - 1)
        self.state[f"{name}/bias"][ids] = bias
        value = self._white(value, n) + bias
        if f"{name}/recent" in self.state:
            self.state[f"{name}/delay"][ids] = torch.randint(n.delay + 1, (len(ids),), generator=self._generator)
            self.state[f"{name}/recent"][ids] = value[:, None].expand(-1, n.delay + 1, -1)
            self.state[f"{name}/reading"][ids] = value
        return value

    def _white(self, value: Tensor, n: Noise) -> Tensor:
        if n.uniform:
            value = value + n.uniform * (2 * torch.rand(value.shape, generator=self._generator) - 1)
        if n.gaussian:
            value = value + n.gaussian * torch.randn(value.shape, generator=self._generator)
        return value
