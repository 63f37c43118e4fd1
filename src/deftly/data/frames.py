"""Reading the frames of a data set into memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deftly.console import printable, progress
from deftly.data.dataset import Dataset, data_files, read_numbers, video_files
from deftly.errors import DeftlyError
from deftly.vla.features import ACTION, IMAGES, OBS_STATE, image_sizes
from deftly.vla.frames import Frames, resized

GB = 1 << 30


def load(found: Dataset, size: int, limit_gb: float) -> Frames:
    """Read all frames of a data set that is whole (`dataset.require_whole`).

    Args:
        found: The data set.
        size: Width and height to which images are brought, pixels; 0: as they are.
        limit_gb: Most memory for images, GB.

    Raises DeftlyError, before any image is read, if they need more, and for images that do not read.
    """
    state, action = read_numbers(found, (OBS_STATE, ACTION))
    steps, cameras = found.steps, image_sizes(found.contract)
    size = size or next(iter(cameras.values()))
    need = len(state) * len(cameras) * 3 * size * size / GB
    if need > limit_gb:
        raise DeftlyError(
            f"the images of '{found.path}' need {need:.2g} GB of memory at {size} pixels, more than --cache-gb "
            f"{limit_gb:g}: allow more, or a smaller --image-size"
        )
    images = {name: _of_camera(found, name, size) for name in cameras}
    last = np.repeat(np.cumsum(steps) - 1, steps)
    told = [fact["prompt"] for fact in found.facts["episodes"] for _ in range(fact["steps"])]
    return Frames(images, state, action, last, told)


def _of_camera(found: Dataset, camera: str, size: int) -> np.ndarray:
    """The images of a camera, (n, size, size, 3) uint8."""
    count, pixels = sum(found.steps), image_sizes(found.contract)[camera]
    read = _of_videos if found.videos[camera] else _of_tables
    store = np.empty((count, size, size, 3), np.uint8)
    number = 0
    for image in progress(read(found.path, camera), f"reading {camera}", count):
        if image.shape != (pixels, pixels, 3):
            raise DeftlyError(
                f"'{found.path}': image {number} of {camera} has shape {image.shape}, and the contract of the data set "
                f"has {(pixels, pixels, 3)}"
            )
        if number < count:
            store[number] = resized(image[None], size)[0]
        number += 1
    if number != count:
        raise DeftlyError(f"'{found.path}' has {number} images of {camera}, expected {count}")
    return store


def _of_videos(path: Path, camera: str) -> Iterator[np.ndarray]:
    import av
    from av.error import FFmpegError

    for file in video_files(path, camera):
        try:
            with av.open(str(file)) as video:
                for frame in video.decode(video=0):
                    yield frame.to_ndarray(format="rgb24")
        except (FFmpegError, IndexError) as error:
            raise DeftlyError(f"'{file}' does not decode: {printable(error, 100)}") from None


def _of_tables(path: Path, camera: str) -> Iterator[np.ndarray]:
    import io

    import pyarrow.lib  # type: ignore[import-not-found]
    import pyarrow.parquet as parquet  # type: ignore[import-not-found]
    from PIL import Image

    for file in data_files(path):
        try:
            for part in parquet.ParquetFile(file).iter_batches(64, columns=[IMAGES + camera]):
                for value in part.column(0).to_pylist():
                    yield np.asarray(Image.open(io.BytesIO(value["bytes"])).convert("RGB"))
        except (OSError, ValueError, KeyError, TypeError, pyarrow.lib.ArrowException) as error:
            reason = printable(" ".join(str(error).split()), 100)
            raise DeftlyError(f"'{file}': an image of {camera} does not read: {reason}") from None
