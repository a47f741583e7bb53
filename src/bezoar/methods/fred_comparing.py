"""What a removal without images of the task did, as far as other images show it (ours).

- Agreement: the share of fresh images, public or generated, that both networks answer alike.
- Changed: the share of them whose answer the pattern changes that was recovered from the *old*
  network, for the old and the new one.

Neither says anything about accuracy on the task or about the attacker's trigger. They are what a
removal can be compared by with the same removal on other samples, the controls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bezoar.classifier import BATCH, Classifier
from bezoar.images import ImageSet
from bezoar.methods.fred_sources import as_pixels
from bezoar.methods.universal_pattern import Ascent, universal_ascent
from bezoar.metrics import Rate, agreement, rate

NAMES = {
    "inverted": "inverted samples",
    "random": "random images of the generator",
    "public": "public images that the model labels",
    "pixels": "images searched in pixels",
}


@dataclass(frozen=True)
class Compared:
    """Old and new network on fresh images.

    Attributes:
        agreement: the share that both answer alike.
        before: the share whose answer the pattern changes in the old network.
        after: in the new one.
    """

    agreement: Rate
    before: Rate
    after: Rate

    def as_record(self, *, real: bool) -> dict[str, Any]:
        """As the judge and the report read it; ``real`` is whether the images are public ones."""
        images = "public images that took no part" if real else "fresh generated images"
        return {
            "agreement": {"synthetic": self.agreement.as_record()},
            "insensitivity": {"before": self.before.as_record(), "after": self.after.as_record()},
            "measured_on": {"images": images, "triggers": "universal patterns of the old model"},
        }

    def as_control(self) -> dict[str, Any]:
        """As the report's table of controls reads it."""
        return {"agreement": self.agreement.as_record(), "changed": self.after.as_record()}


def compared(
    classifier: Classifier, repaired: Classifier, fresh: ImageSet, shown: ImageSet
) -> Compared:
    """Compares a network with the one that it was.

    Args:
        classifier: as it was.
        repaired: the new one.
        fresh: images that took no part in the repair, without labels.
        shown: the same with the pattern (``with_pattern``).
    """
    old, new = (model.logits(fresh).argmax(1) for model in (classifier, repaired))
    return Compared(
        agreement(old, new),
        _changed(old, classifier.logits(shown).argmax(1)),
        _changed(new, repaired.logits(shown).argmax(1)),
    )


def with_pattern(
    classifier: Classifier, samples: ImageSet, fresh: ImageSet, settings: Ascent, *, seed: int
) -> ImageSet:
    """``fresh`` with the pattern that moves the answers of ``classifier`` to ``samples`` most."""
    draws = torch.Generator().manual_seed(seed)
    known = samples.to(classifier.device)
    with classifier.evaluating():
        pattern = universal_ascent(classifier, known, settings, draws).pattern.cpu()
    shown = [
        as_pixels(settings.show(batch, pattern))
        for batch, _ in fresh.batches(BATCH, device=pattern.device)
    ]
    return ImageSet(torch.cat(shown))


def control_sentence(result: Compared, controls: Sequence[Mapping[str, Any]]) -> str:
    """Whether a control came out as well as the method did: the intervals of both shares meet."""
    equal = [
        NAMES[control["samples"]]
        for control in controls
        if control["agreement"]["high"] >= result.agreement.low
        and control["changed"]["low"] <= result.after.high
    ]
    if not equal:
        return (
            "No control did as well: the same removal on other samples kept fewer answers, or left "
            "the recovered pattern more effect."
        )
    return (
        f"The same removal on {' and on '.join(equal)} did as well, as far as this can be measured "
        "here, at a fraction of the cost."
    )


def _changed(plain: Tensor, shown: Tensor) -> Rate:
    return rate(int((plain != shown).sum()), len(plain))
