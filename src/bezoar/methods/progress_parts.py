"""The progress of one part of a longer work."""

from __future__ import annotations

from bezoar.training import Progress


def part_of(progress: Progress, start: float, end: float) -> Progress:
    """A callback for work that is the share from ``start`` to ``end`` of the whole.

    >>> part_of(lambda what, share: print(what, share), 0.5, 1.0)("training", 0.5)
    training 0.75
    """
    return lambda what, share: progress(what, start + (end - start) * share)
