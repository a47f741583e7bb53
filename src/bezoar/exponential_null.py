"""How far one value lies below the next, against networks without a backdoor (ours).

The gap between the smallest of several values and the second is about exponential where the lower
tail of the values is (Weissman 1978, J. Am. Stat. Assoc. 73:812). Where all networks have the same
mean gap, and S is the sum of the gaps of n of them, a further one shows a gap g or more with chance

    p = (1 + g / S)^-n

A normal null calls gaps of three and more standard deviations far rarer than these are. Measured
gaps that scatter less than their mean, as exponential ones do, make p too large, not too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ExponentialNull:
    """What networks without a backdoor show.

    Attributes:
        gaps: the gap of each of them, none below 0; some are above.
    """

    gaps: tuple[float, ...]

    def test(self, gap: float) -> tuple[float, float]:
        """A score and a p-value.

        The score is negative where the gap is larger than is usual, in standard deviations, which
        are those of an exponential distribution: its mean. A gap below 0, of a value that is not
        the smallest, has the p-value 1.

        >>> ExponentialNull((0.5, 1.5)).test(2.0)
        (-1.0, 0.25)
        """
        total, count = sum(self.gaps), len(self.gaps)
        return 1 - gap * count / total, (1 + max(0.0, gap) / total) ** -count

    def critical(self, p_value: float) -> float:
        """The gap that has this p-value, in (0, 1]."""
        return sum(self.gaps) * math.expm1(-math.log(p_value) / len(self.gaps))
