"""The networks of a small DCGAN, for 32 or 64 pixels and for any other size.

What the first author of FreD (Chen et al. 2023, arXiv 2206.07018) released for model inversion
(github.com/SCccc21/Knowledge-Enriched-DMI, arXiv 2010.04092), and whose scale the paper's own
generator has: a DCGAN (Radford et al. 2016, arXiv 1511.06434) with 5×5 kernels. At width w:

    G, 32 px: z → linear, 4w·4·4 → transposed convolutions of stride 2: 2w → w → c, sigmoid
    G, 64 px: z → linear, 8w·4·4 → 4w → 2w → w → c;        BatchNorm and ReLU between all layers
    D, 32 px: convolutions of stride 2: w → 2w → 4w, leaky ReLU (0.2), 4×4 convolution to one score

D has affine instance norms from its second convolution on (published, for gradient penalties), or
spectral norms instead (Miyato et al. 2018, arXiv 1802.05957), and then takes images as 2x − 1
(ours). Published is w = 64.

Ours: other sizes start from bases of 4 to 7 pixels, are cropped in the middle where no base fits,
and height and width may differ; no layer is wider than 8w; the encoder, which is D's stem with
BatchNorms, and mean and log-variance in place of the score.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from bezoar.errors import InputError
from bezoar.networks.trigger_generators import whole_number

Norm = Literal["instance", "spectral", "none"]

_BASE = 4  # pixels of the smallest maps, at least
_WIDEST = 8  # times the width
_SLOPE = 0.2  # of the leaky ReLUs
_LARGEST_LOG_VARIANCE = 10.0


class ImageGenerator(nn.Module):
    """Latent vectors (n, latent) to images (n, c, h, w) in [0, 1].

    Args:
        shape: (c, h, w) of the images: 1 to 64 channels, sides of 4 to 4096 pixels.
        latent: length of a latent vector, 1 to 65,536.
        width: channels of the last maps, 1 to 1024.

    Raises:
        InputError: an argument is out of its range.

    >>> import torch
    >>> ImageGenerator((3, 32, 32), width=8)(torch.randn(2, 100)).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(self, shape: tuple[int, int, int], *, latent: int = 100, width: int = 64) -> None:
        super().__init__()
        channels, doublings, self.base = _checked(shape, width)
        self.shape, self.width = shape, width
        self.latent = whole_number("latent", latent, 1, 65_536)
        widths = _widths(width, doublings)[::-1]
        features = widths[0] * self.base[0] * self.base[1]
        self.linear = nn.Linear(latent, features, bias=False)
        self.norm = nn.BatchNorm1d(features)
        stages: list[nn.Module] = []
        for narrow, wide in zip(widths[1:], widths, strict=False):
            stages += [_doubling(wide, narrow, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
        self.stages = nn.Sequential(*stages)
        self.last = _doubling(width, channels, bias=True)

    def forward(self, z: Tensor) -> Tensor:
        """Maps (n, latent) to (n, c, h, w)."""
        features = self.norm(self.linear(z)).relu().unflatten(1, (-1, *self.base))
        images: Tensor = self.last(self.stages(features))
        _, height, width = self.shape
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return images[:, :, top : top + height, left : left + width].sigmoid()


class ImageCritic(nn.Module):
    """Images (n, c, h, w) in [0, 1] to scores (n,), higher is more natural.

    Args:
        shape: (c, h, w), as for ``ImageGenerator``.
        width: channels of the first maps, 1 to 1024.
        norm: ``instance`` (published), ``spectral``, or ``none``, which is a spectral one whose
            norms are in its weights (``settled``).

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, width: int = 64, norm: Norm = "instance"
    ) -> None:
        super().__init__()
        if norm not in ("instance", "spectral", "none"):
            raise InputError(f"norm is {norm!r}; expected instance, spectral or none")
        channels, halvings, base = _checked(shape, width)
        self.shape, self.width, self.norm = shape, width, norm
        widths = _widths(width, halvings)
        self.stages = nn.Sequential()
        for place, (before, after) in enumerate(zip((channels, *widths), widths, strict=False)):
            self.stages.append(_normed(nn.Conv2d(before, after, 5, 2, 2), norm))
            if norm == "instance" and place:
                self.stages.append(nn.InstanceNorm2d(after, affine=True))
            self.stages.append(nn.LeakyReLU(_SLOPE))
        self.last = _normed(nn.Conv2d(widths[-1], 1, base), norm)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (n, c, h, w) in [0, 1] to (n,)."""
        scores: Tensor = self.last(
            self.stages(images if self.norm == "instance" else 2 * images - 1)
        )
        return scores.flatten()

    def settled(self) -> ImageCritic:
        """A trained critic as it is used: a copy in eval mode, spectral norms in its weights."""
        norm: Norm = "none" if self.norm == "spectral" else self.norm
        with torch.random.fork_rng(devices=[]):
            plain = ImageCritic(self.shape, width=self.width, norm=norm)
        trained = copy.deepcopy(self).eval()  # in train mode each look at a weight changes its norm
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                owner, _, own = name.rpartition(".")
                parameter.copy_(getattr(trained.get_submodule(owner), own))
        return plain.to(next(self.parameters()).device).eval()


class ImageEncoder(nn.Module):
    """Images (n, c, h, w) in [0, 1] to the mean and the log-variance of z, (n, latent) each (ours).

    Args:
        shape: (c, h, w), as for ``ImageGenerator``.
        latent: length of a latent vector, 1 to 65,536.
        width: channels of the first maps, 1 to 1024.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(self, shape: tuple[int, int, int], *, latent: int = 100, width: int = 64) -> None:
        super().__init__()
        whole_number("latent", latent, 1, 65_536)
        channels, halvings, base = _checked(shape, width)
        widths = _widths(width, halvings)
        self.stages = nn.Sequential()
        for before, after in zip((channels, *widths), widths, strict=False):
            self.stages.append(nn.Conv2d(before, after, 5, 2, 2, bias=False))
            self.stages.extend((nn.BatchNorm2d(after), nn.LeakyReLU(_SLOPE)))
        self.last = nn.Linear(widths[-1] * base[0] * base[1], 2 * latent)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (n, c, h, w) in [0, 1] to two of (n, latent); the log-variance stays within ±10."""
        mean, log_variance = self.last(self.stages(2 * images - 1).flatten(1)).chunk(2, 1)
        return mean, log_variance.clamp(-_LARGEST_LOG_VARIANCE, _LARGEST_LOG_VARIANCE)


def plan(side: int) -> tuple[int, int]:
    """The base, of 4 to 7 pixels, and the doublings that make ``side``, or the fewest above it.

    >>> [plan(side) for side in (8, 16, 28, 32, 33, 64, 96)]
    [(4, 1), (4, 2), (7, 2), (4, 3), (5, 3), (4, 4), (6, 4)]
    """
    whole_number("size", side, 4, 4096)
    doublings = max(1, (side // _BASE).bit_length() - 1)
    return -(-side >> doublings), doublings


def _checked(shape: tuple[int, int, int], width: int) -> tuple[int, int, tuple[int, int]]:
    """The channels, how often maps are doubled, as the smaller side needs it, and their base."""
    if not isinstance(shape, tuple) or len(shape) != 3:
        raise InputError(
            f"the shape of the images is {shape!r}; expected (channels, height, width)"
        )
    whole_number("width", width, 1, 1024)
    channels = whole_number("channels", shape[0], 1, 64)
    doublings = min(plan(side)[1] for side in shape[1:])
    height, wide = (-(-side >> doublings) for side in shape[1:])
    return channels, doublings, (height, wide)


def _widths(width: int, doublings: int) -> list[int]:
    """Channels of the maps from the images inwards."""
    return [width * min(2**place, _WIDEST) for place in range(doublings)]


def _doubling(channels: int, made: int, *, bias: bool) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, made, 5, 2, padding=2, output_padding=1, bias=bias)


def _normed(convolution: nn.Conv2d, norm: Norm) -> nn.Module:
    return spectral_norm(convolution) if norm == "spectral" else convolution
