"""Batches by the index of their images, so that what is known of an image is found again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bezoar.classifier import BATCH
from bezoar.images import ImageSet

Logits = Callable[[Tensor], Tensor]
"""Images (n, c, h, w) in [0, 1] → logits (n, C); eval mode is the caller's to set."""


def answered(logits: Logits, images: ImageSet) -> Tensor:
    """The classes (n,) that the network gives to ``images``, on their device."""
    device = images.images.device
    with torch.no_grad():
        rows = in_order(len(images), BATCH)
        return torch.cat([logits(pixels(images, where.to(device))).argmax(1) for where in rows])


def pixels(images: ImageSet, where: Tensor) -> Tensor:
    """The images at ``where``, (m, c, h, w) in [0, 1]."""
    return images.images[where].float().div_(255)


def in_order(count: int, size: int) -> Iterator[Tensor]:
    """One pass: the indices of ``count`` images in batches of ``size``, the last one as it comes.

    >>> [where.tolist() for where in in_order(5, 2)]
    [[0, 1], [2, 3], [4]]
    """
    return iter(torch.split(torch.arange(count), size))


def endless_batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Pass after pass, each in a new order, without a last batch of less than half the size."""
    while True:
        parts = torch.split(torch.randperm(count, generator=generator), size)
        whole = len(parts) == 1 or 2 * len(parts[-1]) >= size
        yield from parts if whole else parts[:-1]
