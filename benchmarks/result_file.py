"""The head of a result file: what was measured, by which command, with which versions, where.

Every measuring script begins its record with it, and joins the figures with ``|``;
``make_measured.py`` prints it above their tables.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import bezoar


def result_head(
    script: str, title: str, where: str | None = None, *, command: str | None = None
) -> dict[str, Any]:
    """The entries ``title``, ``command``, ``versions`` and ``machine``, in this order.

    Args:
        script: the script's ``__file__``.
        title: what was measured.
        where: what the machine is beside its processor, such as the number of threads; None leaves
            ``machine`` out, where no figure depends on it.
        command: what makes the file again, where that is more than the script alone.

    >>> list(result_head("benchmarks/scan_speed.py", "A scan", "1 thread(s)"))
    ['title', 'command', 'versions', 'machine']
    """
    head: dict[str, Any] = {
        "title": title,
        "command": command or f"python benchmarks/{Path(script).name}",
        "versions": {"bezoar": bezoar.__version__, "torch": torch.__version__},
    }
    if where is not None:
        head["machine"] = f"{processor()}, {where}"
    return head


def machine_of(runs: Sequence[Mapping[str, Any]], where: str) -> str:
    """The ``machine`` of runs that each tell their ``processor``; a rerun of a few moves no other.

    >>> machine_of([{"processor": "x86_64 with AVX2"}, {}], "1 thread")
    'x86_64 with AVX2 and others, 1 thread'
    """
    known = sorted({run["processor"] for run in runs if "processor" in run})
    others = ["others"] if any("processor" not in run for run in runs) else []
    return f"{' and '.join(known + others)}, {where}"


def processor() -> str:
    """The kind of processor that this runs on."""
    vectors = torch.backends.cpu.get_cpu_capability()  # a factor of three between two machines
    return f"{platform.machine()} with {vectors}"
