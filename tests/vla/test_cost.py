"""What a training takes, of networks small enough to count by hand; none of it needs LeRobot."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deftly.errors import DeftlyError
from deftly.vla import cost

FLOAT = 4
"""Bytes of a float32."""


def test_parameters_that_learn_take_gradients_and_two_moments():
    network = nn.Linear(2, 3)
    assert cost.of_network(network) == (9, 9, pytest.approx(9 * FLOAT * 4 / cost.GB))
    network.weight.requires_grad_(False)
    network.to(torch.bfloat16)
    assert cost.of_network(network) == (9, 3, pytest.approx((9 + 3 * 3) * 2 / cost.GB))


def test_what_one_frame_keeps_is_counted_once_and_without_the_weights():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    rows = []
    model = SimpleNamespace(network=network, loss=lambda batch: (network(batch["x"]).sum(), {}))
    frames = SimpleNamespace(batch=lambda at, chunk: rows.append(at) or {"x": torch.ones(1, 4)})
    # the input, and what the activation gives, which the second layer takes
    assert cost.activations_gb(model, frames, 3) == pytest.approx((4 + 8) * FLOAT / cost.GB)
    assert [list(at) for at in rows] == [[0]]


def test_memory_that_runs_out_is_one_line():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
    ):
        said = pytest.raises(DeftlyError, match="the memory of cpu is over: use a smaller --batch")
        with said, cost.said_if_too_large("cpu"):
            raise error
    with pytest.raises(RuntimeError, match="of another kind"), cost.said_if_too_large("cpu"):
        raise RuntimeError("of another kind")
