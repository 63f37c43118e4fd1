"""The state of an optimizer as a flat mapping of tensors, which a checkpoint holds."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer


def pack(optimizer: Optimizer, name: str = "optimizer") -> dict[str, Tensor]:
    """Moments and step counts, by `name/PARAMETER/STATE`."""
    return {
        f"{name}/{index}/{key}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def unpack(optimizer: Optimizer, state: Mapping[str, Tensor], name: str = "optimizer") -> None:
    """Restore what `pack` gave from a mapping that may hold other things too.

    Raises ValueError for moments of other parameters.
    """
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, value in state.items():
        if key.startswith(f"{name}/"):
            _, index, part = key.rsplit("/", 2)
            known = int(index) in range(len(parameters))
            if not known or value.shape != (() if part == "step" else parameters[int(index)].shape):
                raise ValueError(
                    f"{key} is {tuple(value.shape)}, which is no moment of a parameter"
                )
            moments[int(index)][part] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
