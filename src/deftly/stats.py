"""Confidence intervals of a measured share."""

import math


def wilson(count: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a share, `count` of `total`; 95 % by the default quantile. (0, 1) of nothing."""
    if total == 0:
        return 0.0, 1.0
    p, n = count / total, total
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)
