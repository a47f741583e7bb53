"""Samples as inversion hands them on: float images with labels, checked, and run in batches.

They are not rounded to 8 bits as an ``ImageSet`` is, so that what was searched for and what is
judged are the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bezoar.classifier import BATCH, Classifier
from bezoar.errors import InputError

_ROUNDING = 1e-5  # a resized or generated image may leave [0, 1] by this much


def check_samples(classifier: Classifier, images: Tensor, labels: Tensor) -> None:
    """Refuses what are no samples of the classifier's classes, and traces the classifier.

    Args:
        classifier: whose labels they are.
        images: floating point, (n, c, h, w), in [0, 1], at least one.
        labels: ``int64``, (n,), classes of the classifier.

    Raises:
        InputError: they are anything else, or the network cannot take such images.
    """
    if not images.is_floating_point() or images.ndim != 4 or not len(images):
        raise InputError(
            f"samples have dtype {images.dtype} and shape {tuple(images.shape)}; expected floating "
            "point of shape (images, channels, height, width), at least one image"
        )
    low, high = float(images.amin()), float(images.amax())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also where one is NaN
        raise InputError(f"samples go from {low:g} to {high:g}; expected pixels in [0, 1]")
    classifier.trace((images.shape[1], images.shape[2], images.shape[3]))
    check_labels(classifier, labels, len(images))


def check_labels(classifier: Classifier, labels: Tensor, count: int) -> None:
    """Refuses labels that are not ``count`` classes of a traced classifier."""
    if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
        raise InputError(
            f"labels have dtype {labels.dtype} and shape {tuple(labels.shape)}; expected int64 of "
            f"shape ({count},), one for each image"
        )
    if not 0 <= int(labels.amin()) <= int(labels.amax()) < classifier.num_classes:
        raise InputError(
            f"labels go from {int(labels.amin())} to {int(labels.amax())} and the network has "
            f"{classifier.num_classes} classes"
        )


def batches(classifier: Classifier, images: Tensor, size: int = BATCH) -> Iterator[Tensor]:
    """The images in order, ``float32``, batch by batch on the classifier's device."""
    for batch in torch.split(images, size):
        yield batch.to(classifier.device, torch.float32)


def logits_of(classifier: Classifier, images: Tensor) -> Tensor:
    """Logits (n, classes) of images (n, c, h, w): eval mode, no gradients, on the CPU."""
    with classifier.evaluating(), torch.no_grad():
        return torch.cat([classifier(batch).float().cpu() for batch in batches(classifier, images)])


def features_of(classifier: Classifier, images: Tensor) -> Tensor:
    """Features (n, d) before the last layer: eval mode, no gradients, on the CPU."""
    with classifier.evaluating(), torch.no_grad():
        parts = [classifier.features(batch) for batch in batches(classifier, images)]
    return torch.cat(parts).float().cpu()
