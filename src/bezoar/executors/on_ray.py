"""Tasks on a Ray cluster, or on a Ray that is started on this machine for the occasion."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import select
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bezoar.errors import InputError
from bezoar.executors.contract import (
    Failed,
    Outcome,
    Progress,
    Task,
    distinct,
    importable_name,
)
from bezoar.executors.file_cache import Package, local_copy, pack
from bezoar.executors.gpus import capacity, check_share
from bezoar.executors.local import worker_environment
from bezoar.executors.process import WorkerProcess
from bezoar.executors.ray_progress import Board, Reporter

# Outcomes are short records; Ray's own choice would be a third of the memory.
_OBJECT_STORE_BYTES = 100 << 20

# Ray takes 127.0.0.1 as a node's address for the machine's own and then listens to the network,
# unless this variable, read when it is imported, says that there is no cluster.
_NO_CLUSTER = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

_LEAST_CPUS = 0.1
_POLL_S = 0.2
_LOOK_S = 2.0  # between two looks at which nodes there are
_LEAST_AHEAD = 8  # tasks that are handed to Ray, where the cluster is small or still empty


class RayExecutor(msgspec.Struct, frozen=True, kw_only=True):
    """Each task has a process of its own, which a Ray worker starts and watches.

    A process that dies, or is lost with its node, costs the time of its one task, which runs again,
    perhaps elsewhere. An exception in the function or the end of its time is an outcome and is not
    tried again, and neither is a task whose outcome was yielded. bezoar and the task's module must
    be importable on every node. ``Task.files`` need not be there: this process reads each of them
    once, and each node writes what its tasks need into a folder of its own, where copies of up to
    20 GB stay for the next tasks. Tasks are handed to Ray a few at a time, as many as keep all the
    nodes busy that there are by then.

    Ray counts workers that it killed itself for want of memory apart from ``max_retries``, and
    repeats those without end unless ``RAY_task_oom_retries`` says otherwise; ``memory_limit``
    prevents it.

    A Ray that the caller has already initialised is used as it is and left running.

    Attributes:
        address: of a running cluster ("auto" finds it); None starts Ray on this machine, without
            dashboard and usage statistics, and stops it at the end. It is reachable from this
            machine only if this is the first import of Ray in the process; the process can then
            not join a cluster on other machines. Tasks then read ``Task.files`` where they lie.
        cpus_per_task: cores that a task waits for, from 0.1; rounded up, its OMP_NUM_THREADS.
        gpus_per_task: GPUs that it waits for; it sees no others. A fraction shares one.
        timeout_s: seconds after which a task is killed; None waits.
        memory_limit: bytes that a task may allocate, as with ``LocalExecutor``.
        max_retries: times that a task is started again after its process was lost.
    """

    address: str | None = None
    cpus_per_task: float = 1
    gpus_per_task: float = 0.0
    timeout_s: float | None = None
    memory_limit: int | None = None
    max_retries: int = 3

    def __post_init__(self) -> None:
        for name, least in (("cpus_per_task", _LEAST_CPUS), ("max_retries", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.cpus_per_task > 1 and not float(self.cpus_per_task).is_integer():
            raise InputError(
                f"cpus_per_task is {self.cpus_per_task}; above 1, expected a whole number"
            )
        check_share(self.gpus_per_task)
        for name in ("timeout_s", "memory_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; expected more than 0, or None")

    def run(
        self, tasks: Iterable[Task], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, Outcome]]:
        """Yields (key, outcome) as tasks finish: see ``Executor.run``.

        Of what a task reports often, the last word of every third of a second is passed on.

        Raises:
            InputError: Ray is not installed, or the cluster cannot be reached, or Ray on this
                machine has less than one task needs.
        """
        waiting = distinct(tasks)[::-1]
        if not waiting:
            return
        ray = _import_ray(alone=self.address is None)
        ours = not ray.is_initialized()
        if ours:
            self._connect(ray)
        alone = ours and self.address is None
        pending: dict[Any, tuple[Task, float]] = {}
        board = None if progress is None else Board(ray, progress)
        try:
            if alone and not self._slots(ray):
                raise InputError(
                    f"a task needs {self.cpus_per_task:g} cores and {self.gpus_per_task:g} GPUs, "
                    "and this machine has fewer; ask for fewer"
                )
            shelf = None if alone else _Shelf(waiting, ray.put)
            remote = self._remote(ray)
            looked, window = -math.inf, 0
            while waiting or pending:
                if time.monotonic() - looked > _LOOK_S:
                    looked, window = time.monotonic(), max(_LEAST_AHEAD, 2 * self._slots(ray))
                while waiting and len(pending) < window:
                    task = waiting.pop()
                    try:
                        order = self._order(task, shelf)
                    except OSError as error:
                        if shelf is not None:
                            shelf.used(task)
                        yield task.key, _unreadable(error)
                        continue
                    reference = remote.remote(order, board and board.actor)
                    pending[reference] = (task, time.perf_counter())
                if not pending:
                    continue
                ready, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL_S)
                if board is not None:
                    board.pass_on()
                if ready:
                    reference = ready.pop()
                    task, handed_over = pending.pop(reference)
                    outcome = _outcome(ray, reference, handed_over)
                    del reference  # so that no node that is lost later makes Ray repeat it
                    if shelf is not None:
                        shelf.used(task)
                    yield task.key, outcome
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
            if board is not None:
                board.close()
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

    def _remote(self, ray: Any) -> Any:
        return ray.remote(
            num_cpus=self.cpus_per_task,
            num_gpus=self.gpus_per_task,
            max_retries=self.max_retries,
            retry_exceptions=[LostProcessError],
        )(_execute)

    def _slots(self, ray: Any) -> int:
        """How many tasks the nodes that are there can run at a time."""
        slots = 0
        for node in ray.nodes():
            if node["Alive"]:
                fitting = int(node["Resources"].get("CPU", 0) / self.cpus_per_task + 1e-9)
                if self.gpus_per_task:
                    gpus = [""] * int(node["Resources"].get("GPU", 0))
                    fitting = min(fitting, capacity(gpus, self.gpus_per_task))
                slots += fitting
        return slots

    def _order(self, task: Task, shelf: _Shelf | None) -> _Order:
        """What goes to the node.

        Raises:
            OSError: a file of the task cannot be read.
        """
        packages = {}
        arguments = dict(task.arguments)
        for name, path in task.files.items():
            if shelf is None:
                arguments[name] = path
            else:
                packages[name] = shelf.take(path, task.patterns.get(name))
        return _Order(
            key=task.key,
            function=importable_name(task.function),
            arguments=arguments,
            packages=packages,
            threads=math.ceil(self.cpus_per_task),
            timeout_s=self.timeout_s,
            memory_limit=self.memory_limit,
            paths=sys.path,
        )


class LostProcessError(Exception):
    """The process of a task died; Ray runs the task again as long as it may."""

    def __init__(self, outcome: Failed) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class _Order(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it goes to a node; ``packages`` holds references into Ray's object store."""

    key: str
    function: str
    arguments: dict[str, Any]
    packages: dict[str, Package]
    threads: int
    timeout_s: float | None
    memory_limit: int | None
    paths: list[str]


class _Shelf:
    """The files of tasks in Ray's object store, as long as a task needs them.

    Args:
        tasks: all of them.
        put: stores a thing.
    """

    def __init__(self, tasks: Iterable[Task], put: Callable[[Any], Any]) -> None:
        self.put = put
        self.uses = Counter(place for task in tasks for place in self._places(task))
        self.packages: dict[tuple[str, str | None], Package] = {}

    def take(self, path: str, pattern: str | None) -> Package:
        """The content at ``path``, read at its first use; the same content is stored once."""
        place = (path, pattern)
        if place not in self.packages:
            package = pack(Path(path), self.put, pattern)
            same = (p for p in self.packages.values() if p.key == package.key)
            self.packages[place] = next(same, package)
        return self.packages[place]

    def used(self, task: Task) -> None:
        """The task has ended; what no other task needs is dropped."""
        for place in self._places(task):
            self.uses[place] -= 1
            if not self.uses[place]:
                self.packages.pop(place, None)

    @staticmethod
    def _places(task: Task) -> list[tuple[str, str | None]]:
        return [(path, task.patterns.get(name)) for name, path in task.files.items()]


def _execute(order: _Order, board: Any) -> Outcome:
    """Runs on a node: gets the files, runs the task in a process of its own, and reports."""
    ray = importlib.import_module("ray")
    # What the driver could import this worker can too, where the files are the same.
    sys.path += [path for path in order.paths if path not in sys.path]
    reporter = None if board is None else Reporter(ray, board, order.key)
    with contextlib.ExitStack() as held:
        root = _cache_folder(ray) if order.packages else Path()
        copies = {
            name: str(held.enter_context(local_copy(package, root, ray.get)))
            for name, package in order.packages.items()
        }
        outcome = _watched(order, copies, reporter)
    if reporter is not None:
        reporter.finish()
    if isinstance(outcome, Failed) and outcome.kind == "crash":
        raise LostProcessError(outcome)
    return outcome


def _watched(order: _Order, copies: dict[str, str], reporter: Reporter | None) -> Outcome:
    process = WorkerProcess(worker_environment(order.threads))
    try:
        process.give(
            order.function,
            {**order.arguments, **copies},
            timeout_s=order.timeout_s,
            memory_limit=order.memory_limit,
            again=False,
        )
        more = True
        while True:
            select.select([process.pipe] if more else [], [], [], _POLL_S)
            more = more and process.read()
            outcome = process.outcome()
            for what, share in process.progress():
                if reporter is not None:
                    reporter.add(what, share)
            if outcome is not None:
                return outcome
    finally:
        process.end()


def _cache_folder(ray: Any) -> Path:
    """Where a node keeps copies of files: in the folder of its Ray session."""
    context: Any = ray.get_runtime_context()
    if hasattr(context, "get_temp_dir") and hasattr(context, "get_session_name"):
        session = Path(context.get_temp_dir(), context.get_session_name())
    else:  # an older Ray does not tell
        session = Path(tempfile.gettempdir(), "bezoar-on-ray")
    return Path(session, "bezoar-files", context.get_node_id())


def _outcome(ray: Any, reference: Any, handed_over: float) -> Outcome:
    try:
        found: Outcome = ray.get(reference)
        return found
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, LostProcessError):
            return cause.outcome
        # Exceptions of the task itself come back as values, but not those of unpacking it there.
        raised = isinstance(error, ray.exceptions.RayTaskError)
        return Failed(
            kind="error" if raised else "crash",
            message=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
            traceback=str(error),
            seconds=time.perf_counter() - handed_over,
        )


def _unreadable(error: OSError) -> Failed:
    message = f"{type(error).__name__}: {error}"
    return Failed(kind="error", message=message, traceback=message, seconds=0.0)


def _import_ray(*, alone: bool) -> Any:
    if alone:
        os.environ.setdefault(*_NO_CLUSTER)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError(
            f"this executor needs Ray, which cannot be imported ({error}); run "
            "pip install -c constraints.txt -e '.[ray]', or use a local executor"
        ) from error
