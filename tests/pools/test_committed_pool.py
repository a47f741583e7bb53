"""The pool that lies in the repository is what its index says."""

import os
from pathlib import Path

import pytest

from bezoar.datasets import open_dataset
from bezoar.evaluation import evaluate
from bezoar.pools import open_pool, plan, read_spec

FOLDER = Path(__file__).parents[2] / "benchmarks" / "pool"


@pytest.fixture(scope="module")
def pool():
    return open_pool(FOLDER)


def test_it_is_large_and_varied_enough_to_work_with(pool):
    clean = [entry for entry in pool.entries if entry.status == "clean"]
    attacked = [entry for entry in pool.entries if entry.status == "backdoored"]
    assert len(clean) >= 12 and len(attacked) >= 24
    assert len({entry.attack for entry in attacked}) >= 10
    assert {entry.target for entry in attacked if entry.data == "cifar10"} == set(range(10))
    assert all(entry.asr >= 0.9 for entry in attacked)
    for half in ("development", "held-out"):
        statuses = [entry.status for entry in pool.half(half)]
        assert statuses.count("clean") >= 5 and statuses.count("backdoored") >= 8


def test_it_is_finished_and_small(pool):
    assert pool.failed == {} and pool.waiting == ()
    assert {one.job.name for one in plan(read_spec(FOLDER / "pool.toml"))} == {
        entry.name for entry in pool.entries
    }
    assert {path.name for path in FOLDER.iterdir() if path.is_dir() and path.name[0] != "."} == {
        entry.name for entry in pool.entries
    }
    assert sum(path.stat().st_size for path in FOLDER.glob("*/*")) <= 16e6


def test_half_precision_keeps_accuracy_and_backdoor(pool):
    for entry in pool.entries:
        record = pool.record(entry)
        for name, rate in record["scores"].items():
            assert abs(rate["value"] - record["before rounding"][name]["value"]) < 0.01, entry.name


@pytest.mark.parametrize("data", ["cifar10", "gtsrb"])
def test_its_models_answer_as_recorded(pool, data):
    if not os.environ.get("BEZOAR_DATA"):
        pytest.skip("BEZOAR_DATA is not set: the folder with real images and checkpoints")
    test = open_dataset(data, "test").sample(600, seed=1)
    chosen = [e for e in pool.entries if e.data == data and e.status == "backdoored"][::4]
    assert chosen
    for entry in chosen:
        scores = evaluate(pool.load(entry, device="cpu").classifier, test, pool.attack(entry))
        assert abs(scores.acc - entry.acc) < 0.06, entry.name
        assert abs(scores.asr - entry.asr) < 0.05, entry.name
