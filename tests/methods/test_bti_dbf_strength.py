"""The strength of a trigger, and its p-value against networks without a backdoor."""

import math
import random
import statistics

import pytest
import torch

from bezoar.methods import bti_dbf_strength
from bezoar.methods.bti_dbf_strength import (
    LEAST,
    critical_strength,
    null_in_words,
    null_strengths,
    strength_of,
    strength_test,
)


def logits(*shape, seed=0):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_strength(before, after, k):
    """The formula of the module, image by image."""
    own, pushes = [], []
    for x, stamped in zip(before.tolist(), after.tolist(), strict=True):
        z = [value - statistics.fmean(x) for value in x]
        z_stamped = [value - statistics.fmean(stamped) for value in stamped]
        answer = z.index(max(z))
        own.append(z[answer])
        if answer != k:
            pushes.append(z_stamped[k] - z[k])
    return statistics.fmean(pushes) / statistics.fmean(own)


@pytest.mark.parametrize("k", [0, 3])
def test_the_strength_is_that_of_the_formula(k):
    before, after = logits(20, 5), logits(20, 5, seed=1)
    after[:, k] += 10
    expected = plain_strength(before, after, k)
    assert expected > LEAST
    assert strength_of(before, after, k) == pytest.approx(expected, rel=1e-5)


def test_it_has_no_unit_and_ignores_what_no_answer_depends_on():
    before, after = logits(20, 5), logits(20, 5, seed=1)
    after[:, 2] += 10
    strength = strength_of(before, after, 2)
    shifts = logits(20, 1, seed=2), logits(20, 1, seed=3)
    assert strength_of(before + shifts[0], after + shifts[1], 2) == pytest.approx(strength, 1e-4)
    assert strength_of(7 * before, 7 * after, 2) == pytest.approx(strength, 1e-5)


def test_a_trigger_that_leads_nowhere_has_the_least_strength():
    before = logits(20, 5)
    away = before.clone()
    away[:, 1] -= 5
    assert strength_of(before, away, 1) == LEAST
    assert strength_of(before, before, 1) == LEAST
    only = before.clone()
    only[:, 1] += 100  # no image of another class is left
    assert strength_of(only, only + logits(20, 5, seed=1), 1) == LEAST
    flat = torch.zeros(20, 5)  # a network that answers nothing
    assert strength_of(flat, logits(20, 5), 1) == LEAST


# -- the test --------------------------------------------------------------------------------------


def use_null(monkeypatch, *strengths):
    monkeypatch.setattr(bti_dbf_strength, "null_strengths", lambda: strengths)


def test_the_p_value_is_that_of_a_calculation_by_hand(monkeypatch):
    use_null(monkeypatch, 1.0, math.e, math.e**2)  # logarithms 0, 1, 2
    score, p = strength_test(math.e**3)
    t = 2 / math.sqrt(4 / 3)
    assert score == pytest.approx(-t)
    assert p == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))  # Student, 2 degrees of freedom
    assert strength_test(math.e) == (pytest.approx(0, abs=1e-12), pytest.approx(0.5))
    assert strength_test(math.e**-1)[1] == pytest.approx(1 - p)


@pytest.mark.parametrize("p", [0.005, 0.05, 0.5])
def test_a_critical_strength_has_its_p_value(p, monkeypatch):
    use_null(monkeypatch, 1.0, 2.0, 2.5, 4.0)
    assert strength_test(critical_strength(p))[1] == pytest.approx(p, rel=1e-6)


def test_below_the_least_strength_nothing_changes(monkeypatch):
    use_null(monkeypatch, 1.0, 2.0, 3.0)
    assert strength_test(0.0) == strength_test(-3.0) == strength_test(LEAST)


def test_p_values_are_uniform_where_logarithms_are_normal(monkeypatch):
    draw = random.Random(0)  # noqa: S311 (no secret)
    found = []
    for _ in range(2000):
        *null, new = (math.exp(draw.gauss(1.0, 0.5)) for _ in range(8))
        use_null(monkeypatch, *null)
        found.append(strength_test(new)[1])
    found.sort()
    gap = max(abs(p - (i + 0.5) / len(found)) for i, p in enumerate(found))
    assert gap < 1.63 / math.sqrt(len(found))  # Kolmogorov and Smirnov, 1 %


def test_the_null_of_the_package_can_be_tested_against():
    null = null_strengths()
    assert len(null) >= 3 and min(null) >= LEAST and len(set(null)) > 1
    assert f"from {len(null)} small networks without a backdoor" in null_in_words()
    assert f"from {min(null):.2f} to {max(null):.2f}" in null_in_words()
    assert strength_test(1e6 * max(null))[1] < 0.01 < 0.9 < strength_test(LEAST)[1]
