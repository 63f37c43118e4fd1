"""Intervals, tests and summaries against published values and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from deftly.stats import fisher, percentiles, proportion, summarize, wilson


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
def test_wilson_as_scipy(count, total):
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
