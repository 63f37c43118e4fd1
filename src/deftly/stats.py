"""Statistics of measurements: intervals and tests of success rates, and summaries of samples.

The Wilson interval is computed here, since a robot's computer has no scipy; tests hold it against scipy's. Fisher's
test and what needs scipy import it only when called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SUMMARY = ("mean", "std", "min", "p5", "p50", "p95", "max", "count")
"""What `summarize` gives, in the order in which tables show it; `count` is how many samples have a value."""


def wilson(count: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a proportion, `count` of `total`; 95 % by the default quantile. (0, 1) of nothing.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if total == 0:
        return 0.0, 1.0
    n = total
    p = count / n
    scale = 1 + z * z / n
    middle = (p + z * z / (2 * n)) / scale
    variance = p * (1 - p) / n + z * z / (4 * n * n)
    half = z * math.sqrt(variance) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def fisher(count_a: int, total_a: int, count_b: int, total_b: int) -> float:
    """Two-sided p-value of the hypothesis that two proportions are equal: Fisher's exact test.

    It is exact however few fail, where a z-test is not: of 1 failure in 50 and none in 500 the z-test says p = 0.0015,
    Fisher's says 0.09. Needs scipy (the extra `train`).
    """
    from scipy.stats import fisher_exact

    table = [[count_a, total_a - count_a], [count_b, total_b - count_b]]
    found: Any = fisher_exact(table)
    return float(found.pvalue)


def proportion(results: np.ndarray) -> dict[str, Any]:
    """Rate, count and 95 % interval of `results`, `(n,)` of 0 and 1 or booleans; the rate of none is None."""
    count = int(results.sum())
    total = len(results)
    rate = count / total if total else None
    return {"rate": rate, "count": count, "wilson95": list(wilson(count, total))}


def percentiles(
    values: np.ndarray, wanted: Sequence[float] = (50, 99, 100)
) -> dict[str, float | None]:
    """Percentiles of the finite values by name: `p50`, `p99`, and `min` and `max` for 0 and 100; None of nothing."""
    import numpy as np

    ends = {0: "min", 100: "max"}
    names = [ends.get(int(rank), f"p{rank:g}") for rank in wanted]
    finite = values[np.isfinite(values)]
    if not len(finite):
        return dict.fromkeys(names)
    found = np.percentile(finite, wanted)
    return {name: float(value) for name, value in zip(names, found)}


def summarize(values: np.ndarray) -> dict[str, float | int | None]:
    """Mean, standard deviation and percentiles of the finite values; None where there are none.

    `count` is how many are finite, `missing` how many are not.
    """
    import numpy as np

    finite = values[np.isfinite(values)]
    mean = None
    std = None
    if len(finite):
        mean = float(finite.mean())
        std = float(finite.std())
    return {
        "mean": mean,
        "std": std,
        **percentiles(finite, (0, 5, 50, 95, 100)),
        "count": len(finite),
        "missing": len(values) - len(finite),
    }
