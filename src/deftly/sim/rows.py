"""Some environments of a batch, in the way that suits the device.

On a CPU few rows are cheaper than all, and to count them costs nothing: they are taken by their indices. On a GPU
counting would wait for the device, and all rows cost as little as some: everything is computed, and a mask selects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Rows:
    """The environments of a mask `(num_envs,)`; `ids` are their indices on a CPU, and None on a GPU.

    Attributes:
        count: rows that `take` gives: those of the mask, or all of them.
    """

    def __init__(self, mask: Tensor):
        self.mask = mask
        self.ids: Tensor | None = None
        self.count = mask.shape[0]
        if mask.device.type == "cpu":
            self.ids = mask.nonzero().squeeze(-1)
            self.count = self.ids.shape[0]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do; on a GPU it never is, since nobody counts."""
        return self.ids is not None and self.count == 0

    def take(self, value: Tensor) -> Tensor:
        """The rows of `value (num_envs, ...)`, `(count, ...)`."""
        if self.ids is None:
            return value
        return value.index_select(0, self.ids)

    def put(self, target: Tensor, value: Tensor | float) -> None:
        """Write rows `(count, ...)`, or a number, into `target (num_envs, ...)`."""
        if self.ids is None:
            mask = wide(self.mask, target)
            target.copy_(torch.where(mask, value, target))
        elif isinstance(value, Tensor):
            target.index_copy_(0, self.ids, value.to(target.dtype))
        else:
            target.index_fill_(0, self.ids, value)

    def merge(self, old: Tensor | None, new: Tensor) -> Tensor:
        """A copy of `old (num_envs, ...)` with the rows `new (count, ...)`; `new` where there is no old."""
        if old is None:
            return new
        if self.ids is not None:
            return old.index_copy(0, self.ids, new)
        return torch.where(wide(self.mask, old), new, old)

    def merge_all(
        self,
        old: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        in_place: Callable[[str], bool] = lambda _: False,
    ) -> dict[str, Tensor]:
        """`merge` for each name; tensors that nobody else holds may be changed `in_place`, which saves a copy."""
        merged = {}
        for name, value in new.items():
            if name in old and in_place(name):
                self.put(old[name], value)
                merged[name] = old[name]
            else:
                merged[name] = self.merge(old.get(name), value)
        return merged

    def of_mask(self, value: Tensor) -> Tensor:
        """Values `(..., count)` with 0 for rows that are not of the mask, to be summed."""
        return value if self.ids is not None else torch.where(self.mask, value, 0)

    def draw(self, generator: torch.Generator, *size: int, dtype: torch.dtype) -> Tensor:
        """Uniform in 0 .. 1, `(count, *size)`."""
        shape = (self.count, *size)
        return torch.rand(shape, generator=generator, dtype=dtype, device=self.mask.device)


def wide(mask: Tensor, like: Tensor) -> Tensor:
    """A mask `(num_envs,)` with as many trailing axes of size 1 as `like` has more."""
    trailing = [1] * (like.ndim - 1)
    return mask.view(-1, *trailing)
