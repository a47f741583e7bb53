"""ResNets for small images (He et al. 2016, arXiv:1512.03385, section 4.2): depth 6n + 2.

Three stages of n basic blocks, global average pooling. Shortcuts that change the shape are
projections (option B; the paper's CIFAR-10 networks pad with zeros, option A). ``gn-resnet-8``
has GroupNorm (Wu and He 2018, arXiv:1803.08494) in every place of BatchNorm.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.networks import networks

Norm = Callable[[int], nn.Module]  # the norm of so many channels

GROUP = 16  # channels in one group of GroupNorm (ours)


def group_norm(channels: int) -> nn.Module:
    """GroupNorm in groups of 16 channels, or the largest power of two below that divides them.

    The paper's default, 32 groups, would be one channel a group in the first stage.
    """
    return nn.GroupNorm(channels // math.gcd(channels, GROUP), channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a projection shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of ``blocks`` basic blocks each."""

    def __init__(
        self,
        blocks: int,
        widths: tuple[int, int, int],
        num_classes: int,
        channels: int,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = norm(widths[0])
        stages: list[nn.Module] = []
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(BasicBlock(inputs, width, 2 if stage and not block else 1, norm))
                inputs = width
        self.layers = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, channels, h, w) to logits (n, num_classes)."""
        h = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.fc(h.mean((2, 3)))  # type: ignore[no-any-return]  # nn.Module calls are Any


@networks.register("resnet-8")
def resnet8(num_classes: int = 10, channels: int = 3, width: int = 32) -> nn.Module:
    """One block a stage: the narrow network for CPUs (0.3 M parameters at width 32)."""
    return ResNet(1, (width, 2 * width, 4 * width), num_classes, channels)


@networks.register("gn-resnet-8")
def gn_resnet8(num_classes: int = 10, channels: int = 3, width: int = 32) -> nn.Module:
    """``resnet-8`` with GroupNorm: no statistics of the training set in its state."""
    return ResNet(1, (width, 2 * width, 4 * width), num_classes, channels, group_norm)


@networks.register("resnet-20")
def resnet20(num_classes: int = 10, channels: int = 3, width: int = 16) -> nn.Module:
    """Three blocks a stage (0.27 M parameters)."""
    return ResNet(3, (width, 2 * width, 4 * width), num_classes, channels)
