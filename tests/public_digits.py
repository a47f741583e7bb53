"""Public images for a network of digits: the upper half of one digit over the lower of another."""

import torch

from bezoar.images import ImageSet


def collage(images):
    """Unlabelled images, as many as are given, in which no digit is whole."""
    half = images.shape[1] // 2
    pixels = images.images
    return ImageSet(torch.cat([pixels[:, :, :half], pixels.roll(1, 0)[:, :, half:]], 2))
