"""Outlier tests for one number per class, with the right null.

The class with the smallest number was *picked* as the smallest, so a cut-off for one number in
isolation ("2 MADs") calls a third of all backdoor-free 10-class models backdoored. The test here is
Grubbs' one-sided test (Grubbs 1950): each value against the mean and spread of the *others*, a
Student t, corrected for the number of classes. ``mad_outliers`` gives the field's older index (the
distance from the median in MADs) the null that it lacks. ``harmonic_mean`` puts the p-values of
several tests together that are not independent (Wilson 2019, PNAS 116:1195).

Two values that are about as small mask each other in Grubbs' test: each widens the spread that the
other is held against. ``one_or_two_small`` looks once more without the smallest.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bezoar.errors import InputError

FEWEST_CLASSES = 4  # one value against fewer than three others says nothing
LEAST = 1e-12  # a p-value of 0 would end the arithmetic
MAD_TO_SIGMA = 1.4826  # makes the MAD of normal values estimate their standard deviation


@dataclass(frozen=True)
class Outliers:
    """How unusually small each value is among the others.

    Attributes:
        scores: the studentised deviation of each value from the others; negative is small. NaN
            where the value takes no part.
        p_values: the probability that the smallest of so many values is as far out by chance, in
            (0, 1]; already corrected for having picked the smallest. 1 where a value takes no part.
    """

    scores: tuple[float, ...]
    p_values: tuple[float, ...]


def small_outliers(values: Sequence[float]) -> Outliers:
    """Grubbs' one-sided test of every value; infinite and NaN values take no part.

    With m finite values, the score of value k against the mean a and standard deviation s of the
    other m - 1 is ``t = (v_k - a) / (s * sqrt(1 + 1 / (m - 1)))``. Under independent normal values
    t is Student's with m - 2 degrees of freedom, and m * P(T <= t) bounds the family-wise error
    from above; for the small p-values that matter the bound is exact (two values cannot both lie so
    far out). Fewer than four finite values cannot be tested: all p-values are 1.

    >>> outliers = small_outliers([1.0, 5.0, 5.2, 4.9, 5.1, 4.8, 5.3, 5.0, 4.7, 5.4])
    >>> round(outliers.scores[0], 2), outliers.p_values[0] < 1e-6, outliers.p_values[1]
    (-16.7, True, 1.0)
    """
    everything = np.array(values, dtype=np.float64)
    taking_part = np.isfinite(everything)
    scores, p_values = np.full(len(values), math.nan), np.ones(len(values))
    m = int(taking_part.sum())
    if m >= FEWEST_CLASSES:
        scores[taking_part] = _studentised(everything[taking_part])
        # Student's lower tail holds more than the normal one: above its quantile p is 1.
        for k in np.flatnonzero(scores < statistics.NormalDist().inv_cdf(1 / m)):
            p_values[k] = min(1.0, m * student_t_cdf(float(scores[k]), m - 2))
    return Outliers(tuple(scores.tolist()), tuple(p_values.tolist()))


def _studentised(values: np.ndarray) -> np.ndarray:
    """T of each of m finite values, as in ``small_outliers``."""
    m = len(values)
    centre = float(values.mean())
    # Deviations from the common mean keep the digits that a difference of two sums would lose.
    deviations = values - centre
    others_mean = (deviations.sum() - deviations) / (m - 1)
    others_squares = (deviations**2).sum() - deviations**2 - (m - 1) * others_mean**2
    spread = np.sqrt(others_squares.clip(min=0) / (m - 2) * (1 + 1 / (m - 1)))
    gap = deviations - others_mean
    equal = spread <= 1e-12 * np.maximum(np.abs(gap), max(abs(centre), 1e-300))
    lone = np.where(np.abs(gap) <= 1e-12 * abs(centre), 0.0, np.copysign(math.inf, gap))
    return np.where(equal, lone, gap / np.where(equal, 1.0, spread))


def one_or_two_small(values: Sequence[float]) -> Outliers:
    """Grubbs' test, and once more without the smallest value: two that mask each other are seen.

    The many-outlier test of Rosner 1983 (Technometrics 25:165) for at most two outliers. Where the
    second smallest value is an outlier among all but the smallest, both are, and both get its
    p-value if that is below their own; their scores leave out the other one. Looking twice makes
    more false alarms: of m independent normal values 1.6, 1.3 and 1.02 times as many for m = 5, 10
    and 43 (simulated). So all p-values are multiplied by 1 + 3 / m (ours), which is at least that.
    Values are smallest first in the sense of ``small_outliers``, which is used for fewer than five
    finite ones.

    >>> two = [1.0, 1.1, 5.2, 4.9, 5.1, 4.8, 5.3, 5.0, 4.7, 5.4]
    >>> [round(p, 2) for p in small_outliers(two).p_values[:2]]  # each masks the other
    [0.17, 0.21]
    >>> max(one_or_two_small(two).p_values[:2]) < 1e-5
    True
    """
    once = small_outliers(values)
    finite = sorted((k for k, v in enumerate(values) if math.isfinite(v)), key=values.__getitem__)
    m = len(finite)
    if m <= FEWEST_CLASSES:
        return once
    scores, p_values = list(once.scores), list(once.p_values)
    without = {k: small_outliers([*values[:k], math.inf, *values[k + 1 :]]) for k in finite[:2]}
    pair = without[finite[0]].p_values[finite[1]]
    for k, other in (finite[:2], finite[1::-1]):
        if pair < p_values[k]:
            scores[k], p_values[k] = without[other].scores[k], pair
    return Outliers(tuple(scores), tuple(min(1.0, (1 + 3 / m) * p) for p in p_values))


def mad_outliers(values: Sequence[float]) -> Outliers:
    """The anomaly index of every value, with the null of the *smallest* of so many.

    ``A_k = (median - v_k) / MAD`` with ``MAD = 1.4826 median |v_k - median|`` (numpy's median: the
    mean of the two middle values) is the index of Neural Cleanse (Wang et al., IEEE S&P 2019) with
    its sign; scores are ``-A_k``. Where more than half of the values coincide the MAD is 0: the
    index is then infinite for every other value and 0 for those.

    The paper's cut of 2 takes each class for itself, as if it had not been picked. Among 10 normal
    values the smallest passes it in about a third of all cases (20 % if median and MAD were known).
    The p-value here is the probability that the smallest of m independent normal values has so
    large an index, from simulated draws (ours); it is never below one part of their number,
    and exact for the smallest value, an upper bound for the others. Infinite and NaN values take
    no part; fewer than four finite ones cannot be tested.

    >>> outliers = mad_outliers([1.0, 5.0, 5.2, 4.9, 5.1, 4.8, 5.3, 5.0, 4.7, 5.4])
    >>> round(outliers.scores[0], 2), outliers.p_values[0] < 1e-3, outliers.p_values[5] > 0.5
    (-13.49, True, True)
    >>> edge = [-2.0, -1.0, -0.674491, -0.674491, 0.0, 0.0, 0.674491, 0.674491, 1.0, 1.5]
    >>> outliers = mad_outliers(edge)  # its smallest value lies exactly at the paper's cut
    >>> round(outliers.scores[0], 3), round(outliers.p_values[0], 1)
    (-2.0, 0.3)
    """
    finite = np.array([v for v in values if math.isfinite(v)])
    scores, p_values = [math.nan] * len(values), [1.0] * len(values)
    if len(finite) < FEWEST_CLASSES:
        return Outliers(tuple(scores), tuple(p_values))
    null = _largest_indices(len(finite))
    median = float(np.median(finite))
    mad = MAD_TO_SIGMA * float(np.median(abs(finite - median)))
    for k, value in enumerate(values):
        if not math.isfinite(value):
            continue
        gap = value - median
        if mad > 0:
            scores[k] = gap / mad
        else:
            scores[k] = math.copysign(math.inf, gap) if gap else 0.0
        reached = len(null) - int(np.searchsorted(null, -scores[k], side="left"))
        p_values[k] = (reached + 1) / (len(null) + 1)
    return Outliers(tuple(scores), tuple(p_values))


def harmonic_mean(p_values: Iterable[float]) -> float:
    """The harmonic mean of p-values for one question; 0 counts as 1e-12.

    >>> harmonic_mean([0.01, 1.0]), harmonic_mean([0.5, 0.5])
    (0.019801980198019802, 0.5)
    """
    inverse = [1 / max(LEAST, p) for p in p_values]
    return len(inverse) / sum(inverse)


def harmonic_means(rows: Iterable[Sequence[float]]) -> list[float]:
    """That of each class, from a row of p-values for each test.

    >>> harmonic_means([[0.01, 0.5], [1.0, 0.5]])
    [0.019801980198019802, 0.5]
    """
    return [harmonic_mean(column) for column in zip(*rows, strict=True)]


def most_unusual(rows: Iterable[Sequence[float]]) -> tuple[int, float]:
    """The class with the smallest harmonic mean, the first of equals, and that mean.

    >>> most_unusual([[0.5, 0.01], [0.5, 1.0]])
    (1, 0.019801980198019802)
    """
    joint = harmonic_means(rows)
    first = min(range(len(joint)), key=joint.__getitem__)
    return first, joint[first]


@functools.cache
def _largest_indices(count: int) -> np.ndarray:
    """Simulated largest indices of ``count`` normal values, in ascending order."""
    draws = min(100_000, max(10_000, 10_000_000 // count))
    generator = np.random.default_rng(0)
    largest = []
    for start in range(0, draws, 10_000):  # in parts, so that memory stays small
        values = generator.standard_normal((min(10_000, draws - start), count))
        median = np.median(values, axis=1)
        mad = MAD_TO_SIGMA * np.median(abs(values - median[:, None]), axis=1)
        largest.append((median - values.min(1)) / mad)
    return np.sort(np.concatenate(largest))


def critical_score(count: int, level: float) -> float:
    """The score below which the smallest of ``count`` values is an outlier at ``level``.

    >>> round(critical_score(10, 0.05), 2), round(critical_score(200, 0.01), 2)
    (-3.36, -3.97)
    """
    if count < FEWEST_CLASSES or not 0 < level < 1:
        raise InputError(
            f"the test needs at least {FEWEST_CLASSES} values and a level between 0 and 1; got "
            f"{count} values and level {level}"
        )
    low, high = -1e9, 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if count * student_t_cdf(middle, count - 2) < level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def critical_value(values: Sequence[float], which: int, level: float) -> float:
    """The value that ``values[which]`` would have to fall below to be an outlier at ``level``."""
    others = [v for k, v in enumerate(values) if k != which and math.isfinite(v)]
    mean = sum(others) / len(others)
    spread = math.sqrt(sum((v - mean) ** 2 for v in others) / (len(others) - 1))
    score = critical_score(len(others) + 1, level)
    return mean + score * spread * math.sqrt(1 + 1 / len(others))


def student_t_cdf(t: float, degrees: int) -> float:
    """P(T <= t) for Student's t, to about 1e-12 relative in the lower tail.

    >>> round(student_t_cdf(-2.306, 8), 4)
    0.025
    """
    if math.isinf(t):
        return 0.0 if t < 0 else 1.0
    tail = 0.5 * _regularised_beta(
        degrees / 2, 0.5, degrees / (degrees + t * t), t * t / (degrees + t * t)
    )
    return tail if t < 0 else 1 - tail


def _regularised_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b) by its continued fraction (DLMF 8.17.22), evaluated with Lentz's algorithm.

    ``rest`` is 1 - x, given apart because subtracting loses its digits where x is nearly 1.
    """
    if x <= 0 or rest <= 0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only below this point
        return 1 - _regularised_beta(b, a, rest, x)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log(rest)
    )  # fmt: skip
    c, d = 1.0, 1.0 / _away_from_zero(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(log_front) * result / a


def _away_from_zero(number: float) -> float:
    return number if abs(number) > 1e-300 else 1e-300
