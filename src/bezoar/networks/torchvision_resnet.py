"""torchvision's ResNets with a stem for small images (He et al. 2016, arXiv:1512.03385).

The ImageNet stem (7x7 convolution of stride 2 and a max pool) would leave 8x8 positions of a 32x32
image; a 3x3 convolution of stride 1 and no pool keep all of them. This is the field's convention
for CIFAR-10, not the paper's, whose networks for CIFAR-10 are those of ``resnet.py``.

Names in the state dict are torchvision's; all shapes but those of ``conv1`` and ``fc`` are, too.
The stride of a bottleneck sits in its 3x3 convolution ("ResNet v1.5", as torchvision has it).
Initial weights are torchvision's: convolutions N(0, 2 / fan_out).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from bezoar.networks import networks
from bezoar.networks.vision import import_torchvision


@networks.register("resnet-18")
def resnet18(num_classes: int = 10, channels: int = 3) -> nn.Module:
    """Two basic blocks a stage: 64, 128, 256, 512 channels (11.2 M parameters).

    Raises:
        InputError: torchvision is not installed.
    """
    return _for_small_images(
        import_torchvision().models.resnet18(num_classes=num_classes), channels
    )


@networks.register("resnet-50")
def resnet50(num_classes: int = 10, channels: int = 3) -> nn.Module:
    """Three, four, six and three bottlenecks: 256 to 2048 channels (23.5 M parameters).

    Raises:
        InputError: torchvision is not installed.
    """
    return _for_small_images(
        import_torchvision().models.resnet50(num_classes=num_classes), channels
    )


def _for_small_images(network: Any, channels: int) -> nn.Module:
    network.conv1 = nn.Conv2d(channels, network.conv1.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network  # type: ignore[no-any-return]  # torchvision has no types
