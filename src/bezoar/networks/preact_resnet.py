"""Pre-activation ResNets (He et al. 2016, "Identity Mappings", arXiv:1603.05027).

A block adds ``conv(relu(bn(conv(relu(bn(x))))))`` to its input, and nothing follows the sum, so
that the shortcut from the first block to the last is the identity wherever the shape allows. A
norm and a ReLU follow the last block, as in the paper.

The paper's networks for small images have three stages (depth 9n + 2, bottlenecks). Depths 18 and
34 take their four stages and their widths from the ImageNet ResNets (arXiv:1512.03385), with a
3x3 convolution of stride 1 as stem: the field's convention for CIFAR-10, not the paper's. Where the
shape changes, the shortcut projects the activated input, with a 1x1 convolution and no norm.
Convolutions start from N(0, 2 / fan_out) (ours for the choice of the fan).

Known difference: many public versions for CIFAR-10 leave the last norm and ReLU out, against the
paper; ``final_norm=False`` builds those. Names in the state dict are our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.networks import networks
from bezoar.networks.initialisation import kaiming_normal


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each convolution; a projection sees the activated input."""

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


class PreActResNet(nn.Module):
    """A 3x3 stem, stages of pre-activation blocks, a final norm, global average pooling.

    Args:
        stem: channels after the first convolution.
        widths: channels of each stage; every stage but the first halves the map.
        blocks: blocks of each stage.
        num_classes: logits.
        channels: channels of the images.
        final_norm: BatchNorm and ReLU after the last block, as in the paper.
    """

    def __init__(
        self,
        stem: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        num_classes: int,
        channels: int,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        inputs = stem
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                layers.append(PreActBlock(inputs, width, 2 if stage and not block else 1))
                inputs = width
        self.layers = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(inputs) if final_norm else None
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, channels, h, w) to logits (n, num_classes)."""
        h = self.layers(self.conv1(x))
        if self.bn is not None:
            h = F.relu(self.bn(h))
        return self.fc(h.mean((2, 3)))  # type: ignore[no-any-return]  # nn.Module calls are Any


@networks.register("preact-resnet-18")
def preact_resnet18(
    num_classes: int = 10, channels: int = 3, width: int = 64, final_norm: bool = True
) -> nn.Module:
    """Two blocks a stage: 64, 128, 256, 512 channels (11.2 M parameters)."""
    return _four_stages((2, 2, 2, 2), num_classes, channels, width, final_norm)


@networks.register("preact-resnet-34")
def preact_resnet34(
    num_classes: int = 10, channels: int = 3, width: int = 64, final_norm: bool = True
) -> nn.Module:
    """Three, four, six and three blocks: 64, 128, 256, 512 channels (21.3 M parameters)."""
    return _four_stages((3, 4, 6, 3), num_classes, channels, width, final_norm)


def _four_stages(
    blocks: Sequence[int], num_classes: int, channels: int, width: int, final_norm: bool
) -> nn.Module:
    widths = (width, 2 * width, 4 * width, 8 * width)
    return kaiming_normal(PreActResNet(width, widths, blocks, num_classes, channels, final_norm))
