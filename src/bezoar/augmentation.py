"""Random crops and flips of a whole batch in one gather, on any device."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

from bezoar.errors import InputError


def crop_and_flip(
    images: Tensor,
    *,
    padding: int,
    flip: bool,
    generator: torch.Generator,
    border: Literal["zeros", "reflect"] = "zeros",
) -> Tensor:
    """Shifts every image at random by up to ``padding`` pixels and mirrors every second one.

    The same as padding each side, cutting out a random window of the old size, and flipping it
    left to right with probability one half; each image has its own shift and flip.

    Args:
        images: shape (n, channels, height, width), any dtype and device.
        padding: the largest shift in pixels; 0 leaves the position.
        flip: whether to mirror; not for digits and signs, which mean something else mirrored.
        generator: gives the random numbers, on its own device.
        border: what lies outside the image: zeros, or its mirror image (edge pixel not repeated).

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        InputError: the padding is negative, or too large for a mirror image.

    >>> images = torch.arange(9.0).view(1, 1, 3, 3)
    >>> generator = torch.Generator().manual_seed(0)
    >>> crop_and_flip(images, padding=1, flip=False, generator=generator).shape
    torch.Size([1, 1, 3, 3])
    """
    count, channels, height, width = images.shape
    if padding < 0 or (border == "reflect" and padding >= min(height, width)):
        raise InputError(
            f"padding {padding} does not suit images of {height}x{width}; expected 0 or more, and "
            "with border 'reflect' less than the image's sides"
        )
    shifts, flips = draw(count, padding=padding, flip=flip, generator=generator)
    device = images.device
    shifts, flips = shifts.to(device), flips.to(device)
    rows = torch.arange(height, device=device) + shifts[0, :, None]  # (n, height)
    columns = torch.arange(width, device=device).expand(count, width)
    columns = torch.where(flips[:, None], width - 1 - columns, columns) + shifts[1, :, None]
    if border == "reflect":
        rows, columns = _mirrored(rows - padding, height), _mirrored(columns - padding, width)
    elif padding:
        images = functional.pad(images, (padding,) * 4)
    # One gather over flattened pixels; indexing with four index tensors is three times slower.
    index = (rows[:, :, None] * images.shape[3] + columns[:, None, :]).view(count, 1, -1)
    pixels = images.flatten(2).gather(2, index.expand(count, channels, -1))
    return pixels.view(count, channels, height, width)


def draw(
    count: int, *, padding: int, flip: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The random numbers of ``crop_and_flip``.

    Returns:
        The window's upper and left edge in the padded image, ``int64`` of shape (2, count), from 0
        to 2·padding; and which images to flip, ``bool`` of shape (count,). Both on the generator's
        device.
    """
    device = generator.device
    shifts = torch.randint(0, 2 * padding + 1, (2, count), generator=generator, device=device)
    if not flip:
        return shifts, torch.zeros(count, dtype=torch.bool, device=device)
    return shifts, torch.rand(count, generator=generator, device=device) < 0.5


def _mirrored(positions: Tensor, length: int) -> Tensor:
    """Positions outside 0..length-1 thrown back at the edges: -1 is 1, length is length-2."""
    return length - 1 - (length - 1 - positions.abs()).abs()
