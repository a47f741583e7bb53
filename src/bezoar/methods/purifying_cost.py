"""What a purifier in front of a network costs: milliseconds per image, with it and without.

Runs of both are interleaved, so that whatever else the machine does meets both alike, and medians
are taken. One run of each, which finds the fastest kernels and fills caches, is left out.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.networks.purified import Purified

RUNS = 9


def measure(
    before: Classifier, after: Classifier, images: Tensor, *, runs: int = RUNS
) -> dict[str, Any]:
    """Times both classifiers on the same batch, in eval mode.

    Args:
        before: without the purifier.
        after: with it; its network is a ``Purified``.
        images: one batch (n, c, h, w) in [0, 1].
        runs: timed runs of each.

    Returns:
        "purifier parameters" (all that were put in front), "parameters" (of the network behind),
        "milliseconds per image", "milliseconds per image without", "batch".

    Raises:
        InputError: there is no purifier, no image, or no run.
    """
    if not isinstance(after.network, Purified):
        raise InputError(f"a {type(after.network).__name__} has no purifier; expected a Purified")
    if not len(images) or runs < 1:
        raise InputError(f"{len(images)} images and {runs} runs were given; expected at least one")
    images = images.to(after.device)
    seconds: dict[Classifier, list[float]] = {before: [], after: []}
    with before.evaluating(), after.evaluating(), torch.inference_mode():
        for run in range(runs + 1):
            for classifier, taken in seconds.items():
                spent = _seconds(classifier, images)
                if run:
                    taken.append(spent)
    without, with_it = (1000 * statistics.median(taken) / len(images) for taken in seconds.values())
    return {
        "purifier parameters": sum(p.numel() for p in after.network.purifier.parameters()),
        "parameters": sum(p.numel() for p in after.network.network.parameters()),
        "milliseconds per image": with_it,
        "milliseconds per image without": without,
        "batch": len(images),
    }


def _seconds(classifier: Classifier, images: Tensor) -> float:
    _wait_for(images.device)
    started = time.perf_counter()
    classifier(images)
    _wait_for(images.device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":  # work is only queued there
        torch.cuda.synchronize(device)
