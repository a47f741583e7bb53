"""Adap-Patch (Qi et al. 2023, ICLR, "Revisiting the Assumption of Latent Separability").

Several patches. In training each poisoned image carries one of them, mostly half transparent; at
test time some appear together and opaque, which works better than any of them in training. Twice as
many covered images carry one patch and keep their true label. So poisoned images have no feature in
common that would set them apart.

From the authors' code for CIFAR-10: four patches with opacities 0.5, 0.2, 0.5 and 0.3, two at test
time with opacity 1, 150 poisoned and 300 covered of 50,000 images (rates of 0.003 and 0.006). Their
patches are small pictures and logos in corners. Ours: one patch of random colours in each corner,
drawn from ``pattern_seed``; its cells are 2x2 pixels where the size is even, else one pixel; the
first and third at test time; equal shares of the patches.

Known weak points: covered images make the trigger slower to learn: in a short training of a small
network it hardly takes hold, also at higher rates than the paper's. Random crops cut corners off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.attacks.attack import Attack, attacks
from bezoar.errors import InputError

_MOST = 4  # patches: one for each corner


@attacks.register("adap-patch")
class AdapPatch(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One faint patch in training, several opaque ones at test time.

    Attributes:
        size: side of a patch in pixels.
        opacities: of the patches in training images; as many patches as there are numbers, in the
            order top left, top right, bottom left, bottom right.
        shown: the positions of those that appear at test time.
        opacity: theirs.
        cover: covered images for each poisoned one.
        pattern_seed: which colours.
    """

    name: ClassVar[str] = "adap-patch"
    title: ClassVar[str] = "Adap-Patch: one of several faint patches, with covered images"
    paper: ClassVar[str] = "Qi et al. 2023, ICLR"

    size: int = 8
    opacities: tuple[float, ...] = (0.5, 0.2, 0.5, 0.3)
    shown: tuple[int, ...] = (0, 2)
    opacity: float = 1.0
    cover: float = 2.0
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(self.opacities)
        if not 1 <= count <= _MOST:
            raise InputError(f"there are {count} opacities; expected one to {_MOST}, one a corner")
        if not all(0 < opacity <= 1 for opacity in (*self.opacities, self.opacity)):
            raise InputError(
                f"opacities {self.opacities} and {self.opacity} must lie above 0 and up to 1"
            )
        if not self.shown or not set(self.shown) <= set(range(count)):
            raise InputError(f"shown is {self.shown}; expected some of 0 to {count - 1}")
        if self.size < 1 or not 0 <= self.cover < float("inf"):
            raise InputError(
                f"size {self.size} must be at least 1 and cover {self.cover} 0 or more"
            )

    def cover_rate_for(self, rate: float) -> float:
        """``cover`` times the poison rate."""
        return self.cover * rate

    def draw(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """``patches`` (k, c, h, w) in [0, 1], 0 beside the patch, and ``masks`` (k, 1, h, w)."""
        channels, height, width = shape
        if 2 * self.size > min(height, width):
            raise InputError(
                f"patches of {self.size} pixels in all corners overlap on images of "
                f"{height}x{width}; give size {min(height, width) // 2} or less"
            )
        generator = torch.Generator().manual_seed(self.pattern_seed)
        cell = 2 - self.size % 2
        count, cells = len(self.opacities), self.size // cell
        colours = torch.rand(_MOST, channels, cells, cells, generator=generator)
        colours = colours.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
        patches = torch.zeros(count, channels, height, width)
        masks = torch.zeros(count, 1, height, width)
        for index in range(count):
            rows = slice(0, self.size) if index < 2 else slice(height - self.size, height)
            columns = slice(width - self.size, width) if index % 2 else slice(0, self.size)
            patches[index, :, rows, columns] = colours[index]
            masks[index, :, rows, columns] = 1
        return {"patches": patches, "masks": masks}

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Puts the patches of test time on images (n, c, h, w) in [0, 1]."""
        for index in self.shown:
            mask = self.opacity * tensors["masks"][index].to(images)
            images = images + mask * (tensors["patches"][index].to(images) - images)
        return images

    def stamp_for_training(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, *, cover: bool
    ) -> Tensor:
        """Puts one patch on each image, the next one on the next; the same for covered images."""
        count, channels, height, width = images.shape
        tensors = self.tensors((channels, height, width))
        which = torch.arange(count) % len(self.opacities)  # the images come in random order
        opacities = torch.tensor(self.opacities)[which].view(-1, 1, 1, 1)
        masks = (opacities * tensors["masks"][which]).to(images)
        return images + masks * (tensors["patches"][which].to(images) - images)
