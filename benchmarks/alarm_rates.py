"""How often p-values of networks without a backdoor raise an alarm, at the levels of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bezoar.metrics import rate

LEVELS = (0.05, 0.01)


def at_levels(p_values: Sequence[float]) -> dict[str, Any]:
    """The share of p-values at or below each level, with its interval.

    >>> at_levels([0.03, 0.9])["at 0.05"]["value"]
    0.5
    """
    return {
        f"at {level:g}": rate(sum(p <= level for p in p_values), len(p_values)).as_record()
        for level in LEVELS
    }
