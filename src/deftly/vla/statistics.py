"""Normalization statistics of a data set: computed once, kept with every checkpoint, and bound to it by a hash.

A model that is asked with other statistics than it learned with does not fail, it is wrong; so they are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from deftly.errors import DeftlyError

Statistics = dict[str, dict[str, list[Any]]]
"""By feature: `mean`, `std`, `min`, `max`, `q01`, `q99`, each as long as a row; of an image (3, 1, 1), in 0 .. 1."""
KEYS = ("mean", "std", "min", "max", "q01", "q99")
"""What is computed of a feature; of an image the first four."""
BOUNDS = (("min", "max"), ("q01", "q99"))
"""Statistics of which the first is at most the second: models scale by their difference."""
OF_COLOURS = (3, 1, 1)
"""Shape of the statistics of an image, which broadcasts over (3, height, width)."""
FLOOR = 0.01
"""Smallest standard deviation, as a part of the whole range: a joint that never moved must not magnify its noise."""


def of_numbers(rows: np.ndarray, ranges: np.ndarray) -> dict[str, list[float]]:
    """Statistics of rows (n, size).

    Args:
        rows: What was seen.
        ranges: Whole range of each element, (size,), such as between a joint's limits.
    """
    rows = np.asarray(rows, np.float64)
    floor = FLOOR * ranges
    found = {
        "mean": rows.mean(0),
        "std": np.maximum(rows.std(0), floor),
        "min": rows.min(0),
        "max": rows.max(0),
        "q01": np.quantile(rows, 0.01, axis=0),
        "q99": np.quantile(rows, 0.99, axis=0),
    }
    spread = found["q99"] - found["q01"]
    widening = np.where(spread < floor, floor, 0.0)
    for low, high in BOUNDS:
        found[low] = found[low] - widening
        found[high] = found[high] + widening
    return {name: _listed(value) for name, value in found.items()}


def _listed(value: np.ndarray) -> list[Any]:
    """As JSON keeps it, rounded to float32."""
    return np.asarray(value, np.float32).tolist()


def of_images(images: np.ndarray) -> dict[str, list[Any]]:
    """Statistics of images (n, height, width, 3) uint8: of each colour, in 0 .. 1, shaped (3, 1, 1)."""
    count = 0
    total = np.zeros(3)
    squares = np.zeros(3)
    for start in range(0, len(images), 256):
        batch = images[start : start + 256]
        colours = batch.reshape(-1, 3).astype(np.float32) / 255.0
        count += len(colours)
        total += colours.sum(0, dtype=np.float64)
        squares += np.square(colours).sum(0, dtype=np.float64)
    mean = total / count
    variance = squares / count - mean**2
    std = np.sqrt(np.maximum(variance, 1e-6))
    found = {"mean": mean, "std": std, "min": np.zeros(3), "max": np.ones(3)}
    return {name: _listed(value.reshape(OF_COLOURS)) for name, value in found.items()}


def digest(statistics: Statistics) -> str:
    """sha256 of their canonical JSON, in hex."""
    text = json.dumps(statistics, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def require_same(mine: Statistics, other: Statistics, what: str) -> None:
    """Raise DeftlyError naming the first difference between statistics and those of `what`."""
    if digest(mine) == digest(other):
        return
    names = [name for name in (*mine, *other) if mine.get(name) != other.get(name)]
    raise DeftlyError(
        f"the normalization statistics of {what} are others, first those of '{names[0]}': it learned from another data "
        "set; give that one, or start a new training"
    )


def parse(tree: Any, shapes: Mapping[str, tuple[int, ...]], what: str) -> Statistics:
    """Statistics that were read from a file.

    Args:
        tree: The JSON.
        shapes: Of each feature that must be there: (size,) of numbers, `OF_COLOURS` of an image.
        what: The file, for the message.

    Raises DeftlyError unless each has finite numbers of the right count: what lacks some, LeRobot does not normalize.
    """
    try:
        for name, shape in shapes.items():
            _require_feature(tree[name], name, shape)
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error)
        if isinstance(error, KeyError):
            reason = f"'{error.args[0]}' is missing"
        raise DeftlyError(f"{what} has no whole normalization statistics: {reason}") from None
    return tree


def _require_feature(feature: Any, name: str, shape: tuple[int, ...]) -> None:
    """Raise KeyError, TypeError or ValueError for what are no statistics of a feature of this shape."""
    keys = KEYS if shape != OF_COLOURS else KEYS[:4]
    for key in keys:
        values = np.asarray(feature[key], np.float64)
        if values.shape != shape or not np.isfinite(values).all():
            raise ValueError(f"'{key}' of '{name}' is not {values_of(shape)}")
    std = np.asarray(feature["std"])
    if (std <= 0).any():
        raise ValueError(f"'std' of '{name}' is not positive")
    for low, high in BOUNDS:
        if low in keys and (np.asarray(feature[low]) > np.asarray(feature[high])).any():
            raise ValueError(f"'{low}' of '{name}' is above its '{high}'")


def values_of(shape: tuple[int, ...]) -> str:
    """What is expected of a shape, in words."""
    if len(shape) == 1:
        return f"{shape[0]} finite numbers"
    return f"finite numbers of shape {shape}"
