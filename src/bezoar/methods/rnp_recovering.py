"""RNP's second step: masks on units learn to undo the unlearning, and betray the backdoor.

    m = 1;    repeat  m <- clip_[0,1](m - eta * d/dm CE(f(X; m * theta_hat), Y))

The unlearned weights theta_hat stay. A mask can only shrink units, so the cheapest way back to
clean answers is to switch off the units that drag everything to the target class.

Paper: Li et al. 2023, arXiv 2305.14876, Algorithm 1; SGD with momentum after its official code. Its
loss factor alpha only rescales the rate (0.2 x 0.2 = 0.04), so there is one knob. Ours: the step at
which a mask reached zero and its unclipped value are kept, since clipping makes ties that a
threshold cannot order; the number of steps follows the number of units.

Norms normalise with batch statistics, as in the official code; the running ones stay as they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.device import seeded
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.rnp_batches import even_batches
from bezoar.training import Progress, no_progress
from bezoar.units import Units

FEW_STEPS, MANY_STEPS, MANY_UNITS = 24, 80, 4800  # the last two are the official ResNet-18's


class Recovering(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the masks are learned.

    Attributes:
        learning_rate: of SGD; in the official code the product of rate and loss factor.
        momentum: of SGD.
        batch_size: images in a step, at most; at least 2, for the statistics of a batch.
        epochs: passes over the images; None takes from 24 steps for the smallest networks to 80
            for those of 4,800 units.
        mask_bias: the mask also multiplies the unit's bias (a norm's beta).
        crop_padding: pixels of random shift.
        flip: random horizontal flips.
    """

    learning_rate: float = 0.04
    momentum: float = 0.9
    batch_size: int = 128
    epochs: int | None = None
    mask_bias: bool = False
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 2 or self.crop_padding < 0:
            raise InputError(
                f"batch_size is {self.batch_size} and crop_padding {self.crop_padding}; expected "
                "at least 2 and 0"
            )
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"epochs is {self.epochs}; expected at least 1, or none")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.momentum < 1:
            raise InputError(
                f"learning_rate is {self.learning_rate} and momentum {self.momentum}; expected "
                "more than 0, and in [0, 1)"
            )

    @classmethod
    def published(cls) -> Recovering:
        """The settings of the official code for CIFAR-10."""
        return cls(epochs=20, crop_padding=4, flip=True)

    def steps(self, units: int, images: int) -> int:
        """How many steps ``units`` and ``images`` of them ask for."""
        in_epoch = -(-images // self.batch_size)
        if self.epochs is not None:
            return self.epochs * in_epoch
        share = min(1.0, units / MANY_UNITS)
        return round(FEW_STEPS + share * (MANY_STEPS - FEW_STEPS))


@dataclass
class Recovered:
    """What the masks of n units came to.

    Attributes:
        masks: (n,) in [0, 1].
        reached_zero: (n,), the step at which a mask was first 0; the number of steps + 1 where it
            never was.
        unclipped: (n,), 1 and the sum of all steps without clipping.
        loss: of each step.
    """

    masks: Tensor
    reached_zero: Tensor
    unclipped: Tensor
    loss: list[float] = field(default_factory=list)

    def order(self) -> list[int]:
        """The units, most suspicious first: by mask, then time of reaching 0, then unclipped.

        A mask that went back to 1 is no suspicion whatever its past; those units come last.
        """
        keys = zip(
            self.masks.tolist(), self.reached_zero.tolist(), self.unclipped.tolist(), strict=True
        )
        ranked = sorted(enumerate(keys), key=lambda item: item[1])
        return [index for index, _ in ranked]


def recover(
    unlearned: Classifier,
    units: Units,
    clean: ImageSet,
    settings: Recovering,
    *,
    seed: int,
    progress: Progress = no_progress,
    what: str = "recovering with masks",
) -> Recovered:
    """Learns the masks of ``units`` on ``clean``; ``unlearned`` stays as it is.

    Raises:
        InputError: no labels, fewer than two images, or the loss is not finite.
    """
    clean.require_labels("recovering")
    if len(clean) < 2:
        raise InputError("recovering needs at least two images")
    device = unlearned.device
    images = clean.to(device)
    twin = unlearned.copy()
    twin.network.requires_grad_(False)
    twin.to_fast_layout()
    twin.network.train()
    steps = settings.steps(len(units), len(images))
    masks = torch.ones(len(units), device=device, requires_grad=True)
    velocity, moved = torch.zeros_like(masks), torch.ones_like(masks)
    reached = torch.full((len(units),), steps + 1, device=device)
    losses: list[Tensor] = []
    progress(what, 0.0)
    with seeded(device, seed), torch.enable_grad():
        stream = _forever(images, settings, torch.Generator().manual_seed(seed))
        for step in range(1, steps + 1):
            batch, labels = next(stream)
            batch.requires_grad_()  # else torch's GroupNorm, channels last, crashes (torch 2.13)
            shift = masks if settings.mask_bias else None
            loss = F.cross_entropy(units.logits(twin, batch, masks, shift), labels)
            masks.grad = None
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
            with torch.no_grad():
                assert masks.grad is not None  # noqa: S101 (the loss depends on them)
                velocity = settings.momentum * velocity + masks.grad
                moved -= settings.learning_rate * velocity
                masks.sub_(settings.learning_rate * velocity).clamp_(0, 1)
                reached = torch.where((masks == 0) & (reached > steps), step, reached)
            losses.append(loss.detach())
            progress(what, step / steps)
    values = torch.stack(losses).tolist()
    if not all(map(math.isfinite, values)):
        raise InputError("recovering diverged: the loss is not finite; use a smaller rate")
    return Recovered(masks.detach().cpu(), reached.cpu(), moved.cpu(), values)


def _forever(
    images: ImageSet, settings: Recovering, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch."""
    while True:
        yield from even_batches(images, settings, generator)
