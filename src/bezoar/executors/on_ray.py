"""Tasks on a Ray cluster, or on a Ray that is started on this machine for the occasion."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from bezoar.errors import InputError
from bezoar.executors.contract import (
    Failed,
    Outcome,
    Progress,
    Task,
    decoded,
    distinct,
    importable_name,
)
from bezoar.executors.worker import execute

# Outcomes are short records; Ray's own choice would be a third of the memory.
_OBJECT_STORE_BYTES = 100 << 20

# Ray takes 127.0.0.1 as a node's address for the machine's own and then listens to the network,
# unless this variable, read when it is imported, says that there is no cluster.
_NO_CLUSTER = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


class RayExecutor(msgspec.Struct, frozen=True, kw_only=True):
    """Each task is a Ray task in a worker process of its own.

    A worker that is lost (killed, or with its node) costs the time of its one task, which runs
    again. An exception in the function is an outcome and is not tried again. bezoar and the task's
    module must be importable on every node, and its files be reachable there. Progress is not
    passed on. Ray counts workers that it killed itself for want of memory apart from
    ``max_retries``, and repeats those without end unless ``RAY_task_oom_retries`` says otherwise.

    A Ray that the caller has already initialised is used as it is and left running.

    Attributes:
        address: of a running cluster ("auto" finds it); None starts Ray on this machine, without
            dashboard and usage statistics, and stops it at the end. It is reachable from this
            machine only if this is the first import of Ray in the process; the process can then
            not join a cluster on other machines.
        cpus_per_task: cores that a task waits for; also its OMP_NUM_THREADS.
        gpus_per_task: GPUs that it waits for; it sees no others. A fraction shares one.
        max_retries: times that a task is started again after its worker was lost.
    """

    address: str | None = None
    cpus_per_task: int = 1
    gpus_per_task: float = 0.0
    max_retries: int = 3

    def __post_init__(self) -> None:
        for name, least in (("cpus_per_task", 1), ("gpus_per_task", 0), ("max_retries", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")

    def run(
        self, tasks: Iterable[Task], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, Outcome]]:
        """Yields (key, outcome) as tasks finish: see ``Executor.run``; no progress is passed on.

        Raises:
            InputError: Ray is not installed, or the cluster cannot be reached.
        """
        del progress
        listed = distinct(tasks)
        if not listed:
            return
        ray = _import_ray(alone=self.address is None)
        ours = not ray.is_initialized()
        if ours:
            self._connect(ray)
        pending: dict[Any, str] = {}
        try:
            remote = ray.remote(
                num_cpus=self.cpus_per_task,
                num_gpus=self.gpus_per_task,
                max_retries=self.max_retries,
                retry_exceptions=False,
                max_calls=1,  # a worker serves one task, so that none finds another's leavings
            )(_execute)
            for task in listed:
                name = importable_name(task.function)
                reference = remote.remote(name, task.arguments, self.cpus_per_task, sys.path)
                pending[reference] = task.key
            started = time.perf_counter()
            while pending:
                (reference,), _ = ray.wait(list(pending), num_returns=1)
                key = pending.pop(reference)
                yield key, _outcome(ray, reference, started)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
            if ours:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        # Ray reads this variable when it starts; a user's own choice stands.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            if self.address is not None:
                ray.init(address=self.address, log_to_driver=False)
            else:
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"Ray cannot be reached at {self.address or 'this machine'}: {error}; check the "
                "address, or leave it out to start Ray here"
            ) from error


def _execute(name: str, arguments: dict[str, Any], threads: int, paths: list[str]) -> str:
    # What the driver could import this worker can too, where the files are the same.
    sys.path += [path for path in paths if path not in sys.path]
    # The worker is new and has not imported torch, which reads these when it is.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    return execute(name, arguments)


def _outcome(ray: Any, reference: Any, started: float) -> Outcome:
    try:
        return decoded(json.loads(ray.get(reference)))
    except ray.exceptions.RayError as error:
        # Exceptions of the task itself come back as values, but not those of unpacking it there.
        raised = isinstance(error, ray.exceptions.RayTaskError)
        return Failed(
            kind="error" if raised else "crash",
            message=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
            traceback=str(error),
            seconds=time.perf_counter() - started,
        )


def _import_ray(*, alone: bool) -> Any:
    if alone:
        os.environ.setdefault(*_NO_CLUSTER)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError(
            f"this executor needs Ray, which cannot be imported ({error}); run "
            "pip install 'bezoar[ray]', or use a local executor"
        ) from error
