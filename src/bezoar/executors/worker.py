"""The other end: finds the function of a task, calls it, and sends back what came of it.

Parent and child speak JSON lines. The task goes in on standard input; progress and, last, the
outcome come back on what was standard output. The function's own output goes to standard error, so
that no ``print`` gets between them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_receiver: Callable[[str, float], None] | None = None


def report(what: str, share: float) -> None:
    """Tells the executor's progress callback what the task does and how far it is, in [0, 1].

    Outside of a local executor's process it does nothing, so that a task can also be called.
    """
    if _receiver is not None:
        _receiver(what, share)


def execute(name: str, arguments: dict[str, Any]) -> str:
    """Calls the function "module:function"; returns its outcome as JSON, an exception included."""
    started = time.perf_counter()
    outcome: dict[str, Any]
    try:
        module, _, path = name.partition(":")
        function: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        outcome = {"kind": "done", "value": function(**arguments)}
        outcome["seconds"] = time.perf_counter() - started
        return json.dumps(outcome)
    except BaseException as error:  # SystemExit too is the function's own doing
        outcome = {
            "kind": "error",
            "message": f"{type(error).__name__}: {error}".strip(": "),
            "traceback": traceback.format_exc(),
            "seconds": time.perf_counter() - started,
        }
        return json.dumps(outcome)


def main() -> None:
    """Runs the one task on standard input; ends the process without waiting for its threads."""
    global _receiver
    line = sys.stdin.buffer.readline()
    if not line:  # the parent is gone already
        os._exit(1)
    request = json.loads(line)
    _die_with(request["parent"])
    if request["memory_limit"] is not None:
        _limit_memory(request["memory_limit"])
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lock = threading.Lock()

    def send(message: str) -> None:
        with lock:
            channel.write(message.encode() + b"\n")
            channel.flush()

    def receive(what: str, share: float) -> None:
        send(json.dumps({"what": what, "share": float(share)}))

    _receiver = receive
    outcome = execute(request["function"], request["arguments"])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    send(outcome)
    # A thread that the function left behind, or a slow end of the interpreter, holds up nobody.
    os._exit(0)


def _die_with(parent: int) -> None:
    """Ends this process when its parent is gone, also when that was killed."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before
            os._exit(1)
        return

    def wait_for_the_end() -> None:
        # The parent never writes again: the end of the stream is the end of the parent.
        with contextlib.suppress(OSError):
            sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait_for_the_end, daemon=True).start()


def _limit_memory(limit: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
