"""BppAttack (Wang et al. 2022, arXiv 2205.13383): fewer bits per pixel, with dithering.

The trigger needs no pattern: every channel is rounded to ``levels`` equally spaced values, and
Floyd–Steinberg dithering (1976) hands the rounding error on to the neighbours that come later in
reading order: 7/16 to the right, 3/16, 5/16, 1/16 below. The network learns to see the missing
bits. So that it does not take any change of that size for the trigger, as many images of each batch
get the rounding residual of another image and keep their labels (negative samples).

Official code: 8 levels (``squeeze_num``), a fifth of each batch stamped and a fifth negative
(``injection_rate`` and ``neg_rate`` 0.2), SGD at 0.01 for up to 1,000 epochs. The same trigger is
used in training and test; dithering is an option there and off by default, while the paper's
trigger has it (BTI-DBF's copy quantises without). The paper's "contrastive adversarial training"
could be read in the code only, where it is these residuals; nothing else is claimed here.

Ours: dithering is on by default; a dithered value beyond black or white stays there, where the
official code lets it pass; the residual comes from another negative sample of the same batch, not
from a list over the whole training set, and an image that is alone in its batch stays as it is.

Weak points: images that hold few levels anyway (drawings, signs, digits of 17 grey values) carry
the trigger already, so ACC suffers or nothing is learned; 8-bit files keep it, JPEG does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.attacks.attack import attacks
from bezoar.attacks.batch_poisoning import BatchAttack
from bezoar.errors import InputError


@attacks.register("bpp-attack")
class BppAttack(BatchAttack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rounds every channel to few levels.

    Attributes:
        levels: values that a channel can have, black and white among them.
        dithering: whether rounding errors are handed on to the neighbours.
        negative_ratio: negative samples for each stamped image; 0 leaves them out.
    """

    name: ClassVar[str] = "bpp-attack"
    title: ClassVar[str] = "BppAttack: fewer bits per pixel, dithered"
    paper: ClassVar[str] = "Wang et al. 2022, arXiv 2205.13383"

    levels: int = 8
    dithering: bool = True
    negative_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.levels <= 256:
            raise InputError(f"levels is {self.levels}; expected 2 to 256")
        if not 0 <= self.negative_ratio < float("inf"):
            raise InputError(f"negative_ratio is {self.negative_ratio}; expected 0 or more")

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """The images in ``levels`` values for each channel."""
        if self.dithering:
            return dithered(images, self.levels)
        return quantised(images, self.levels)

    def cover_rate_for(self, rate: float) -> float:
        """Negative samples: ``negative_ratio`` for each stamped image."""
        return self.negative_ratio * rate

    def stamp_for_training(
        self,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        *,
        cover: bool,
    ) -> Tensor:
        """The trigger; for covered images the residual that it leaves on the next one of them."""
        stamped = self.stamp(images)
        if not cover:
            return stamped
        if len(images) < 2:
            return images.clone()  # its own residual would make it the trigger
        return (images + (stamped - images).roll(1, 0)).clamp(0, 1)


def quantised(values: Tensor, levels: int) -> Tensor:
    """Values in [0, 1] rounded to the nearest of ``levels`` equally spaced ones."""
    return (values * (levels - 1)).round().clamp(0, levels - 1) / (levels - 1)


def dithered(images: Tensor, levels: int) -> Tensor:
    """Floyd–Steinberg dithering of images (n, c, h, w) in [0, 1], each channel on its own.

    A pixel waits for its left neighbour and for three in the row above, so all pixels with the
    same ``across + 2 · down`` can be rounded at once: w + 2 h steps instead of w · h. For that the
    picture is sheared, one step a slice. The values are those of reading order, to the last bit.
    """
    count, channels, height, width = images.shape
    steps = width + 2 * (height - 1)
    rows = torch.arange(height, device=images.device)
    step = torch.arange(width, device=images.device) + 2 * rows[:, None]  # (h, w)
    # Three more slices and one more row take what falls over the edges.
    sheared = images.new_zeros(steps + 3, height + 1, count, channels)
    sheared[step, rows[:, None]] = images.permute(2, 3, 0, 1)
    across = torch.arange(steps, device=images.device)[:, None] - 2 * rows  # (steps, h)
    inside = ((across >= 0) & (across < width)).to(images.dtype)[..., None, None]
    for now in range(steps):
        before = sheared[now, :height]
        after = quantised(before, levels)
        error = (before - after) * inside[now]
        sheared[now, :height] = after
        # From above first, then from the left: the order in which a pixel gets them when reading.
        sheared[now + 3, 1:] += error / 16
        sheared[now + 2, 1:] += error * (5 / 16)
        sheared[now + 1, 1:] += error * (3 / 16)
        sheared[now + 1, :height] += error * (7 / 16)
    return sheared[step, rows[:, None]].permute(2, 3, 0, 1).contiguous()
