"""The tensors of a network by name: those that it holds, and those of its state dict."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def named_tensors(network: nn.Module, *, every_name: bool = False) -> dict[str, Tensor]:
    """Parameters and buffers themselves, whatever a state dict makes of them.

    Args:
        network: whose.
        every_name: a tensor that several modules hold has all its names, not the first alone.
    """
    once = not every_name
    parameters = network.named_parameters(remove_duplicate=once)
    return {**dict(parameters), **dict(network.named_buffers(remove_duplicate=once))}


def saved_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict; the extra state of modules can be anything else."""
    state = network.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def copied_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers, for ``put_back``."""
    return {name: tensor.detach().clone() for name, tensor in named_tensors(network).items()}


def put_back(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Writes the values of ``copied_tensors`` into the network, or into a copy of it.

    A state dict that a user overrides need not be one that loads again.
    """
    with torch.no_grad():
        for name, tensor in named_tensors(network).items():
            tensor.copy_(tensors[name])
