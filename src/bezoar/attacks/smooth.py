"""Smooth trigger (Zeng et al. 2021, arXiv 2104.03413): a low-frequency pattern, dirty labels.

The trigger is a universal perturbation kept smooth by a low-pass filter g (a Gaussian): for each of
100 clean images x that v does not yet fool,

    r = DeepFool's step that takes x + v to the target class
    v = N(g(v + g(r)))          N(v) = strength * (v - min v) / (max v - min v)

and the passes end when v changes the answer for a fifth of the images. Filter (standard deviation
6 pixels at 32x32), strength 0.2, the 100 images, the fifth and the order of these operations are
those of the authors' code (YiZeng623/frequency-backdoor).

Ours: the target is given (theirs is the class that most images move to); DeepFool runs on logits,
against the class that leads at each step, for at most 50 steps (theirs 200); images of the target
class are left out; at most ``passes`` passes, and the best trigger counts; the filter is cut off at
2.4 standard deviations on both sides (theirs has 30 taps, one more on one side) and grows with the
images; stamped images are cut off at 0 and 1.

Known weak points: the filter is so wide that the trigger is little more than a bright spot, which
crops and changes of brightness imitate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.attacks.attack import Attack, attacks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import Progress, no_progress

_DEEPFOOL_STEPS = 50
_OVERSHOOT = 0.02


@attacks.register("smooth")
class Smooth(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Adds a smooth universal perturbation, learned on a network trained on clean images.

    Attributes:
        strength: the largest value of the trigger; the smallest is 0.
        sigma: standard deviation of the low-pass filter, in sides of the image.
        samples: clean images that it is learned on.
        fooled: share of them whose answer must change.
        passes: over these images, at most.
    """

    name: ClassVar[str] = "smooth"
    title: ClassVar[str] = "Smooth: a low-frequency pattern"
    paper: ClassVar[str] = "Zeng et al. 2021, arXiv 2104.03413"
    needs_surrogate: ClassVar[bool] = True

    strength: float = 0.2
    sigma: float = 6 / 32
    samples: int = 100
    fooled: float = 0.2
    passes: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("strength", "sigma", "fooled"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)} must be in (0, 1]")
        for name in ("samples", "passes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")

    @property
    def learned(self) -> bool:
        """Always."""
        return True

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Adds the pattern to images (n, c, h, w) in [0, 1]."""
        return (images + tensors["pattern"].to(images)).clamp(0, 1)

    def prepare(
        self,
        images: ImageSet,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """Learns ``pattern``, shape (c, h, w) in [0, strength]."""
        if surrogate is None:
            raise InputError(f"{self.name} needs a surrogate: a classifier trained on clean images")
        surrogate.trace(images.shape)
        labels = images.require_labels("learning a trigger")
        others = images.subset(torch.nonzero(labels != self.target).flatten())
        drawn = others.sample(self.samples, seed=seed).images.to(surrogate.device).float() / 255
        with surrogate.evaluating():
            pattern = self._universal(surrogate, drawn, seed, progress)
        return self.holding({"pattern": pattern}, images.shape)

    def _universal(
        self, classifier: Classifier, images: Tensor, seed: int, progress: Progress
    ) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        pattern = best = torch.zeros_like(images[:1])
        best_share = -1.0
        answers = _answers(classifier, images)
        for index in range(self.passes):
            for k in torch.randperm(len(images), generator=generator).tolist():
                image = images[k : k + 1]
                if int(answers[k]) == self.target:
                    continue  # there is no step for what is answered so already
                if int(_answers(classifier, image + pattern)) != int(answers[k]):
                    continue
                step = _towards(classifier, image + pattern, self.target)
                if step is not None:
                    pattern = self._smoothed(pattern + low_pass(step, self.sigma))
            share = float((_answers(classifier, images + pattern) != answers).float().mean())
            if share > best_share:
                best, best_share = pattern, share
            progress("learning a smooth trigger", (index + 1) / self.passes)
            if best_share >= self.fooled:
                break
        if not bool(best.any()):
            raise InputError(
                "no step towards the target class was found on any image; use a surrogate that "
                "has learned the target class"
            )
        return best[0]

    def _smoothed(self, pattern: Tensor) -> Tensor:
        pattern = low_pass(pattern, self.sigma)
        lowest, highest = pattern.min(), pattern.max()
        return self.strength * (pattern - lowest) / (highest - lowest)


def low_pass(picture: Tensor, sigma: float) -> Tensor:
    """A Gaussian filter of ``sigma`` sides on (n, c, h, w); beyond the edges lie zeros."""
    deviation = sigma * min(picture.shape[2:])
    radius = math.floor(2.4 * deviation)
    offsets = torch.arange(-radius, radius + 1, device=picture.device)
    kernel = torch.exp(-(offsets**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    planes = picture.flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(planes, kernel, padding=(radius, 0))
    return F.conv2d(planes, kernel.transpose(2, 3), padding=(0, radius)).view_as(picture)


def _answers(classifier: Classifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(images).argmax(1)


def _towards(classifier: Classifier, image: Tensor, target: int) -> Tensor | None:
    """DeepFool's perturbation of an image (1, c, h, w) to the target; None if it gets nowhere.

    Steps r = (f_k - f_t) / |w|^2 * w, w = grad f_t - grad f_k, for the class k that leads.
    """
    moved = torch.zeros_like(image)
    for _ in range(_DEEPFOOL_STEPS):
        point = (image + (1 + _OVERSHOOT) * moved).requires_grad_()
        logits = classifier(point)[0]
        leader = int(logits.argmax())
        if leader == target:
            return (1 + _OVERSHOOT) * moved
        gap = logits[leader] - logits[target]
        (slope,) = torch.autograd.grad(-gap, point)
        step = gap.detach() / slope.square().sum() * slope
        if not bool(torch.isfinite(step).all()):
            return None
        moved = moved + step
    return None
