import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given
from hypothesis import strategies as st

from bezoar.errors import InputError
from bezoar.statistics import (
    critical_score,
    critical_value,
    mad_outliers,
    one_or_two_small,
    small_outliers,
    student_t_cdf,
)


@given(st.floats(-50, 50), st.integers(1, 2000))
@example(3.433510448867822e-08, 1)  # where scipy is off by 7e-10
def test_student_t_cdf_equals_scipy(t, degrees):
    expected = scipy.stats.t.cdf(t, degrees)
    if abs(t) < 1e-6:  # a straight line there
        expected = 0.5 + t * scipy.stats.t.pdf(0, degrees)
    assert student_t_cdf(t, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_scores_equal_the_plain_leave_one_out_formula():
    values = np.random.default_rng(0).normal(5, 2, 17)
    outliers = small_outliers(values.tolist())
    for k in range(17):
        others = np.delete(values, k)
        t = (values[k] - others.mean()) / (others.std(ddof=1) * math.sqrt(1 + 1 / 16))
        assert outliers.scores[k] == pytest.approx(t)
        assert outliers.p_values[k] == pytest.approx(min(1, 17 * scipy.stats.t.cdf(t, 15)))


@pytest.mark.parametrize("classes", [5, 10, 43, 200])
def test_false_alarms_on_normal_values_stay_at_the_level(classes):
    generator = np.random.default_rng(1)
    alarms = sum(
        min(small_outliers(generator.normal(4, 1, classes).tolist()).p_values) < 0.05
        for _ in range(2000)
    )
    # 2,000 draws at 5 %: one standard deviation is 0.5 points, four of them 2.
    assert 0.03 < alarms / 2000 < 0.07


def test_two_mads_would_alarm_on_a_third_of_clean_models():
    generator = np.random.default_rng(2)
    draws = generator.normal(4, 1, (2000, 10))
    median = np.median(draws, axis=1, keepdims=True)
    mad = 1.4826 * np.median(abs(draws - median), axis=1)
    assert ((median[:, 0] - draws.min(1)) / mad > 2).mean() > 0.25


@pytest.mark.parametrize("level", [0.05, 0.01])
def test_critical_value_is_where_the_p_value_crosses_the_level(level):
    values = [3.0, 5.0, 5.5, 4.8, 5.2, 4.9, 5.1]
    edge = critical_value(values, 0, level)
    for gap, outlier in ((-1e-6, True), (1e-6, False)):
        p = small_outliers([edge + gap, *values[1:]]).p_values[0]
        assert (p < level) is outlier


def test_infinite_values_take_no_part():
    with_infinite = small_outliers([1.0, math.inf, 5.0, 5.1, 4.9, math.nan, 5.2])
    without = small_outliers([1.0, 5.0, 5.1, 4.9, 5.2])
    assert with_infinite.p_values[1] == 1 and math.isnan(with_infinite.scores[5])
    assert with_infinite.scores[0] == pytest.approx(without.scores[0])


def test_too_few_classes_and_equal_values_never_alarm():
    assert set(small_outliers([1.0, 9.0, 9.0]).p_values) == {1.0}
    equal = small_outliers([0.3] * 10)
    assert set(equal.p_values) == {1.0} and set(equal.scores) == {0.0}
    lone = small_outliers([0.1] + [0.3] * 9)
    assert lone.scores[0] == -math.inf and lone.p_values[0] == 0


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=50), st.floats(0.01, 100))
def test_scale_and_shift_change_nothing(values, scale):
    if np.ptp(values) < 1e-3:
        return
    first = small_outliers(values)
    second = small_outliers([scale * (v + 1) for v in values])
    assert first.p_values == pytest.approx(second.p_values, rel=1e-5, abs=1e-12)


def test_critical_score_needs_enough_values():
    with pytest.raises(InputError, match="at least 4"):
        critical_score(3, 0.05)


# -- one outlier or two ---------------------------------------------------------------------------


def test_two_that_mask_each_other_get_the_second_one_s_p_value_without_the_first():
    values = np.random.default_rng(3).normal(5, 0.3, 12)
    values[[4, 7]] = 1, 1.2
    found = one_or_two_small(values.tolist())
    others = np.delete(values, [4, 7])
    for k in (4, 7):
        t = (values[k] - others.mean()) / (others.std(ddof=1) * math.sqrt(1 + 1 / 10))
        assert found.scores[k] == pytest.approx(t)
    pair = 11 * scipy.stats.t.cdf(found.scores[7], 9)  # Grubbs' among the 11 that are not class 4
    assert found.p_values[4] == found.p_values[7] == pytest.approx((1 + 3 / 12) * pair)
    assert found.p_values[7] < 1e-3 < 0.05 < min(small_outliers(values.tolist()).p_values)


def test_a_lone_outlier_loses_no_more_than_the_second_look_costs():
    values = np.random.default_rng(4).normal(5, 1, 10)
    values[3] = -5
    once, twice = small_outliers(values.tolist()), one_or_two_small(values.tolist())
    assert twice.scores[3] == once.scores[3]
    assert twice.p_values[3] == pytest.approx(1.3 * once.p_values[3]) and once.p_values[3] < 1e-4
    assert min(np.delete(twice.p_values, 3)) > 0.05


@pytest.mark.parametrize("classes", [5, 10, 43, 200])
def test_false_alarms_stay_at_the_level_although_it_looks_twice(classes):
    generator = np.random.default_rng(5)
    alarms = sum(
        min(one_or_two_small(generator.normal(4, 1, classes).tolist()).p_values) < 0.05
        for _ in range(2000)
    )
    assert 0.03 < alarms / 2000 < 0.07  # as for Grubbs' test


def test_three_still_mask_each_other():
    values = [0.9, 1.0, 1.1, 5.0, 5.2, 4.9, 5.1, 4.8, 5.3, 5.0]
    assert min(one_or_two_small(values).p_values) > 0.05


def test_few_infinite_and_equal_values_are_no_pair():
    four = [1.0, 5.0, 5.1, 4.9]
    assert one_or_two_small(four) == small_outliers(four)
    with_infinite = one_or_two_small([1.0, math.inf, 1.2, 5.1, 4.9, math.nan, 5.2, 5.0])
    without = one_or_two_small([1.0, 1.2, 5.1, 4.9, 5.2, 5.0])
    assert with_infinite.p_values[1] == with_infinite.p_values[5] == 1
    assert [with_infinite.p_values[k] for k in (0, 2)] == pytest.approx(without.p_values[:2])
    assert set(one_or_two_small([0.3] * 10).p_values) == {1.0}
    assert one_or_two_small([0.1, 0.1] + [0.3] * 9).p_values[:2] == (0.0, 0.0)
    assert min(one_or_two_small([0.1, 0.1] + [0.3] * 9).p_values[2:]) == 1


# -- the anomaly index -----------------------------------------------------------------------------


def test_the_anomaly_index_by_hand():
    # median 5, deviations 4 1 0 1 2: their median 1; even count: numpy's mean of the middle two.
    assert mad_outliers([1.0, 4.0, 5.0, 6.0, 7.0]).scores == pytest.approx(
        [-4 / 1.4826, -1 / 1.4826, 0, 1 / 1.4826, 2 / 1.4826]
    )
    # median (2 + 3) / 2, deviations 1.5 0.5 0.5 1.5: their median 1
    assert mad_outliers([1.0, 2.0, 3.0, 4.0]).scores[0] == pytest.approx(-1.5 / 1.4826)


def largest_index(values):
    median = np.median(values)
    return (median - min(values)) / (1.4826 * np.median(abs(values - median)))


@pytest.mark.parametrize("classes", [5, 10, 43])
def test_its_p_value_is_the_share_of_normal_draws_with_so_small_a_smallest_value(classes):
    generator = np.random.default_rng(7)
    brute = np.array([largest_index(generator.normal(3, 2, classes)) for _ in range(20_000)])
    for index in (1.5, 2.0, 3.0, 5.0):
        values = np.zeros(classes)
        half = classes // 2
        values[:half], values[half:] = -1 / 1.4826, 1 / 1.4826
        values[classes // 2] = 0.0 if classes % 2 else values[classes // 2]
        values[0] = -index
        outliers = mad_outliers(values.tolist())
        assert outliers.scores[0] == pytest.approx(-index)
        share = (brute >= index).mean()  # 20,000 draws: one standard deviation is at most 0.0036
        assert outliers.p_values[0] == pytest.approx(share, abs=0.015)


def test_the_published_cut_alarms_on_a_third_of_clean_models_and_the_p_value_on_a_twentieth():
    generator = np.random.default_rng(3)
    found = [mad_outliers(generator.normal(4, 1, 10).tolist()) for _ in range(2000)]
    assert np.mean([min(o.scores) < -2 for o in found]) > 0.25
    assert 0.03 < np.mean([min(o.p_values) <= 0.05 for o in found]) < 0.07


def test_without_spread_the_index_is_infinite_or_zero_and_never_nan():
    lone = mad_outliers([0.1, 0.5] + [0.3] * 8)
    assert lone.scores == (-math.inf, math.inf) + (0.0,) * 8
    assert lone.p_values[0] < 1e-4 and lone.p_values[1:] == (1.0,) * 9
    assert mad_outliers([0.3] * 10).scores == (0.0,) * 10


def test_in_the_index_infinite_values_take_no_part_and_three_are_too_few():
    with_infinite = mad_outliers([1.0, math.inf, 5.0, 5.1, 4.9, math.nan, 5.2])
    without = mad_outliers([1.0, 5.0, 5.1, 4.9, 5.2])
    assert with_infinite.p_values[1] == 1 and math.isnan(with_infinite.scores[5])
    assert with_infinite.scores[0] == without.scores[0]
    assert set(mad_outliers([1.0, 9.0, 9.1, math.inf]).p_values) == {1.0}
