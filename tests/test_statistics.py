"""Intervals cover, p-values are valid, and nothing is made up where there is nothing to compute."""

import numpy as np
import pytest

from knowedit.statistics import estimate, log_odds, mean, mean_of_ratios, monte_carlo_p, ratio_of_means


def test_the_two_ratios_differ_as_defined():
    before, after = [0.5, 0.1], [0.25, 0.2]
    assert ratio_of_means(before, after).change == pytest.approx(-0.25)  # (0.45 − 0.6) / 0.6
    assert mean_of_ratios(before, after).change == pytest.approx(0.25)  # (−0.5 + 1) / 2


def test_null_where_there_is_nothing_to_compute_from():
    one = mean([0.3])
    assert (one.change, one.low, one.high, one.n) == (0.3, None, None, 1)
    assert mean([]).change is None
    assert mean([]).n == 0


def test_a_ratio_to_nothing_is_nothing():
    assert ratio_of_means([0.0, 0.0], [0.1, 0.2]).change is None
    assert mean_of_ratios([0.0, 0.5], [0.1, 0.2]).change is None


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
    assert found.change == pytest.approx(4 / 3)
    assert found.n == 3
