"""Memory of messages with images, which the system's allocator would give back after each of them."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of settings of glibc's allocator (malloc.h)."""
KEPT, LARGEST = 32 * 2**20, 8 * 2**20
"""Bytes of free memory that a process keeps, and of the largest piece that is taken from it."""


def keep_memory() -> None:
    """Let this process keep the memory of a message for the next one, where the allocator is glibc's.

    Else it gives back what two images of 224 x 224 need after each message, and takes it again page by page: 240 faults
    and a third of a server's processor time of a round trip (`python -m deftly_bench.serving_images`).
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, LARGEST)
