"""Functions for the tests of the executors; their processes import this and not pytest."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bezoar.executors import report


def double(number):
    return 2 * number


def surroundings():
    return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")} | {
        "pid": os.getpid()
    }


def fail(text):
    raise RuntimeError(text)


def leave(status):
    sys.exit(status)


def exit_at_once(status):
    sys.stderr.write("last words\n")
    os._exit(status)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_itself_once(marker):
    with Path(marker).open("a") as file:
        file.write("started\n")
    if Path(marker).read_text().count("started") == 1:
        kill_itself()
    return "second time"


def sleep(seconds, pid_file=None):
    """Writes its process and that of a child of its own, then sleeps."""
    if pid_file is not None:
        program = f"import time; time.sleep({seconds})"
        child = subprocess.Popen([sys.executable, "-c", program])  # noqa: S603 (our own code)
        partial = Path(pid_file + ".part")
        partial.write_text(f"{os.getpid()} {child.pid}")
        partial.rename(pid_file)
    time.sleep(seconds)
    return seconds


def noisy(lines):
    sys.stdout.write("x" * 100_000 + "\n")
    for line in range(lines):
        report(f"part {line}", line / lines)
    sys.stdout.write('{"kind": "done", "value": "forged", "seconds": 0}\n')
    return "y" * 300_000


def no_json():
    return {1, 2}


def leaves_a_thread():
    import threading

    threading.Thread(target=time.sleep, args=(60,)).start()
    return "returned"


def allocate(megabytes):
    return len(bytearray(megabytes << 20))


def pair():
    return (1, float("inf"))


def fail_and_count(marker):
    with Path(marker).open("a") as file:
        file.write("started\n")
    raise RuntimeError
