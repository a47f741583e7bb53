"""A Python process of our own that runs tasks, seen from the one that started it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any, Literal

from bezoar.executors.contract import Done, Failed, Outcome, decoded

_TAIL = 4000
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from bezoar.executors.worker import main; main(int(sys.argv[2]))"
)


class WorkerProcess:
    """Runs one task at a time; whatever the task does to it, this side goes on.

    It imports what this process can (``sys.path``), and dies with the thread that made it: on Linux
    at once, also when this process is killed, elsewhere as soon as its Python runs again.

    Args:
        environment: variables that it has beside those of this process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile(prefix="bezoar-")  # noqa: SIM115
        self.process = subprocess.Popen(  # noqa: S603 (our own interpreter and code)
            # -P: with -c alone the working folder could shadow what is imported before sys.path is
            # set, and a json.py of a stranger would run.
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | environment,
            start_new_session=True,  # so that its own children can be killed with it
        )
        assert self.process.stdin is not None  # noqa: S101 (a pipe was asked for)
        assert self.process.stdout is not None  # noqa: S101
        self._requests, self.pipe = self.process.stdin, self.process.stdout
        os.set_blocking(self.pipe.fileno(), False)
        self._parts: list[bytes] = []
        self._reports: list[tuple[str, float]] = []
        self._outcome: dict[str, Any] | None = None
        self._clean = False
        self._started = time.perf_counter()
        self._timeout_s: float | None = None
        self.served = 0

    def give(
        self,
        function: str,
        arguments: Mapping[str, Any],
        *,
        timeout_s: float | None,
        memory_limit: int | None,
        again: bool,
    ) -> None:
        """Sends a task; the one before must have ended.

        Args:
            function: its name, "module:function".
            arguments: its keyword arguments.
            timeout_s: seconds after which ``outcome`` says that it has failed.
            memory_limit: bytes that it may allocate.
            again: the process may be asked to serve another task afterwards.
        """
        if self.served:
            self._started = time.perf_counter()  # the first task waits for the start of Python
            self._stderr.seek(0)  # parent and child share the position: the next word goes there
            self._stderr.truncate()
        self.served += 1
        self._outcome, self._clean, self._timeout_s = None, False, timeout_s
        request = {
            "function": function,
            "arguments": arguments,
            "memory_limit": memory_limit,
            "again": again,
        }
        with contextlib.suppress(BrokenPipeError):  # it died at once, and ``outcome`` will say so
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()

    def read(self) -> bool:
        """Takes what has arrived; whether more can come."""
        while True:
            try:
                part = os.read(self.pipe.fileno(), 1 << 16)
            except BlockingIOError:
                return True
            if not part:
                return False
            self._parts.append(part)
            if b"\n" not in part:
                continue
            *lines, rest = b"".join(self._parts).split(b"\n")
            self._parts = [rest]
            for message in map(json.loads, lines):
                if "outcome" in message:
                    self._outcome, self._clean = message["outcome"], message["clean"]
                else:
                    self._reports.append((message["what"], message["share"]))

    def progress(self) -> Iterator[tuple[str, float]]:
        """What was reported since the last call: (what, share)."""
        while self._reports:
            yield self._reports.pop(0)

    def outcome(self) -> Outcome | None:
        """How the task ended, or None while it runs."""
        seconds = time.perf_counter() - self._started
        alive = self.alive()
        self.read()  # all that a dead process has said is there by now
        if self._outcome is not None:
            return decoded(self._outcome)
        if not alive:
            status = self.process.returncode
            how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
            return self._failed("crash", f"the process died ({how})", seconds)
        if self._timeout_s is not None and seconds > self._timeout_s:
            return self._failed("timeout", f"still running after {self._timeout_s:g} s", seconds)
        return None

    def alive(self) -> bool:
        """Whether the process runs; if not, its own children are killed."""
        if self.process.returncode is not None:
            return False
        if hasattr(os, "waitid"):
            # Until it is collected its number stands for its group, and for nobody else's.
            look = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self.process.pid, look) is None:
                return True
            self._kill_group()
        return self.process.poll() is None

    def reusable(self, outcome: Outcome) -> bool:
        """Whether another task can follow after ``outcome``.

        Not after a failure of any kind: an exception too may leave a library, or a GPU, in a state
        that makes the next task fail. Nor after a task that left threads, processes or more than
        half of the memory limit behind.
        """
        return isinstance(outcome, Done) and self._clean

    def _failed(self, kind: Literal["crash", "timeout"], message: str, seconds: float) -> Failed:
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _TAIL))
        said = self._stderr.read().decode(errors="replace")
        return Failed(kind=kind, message=message, traceback=said, seconds=seconds)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kills the process if it still runs, with its own children, and closes what was open."""
        if self.alive():
            self._kill_group()
            self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self.pipe.close()
        self._stderr.close()
