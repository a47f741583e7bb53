"""Several batches in one forward, each normalised by its own statistics.

BatchNorm in training couples what shares a batch. Where two kinds of images (clean and patched
ones, say) go through a network in one forward, its statistics would mix them. Inside
``grouped_statistics(network, g)`` each BatchNorm takes its batch as g equal consecutive groups:

    y_j = BN(x_j),  j = 1 … g,      each with the mean and the variance of x_j alone

so that outputs, gradients and running statistics are those of g successive forwards, with fewer and
larger calls (ours, exact). It saves what calls cost; on a CPU, where they cost little, separate
forwards are as fast or faster. Other layers stay as they are: dropout draws once for the whole
batch, and an InstanceNorm with running statistics, which is rare, updates them once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bezoar.errors import InputError

_NORM = nn.modules.batchnorm._BatchNorm


@contextlib.contextmanager
def grouped_statistics(
    network: nn.Module, groups: int, *, updating: Sequence[int] | None = None
) -> Iterator[None]:
    """Inside the block each BatchNorm of ``network`` normalises every group on its own.

    It concerns the norms that use the statistics of their batch at that moment: those in train mode
    and those without running statistics. Their running statistics are updated group by group, as by
    successive forwards. Afterwards, also after an exception, every module is as it was.

    Args:
        network: any network.
        groups: how many equal consecutive parts a batch has, 1 or more.
        updating: which groups, from 0, change the running statistics; by default all of them.

    Raises:
        InputError: ``groups`` or ``updating`` is out of range; in the forward: a batch that cannot
            be divided by ``groups``.

    >>> norm = nn.BatchNorm1d(1, affine=False)
    >>> with grouped_statistics(norm, 2, updating=(0,)):
    ...     norm(torch.tensor([[1.0], [3.0], [10.0], [30.0]])).flatten().round().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    >>> norm.running_mean.tolist()  # 0.9 · 0 + 0.1 · 2
    [0.20000000298023224]
    """
    if type(groups) is not int or groups < 1:
        raise InputError(f"groups is {groups!r}; expected a whole number of 1 or more")
    chosen = range(groups) if updating is None else tuple(updating)
    if any(type(index) is not int or not 0 <= index < groups for index in chosen):
        raise InputError(
            f"updating is {updating!r}; expected numbers of groups, from 0 to {groups - 1}"
        )
    flags = tuple(index in chosen for index in range(groups))
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        if flags != (True,):  # one group that updates is what a norm does anyway
            for module in network.modules():
                if isinstance(module, _NORM):
                    replaced.append((module, vars(module).get("forward")))
                    vars(module)["forward"] = _grouped(module, flags)
        yield
    finally:
        for module, before in replaced:
            if before is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = before


def _grouped(norm: _NORM, updates: tuple[bool, ...]) -> Callable[[Tensor], Tensor]:
    """The norm's forward, group by group."""
    whole = norm.forward

    def forward(x: Tensor) -> Tensor:
        if not norm.training and norm.running_mean is not None:
            return whole(x)
        if x.shape[0] % len(updates):
            raise InputError(
                f"a batch of {x.shape[0]} cannot be divided into {len(updates)} equal groups; "
                f"give a multiple of {len(updates)}"
            )
        # Slices of a batch lie together in memory, so this costs one copy each way; to fold the
        # groups into the channels would cost two, of single values.
        parts = []
        for part, update in zip(x.chunk(len(updates)), updates, strict=True):
            with contextlib.nullcontext() if update else _no_memory(norm):
                parts.append(whole(part))
        return torch.cat(parts)

    return forward


@contextlib.contextmanager
def _no_memory(norm: _NORM) -> Iterator[None]:
    """Inside the block the norm leaves its running statistics alone.

    The flag rather than a call of our own: norms that do more than BatchNorm still do it.
    """
    before = norm.track_running_stats
    norm.track_running_stats = False
    try:
        yield
    finally:
        norm.track_running_stats = before
