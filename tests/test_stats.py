"""Intervals, tests and summaries against published values and against scipy."""

import functools
import math

import numpy as np
import pytest

from deftly import stats
from deftly.stats import (
    clustered_interval,
    effective_size,
    fisher,
    half_level,
    mcnemar,
    mean_interval,
    paired_difference,
    percentiles,
    proportion,
    summarize,
    welch_difference,
    wilson,
)


@pytest.fixture
def scipy_stats():
    """scipy's, imported by the one process that asks for it: it takes a second."""
    from scipy import stats

    return stats


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (95, 100, 0.8882, 0.9785),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_as_published(count, total, low, high):
    assert wilson(count, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (3, 7), (499, 500), (12, 10_000)])
def test_wilson_as_scipy(scipy_stats, count, total):
    expected = scipy_stats.binomtest(count, total).proportion_ci(0.95, "wilson")
    assert wilson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def exact(count_a: int, total_a: int, count_b: int, total_b: int) -> float:
    """Fisher's test by counting every table with the same margins, in whole numbers."""
    count = count_a + count_b
    ways = {
        i: math.comb(total_a, i) * math.comb(total_b, count - i)
        for i in range(min(total_a, count) + 1)
    }
    return sum(w for w in ways.values() if w <= ways[count_a]) / sum(ways.values())


def test_one_failure_of_fifty_is_no_evidence_against_none_of_five_hundred():
    p = fisher(1, 50, 0, 500)
    assert p == pytest.approx(1 / 11)  # a z-test says 0.0015
    assert fisher(49, 50, 500, 500) == pytest.approx(p)


def test_fisher_of_the_lady_tasting_tea():
    assert fisher(3, 4, 1, 4) == pytest.approx(
        34 / 70
    )  # R. A. Fisher, The Design of Experiments (1935), 3 of 4 right


@pytest.mark.parametrize(
    "counts",
    [
        (15, 100, 30, 100),
        (7, 10, 7, 10),
        (10, 10, 20, 20),
        (0, 10, 0, 20),
        (2, 32, 40, 500),
        (0, 1, 1, 1),
    ],
)
def test_fisher_is_exact_and_symmetric(counts):
    count_a, total_a, count_b, total_b = counts
    assert fisher(*counts) == pytest.approx(exact(*counts))
    assert fisher(count_b, total_b, count_a, total_a) == pytest.approx(fisher(*counts))


def test_proportion_is_what_reports_hold():
    assert proportion(np.array([1.0, 0.0, 1.0, 1.0])) == {
        "rate": 0.75,
        "count": 3,
        "wilson95": list(wilson(3, 4)),
    }
    assert proportion(np.array([], bool)) == {"rate": None, "count": 0, "wilson95": [0.0, 1.0]}


def test_percentiles_have_names_and_leave_out_what_is_not_finite():
    values = np.array([*range(101), math.nan, math.inf])
    assert percentiles(values) == {"p50": 50.0, "p99": 99.0, "max": 100.0}
    assert percentiles(values, (0, 2.5)) == {"min": 0.0, "p2.5": 2.5}
    assert percentiles(np.array([math.nan])) == {"p50": None, "p99": None, "max": None}


def test_summary_leaves_out_what_is_not_finite():
    out = summarize(np.array([1.0, np.nan, 3.0, np.inf]))
    assert (out["mean"], out["min"], out["max"], out["p50"], out["count"], out["missing"]) == (
        2,
        1,
        3,
        2,
        2,
        2,
    )
    empty = summarize(np.array([np.nan]))
    assert empty["mean"] is None
    assert empty["missing"] == 1


# ------------------------------------------------------------------ means


def samples(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, count)


def test_interval_of_a_mean_as_scipy(scipy_stats):
    values = samples(0, 17)
    error = scipy_stats.sem(values)
    expected = scipy_stats.t.interval(0.95, 16, values.mean(), error)
    assert mean_interval(summarize(values)) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[], [1.0], [np.nan, 2.0]])
def test_no_interval_of_fewer_than_two(values):
    assert mean_interval(summarize(np.array(values))) is None


def test_paired_difference_as_scipy(scipy_stats):
    before, now = samples(1, 20), samples(2, 20)
    found = paired_difference(np.append(before, np.nan), np.append(now, 1.0))
    expected = scipy_stats.ttest_rel(now, before)
    interval = expected.confidence_interval(0.95)
    assert found is not None
    assert found == pytest.approx(
        ((now - before).mean(), interval.low, interval.high, expected.pvalue)
    )


def test_pairs_tell_what_independent_samples_cannot():
    before = samples(1, 20)
    now = before + 0.1 + 0.01 * samples(2, 20)
    paired = paired_difference(before, now)
    alone = welch_difference(summarize(before), summarize(now))
    assert paired is not None
    assert alone is not None
    assert paired.p < 1e-6 < 0.5 < alone.p


def test_welch_as_scipy(scipy_stats):
    before, now = samples(1, 12), 2 * samples(2, 30)
    found = welch_difference(summarize(before), summarize(now))
    expected = scipy_stats.ttest_ind(now, before, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found is not None
    assert found == pytest.approx(
        (now.mean() - before.mean(), interval.low, interval.high, expected.pvalue)
    )


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_samples_without_spread(shift, p):
    one = np.full(5, 2.0)
    assert paired_difference(one, one + shift) == (shift, shift, shift, p)
    assert welch_difference(summarize(one), summarize(one + shift)) == (shift, shift, shift, p)


def test_mcnemar_counts_the_pairs_that_differ():
    before = np.array([1.0] * 20 + [0.0] * 10)
    now = before.copy()
    now[20:28] = 1.0  # eight gained
    now[0] = 0.0  # one lost
    assert mcnemar(before, now) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(before, before) == 1.0


# ------------------------------------------------------------------ the level at which half succeed


def counts_of(levels, middle, width, total):
    """Expected successes of a logistic curve, rounded."""
    return [round(total / (1 + np.exp((x - middle) / width))) for x in levels]


def test_half_level_of_a_logistic_curve():
    levels = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0)
    found = half_level(levels, counts_of(levels, 7.0, 1.5, 200), [200] * 6)
    assert found["half"] == pytest.approx(7.0, abs=0.05)
    assert found["width"] == pytest.approx(1.5, rel=0.1)
    low, high = found["interval95"]
    error = 0.1246  # 1.5 / sqrt(sum of 200 p (1 - p)), by Fisher's information
    assert low == pytest.approx(7.0 - 1.96 * error, abs=0.04)
    assert high == pytest.approx(7.0 + 1.96 * error, abs=0.04)


def test_half_level_where_levels_fall():
    levels = (0.6, 0.45, 0.3, 0.2, 0.1)
    counts = [total - count for total, count in zip([100] * 5, counts_of(levels, 0.3, 0.05, 100))]
    found = half_level(levels, counts, [100] * 5)
    assert found["half"] == pytest.approx(0.3, abs=0.005)


def test_half_level_between_all_and_none():
    found = half_level((1.0, 2.0, 3.0, 4.0), (30, 30, 0, 0), [30] * 4)
    low, high = found["interval95"]
    assert 2.0 <= low < found["half"] < high <= 3.0
    assert found["half"] == pytest.approx(2.5, abs=0.05)


def test_half_level_beyond_what_was_tried():
    assert half_level((1.0, 2.0), (30, 30), (30, 30))["half"] is None
    assert half_level((1.0, 2.0), (0, 0), (30, 30))["half"] is None
    assert half_level((1.0,), (15,), (30,))["half"] is None
    beyond = half_level((1.0, 2.0, 3.0), (30, 29, 20), [30] * 3)
    assert beyond["half"] is None
    assert beyond["interval95"][1] is None


def test_the_interval_of_the_half_level_holds_what_it_says(monkeypatch):
    """Of 200 experiments with 20 episodes at each of five levels, the interval misses the true level in few."""
    monkeypatch.setattr(stats, "logistic_curves", functools.cache(stats.logistic_curves))
    rng = np.random.default_rng(5)
    levels = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    chance = 1 / (1 + np.exp((levels - 3.2) / 0.6))
    missed = 0
    for counts in rng.binomial(20, chance, (200, 5)):
        low, high = half_level(levels, counts, [20] * 5)["interval95"]
        missed += not (low or 0.0) <= 3.2 <= (high or 9.0)
    assert missed <= 18


def test_episodes_from_the_same_starts_count_as_what_they_say():
    clusters = np.tile(np.arange(5), 4)
    same = np.tile([1, 1, 1, 0, 0], 4)  # four samples that say nothing new
    found = proportion(same, clusters)
    assert found["rate"] == 0.6
    assert found["count"] == 12
    assert found["effective"] == pytest.approx(
        4.0
    )  # as five clusters, whose variance has four degrees of freedom
    assert found["wilson95"] == pytest.approx(list(wilson(0.6 * 4, 4)))
    rng = np.random.default_rng(0)
    independent = rng.random(2000) < 0.6
    free = proportion(independent, np.tile(np.arange(500), 4))
    assert free["effective"] > 1600
    alike = np.tile([1, 0], 10)  # each cluster has half of both: as good as all of them
    assert effective_size(alike, np.repeat(np.arange(10), 2)) == 20
    assert effective_size(np.ones(20), np.tile(np.arange(5), 4)) == 5


def test_a_clustered_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = naive = 0
    for _ in range(400):
        p = rng.beta(0.7, 0.7, 50)  # some starts are easy, some are hard: the mean is one half
        results = (rng.random((4, 50)) < p).ravel()
        clusters = np.tile(np.arange(50), 4)
        low, high = proportion(results, clusters)["wilson95"]
        held += low <= 0.5 <= high
        low, high = wilson(int(results.sum()), 200)
        naive += low <= 0.5 <= high
    assert 0.92 <= held / 400 <= 0.98
    assert naive / 400 < 0.88


def test_a_clustered_mean_is_that_of_its_clusters_where_they_are_of_one_size():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(4, 30)) + rng.normal(size=30)
    clusters = np.tile(np.arange(30), 4)
    found = clustered_interval(values.ravel(), clusters)
    summary = summarize(values.mean(0))
    assert found == pytest.approx(mean_interval(summary))
    holes = values.ravel().copy()
    holes[:5] = np.nan
    assert clustered_interval(holes, clusters) is not None
    assert clustered_interval(np.full(4, np.nan), np.arange(4)) is None
    assert clustered_interval(np.ones(4), np.zeros(4)) is None
