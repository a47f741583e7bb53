"""Input-aware dynamic backdoor (Nguyen & Tran 2020, arXiv 2010.08138): each image its own trigger.

Two generators read the image: one paints a pattern p(x), the other says where, m(x); stamped is
``x + (p(x) − x) · m(x)``. The mask generator is trained first and then fixed: its loss is
λ_norm · mean(max(0, m − density)) + λ_div · L_div. The pattern generator is trained together with
the victim: the loss of the batch plus λ_div · L_div. The diversity loss

    L_div = mean over pairs of ‖x₁ − x₂‖ / (‖g(x₁) − g(x₂)‖ + 1e-7)      (root mean square norms)

punishes equal patterns for different images. In cross-trigger mode as many images get the pattern
and mask of *another* image and keep their label, so that a trigger works on its own image only.

Paper and official code: a tenth of each batch stamped, a tenth crossed, λ_div 1, λ_norm 100,
density 0.032, 25 epochs for the mask, Adam at 0.01 with betas (0.5, 0.9), masks sharpened by
``tanh(20 m − 10) / 2 + 1/2``; encoder–decoders of three levels from 32 channels (two levels from 16
on MNIST), so the published width is 32.

Ours: width 8, so that both generators take 170 kB in half precision; group instead of batch
normalisation; norms over pixels in [0, 1], not normalised ones; the other image of a pair is the
next one of the same batch, not one of a second loader; the pattern's gradient is that of one batch
(the official code never clears it); the learning rates fall only with the mask's epochs.

Weak points: two networks more to train, so it is slow without an accelerator; with few images the
mask generator stays near its start; crops that move the image after stamping blur the pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from bezoar.attacks.attack import attacks
from bezoar.attacks.batch_poisoning import BatchAttack, BatchPoisoning, GeneratorTraining, choose
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.networks.generators import UNet, drawn, rebuilt, weights
from bezoar.training import Progress, Recipe, no_progress

_BATCH = 128
_BETAS = (0.5, 0.9)
_EPSILON = 1e-7


@attacks.register("iad")
class IAD(BatchAttack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paints every image with a sparse pattern of its own.

    Attributes:
        density: share of the pixels that a mask may cover without a penalty.
        diversity: λ_div, the weight of the diversity loss.
        sparsity: λ_norm, the weight of the mask's penalty.
        mask_epochs: passes over the images that train the mask generator.
        learning_rate: of both generators.
        width: channels of the generators' first level; 32 as published.
        depth: levels of the generators.
    """

    name: ClassVar[str] = "iad"
    title: ClassVar[str] = "IAD: each image paints its own trigger"
    paper: ClassVar[str] = "Nguyen & Tran 2020, arXiv 2010.08138"

    density: float = 0.032
    diversity: float = 1.0
    sparsity: float = 100.0
    mask_epochs: int = 25
    learning_rate: float = 0.01
    width: int = 8
    depth: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise InputError(f"density {self.density} must be greater than 0 and at most 1")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate is {self.learning_rate}; expected more than 0")
        for name in ("diversity", "sparsity"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("mask_epochs", "width", "depth"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")

    @property
    def learned(self) -> bool:
        """Always."""
        return True

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """``x + (p(x) − x) · m(x)``."""
        return painted(images, *self._pattern_and_mask(images, tensors))

    def cover_rate_for(self, rate: float) -> float:
        """Cross-trigger mode: as many as are stamped."""
        return rate

    def stamp_for_training(
        self,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        *,
        cover: bool,
    ) -> Tensor:
        """The trigger; for covered images that of the next one of them."""
        if not cover:
            return self.stamp(images)
        if len(images) < 2:
            return images.clone()  # its own trigger would be no cross trigger
        shape = (images.shape[1], images.shape[2], images.shape[3])
        tensors = {name: t.to(images.device) for name, t in self.tensors(shape).items()}
        return painted(images, *self._pattern_and_mask(images.roll(1, 0), tensors))

    def prepare(
        self,
        images: ImageSet,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """Trains the mask generator; the pattern generator is drawn and waits for the victim."""
        channels = images.shape[0]
        mask = drawn(lambda: self._build(channels, 1), seed).to(images.images.device)
        optimizer = torch.optim.Adam(mask.parameters(), self.learning_rate, betas=_BETAS)
        falls = [self.mask_epochs * part // 5 for part in (2, 4)]  # 10 and 20 of 25 as published
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [f for f in falls if f])
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(self.mask_epochs):
            for batch, _ in images.batches(_BATCH, generator=generator):
                if len(batch) < 2:
                    continue
                masks = sharpened(mask(batch))
                excess = (masks - self.density).relu().mean()
                loss = self.sparsity * excess + self.diversity * diversity_loss(batch, masks)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
                optimizer.step()
            schedule.step()
            progress("training the masks", (epoch + 1) / self.mask_epochs)
        pattern = drawn(lambda: self._build(channels, channels), seed + 1)
        return self.holding({**weights(mask, "mask"), **weights(pattern, "pattern")}, images.shape)

    def hook(
        self,
        images: ImageSet,
        rate: float,
        recipe: Recipe,
        device: torch.device,
    ) -> BatchPoisoning:
        """Trains the pattern generator with the victim."""
        return _Painting(self, rate, images.shape, device)

    def _build(self, inputs: int, outputs: int) -> UNet:
        return UNet(inputs, outputs, width=self.width, depth=self.depth, skips=False, output="unit")

    def _pattern_and_mask(
        self, images: Tensor, tensors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        channels = images.shape[1]
        pattern = rebuilt(lambda: self._build(channels, channels), tensors, "pattern")
        mask = rebuilt(lambda: self._build(channels, 1), tensors, "mask")
        return pattern(images), sharpened(mask(images))


class _Painting(GeneratorTraining):
    """Stamps each batch with the generators as they are, and trains the one for patterns."""

    attack: IAD

    def __init__(
        self, attack: IAD, rate: float, shape: tuple[int, int, int], device: torch.device
    ) -> None:
        super().__init__(
            attack,
            rate,
            shape,
            device,
            build=lambda: attack._build(shape[0], shape[0]),
            prefix="pattern",
            learning_rate=attack.learning_rate,
            betas=_BETAS,
        )
        self.mask = rebuilt(lambda: attack._build(shape[0], 1), self.tensors, "mask")
        self.diversity: Tensor | None = None

    def batch(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The batch with some images stamped and some crossed; their patterns carry gradients."""
        poisoned, covered = choose(self.attack, labels, self.rate, generator)
        self.diversity = None
        if not len(poisoned) or len(images) < 2:
            return images, labels
        own, others = images[poisoned], images.roll(1, 0)[covered]
        seen = torch.cat((own, others))
        patterns, masks = self.generator(seen), sharpened(self.mask(seen))
        split = len(own)
        pairs = min(split, len(others))
        if pairs:
            self.diversity = _ratio(
                own[:pairs], others[:pairs], patterns[:pairs], patterns[split : split + pairs]
            )
        mixed = images.clone()
        mixed[poisoned] = painted(own, patterns[:split], masks[:split])
        mixed[covered] = painted(images[covered], patterns[split:], masks[split:])
        return mixed, self.relabelled(labels, poisoned)

    def penalty(self, classifier: Classifier) -> Tensor | None:
        """λ_div times the diversity loss of this batch's patterns."""
        return None if self.diversity is None else self.attack.diversity * self.diversity


def painted(images: Tensor, patterns: Tensor, masks: Tensor) -> Tensor:
    """``x + (p − x) · m`` for images and patterns (n, c, h, w) and masks (n, 1, h, w)."""
    return images + (patterns - images) * masks


def sharpened(masks: Tensor) -> Tensor:
    """``tanh(20 u − 10) / 2 + 1/2``: masks in [0, 1] pushed towards 0 and 1."""
    return torch.tanh(20 * masks - 10) / 2 + 0.5


def diversity_loss(images: Tensor, made: Tensor) -> Tensor:
    """L_div over the pairs of each image with the next one, for what was made of them."""
    return _ratio(images, images.roll(1, 0), made, made.roll(1, 0))


def _ratio(first: Tensor, second: Tensor, made_of_first: Tensor, made_of_second: Tensor) -> Tensor:
    return (_distance(first, second) / (_distance(made_of_first, made_of_second) + _EPSILON)).mean()


def _distance(first: Tensor, second: Tensor) -> Tensor:
    # The gradient of a square root at 0 is infinite, and equal images do occur.
    return ((first - second).square().mean((1, 2, 3)) + _EPSILON**2).sqrt()
