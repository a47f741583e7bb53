"""The most memory that a piece of work took, alone: also in a process that has done other work."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to what is resident now


@dataclass
class Peak:
    """Filled when the block ends.

    Attributes:
        bytes: the most at any moment in the block.
        of: ``GPU`` is what torch had allocated there, ``process`` all resident memory of the
            process, interpreter and images included, ``process so far`` the same where the system
            cannot tell the block from what was before it.
    """

    bytes: int = 0
    of: str = ""


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measures what the block takes, on a GPU there, else in the process."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield peak
        finally:
            peak.bytes, peak.of = torch.cuda.max_memory_allocated(device), "GPU"
        return
    alone = _reset()
    try:
        yield peak
    finally:
        peak.bytes, peak.of = _peak(), "process" if alone else "process so far"


def _reset() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _peak() -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        line = next(x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
