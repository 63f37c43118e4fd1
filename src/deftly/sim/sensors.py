"""What sensors do to signals on their way to the policy: noise, bias, delay and dropout."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import Doc

from deftly.config import check
from deftly.errors import DeftlyError
from deftly.sim.rows import Rows


@dataclass(frozen=True)
class Noise:
    """What the sensors do to one signal. All numbers are in the signal's units, steps are control steps."""

    uniform: Annotated[float, Ge(0), Doc("Half range of white noise, drawn each step.")] = 0.0
    gaussian: Annotated[
        float, Ge(0), Doc("Standard deviation of white noise, drawn each step.")
    ] = 0.0
    bias: Annotated[float, Ge(0), Doc("Half range of a constant error, drawn each episode.")] = 0.0
    offset: Annotated[
        tuple[float, ...], Doc("A constant error of each component, the same in all episodes.")
    ] = ()
    delay: Annotated[
        int, Ge(0), Le(1000), Doc("Longest delay, steps; each episode draws one from 0 to this.")
    ] = 0
    dropout: Annotated[
        float, Ge(0), Le(1), Doc("Probability that a step repeats the last reading.")
    ] = 0.0


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
        for name, entry in noise.items():
            if name not in sizes:
                raise DeftlyError(
                    f"noise on '{name}', which is no signal of the contract: {[*sizes]}"
                )
            check(entry, f"noise of {name}")
            if len(entry.offset) not in (0, sizes[name]):
                raise DeftlyError(
                    f"noise of {name}: the offset has {len(entry.offset)} numbers, the signal {sizes[name]}"
                )
        self._noise = noise
        self._generator = generator
        self._device = generator.device
        self._all = torch.arange(num_envs, device=self._device)
        self.state: dict[str, Tensor] = {}
        for name in noise:
            self._allocate(name, num_envs, sizes[name])

    def _allocate(self, name: str, num_envs: int, size: int) -> None:
        """Zeros for what an episode carries of one signal; its past readings only if it is late or repeats."""
        noise = self._noise[name]
        device = self._device
        self.state[f"{name}/bias"] = torch.zeros(num_envs, size, device=device)
        if not (noise.delay or noise.dropout):
            return
        self.state[f"{name}/delay"] = torch.zeros(num_envs, dtype=torch.long, device=device)
        self.state[f"{name}/recent"] = torch.zeros(num_envs, noise.delay + 1, size, device=device)
        self.state[f"{name}/reading"] = torch.zeros(num_envs, size, device=device)

    def read(self, signals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The readings of one step, from the true signals `(num_envs, size)`."""
        readings = dict(signals)
        for name, value in signals.items():
            if name in self._noise:
                readings[name] = self._read(name, value)
        return readings

    def reset(self, signals: dict[str, Tensor], rows: Rows) -> dict[str, Tensor]:
        """The first readings of new episodes, from their true signals `(rows.count, size)`."""
        readings = dict(signals)
        for name, value in signals.items():
            if name in self._noise:
                readings[name] = self._start(name, value, rows)
        return readings

    def _read(self, name: str, value: Tensor) -> Tensor:
        noise = self._noise[name]
        value = self._white(value, noise) + self.state[f"{name}/bias"]
        if f"{name}/recent" not in self.state:
            return value
        reading = self.state[f"{name}/reading"]
        delayed = self._delayed(name, value)
        if not noise.dropout:
            reading.copy_(delayed)
            return delayed
        uniform = torch.rand(len(value), generator=self._generator, device=self._device)
        repeat = uniform < noise.dropout
        reading.copy_(torch.where(repeat[:, None], reading, delayed))
        return reading.clone()

    def _delayed(self, name: str, value: Tensor) -> Tensor:
        """The value `(num_envs, size)` of as many steps ago as the episode's delay; this one is remembered."""
        recent = self.state[f"{name}/recent"]  # (num_envs, delay + 1, size), oldest first
        recent.copy_(torch.cat((recent[:, 1:], value[:, None]), 1))
        return recent[self._all, self._noise[name].delay - self.state[f"{name}/delay"]]

    def _start(self, name: str, value: Tensor, rows: Rows) -> Tensor:
        noise = self._noise[name]
        bias = noise.bias * self._symmetric(value)
        if noise.offset:
            bias = bias + torch.tensor(noise.offset, device=self._device)
        rows.put(self.state[f"{name}/bias"], bias)
        value = self._white(value, noise) + bias
        if f"{name}/recent" not in self.state:
            return value
        steps = noise.delay + 1
        delay = torch.randint(steps, (rows.count,), generator=self._generator, device=self._device)
        rows.put(self.state[f"{name}/delay"], delay)
        rows.put(self.state[f"{name}/recent"], value[:, None].expand(-1, steps, -1))
        rows.put(self.state[f"{name}/reading"], value)
        return value

    def _white(self, value: Tensor, noise: Noise) -> Tensor:
        if noise.uniform:
            value = value + noise.uniform * self._symmetric(value)
        if noise.gaussian:
            value = value + noise.gaussian * self._normal(value)
        return value

    def _normal(self, like: Tensor) -> Tensor:
        """Standard normal."""
        return torch.randn(like.shape, generator=self._generator, device=self._device)

    def _symmetric(self, like: Tensor) -> Tensor:
        """Uniform in -1 .. 1."""
        return 2 * torch.rand(like.shape, generator=self._generator, device=self._device) - 1
