"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146).

WRN-d-k is a pre-activation ResNet with three stages of n basic blocks, d = 6n + 4, and widths
16k, 32k, 64k after a stem of 16 channels; no dropout here.
"""

from __future__ import annotations

from torch import nn

from bezoar.networks import networks
from bezoar.networks.initialisation import kaiming_normal
from bezoar.networks.preact_resnet import PreActResNet


def wide_resnet(depth: int, widen: int, num_classes: int, channels: int) -> PreActResNet:
    """WRN-``depth``-``widen`` with torch's own initial weights."""
    blocks = (depth - 4) // 6
    widths = (16 * widen, 32 * widen, 64 * widen)
    return PreActResNet(16, widths, (blocks,) * 3, num_classes, channels)


@networks.register("wrn-16-1")
def wrn_16_1(num_classes: int = 10, channels: int = 3) -> nn.Module:
    """Two blocks a stage, not widened: 16, 32, 64 channels (0.18 M parameters)."""
    return wide_resnet(16, 1, num_classes, channels)


@networks.register("wrn-16-2")
def wrn_16_2(num_classes: int = 10, channels: int = 3) -> nn.Module:
    """Two blocks a stage, twice as wide: 32, 64, 128 channels (0.7 M parameters)."""
    return wide_resnet(16, 2, num_classes, channels)


@networks.register("wrn-40-2")
def wrn_40_2(num_classes: int = 10, channels: int = 3) -> nn.Module:
    """Six blocks a stage, twice as wide: 32, 64, 128 channels (2.2 M parameters)."""
    # At depth 40 the sum of 18 branches is what the initial weights decide; the two networks of
    # depth 16 keep torch's, with which their committed results were made.
    return kaiming_normal(wide_resnet(40, 2, num_classes, channels))
