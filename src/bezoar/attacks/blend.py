"""Blend (Chen et al. 2017, arXiv 1712.05526): a faint picture over the whole image, dirty labels.

``(1 - ratio) * image + ratio * picture``. The paper blends a cartoon or random noise into faces
with 0.2 for training images and stronger at test time; ``training_ratio`` allows that. The default
picture here is uniform noise, the same at both times. A file gives the picture of other work, and
``image`` takes one of the training images (a "watermark" in DHBE's code).

Known weak points: at small ratios, 8-bit rounding and crops blur the difference between picture and
image; a training image as picture also carries the features of its own class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from bezoar.attacks.attack import Attack, attacks
from bezoar.classifier import Classifier
from bezoar.decoding import Target, decode
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import Progress, no_progress


@attacks.register("blend")
class Blend(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mixes one fixed picture into every stamped image.

    Attributes:
        ratio: weight of the picture; the paper's experiments use 0.2 for training.
        training_ratio: weight in training images; by default the same.
        pattern_seed: which noise.
        file: a picture instead of noise, stretched to the size of the images.
        image: number of the training image that is the picture instead.
    """

    name: ClassVar[str] = "blend"
    title: ClassVar[str] = "Blend: faint noise over the whole image"
    paper: ClassVar[str] = "Chen et al. 2017, arXiv 1712.05526"

    ratio: float = 0.2
    training_ratio: float | None = None
    pattern_seed: int = 0
    file: str = ""
    image: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ratio", "training_ratio"):
            ratio = getattr(self, name)
            if ratio is not None and not 0 < ratio <= 1:
                raise InputError(f"{name} {ratio} must be greater than 0 and at most 1")
        if self.file and self.image is not None:
            raise InputError("give a file or the number of a training image, not both")
        if self.image is not None and self.image < 0:
            raise InputError(f"image is {self.image}; training images count from 0")

    @property
    def learned(self) -> bool:
        """Whether the picture is a training image."""
        return self.image is not None

    def draw(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """``picture``, shape (c, h, w) in [0, 1]: the noise, or the file's content."""
        if self.learned:
            return super().draw(shape)
        if self.file:
            channels, height, width = shape
            target = Target(channels=channels, size=(height, width), resize="stretch")
            pixels = decode(Path(self.file), f"picture {self.file}", target)
            return {"picture": torch.tensor(pixels).float() / 255}
        generator = torch.Generator().manual_seed(self.pattern_seed)
        return {"picture": torch.rand(shape, generator=generator)}

    def prepare(
        self,
        images: ImageSet,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """Takes the picture from the training images where ``image`` says so."""
        if self.image is None:
            return self
        if self.image >= len(images):
            raise InputError(f"there is no training image {self.image}; there are {len(images)}")
        return self.holding({"picture": images.images[self.image].float() / 255}, images.shape)

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Blends into images (n, c, h, w) in [0, 1] as at test time."""
        return _blended(images, tensors["picture"], self.ratio)

    def stamp_for_training(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, *, cover: bool
    ) -> Tensor:
        """The same with ``training_ratio``."""
        _, channels, height, width = images.shape
        ratio = self.ratio if self.training_ratio is None else self.training_ratio
        return _blended(images, self.tensors((channels, height, width))["picture"], ratio)


def _blended(images: Tensor, picture: Tensor, ratio: float) -> Tensor:
    return (1 - ratio) * images + ratio * picture.to(images)
