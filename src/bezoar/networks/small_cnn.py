"""Three convolutions for very small images, such as the 8x8 digits of the demo."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.networks import networks


class SmallCNN(nn.Module):
    """Convolution, norm, ReLU, three times; the second one halves the map; average pooling."""

    def __init__(self, width: int, num_classes: int, channels: int, norm: bool) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 2 * width)
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, 2 if i == 1 else 1, 1, bias=not norm)
            for i in range(3)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(outputs) if norm else nn.Identity() for outputs in widths[1:]
        )
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, channels, h, w) to logits (n, num_classes)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]  # nn.Module calls are Any


@networks.register("small-cnn")
def small_cnn(
    num_classes: int = 10, channels: int = 1, width: int = 32, norm: bool = True
) -> nn.Module:
    """The demo's network: 64 features at width 32 (57 k parameters), with BatchNorm or without."""
    return SmallCNN(width, num_classes, channels, norm)
