"""Synthetic images that a network's BatchNorm layers take for its training images (ours).

Each BatchNorm remembers the mean mu and the variance r of what came to it in training, channel by
channel. A batch of synthetic images arrives with m and v. The distance is the Kullback–Leibler
divergence of the batch's normal distribution from the remembered one:

    KL(N(m, v) || N(mu, r)) = 1/2 (v/r + (m - mu)²/r - 1 - ln(v/r))

averaged over the channels of a layer, then over the layers; v and r include the layer's eps, with
which the layer itself divides, so a dead channel (r = 0) costs nothing while it stays dead.

The idea, to compare with remembered statistics, is that of Yin et al. 2020, DeepInversion, arXiv
1912.08795, who add norms of m - mu and v - r. Those grow with the activations and their number; a
divergence has no unit, so that one weight serves many networks.

Assumes that the statistics are those of the training images: clean ones, but for the poisoned
share. Known failures: without such layers there is nothing to compare; only two moments of each
channel are, so patterns that no image has can pass; a channel that hardly varied in training
(r near eps) dominates as soon as it varies.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from bezoar.errors import InputError


class StatisticsPrior:
    """Reads, while active, what comes to each BatchNorm of a network in a forward pass.

    The network should be in eval mode: in training mode a layer has already moved its statistics
    towards the batch when the distance is asked for.

    Args:
        network: any module. It has hooks inside the ``with`` block, and none after it.

    >>> network = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval()
    >>> with StatisticsPrior(network) as prior:
    ...     _ = network(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    ...     bool(prior.distance() < 0.001)
    True
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._norms = running_norms(network)
        self._seen: list[tuple[_BatchNorm, Tensor, Tensor]] | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compare with: no BatchNorm that remembers."""
        return not self._norms

    def __enter__(self) -> Self:
        # The network's own hook comes first, also where the network is itself a BatchNorm.
        self._handles.append(self._network.register_forward_pre_hook(self._forget))
        for norm in self._norms:
            self._handles.append(norm.register_forward_pre_hook(self._read, with_kwargs=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen = None  # with it goes the graph of the last pass

    def distance(self) -> Tensor:
        """The mean divergence in the last forward pass in the block: a scalar in nats, 0 or more.

        Every run of a layer counts, where one runs several times. Gradients flow back into the
        network's input, not into the running statistics. 0 where no BatchNorm ran.

        Raises:
            RuntimeError: no forward pass was made inside the block.
        """
        if self._seen is None and not self.empty:
            raise RuntimeError("the distance is that of a forward pass inside the block; make one")
        if not self._seen:
            devices = [parameter.device for parameter in self._network.parameters()]
            return torch.zeros((), device=devices[0] if devices else None)
        means, variances, old_means, old_variances = [], [], [], []
        for norm, mean, variance in self._seen:
            assert norm.running_mean is not None  # noqa: S101 (running_norms chose it)
            assert norm.running_var is not None  # noqa: S101 (the two come together)
            means.append(mean)
            variances.append(variance + norm.eps)
            old_means.append(norm.running_mean.to(mean))
            old_variances.append(norm.running_var.to(mean) + norm.eps)
        # All layers at once: a dozen small operations for each would cost a GPU a forward pass.
        divergences = divergence(
            torch.cat(means),
            torch.cat(variances),
            torch.cat(old_means).detach(),
            torch.cat(old_variances).detach(),
        )
        layers = torch.split(divergences, [len(mean) for mean in means])
        return torch.stack([layer.mean() for layer in layers]).mean()

    def _forget(self, _network: nn.Module, _args: Any) -> None:
        self._seen = []

    def _read(self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._seen is None:  # a part of the network was called on its own
            return
        assert isinstance(norm, _BatchNorm)  # noqa: S101 (hooks are on nothing else)
        self._seen.append((norm, *moments(args[0] if args else kwargs["input"])))


def divergence(mean: Tensor, variance: Tensor, old_mean: Tensor, old_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(old_mean, old_variance)) in nats, element by element.

    >>> divergence(*(torch.tensor([value]) for value in (1.0, 2.0, 0.0, 2.0)))
    tensor([0.2500])
    """
    ratio = variance / old_variance
    return 0.5 * (ratio + (mean - old_mean).square() / old_variance - 1 - ratio.log())


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance (c,) of values (n, c, ...), in ``float32`` at least.

    Raises:
        InputError: there is only one number a channel, which has no variance.
    """
    if values.numel() < 2 * values.shape[1]:
        raise InputError(
            f"a BatchNorm was given {tuple(values.shape)}, a single number for each channel; its "
            "variance takes more: use batches of two images or more"
        )
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    mean, variance = _Moments.apply(wide)  # type: ignore[no-untyped-call]  # torch's stub
    return mean, variance


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm of ``network``, each once."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def running_norms(network: nn.Module) -> list[_BatchNorm]:
    """Those that have running statistics."""
    return [norm for norm in batch_norms(network) if norm.running_mean is not None]


class _Moments(torch.autograd.Function):
    """Both moments, and their gradient in one pass; 4 to 5 times as fast as var_mean on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = [0, *range(2, x.ndim)]
        mean = x.mean(axes)
        centred = x - _as_channels(mean, x)
        variance = centred.square_().sum(axes) / (x.numel() // x.shape[1] - 1)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        of_mean, of_variance = gradients
        count = x.numel() // x.shape[1]
        # d mean / dx = 1/N and d variance / dx = 2 (x - mean) / (N - 1): one affine map a channel.
        slope = 2 / (count - 1) * of_variance
        start = of_mean / count - slope * mean
        return torch.addcmul(_as_channels(start, x), x, _as_channels(slope, x))


def _as_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *([1] * (x.ndim - 2)))
