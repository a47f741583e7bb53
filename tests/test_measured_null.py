"""A statistic against those of networks without a backdoor."""

import math

import numpy as np
import pytest

from bezoar.measured_null import MeasuredNull


def test_with_two_networks_the_test_is_cauchys():
    # -1 and 1: mean 0, standard deviation sqrt(2), and sqrt(3) of a new one.
    score, p = MeasuredNull((-1.0, 1.0)).test(-3.0)
    assert score == pytest.approx(-3 / math.sqrt(3))
    assert p == pytest.approx(0.5 + math.atan(score) / math.pi)


@pytest.mark.parametrize("p", [0.3, 0.05, 0.01, 1e-6])
def test_the_critical_value_has_the_p_value(p):
    null = MeasuredNull((0.2, 0.5, 0.9, 1.4))
    assert null.test(null.critical(p))[1] == pytest.approx(p, rel=1e-6)


def test_new_networks_of_the_same_kind_are_flagged_as_often_as_it_says():
    draws = np.random.default_rng(0)
    rows = draws.normal(-1, 0.7, (2000, 9))
    p_values = [MeasuredNull(tuple(row[:-1])).test(row[-1])[1] for row in rows]
    for level in (0.05, 0.3):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.02)
