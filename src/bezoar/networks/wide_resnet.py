"""Wide residual networks (Zagoruyko and Komodakis 2016): pre-activation, depth 6n + 4."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.networks import networks


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each convolution; the shortcut sees the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.project = None
        if stride != 1 or inputs != outputs:
            self.project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        h = F.relu(self.bn1(x))
        shortcut = x if self.project is None else self.project(h)
        h = self.conv2(F.relu(self.bn2(self.conv1(h))))
        return h + shortcut  # type: ignore[no-any-return]  # nn.Module calls are Any


class WideResNet(nn.Module):
    """Three stages of ``blocks`` pre-activation blocks, a final norm, global average pooling."""

    def __init__(self, blocks: int, widen: int, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        stages: list[nn.Module] = []
        inputs = 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for block in range(blocks):
                stages.append(PreActBlock(inputs, width, 2 if stage and not block else 1))
                inputs = width
        self.layers = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, channels, h, w) to logits (n, num_classes)."""
        h = F.relu(self.bn(self.layers(self.conv1(x))))
        return self.fc(h.mean((2, 3)))  # type: ignore[no-any-return]  # nn.Module calls are Any


@networks.register("wrn-16-1")
def wrn_16_1(num_classes: int = 10, channels: int = 3) -> nn.Module:
    """Two blocks a stage, not widened: 16, 32, 64 channels (0.18 M parameters)."""
    return WideResNet(2, 1, num_classes, channels)


@networks.register("wrn-16-2")
def wrn_16_2(num_classes: int = 10, channels: int = 3) -> nn.Module:
    """Two blocks a stage, twice as wide: 32, 64, 128 channels (0.7 M parameters)."""
    return WideResNet(2, 2, num_classes, channels)
