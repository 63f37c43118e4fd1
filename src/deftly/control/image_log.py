"""Images of a control loop as PNG files beside its log, lossless: what a camera's signal was in each tick.

A thread of its own writes them, and the loop waits for nothing: what the disk cannot keep up with is left out and
counted. The PNGs are of one kind (8 bit RGB, no filter), so that a robot's computer needs no library for them.
"""

from __future__ import annotations

import queue
import re
import struct
import threading
import zlib
from collections import deque
from pathlib import Path

import numpy as np

from deftly.contract import RobotInterface
from deftly.errors import DeftlyError
from deftly.files import FileError, read_bytes

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEVEL = 1
"""Of zlib's compression: the fastest."""
MAX_QUEUED = 64 * 2**20
"""Bytes of images that wait to be written."""
FLUSH_S = 10.0
"""Longest wait for them at the end, s."""
OVERHEAD = 4096
"""Bytes of a file beside its pixels, at most, however badly these compress."""


class ImageLog:
    """Writes images into a folder, which is made new beside `log`: `LOG.images`, or with a number if there is one.

    Args:
        log: The log's file.
        robot: Whose cameras they are.
        keep: Newest ticks whose images are kept; older files are deleted.

    Raises DeftlyError if the folder cannot be made.
    """

    def __init__(self, log: Path, robot: RobotInterface, keep: int):
        self.folder = _new_folder(log)
        self.dropped = 0
        """Images that were left out."""
        self._names = file_names(robot)
        self._keep = keep
        self._written: deque[tuple[int, Path]] = deque()
        size = sum(signal.size for signal in robot.signals if signal.is_image)
        count = len(self._names)
        most = max(count, MAX_QUEUED * count // max(1, size))
        self._images = queue.Queue[tuple[int, str, np.ndarray]](most)
        threading.Thread(target=self._work, name="images", daemon=True).start()

    def put(self, tick: int, name: str, image: object) -> None:
        """Keep the image of a signal in a tick, if that is one; it is not copied, and must not change any more."""
        if name not in self._names or not isinstance(image, np.ndarray):
            return
        pixels: np.ndarray = image
        if pixels.dtype != np.uint8 or pixels.ndim != 3:
            return
        try:
            self._images.put_nowait((tick, name, pixels))
        except queue.Full:
            self.dropped += 1

    def flush(self) -> int:
        """Wait until what was put is written, or `FLUSH_S` are over; returns how many images were left out so far."""
        waiter = threading.Thread(target=self._images.join, daemon=True)
        waiter.start()
        waiter.join(FLUSH_S)
        return self.dropped + (self._images.qsize() if waiter.is_alive() else 0)

    def _work(self) -> None:
        while True:
            tick, name, image = self._images.get()
            path = self.folder / f"{tick:08d}_{self._names[name]}.png"
            try:
                path.write_bytes(png(image))  # a file cut short by a crash fails its checksum
                self._written.append((tick, path))
                while self._written[0][0] <= tick - self._keep:
                    _, oldest = self._written.popleft()
                    oldest.unlink(missing_ok=True)
            except (OSError, MemoryError):
                self.dropped += 1
            finally:
                self._images.task_done()


def file_names(robot: RobotInterface) -> dict[str, str]:
    """What the files of each image signal are called after the tick."""
    images = [signal.name for signal in robot.signals if signal.is_image]
    plain = [re.sub(r"[^A-Za-z0-9-]", "_", name) for name in images]
    return {name: f"{i}_{plain[i]}" for i, name in enumerate(images)}


def png(image: np.ndarray) -> bytes:
    """An image `(height, width, 3)` uint8 as a PNG (https://www.w3.org/TR/png-3)."""
    height, width, _ = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with its filter, none
    rows[:, 1:] = image.reshape(height, -1)
    pixels = zlib.compress(rows.tobytes(), LEVEL)
    parts = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    chunks = [_chunk(kind, body) for kind, body in parts]
    return SIGNATURE + b"".join(chunks)


def read_png(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An image that `png` made, of exactly this shape. Raises FileError for anything else."""
    height, width, _ = shape
    size = height * (1 + 3 * width)
    data = read_bytes(path, "an image of a log", OVERHEAD + size + size // 1000)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    end = _chunk(b"IEND", b"")
    start = SIGNATURE + header
    try:
        if not data.startswith(start) or not data.endswith(end):
            raise ValueError
        whole = data[len(start) : -len(end)]
        body = whole[8:-4]
        if whole != _chunk(b"IDAT", body):
            raise ValueError
        unpacker = zlib.decompressobj()
        pixels = unpacker.decompress(body, size + 1)
        rows = np.frombuffer(pixels, np.uint8).reshape(height, -1)
        if rows.shape[1] != 1 + 3 * width or rows[:, 0].any():
            raise ValueError
    except (ValueError, zlib.error):
        raise FileError(
            f"cannot read '{path}' as an image of a log of {height} x {width} pixels"
        ) from None
    return rows[:, 1:].reshape(shape)


def _chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG, with its length and checksum."""
    length = struct.pack(">I", len(body))
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return length + kind + body + checksum


def _new_folder(log: Path) -> Path:
    """A new folder beside a log: nothing that is there is written over."""
    for number in range(10_000):
        suffix = f".{number}.images" if number else ".images"
        folder = log.with_suffix(suffix)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise DeftlyError(f"no place for images: {folder}: {error.strerror}") from None
    raise DeftlyError(f"no place for images: {log.with_suffix('.images')} and 9999 more are there")
