"""Tasks in processes on this machine, a few at a time."""

from __future__ import annotations

import contextlib
import os
import selectors
from collections.abc import Iterable, Iterator

import msgspec

from bezoar.errors import InputError
from bezoar.executors.contract import Outcome, Progress, Task, distinct, importable_name
from bezoar.executors.gpus import capacity, check_share, gpu_environment, visible_gpus
from bezoar.executors.process import WorkerProcess

_POLL_S = 0.05


class LocalExecutor(msgspec.Struct, frozen=True, kw_only=True):
    """Python processes, ``workers`` of them at a time: one for each task, or reused.

    A task that dies, hangs or eats memory costs only itself. Children import what the parent could
    (its ``sys.path``), and die with the thread that runs the tasks: when the generator is closed,
    on Ctrl-C, and on Linux also when the process is killed (elsewhere as soon as their Python runs
    again). What a task leaves running ends with its process. Starting and watching happens while
    the caller waits for the next outcome. Needs POSIX.

    Attributes:
        workers: processes at a time; no more than the GPUs allow, where tasks have some.
        threads_per_worker: OMP_NUM_THREADS of each, which torch and numpy follow; waiting threads
            sleep instead of spinning (OMP_WAIT_POLICY), as they share the cores.
        gpus_per_task: GPUs of each process, which sees no others (CUDA_VISIBLE_DEVICES); of a
            fraction, several share one. With 0 each sees all that this process sees.
        timeout_s: seconds after which a task is killed; None waits. The start of a process counts
            as its first task's.
        memory_limit: bytes of memory a task may allocate (RLIMIT_DATA, kept on Linux; memory of a
            GPU does not count); beyond it allocations fail, which most functions end with an
            exception. What former tasks left in a reused process (imported modules, mostly) comes
            on top, up to half of the limit.
        reuse: a process serves task after task, which saves the start of Python and its imports.
            It is replaced after any failure, and after a task that left threads, processes or much
            memory behind. Working directory and environment are put back after each task; other
            state of its modules stays.
    """

    workers: int
    threads_per_worker: int = 1
    gpus_per_task: float = 0.0
    timeout_s: float | None = None
    memory_limit: int | None = None
    reuse: bool = False

    def __post_init__(self) -> None:
        for name in ("workers", "threads_per_worker"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("timeout_s", "memory_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; expected more than 0, or None")
        check_share(self.gpus_per_task)
        if os.name != "posix":
            raise InputError(f"the local executor needs Linux or macOS, and this is {os.name}")

    def run(
        self, tasks: Iterable[Task], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, Outcome]]:
        """Yields (key, outcome) as tasks finish: see ``Executor.run``.

        Raises:
            InputError: there are fewer GPUs than one task needs.
        """
        waiting = distinct(tasks)[::-1]
        pool = _Pool(self._environments() if waiting else [])
        working: dict[WorkerProcess, str] = {}
        try:
            while waiting or working:
                while waiting and (worker := pool.take()):
                    working[worker] = waiting[-1].key
                    self._give(worker, waiting.pop())
                if not waiting:
                    pool.end_idle()
                pool.listen(_POLL_S)
                for worker, key in list(working.items()):
                    outcome = worker.outcome()
                    for what, share in worker.progress():
                        if progress is not None:
                            progress(key, what, share)
                    if outcome is not None:
                        del working[worker]
                        pool.put_back(worker, reuse=self.reuse and worker.reusable(outcome))
                        yield key, outcome
        finally:
            pool.close()

    def _give(self, worker: WorkerProcess, task: Task) -> None:
        worker.give(
            importable_name(task.function),
            {**task.arguments, **task.files},
            timeout_s=self.timeout_s,
            memory_limit=self.memory_limit,
            again=self.reuse,
        )

    def _environments(self) -> list[dict[str, str]]:
        """The variables of each process that may run at the same time."""
        own = worker_environment(self.threads_per_worker)
        if not self.gpus_per_task:
            return [own] * self.workers
        gpus = visible_gpus()
        fitting = min(self.workers, capacity(gpus, self.gpus_per_task))
        if not fitting:
            raise InputError(
                f"each task needs {self.gpus_per_task:g} GPUs and this machine shows {len(gpus)}; "
                "ask for fewer, or for none"
            )
        return [own | gpu_environment(n, gpus, self.gpus_per_task) for n in range(fitting)]


def worker_environment(threads: int) -> dict[str, str]:
    """The variables of a process with so many threads, read when torch is imported."""
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


class _Pool:
    """The processes of a run: those that work, those that wait, and the places of the others.

    Args:
        environments: the variables of each place; a place has at most one process.
    """

    def __init__(self, environments: list[dict[str, str]]) -> None:
        self.environments = environments
        self.free = list(range(len(environments)))[::-1]
        self.idle: list[WorkerProcess] = []
        self.places: dict[WorkerProcess, int] = {}
        self.selector = selectors.DefaultSelector()

    def take(self) -> WorkerProcess | None:
        """A process that can be given a task, or None if all are at work."""
        while self.idle:
            worker = self.idle.pop()
            if worker.alive():
                return worker
            self._end(worker)
        if not self.free:
            return None
        place = self.free.pop()
        worker = WorkerProcess(self.environments[place])
        self.places[worker] = place
        self.selector.register(worker.pipe, selectors.EVENT_READ, worker)
        return worker

    def listen(self, seconds: float) -> None:
        """Waits until a process says something, and takes it."""
        for found, _ in self.selector.select(seconds):
            if not found.data.read():
                self.selector.unregister(found.fileobj)

    def put_back(self, worker: WorkerProcess, *, reuse: bool) -> None:
        """Takes back a process whose task has ended."""
        if reuse:
            self.idle.append(worker)
        else:
            self._end(worker)

    def end_idle(self) -> None:
        """Ends the processes that have nothing to do."""
        while self.idle:
            self._end(self.idle.pop())

    def close(self) -> None:
        """Ends every process."""
        for worker in list(self.places):
            self._end(worker)
        self.selector.close()

    def _end(self, worker: WorkerProcess) -> None:
        with contextlib.suppress(KeyError):
            self.selector.unregister(worker.pipe)
        worker.end()
        self.free.append(self.places.pop(worker))
