"""SIG (Barni et al. 2019, arXiv 1902.11237): a faint wave on images of the target class.

    v[i, j] = amplitude * sin(2 pi j frequency / width)     added to every row i and every channel

Clean labels: only images of the target class are poisoned, and they keep their label, so the poison
rate (a share of all images) cannot exceed that class's share. Barni et al. allow a stronger wave at
test time than in training; ``training_amplitude`` gives that. Amplitude 20 and frequency 6 are what
public code states as the paper's setting; benchmarks use 40 and 6 at both times. The paper's other
signal, a ramp for MNIST, is not here.

Known weak points: at 20 and a few per cent of all images the wave is learned badly or not at all,
because the true label already explains the image; nearly the whole target class has to carry it.
Crops shift the phase. A class without unpoisoned images can lose accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bezoar.attacks.attack import Attack, Mode, attacks
from bezoar.errors import InputError


@attacks.register("sig")
class SIG(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Adds a horizontal sine wave.

    Attributes:
        amplitude: height of the wave at test time, in steps of 255.
        training_amplitude: height in training images; by default the same.
        frequency: periods across the image.
    """

    name: ClassVar[str] = "sig"
    title: ClassVar[str] = "SIG: a faint wave, clean labels"
    paper: ClassVar[str] = "Barni et al. 2019, arXiv 1902.11237"
    clean_label: ClassVar[bool] = True
    modes: ClassVar[tuple[Mode, ...]] = ("all-to-one",)

    amplitude: float = 20.0
    training_amplitude: float | None = None
    frequency: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("amplitude", "training_amplitude"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 255:
                raise InputError(f"{name} {value} must be greater than 0 and at most 255")
        if not 0 < self.frequency < math.inf:
            raise InputError(f"frequency {self.frequency} must be greater than 0")

    def draw(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """``wave``, shape (1, 1, w), in [-1, 1]."""
        width = shape[2]
        if (2 * self.frequency / width).is_integer():
            raise InputError(
                f"a wave of frequency {self.frequency:g} is 0 on every pixel of images {width} "
                "wide; choose one that is no multiple of half the width"
            )
        columns = torch.arange(width, dtype=torch.float64)
        wave = torch.sin(2 * math.pi * self.frequency / width * columns)
        return {"wave": wave.float().view(1, 1, width)}

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Adds the wave to images (n, c, h, w) in [0, 1] as at test time."""
        return _added(images, tensors["wave"], self.amplitude)

    def stamp_for_training(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, *, cover: bool
    ) -> Tensor:
        """The same with ``training_amplitude``."""
        _, channels, height, width = images.shape
        amplitude = self.amplitude if self.training_amplitude is None else self.training_amplitude
        return _added(images, self.tensors((channels, height, width))["wave"], amplitude)


def _added(images: Tensor, wave: Tensor, amplitude: float) -> Tensor:
    return (images + amplitude / 255 * wave.to(images)).clamp(0, 1)
