"""Statistics of measurements: intervals and tests of success rates, and summaries of samples.

The Wilson interval is computed here, since a robot's computer has no scipy; tests hold it against scipy's. Fisher's
test and what needs scipy import it only when called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

SUMMARY = ("mean", "std", "min", "p5", "p50", "p95", "max", "count")
"""What `summarize` gives, in the order in which tables show it; `count` is how many samples have a value."""

CHI_SQUARE_95 = 3.841458820694124
"""95 % quantile of the chi-square distribution with one degree of freedom."""


def wilson(count: float, total: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a proportion, `count` of `total`; 95 % by the default quantile. (0, 1) of nothing.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927). Counts need not
    be whole: of an effective sample size they are not.
    """
    if total == 0:
        return 0.0, 1.0
    n = total
    p = count / n
    scale = 1 + z * z / n
    centre = p + z * z / (2 * n)
    middle = centre / scale
    sampling = p * (1 - p) / n
    variance = sampling + z * z / (4 * n * n)
    half = z * math.sqrt(variance) / scale
    low = max(0.0, middle - half)
    high = min(1.0, middle + half)
    return low, high


def fisher(count_a: int, total_a: int, count_b: int, total_b: int) -> float:
    """Two-sided p-value of the hypothesis that two proportions are equal: Fisher's exact test.

    It is exact however few fail, where a z-test is not: of 1 failure in 50 and none in 500 the z-test says p = 0.0015,
    Fisher's says 0.09. Needs scipy (the extra `train`).
    """
    from scipy.stats import fisher_exact

    others_a = total_a - count_a
    others_b = total_b - count_b
    table = [[count_a, others_a], [count_b, others_b]]
    found: Any = fisher_exact(table)
    return float(found.pvalue)


def proportion(results: np.ndarray, clusters: np.ndarray | None = None) -> dict[str, Any]:
    """Rate, count and 95 % interval of `results`, `(n,)` of 0 and 1 or booleans; the rate of none is None.

    With `clusters`, `(n,)`, results with the same number belong together, as episodes from the same start do: the
    interval is Wilson's of the effective sample size, which is `effective` then.
    """
    count = int(results.sum())
    total = len(results)
    rate = count / total if total else None
    if clusters is None or rate is None:
        return {"rate": rate, "count": count, "wilson95": list(wilson(count, total))}
    effective = effective_size(results, clusters)
    interval = wilson(rate * effective, effective)
    return {"rate": rate, "count": count, "wilson95": list(interval), "effective": effective}


def effective_size(results: np.ndarray, clusters: np.ndarray) -> float:
    """How many independent results of 0 and 1 say as much as these `(n,)`, of which those of a cluster are alike.

    It is n over the design effect (L. Kish, Survey sampling, 1965), and at most n; as many as there are clusters where
    all results are the same, since nothing is known of what they share. Wilson's interval with it covers well in
    clustered samples (N. Dean and M. Pagano, Evaluating confidence interval methods for binomial proportions in
    clustered surveys, Journal of Survey Statistics and Methodology 3 (2015)).
    """
    import numpy as np

    rate = float(np.mean(results))
    independent = rate * (1 - rate)
    if independent == 0:
        return float(len(np.unique(clusters)))
    total = len(results)
    error = clustered_error(np.asarray(results, float), clusters)
    if error == 0:
        return float(total)
    return min(total, independent / error**2)


def clustered_error(values: np.ndarray, clusters: np.ndarray) -> float:
    """Standard error of the mean of `values`, `(n,)`, those of a cluster being dependent; infinite of one cluster.

    A mean over clusters is a ratio, of sums of values to sizes; this is its linearization (W. G. Cochran, Sampling
    techniques, 1977, 6.3 and 9A).
    """
    import numpy as np

    _, cluster = np.unique(clusters, return_inverse=True)
    count = len(np.bincount(cluster))
    if count < 2:
        return math.inf
    residuals = values - values.mean()
    sums = np.bincount(cluster, weights=residuals)
    squares = float(sums @ sums)
    return math.sqrt(count / (count - 1) * squares) / len(values)


def clustered_interval(values: np.ndarray, clusters: np.ndarray) -> list[float] | None:
    """95 % interval of the mean of the finite `values`, by Student's t over clusters; None of fewer than two of these.

    Needs scipy (the extra `train`).
    """
    import numpy as np

    finite = np.isfinite(values)
    kept = values[finite]
    kept_clusters = clusters[finite]
    count = len(np.unique(kept_clusters))
    if count < 2:
        return None
    mean = float(kept.mean())
    error = clustered_error(kept, kept_clusters)
    found = _difference(mean, error, count - 1)
    return [found.low, found.high]


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


def mean_interval(summary: Mapping[str, Any]) -> list[float] | None:
    """95 % interval of a mean by Student's t, from a summary (`mean`, `std`, `count`); None of fewer than two.

    Needs scipy (the extra `train`).
    """
    count = summary["count"]
    if count < 2:
        return None
    error = summary["std"] / math.sqrt(count - 1)  # `std` divides by the count
    found = _difference(summary["mean"], error, count - 1)
    return [found.low, found.high]


class Difference(NamedTuple):
    """A difference of two means, its 95 % interval, and the p-value of the hypothesis that there is none."""

    mean: float
    low: float
    high: float
    p: float


def paired_difference(before: np.ndarray, now: np.ndarray) -> Difference | None:
    """Of `now` less `before`, `(n,)` each, one number for the same episode: Student's paired t-test.

    Pairs in which either is not finite are left out; None of fewer than two. Needs scipy (the extra `train`).
    """
    import numpy as np

    apart = now - before
    apart = apart[np.isfinite(apart)]
    count = len(apart)
    if count < 2:
        return None
    mean = float(apart.mean())
    std = float(apart.std(ddof=1))
    error = std / math.sqrt(count)
    return _difference(mean, error, count - 1)


def welch_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> Difference | None:
    """Of two independent samples' means, from their summaries: Welch's t-test; None if one has fewer than two.

    B. L. Welch, The generalization of "Student's" problem, Biometrika 34 (1947). Needs scipy (the extra `train`).
    """
    if min(before["count"], now["count"]) < 2:
        return None
    variance = 0.0
    spread = 0.0
    for sample in (before, now):
        degrees = sample["count"] - 1
        part = sample["std"] ** 2 / degrees  # `std` divides by the count
        variance += part
        spread += part**2 / degrees
    freedom = variance**2 / spread if spread > 0 else 1.0
    mean = now["mean"] - before["mean"]
    return _difference(mean, math.sqrt(variance), freedom)


def _difference(mean: float, error: float, freedom: float) -> Difference:
    """With a standard error and degrees of freedom."""
    # scipy.stats has the same, and takes a second to import
    from scipy.special import stdtr, stdtrit

    if error == 0:
        return Difference(mean, mean, mean, float(mean == 0))
    half = float(stdtrit(freedom, 0.975)) * error
    tail = float(stdtr(freedom, -abs(mean) / error))
    return Difference(mean, mean - half, mean + half, 2 * tail)


def mcnemar(before: np.ndarray, now: np.ndarray) -> float:
    """Two-sided p-value of the hypothesis that paired results of 0 and 1, `(n,)`, have equal rates: exact, McNemar.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12 (1947).
    Needs scipy (the extra `train`).
    """
    from scipy.stats import binomtest

    gained = int((now > before).sum())
    lost = int((now < before).sum())
    changed = gained + lost
    if not changed:
        return 1.0
    return float(binomtest(gained, changed).pvalue)


def half_level(
    levels: Sequence[float], counts: Sequence[int], totals: Sequence[int]
) -> dict[str, Any]:
    """The level of a stress at which half succeed, from `counts` of `totals` at each of several levels.

    A logistic curve over the level is fitted by maximum likelihood; the 95 % interval is that of the profile
    likelihood, which holds for few episodes and for levels at which all or none succeed (D. J. Venzon and S. H.
    Moolgavkar, A method for computing profile-likelihood-based confidence intervals, Applied Statistics 37 (1988)).

    Args:
        levels: From mild to severe: rising, or falling throughout.
        counts: Successes.
        totals: Episodes.

    Returns:
        `half`, `interval95` of two levels and `width`, the scale of the curve in the unit of the level. None stands for
        what lies beyond the levels that were tried.
    """
    import numpy as np

    x, k, n = (np.asarray(values, float) for values in (levels, counts, totals))
    if np.ptp(x) == 0:
        return {"half": None, "interval95": [None, None], "width": None}
    middles, widths, softplus, logits = logistic_curves(tuple(map(float, levels)))
    # -log p is softplus(-logit), and -log(1 - p) is that plus the logit
    likelihood = -(softplus @ n + logits @ (n - k))
    profile = likelihood.max(1)
    highest = profile.max()
    best = np.flatnonzero(profile > highest - 1e-6)
    likely = np.flatnonzero(2 * (highest - profile) <= CHI_SQUARE_95)
    best_curve = best[len(best) // 2]
    best_width = widths[likelihood[best_curve].argmax()]

    def tried(index: float) -> float | None:
        middle = float(np.interp(index, range(len(middles)), middles))
        return middle if x.min() <= middle <= x.max() else None

    return {
        "half": tried(best.mean()),
        "interval95": [tried(likely[0]), tried(likely[-1])],
        "width": float(best_width),
    }


def logistic_curves(levels: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    """The curves that `half_level` tries: where half succeed and how wide they are, beside and beyond the levels.

    Returns:
        Middles `(801,)`, widths `(121,)`; of each of both and each level softplus(-logit) and the logit,
        `(801, 121, levels)`.
    """
    import numpy as np

    x = np.array(levels)
    span = float(np.ptp(x))
    margin = span / 2
    middles = np.linspace(x.min() - margin, x.max() + margin, 801)
    widths = span * np.geomspace(0.002, 2.0, 121)
    falling = -1.0 if x[0] < x[-1] else 1.0
    beyond_middle = falling * (x - middles[:, None, None])
    logits = beyond_middle / widths[:, None]
    return middles, widths, np.logaddexp(0, -logits), logits
