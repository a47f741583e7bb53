"""Public images as the training of a generator draws them: at random, in one size, on its device.

Every batch is drawn with replacement (ours; released code goes through the images epoch by epoch),
so that a training of n steps needs no position within an epoch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.augmentation import crop_and_flip
from bezoar.errors import InputError
from bezoar.images import ImageSet

_CHUNK = 1024


class PublicBatches:
    """Batches of public images.

    Args:
        images: of any size.
        size: (height, width) that they are stretched to; None leaves their own.
        device: where batches go.
        batch_size: images in a batch.
        flip: whether each is mirrored left to right with probability one half.
        generator: of the draws, on the CPU.

    Raises:
        InputError: there are fewer images than a batch has.
    """

    def __init__(
        self,
        images: ImageSet,
        size: tuple[int, int] | None,
        *,
        device: torch.device,
        batch_size: int,
        flip: bool,
        generator: torch.Generator,
    ) -> None:
        if len(images) < batch_size:
            raise InputError(
                f"there are {len(images)} public images, and a batch has {batch_size}; give more "
                "images (thousands are better than hundreds) or a smaller batch_size"
            )
        self.images = fitted(images, size)
        self.pixels = self.images.to(device).images
        self.batch_size, self.flip, self.generator = batch_size, flip, generator

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the batches."""
        return self.images.shape

    def draw(self) -> Tensor:
        """A batch (n, c, h, w), float32 in [0, 1], channels last."""
        chosen = torch.randint(len(self.pixels), (self.batch_size,), generator=self.generator)
        batch = self.pixels[chosen.to(self.pixels.device)]
        if self.flip:
            batch = crop_and_flip(batch, padding=0, flip=True, generator=self.generator)
        return batch.float().div_(255).contiguous(memory_format=torch.channels_last)

    def described(self) -> dict[str, Any]:
        """What the record of a generator says of them; JSON-able."""
        return {
            "number": len(self.images),
            "shape": list(self.shape),
            "sha256": self.images.sha256(),
        }


def fitted(images: ImageSet, size: tuple[int, int] | None) -> ImageSet:
    """The images, without labels, stretched to ``size`` (bilinear, antialiased)."""
    if size is None or tuple(images.shape[1:]) == tuple(size):
        return ImageSet(images.images)
    parts = [
        F.interpolate(
            images.images[start : start + _CHUNK].float(), size, mode="bilinear", antialias=True
        )
        for start in range(0, len(images), _CHUNK)
    ]
    return ImageSet(torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts]))
