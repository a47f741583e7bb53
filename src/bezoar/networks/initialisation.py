"""Weights to start training from, where torch's own are not the ones that the papers use.

He et al. 2015, "Delving Deep into Rectifiers" (arXiv:1502.01852), draw the weights of a layer
followed by ReLU from N(0, 2 / fan). With the fan of the inputs the size of the activations stays
the same from layer to layer, with the fan of the outputs that of the gradients; the paper finds
either one enough. torch's default for convolutions is uniform with a sixth of this variance.
"""

from __future__ import annotations

from typing import Literal, TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def kaiming_normal(network: Network, fan: Literal["fan_in", "fan_out"] = "fan_out") -> Network:
    """Redraws all convolutions of a network from N(0, 2 / fan), with zero biases; returns it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
