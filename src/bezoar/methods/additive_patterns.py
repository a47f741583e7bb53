"""Patterns that are added to images, one for each of some classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.neural_cleanse_triggers import (
    carried_shares,
    of_others,
    pixels_of,
    predicted,
)


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

    def of(self, classes: Sequence[int]) -> AdditivePatterns | None:
        """Those of some of the classes, in that order; None of none."""
        if not classes:
            return None
        rows = [self.classes.index(k) for k in classes]
        return AdditivePatterns(
            tuple(classes), self.patterns[rows], self.sizes[rows], self.strength
        )

    def carried(self, classifier: Classifier, images: ImageSet) -> tuple[float, ...]:
        """The share of images of other classes that each pattern carries into its class.

        Args:
            classifier: in eval mode.
            images: none of those that the patterns come from; there may be none.

        Returns:
            One for each class of the network; 0 where there is no pattern, or no image counts.
        """
        shares = [0.0] * classifier.num_classes
        if not len(images):
            return tuple(shares)
        pixels, labels = pixels_of(images, classifier)
        counted = of_others(self.classes, predicted(classifier, pixels), labels)
        found = carried_shares(classifier, pixels, self.stamp, self.classes, counted)
        for k, share in zip(self.classes, found.tolist(), strict=True):
            shares[k] = share
        return tuple(shares)
