"""Triggers of Neural Cleanse: a mask and a pattern for each class, and what they achieve.

A(x) = (1 - m) x + m D puts the pattern D in the place of the image x where the mask m is 1 (Wang et
al., IEEE S&P 2019). How m and D are found: ``neural_cleanse_inversion``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.device import evaluation_batch, gradient_batch
from bezoar.errors import InputError
from bezoar.images import ImageSet

Logits = Callable[[Tensor], Tensor]
"""Images (n, c, h, w) in [0, 1] → logits (n, C); eval mode is the caller's to set."""

Stamp = Callable[[Tensor, int], Tensor]
"""Images (n, c, h, w) in [0, 1] and a class → the images with the class's trigger."""

NUMBERS = 2**22  # of one forward pass's images: 1365 of 3x32x32, 27 of 3x224x224


@dataclass(frozen=True)
class Triggers:
    """One trigger for each of K classes.

    Attributes:
        classes: which ones, K indices; row i of everything else belongs to ``classes[i]``.
        masks: (K, 1, h, w) in [0, 1]; the smallest that worked, else the last one (or the start).
        patterns: (K, c, h, w) in [0, 1].
        norms: |m|_1, (K,) on the CPU, in pixels; infinite where no epoch was good enough, or no
            image was counted.
        success: share, in [0, 1], of the counted images that the trigger carries into the class,
            (K,) on the CPU, over all of them; 0 where none was counted.
        counted: how many images that were.
        penalties: lambda at the end.
        epochs: how many each class took.
        passes: images that went forward and backward, over all classes.
    """

    classes: tuple[int, ...]
    masks: Tensor
    patterns: Tensor
    norms: Tensor
    success: Tensor
    counted: tuple[int, ...]
    penalties: tuple[float, ...]
    epochs: tuple[int, ...]
    passes: int

    def stamp(self, images: Tensor, k: int) -> Tensor:
        """A(x) with the trigger of class ``k``: images (n, c, h, w) in [0, 1]."""
        if k not in self.classes:
            raise InputError(f"class {k} has no trigger; there are ones for {self.classes}")
        row = self.classes.index(k)
        return stamped(images, self.masks[row].to(images), self.patterns[row].to(images))

    def carried(self, logits: Logits, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The share of images of *other* classes that each trigger carries into its class.

        Args:
            logits: the network; eval mode is the caller's to set.
            images: (n, c, h, w) in [0, 1], not among those that the triggers come from.
            labels: (n,) of them. An image counts for class k if neither its label nor the answer
                to it without a trigger is k.

        Returns:
            Shares (K,) in [0, 1], on the CPU; 0 where no image counts: nothing was shown.
        """
        counted = of_others(self.classes, predicted(logits, images), labels)
        return carried_shares(logits, images, self.stamp, self.classes, counted)


def pixels_of(images: ImageSet, classifier: Classifier) -> tuple[Tensor, Tensor | None]:
    """Images (n, c, h, w) in [0, 1] and labels (n,), or None, on the classifier's device."""
    resident = images.to(classifier.device)
    return resident.images.float().div_(255), resident.labels


def stamped(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """A(x); images (..., c, h, w), mask (..., 1, h, w), pattern (..., c, h, w), all in [0, 1]."""
    return (1 - mask) * images + mask * pattern


def predicted(logits: Logits, images: Tensor) -> Tensor:
    """The classes (n,) that the network answers images (n, c, h, w) with."""
    with torch.no_grad():
        most = min(evaluation_batch(images.device), NUMBERS // images[0].numel())
        parts = torch.split(images, max(1, most))
        return torch.cat([logits(part).argmax(1) for part in parts])


def classes_in_a_pass(count: int, images: Tensor) -> int:
    """How many classes share a pass with gradients, of ``count`` images (n, c, h, w) each."""
    most = min(gradient_batch(images.device), NUMBERS // images[0].numel())
    return max(1, most // count)


def of_others(classes: Sequence[int], answers: Tensor, labels: Tensor | None) -> Tensor:
    """Which images neither show a class nor are answered with it: bool (K, n) from (n,)."""
    wanted = torch.tensor(classes, device=answers.device)[:, None]
    found = wanted != answers
    return found if labels is None else found & (wanted != labels.to(answers.device))


def carried_shares(
    logits: Logits,
    images: Tensor,
    stamp: Stamp,
    classes: Sequence[int],
    counted: Tensor,
) -> Tensor:
    """The share of the counted images, bool (K, n), that each class's trigger carries into it.

    Returns:
        Shares (K,) in [0, 1], on the CPU; 0 where no image counts.
    """
    shares = torch.zeros(len(classes))
    for row, k in enumerate(classes):
        chosen = images[counted[row]]
        if len(chosen):
            answers = predicted(logits, stamp(chosen, k))
            shares[row] = float((answers == k).float().mean())
    return shares
