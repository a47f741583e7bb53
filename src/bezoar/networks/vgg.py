"""A small VGG-like network whose features are flattened without pooling before the head."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from bezoar.networks import networks

Activation = Literal["relu", "elu"]


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
