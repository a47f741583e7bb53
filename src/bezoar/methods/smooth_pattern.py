"""Smooth pattern: a class that a far weaker smooth change of the image leads to than to any other.

For each class k, d_k is the weakest smooth change of the whole image that carries images of other
classes into k (``smooth_inversion``), and |d_k| its root mean square:

    r_k = |d_k| / min over other classes j of |d_j|

Idea: the attackers' blended and smooth triggers cover the image faintly. A patch cannot imitate
them, and a generator's changes are full of fine detail. Held to the lowest frequencies, the search
finds no ordinary adversarial pattern, whose strength lies in the fine detail. In networks without a
backdoor one class is easier to reach than the next, too, traffic signs more so than CIFAR-10's
classes; so the gap -log r_k is compared with the largest one in each of some networks for traffic
signs without a backdoor (``exponential_null``; ``benchmarks/smooth_pattern_null.py`` wrote
``data/smooth_pattern_null.json``).

Ours; ``smooth_inversion`` names what it is made of. A pattern is recovered where r_k < 0.6, and put
on images twice as strong as the weakest (s = 2): attackers do not stop at what just suffices, and a
network that has unlearned the weakest alone falls for a stronger one.

Assumes an additive trigger at a fixed place. Data: images; labels leave out those of a class
itself. Cost: it grows with the classes, so that of more than twelve a scan chooses ten
(``reference_classes``). Known failures: **triggers with fine detail**, waves finer than m/2 periods
a side among them; a class that is close to all others can look like a target; two like targets hide
each other; images below 16x16 pixels have so few frequencies that most classes have no pattern, and
a scan leaves this witness out, as it does beyond 100 classes: the null has networks of 12 and 43.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from typing import ClassVar

import torch

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.exponential_null import ExponentialNull
from bezoar.images import ImageSet
from bezoar.methods.additive_patterns import AdditivePatterns
from bezoar.methods.method import HELD_OUT, Evidence, Method, Needs, check_target_class, methods
from bezoar.methods.neural_cleanse_triggers import pixels_of
from bezoar.methods.smooth_inversion import SmoothInversion, invert_smooth
from bezoar.packaged import packaged
from bezoar.training import Progress, no_progress
from bezoar.wording import SMOOTH

NULL = "data/smooth_pattern_null.json"  # written by benchmarks/smooth_pattern_null.py
SMALLEST = 16  # pixels a side, below which a scan does not ask: four cosines lead to few classes
SILENT = (
    "Smooth patterns could not be compared: fewer than four classes have one that leads to them."
)
FEWEST_OTHERS = 3  # classes with a pattern that one is compared with
REFERENCES = 4  # others that the patterns of named classes are compared with
UNUSUAL = 0.6  # r of a class whose pattern is recovered; a larger one is no sign of a trigger


@methods.register("smooth-pattern")
class SmoothPattern(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The class that an unusually weak smooth pattern leads to.

    Attributes:
        classes: patterns are searched for these alone, at least four, and the others take no part
            in the test; None takes all.
        inversion: how they are searched for.
    """

    name: ClassVar[str] = "smooth-pattern"
    title: ClassVar[str] = "Smooth pattern: a class that a weaker smooth change leads to"
    paper: ClassVar[str] = "bezoar"
    needs: ClassVar[Needs] = "unlabelled images"
    layers: ClassVar[str] = "any"
    cost: ClassVar[str] = "1440 images forward and backward for each class"
    inspects: ClassVar[bool] = True

    classes: tuple[int, ...] | None = None
    inversion: SmoothInversion = SmoothInversion()

    def __post_init__(self) -> None:
        if self.classes is not None and len(set(self.classes)) <= FEWEST_OTHERS:
            raise InputError(
                f"classes are {self.classes}; expected at least {FEWEST_OTHERS + 1} different "
                "ones, or None for all"
            )

    def inspect(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Evidence:
        """The weakest patterns on four fifths of the images; an unusual one is tried on the rest.

        Raises:
            InputError: the network has not the classes.
        """
        started = time.perf_counter()
        count = classifier.trace(clean.shape).num_classes
        for k in self.classes or ():
            check_target_class(k, classifier)
        chosen = sorted(set(range(count) if self.classes is None else self.classes))
        known, held_out = clean.split(1 - HELD_OUT, seed=seed)
        images, labels = pixels_of(known, classifier)
        with classifier.evaluating():
            found = invert_smooth(
                classifier, images, labels, chosen, self.inversion, seed=seed, progress=progress
            )
            ratios = [math.inf] * count
            for k, ratio in zip(chosen, to_the_next(found.sizes.tolist()), strict=True):
                ratios[k] = ratio
            scores, p_values = zip(*map(_tested, ratios), strict=True)
            patterns = found.of([k for k in chosen if ratios[k] < UNUSUAL])
            carried = None if patterns is None else patterns.carried(classifier, held_out)
        return Evidence(
            method=self.name,
            statistic="Strength of the weakest smooth pattern over that of the easiest other class",
            values=tuple(ratios),
            scores=scores,
            p_values=p_values,
            null=null_in_words(),
            carried=carried,
            recovered=patterns,
            limit=lambda p: math.exp(-null().critical(p)),
            words=SMOOTH,
            record={
                "paper": self.paper,
                "configuration": self.configuration(),
                "classes": chosen,
                "sizes": found.sizes.tolist(),
                "flags": [] if any(map(math.isfinite, ratios)) else [SILENT],
                "seconds": {"total": time.perf_counter() - started},
            },
        )


def to_the_next(sizes: Sequence[float]) -> list[float]:
    """R of each class; infinite where it has no pattern, or fewer than three others have one.

    >>> to_the_next([0.5, 1.0, 2.0, 4.0, math.inf])
    [0.5, 2.0, 4.0, 8.0, inf]
    """
    ordered = sorted(size for size in sizes if math.isfinite(size))
    if len(ordered) <= FEWEST_OTHERS:
        return [math.inf] * len(sizes)
    smallest, second = ordered[:2]
    return [size / (second if size == smallest else smallest) for size in sizes]


def unusual_smooth(
    classifier: Classifier,
    images: ImageSet,
    classes: Sequence[int],
    settings: SmoothInversion,
    *,
    suspects: Sequence[int] = (),
    seed: int,
    progress: Progress = no_progress,
) -> AdditivePatterns | None:
    """The smooth patterns of ``classes`` that are far weaker than those of some other classes.

    For whoever knows which classes are in question: four others are enough to compare these with.

    Args:
        classifier: looked at, and left as it is.
        images: clean ones.
        classes: indices, each once.
        settings: how.
        suspects: other classes that say nothing of how weak is usual.
        seed: of starts, mini-batches and the choice of the other classes.
        progress: called after each step.

    Returns:
        None where none is, or where there are too few other classes to tell.
    """
    order = torch.randperm(classifier.num_classes, generator=torch.Generator().manual_seed(seed))
    others = [k for k in order.tolist() if k not in (*classes, *suspects)][:REFERENCES]
    if len(others) < FEWEST_OTHERS:
        return None
    pixels, labels = pixels_of(images, classifier)
    with classifier.evaluating():
        found = invert_smooth(
            classifier, pixels, labels, [*classes, *others], settings, seed=seed, progress=progress
        )
    sizes = dict(zip(found.classes, found.sizes.tolist(), strict=True))
    # Where no pattern of another class has succeeded the limit is infinite: any finite one is weak.
    limit = UNUSUAL * min(sizes[k] for k in others)
    return found.of([k for k in classes if sizes[k] < limit])


@functools.cache
def null() -> ExponentialNull:
    """What -log r is judged against: the largest of each measured network without a backdoor."""
    return ExponentialNull(tuple(-ratio for ratio in packaged(NULL)["log ratios"]))


def _tested(ratio: float) -> tuple[float, float]:
    """The score and the p-value of a class; NaN and 1 where it takes no part."""
    return null().test(-math.log(ratio)) if 0 < ratio < math.inf else (math.nan, 1.0)


def null_in_words() -> str:
    """The null for records and pages."""
    ratios = [math.exp(-gap) for gap in null().gaps]
    return (
        f"the smallest one in each of {len(ratios)} small networks for traffic signs without a "
        f"backdoor (from {min(ratios):.2f} to {max(ratios):.2f}), their logarithms taken as "
        "exponential"
    )
