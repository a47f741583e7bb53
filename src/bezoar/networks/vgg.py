"""VGGs for small images (Simonyan and Zisserman 2015, arXiv:1409.1556).

``vgg-16-bn`` and ``vgg-19-bn`` have the paper's convolutions (table 1, columns D and E) with
BatchNorm after each, as is usual now, and one linear head on the pooled features instead of the
paper's three linear layers, which need images of 224x224: the field's convention for CIFAR-10.
Their ``features`` have the names and shapes of torchvision's. ``flat-vgg`` is small, and its
features are flattened without pooling before the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from bezoar.networks import networks
from bezoar.networks.initialisation import kaiming_normal

Activation = Literal["relu", "elu"]


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each closed by a max pool; global average pooling.

    Args:
        convolutions: how many each stage has.
        width: channels of the first stage; they double up to eight times this.
        num_classes: logits.
        channels: channels of the images, which are 32x32 or larger.
    """

    def __init__(
        self, convolutions: Sequence[int], width: int, num_classes: int, channels: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for stage, count in enumerate(convolutions):
            outputs = width * min(2**stage, 8)
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
                layers.append(nn.ReLU())
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, channels, h, w) to logits (n, num_classes)."""
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


@networks.register("vgg-16-bn")
def vgg16_bn(num_classes: int = 10, channels: int = 3, width: int = 64) -> nn.Module:
    """Thirteen convolutions of 64 to 512 channels (14.7 M parameters)."""
    return kaiming_normal(VGG((2, 2, 3, 3, 3), width, num_classes, channels))


@networks.register("vgg-19-bn")
def vgg19_bn(num_classes: int = 10, channels: int = 3, width: int = 64) -> nn.Module:
    """Sixteen convolutions of 64 to 512 channels (20.0 M parameters)."""
    return kaiming_normal(VGG((2, 2, 4, 4, 4), width, num_classes, channels))


class FlatVGG(nn.Module):
    """Six 3x3 convolutions in three stages; the head sees every position of the last map."""

    def __init__(
        self,
        width: int,
        num_classes: int,
        channels: int,
        input_size: int,
        dropout: float,
        activation: Activation,
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        inputs = channels
        for outputs in (width, 2 * width, 4 * width):
            for _ in range(2):
                stages += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
                stages.append(nn.ELU() if activation == "elu" else nn.ReLU())
                inputs = outputs
            stages += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        self.features = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs * (input_size // 8) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, channels, input_size, input_size) to logits (n, num_classes)."""
        return self.fc(self.features(x).flatten(1))  # type: ignore[no-any-return]  # as above


@networks.register("flat-vgg")
def flat_vgg(
    num_classes: int = 10,
    channels: int = 3,
    width: int = 32,
    input_size: int = 32,
    dropout: float = 0.3,
    activation: Activation = "relu",
) -> nn.Module:
    """The flattened VGG (0.3 M parameters at width 32)."""
    return FlatVGG(width, num_classes, channels, input_size, dropout, activation)
