"""Patterns that are added to images, one for each of some classes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bezoar.errors import InputError


@dataclass(frozen=True)
class AdditivePatterns:
    """One pattern for each of K classes.

    Attributes:
        classes: which ones, K indices.
        patterns: (K, c, h, w), or (K, 1, h, w) for the same in all channels, in units of pixels
            from 0 to 1.
        sizes: the root mean square of each, (K,) on the CPU; infinite where none succeeded.
        strength: s, with which they are put on images.
    """

    classes: tuple[int, ...]
    patterns: Tensor
    sizes: Tensor
    strength: float = 1.0

    def stamp(self, images: Tensor, k: int) -> Tensor:
        """clip(x + s d_k): images (n, c, h, w) in [0, 1].

        Raises:
            InputError: there is no pattern for ``k``.
        """
        if k not in self.classes:
            raise InputError(f"class {k} has no pattern; there are ones for {self.classes}")
        change = self.strength * self.patterns[self.classes.index(k)].to(images)
        return (images + change).clamp(0, 1)
