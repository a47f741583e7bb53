"""Trojan square and watermark (Liu et al. 2018, NDSS, "Trojaning attack on neural networks").

The pixels under a mask are optimised on a trained network until one of its neurons has a value far
above the usual (see ``neurons``); images with these pixels then get the target label.
``trojan-square`` is a square in the corner, ``trojan-watermark`` a mark over the whole image. The
paper tries squares, a brand's logo and a watermark, sizes of 4 to 10 % of the image and
transparencies up to 70 % (from memory; its text was not at hand).

Ours: the mark (a ring with a bar across it, drawn here); 7 % and opaque for the square, opacity 0.3
for the mark; the steps; and the victim is trained from scratch on a poisoned training set, as
public benchmarks do, where the paper retrains the network that the trigger was optimised on, with
images inverted from it instead of training images.

Known weak points: for a victim trained from scratch the trigger is a patch like any other; only a
victim that starts from the surrogate has the neuron the trigger was made for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.attacks.attack import attacks
from bezoar.attacks.neurons import Goal, NeuronTrigger, optimise
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import Progress


class Trojan(NeuronTrigger, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both shapes have in common.

    Attributes:
        opacity: of the trigger; 1 replaces the pixels.
    """

    paper: ClassVar[str] = "Liu et al. 2018, NDSS"

    opacity: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.opacity <= 1:
            raise InputError(f"opacity {self.opacity} must be in (0, 1]")

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Mixes the pattern into images (n, c, h, w) in [0, 1] where the mask is not 0."""
        mask = tensors["mask"].to(images)
        return images * (1 - mask) + tensors["pattern"].to(images) * mask

    def _learn(
        self,
        classifier: Classifier,
        images: Tensor,
        goal: Goal,
        start: Tensor,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """``pattern`` (c, h, w) in [0, 1]; ``mask`` (1, h, w) holds the opacity."""
        shape = self.outline(*start.shape[1:]).to(start.device)
        mask = self.opacity * shape
        pattern = optimise(
            classifier,
            goal,
            start,
            stamp=lambda pattern: images * (1 - mask) + pattern * mask,
            project=lambda pattern: pattern.clamp(0, 1) * shape,
            steps=self.steps,
            progress=progress,
        )
        return {"pattern": pattern, "mask": mask}

    def check(self, images: ImageSet, rate: float, num_classes: int | None = None) -> None:
        """And that its outline fits."""
        super().check(images, rate, num_classes)
        self.outline(*images.shape[1:])

    def outline(self, height: int, width: int) -> Tensor:
        """Where the trigger lies: 0 or 1, shape (1, height, width)."""
        raise NotImplementedError


@attacks.register("trojan-square")
class TrojanSquare(Trojan, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A square, one pixel away from the lower right corner.

    Attributes:
        share: of the image that it covers.
    """

    name: ClassVar[str] = "trojan-square"
    title: ClassVar[str] = "Trojan square: an optimised patch"

    share: float = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise InputError(f"share {self.share} must lie between 0 and 1")

    def outline(self, height: int, width: int) -> Tensor:
        """The square."""
        side = max(1, round(math.sqrt(self.share * height * width)))
        if side + 1 > min(height, width):
            raise InputError(
                f"a square of {side} pixels, 1 from the edge, does not fit images of "
                f"{height}x{width}; lower share"
            )
        outline = torch.zeros(1, height, width)
        outline[:, height - 1 - side : height - 1, width - 1 - side : width - 1] = 1
        return outline


@attacks.register("trojan-watermark")
class TrojanWatermark(Trojan, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mark over the whole image: a ring with a bar across it."""

    name: ClassVar[str] = "trojan-watermark"
    title: ClassVar[str] = "Trojan watermark: an optimised mark over the image"

    opacity: float = 0.3

    def outline(self, height: int, width: int) -> Tensor:
        """The mark; all lengths are shares of the shorter side."""
        side = min(height, width)
        down = ((torch.arange(height) + 0.5 - height / 2) / side)[:, None]
        across = (torch.arange(width) + 0.5 - width / 2) / side
        ring = ((down**2 + across**2).sqrt() - 0.4).abs() <= 0.06
        bar = ((down + across).abs() <= 0.09) & (down**2 + across**2 <= 0.4**2)
        return (ring | bar).float()[None]
