"""The field's numbers, as pure functions: ACC, ASR, RA, DER, AUROC, intervals.

All rates lie in [0, 1]. The formulas follow the usual definitions (BackdoorBench); where that code
holds two versions of DER, the one below is the formula of its paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import torch
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


def rate(successes: float, count: int) -> Rate:
    """``successes`` of ``count`` as a ``Rate`` (interval: Wilson 1927, exact enough at 0 and 1).

    A mean over several looks at the same ``count`` need not be a whole number.

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


def fall(before: Rate, after: Rate) -> Rate:
    """By how much a rate fell, ``before - after`` in [-1, 1], with a 95 % interval.

    Newcombe 1998 (method 10): the Wilson intervals of both, combined as for independent samples.
    Where both were counted on the same images, as here, the interval is rather too wide.

    >>> round(fall(rate(90, 100), rate(85, 100)).value, 6)
    0.05
    """
    value = before.value - after.value
    down = math.hypot(before.value - before.low, after.high - after.value)
    up = math.hypot(before.high - before.value, after.value - after.low)
    return Rate(value, value - down, value + up, min(before.count, after.count))


def defense_effectiveness_interval(
    acc_before: Rate, acc_after: Rate, asr_before: Rate, asr_after: Rate
) -> Rate:
    """DER with a 95 % interval; ``count`` is that of the smaller of its two samples.

    The intervals of both falls, clipped at 0 as in the formula, are combined as in ``fall``.

    >>> acc, asr, gone = rate(90, 100), rate(100, 100), rate(0, 100)
    >>> defense_effectiveness_interval(acc, acc, asr, gone).value
    1.0
    """
    acc, asr = fall(acc_before, acc_after), fall(asr_before, asr_after)
    clipped = [[max(0.0, x) for x in (r.low, r.value, r.high)] for r in (acc, asr)]
    (acc_low, acc_value, acc_high), (asr_low, asr_value, asr_high) = clipped
    value = (asr_value - acc_value + 1) / 2
    low = value - math.hypot(asr_value - asr_low, acc_high - acc_value) / 2
    high = value + math.hypot(asr_high - asr_value, acc_value - acc_low) / 2
    count = min(acc.count, asr.count)
    return Rate(value, max(0.0, min(low, value)), min(1.0, max(high, value)), count)


def auroc(positive: Tensor, negative: Tensor) -> float:
    """AUROC: how often a positive scores above a negative, ties counting half; 0.5 is chance.

    The rank statistic of Mann and Whitney (1947), in O(n log n).

    Args:
        positive: scores (n,) of what shall be found, the higher the better.
        negative: scores (m,) of the rest.

    Raises:
        InputError: one of the two is empty or holds NaN.

    >>> import torch
    >>> auroc(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 1.0, 2.0]))
    0.75
    """
    _check_scores(positive, negative)
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive, right=False)
    not_above = torch.searchsorted(ordered, positive, right=True)
    wins = int((below + not_above).sum())  # twice the number of pairs won
    return wins / (2 * len(positive) * len(negative))


def tpr_at_fpr(positive: Tensor, negative: Tensor, false_positives: float) -> float:
    """The share of positives found where at most ``false_positives`` of the negatives are flagged.

    The threshold lies at a score that occurs, never between two of them, so ties count against us.

    >>> import torch
    >>> tpr_at_fpr(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 1.0, 2.0, -1.0]), 0.25)
    0.5
    """
    _check_scores(positive, negative)
    if not 0 <= false_positives < 1:
        raise InputError(f"a false-positive rate of {false_positives} lies outside [0, 1)")
    allowed = int(false_positives * len(negative) + 1e-9)  # 0.29 * 100 is just below 29
    threshold = negative.sort(descending=True).values[allowed]
    return int((positive > threshold).sum()) / len(positive)


def _check_scores(*scores: Tensor) -> None:
    for values in scores:
        if not len(values) or bool(values.isnan().any()):
            raise InputError("scores to compare are missing or NaN; expected one number each")
