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
from bezoar.executors.gpus import chooses_a_gpu, visible_gpus
from bezoar.executors.here import HereExecutor
from bezoar.executors.local import LocalExecutor
from bezoar.executors.on_ray import RayExecutor
from bezoar.executors.worker import report

__all__ = [
    "Done",
    "Executor",
    "Failed",
    "HereExecutor",
    "LocalExecutor",
    "Outcome",
    "Progress",
    "RayExecutor",
    "Task",
    "make_executor",
    "report",
]

FORMS = "here, local, local:WORKERS, ray, ray:auto or ray:ADDRESS"


def make_executor(
    spec: str,
    *,
    cpus_per_task: float = 1,
    gpus_per_task: float = 0.0,
    timeout_s: float | None = None,
    memory_limit: int | None = None,
    reuse: bool = False,
    device: str | None = "cpu",
) -> Executor:
    """The executor that a user names on the command line.

    Args:
        spec: "local" (as many workers as the cores allow) or "local:4"; "here" for one task after
            another in this process; "ray" starts Ray on this machine, "ray:auto" and "ray:ADDRESS"
            use a running cluster.
        cpus_per_task: threads of each task; on Ray also a fraction of a core.
        gpus_per_task: GPUs of each task, also a fraction; with 0, local tasks see all of them, and
            tasks on Ray see none.
        timeout_s: seconds after which a task is killed.
        memory_limit: bytes that a task may allocate.
        reuse: local processes serve task after task. Elsewhere it says nothing: on Ray every task
            has a process of its own.
        device: where the tasks compute; None is the accelerator if there is one. Where these are
            GPUs, "local" has as many workers as there are, each with one of its own, unless
            ``gpus_per_task`` says otherwise.

    Raises:
        InputError: the spec has none of these forms, or does not allow what else was asked for.

    >>> make_executor("local:4", cpus_per_task=2).threads_per_worker
    2
    """
    kind, colon, rest = spec.partition(":")
    if spec == "here":
        if timeout_s is not None or memory_limit is not None:
            raise InputError(
                "tasks in this process cannot be killed, and so have no timeout and no memory "
                "limit; leave these out, or use a local executor"
            )
        if cpus_per_task != 1 or gpus_per_task:
            raise InputError(
                "tasks in this process have its threads and its GPUs; leave the numbers of these "
                "out, or use a local executor"
            )
        return HereExecutor()
    if kind == "local" and (not colon or re.fullmatch("[1-9][0-9]*", rest)):
        if not float(cpus_per_task).is_integer():
            raise InputError(
                f"{cpus_per_task:g} threads are asked for; a local task has whole ones, so give a "
                "whole number"
            )
        threads = int(cpus_per_task)
        workers = int(rest) if colon else max(1, _cores() // max(1, threads))
        if not colon and not gpus_per_task and chooses_a_gpu(device):
            workers, gpus_per_task = min(workers, len(visible_gpus())), 1.0
        return LocalExecutor(
            workers=workers,
            threads_per_worker=threads,
            gpus_per_task=gpus_per_task,
            timeout_s=timeout_s,
            memory_limit=memory_limit,
            reuse=reuse,
        )
    if kind == "ray" and (not colon or rest.strip()):
        return RayExecutor(
            address=rest if colon else None,
            cpus_per_task=cpus_per_task,
            gpus_per_task=gpus_per_task,
            timeout_s=timeout_s,
            memory_limit=memory_limit,
        )
    raise InputError(f"there is no executor {spec!r}; expected {FORMS}")


def _cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
