"""Latent vectors to feature maps of any size: what both generators of DHBE begin with.

The usual generator of data-free distillation, a small DCGAN (Radford et al. 2016, arXiv 1511.06434)
with nearest upsampling. With latent size l, width w, a base b×b and u doublings:

    Linear l → 2w·b·b, BatchNorm;  u times: nearest ×2, 3×3 convolution, BatchNorm, leaky ReLU (0.2)

The maps have 2w channels, after the last doubling w. Source: Yan et al. 2023, "DHBE: Data-free
Holistic Backdoor Erasing in Deep Neural Networks via Restricted Adversarial Distillation", arXiv
2306.08009, and the code released with it, which takes sides b·2^u only. Sides that are none come
from the next larger one and are cropped in the middle, and height and width may differ (ours).

Upsampling and convolution are computed as one (``UpsampledConvolution``), with equal results.
"""

from __future__ import annotations

from torch import Tensor, nn

from bezoar.errors import InputError
from bezoar.networks.trigger_generators import whole_number
from bezoar.networks.upsampled_convolution import UpsampledConvolution

_LARGEST_BASE = 9
SLOPE = 0.2  # of the leaky ReLUs


def plan(side: int, least: int = 5) -> tuple[int, int]:
    """The base b and the doublings u that make ``side`` pixels, or the fewest above it.

    Args:
        side: in pixels, 1 to 4096.
        least: the smallest base without doubling. Doubled bases are 5 to 9, as published.

    Raises:
        InputError: the side is out of its range.

    >>> [plan(side) for side in (8, 28, 32, 33, 224)]
    [(8, 0), (7, 2), (8, 2), (9, 2), (7, 5)]
    """
    whole_number("size", side, 1, 4096)
    doublings = 0
    while _divided(side, doublings) > _LARGEST_BASE:
        doublings += 1
    return max(least, _divided(side, doublings)), doublings


class LatentDecoder(nn.Module):
    """Latent vectors (n, latent) to maps (n, width, *size).

    Args:
        size: (height, width) in pixels, 1 to 4096 each. Both sides are doubled equally often: as
            the smaller one needs it, so that the larger one's base may be above 9.
        latent: length of a latent vector, 1 to 65,536.
        width: channels of the maps, 1 to 1024.
        least: the smallest base without doubling.
        convolution: without doublings, whether a 3×3 convolution, BatchNorm and leaky ReLU follow
            the first BatchNorm. Without them, which is published, the maps are linear in z.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self, size: tuple[int, int], *, latent: int, width: int, least: int, convolution: bool
    ) -> None:
        super().__init__()
        self.size = size
        self.latent = whole_number("latent", latent, 1, 65_536)
        whole_number("width", width, 1, 1024)
        for side in size:
            whole_number("size", side, 1, 4096)
        _, doublings = plan(min(size), least)
        self.base = tuple(max(least, _divided(side, doublings)) for side in size)
        wide = 2 * width if doublings or convolution else width
        self.linear = nn.Linear(latent, wide * self.base[0] * self.base[1])
        self.norm = nn.BatchNorm2d(wide)
        blocks = [
            _block(UpsampledConvolution(wide, width if last else wide))
            for last in [False] * (doublings - 1) + [True] * (doublings > 0)
        ]
        if convolution and not doublings:
            blocks.append(_block(nn.Conv2d(wide, width, 3, padding=1)))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, z: Tensor) -> Tensor:
        """Maps (n, latent) to (n, width, *size).

        Raises:
            InputError: ``z`` has another shape.
        """
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise InputError(
                f"the generator takes latent vectors of shape (n, {self.latent}) and got a tensor "
                f"of shape {tuple(z.shape)}; draw torch.randn(n, {self.latent})"
            )
        maps = self.blocks(self.norm(self.linear(z).unflatten(1, (-1, *self.base))))
        height, width = self.size
        top, left = (maps.shape[2] - height) // 2, (maps.shape[3] - width) // 2
        cropped: Tensor = maps[:, :, top : top + height, left : left + width]
        return cropped


def _divided(side: int, doublings: int) -> int:
    """The fewest pixels that become ``side`` or more after so many doublings."""
    return -(-side >> doublings)


def _block(convolution: nn.Conv2d) -> nn.Sequential:
    channels = convolution.out_channels
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.LeakyReLU(SLOPE))
