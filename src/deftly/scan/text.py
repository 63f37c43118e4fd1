"""Numbers of text files, read block by block, so that memory does not follow the size of the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

BLOCK = 4 << 20
"""Bytes that are parsed at once."""
MAX_LINE = 64 << 10
"""Longest line, bytes."""


def blocks(file: BinaryIO) -> Iterator[list[str]]:
    """The lines of a text file, some thousands at a time, stripped, without empty ones and comments (`#`)."""
    rest = b""
    while piece := file.read(BLOCK):
        head, _, rest = (rest + piece).rpartition(b"\n")
        if len(rest) > MAX_LINE:
            raise ValueError(f"it has a line of more than {MAX_LINE} bytes: it is no text")
        yield _lines(head)
    yield _lines(rest)


def _lines(data: bytes) -> list[str]:
    text = data.decode("ascii", "replace").replace(",", " ").replace(";", " ")
    stripped = (line.strip() for line in text.split("\n"))
    return [line for line in stripped if line and not line.startswith(("#", "//"))]


def numbers(lines: Sequence[str], columns: Sequence[int] | None = None) -> np.ndarray:
    """The numbers of lines that all have as many, `(len(lines), columns)`; ValueError for anything else."""
    if not lines:
        return np.empty((0, 0 if columns is None else len(columns)))
    wanted = None if columns is None else list(columns)
    return np.loadtxt(lines, usecols=wanted, ndmin=2, comments=None)


def integers(lines: Sequence[str]) -> np.ndarray:
    """The whole numbers of lines that all have as many; ValueError for anything else."""
    if not lines:
        return np.empty((0, 0), np.int64)
    return np.loadtxt(lines, dtype=np.int64, ndmin=2, comments=None)
