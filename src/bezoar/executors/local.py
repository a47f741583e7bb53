"""Tasks in fresh processes on this machine, a few at a time."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any, Literal

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

_POLL_S = 0.05
_TAIL = 4000
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from bezoar.executors.worker import main; main()"
)


class LocalExecutor(msgspec.Struct, frozen=True, kw_only=True):
    """A new Python process for each task, ``workers`` of them at a time.

    A task that dies, hangs or eats memory costs only itself. Children import what the parent could
    (its ``sys.path``), and die with the thread that runs the tasks: when the generator is closed,
    on Ctrl-C, and on Linux also when the process is killed (elsewhere as soon as their Python runs
    again). Starting and watching happens while the caller waits for the next outcome. Needs POSIX.

    Attributes:
        workers: processes at a time.
        threads_per_worker: OMP_NUM_THREADS of each, which torch and numpy follow; waiting threads
            sleep instead of spinning (OMP_WAIT_POLICY), as they share the cores.
        timeout_s: seconds after which a task is killed; None waits.
        memory_limit: bytes of memory a task may allocate (RLIMIT_DATA, kept on Linux; memory of a
            GPU does not count); beyond it allocations fail, which most functions end with an
            exception.
    """

    workers: int
    threads_per_worker: int = 1
    timeout_s: float | None = None
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "threads_per_worker"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("timeout_s", "memory_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; expected more than 0, or None")
        if os.name != "posix":
            raise InputError(f"the local executor needs Linux or macOS, and this is {os.name}")

    def run(
        self, tasks: Iterable[Task], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, Outcome]]:
        """Yields (key, outcome) as tasks finish: see ``Executor.run``."""
        waiting = distinct(tasks)[::-1]
        running: list[_Child] = []
        selector = selectors.DefaultSelector()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    running.append(_Child(waiting.pop(), self, selector))
                for key, _ in selector.select(_POLL_S):
                    key.data.read()
                for child in list(running):
                    outcome = child.outcome()
                    for what, share in child.progress():
                        if progress is not None:
                            progress(child.task.key, what, share)
                    if outcome is not None:
                        running.remove(child)
                        child.end()
                        yield child.task.key, outcome
        finally:
            for child in running:
                child.end()
            selector.close()


class _Child:
    """A process with one task."""

    def __init__(
        self, task: Task, executor: LocalExecutor, selector: selectors.BaseSelector
    ) -> None:
        self.task = task
        self.started = time.perf_counter()
        self.timeout_s = executor.timeout_s
        self.selector = selector
        self.received = b""
        self.lines: list[dict[str, Any]] = []
        self.stderr: IO[bytes] = tempfile.TemporaryFile(prefix="bezoar-")  # noqa: SIM115
        self.process = subprocess.Popen(  # noqa: S603 (our own interpreter and code)
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env=os.environ
            | {
                "OMP_NUM_THREADS": str(executor.threads_per_worker),
                "OMP_WAIT_POLICY": "PASSIVE",
            },
            start_new_session=True,  # so that its own children can be killed with it
        )
        assert self.process.stdin is not None  # noqa: S101 (a pipe was asked for)
        assert self.process.stdout is not None  # noqa: S101
        self.pipe = self.process.stdout
        os.set_blocking(self.pipe.fileno(), False)
        selector.register(self.pipe, selectors.EVENT_READ, self)
        request = {
            "function": importable_name(task.function),
            "arguments": task.arguments,
            "parent": os.getpid(),
            "memory_limit": executor.memory_limit,
        }
        with contextlib.suppress(BrokenPipeError):  # it died at once, and ``outcome`` will say so
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def read(self) -> None:
        """Takes what has arrived."""
        while True:
            try:
                part = os.read(self.pipe.fileno(), 1 << 16)
            except BlockingIOError:
                return
            if not part:
                self._stop_reading()
                return
            *lines, self.received = (self.received + part).split(b"\n")
            self.lines += map(json.loads, lines)

    def _stop_reading(self) -> None:
        with contextlib.suppress(KeyError):
            self.selector.unregister(self.pipe)

    def progress(self) -> Iterator[tuple[str, float]]:
        """What was reported since the last call: (what, share)."""
        while self.lines and "what" in self.lines[0]:
            line = self.lines.pop(0)
            yield line["what"], line["share"]

    def outcome(self) -> Outcome | None:
        """How the task ended, or None while it runs."""
        seconds = time.perf_counter() - self.started
        status = self.process.poll()
        if status is not None:
            self.read()  # what came between the last look and the end
            if self.lines and "kind" in self.lines[-1]:
                return decoded(self.lines[-1])
            how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
            return self._failed("crash", f"the process died ({how})", seconds)
        if self.timeout_s is not None and seconds > self.timeout_s:
            return self._failed("timeout", f"still running after {self.timeout_s:g} s", seconds)
        return None

    def _failed(self, kind: Literal["crash", "timeout"], message: str, seconds: float) -> Failed:
        self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, self.stderr.tell() - _TAIL))
        said = self.stderr.read().decode(errors="replace")
        return Failed(kind=kind, message=message, traceback=said, seconds=seconds)

    def end(self) -> None:
        """Kills what still runs, with its own children, and gives back what it held."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._stop_reading()
        for stream in (self.pipe, self.process.stdin, self.stderr):
            assert stream is not None  # noqa: S101 (both were pipes)
            with contextlib.suppress(BrokenPipeError):
                stream.close()
