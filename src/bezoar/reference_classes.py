"""Which classes a witness looks at that costs more with every class.

Neural Cleanse inverts a patch for each class, and a smooth pattern is searched for each likewise;
with 43 classes that is most of a scan. Beyond twelve the two look at ten: the four that the
witnesses before find most unusual, and six drawn at random, against which these are compared
(ours). That the four were picked makes them easier to reach than others in networks without a
backdoor, too; the measured nulls were made in the same way, so they allow for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch

from bezoar.methods import Evidence, Method, NeuralCleanse, SmoothPattern

BY_CLASS = (NeuralCleanse, SmoothPattern)
MOST = 12  # classes that are all looked at
PICKED, DRAWN = 4, 6
SOME = PICKED + DRAWN


def narrowed(method: Method, before: Sequence[Evidence], classes: int, *, seed: int) -> Method:
    """The method for some classes, where it costs more with every class and the user names none.

    Args:
        method: a witness.
        before: what other witnesses saw.
        classes: how many there are.
        seed: of the draw.
    """
    if not isinstance(method, BY_CLASS) or method.classes is not None or classes <= MOST:
        return method
    picked = sorted(range(classes), key=lambda k: _unusual(before, k))[:PICKED] if before else []
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [k for k in order if k not in picked][: SOME - len(picked)]
    return msgspec.structs.replace(method, classes=tuple(sorted(picked + drawn)))


def looked_at_some(looking: Method, witness: Method, classes: int, *, others: bool) -> list[str]:
    """What is to be said of a witness that was narrowed to ``looking``.

    Args:
        looking: the method for some classes.
        witness: the method as it was given.
        classes: how many there are.
        others: whether there were witnesses before it, by which classes could be picked.
    """
    if looking is witness or not isinstance(looking, BY_CLASS) or looking.classes is None:
        return []
    picked = "those that the others find most unusual, and some " if others else "some "
    return [
        f"The witness {witness.name} looked at {len(looking.classes)} of the {classes} classes: "
        f"{picked}drawn at random."
    ]


def _unusual(evidence: Sequence[Evidence], k: int) -> tuple[float, float]:
    p_values = [e.p_values[k] for e in evidence]
    return min(p_values), sum(p_values)
