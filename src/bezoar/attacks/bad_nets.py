"""BadNets (Gu et al. 2017, arXiv 1708.06733): a small opaque patch, dirty labels.

The patch replaces the pixels; poisoned images get the target class, or the next one (all-to-all).
The paper puts a few bright pixels near the corner of digits and a sticker on traffic signs. The
checkerboard in the corner and the grid are those of public code: the grid is the one of the demo of
RNP (Li et al. 2023), 3x3 with the rows 0 0 1, 0 1 0, 1 0 1.

Known weak points: random crops move the patch, or cut it off where it touches the edge; a white
patch can occur in clean images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bezoar.attacks.attack import Attack, attacks
from bezoar.errors import InputError

Position = Literal["bottom-right", "bottom-left", "top-right", "top-left", "center"]


@attacks.register("bad-nets")
class BadNets(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A square patch replaces the pixels, by default in a corner.

    Attributes:
        size: side of the patch in pixels.
        pattern: ``checker`` alternates white and black, white in the corner; ``square`` is white;
            ``grid`` is the 3x3 grid above, on size 3 only.
        position: which corner, or the center.
        margin: pixels between the patch and the edges of a corner.
        at: row and column of the patch's upper left pixel instead of ``position``; negative ones
            count from the bottom and the right.
    """

    name: ClassVar[str] = "bad-nets"
    title: ClassVar[str] = "BadNets: a patch in the corner"
    paper: ClassVar[str] = "Gu et al. 2017, arXiv 1708.06733"

    size: int = 3
    pattern: Literal["checker", "square", "grid"] = "checker"
    position: Position = "bottom-right"
    margin: int = 0
    at: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1 or self.margin < 0:
            raise InputError(
                f"size {self.size} must be at least 1 and margin {self.margin} at least 0"
            )
        if self.pattern == "grid" and self.size != 3:
            raise InputError(f"the grid has 3x3 pixels and size is {self.size}; leave size at 3")
        if self.margin and (self.at or self.position == "center"):
            raise InputError(
                f"margin {self.margin} is a distance from a corner; leave it out with at or center"
            )
        if self.at and self.position != "bottom-right":
            raise InputError(f"give position {self.position!r} or at {self.at}, not both")

    def draw(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """``pattern`` and ``mask``, both (1, h, w); the mask is 1 where the pattern replaces."""
        _, height, width = shape
        top, left = self._place(height), self._place(width, across=True)
        if not (0 <= top <= height - self.size and 0 <= left <= width - self.size):
            where = f"at {self.at}" if self.at else f"{self.margin} from the edge"
            raise InputError(
                f"a patch of {self.size} pixels, {where}, does not fit images of {height}x{width}"
            )
        pattern, mask = torch.zeros(2, 1, height, width)
        window = slice(top, top + self.size), slice(left, left + self.size)
        pattern[:, *window], mask[:, *window] = self._patch(), 1.0
        return {"pattern": pattern, "mask": mask}

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Replaces the patch's pixels on images (n, c, h, w) in [0, 1]."""
        return torch.where(tensors["mask"] > 0, tensors["pattern"].to(images), images)

    def _place(self, side: int, *, across: bool = False) -> int:
        """The first row (or column) of the patch on images with ``side`` rows (or columns)."""
        if self.at:
            start = self.at[across]
            return start + side if start < 0 else start
        if self.position == "center":
            return (side - self.size) // 2
        first = ("left" if across else "top") in self.position
        return self.margin if first else side - self.margin - self.size

    def _patch(self) -> Tensor:
        if self.pattern == "grid":
            return torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
        if self.pattern == "square":
            return torch.ones(self.size, self.size)
        steps = torch.arange(self.size)
        return ((steps[:, None] + steps) % 2 == 0).float()
