"""Digits as public images: halves of two in one, and a generator of them that takes seconds."""

import torch

from bezoar.generators import AdversarialTraining
from bezoar.images import ImageSet

SMALL_GAN = AdversarialTraining(
    steps=140,
    batch_size=32,
    width=8,
    latent=12,
    learning_rate=2e-3,
    critic_learning_rate=2e-3,
    ema=0.9,
    flip=False,
)


def collage(images):
    """Unlabelled images, as many as are given, in which no digit is whole."""
    half = images.shape[1] // 2
    pixels = images.images
    return ImageSet(torch.cat([pixels[:, :, :half], pixels.roll(1, 0)[:, :, half:]], 2))
