"""DeepInversion's distance of a batch from the statistics that BatchNorms remember: a sum of norms.

    D = sum_layers |m - mu|_2 + |v - r|_2

with m and v the mean and the biased variance of what comes to a layer, channel by channel, mu and r
those that it remembers. Source: Yin et al. 2020, arXiv 1912.08795, and its script for CIFAR-10
(NVlabs/DeepInversion), which reads two-dimensional BatchNorms; here all kinds are read, and a layer
that runs twice counts twice.

Assumes and fails as ``statistics_prior`` does; besides, the norms grow with the activations and the
number of channels, so that a weight suits one network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bezoar.methods.statistics_prior import StatisticsPrior


class StatisticsNorms(StatisticsPrior):
    """Reads, while active, what comes to each BatchNorm, as ``StatisticsPrior`` does."""

    def distance(self) -> Tensor:
        """The distance D of the last forward pass in the block: a scalar, 0 where none ran."""
        terms = [
            torch.linalg.vector_norm(variance - norm.running_var.to(mean))
            + torch.linalg.vector_norm(mean - norm.running_mean.to(mean))
            for norm, mean, variance in self._seen or ()
            if norm.running_var is not None and norm.running_mean is not None
        ]
        return torch.stack(terms).sum() if terms else super().distance()

    def _read(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super()._read(norm, args, kwargs)
        if self._seen:
            layer, mean, variance = self._seen[-1]
            numbers = args[0] if args else kwargs["input"]
            count = numbers.numel() // numbers.shape[1]
            self._seen[-1] = (layer, mean, variance * ((count - 1) / count))
