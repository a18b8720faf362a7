"""Intervals cover, p-values are valid, and nothing is made up where there is nothing to compute."""

import tracemalloc

import numpy as np
import pytest

from knowedit.errors import InputError
from knowedit.statistics import (
    Estimate,
    bounded_interval,
    estimate,
    false_discovery,
    harmonic_mean,
    log_odds,
    mcnemar,
    mean,
    mean_of_ratios,
    monte_carlo_p,
    proportion,
    rate,
    ratio_of_means,
    wilcoxon,
)


def test_the_two_ratios_differ_as_defined():
    before, after = [0.5, 0.1], [0.25, 0.2]
    assert ratio_of_means(before, after).value == pytest.approx(-0.25)  # (0.45 − 0.6) / 0.6
    assert mean_of_ratios(before, after).value == pytest.approx(0.25)  # (−0.5 + 1) / 2


def test_null_where_there_is_nothing_to_compute_from():
    one = mean([0.3])
    assert (one.value, one.low, one.high, one.n) == (0.3, None, None, 1)
    assert mean([]).value is None
    assert mean([]).n == 0


def test_a_rate_has_wilsons_interval():
    found = rate([True] * 9 + [False])
    assert (found.value, found.n) == (0.9, 10)
    assert found.low == pytest.approx(0.5958, abs=1e-4) and found.high == pytest.approx(0.9821, abs=1e-4)
    assert rate([True] * 5).low < 1  # all hits are no certainty
    assert rate([True]).low is None and rate([True]).value == 1
    assert rate([]).value is None


def test_a_ratio_to_nothing_is_nothing():
    assert ratio_of_means([0.0, 0.0], [0.1, 0.2]).value is None
    assert mean_of_ratios([0.0, 0.5], [0.1, 0.2]).value is None


def test_constant_values_have_an_interval_of_no_width():
    found = mean([0.2] * 10)
    assert found.low == pytest.approx(0.2) and found.high == pytest.approx(0.2)


def test_intervals_cover_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = [(e := mean(rng.normal(size=25))).low <= 0 <= e.high for _ in range(150)]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(1).random(20)
    assert mean(values) == mean(values)


def test_pairs_stay_together():
    before = np.linspace(0.1, 0.9, 30)
    found = ratio_of_means(before, before * 0.5)
    assert found.low == pytest.approx(-0.5) and found.high == pytest.approx(-0.5)


def test_monte_carlo_p_counts_the_observed_set_as_a_draw():
    assert monte_carlo_p(-1.0, [0.0] * 99, "less") == pytest.approx(0.01)
    assert monte_carlo_p(0.0, [0.0] * 99, "less") == 1.0
    assert monte_carlo_p(1.0, [0.0] * 99, "greater") == pytest.approx(0.01)


def test_monte_carlo_p_is_uniform_under_the_null():
    rng = np.random.default_rng(0)
    p = [monte_carlo_p(rng.normal(), rng.normal(size=99), "less") for _ in range(600)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.025)


def test_log_odds_stay_finite():
    assert np.isfinite(log_odds([0.0, 0.5, 1.0])).all()
    assert log_odds([0.5])[0] == 0


def test_estimate_takes_any_statistic_of_pairs():
    found = estimate(lambda a, b, axis=-1: (a - b).mean(axis), ([1.0, 2.0, 3.0], [0.0, 1.0, 1.0]))
    assert found.value == pytest.approx(4 / 3)
    assert found.n == 3


def test_many_records_are_resampled_in_blocks_of_bounded_memory():
    values = np.random.default_rng(0).random(4000)
    tracemalloc.start()
    found = mean(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 4000**0.5, rel=0.1)
    assert peak < 60e6  # all resamples at once are 128 MB, and twice that for their indices


def test_the_interval_of_bounded_values_knows_doubt_where_all_agree():
    low, high = bounded_interval(np.ones((20, 1)), harmonic_mean)
    assert 0.8 < low < 0.95 and high == 1.0
    assert harmonic_mean(np.array([[0.5, 1.0], [0.0, 1.0]])).tolist() == pytest.approx([2 / 3, 0.0])


def test_proportions_of_little():
    assert proportion([]).value is None
    one = proportion([1.0])
    assert (one.value, one.low, one.n) == (1.0, None, 1)
    alike = proportion(np.ones(20))
    assert alike.low < 1 == alike.high


# ---------------------------------------------------------------- two samples, in pairs


def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ():
    one, other = [0, 0, 0, 0, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 0, 1, 0]
    assert mcnemar(one, other) == pytest.approx(2 * (1 + 7) / 2**7)  # 6 against 1
    assert mcnemar(other, one) == mcnemar(one, other)
    assert mcnemar([0, 1, 1], [0, 1, 1]) == 1.0 and mcnemar([], []) == 1.0
    with pytest.raises(InputError, match="other values than 0 and 1"):
        mcnemar([0.5], [1])


def test_wilcoxon_of_small_samples_is_exact():
    one, other = np.zeros(6), np.arange(1, 7)
    assert wilcoxon(one, other) == pytest.approx(2 / 2**6)
    assert wilcoxon(other, one) == wilcoxon(one, other)


def test_wilcoxon_where_there_is_nothing_to_rank():
    assert wilcoxon([], []) is None
    assert wilcoxon([0.2, 0.4], [0.2, 0.4]) == 1.0
    assert wilcoxon([1 / 3], [0.1 + 0.2]) == 1.0
    assert wilcoxon([0.1, float("inf")], [0.2, 0.3]) is None


def test_one_enormous_difference_does_not_make_all_others_equal():
    rng = np.random.default_rng(0)
    one, other = rng.uniform(0, 1e-3, 40), rng.uniform(1, 2, 40)
    other[0] = 1e44
    assert wilcoxon(one, other) == pytest.approx(wilcoxon(np.zeros(40), np.arange(1.0, 41.0)))
    up, down = np.full(6, 1e6), np.full(3, 0.1)  # 0.1 more, or less: all differences are tied
    tied = wilcoxon(np.zeros(9), [1, 1, 1, 1, 1, 1, -1, -1, -1])
    assert wilcoxon([*up, *down], [*up + 0.1, *down - 0.1]) == tied


def test_wilcoxon_takes_differences_as_equal_that_are_so_but_for_their_last_bits():
    one, other = np.array([0.0, 0.1, 0.2, 0.3, 0.8, 0.6]), np.array([0.1, 0.2, 0.3, 0.4, 0.7, 0.5])
    assert len(set(np.abs(other - one))) > 1
    assert wilcoxon(one, other) == wilcoxon(np.zeros(6), [1, 1, 1, 1, -1, -1])


def test_agreeing_pairs_weigh_against_a_difference():
    one, other = np.zeros(60), np.r_[np.ones(12), np.zeros(48)]
    assert wilcoxon(one, other) > wilcoxon(one[:12], other[:12])


def test_paired_tests_hold_their_level_where_nothing_differs():
    rng = np.random.default_rng(0)
    pairs = [rng.random((2, 40)) for _ in range(400)]
    assert np.mean([wilcoxon(*pair) <= 0.05 for pair in pairs]) == pytest.approx(0.05, abs=0.03)
    assert np.mean([mcnemar(*(pair < 0.4)) <= 0.05 for pair in pairs]) <= 0.06  # discrete: below its level


def test_false_discovery_is_benjamini_and_hochbergs_and_leaves_none_alone():
    found = false_discovery([0.01, None, 0.04, 0.03, 0.5])
    assert found == [pytest.approx(0.04), None, pytest.approx(0.16 / 3), pytest.approx(0.16 / 3), pytest.approx(0.5)]
    assert false_discovery([]) == [] and false_discovery([None]) == [None]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("change", "-25.0%  [-50.0%, +12.5%]"),
        ("share", "-25.0%  [-50.0%, 12.5%]"),
        ("number", "-0.25  [-0.50, 0.12]"),
        ("signed", "-0.250  [-0.500, +0.125]"),
        (".1f", "-0.2  [-0.5, 0.1]"),
    ],
)
def test_an_estimate_is_told_with_its_interval(kind, text):
    assert Estimate(-0.25, -0.5, 0.125, 9).text(kind) == text
    assert Estimate(-0.25, None, None, 1).text(kind) == text.split("  ")[0]
    assert Estimate(None, None, None, 0).text(kind) == "not measured"
