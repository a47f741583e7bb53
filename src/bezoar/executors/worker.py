"""The other end: finds the function of a task, calls it, and sends back what came of it.

Parent and child speak JSON lines. Tasks go in on what was standard input; progress and, last, the
outcome come back on what was standard output. The function's own output goes to standard error, and
its standard input is empty, so that nothing it prints or reads gets between them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_receiver: Callable[[str, float], None] | None = None


def report(what: str, share: float) -> None:
    """Tells the executor's progress callback what the task does and how far it is, in [0, 1].

    Outside of an executor it does nothing, so that a task can also be called.
    """
    if _receiver is not None:
        _receiver(what, share)


@contextlib.contextmanager
def receiving(receiver: Callable[[str, float], None] | None) -> Iterator[None]:
    """Inside the block ``report`` of this process goes to ``receiver``."""
    global _receiver
    before, _receiver = _receiver, receiver
    try:
        yield
    finally:
        _receiver = before


def execute(name: str, arguments: dict[str, Any]) -> str:
    """Calls the function "module:function"; returns its outcome as JSON, an exception included.

    Raises:
        KeyboardInterrupt: somebody wants the process to stop; that is not the function's doing.
    """
    started = time.perf_counter()
    outcome: dict[str, Any]
    try:
        module, _, path = name.partition(":")
        function: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        outcome = {"kind": "done", "value": function(**arguments)}
        outcome["seconds"] = time.perf_counter() - started
        return json.dumps(outcome)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too is the function's own doing
        outcome = {
            "kind": "error",
            "message": f"{type(error).__name__}: {error}".strip(": "),
            "traceback": traceback.format_exc(),
            "seconds": time.perf_counter() - started,
        }
        return json.dumps(outcome)


def main(parent: int) -> None:
    """Runs the tasks that arrive on standard input, until the process ``parent`` ends this one."""
    _die_with(parent)
    requests = os.fdopen(os.dup(0), "rb")
    channel = os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(message: str) -> None:
        with lock:
            channel.write(message.encode() + b"\n")
            channel.flush()

    def receive(what: str, share: float) -> None:
        send(json.dumps({"what": what, "share": float(share)}))

    at_start = _held()
    for line in _lines(requests):
        request = json.loads(line)
        limit = request["memory_limit"]
        if limit is not None:
            _limit_memory(limit + _held() - at_start)
        threads = set(threading.enumerate())
        with receiving(receive), _surroundings():
            outcome = execute(request["function"], request["arguments"])
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        clean = False
        if request["again"]:
            clean = not _left_running(threads) and _tidied(at_start, limit)
        send(f'{{"outcome": {outcome}, "clean": {json.dumps(clean)}}}')
    os._exit(0)  # without waiting for threads that a function left behind


def _die_with(parent: int) -> None:
    """Ends this process when its parent is gone, also when that was killed; Linux only."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before
            os._exit(1)


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of ``stream``, whose end is the end of the parent."""
    if sys.platform == "linux":  # where the kernel tells, also in the middle of a task
        yield from stream
        return
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for line in stream:
            arrived.put(line)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield arrived.get()


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """Afterwards working directory and environment are as they were before the task."""
    environment = dict(os.environ)
    folder = os.open(".", os.O_RDONLY)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.fchdir(folder)
        os.close(folder)
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)


def _left_running(threads_before: set[threading.Thread]) -> bool:
    """Whether the task left threads or child processes behind."""
    if set(threading.enumerate()) - threads_before:
        return True
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:  # one that has ended
            pass
    except ChildProcessError:
        return False
    return True


def _tidied(at_start: int, limit: int | None) -> bool:
    """Gives back what memory it can; whether what is still held leaves room for another task."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return limit is None or _held() - at_start <= limit / 2


def _held() -> int:
    """Bytes that count against RLIMIT_DATA; 0 where that cannot be known."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[5]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _limit_memory(limit: int) -> None:
    import resource

    _, highest = resource.getrlimit(resource.RLIMIT_DATA)
    limit = min(limit, sys.maxsize if highest == resource.RLIM_INFINITY else highest)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, highest))
