"""Tasks in processes of their own: whatever one of them does, the others and the parent go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import executor_tasks as functions
import pytest

from bezoar.errors import InputError
from bezoar.executors import Done, LocalExecutor, Task, make_executor, report

LOCAL = LocalExecutor(workers=2, timeout_s=60)


def task(function, key=None, **arguments):
    return Task(key=key or function.__name__, function=function, arguments=arguments)


def run(*tasks, executor=LOCAL, **options):
    return dict(executor.run(tasks, **options))


def alive(pid):
    """Whether a process runs; one that waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_one_of_each_kind_of_end():
    outcomes = run(
        task(functions.double, number=21),
        task(functions.fail, text="by the task"),
        task(functions.leave, status=0),
        task(functions.exit_at_once, status=3),
        task(functions.kill_itself),
        task(functions.no_json),
        task(functions.leaves_a_thread),
    )
    assert outcomes["double"].value == 42 and outcomes["double"].seconds >= 0
    failed = outcomes["fail"]
    assert (failed.kind, failed.message) == ("error", "RuntimeError: by the task")
    assert "raise RuntimeError(text)" in failed.traceback
    assert (outcomes["leave"].kind, outcomes["leave"].message) == ("error", "SystemExit: 0")
    crashed = outcomes["exit_at_once"]
    assert (crashed.kind, crashed.message) == ("crash", "the process died (exit status 3)")
    assert crashed.traceback == "last words\n"
    assert (outcomes["kill_itself"].kind, "SIGKILL" in outcomes["kill_itself"].message) == (
        "crash",
        True,
    )
    assert outcomes["no_json"].kind == "error" and "set" in outcomes["no_json"].message
    assert outcomes["leaves_a_thread"].value == "returned"


def test_a_task_that_hangs_is_killed_with_its_children_and_the_others_finish(tmp_path):
    pid_file = tmp_path / "pids"
    executor = LocalExecutor(workers=2, timeout_s=3)
    outcomes = run(
        task(functions.sleep, seconds=300, pid_file=str(pid_file)),
        task(functions.double, number=1),
        executor=executor,
    )
    assert (outcomes["sleep"].kind, outcomes["sleep"].message) == (
        "timeout",
        "still running after 3 s",
    )
    assert 3 <= outcomes["sleep"].seconds < 10
    assert outcomes["double"].value == 2
    for pid in pid_file.read_text().split():
        wait_until(lambda pid=pid: not alive(pid))


def test_outcomes_belong_to_their_keys_and_come_as_they_finish():
    tasks = [task(functions.sleep, key="slow", seconds=1.5)]
    tasks += [task(functions.double, key=str(n), number=n) for n in range(6)]
    outcomes = list(LOCAL.run(tasks))
    assert outcomes[-1][0] != "0" and [key for key, _ in outcomes].index("slow") > 0
    assert {key: outcome.value for key, outcome in outcomes} == {
        "slow": 1.5,
        **{str(n): 2 * n for n in range(6)},
    }


def test_each_task_has_a_fresh_process_with_the_threads_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    executor = LocalExecutor(workers=1, threads_per_worker=3)
    outcomes = run(
        task(functions.surroundings, key="a"),
        task(functions.surroundings, key="b"),
        executor=executor,
    )
    first, second = outcomes["a"].value, outcomes["b"].value
    assert len({first.pop("pid"), second.pop("pid"), os.getpid()}) == 3
    assert first == second == {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}


def test_no_more_workers_than_asked_for():
    started = time.monotonic()
    run(*(task(functions.sleep, key=str(n), seconds=0.5) for n in range(4)))
    assert time.monotonic() - started > 1.0


def test_progress_arrives_in_order_and_the_tasks_own_output_does_not_disturb():
    heard = []
    outcomes = run(
        task(functions.noisy, lines=500), progress=lambda *arguments: heard.append(arguments)
    )
    assert heard == [("noisy", f"part {n}", n / 500) for n in range(500)]
    assert outcomes["noisy"].value == "y" * 300_000
    report("nobody listens", 0.5)  # a task that is called here


def test_values_come_back_as_json_keeps_them():
    assert run(task(functions.pair))["pair"].value == [1, float("inf")]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is kept on Linux")
def test_memory_beyond_the_limit_is_refused_to_the_task():
    executor = LocalExecutor(workers=1, memory_limit=200 << 20)
    outcomes = run(
        task(functions.allocate, key="small", megabytes=50),
        task(functions.allocate, key="large", megabytes=400),
        executor=executor,
    )
    assert outcomes["small"].value == 50 << 20
    assert (outcomes["large"].kind, outcomes["large"].message) == ("error", "MemoryError")


def test_closing_the_generator_kills_the_children(tmp_path):
    pid_file = tmp_path / "pids"
    results = LOCAL.run(
        [
            task(functions.sleep, seconds=300, pid_file=str(pid_file)),
            task(functions.double, number=1),
        ]
    )
    assert isinstance(next(results)[1], Done)
    wait_until(pid_file.exists)
    results.close()
    assert not any(alive(pid) for pid in pid_file.read_text().split()[:1])
    wait_until(lambda: not any(alive(pid) for pid in pid_file.read_text().split()))


def test_an_error_in_the_progress_callback_kills_the_children_and_is_raised():
    def broken(key, what, share):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(task(functions.noisy, lines=1), progress=broken)


PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
import executor_tasks
from bezoar.executors import LocalExecutor, Task

task = Task(key="a", function=executor_tasks.sleep,
            arguments={"seconds": 300, "pid_file": sys.argv[2]})
list(LocalExecutor(workers=1).run([task]))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_children_die_with_the_parent(tmp_path, how):
    if how == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent was killed")
    pid_file = tmp_path / "pids"
    command = [sys.executable, "-c", PARENT, str(Path(__file__).parent), str(pid_file)]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603 (our own code)
    try:
        wait_until(pid_file.exists)
        child, grandchild = map(int, pid_file.read_text().split())
        assert alive(child)
        parent.send_signal(how)
        parent.wait(timeout=20)
        wait_until(lambda: not alive(child))
        if how == signal.SIGINT:
            wait_until(lambda: not alive(grandchild))
    finally:
        parent.kill()
        parent.wait()
        for pid in pid_file.read_text().split() if pid_file.exists() else ():
            if alive(pid):
                os.kill(int(pid), signal.SIGKILL)


def test_a_function_that_no_other_process_can_import_is_refused():
    def inner():
        pass

    as_a_script = type(functions.double)(functions.double.__code__, {}, "double")
    as_a_script.__module__ = "__main__"
    for function in (inner, lambda: 1, as_a_script, LOCAL.run):
        with pytest.raises(InputError, match="another process cannot import"):
            Task(key="a", function=function)


def test_a_module_that_is_gone_in_the_child_is_an_error_of_the_task(monkeypatch, tmp_path):
    (tmp_path / "short_lived.py").write_text("def work():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import short_lived

    (tmp_path / "short_lived.py").unlink()
    outcome = run(task(short_lived.work))["work"]
    assert (outcome.kind, outcome.message) == (
        "error",
        "ModuleNotFoundError: No module named 'short_lived'",
    )


def test_bad_tasks_and_settings_are_refused_before_anything_runs():
    with pytest.raises(InputError, match="the arguments of task 'double' cannot be sent"):
        task(functions.double, number={1})
    twice = [task(functions.double, number=1)] * 2
    with pytest.raises(InputError, match="two tasks have the key 'double'"):
        next(LOCAL.run(twice))
    for settings, message in (
        ({"workers": 0}, "workers is 0; expected at least 1"),
        ({"workers": 1, "threads_per_worker": 0}, "threads_per_worker is 0"),
        ({"workers": 1, "timeout_s": 0}, "timeout_s is 0; expected more than 0"),
        ({"workers": 1, "timeout_s": float("nan")}, "timeout_s is nan"),
        ({"workers": 1, "memory_limit": -1}, "memory_limit is -1"),
    ):
        with pytest.raises(InputError, match=message):
            LocalExecutor(**settings)


def test_no_tasks_are_no_outcomes():
    assert run() == {}


def test_executors_by_name():
    assert make_executor("local:4") == LocalExecutor(workers=4)
    assert make_executor("local", timeout_s=5).workers == len(os.sched_getaffinity(0))
    assert make_executor("local", cpus_per_task=10_000).workers == 1
    assert make_executor("ray").address is None
    assert make_executor("ray:auto", gpus_per_task=0.5).gpus_per_task == 0.5
    assert make_executor("ray:ray://10.0.0.1:10001").address == "ray://10.0.0.1:10001"
    for spec in ("", "loca", "local:", "local:0", "local:-1", "local:two", "ray:", "dask"):
        with pytest.raises(InputError, match="expected local, local:WORKERS, ray, ray:auto or"):
            make_executor(spec)
    with pytest.raises(InputError, match="tasks on Ray have no timeout"):
        make_executor("ray", timeout_s=1)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"run pip install 'bezoar\[ray\]'"):
        next(make_executor("ray").run([task(functions.double, number=1)]))
