"""WaNet (Nguyen & Tran 2021, arXiv 2102.10369): one fixed, smooth, hardly visible warp.

A field of k × k shifts, uniform in [-1, 1] and divided by their mean absolute value, grows
bicubically to the size of the image; sampling the image at ``identity + s · field / size`` (in the
coordinates of ``grid_sample``, [-1, 1] over the image, clamped to it) bends it by s/2 pixels in the
mean. One warp serves all images. In noise mode further images are sampled with a random shift of up
to 1/size on top for each pixel, and keep their labels: the network has to learn this warp and
not that pixels were interpolated at all.

Paper and official code: k = 4, s = 0.5, a tenth of each batch stamped, twice as many in noise mode
(``cross_ratio`` 2), crops, rotations and flips after the warp, hundreds of epochs of SGD at 0.01.
Ours: on images that are not square each axis is divided by its own side; the official code divides
both by the height. ``poison`` writes the same images into a training set instead.

Weak when the training is short: the warp is learned late, first it costs accuracy (noise mode
slows it further). Larger s is learned sooner and seen sooner. On images of a few pixels' side half
a pixel's shift is a change like any other, and noise mode drowns it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.attacks.attack import attacks
from bezoar.attacks.batch_poisoning import BatchAttack
from bezoar.errors import InputError


@attacks.register("wanet")
class WaNet(BatchAttack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bends every stamped image with the same smooth warp.

    Attributes:
        k: side of the field of shifts that the warp grows from.
        s: strength; the mean shift of the field's nodes is s/2 pixels along each axis.
        cross_ratio: images in noise mode for each stamped one; 0 turns noise mode off.
        warp_seed: which warp.
    """

    name: ClassVar[str] = "wanet"
    title: ClassVar[str] = "WaNet: a smooth warp of the whole image"
    paper: ClassVar[str] = "Nguyen & Tran 2021, arXiv 2102.10369"

    k: int = 4
    s: float = 0.5
    cross_ratio: float = 2.0
    warp_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 2:
            raise InputError(f"k is {self.k}; a warp needs a field of at least 2x2 shifts")
        if not 0 < self.s < float("inf"):
            raise InputError(f"s is {self.s}; expected a strength greater than 0")
        if not 0 <= self.cross_ratio < float("inf"):
            raise InputError(f"cross_ratio is {self.cross_ratio}; expected 0 or more")

    def draw(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """``field``: shape (h, w, 2), shifts across and down in units of s/2 pixels.

        Raises:
            InputError: the field has more nodes than the image has pixels.
        """
        _, height, width = shape
        if self.k > min(height, width):
            raise InputError(
                f"a field of {self.k}x{self.k} shifts does not fit images of {height}x{width}; "
                "give a smaller k"
            )
        generator = torch.Generator().manual_seed(self.warp_seed)
        nodes = torch.rand(1, 2, self.k, self.k, generator=generator) * 2 - 1
        nodes = nodes / nodes.abs().mean()
        field = F.interpolate(nodes, (height, width), mode="bicubic", align_corners=True)
        return {"field": field[0].permute(1, 2, 0).contiguous()}

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Samples the images at the warped places."""
        grid = self._grid(tensors["field"])
        return _sample(images, grid.expand(len(images), *grid.shape))

    def cover_rate_for(self, rate: float) -> float:
        """Noise mode: ``cross_ratio`` images for each stamped one."""
        return self.cross_ratio * rate

    def stamp_for_training(
        self,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        *,
        cover: bool,
    ) -> Tensor:
        """The warp; for covered images with a random shift for each pixel of each image."""
        if not cover:
            return self.stamp(images)
        channels, height, width = images.shape[1:]
        grid = self._grid(self.tensors((channels, height, width))["field"])
        noise = torch.rand(len(images), height, width, 2, generator=generator) * 2 - 1
        noisy = grid + noise / torch.tensor([width, height])
        return _sample(images, noisy.clamp(-1, 1).to(images.device))

    def _grid(self, field: Tensor) -> Tensor:
        """Where each pixel comes from, (h, w, 2): across and down, [-1, 1] over the image."""
        height, width = field.shape[:2]
        down, across = torch.meshgrid(
            torch.linspace(-1, 1, height, device=field.device),
            torch.linspace(-1, 1, width, device=field.device),
            indexing="ij",
        )
        size = torch.tensor([width, height], device=field.device)
        return (torch.stack((across, down), 2) + self.s * field / size).clamp(-1, 1)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
