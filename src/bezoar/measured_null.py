"""A statistic against those of networks without a backdoor, taken as normal (ours).

Small is suspicious. With m and s the mean and the standard deviation over n networks,

    t = (v - m) / (s sqrt(1 + 1 / n)),    p = P(T <= t),    T Student's t with n - 1 degrees

p is the chance that a further such network shows a value as small.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from bezoar.statistics import student_t_cdf


@dataclass(frozen=True)
class MeasuredNull:
    """What networks without a backdoor show.

    Attributes:
        values: the statistic of each of them, at least two.
    """

    values: tuple[float, ...]

    def test(self, value: float) -> tuple[float, float]:
        """A score and a p-value.

        The score is negative where the value is smaller than is usual, in standard deviations of a
        new observation; the p-value is one-sided.

        >>> MeasuredNull((-1.0, 0.0, 1.0)).test(0.0)
        (0.0, 0.5)
        """
        mean, spread, degrees = self._normal
        score = (value - mean) / spread
        return score, student_t_cdf(score, degrees)

    def critical(self, p_value: float) -> float:
        """The value that has this p-value, in (0, 1)."""
        mean, spread, degrees = self._normal
        low, high = -1e3, 1e3  # of the score
        for _ in range(60):
            middle = (low + high) / 2
            below = student_t_cdf(middle, degrees) < p_value
            low, high = (middle, high) if below else (low, middle)
        return mean + low * spread

    @property
    def _normal(self) -> tuple[float, float, int]:
        """Mean and standard deviation of a new observation, and the degrees of freedom."""
        spread = statistics.stdev(self.values) * math.sqrt(1 + 1 / len(self.values))
        return statistics.fmean(self.values), spread, len(self.values) - 1
