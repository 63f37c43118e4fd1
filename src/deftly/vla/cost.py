"""What a training takes, said before it starts: parameters, memory and time."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from deftly.errors import DeftlyError
from deftly.vla import models
from deftly.vla.frames import Frames
from deftly.vla.models import Model

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig  # type: ignore[import-not-found]

GB = 1e9


class Cost(NamedTuple):
    """What the parameters of a model take while it learns."""

    total: int
    """Parameters."""
    learning: int
    """Parameters that learn."""
    memory_gb: float
    """Of weights, gradients and the two moments of AdamW."""


def of_settings(kind: str, config: PreTrainedConfig, lora: int) -> Cost:
    """The cost of a model that is not made yet: its parameters have shapes, and no memory (torch's device `meta`).

    Raises DeftlyError, one line, where its tokenizers are not on this machine.
    """
    config = copy.copy(config)
    config.device = "meta"
    with torch.device("meta"):
        network = models.network_of(kind, config)
        return of_network(models.adapted(network, lora))


def of_network(network: nn.Module) -> Cost:
    """The cost of the parameters of a network."""
    parameters = list(network.parameters())
    learning = [each for each in parameters if each.requires_grad]
    held = sum(each.nbytes for each in parameters)
    moments = sum(2 * each.nbytes for each in learning)
    gradients = sum(each.nbytes for each in learning)
    return Cost(
        sum(each.numel() for each in parameters),
        sum(each.numel() for each in learning),
        (held + gradients + moments) / GB,
    )


def activations_gb(model: Model, frames: Frames, chunk: int) -> float:
    """Memory that one frame of a batch keeps until its gradient is known, GB, measured in the loss of one.

    A block whose activations are computed again (gradient checkpointing) counts with its inputs.
    """
    own = {each.untyped_storage().data_ptr() for each in model.network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(frames.batch(np.zeros(1, np.int64), chunk))
    return sum(kept.values()) / GB


def seconds_a_step(model: Model, frames: Frames, batch: int, chunk: int) -> float:
    """Time of a step, s, by trying two; nothing has learned afterwards."""
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        loss, _ = model.loss(frames.batch(np.arange(batch) % len(frames), chunk))
        loss.backward()
        times.append(time.perf_counter() - begun)
        model.network.zero_grad(set_to_none=True)
    return min(times)


@contextlib.contextmanager
def said_if_too_large(device: str) -> Iterator[None]:
    """Memory that runs out in this block becomes a DeftlyError of one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has a class of its own for a GPU, and a sentence for the processor's memory
        of_device = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not of_device and "allocate memory" not in str(error):
            raise
        raise DeftlyError(
            f"the memory of {device} is over: use a smaller --batch, --lora 16, or a larger device; "
            "what was saved is whole"
        ) from None
