"""torchvision's MobileNetV2 for small images (Sandler et al. 2018, arXiv:1801.04381).

Inverted residuals: a 1x1 convolution widens by t = 6, a depthwise 3x3 one filters, a linear 1x1 one
narrows again. The paper's network divides an image by 32; here the stem and the stage of 24
channels keep their size, so that 32x32 images end as 4x4 maps, as in the usual versions for
CIFAR-10 (the paper has none). Channels, expansions and repeats are the paper's (table 2).

Names and shapes in the state dict are torchvision's. Known limit: depthwise convolutions are slow
on CPUs for their size.
"""

from __future__ import annotations

from torch import nn

from bezoar.networks import networks
from bezoar.networks.vision import import_torchvision

# expansion t, channels c, repeats n, stride s of the first (table 2, with our strides)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),  # the paper's stride: 2
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@networks.register("mobilenet-v2")
def mobilenet_v2(
    num_classes: int = 10, channels: int = 3, width: float = 1.0, dropout: float = 0.2
) -> nn.Module:
    """The small-image MobileNetV2 (2.2 M parameters at width 1).

    Args:
        num_classes: logits.
        channels: channels of the images.
        width: multiplies all channels but, below 1, the last 1280 (they stay, as in the paper);
            channels are rounded to multiples of 8.
        dropout: before the head, while training (torchvision's default).

    Raises:
        InputError: torchvision is not installed.
    """
    network = import_torchvision().models.MobileNetV2(
        num_classes=num_classes,
        width_mult=width,
        inverted_residual_setting=[list(stage) for stage in STAGES],
        dropout=dropout,
    )
    stem = network.features[0]
    stem[0] = nn.Conv2d(channels, stem[0].out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(stem[0].weight, mode="fan_out")
    return network  # type: ignore[no-any-return]  # torchvision has no types
