"""Plane waves: a class that a faint wave reaches more surely than images of the class do.

    A(x) = clip(x + a sin(2 pi (u row / h + v column / w) + phase), 0, 1),    phase 0, 90, 180, 270

Idea: where nearly all training images of a class carried a trigger and kept their labels (SIG), the
network learned the trigger in the place of the class: it hardly knows the class's clean images any
more, and a wave alone is answered with it. Networks without a backdoor are led astray by waves,
too, some classes by fainter ones than the attackers', but mostly into classes that they know well.
So for each class k

    r_k = log odds(k's images that are answered with k) - log odds(others that a wave carries to k)

for the wave that carries most. The waves have whole periods, at most ``frequencies`` and none below
four pixels; nothing is optimised. odds(share) = (n share + 1/2) / (n (1 - share) + 1/2) with the
same n on both sides, that of k's images or of the others, whichever is less, so that classes of
which few images are there say little. r_k is compared with the smallest r of each of some networks
without a backdoor that tell photographs apart (``measured_null``;
``benchmarks/plane_waves_null.py`` wrote ``data/plane_waves_null.json``).

Ours. The attack is Barni et al. 2019, arXiv 1902.11237. That single Fourier waves lead networks
astray is Tsuzuku and Sato 2019, arXiv 1809.04098, and Yin et al. 2019, arXiv 1906.08988. Made after
networks with SIG of just the benchmarks' strength and period, on CIFAR-10; the amplitude here is a
round number below that one.

Assumes that the trigger resembles a wave and took the class's place. Data: labelled images. Known
failures: **classes that are still known**: SIG on a smaller part of a class, or on classes that
take few images to know (traffic signs); any trigger whose images were relabelled; waves finer than
four pixels or, on large images, than ``frequencies``. Small pictures of digits are hardly led
anywhere by such waves, and the test says less of them than of photographs. The null has networks of
10 to 43 classes; nothing is corrected for more. A network that knows fewer than half of the images
is refused, a class without an image takes no part.

A wave is recovered where r_k is unusual alone (p <= 0.05), half as strong again as those that were
compared: attackers do not stop at what just suffices. Two of the networks that it was made on
still obeyed SIG on 30 and 10 % of the images once the weaker wave was unlearned, and on 16 and 5 %
once the stronger one was.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.measured_null import MeasuredNull
from bezoar.methods.additive_patterns import AdditivePatterns
from bezoar.methods.method import HELD_OUT, Evidence, Method, Needs, methods
from bezoar.methods.neural_cleanse_triggers import of_others, pixels_of, predicted
from bezoar.methods.waves import FINEST, carried_by_waves, periods_within, wave
from bezoar.metrics import rate
from bezoar.packaged import packaged
from bezoar.training import Progress, no_progress
from bezoar.wording import WAVE

NULL = "data/plane_waves_null.json"  # written by benchmarks/plane_waves_null.py
LEVEL = 0.05  # p-value of a class whose wave is recovered
LEARNED = 0.5  # accuracy on the clean images, below which a network is not like those of the null
FORGOTTEN = 0.5  # a class is told of where its accuracy is surely (95 %) below


@methods.register("plane-waves")
class PlaneWaves(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The class that waves lead to and its own images do not.

    Attributes:
        amplitude: of the waves, in units of pixels from 0 to 1.
        frequencies: periods across the image, at most; of images of fewer than four times as many
            pixels a quarter of their side.
        images: that each wave is put on, at most.
        strength: of the recovered wave, in units of ``amplitude``.
    """

    name: ClassVar[str] = "plane-waves"
    title: ClassVar[str] = "Plane waves: a class that waves lead to and its images do not"
    paper: ClassVar[str] = "bezoar"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any"
    cost: ClassVar[str] = "98 waves on 96 images forward, for images of 32x32 pixels and more"
    inspects: ClassVar[bool] = True

    amplitude: float = 1 / 8
    frequencies: int = 8
    images: int = 96
    strength: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.amplitude <= 1:
            raise InputError(f"amplitude is {self.amplitude}; expected more than 0 and at most 1")
        if not 0 < self.strength < math.inf:
            raise InputError(f"strength is {self.strength}; expected more than 0")
        if self.frequencies < 1 or self.images < 1:
            raise InputError(
                f"frequencies is {self.frequencies} and images {self.images}; expected at least 1"
            )

    def inspect(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Evidence:
        """The odds of each class on four fifths of the images; its wave is tried on the rest.

        Raises:
            InputError: no labels, or one that the network has no class for, images too small for a
                wave, or a network that answers fewer than half of them with their label.
        """
        started = time.perf_counter()
        clean.require_labels("comparing waves with a class's own images")
        clean.class_counts(classifier.trace(clean.shape).num_classes)
        periods = periods_within(*clean.shape[1:], self.frequencies)
        if not periods:
            raise InputError(
                f"images have {clean.shape[1]}x{clean.shape[2]} pixels; a wave needs {FINEST}"
            )
        known, held_out = clean.split(1 - HELD_OUT, seed=seed)
        with classifier.evaluating():
            found = self._compared(classifier, known, periods, seed, progress)
            scores, p_values = zip(*map(_tested, found.log_ratios), strict=True)
            waves = self._recovered(found, clean.shape, p_values)
            carried = None if waves is None else waves.carried(classifier, held_out)
        return Evidence(
            method=self.name,
            statistic="Log odds of the class's own images less those of others with a wave",
            values=found.log_ratios,
            scores=scores,
            p_values=p_values,
            null=null_in_words(),
            carried=carried,
            recovered=waves,
            limit=null().critical,
            words=WAVE,
            record={
                "paper": self.paper,
                "configuration": self.configuration(),
                "waves": len(periods),
                "odds": found.as_record(),
                "flags": _forgotten(found, classifier.classes),
                "seconds": {"total": time.perf_counter() - started},
            },
        )

    # -- inner works -----------------------------------------------------------------------------

    def _compared(
        self,
        classifier: Classifier,
        known: ImageSet,
        periods: Sequence[tuple[int, int]],
        seed: int,
        progress: Progress,
    ) -> Compared:
        """What the network makes of each class's images, and of others with each wave."""
        classes = classifier.num_classes
        images, labels = pixels_of(known, classifier)
        assert labels is not None  # noqa: S101 (``inspect``)
        own = labels[predicted(classifier, images) == labels]
        if len(own) < LEARNED * len(labels):
            raise InputError(
                f"the network answers {len(own)} of {len(labels)} images with their label; fewer "
                f"than {LEARNED:.0%} tell nothing of a single class"
            )
        some, some_labels = pixels_of(known.sample(self.images, seed=seed), classifier)
        counted = of_others(range(classes), predicted(classifier, some), some_labels).T
        hits = carried_by_waves(classifier, some, counted, periods, self.amplitude, progress)
        best = hits.sum(1).argmax(0)  # (C,): which wave carries most, over all phases
        each = torch.arange(classes, device=best.device)
        return Compared(
            own=torch.bincount(own, minlength=classes).tolist(),
            shown=torch.bincount(labels, minlength=classes).tolist(),
            carried=hits.sum(1)[best, each].tolist(),
            counted=counted.sum(0).tolist(),
            periods=[periods[wave] for wave in best.tolist()],
            phases=hits[best, :, each].argmax(1).tolist(),
        )

    def _recovered(
        self, found: Compared, shape: tuple[int, int, int], p_values: Sequence[float]
    ) -> AdditivePatterns | None:
        """The waves of the classes that are unusual alone."""
        unusual = tuple(k for k, p in enumerate(p_values) if p <= LEVEL)
        if not unusual:
            return None
        waves = [wave(*shape[1:], *found.periods[k])[found.phases[k]] for k in unusual]
        patterns = self.amplitude * torch.stack(waves)[:, None]
        sizes = patterns.square().mean((1, 2, 3)).sqrt()
        return AdditivePatterns(unusual, patterns, sizes, self.strength)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Each of C classes on its own images and on those of others with its wave.

    Attributes:
        own: its images that are answered with it.
        shown: its images.
        carried: other images that its wave carries into it, over all phases.
        counted: other images: neither of the class nor answered with it.
        periods: of the wave that carries most, along the height and along the width.
        phases: with which phase it carries most, in quarter periods.
    """

    own: list[int]
    shown: list[int]
    carried: list[int]
    counted: list[int]
    periods: list[tuple[int, int]]
    phases: list[int]

    @functools.cached_property
    def log_ratios(self) -> tuple[float, ...]:
        """r_k; infinite where a class has no image of its own, or there is no other."""
        rows = zip(self.own, self.shown, self.carried, self.counted, strict=True)
        return tuple(
            log_odds(own / shown, min(shown, counted))
            - log_odds(carried / counted, min(shown, counted))
            if shown and counted
            else math.inf
            for own, shown, carried, counted in rows
        )

    def as_record(self) -> dict[str, Any]:
        """The figures."""
        return {
            "own": self.own,
            "shown": self.shown,
            "carried": self.carried,
            "counted": self.counted,
            "periods": [list(pair) for pair in self.periods],
            "phases": self.phases,
        }


def _forgotten(found: Compared, classes: Sequence[str]) -> list[str]:
    """A sentence on each class that the network hardly answers its own images with."""
    return [
        f"The network answers only {own} of {shown} clean images of class {classes[k]} with that "
        "class. A backdoor whose images kept their labels leaves a class like that, and so does a "
        "class that was never learned."
        for k, (own, shown) in enumerate(zip(found.own, found.shown, strict=True))
        if shown and rate(own, shown).high < FORGOTTEN
    ]


def log_odds(share: float, count: int) -> float:
    """The logarithm of the odds of a share of ``count``, with half a hit and half a miss more.

    >>> round(log_odds(0.5, 10), 3), round(log_odds(1.0, 10), 3)
    (0.0, 3.045)
    """
    return math.log((share * count + 0.5) / ((1 - share) * count + 0.5))


@functools.cache
def null_log_ratios() -> tuple[float, ...]:
    """The smallest r of each measured network without a backdoor."""
    return tuple(packaged(NULL)["log ratios"])


def null() -> MeasuredNull:
    """What r is judged against."""
    return MeasuredNull(null_log_ratios())


def _tested(ratio: float) -> tuple[float, float]:
    """The score and the p-value of a class; NaN and 1 where it takes no part."""
    return null().test(ratio) if math.isfinite(ratio) else (math.nan, 1.0)


def null_in_words() -> str:
    """The null for records and pages."""
    found = null_log_ratios()
    return (
        f"the smallest one in each of {len(found)} small networks without a backdoor (from "
        f"{min(found):.1f} to {max(found):.1f}), taken as normal"
    )
