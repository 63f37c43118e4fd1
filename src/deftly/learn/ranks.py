"""Several processes that train one policy together, each with environments of its own (`torchrun`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deftly.errors import DeftlyError

MAX_TEXT = 4096
"""Longest text that ranks exchange, bytes: a path."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a `torchrun`; rank 0 of 1 without it.

    Every method that exchanges something is to be called by all ranks, in the same order. gloo carries it, so that
    CPUs and GPUs do the same.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Self:
        """Join the process group that `torchrun` describes in the environment variables."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        return cls(dist.get_rank(), size)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    @property
    def on_this_machine(self) -> int:
        """How many of the ranks share this machine's cores."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.size))

    def any(self, flags: Iterable[bool]) -> list[bool]:
        """For each flag, whether it is set at any rank."""
        votes = torch.tensor([float(flag) for flag in flags])
        if self.size > 1:
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes]

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over the ranks of scalar tensors; the names must be the same everywhere."""
        if self.size == 1 or not values:
            return dict(values)
        stacked = torch.stack([value.double().cpu() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, stacked, strict=True))

    def mean_(self, value: Tensor) -> Tensor:
        """Replace a tensor by its mean over the ranks; returns it."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their means over the ranks."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.mean_(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, mean in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def broadcast_(self, modules: Iterable[nn.Module]) -> None:
        """Give every rank the parameters and buffers of rank 0."""
        if self.size == 1:
            return
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, src=0)

    def share_text(self, text: str) -> str:
        """The text of rank 0, at every rank."""
        if self.size == 1:
            return text
        encoded = text.encode()
        if len(encoded) > MAX_TEXT:
            raise DeftlyError(
                f"a path of {len(encoded)} bytes is too long for several processes: at most {MAX_TEXT}"
            )
        buffer = torch.zeros(MAX_TEXT, dtype=torch.uint8)
        buffer[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
        dist.broadcast(buffer, src=0)
        return bytes(buffer.tolist()).rstrip(b"\0").decode()

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """What every rank gave, by rank, at rank 0; an empty list at the others."""
        if self.size == 1:
            return [data]
        sizes = torch.zeros(self.size, dtype=torch.long)
        sizes[self.rank] = len(data)
        dist.all_reduce(sizes)
        padded = torch.zeros(int(sizes.max()), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        gathered = [torch.empty_like(padded) for _ in range(self.size)] if self.first else None
        dist.gather(padded, gathered, dst=0)
        if gathered is None:
            return []
        return [
            part[:size].numpy().tobytes()
            for part, size in zip(gathered, sizes.tolist(), strict=True)
        ]
