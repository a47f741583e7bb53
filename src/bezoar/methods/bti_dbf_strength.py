"""How strong a recovered trigger is, against those of networks without a backdoor (ours).

BTI-DBF names a class for every network, and a bounded change that carries nearly every image to one
class exists in networks without a backdoor, too. What differs is the force: in a network without a
backdoor such a change looks to the network like an image of the class, or like a few of them; a
backdoor answers to its trigger with far more than any image of the class brings up. So

    strength = mean (z_k(G(x)) - z_k(x)) / mean z_f(x)(x)

on held-out images, with z the logits less their mean over the classes. The first mean is over those
that are not answered with k, the class that the trigger leads to. It has no unit and depends little
on the number of classes. Its logarithm is compared with that of networks without a backdoor
(``measured_null``; ``benchmarks/bti_dbf_detection.py`` wrote ``data/bti_dbf_null.json``): p is the
chance that a further such network reaches s, if logarithms are normal. One generator is trained,
not one for each class, so nothing is corrected for K.
"""

from __future__ import annotations

import functools
import math

from torch import Tensor

from bezoar.measured_null import MeasuredNull
from bezoar.packaged import packaged

LEAST = 0.1  # of a strength: below, the trigger leads nowhere, and logarithms grow without meaning

NULL = "data/bti_dbf_null.json"  # written by benchmarks/bti_dbf_detection.py


def strength_of(plain: Tensor, stamped: Tensor, k: int) -> float:
    """The strength of a trigger towards class ``k``, at least 0.1.

    Args:
        plain: logits (n, C) of held-out images.
        stamped: logits (n, C) of the same images with the trigger.
        k: a class.
    """
    before = plain - plain.mean(1, keepdim=True)
    after = stamped - stamped.mean(1, keepdim=True)
    natural = float(before.amax(1).mean())
    others = plain.argmax(1) != k
    if natural <= 0 or not bool(others.any()):
        return LEAST
    return max(LEAST, float((after - before)[others, k].mean()) / natural)


@functools.cache
def null_strengths() -> tuple[float, ...]:
    """The strength of the trigger recovered from each measured network without a backdoor."""
    return tuple(packaged(NULL)["strengths"])


def strength_test(strength: float) -> tuple[float, float]:
    """A score and a p-value of a strength.

    Returns:
        The score is negative where a trigger is stronger than in networks without a backdoor, in
        standard deviations of a new observation's logarithm; the p-value is one-sided.
    """
    return _null().test(-math.log(max(strength, LEAST)))


def critical_strength(p_value: float) -> float:
    """The strength that has this p-value, in (0, 1)."""
    return 1 / critical_value(p_value)


def critical_value(p_value: float) -> float:
    """The same as evidence has it, where small is strong."""
    return math.exp(_null().critical(p_value))


def _null() -> MeasuredNull:
    """The logarithms of the reciprocals, where small is strong."""
    return MeasuredNull(tuple(-math.log(strength) for strength in null_strengths()))


def null_in_words() -> str:
    """The null for records and pages."""
    null = null_strengths()
    return (
        f"the strength of the trigger recovered from {len(null)} small networks without a backdoor "
        f"(from {min(null):.2f} to {max(null):.2f}), logarithms taken as normal"
    )
