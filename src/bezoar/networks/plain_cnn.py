"""A plain CNN without normalisation and without shortcuts (ours), for 32x32 images.

It is the network for methods that must not count on norms: no BatchNorm statistics, no scales to
mask, every convolution with a bias. Depth, widths and strides are those of ``resnet-8``.

Without norms the first weights decide whether it trains at all. They are N(0, 2 / fan_in) of He et
al. 2015 (arXiv:1502.01852, equation 10), which keeps the mean square of the activations from layer
to layer; torch's own divide it by about six at each convolution, and SGD then stands still.

Known limit: it wants a learning rate several times smaller than the networks with norms (of SGD
with momentum 0.9, some 0.03 in place of 0.1), and learns more slowly than they do.
"""

from __future__ import annotations

from torch import Tensor, nn

from bezoar.networks import networks
from bezoar.networks.initialisation import kaiming_normal


class PlainCNN(nn.Module):
    """Seven 3x3 convolutions with biases and ReLU in three stages; global average pooling."""

    def __init__(self, width: int, num_classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for stage, outputs in enumerate((width, width, 2 * width, 4 * width)):
            for block in range(2 if stage else 1):
                stride = 2 if stage > 1 and not block else 1
                layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU()]
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, channels, h, w) to logits (n, num_classes)."""
        return self.fc(self.layers(x).mean((2, 3)))  # type: ignore[no-any-return]  # nn.Module


@networks.register("plain-cnn")
def plain_cnn(num_classes: int = 10, channels: int = 3, width: int = 32) -> nn.Module:
    """The depth and the widths of ``resnet-8`` (0.3 M parameters at width 32)."""
    return kaiming_normal(PlainCNN(width, num_classes, channels), "fan_in")
