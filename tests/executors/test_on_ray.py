"""Tasks on Ray: one node, then a cluster of two of which one is killed. Slow, as Ray starts slowly.

Everything listens on the loopback interface only.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import executor_tasks as functions
import pytest
from ray_import import import_ray
from test_local import alive, wait_until

from bezoar.errors import InputError
from bezoar.executors import Done, RayExecutor, Task
from bezoar.executors.on_ray import _Shelf
from bezoar.executors.ray_progress import Reporter, Reports


def task(function, key=None, files=None, **arguments):
    return Task(
        key=key or function.__name__, function=function, arguments=arguments, files=files or {}
    )


@pytest.fixture(scope="module")
def ray():
    ray = import_ray()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        _node_ip_address="127.0.0.1",
    )
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_one_of_each_kind_of_end(ray, tmp_path):
    marker = tmp_path / "marker"
    tasks = [
        task(functions.double, number=21),
        task(functions.fail, text="by the task"),
        task(functions.exit_at_once, status=3),
        task(functions.kill_itself),
        task(functions.kill_itself_once, marker=str(marker)),
        task(functions.no_json),
        task(functions.noisy, lines=3),
    ]
    outcomes = dict(RayExecutor(max_retries=1).run(tasks))
    assert outcomes["double"].value == 42
    failed = outcomes["fail"]
    assert (failed.kind, failed.message) == ("error", "RuntimeError: by the task")
    assert "raise RuntimeError(text)" in failed.traceback
    crashed = outcomes["exit_at_once"]
    assert (crashed.kind, crashed.message) == ("crash", "the process died (exit status 3)")
    assert crashed.traceback == "last words\n"
    assert outcomes["kill_itself"].kind == "crash" and "SIGKILL" in outcomes["kill_itself"].message
    assert outcomes["kill_itself_once"].value == "second time"
    assert marker.read_text() == "started\n" * 2
    assert outcomes["no_json"].kind == "error"
    assert outcomes["noisy"].value == "y" * 300_000
    assert ray.is_initialized(), "the caller's Ray is left running"


@pytest.mark.slow
def test_an_exception_is_not_tried_again(ray, tmp_path):
    marker = tmp_path / "marker"
    outcomes = dict(RayExecutor().run([task(functions.fail_and_count, marker=str(marker))]))
    assert outcomes["fail_and_count"].kind == "error"
    assert marker.read_text() == "started\n"


@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, 2])
def test_a_process_that_dies_every_time_is_a_crash_in_the_end(ray, tmp_path, retries):
    marker = tmp_path / "marker"
    outcomes = dict(
        RayExecutor(max_retries=retries).run([task(functions.count_and_die, marker=str(marker))])
    )
    assert outcomes["count_and_die"].kind == "crash"
    assert marker.read_text() == "started\n" * (1 + retries)


@pytest.mark.slow
def test_a_worker_of_ray_that_is_killed_costs_a_retry(ray, tmp_path):
    pid_file = tmp_path / "pids"
    results = RayExecutor(max_retries=0).run(
        [
            task(functions.sleep, seconds=120, pid_file=str(pid_file)),
            task(functions.double, number=1),
        ]
    )
    assert next(results)[0] == "double"
    wait_until(pid_file.exists)
    pid = pid_file.read_text().split()[0]
    worker = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
    os.kill(int(worker), signal.SIGKILL)
    outcomes = dict(results)
    assert outcomes["sleep"].kind == "crash" and "WorkerCrashedError" in outcomes["sleep"].message
    wait_until(lambda: not alive(pid))


@pytest.mark.slow
def test_a_task_that_hangs_or_eats_memory_ends_and_the_others_finish(ray):
    executor = RayExecutor(timeout_s=3, memory_limit=200 << 20)
    outcomes = dict(
        executor.run(
            [
                task(functions.sleep, seconds=300),
                task(functions.allocate, megabytes=400),
                task(functions.double, number=1),
            ]
        )
    )
    assert (outcomes["sleep"].kind, outcomes["sleep"].message) == (
        "timeout",
        "still running after 3 s",
    )
    assert (outcomes["allocate"].kind, outcomes["allocate"].message) == ("error", "MemoryError")
    assert outcomes["double"].value == 2


@pytest.mark.slow
def test_each_task_has_a_fresh_process_with_the_threads_asked_for(ray):
    tasks = [task(functions.surroundings, key=str(n)) for n in range(3)]
    values = [outcome.value for _, outcome in RayExecutor(cpus_per_task=2).run(tasks)]
    assert len({value.pop("pid") for value in values}) == 3
    assert values == [{"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}] * 3


@pytest.mark.slow
def test_fractions_of_a_core_run_more_tasks_at_a_time(ray):
    started = time.monotonic()
    tasks = [task(functions.sleep, key=str(n), seconds=3) for n in range(4)]
    outcomes = dict(RayExecutor(cpus_per_task=0.5).run(tasks))
    assert len(outcomes) == 4 and time.monotonic() - started < 12
    one = dict(RayExecutor(cpus_per_task=0.5).run([task(functions.surroundings)]))
    assert one["surroundings"].value["OMP_NUM_THREADS"] == "1"


@pytest.mark.slow
def test_progress_arrives_before_the_outcome(ray):
    heard = []
    tasks = [task(functions.count_loudly, key=str(n), steps=200) for n in range(3)]
    for key, outcome in RayExecutor().run(tasks, progress=lambda *report: heard.append(report)):
        assert outcome.value == 200
        mine = [report[1:] for report in heard if report[0] == key]
        assert mine[-1] == ("done", 1.0)
        shares = [share for _, share in mine]
        assert shares == sorted(shares) and len(mine) >= 2


@pytest.mark.slow
def test_an_error_in_the_progress_callback_is_raised_and_ends_the_tasks(ray, tmp_path):
    pid_file = tmp_path / "pids"

    def broken(key, what, share):
        raise ZeroDivisionError

    tasks = [
        task(functions.sleep, seconds=300, pid_file=str(pid_file)),
        task(functions.count_loudly, steps=2),
    ]
    with pytest.raises(ZeroDivisionError):
        dict(RayExecutor().run(tasks, progress=broken))
    if pid_file.exists():
        wait_until(lambda: not alive(pid_file.read_text().split()[0]))


def test_of_many_reports_the_first_and_the_last_on_each_thing_are_sent():
    class Call:
        def __init__(self, function):
            self.remote = function

    class Actor:
        def __init__(self, reports):
            self.add = Call(reports.add)

    sent = []
    reports = Reports()
    reports.add = lambda *report: sent.append(report)
    reporter = Reporter(None, Actor(reports), "key")
    for step in range(100):
        reporter.add(f"first (loss {step})", step / 100)
    for step in range(100):
        reporter.add("second", step / 100)
    reporter.add("second", 1.0)
    assert sent == [
        ("key", "first (loss 0)", 0.0),
        ("key", "first (loss 99)", 0.99),
        ("key", "second", 0.0),
        ("key", "second", 1.0),
    ]


def test_reports_that_nobody_takes_do_not_pile_up():
    reports = Reports()
    for step in range(1000):
        reports.add("a", f"training (step {step})", step / 1000)
        reports.add("b", "training", step / 1000)
    assert reports.take() == [("a", "training (step 999)", 0.999), ("b", "training", 0.999)]
    assert reports.take() == []


@pytest.mark.slow
def test_closing_the_generator_kills_what_runs(ray, tmp_path):
    pid_file = tmp_path / "pids"
    results = RayExecutor().run(
        [
            task(functions.sleep, seconds=120, pid_file=str(pid_file)),
            task(functions.double, number=1),
        ]
    )
    assert next(results)[0] == "double"
    wait_until(pid_file.exists)
    results.close()
    wait_until(lambda: not alive(pid_file.read_text().split()[0]))


@pytest.mark.slow
def test_thousands_of_tasks_are_handed_over_a_few_at_a_time(ray, monkeypatch, tmp_path):
    (tmp_path / "shared").write_text("words")
    most, waited = [], ray.wait

    def wait(pending, **options):
        most.append(len(pending))
        return waited(pending, **options)

    monkeypatch.setattr(ray, "wait", wait)
    results = RayExecutor().run(
        task(functions.double, key=str(n), number=n, files={}) for n in range(5000)
    )
    for _ in range(10):
        next(results)
    results.close()
    assert max(most) == 8


def test_bad_settings_are_refused():
    for settings in ({"gpus_per_task": -1}, {"gpus_per_task": 1.5}):
        with pytest.raises(InputError, match="the share of a GPU is"):
            RayExecutor(**settings)
    for settings in (
        {"cpus_per_task": 0},
        {"cpus_per_task": 0.01},
        {"cpus_per_task": 1.5},
        {"timeout_s": 0},
        {"memory_limit": -1},
        {"max_retries": -1},
    ):
        with pytest.raises(InputError, match=f"{next(iter(settings))} is"):
            RayExecutor(**settings)


def test_only_what_a_pattern_chooses_is_put_on_the_shelf(tmp_path):
    for name in ("a-0", "a-1", "b-0"):
        (tmp_path / name).write_text(name)
    stored = []
    tasks = [
        Task(
            key=key,
            function=functions.double,
            files={"images": str(tmp_path)},
            patterns={} if pattern is None else {"images": pattern},
        )
        for key, pattern in (("1", "a-*"), ("2", "a-*"), ("3", "b-*"), ("4", None))
    ]
    shelf = _Shelf(tasks, lambda thing: stored.append(thing) or len(stored) - 1)
    first, second, third, fourth = (
        shelf.take(task.files["images"], task.patterns.get("images")) for task in tasks
    )
    assert first is second
    found = [stored[package.blocks[0]] for package in (first, third, fourth)]
    assert found == [b"a-0a-1", b"b-0", b"a-0a-1b-0"]
    shelf.used(tasks[0])
    assert len(shelf.packages) == 3, "another task needs it"
    for task in tasks[1:]:
        shelf.used(task)
    assert not shelf.packages


@pytest.mark.slow
def test_its_own_ray_is_started_and_stopped(ray, tmp_path):
    ray.shutdown()
    (tmp_path / "a").write_text("words")
    tasks = [
        task(functions.double, number=4),
        task(functions.pair),
        task(functions.read_files, files={"text": str(tmp_path / "a")}),
    ]
    results = RayExecutor().run(tasks)
    first = next(results)
    assert ray.util.get_node_ip_address() == "127.0.0.1"
    outcomes = dict([first, *results])
    assert outcomes["double"].value == 8
    assert outcomes["pair"].value == [1, float("inf")]
    assert outcomes["read_files"].value[2] == str(tmp_path / "a"), "nothing is copied here"
    assert not ray.is_initialized()
    with pytest.raises(InputError, match="Ray cannot be reached at auto"):
        next(RayExecutor(address="auto").run([task(functions.double, number=4)]))
    with pytest.raises(InputError, match="a task needs 500 cores and 0 GPUs"):
        next(RayExecutor(cpus_per_task=500).run([task(functions.double, number=4)]))
    assert not ray.is_initialized()


# -- two nodes -------------------------------------------------------------------------------------


def raylet_of(node):
    return node.all_processes["raylet"][0].process.pid


def told(marker):
    if not marker.exists():
        return []
    return [json.loads(line) for line in marker.read_text().splitlines()]


def in_work(marker, node):
    """The keys of tasks that have started on a node and not finished."""
    there = [line for line in told(marker) if line["node"] == node]
    done = {line["key"] for line in there if line["what"] == "finished"}
    return {line["key"] for line in there} - done


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_node_that_is_killed_costs_only_the_tasks_that_it_had(cluster, tmp_path):
    """What had finished is not done again, what was interrupted is, and all have one outcome."""
    second = cluster.add()
    lost = raylet_of(second)
    marker = tmp_path / "marker"
    tasks = [
        Task(
            key=f"task {n}",
            function=functions.work,
            arguments={"key": f"task {n}", "marker": str(marker), "seconds": 2.5},
        )
        for n in range(8)
    ]
    heard, outcomes = [], []
    results = RayExecutor(address=cluster.address).run(
        tasks, progress=lambda *report: heard.append(report)
    )
    while {outcome.value for _, outcome in outcomes} != {lost, raylet_of(cluster.head_node)}:
        outcomes.append(next(results))
    wait_until(lambda: in_work(marker, lost))
    before = told(marker)
    interrupted = in_work(marker, lost)
    cluster.remove_node(second, allow_graceful=False)
    outcomes += results

    assert sorted(key for key, _ in outcomes) == sorted(task.key for task in tasks)
    assert all(isinstance(outcome, Done) for _, outcome in outcomes)
    after = told(marker)

    def times(what, key):
        return sum((line["what"], line["key"]) == (what, key) for line in after)

    finished_before = [line["key"] for line in before if line["what"] == "finished"]
    assert finished_before, "the node was not killed at the very start"
    assert all(times("finished", key) == times("started", key) == 1 for key in finished_before)
    assert interrupted and all(times("started", key) == 2 for key in interrupted)
    assert all(times("finished", key) == 1 for key in {task.key for task in tasks})
    assert {key for key, what, _ in heard if what == "waiting"} == {task.key for task in tasks}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_node_that_joins_later_gets_tasks_and_files(cluster, tmp_path):
    """The files are gone from the disk by then: they come out of the cluster, once for a node."""
    files = {"text": str(tmp_path / "text"), "folder": str(tmp_path / "folder")}
    (tmp_path / "text").write_text("words")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights.pt").write_bytes(b"1" * 1000)
    tasks = [task(functions.read_slowly, key=str(n), files=files, seconds=1.0) for n in range(16)]
    gone = {"text": str(tmp_path / "none")}
    tasks.insert(1, task(functions.read_files, key="no file", files=gone))
    results = RayExecutor(address=cluster.address).run(tasks)
    outcomes = [next(results), next(results)]
    (tmp_path / "text").unlink()
    (tmp_path / "folder" / "weights.pt").unlink()
    (tmp_path / "folder").rmdir()
    second = cluster.add()
    outcomes = dict([*outcomes, *results])
    missing = outcomes.pop("no file")
    assert missing.kind == "error" and missing.message.startswith("FileNotFoundError")
    assert all(isinstance(outcome, Done) for outcome in outcomes.values()), outcomes
    nodes = {outcome.value["node"] for outcome in outcomes.values()}
    assert nodes == {raylet_of(cluster.head_node), raylet_of(second)}
    for node in nodes:
        there = [o.value for o in outcomes.values() if o.value["node"] == node]
        assert {value["text"] for value in there} == {"words"}
        (places,) = {tuple(value["places"]) for value in there}
        assert all("bezoar-files" in place and "session_" in place for place in places)
        (written,) = {value["written"] for value in there}
        assert written > 0, "one copy, written once"
    assert len({o.value["places"][0] for o in outcomes.values()}) == 2
