"""Which GPUs each of several processes on this machine sees."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence

from bezoar.errors import InputError


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    As in CUDA, the list ends before the first negative number; -1 alone hides them all.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        gpus = (gpu.strip() for gpu in named.split(","))
        seen = itertools.takewhile(lambda gpu: not gpu.startswith("-"), gpus)
        return tuple(gpu for gpu in seen if gpu)
    import torch  # which has its own way to count them without starting to use them

    return tuple(map(str, range(torch.cuda.device_count())))


def chooses_a_gpu(device: str | None) -> bool:
    """Whether that device is a GPU of this machine, and none by its number."""
    if device not in (None, "auto", "cuda"):
        return False
    import torch

    return torch.cuda.is_available()


def check_share(share: float) -> None:
    """Refuses a share of GPUs that cannot be given.

    Raises:
        InputError: it is negative, or more than one and not whole.
    """
    if not 0 <= share < math.inf or (share > 1 and share != int(share)):
        raise InputError(
            f"the share of a GPU is {share:g} (--gpus, or gpus_per_task); expected a share up to "
            "1, or a whole number"
        )


def capacity(gpus: Sequence[str], share: float) -> int:
    """How many processes with ``share`` of a GPU each fit on ``gpus``.

    >>> capacity(["0", "1"], 1), capacity(["0", "1"], 0.5), capacity(["0", "1", "2"], 2)
    (2, 4, 1)
    """
    if share >= 1:
        return len(gpus) // int(share)
    return len(gpus) * int(1 / share + 1e-9)


def gpu_environment(worker: int, gpus: Sequence[str], share: float) -> dict[str, str]:
    """The variables that show a process its GPUs and no others; none for a share of 0.

    Args:
        worker: the number of the process, from 0 and below ``capacity``.
        gpus: those that may be used.
        share: GPUs for each process; of a fraction, several processes share one.

    >>> [gpu_environment(w, ["4", "7"], 0.5)["CUDA_VISIBLE_DEVICES"] for w in range(4)]
    ['4', '7', '4', '7']
    >>> gpu_environment(1, ["0", "1", "2", "3"], 2)
    {'CUDA_VISIBLE_DEVICES': '2,3'}
    """
    if not share:
        return {}
    if share < 1:
        return {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]}
    count = int(share)
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[worker * count : (worker + 1) * count])}
