"""Tasks in processes of their own: whatever one of them does, the others and the parent go on."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import executor_tasks as functions
import pytest
from msgspec import structs

from bezoar.errors import InputError
from bezoar.executors import (
    Done,
    HereExecutor,
    LocalExecutor,
    RayExecutor,
    Task,
    make_executor,
    report,
)
from bezoar.executors.gpus import capacity, gpu_environment, visible_gpus

LOCAL = LocalExecutor(workers=2, timeout_s=60)
REUSED = LocalExecutor(workers=2, timeout_s=60, reuse=True)
BOTH = pytest.mark.parametrize("local", [LOCAL, REUSED], ids=["fresh", "reused"])


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


@BOTH
def test_one_of_each_kind_of_end(local):
    outcomes = run(
        task(functions.double, number=21),
        task(functions.fail, text="by the task"),
        task(functions.leave, status=0),
        task(functions.exit_at_once, status=3),
        task(functions.kill_itself),
        task(functions.no_json),
        task(functions.leaves_a_thread),
        executor=local,
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


@BOTH
def test_a_task_that_hangs_is_killed_with_its_children_and_the_others_finish(tmp_path, local):
    pid_file = tmp_path / "pids"
    executor = structs.replace(local, timeout_s=3)
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


@BOTH
def test_outcomes_belong_to_their_keys_and_come_as_they_finish(local):
    tasks = [task(functions.sleep, key="slow", seconds=1.5)]
    tasks += [task(functions.double, key=str(n), number=n) for n in range(6)]
    outcomes = list(local.run(tasks))
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


@BOTH
def test_no_more_workers_than_asked_for(local):
    started = time.monotonic()
    run(*(task(functions.sleep, key=str(n), seconds=0.5) for n in range(4)), executor=local)
    assert time.monotonic() - started > 1.0


@BOTH
def test_progress_arrives_in_order_and_the_tasks_own_output_does_not_disturb(local):
    heard = []
    outcomes = run(
        task(functions.noisy, lines=500),
        executor=local,
        progress=lambda *arguments: heard.append(arguments),
    )
    assert heard == [("noisy", f"part {n}", n / 500) for n in range(500)]
    assert outcomes["noisy"].value == "y" * 300_000
    report("nobody listens", 0.5)  # a task that is called here


def test_values_come_back_as_json_keeps_them():
    assert run(task(functions.pair))["pair"].value == [1, float("inf")]


@BOTH
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is kept on Linux")
def test_memory_beyond_the_limit_is_refused_to_the_task(local):
    executor = structs.replace(local, workers=1, memory_limit=200 << 20)
    outcomes = run(
        task(functions.allocate, key="small", megabytes=50),
        task(functions.allocate, key="large", megabytes=400),
        executor=executor,
    )
    assert outcomes["small"].value == 50 << 20
    assert (outcomes["large"].kind, outcomes["large"].message) == ("error", "MemoryError")
    boundless = structs.replace(executor, memory_limit=10 << 60)
    beyond = run(task(functions.allocate, key="small", megabytes=50), executor=boundless)
    assert beyond["small"].value == 50 << 20


@BOTH
def test_closing_the_generator_kills_the_children(tmp_path, local):
    pid_file = tmp_path / "pids"
    results = local.run(
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


@BOTH
def test_an_error_in_the_progress_callback_kills_the_children_and_is_raised(local):
    def broken(key, what, share):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(task(functions.noisy, lines=1), executor=local, progress=broken)


PARENT = """
import signal
import sys

# What a shell starts in the background ignores interrupts, and so would this process.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
import executor_tasks
from bezoar.executors import LocalExecutor, Task

tasks = [Task(key="a", function=executor_tasks.double, arguments={"number": 1}),
         Task(key="b", function=executor_tasks.sleep,
              arguments={"seconds": 300, "pid_file": sys.argv[2]})]
list(LocalExecutor(workers=1, reuse=sys.argv[3] == "True").run(tasks))
"""


@BOTH
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_children_die_with_the_parent(tmp_path, how, local):
    if how == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent was killed")
    pid_file = tmp_path / "pids"
    command = [sys.executable, "-c", PARENT, str(Path(__file__).parent), str(pid_file)]
    command.append(str(local.reuse))
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
        ({"workers": 1, "gpus_per_task": -1}, "the share of a GPU is -1"),
        ({"workers": 1, "gpus_per_task": 1.5}, "the share of a GPU is 1.5"),
        ({"workers": 1, "gpus_per_task": float("inf")}, "the share of a GPU is inf"),
    ):
        with pytest.raises(InputError, match=message):
            LocalExecutor(**settings)


@BOTH
def test_no_tasks_are_no_outcomes(local):
    assert run(executor=local) == {}


# -- reused processes ------------------------------------------------------------------------------


def in_one_process(*tasks, **settings):
    """The outcomes of tasks that follow one another in a process, as long as it is good."""
    return dict(LocalExecutor(workers=1, reuse=True, **settings).run(tasks))


def test_a_reused_process_serves_one_task_after_another():
    outcomes = in_one_process(*(task(functions.process, key=str(n)) for n in range(4)))
    (pid,) = {outcome.value for outcome in outcomes.values()}
    assert pid != os.getpid() and not alive(pid)


def test_seconds_are_those_of_each_task():
    outcomes = in_one_process(
        task(functions.sleep, key="long", seconds=1), task(functions.double, number=1)
    )
    assert outcomes["long"].seconds >= 1 and outcomes["double"].seconds < 0.5


def test_a_module_in_the_working_folder_runs_in_no_worker(monkeypatch, tmp_path):
    for name in ("json", "bezoar"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    outcomes = run(task(functions.double, number=21))
    assert outcomes["double"].value == 42 and not (tmp_path / "ran").exists()


def test_the_time_of_each_task_is_its_own():
    tasks = [task(functions.sleep, key=str(n), seconds=0.6) for n in range(3)]
    outcomes = in_one_process(*tasks, task(functions.sleep, seconds=60), timeout_s=1.5)
    assert [outcomes[str(n)].value for n in range(3)] == [0.6, 0.6, 0.6]
    assert outcomes["sleep"].kind == "timeout" and 1.5 <= outcomes["sleep"].seconds < 3


FAILURES = {
    "an exception": task(functions.fail, text="x"),
    "an exit": task(functions.leave, status=0),
    "no JSON": task(functions.no_json),
    "a death": task(functions.kill_itself),
    "an end without a word": task(functions.exit_at_once, status=3),
    "an interrupt": task(functions.interrupt),
    "a thread left behind": task(functions.leaves_a_thread),
    "no time left": task(functions.sleep, seconds=60),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_after_damage_the_next_task_gets_a_new_process(failure):
    outcomes = in_one_process(
        task(functions.process, key="before"),
        FAILURES[failure],
        task(functions.process, key="after"),
        timeout_s=3,
    )
    assert isinstance(outcomes["before"], Done) and isinstance(outcomes["after"], Done)
    assert outcomes["before"].value != outcomes["after"].value


@BOTH
def test_what_a_task_leaves_running_ends_with_its_process(local, tmp_path):
    pid_file = tmp_path / "pid"
    outcomes = run(
        task(functions.leaves_a_process, pid_file=str(pid_file)),
        task(functions.process, key="after"),
        executor=structs.replace(local, workers=1),
    )
    assert outcomes["leaves_a_process"].value != outcomes["after"].value
    wait_until(lambda: not alive(pid_file.read_text()))


@BOTH
def test_a_crash_shows_the_last_words_of_its_own_task(local):
    outcomes = run(
        task(functions.noisy, lines=2),
        task(functions.exit_at_once, status=3),
        executor=structs.replace(local, workers=1),
    )
    assert outcomes["noisy"].value == "y" * 300_000
    assert outcomes["exit_at_once"].traceback == "last words\n"


@BOTH
def test_a_task_that_reads_its_input_finds_none(local):
    outcomes = run(
        *(task(functions.read_input, key=str(n)) for n in range(2)),
        executor=structs.replace(local, workers=1),
    )
    assert [outcome.value for outcome in outcomes.values()] == ["", ""]


def test_folder_and_environment_are_put_back(tmp_path):
    outcomes = in_one_process(
        task(functions.change_surroundings, folder=str(tmp_path)),
        task(functions.find_surroundings),
    )
    pid, left = outcomes["change_surroundings"].value
    assert left == "1"
    assert outcomes["find_surroundings"].value == [pid, str(Path.cwd()), None]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is kept on Linux")
def test_what_former_tasks_hold_does_not_count_against_a_task():
    """Six times 60 MB are more than 250 MB; half of that may stay, and then comes a new process."""
    tasks = [task(functions.keep, key=str(n), megabytes=60) for n in range(6)]
    tasks.append(task(functions.allocate, megabytes=200))
    outcomes = in_one_process(*tasks, memory_limit=250 << 20)
    assert all(isinstance(outcome, Done) for outcome in outcomes.values())
    pids = [outcomes[str(n)].value for n in range(6)]
    assert 1 < len(set(pids)) < 6
    beyond = in_one_process(task(functions.allocate, megabytes=400), memory_limit=250 << 20)
    assert beyond["allocate"].message == "MemoryError"


# -- GPUs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "share", "seen"),
    [
        (2, 1, ["0", "1"]),
        (3, 0.5, ["0", "1", "2", "0", "1", "2"]),
        (2, 0.3, ["0", "1"] * 3),
        (1, 0.25, ["0"] * 4),
        (5, 2, ["0,1", "2,3"]),
        (1, 2, []),
        (0, 1, []),
        (0, 0.5, []),
    ],
)
def test_each_worker_sees_its_own_gpus(count, share, seen):
    gpus = [str(n) for n in range(count)]
    fitting = capacity(gpus, share)
    shown = [gpu_environment(n, gpus, share) for n in range(fitting)]
    assert shown == [{"CUDA_VISIBLE_DEVICES": names} for names in seen]
    assert gpu_environment(0, gpus, 0) == {}


@BOTH
def test_processes_get_the_gpus_that_this_process_may_use(monkeypatch, local):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    tasks = [task(functions.gpus, key=str(n)) for n in range(4)]
    shared = run(*tasks, executor=local)
    assert {outcome.value for outcome in shared.values()} == {"3,GPU-abc"}
    own = run(*tasks, executor=structs.replace(local, workers=5, gpus_per_task=1))
    assert {outcome.value for outcome in own.values()} == {"3", "GPU-abc"}
    two = run(*tasks, executor=structs.replace(local, gpus_per_task=2))
    assert {outcome.value for outcome in two.values()} == {"3,GPU-abc"}
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        with pytest.raises(InputError, match="needs 1 GPUs and this machine shows 0"):
            run(*tasks, executor=structs.replace(local, gpus_per_task=1))


@pytest.mark.parametrize(
    ("named", "seen"), [("-1", ()), ("0,-1,1", ("0",)), ("3, GPU-abc", ("3", "GPU-abc"))]
)
def test_no_gpu_is_seen_from_the_first_negative_number_on(named, seen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == seen


# -- in this process -------------------------------------------------------------------------------


def test_here_gives_the_same_outcomes_in_this_process():
    heard = []
    outcomes = run(
        task(functions.process),
        task(functions.fail, text="by the task"),
        task(functions.leave, status=0),
        task(functions.no_json),
        task(functions.pair),
        task(functions.count_loudly, steps=2),
        executor=HereExecutor(),
        progress=lambda *arguments: heard.append(arguments),
    )
    assert outcomes["process"].value == os.getpid()
    assert list(outcomes) == ["process", "fail", "leave", "no_json", "pair", "count_loudly"]
    assert outcomes["fail"].message == "RuntimeError: by the task"
    assert "raise RuntimeError(text)" in outcomes["fail"].traceback
    assert outcomes["leave"].message == "SystemExit: 0"
    assert outcomes["no_json"].kind == "error"
    assert outcomes["pair"].value == [1, float("inf")]
    assert heard == [
        ("count_loudly", "counting (step 0)", 0.0),
        ("count_loudly", "counting (step 1)", 0.5),
        ("count_loudly", "done", 1.0),
    ]
    report("nobody listens any more", 0.5)
    assert len(heard) == 3


def test_here_ctrl_c_and_an_error_in_the_callback_end_the_run():
    def broken(key, what, share):
        raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt):
        run(task(functions.interrupt), executor=HereExecutor())
    with pytest.raises(ZeroDivisionError):
        run(task(functions.count_loudly, steps=1), executor=HereExecutor(), progress=broken)
    with pytest.raises(InputError, match="two tasks have the key"):
        run(*[task(functions.process)] * 2, executor=HereExecutor())
    for limits in ({"timeout_s": 1}, {"memory_limit": 1}):
        with pytest.raises(InputError, match="tasks in this process cannot be killed"):
            make_executor("here", **limits)
    for more in ({"cpus_per_task": 2}, {"gpus_per_task": 1}):
        with pytest.raises(InputError, match="tasks in this process have its threads"):
            make_executor("here", **more)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("local", [LOCAL, REUSED, HereExecutor()])
def test_files_come_as_paths(local, tmp_path):
    (tmp_path / "a.txt").write_text("words")
    given = {"text": str(tmp_path / "a.txt"), "folder": str(tmp_path)}
    tasks = [
        Task(key="there", function=functions.read_files, files=given),
        Task(key="gone", function=functions.read_files, files={"text": str(tmp_path / "none")}),
    ]
    outcomes = run(*tasks, executor=local)
    assert outcomes["there"].value == ["words", ["a.txt"], given["text"], given["folder"]]
    assert outcomes["gone"].message.startswith("FileNotFoundError")


def test_files_that_cannot_be_meant_are_refused():
    with pytest.raises(InputError, match="gives 'text' twice, as an argument and as a file"):
        Task(key="a", function=functions.read_files, arguments={"text": "x"}, files={"text": "y"})
    for path in (Path("x"), ""):
        with pytest.raises(InputError, match="expected a path as text"):
            Task(key="a", function=functions.read_files, files={"text": path})


def test_executors_by_name():
    assert make_executor("local:4") == LocalExecutor(workers=4)
    assert make_executor("local", timeout_s=5).workers == len(os.sched_getaffinity(0))
    assert make_executor("local", cpus_per_task=10_000).workers == 1
    assert make_executor("ray").address is None
    assert make_executor("ray:auto", gpus_per_task=0.5).gpus_per_task == 0.5
    assert make_executor("ray:ray://10.0.0.1:10001").address == "ray://10.0.0.1:10001"
    for spec in ("", "loca", "local:", "local:0", "local:-1", "local:two", "ray:", "dask"):
        with pytest.raises(InputError, match="expected here, local, local:WORKERS, ray, ray:auto"):
            make_executor(spec)
    assert make_executor("ray", timeout_s=1, memory_limit=5) == RayExecutor(
        timeout_s=1, memory_limit=5
    )
    assert make_executor("local:2", gpus_per_task=0.5, memory_limit=5, reuse=True) == LocalExecutor(
        workers=2, gpus_per_task=0.5, memory_limit=5, reuse=True
    )
    assert make_executor("here") == HereExecutor()
    with pytest.raises(InputError, match="a local task has whole ones"):
        make_executor("local:2", cpus_per_task=0.5)
    for odd in (math.inf, math.nan):
        with pytest.raises(InputError, match=f"{odd} threads are asked for"):
            make_executor("local", cpus_per_task=odd)
    assert make_executor("ray", cpus_per_task=0.5).cpus_per_task == 0.5


def test_tasks_that_compute_on_gpus_are_as_many_as_these(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: range(16))
    assert make_executor("local", device=None) == LocalExecutor(workers=2, gpus_per_task=1.0)
    assert make_executor("local", device="cuda").workers == 2
    assert make_executor("local", device="cpu").workers == 16
    assert make_executor("local:4", device=None) == LocalExecutor(workers=4), "as asked for"
    shared = make_executor("local", device=None, gpus_per_task=0.25)
    assert len(shared._environments()) == 8
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert make_executor("local", device=None) == LocalExecutor(workers=16)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"run pip install -c .* '\.\[ray\]'"):
        next(make_executor("ray").run([task(functions.double, number=1)]))
