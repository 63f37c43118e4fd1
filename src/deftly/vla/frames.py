"""The frames of a data set in memory, as batches: what the robot saw, and the chunk of actions that followed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deftly.console import progress
from deftly.errors import DeftlyError
from deftly.vla.features import ACTION, IMAGES, OBS_STATE

GB = 1 << 30


class Frames(NamedTuple):
    """All frames of a data set; arrays lead with the frames."""

    images: dict[str, np.ndarray]
    """By camera, (n, size, size, 3) uint8."""
    state: np.ndarray
    """(n, k) float32."""
    action: np.ndarray
    """(n, m) float32."""
    last: np.ndarray
    """Index of the last frame of each frame's episode, (n,)."""
    prompts: list[str]
    """What the robot was told, for each frame."""

    def __len__(self) -> int:
        return len(self.state)

    def batch(self, rows: np.ndarray, chunk: int) -> dict[str, Any]:
        """What a model learns from: observations, and `chunk` actions from each row on.

        Actions beyond the end of an episode repeat its last, and are marked in `action_is_pad` (b, chunk).
        """
        after = rows[:, None] + np.arange(chunk)
        padded = after > self.last[rows, None]
        actions = self.action[np.minimum(after, self.last[rows, None])]
        return {
            **{IMAGES + name: to_float(each[rows]) for name, each in self.images.items()},
            OBS_STATE: torch.from_numpy(self.state[rows]),
            ACTION: torch.from_numpy(actions),
            "action_is_pad": torch.from_numpy(padded),
            "task": [self.prompts[row] for row in rows],
        }


def to_float(images: np.ndarray) -> Tensor:
    """Images (n, height, width, 3) uint8 as a model takes them: (n, 3, height, width) float32 in 0 .. 1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255.0


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Images (n, height, width, 3) uint8 in another size, square, antialiased; the same code learns and acts."""
    if not size or images.shape[1] == size:
        return images
    found = functional.interpolate(
        to_float(images), size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return (found * 255.0).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def load(
    path: Path,
    rows: dict[str, np.ndarray],
    prompts: Sequence[str],
    cameras: dict[str, bool],
    size: int,
    limit_gb: float,
) -> Frames:
    """Read all frames of a data set.

    Args:
        path: Its folder.
        rows: Its columns `observation.state`, `action` and `episode_index`.
        prompts: What the robot was told in each episode.
        cameras: Whether the images of each camera are videos.
        size: Width and height to which images are brought, pixels.
        limit_gb: Most memory for images, GB.

    Raises DeftlyError, before anything is read, if they need more.
    """
    episode = rows["episode_index"]
    count = len(episode)
    need = count * len(cameras) * 3 * size * size / GB
    if need > limit_gb:
        raise DeftlyError(
            f"the images of '{path}' need {need:.1f} GB of memory at {size} pixels, more than --cache-gb {limit_gb:g}: "
            "allow more, or a smaller --image-size"
        )
    images = {}
    for name, is_video in cameras.items():
        store = np.empty((count, size, size, 3), np.uint8)
        source = _of_videos(path, name) if is_video else _of_tables(path, name)
        found = 0
        for image in progress(source, f"reading {name}", count):
            if found < count:
                store[found] = resized(image[None], size)[0]
            found += 1
        if found != count:
            raise DeftlyError(f"'{path}' has {found} images of {name}, expected {count}")
        images[name] = store
    ends = np.flatnonzero(np.diff(episode, append=-1))
    last = ends[np.searchsorted(ends, np.arange(count))]
    told = [prompts[int(i)] for i in episode]
    return Frames(images, rows[OBS_STATE], rows[ACTION], last, told)


def _of_videos(path: Path, camera: str) -> Iterator[np.ndarray]:
    import av

    for file in sorted((path / "videos" / (IMAGES + camera)).glob("*/*.mp4")):
        with av.open(str(file)) as video:
            for frame in video.decode(video=0):
                yield frame.to_ndarray(format="rgb24")


def _of_tables(path: Path, camera: str) -> Iterator[np.ndarray]:
    import io

    import pyarrow.parquet as parquet  # type: ignore[import-not-found]
    from PIL import Image

    for file in sorted((path / "data").glob("*/*.parquet")):
        for part in parquet.ParquetFile(file).iter_batches(64, columns=[IMAGES + camera]):
            for value in part.column(0).to_pylist():
                yield np.asarray(Image.open(io.BytesIO(value["bytes"])).convert("RGB"))
