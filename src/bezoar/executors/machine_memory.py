"""How much memory there is for this process and those it starts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_GROUPS = tuple(
    Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes")
)  # of a container: version 2 and version 1 of Linux's control groups


def machine_memory() -> int | None:
    """Bytes that the machine has, or the container where that is less; None if nobody says."""
    limits = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max", which is no limit
            limits.append(int(path.read_text()))
    return min(limits, default=None)
