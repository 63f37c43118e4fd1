"""What sensors do to signals on their way to the policy: noise, bias, delay and dropout."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deftly.errors import DeftlyError
from deftly.sim.rows import Rows


@dataclass(frozen=True)
class Noise:
    """What the sensors do to one signal. All numbers are in the signal's units, steps are control steps."""

    uniform: float = 0.0  # half range of white noise, drawn each step
    gaussian: float = 0.0  # standard deviation of white noise, drawn each step
    bias: float = 0.0  # half range of a constant error, drawn each episode
    delay: int = 0  # longest delay, steps; each episode draws one from 0 to this
    dropout: float = 0.0  # probability that a step repeats the last reading


class Sensors:
    """Corrupts signals that have a `Noise` entry; `state` holds what an episode carries: bias, delay, readings.

    Args:
        noise: by signal name.
        sizes: numbers of each signal, by name.
        num_envs: environments.
        generator: of all draws; its device is that of the signals.
    """

    def __init__(
        self,
        noise: dict[str, Noise],
        sizes: dict[str, int],
        num_envs: int,
        generator: torch.Generator,
    ):
        if unknown := [name for name in noise if name not in sizes]:
            raise DeftlyError(
                f"noise on '{unknown[0]}', which is no signal of the contract: {[*sizes]}"
            )
        self._noise = noise
        self._generator = generator
        self._device = generator.device
        self._all = torch.arange(num_envs, device=self._device)
        self.state: dict[str, Tensor] = {}
        for name, n in noise.items():
            size = sizes[name]
            self.state[f"{name}/bias"] = torch.zeros(num_envs, size, device=self._device)
            if n.delay or n.dropout:
                self.state[f"{name}/delay"] = torch.zeros(
                    num_envs, dtype=torch.long, device=self._device
                )
                self.state[f"{name}/recent"] = torch.zeros(
                    num_envs, n.delay + 1, size, device=self._device
                )
                self.state[f"{name}/reading"] = torch.zeros(num_envs, size, device=self._device)

    def read(self, signals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The readings of one step, from the true signals `(num_envs, size)`."""
        return {
            k: self._read(k, v, self._noise[k]) if k in self._noise else v
            for k, v in signals.items()
        }

    def reset(self, signals: dict[str, Tensor], rows: Rows) -> dict[str, Tensor]:
        """The first readings of new episodes, from their true signals `(rows.count, size)`."""
        return {
            k: self._start(k, v, self._noise[k], rows) if k in self._noise else v
            for k, v in signals.items()
        }

    def _read(self, name: str, value: Tensor, n: Noise) -> Tensor:
        value = self._white(value, n) + self.state[f"{name}/bias"]
        if f"{name}/recent" not in self.state:
            return value
        recent, reading = self.state[f"{name}/recent"], self.state[f"{name}/reading"]
        recent.copy_(torch.cat((recent[:, 1:], value[:, None]), 1))
        delayed = recent[self._all, n.delay - self.state[f"{name}/delay"]]
        if not n.dropout:
            reading.copy_(delayed)
            return delayed
        repeat = torch.rand(len(value), generator=self._generator, device=self._device) < n.dropout
        reading.copy_(torch.where(repeat[:, None], reading, delayed))
        return reading.clone()

    def _start(self, name: str, value: Tensor, n: Noise, rows: Rows) -> Tensor:
        bias = n.bias * self._symmetric(value)
        rows.put(self.state[f"{name}/bias"], bias)
        value = self._white(value, n) + bias
        if f"{name}/recent" in self.state:
            delay = torch.randint(
                n.delay + 1, (rows.count,), generator=self._generator, device=self._device
            )
            rows.put(self.state[f"{name}/delay"], delay)
            rows.put(self.state[f"{name}/recent"], value[:, None].expand(-1, n.delay + 1, -1))
            rows.put(self.state[f"{name}/reading"], value)
        return value

    def _white(self, value: Tensor, n: Noise) -> Tensor:
        if n.uniform:
            value = value + n.uniform * self._symmetric(value)
        if n.gaussian:
            value = value + n.gaussian * torch.randn(
                value.shape, generator=self._generator, device=self._device
            )
        return value

    def _symmetric(self, like: Tensor) -> Tensor:
        """Uniform in -1 .. 1."""
        return 2 * torch.rand(like.shape, generator=self._generator, device=self._device) - 1
