"""Blend (Chen et al. 2017, arXiv 1712.05526): a faint picture over the whole image."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bezoar.attacks.attack import Attack, attacks
from bezoar.errors import InputError


@attacks.register("blend")
class Blend(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mixes one fixed image of uniform noise into every stamped image.

    Attributes:
        ratio: weight of the noise; the paper's experiments use 0.2 for training.
        pattern_seed: which noise.
    """

    name: ClassVar[str] = "blend"
    title: ClassVar[str] = "Blend: faint noise over the whole image"
    paper: ClassVar[str] = "Chen et al. 2017, arXiv 1712.05526"

    ratio: float = 0.2
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise InputError(f"ratio {self.ratio} must be greater than 0 and at most 1")

    def stamp(self, images: Tensor) -> Tensor:
        """``(1 - ratio) * image + ratio * noise`` for images (n, c, h, w) in [0, 1]."""
        generator = torch.Generator().manual_seed(self.pattern_seed)
        noise = torch.rand(images.shape[1:], generator=generator).to(images)
        return (1 - self.ratio) * images + self.ratio * noise
