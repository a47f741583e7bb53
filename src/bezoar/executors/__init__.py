"""Runs many independent tasks, each in a process of its own: here, or on a Ray cluster.

>>> import json
>>> tasks = [Task(key="a", function=json.loads, arguments={"s": "[1, 2]"})]
>>> dict(make_executor("local:1").run(tasks))["a"].value
[1, 2]
"""

from __future__ import annotations

import os
import re

from bezoar.errors import InputError
from bezoar.executors.contract import Done, Executor, Failed, Outcome, Progress, Task
from bezoar.executors.local import LocalExecutor
from bezoar.executors.on_ray import RayExecutor
from bezoar.executors.worker import report

__all__ = [
    "Done",
    "Executor",
    "Failed",
    "LocalExecutor",
    "Outcome",
    "Progress",
    "RayExecutor",
    "Task",
    "make_executor",
    "report",
]

FORMS = "local, local:WORKERS, ray, ray:auto or ray:ADDRESS"


def make_executor(
    spec: str,
    *,
    cpus_per_task: int = 1,
    gpus_per_task: float = 0.0,
    timeout_s: float | None = None,
) -> Executor:
    """The executor that a user names on the command line.

    Args:
        spec: "local" (as many workers as the cores allow) or "local:4"; "ray" starts Ray on this
            machine, "ray:auto" and "ray:ADDRESS" use a running cluster.
        cpus_per_task: threads of each task.
        gpus_per_task: GPUs of each task, for Ray; local tasks see all of them.
        timeout_s: seconds after which a local task is killed.

    Raises:
        InputError: the spec has none of these forms, or a timeout was asked of Ray.

    >>> make_executor("local:4", cpus_per_task=2)
    LocalExecutor(workers=4, threads_per_worker=2, timeout_s=None, memory_limit=None)
    """
    kind, colon, rest = spec.partition(":")
    if kind == "local" and (not colon or re.fullmatch("[1-9][0-9]*", rest)):
        workers = int(rest) if colon else max(1, _cores() // max(1, cpus_per_task))
        return LocalExecutor(workers=workers, threads_per_worker=cpus_per_task, timeout_s=timeout_s)
    if kind == "ray" and (not colon or rest.strip()):
        if timeout_s is not None:
            raise InputError("tasks on Ray have no timeout; leave it out or use a local executor")
        return RayExecutor(
            address=rest if colon else None,
            cpus_per_task=cpus_per_task,
            gpus_per_task=gpus_per_task,
        )
    raise InputError(f"there is no executor {spec!r}; expected {FORMS}")


def _cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
