"""Tasks on Ray, started once on this machine: slow, as Ray and each of its workers start slowly."""

import os

import executor_tasks as functions
import pytest

from bezoar.errors import InputError
from bezoar.executors import RayExecutor, Task


def task(function, key=None, **arguments):
    return Task(key=key or function.__name__, function=function, arguments=arguments)


@pytest.fixture(scope="module")
def ray():
    # As the executor sets them: no network, no statistics.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'bezoar[ray]'")
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
        task(functions.kill_itself),
        task(functions.kill_itself_once, marker=str(marker)),
        task(functions.no_json),
    ]
    outcomes = dict(RayExecutor(max_retries=1).run(tasks))
    assert outcomes["double"].value == 42
    failed = outcomes["fail"]
    assert (failed.kind, failed.message) == ("error", "RuntimeError: by the task")
    assert "raise RuntimeError(text)" in failed.traceback
    assert outcomes["kill_itself"].kind == "crash"
    assert outcomes["kill_itself_once"].value == "second time"
    assert marker.read_text() == "started\n" * 2
    assert outcomes["no_json"].kind == "error"
    assert ray.is_initialized(), "the caller's Ray is left running"


@pytest.mark.slow
def test_an_exception_is_not_tried_again(ray, tmp_path):
    marker = tmp_path / "marker"
    outcomes = dict(RayExecutor().run([task(functions.fail_and_count, marker=str(marker))]))
    assert outcomes["fail_and_count"].kind == "error"
    assert marker.read_text() == "started\n"


@pytest.mark.slow
def test_without_retries_a_lost_worker_is_a_crash(ray, tmp_path):
    marker = tmp_path / "marker"
    outcomes = dict(
        RayExecutor(max_retries=0).run([task(functions.kill_itself_once, marker=str(marker))])
    )
    assert outcomes["kill_itself_once"].kind == "crash"
    assert marker.read_text() == "started\n"


@pytest.mark.slow
def test_each_task_has_a_fresh_process_with_the_threads_asked_for(ray):
    tasks = [task(functions.surroundings, key=str(n)) for n in range(3)]
    values = [outcome.value for _, outcome in RayExecutor(cpus_per_task=2).run(tasks)]
    assert len({value.pop("pid") for value in values}) == 3
    assert values == [{"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}] * 3


@pytest.mark.slow
def test_closing_the_generator_kills_what_runs(ray, tmp_path):
    from test_local import alive, wait_until

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


def test_bad_settings_are_refused():
    for settings in ({"cpus_per_task": 0}, {"gpus_per_task": -1}, {"max_retries": -1}):
        with pytest.raises(InputError, match=f"{next(iter(settings))} is"):
            RayExecutor(**settings)


@pytest.mark.slow
def test_its_own_ray_is_started_and_stopped(ray):
    ray.shutdown()
    results = RayExecutor().run([task(functions.double, number=4), task(functions.pair)])
    first = next(results)
    assert ray.util.get_node_ip_address() == "127.0.0.1"
    outcomes = dict([first, *results])
    assert outcomes["double"].value == 8
    assert outcomes["pair"].value == [1, float("inf")]
    assert not ray.is_initialized()
    with pytest.raises(InputError, match="Ray cannot be reached at auto"):
        next(RayExecutor(address="auto").run([task(functions.double, number=4)]))
