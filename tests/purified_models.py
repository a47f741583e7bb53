"""A purified network made by hand, for the tests of files, exports and commands."""

import torch
from torch import nn

from bezoar.networks.generators import drawn
from bezoar.networks.purified import Purified
from bezoar.networks.trigger_generators import ResidualGenerator


def purifier(shape=(1, 8, 8), *, strength=0.05, seed=0) -> ResidualGenerator:
    """A residual generator of which every part does something, by about ``strength``."""
    generator = drawn(lambda: ResidualGenerator(*shape, features=4, depth=2, planes=2), seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (generator.pattern, *generator.unet.last.parameters()):
            tensor.copy_(strength * torch.randn(tensor.shape, generator=draw))
    return generator


def purified(network: nn.Module, shape=(1, 8, 8), **arguments) -> Purified:
    """``network`` behind such a purifier, with the normalisation of the digits models."""
    return Purified(network, purifier(shape), **{"mean": 0.3, "std": 0.35, **arguments}).eval()
