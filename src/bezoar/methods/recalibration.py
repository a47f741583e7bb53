"""BatchNorm statistics anew, from given batches: plain averages in one pass, no training.

Each layer's mean becomes the average of the batches' means, its variance the average of their
unbiased variances: mu = 1/K sum_k m_k and r = 1/K sum_k v_k, while the layers normalise each batch
by its own statistics. PyTorch's BatchNorm does so with ``momentum=None``, and Izmailov et al. 2018
(arXiv 1803.05407) recompute statistics by a pass over the data after averaging weights.

In DHBE (ours): the student of the released code (Yan et al. 2023, arXiv 2306.08009) ends with
statistics of which about half came from stamped images; a few clean synthetic batches replace them.

Known failures: they are statistics of the given batches. Synthetic images are not the user's, and
what was better is to be measured where clean images allow. The mean of variances leaves out how
far the batches' means lie apart, so batches should be large and alike.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bezoar.errors import InputError
from bezoar.methods.statistics_prior import running_norms


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replaces the running statistics of every BatchNorm that the batches reach, in place.

    Everything but those layers runs in eval mode (dropout is off); training flags and momentum are
    afterwards as before. After an exception, and in layers that no batch reached, the old
    statistics stand. ``num_batches_tracked`` becomes the number of batches.

    Args:
        network: any module; one without BatchNorm stays as it is, and no batch is taken.
        batches: normalised images (n, c, h, w), as the network takes them, on its device. Each
            batch weighs the same, whatever its size.

    Returns:
        How many layers have new statistics.

    Raises:
        InputError: there is no batch.
    """
    norms = running_norms(network)
    if not norms:
        return 0
    flags = [(module, module.training) for module in network.modules()]
    momenta = [norm.momentum for norm in norms]
    before = [{name: t.clone() for name, t in norm.named_buffers()} for norm in norms]
    finished = False
    try:
        network.eval()
        for norm in norms:
            norm.train()
            norm.momentum = None  # the average of all batches since the reset
            norm.reset_running_stats()
        count = 0
        with torch.no_grad():
            for count, batch in enumerate(batches, 1):  # noqa: B007 (counted, to see if any came)
                network(batch)
        if not count:
            raise InputError(
                "no batch was given to take BatchNorm statistics from; give at least one"
            )
        finished = True
    finally:
        for module, training in flags:
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        reached = [finished and bool(norm.num_batches_tracked) for norm in norms]
        for norm, old, is_new in zip(norms, before, reached, strict=True):
            if not is_new:
                for name, buffer in norm.named_buffers():
                    buffer.copy_(old[name])
    return sum(reached)
