"""l2-inv and l0-inv (Li et al. 2020, arXiv 1909.02742): triggers optimised under a norm.

A trigger is optimised on a clean network to raise some neurons (see ``neurons``), while its norm is
kept small: ``l2-inv`` adds a faint pattern to the whole image, ``l0-inv`` replaces a few pixels.
Then a training set is poisoned with it, with dirty labels. That l2-inv is added, that l0-inv
replaces pixels under a mask, and that both are cut off at 0 and 1 is how I-BAU's public code (Zeng
et al. 2022) stamps triggers of these names.

The paper's text was not at hand; from memory, it adds the norm to the loss and stops at a
threshold, and for l0 fixes the pixels that matter least, round after round. Ours, therefore:
projection onto the norm instead of a penalty, so that the trigger's size is a plain number; the
sizes themselves; half of the pixels dropped in each round, those with the smallest |gradient *
change| (as in Carlini and Wagner's l0 attack); 8 neurons; the goal; the steps; training from
scratch on the poisoned set.

Known weak points: the trigger knows the surrogate, a victim of another kind merely learns it as a
pattern; a faint pattern does not survive strong crops, a few pixels do not survive blur.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.attacks.attack import attacks
from bezoar.attacks.neurons import Goal, NeuronTrigger, distance, optimise
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import Progress


class LpInversion(NeuronTrigger, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both have in common."""

    paper: ClassVar[str] = "Li et al. 2020, arXiv 1909.02742"

    neurons: int = 8


@attacks.register("l2-inv")
class L2Inversion(LpInversion, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Adds a pattern of small l2 norm.

    Attributes:
        strength: root mean square of the pattern; its l2 norm is that times the square root of the
            number of values (2.8 for 3x32x32 at 0.05).
    """

    name: ClassVar[str] = "l2-inv"
    title: ClassVar[str] = "l2-inverted: a faint optimised pattern"

    strength: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 1:
            raise InputError(f"strength {self.strength} must be in (0, 1]")

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Adds the pattern to images (n, c, h, w) in [0, 1]."""
        return (images + tensors["pattern"].to(images)).clamp(0, 1)

    def _learn(
        self,
        classifier: Classifier,
        images: Tensor,
        goal: Goal,
        start: Tensor,
        progress: Progress,
    ) -> dict[str, Tensor]:
        radius = self.strength * math.sqrt(start.numel())
        pattern = optimise(
            classifier,
            goal,
            start - 0.5,
            stamp=lambda pattern: (images + pattern).clamp(0, 1),
            project=lambda pattern: pattern * (radius / pattern.norm()).clamp(max=1),
            steps=self.steps,
            progress=progress,
        )
        return {"pattern": pattern}


@attacks.register("l0-inv")
class L0Inversion(LpInversion, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Replaces a few pixels.

    Attributes:
        pixels: how many.
    """

    name: ClassVar[str] = "l0-inv"
    title: ClassVar[str] = "l0-inverted: a few optimised pixels"

    pixels: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixels < 1:
            raise InputError(f"pixels is {self.pixels}; expected at least 1")

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Replaces the pixels under the mask on images (n, c, h, w) in [0, 1]."""
        return _replaced(images, tensors["mask"].to(images), tensors["pattern"].to(images))

    def check(self, images: ImageSet, rate: float, num_classes: int | None = None) -> None:
        """Also refuses more pixels than the images have."""
        super().check(images, rate, num_classes)
        _, height, width = images.shape
        if self.pixels > height * width:
            raise InputError(
                f"a trigger of {self.pixels} pixels does not fit images of {height}x{width}"
            )

    def _learn(
        self,
        classifier: Classifier,
        images: Tensor,
        goal: Goal,
        start: Tensor,
        progress: Progress,
    ) -> dict[str, Tensor]:
        kept = start[0].numel()
        mask, pattern = torch.ones_like(start[:1]), start
        rounds = 1 + math.ceil(math.log2(max(1, kept / self.pixels)))
        for index in range(rounds):
            if index:
                kept = max(self.pixels, kept // 2)
                weights = _importance(classifier, images, goal, pattern, mask).flatten()
                mask = torch.zeros_like(mask)
                mask.view(-1)[weights.topk(kept).indices] = 1
            pattern = optimise(
                classifier,
                goal,
                pattern,
                stamp=functools.partial(_replaced, images, mask),
                project=lambda array: array.clamp(0, 1),
                steps=-(-self.steps // rounds),
                progress=progress,
            )
        return {"pattern": pattern * mask, "mask": mask}


def _replaced(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    return images * (1 - mask) + pattern * mask


def _importance(
    classifier: Classifier, images: Tensor, goal: Goal, pattern: Tensor, mask: Tensor
) -> Tensor:
    """|gradient * change| of each pixel (h, w), summed over channels; 0 where the mask is 0."""
    stamped = _replaced(images, mask, pattern).requires_grad_()
    with classifier.evaluating():
        (slope,) = torch.autograd.grad(distance(classifier, stamped, goal), stamped)
    change = stamped.detach() - images
    return (slope * change).sum((0, 1)).abs() + mask[0] * torch.finfo(torch.float32).tiny
