"""The network that makes patterns out of noise, as candidate triggers: p = G_p(z), z ~ N(0, I).

The trigger generator of DHBE (Yan et al. 2023, arXiv 2306.08009; the released code):

    maps of z (``bezoar.networks.latent_decoder``) → 3×3 convolution → BatchNorm, not affine → tanh

The norm before the tanh gives each channel mean 0 and variance 1 over the batch, whatever was
learned: the patterns can neither become all the same nor saturate everywhere (E|p| is about 0.55).
What is done with a pattern, added to images at a place or spread over them, is for the caller.

Published are sides of 3 to 9 pixels, and the doublings of 5 to 9 up to 288; without doubling the
maps have ``width`` channels from the start and are linear in z. Ours: any other size, cropped in
the middle of the next larger one, and height and width that differ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bezoar.errors import InputError
from bezoar.networks.grouped_norm import grouped_statistics
from bezoar.networks.latent_decoder import LatentDecoder
from bezoar.networks.trigger_generators import whole_number


class PatternGenerator(nn.Module):
    """Latent vectors (n, latent) to patterns (n, c, h, w) in [-1, 1], in pixels of range [0, 1].

    Weights are PyTorch's default, as released, and drawn by its global generator.

    Args:
        channels: colour channels c, 1 to 64.
        size: of the patterns in pixels, 1 to 4096: one side of a square, or (height, width).
        latent: length of a latent vector (published: 256).
        width: channels of the widest maps are twice this (published: 64).

    Raises:
        InputError: an argument is out of its range.

    >>> PatternGenerator(3, 5)(torch.randn(4, 256)).shape
    torch.Size([4, 3, 5, 5])
    """

    def __init__(
        self, channels: int, size: int | tuple[int, int], *, latent: int = 256, width: int = 64
    ) -> None:
        super().__init__()
        sides = size if isinstance(size, tuple) else (size, size)
        if len(sides) != 2:
            raise InputError(
                f"the size of the generator's patterns is {size!r}; expected one number of pixels "
                "or (height, width)"
            )
        self.shape = (whole_number("channels", channels, 1, 64), *sides)
        self.decoder = LatentDecoder(sides, latent=latent, width=width, least=3, convolution=False)
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
            return torch.tanh(self.norm(self.last(self.decoder(z))))
