"""The field's numbers, as pure functions: ACC, ASR, RA, DER, intervals.

All rates lie in [0, 1]. The formulas follow the usual definitions (BackdoorBench); where that code
holds two versions of DER, the one below is the formula of its paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from torch import Tensor

from bezoar.errors import InputError

Z_95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


class Rate(msgspec.Struct, frozen=True):
    """A share of counted images with its 95 % Wilson interval.

    Attributes:
        value: the share, in [0, 1].
        low: lower end of the interval.
        high: upper end of the interval.
        count: how many images were counted.

    >>> rate(8, 10).value, round(rate(8, 10).low, 4), round(rate(8, 10).high, 4)
    (0.8, 0.4902, 0.9433)
    """

    value: float
    low: float
    high: float
    count: int

    def __float__(self) -> float:
        return self.value

    def as_record(self) -> Mapping[str, float | int]:
        """The plain form that records hold."""
        return msgspec.structs.asdict(self)


def rate(successes: int, count: int) -> Rate:
    """``successes`` of ``count`` as a ``Rate`` (interval: Wilson 1927, exact enough at 0 and 1).

    Raises:
        InputError: nothing was counted, or more successes than images.
    """
    if count < 1 or not 0 <= successes <= count:
        raise InputError(f"a rate needs 0 <= successes <= count, count > 0: {successes} of {count}")
    share = successes / count
    spread = Z_95 * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    scale = 1 + Z_95**2 / count
    centre = share + Z_95**2 / (2 * count)
    low, high = (centre - spread) / scale, (centre + spread) / scale
    # At 0 and 1 the interval touches the share exactly; rounding must not put it outside.
    return Rate(share, max(0.0, min(low, share)), min(1.0, max(high, share)), count)


def accuracy(answers: Tensor, labels: Tensor) -> Rate:
    """ACC: the share of clean images (n,) answered with their label.

    >>> import torch
    >>> accuracy(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 3, 0])).value
    0.75
    """
    return rate(int((answers == labels).sum()), len(labels))


def agreement(answers: Tensor, others: Tensor) -> Rate:
    """The share of images (n,) on which two classifiers answer the same class."""
    return rate(int((answers == others).sum()), len(others))


def attack_success_rate(answers: Tensor, wanted: Tensor) -> Rate:
    """ASR: the share of stamped images (n,) answered as the attacker wants.

    The caller leaves out images that are of the target class already.
    """
    return rate(int((answers == wanted).sum()), len(wanted))


def robust_accuracy(answers: Tensor, labels: Tensor) -> Rate:
    """RA: the share of the same stamped images (n,) answered with their true label."""
    return rate(int((answers == labels).sum()), len(labels))


def defense_effectiveness(
    *, acc_before: float, acc_after: float, asr_before: float, asr_after: float
) -> float:
    """DER = (max(0, ASR drop) - max(0, ACC drop) + 1) / 2, in [0, 1]; 0.5 is no effect.

    >>> round(defense_effectiveness(acc_before=0.9340, acc_after=0.9277, asr_before=1.0,
    ...                             asr_after=0.0172), 5)
    0.98825
    """
    asr_drop = max(0.0, asr_before - asr_after)
    acc_drop = max(0.0, acc_before - acc_after)
    return (asr_drop - acc_drop + 1) / 2
