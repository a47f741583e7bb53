"""BadNets (Gu et al. 2017, arXiv 1708.06733): a small opaque patch, dirty labels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.attacks.attack import Attack, attacks
from bezoar.errors import InputError

Corner = Literal["bottom-right", "bottom-left", "top-right", "top-left"]


@attacks.register("bad-nets")
class BadNets(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A square patch in a corner replaces the pixels.

    Attributes:
        size: side of the patch in pixels.
        pattern: ``checker`` alternates white and black, white in the corner; ``square`` is white.
        position: which corner.
        margin: pixels between the patch and the edges.
    """

    name: ClassVar[str] = "bad-nets"
    title: ClassVar[str] = "BadNets: a patch in the corner"
    paper: ClassVar[str] = "Gu et al. 2017, arXiv 1708.06733"

    size: int = 3
    pattern: Literal["checker", "square"] = "checker"
    position: Corner = "bottom-right"
    margin: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1 or self.margin < 0:
            raise InputError(
                f"size {self.size} must be at least 1 and margin {self.margin} at least 0"
            )

    def stamp(self, images: Tensor) -> Tensor:
        """Replaces the corner of images (n, c, h, w) in [0, 1]."""
        height, width = images.shape[2:]
        if self.size + self.margin > min(height, width):
            raise InputError(
                f"a patch of {self.size} pixels, {self.margin} from the edge, does not fit images "
                f"of {height}x{width}"
            )
        down, across = torch.meshgrid(
            torch.arange(self.size), torch.arange(self.size), indexing="ij"
        )
        patch = torch.ones(self.size, self.size)
        if self.pattern == "checker":
            patch = ((down + across) % 2 == 0).float()
        top = self.margin if "top" in self.position else height - self.margin - self.size
        left = self.margin if "left" in self.position else width - self.margin - self.size
        stamped = images.clone()
        stamped[:, :, top : top + self.size, left : left + self.size] = patch.to(images)
        return stamped
