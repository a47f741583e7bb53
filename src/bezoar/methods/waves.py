"""Plane waves on images: which ones there are, and whom they carry where.

    A(x) = clip(x + a sin(2 pi (u row / h + v column / w) + phase), 0, 1),    phase 0, 90, 180, 270

The waves have whole periods, and none has a period below four pixels. ``plane_waves`` asks what
they tell of a network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.methods.neural_cleanse_triggers import Logits, predicted
from bezoar.training import Progress, no_progress

PHASES = 4
FINEST = 4  # pixels of a period, at least
_WHAT = "trying plane waves"


def periods_within(height: int, width: int, frequencies: int) -> list[tuple[int, int]]:
    """The waves (u, v) that are tried: whole periods along the height and along the width.

    (u, v) and (-u, -v) are the same wave, and one of them is there. They lie within an ellipse:
    along each side at most ``frequencies``, or a quarter of the side where that is less.

    >>> periods_within(8, 8, 8)
    [(0, 1), (0, 2), (1, -1), (1, 0), (1, 1), (2, 0)]
    >>> len(periods_within(32, 32, 8)), len(periods_within(224, 224, 8))
    (98, 98)
    """
    rows, columns = (min(frequencies, side // FINEST) for side in (height, width))
    return [
        (u, v)
        for u in range(rows + 1)
        for v in range(-columns, columns + 1)
        if (u, v) > (0, 0) and (u * columns) ** 2 + (v * rows) ** 2 <= (rows * columns) ** 2
    ]


def wave(height: int, width: int, u: int, v: int) -> Tensor:
    """sin(2 pi (u row / height + v column / width) + phase), (4, height, width), a quarter apart.

    >>> [round(float(row[0, 1]), 3) for row in wave(4, 8, 0, 1)]
    [0.707, 0.707, -0.707, -0.707]
    """
    rows = u * torch.arange(height, dtype=torch.float64)[:, None] / height
    columns = v * torch.arange(width, dtype=torch.float64) / width
    phases = torch.arange(PHASES, dtype=torch.float64)[:, None, None] / PHASES
    return (2 * math.pi * (rows + columns + phases)).sin().float()


def carried_by_waves(
    logits: Logits,
    images: Tensor,
    counted: Tensor,
    periods: Sequence[tuple[int, int]],
    amplitude: float,
    progress: Progress = no_progress,
) -> Tensor:
    """How many images each wave carries into each class.

    Each image carries each wave once, the phases taking turns.

    Args:
        logits: the network; eval mode is the caller's to set.
        images: (n, c, h, w) in [0, 1].
        counted: (n, C), the classes that an image counts for.
        periods: F waves.
        amplitude: of the waves, in units of pixels.
        progress: called after each wave.

    Returns:
        (F, 4, C), for each phase.
    """
    height, width = images.shape[2:]
    turns = torch.arange(len(images), device=images.device) % PHASES
    hits = counted.new_zeros((len(periods), PHASES, counted.shape[1]), dtype=torch.int64)
    for row, (u, v) in enumerate(periods):
        waves = amplitude * wave(height, width, u, v).to(images)
        answers = predicted(logits, (images + waves[turns, None]).clamp(0, 1))
        inside = counted & F.one_hot(answers, counted.shape[1]).bool()
        hits[row].index_add_(0, turns, inside.long())
        progress(_WHAT, (row + 1) / len(periods))
    return hits
