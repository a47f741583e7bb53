"""Curves of a record that have one value for each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def epoch_curves(lines: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """One curve for each name, as the report draws them; the first epoch is 1.

    >>> epoch_curves({"loss": [0.5, 0.25]})
    [{'name': 'loss', 'x_name': 'epoch', 'x': [1, 2], 'y': [0.5, 0.25]}]
    """
    return [
        {"name": name, "x_name": "epoch", "x": list(range(1, len(values) + 1)), "y": list(values)}
        for name, values in lines.items()
    ]
