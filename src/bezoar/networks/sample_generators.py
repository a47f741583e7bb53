"""The network that makes images out of noise, for work without any data: x = G(z), z ~ N(0, I).

The sample generator of DHBE (Yan et al. 2023, arXiv 2306.08009; the released code):

    maps of z (``bezoar.networks.latent_decoder``) → 3×3 convolution → tanh → BatchNorm, not affine

The norm comes last, so that in training each channel of a batch has mean 0 and variance 1: images
are made in the normalised space that classifiers see, and nothing bounds them to [0, 1].
Published are sides of 5 to 8 pixels and their doublings up to 256. Ours: any other size, cropped in
the middle of the next larger one; height and width that differ; and for images that need no
doubling (up to 9 pixels) one 3×3 convolution with BatchNorm and leaky ReLU, without which the
published generator is linear up to its tanh.

Known limits: nothing makes the images resemble real ones or the classes equally frequent; that is
for the losses. An image depends on its batch in training, and on running statistics afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bezoar.errors import InputError
from bezoar.networks.grouped_norm import grouped_statistics
from bezoar.networks.latent_decoder import LatentDecoder, plan
from bezoar.networks.trigger_generators import whole_number

__all__ = ["SampleGenerator", "plan"]


class SampleGenerator(nn.Module):
    """Latent vectors (n, latent) to normalised images (n, c, h, w), standardised over the batch.

    Weights are PyTorch's default, as released, and drawn by its global generator.

    Args:
        shape: (c, h, w) of the images: 1 to 64 channels, sides of 1 to 4096 pixels.
        latent: length of a latent vector (published: 256).
        width: channels of the widest maps are twice this (published: 64).

    Raises:
        InputError: an argument is out of its range.

    >>> SampleGenerator((3, 32, 32))(torch.randn(4, 256)).shape
    torch.Size([4, 3, 32, 32])
    """

    def __init__(self, shape: tuple[int, int, int], *, latent: int = 256, width: int = 64) -> None:
        super().__init__()
        if not isinstance(shape, tuple) or len(shape) != 3:
            raise InputError(
                f"the shape of the generator's images is {shape!r}; expected (channels, height, "
                "width)"
            )
        self.shape = shape
        channels = whole_number("channels", shape[0], 1, 64)
        self.decoder = LatentDecoder(
            shape[1:], latent=latent, width=width, least=5, convolution=True
        )
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, z: Tensor, groups: int = 1) -> Tensor:
        """Maps (n, latent) to (n, c, h, w).

        Args:
            z: drawn from N(0, 1).
            groups: n is that many batches of equal size in one; result and running statistics are
                those of one call after the other.

        Raises:
            InputError: ``z`` has another shape, or n cannot be divided by ``groups``.
        """
        with grouped_statistics(self, groups):
            made: Tensor = self.norm(torch.tanh(self.last(self.decoder(z))))
        return made
