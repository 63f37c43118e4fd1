"""What a policy server counts: a few numbers, however long it runs."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from typing import Any

LATENCY_MS = tuple(0.01 * 10 ** (i / 10) for i in range(61))
"""Upper ends of the buckets of the latency histogram: ten a decade, 10 us to 10 s."""


class Counts:
    """Messages by type, errors by code, sizes of batches, and how long the answers to `infer` took."""

    def __init__(self):
        self.answered = 0
        self.types, self.errors, self.batches = Counter[str](), Counter[str](), Counter[int]()
        self._latency, self._slowest = [0] * (len(LATENCY_MS) + 1), 0.0
        self._started = time.monotonic()

    def add_latency(self, seconds: float) -> None:
        """From reading a message to having answered it."""
        self._slowest = max(self._slowest, 1000 * seconds)
        self._latency[bisect_left(LATENCY_MS, 1000 * seconds)] += 1

    def report(self) -> dict[str, Any]:
        """The counts as part of a message."""
        percentiles = {
            "p50": self._percentile(0.5),
            "p99": self._percentile(0.99),
            "max": self._slowest,
        }
        return {
            "uptime_s": time.monotonic() - self._started,
            "answered": self.answered,
            "types": dict(self.types),
            "errors": dict(self.errors),
            "batches": sorted([size, count] for size, count in self.batches.items()),
            "latency_ms": {"le": list(LATENCY_MS), "count": self._latency, **percentiles},
        }

    def _percentile(self, fraction: float) -> float:
        """Upper end of the bucket in which it lies, ms."""
        below, wanted = 0, fraction * sum(self._latency)
        for upper, count in zip(LATENCY_MS, self._latency):
            below += count
            if below >= wanted:
                return min(upper, self._slowest)
        return self._slowest
