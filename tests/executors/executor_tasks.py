"""Functions for the tests of the executors; their processes import this and not pytest."""

import json
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


def process(*_, **__):
    return os.getpid()


def gpus():
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def interrupt():
    raise KeyboardInterrupt


def read_input():
    return sys.stdin.read()


def change_surroundings(folder):
    os.chdir(folder)
    os.environ["BEZOAR_TEST_LEFT_BEHIND"] = "1"
    return [os.getpid(), os.environ["BEZOAR_TEST_LEFT_BEHIND"]]


def find_surroundings():
    return [os.getpid(), str(Path.cwd()), os.environ.get("BEZOAR_TEST_LEFT_BEHIND")]


def leaves_a_process(pid_file):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    Path(pid_file).write_text(str(child.pid))
    return os.getpid()


KEPT = []


def keep(megabytes):
    KEPT.append(bytearray(megabytes << 20))
    return os.getpid()


def read_files(text, folder=None):
    """The text, the names in the folder, and the paths that were given."""
    names = [] if folder is None else sorted(os.listdir(folder))  # noqa: PTH208
    return [Path(text).read_text(), names, text, folder]


def read_slowly(text, folder, seconds):
    """The text, where the files are, when they were written, and on which node."""
    time.sleep(seconds)
    weights = Path(folder) / "weights.pt"
    return {
        "text": Path(text).read_text(),
        "places": [text, str(weights)],
        "written": weights.stat().st_mtime_ns,
        "node": _node(),
    }


def work(key, marker, seconds):
    """Tells when it starts and when it ends, and on which node."""
    _tell(marker, what="started", key=key, node=_node())
    report("waiting", 0.5)
    time.sleep(seconds)
    _tell(marker, what="finished", key=key, node=_node())
    return _node()


def _node():
    """The process that started this one's parent: with Ray, that of the node."""
    return int(Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()[1])


def _tell(marker, **facts):
    with Path(marker).open("a") as file:  # one write of one line, so that none is torn
        file.write(json.dumps(facts) + "\n")


def count_loudly(steps):
    for step in range(steps):
        report(f"counting (step {step})", step / steps)
    report("done", 1.0)
    return steps


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


def count_and_die(marker):
    with Path(marker).open("a") as file:
        file.write("started\n")
    kill_itself()


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
