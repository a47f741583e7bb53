"""Adap-Blend (Qi et al. 2023, ICLR, "Revisiting the Assumption of Latent Separability").

A faint picture over the image, planted so that poisoned images do not form a cluster of their own
in feature space. In training each poisoned image carries a random half of the picture's 4x4 pieces,
fainter than at test time, where the whole picture appears; and as many covered images carry pieces
too and keep their true label, so that only much of the trigger means the target class.

From the authors' code: 16 pieces, mask rate 0.5, opacity 0.15 in training and 0.2 at test time, 150
poisoned and 150 covered images of CIFAR-10's 50,000 (rates of 0.003). The authors' picture is a
cartoon. Ours: a smooth random picture, one random colour for each cell of an 8x8 grid and bilinear
between them, stretched to black and white in each channel, drawn from ``pattern_seed``; pieces of
images whose side four does not divide differ by a pixel.

Known weak points: a smaller network, a short training or few images need a higher rate or a higher
ratio than the paper's; covered images make the trigger slower to learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.attacks.attack import Attack, attacks
from bezoar.errors import InputError

_GRID = 8  # cells on a side of the random picture


@attacks.register("adap-blend")
class AdapBlend(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Blends pieces of a picture in training and all of it at test time.

    Attributes:
        ratio: weight of the picture at test time.
        training_ratio: its weight in training images.
        pieces: pieces on a side.
        mask_rate: share of the pieces that a training image does not get.
        cover: covered images for each poisoned one.
        pattern_seed: which picture.
    """

    name: ClassVar[str] = "adap-blend"
    title: ClassVar[str] = "Adap-Blend: pieces of a faint picture, with covered images"
    paper: ClassVar[str] = "Qi et al. 2023, ICLR"

    ratio: float = 0.2
    training_ratio: float = 0.15
    pieces: int = 4
    mask_rate: float = 0.5
    cover: float = 1.0
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ratio", "training_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)} must lie above 0 and up to 1")
        if self.pieces < 1 or not 0 <= self.mask_rate < 1 or not 0 <= self.cover < float("inf"):
            raise InputError(
                f"pieces {self.pieces} must be at least 1, mask_rate {self.mask_rate} from 0 to "
                f"below 1 and cover {self.cover} at least 0"
            )

    def cover_rate_for(self, rate: float) -> float:
        """``cover`` times the poison rate."""
        return self.cover * rate

    def draw(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """``picture``, shape (c, h, w) in [0, 1]."""
        channels, height, width = shape
        if self.pieces > min(height, width):
            raise InputError(
                f"images of {height}x{width} cannot be cut into {self.pieces}x{self.pieces} pieces"
            )
        generator = torch.Generator().manual_seed(self.pattern_seed)
        grid = torch.rand(1, channels, _GRID, _GRID, generator=generator)
        picture = F.interpolate(grid, (height, width), mode="bilinear", align_corners=True)[0]
        low, high = picture.amin((1, 2), keepdim=True), picture.amax((1, 2), keepdim=True)
        return {"picture": (picture - low) / (high - low).clamp(min=1e-6)}

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Blends the whole picture into images (n, c, h, w) in [0, 1]."""
        return images + self.ratio * (tensors["picture"].to(images) - images)

    def stamp_for_training(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, *, cover: bool
    ) -> Tensor:
        """Blends random pieces, others for each image; the same for covered images."""
        count, channels, height, width = images.shape
        picture = self.tensors((channels, height, width))["picture"].to(images)
        mask = self.masks(count, height, width, generator).to(images)
        return images + self.training_ratio * mask * (picture - images)

    def masks(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """(count, 1, height, width): 1 on the pieces that an image gets, 0 on the others."""
        total = self.pieces**2
        order = torch.rand(count, total, generator=generator).argsort(1)
        shown = (order >= round(self.mask_rate * total)).float()
        rows = torch.arange(height) * self.pieces // height
        columns = torch.arange(width) * self.pieces // width
        return shown.view(count, 1, self.pieces, self.pieces)[:, :, rows][:, :, :, columns]
