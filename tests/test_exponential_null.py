"""How far one value lies below the next, against networks without a backdoor."""

import math

import numpy as np
import pytest

from bezoar.exponential_null import ExponentialNull


def test_one_network_gives_the_closed_form():
    # Of two independent exponential gaps X (known, 2) and Y: P(Y >= g) = E exp(-g / X's scale)
    # under the scale's predictive distribution, 1 / (1 + g / 2).
    assert ExponentialNull((2.0,)).test(6.0)[1] == pytest.approx(0.25)


def test_many_networks_give_the_exponential_distribution():
    null = ExponentialNull((0.5,) * 100_000)
    score, p = null.test(2.0)
    assert p == pytest.approx(math.exp(-4), rel=1e-3) and score == pytest.approx(-3)


@pytest.mark.parametrize("p", [1.0, 0.3, 0.05, 0.01, 1e-6])
def test_the_critical_gap_has_the_p_value(p):
    null = ExponentialNull((0.2, 0.5, 0.0, 1.4))
    assert null.test(null.critical(p))[1] == pytest.approx(p, rel=1e-6)


def test_what_is_not_the_smallest_is_usual():
    score, p = ExponentialNull((0.2, 0.4)).test(-0.5)
    assert p == 1 and score > 1


def test_new_networks_of_the_same_kind_are_flagged_as_often_as_it_says():
    draws = np.random.default_rng(0)
    rows = draws.exponential(0.3, (4000, 9))
    p_values = [ExponentialNull(tuple(row[:-1])).test(row[-1])[1] for row in rows]
    for level in (0.05, 0.3):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.015)


def test_gaps_of_normal_values_are_flagged_hardly_more_often():
    draws = np.random.default_rng(1)
    ordered = np.sort(draws.normal(0, 1, (4000 * 9, 10)), axis=1)
    gaps = (ordered[:, 1] - ordered[:, 0]).reshape(4000, 9)
    p_values = np.array([ExponentialNull(tuple(row[:-1])).test(row[-1])[1] for row in gaps])
    assert np.mean(p_values <= 0.05) <= 0.06 and np.mean(p_values <= 0.01) <= 0.015
