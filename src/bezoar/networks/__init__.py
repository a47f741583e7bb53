"""Small networks of our own, as victims for tests, demos and benchmarks: ``bezoar:NAME``.

Every entry is a function ``(num_classes, channels) -> nn.Module`` with keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bezoar.errors import InputError
from bezoar.registry import Registry

networks: Registry[Callable[..., nn.Module]] = Registry("network")


def build(name: str, **arguments: Any) -> nn.Module:
    """Returns a new network with random weights (torch's global generator draws them).

    >>> build("resnet-8", num_classes=10)(__import__("torch").zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    try:
        return networks.get(name)(**arguments)
    except TypeError as error:
        raise InputError(
            f"network 'bezoar:{name}' does not take these arguments: {error}"
        ) from None


def names() -> list[str]:
    """The names that ``build`` knows."""
    return networks.names()


from bezoar.networks import (  # noqa: E402, F401 (they register)
    mobilenet,
    plain_cnn,
    preact_resnet,
    resnet,
    small_cnn,
    torchvision_resnet,
    vgg,
    vision_transformer,
    wide_resnet,
)
