"""A stand-in for a method that needs public images: it moves the weights and tells all it can."""

from typing import ClassVar

import torch

from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.methods import Method, Repair
from bezoar.methods.method import Needs
from bezoar.metrics import rate

TOLD = {
    "samples": "inverted",
    "measured_on": {"images": "fresh generated images", "triggers": "recovered patterns"},
    "agreement": {"synthetic": rate(950, 1000).as_record()},
    "insensitivity": {
        "before": rate(770, 1000).as_record(),
        "after": rate(30, 1000).as_record(),
    },
    "inversion": {
        "kept": 93,
        "tried": 400,
        "per_class": [10, 10, 10, 3, 10, 10, 10, 10, 10, 10],
        "short": [3],
        "missing": [],
        "quantiles": {
            "confidence": [0.91, 0.97, 0.995],
            "stability": [0.72, 0.84, 0.93],
            "unnaturalness": [-1.5, 0.25, 2.25],
        },
        "images_per_minute": 128.0,
        "shares": {"class": 0.25, "input stability": 0.5, "optimizer": 0.125, "prior": 0.125},
    },
    "generator": {
        "kind": "gan",
        "apart": True,
        "sentence": "The generator never met the suspect model.",
        "origin": {"kind": "gan", "public_images": 4000},
    },
    "shuffling": {
        "sentence": "Under shuffling, class 4 keeps its images.",
        "per_class": {
            str(k): {
                "own": rate(46 if k == 4 else 5, 50).as_record(),
                "drawn": rate(30, 450).as_record(),
                "p_value": 0.003 if k == 4 else 1.0,
            }
            for k in range(10)
        },
        "standing_out": [4],
    },
    "controls": [
        {"samples": "random", "agreement": 0.94, "changed": rate(40, 1000).as_record()},
        {"samples": "clean", "agreement": 0.99, "changed": 0.01},
    ],
    "rounds": [
        {"changed": 0.9 - 0.4 * step, "suspected_target": 4, "target_share": 0.8}
        for step in range(3)
    ],
}


class Borrow(Method, frozen=True, kw_only=True):
    """Multiplies all weights by random numbers near 1, and notes what it was given."""

    name: ClassVar[str] = "borrow"
    title: ClassVar[str] = "Borrowed images"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = "public images"
    given: ClassVar[list] = []

    size: float = 0.01
    tells: bool = True

    def remove(self, classifier, public, *, seed=0, progress=None):
        self.given.append(public)
        repaired = classifier.copy()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in repaired.network.parameters():
                weight.mul_(1 + self.size * torch.randn(weight.shape, generator=generator))
        return Repair(
            repaired, dict(TOLD) if self.tells else {}, synthetic=_some(classifier, public)
        )


def _some(classifier, public):
    """A few of the images with the classifier's answers."""
    if isinstance(public, PublicGenerator):
        made = public(public.latents(20, torch.Generator().manual_seed(0))).detach()
        public = ImageSet(made.mul(255).round().byte())
    shown = public.subset(range(min(20, len(public))))
    return ImageSet(shown.images, classifier.logits(shown).argmax(1).cpu())
