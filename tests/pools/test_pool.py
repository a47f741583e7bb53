import os
import signal
import subprocess
import sys
import time

import pytest
import safetensors
import torch

from bezoar.datasets import open_dataset
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.executors import LocalExecutor, make_executor
from bezoar.pools import make_model, make_pool, open_pool, plan, read_spec
from bezoar.pools.making import open_images, read_record, status_of

pytestmark = pytest.mark.xdist_group("pool")  # one process makes its fixtures

SPEC = """
precision = "float16"
[recipe]
epochs = 8
batch_size = 64
learning_rate = 0.1
schedule = "one-cycle"
clip_norm = 5.0
[[grid]]
data = "digits"
networks = ["bezoar:small-cnn"]
arguments = { width = 16 }
seeds = [0, 1]
[[grid]]
data = "digits"
networks = ["bezoar:small-cnn"]
arguments = { width = 16 }
attacks = ["bad-nets:size=2"]
targets = [3, 8]
"""


@pytest.fixture
def spec(tmp_path):
    file = tmp_path / "pool.toml"
    file.write_text(SPEC)
    return read_spec(file)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    (folder / "pool.toml").write_text(SPEC)
    told = []
    pool = make_pool(
        read_spec(folder / "pool.toml"),
        folder,
        LocalExecutor(workers=2),
        finished=lambda *values: told.append(values),
    )
    assert [count for _, count, _ in told] == [1, 2, 3, 4] and {t for _, _, t in told} == {4}
    return pool


def test_every_model_is_there_with_its_scores(pool):
    assert pool.failed == {} and pool.waiting == () and len(pool.entries) == 4
    clean = [entry for entry in pool.entries if entry.status == "clean"]
    attacked = [entry for entry in pool.entries if entry.status == "backdoored"]
    assert len(clean) == len(attacked) == 2
    assert {entry.target for entry in attacked} == {3, 8}
    for entry in attacked:
        assert entry.asr >= 0.9 > 0.5 > entry.twin_asr
        assert entry.twin in {one.name for one in clean}
        assert abs(entry.acc - entry.twin_acc) < 0.06
    for half in ("development", "held-out"):
        assert {entry.status for entry in pool.half(half)} == {"clean", "backdoored"}


def test_the_index_is_what_open_pool_reads(pool):
    again = open_pool(pool.folder)
    assert again.entries == pool.entries


def test_a_stored_model_and_its_trigger_give_the_recorded_scores(pool):
    entry = next(entry for entry in pool.entries if entry.attack)
    test = open_dataset("digits", "test")
    scores = evaluate(pool.load(entry).classifier, test, pool.attack(entry))
    assert (scores.acc, scores.asr) == (entry.acc, entry.asr)
    record = pool.record(entry)
    assert record["planting"]["poisoned"] == round(0.1 * record["images"]["train"])
    assert 0 < record["seconds"]["training"] < record["seconds"]["total"]
    before = record["before rounding"]
    assert abs(before["asr"]["value"] - entry.asr) < 0.01, "half precision keeps the backdoor"
    with safetensors.safe_open(pool.folder / entry.name / "weights.safetensors", "pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds == {torch.float16, torch.int64}


def test_a_clean_model_has_no_trigger(pool):
    entry = next(entry for entry in pool.entries if not entry.attack)
    with pytest.raises(InputError, match="clean model and has no trigger"):
        pool.attack(entry)


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in folder.glob("*/*")}


def test_a_finished_pool_is_left_alone(pool, spec):
    before = stamps(pool.folder)
    again = make_pool(spec, pool.folder, LocalExecutor(workers=1))
    assert stamps(pool.folder) == before and again.entries == pool.entries


def test_a_pool_of_other_images_is_not_taken_for_this_one(pool, spec, monkeypatch):
    import bezoar.pools.run as run

    def renewed(job):
        train, test = open_images(job)
        return train, test.subset(torch.arange(len(test)).flip(0))

    monkeypatch.setattr(run, "open_images", renewed)
    before = stamps(pool.folder)
    with pytest.raises(InputError, match="its test images have changed since it was made"):
        make_pool(spec, pool.folder, LocalExecutor(workers=1))
    assert stamps(pool.folder) == before


def test_a_stop_after_the_training_does_not_cost_it(tmp_path, spec):
    job, out, checkpoint = plan(spec)[0].job, tmp_path / "m", tmp_path / "checkpoint"
    heard = []

    def stop(what, share):
        heard.append(what)
        if what == "measuring":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_model(job, out, checkpoint=checkpoint, progress=stop)
    assert list(tmp_path.glob("[.m]*")) == [] and checkpoint.exists()
    trained = heard.count("training")
    heard.clear()
    make_model(job, out, checkpoint=checkpoint, progress=lambda what, _share: heard.append(what))
    assert trained == 8 and "training" not in heard
    assert (out / "record.json").is_file() and not checkpoint.exists()


def test_a_model_that_another_process_made_meanwhile_is_taken(tmp_path, spec):
    job, out = plan(spec)[0].job, tmp_path / "m"

    def faster(what, _share):
        if what == "measuring":
            make_model(job, out, progress=lambda *_: None)

    record = make_model(job, out, progress=faster)
    assert record == read_record(out) and list(tmp_path.glob(".*")) == []


def test_a_killed_pool_loses_only_the_model_in_work(tmp_path, spec):
    out = tmp_path / "pool"
    command = [sys.executable, "-m", "bezoar", "attack", "pool", str(tmp_path / "pool.toml")]
    with subprocess.Popen(  # noqa: S603 (our own command)
        [*command, "--out", str(out), "--executor", "local:1", "--quiet"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as running:
        deadline = time.monotonic() + 120
        while len(list(out.glob("*/record.json"))) < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.7)  # into the second model
        running.send_signal(signal.SIGKILL)
    before = stamps(out)
    assert before, "a model was finished before the kill"
    finished = {path.parent.name for path in before}
    for name in finished:
        assert (out / name / "record.json").is_file(), "a folder is there whole or not at all"
    assert {entry.name for entry in open_pool(out).entries} <= finished
    pool = make_pool(spec, out, LocalExecutor(workers=2))
    assert len(pool.entries) == 4
    after = stamps(out)
    assert {path: after[path] for path in before} == before, "finished models are not made again"
    assert not list(out.glob(".*.part")), "what the killed one left is cleared away"


def test_a_model_that_fails_is_named_with_its_twins_victims(tmp_path, spec, monkeypatch):
    import bezoar.pools.run as run

    first = plan(spec)[0].job.name

    class Broken:
        def run(self, tasks, *, progress=None):
            from bezoar.executors import Done, Failed

            for task in tasks:
                if task.key == first:
                    yield (
                        task.key,
                        Failed(kind="crash", message="killed", traceback="", seconds=1.0),
                    )
                else:
                    yield task.key, Done(value=None, seconds=1.0)

    pool = run.make_pool(spec, tmp_path / "pool", Broken())
    assert pool.failed[first] == "killed"
    victims = [name for name, reason in pool.failed.items() if "its clean twin" in reason]
    assert len(victims) == 2
    assert open_pool(tmp_path / "pool").failed == pool.failed


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("targets = [3, 8]", "targets = [3]\nrates = [0.95]", "poison rate 0.95 asks for"),
        ("size=2", "size=20", "does not fit"),
        ("small-cnn", "small-cn", "small-cn"),
        ("width = 16", "breadth = 16", "breadth"),
        ('data = "digits"', 'data = "digit"', "digits"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_made(tmp_path, old, new, message):
    file = tmp_path / "pool.toml"
    file.write_text(SPEC.replace(old, new))
    with pytest.raises(InputError, match=message):
        make_pool(read_spec(file), tmp_path / "pool", LocalExecutor(workers=1))
    assert not (tmp_path / "pool").exists()


def test_a_folder_that_is_no_pool_is_named(tmp_path):
    with pytest.raises(InputError, match=r"is no pool.*index\.json"):
        open_pool(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InputError, match="broken"):
        open_pool(tmp_path)


def test_one_model_can_be_made_without_a_pool(tmp_path, spec):
    job = plan(spec)[-1].job
    told = []
    record = make_model(
        job, tmp_path / "one", picture=True, progress=lambda what, share: told.append(what)
    )
    assert record["status"] in ("backdoored", "weak") and record["clean twin"] is None
    assert (tmp_path / "one" / "trigger.png").read_bytes()[:4] == b"\x89PNG"
    assert told[-1] == "measuring" and list(tmp_path.glob(".*")) == []
    assert make_model(job, tmp_path / "one") == record
    with pytest.raises(InputError, match="made otherwise"):
        make_model(plan(spec)[0].job, tmp_path / "one")
    make_model(job.twin, tmp_path / "twin")
    with_twin = make_model(job, tmp_path / "one", twin=tmp_path / "twin")
    assert with_twin["clean twin"]["name"] == "twin" and with_twin["scores"] == record["scores"]
    assert with_twin["status"] == status_of(record["scores"], with_twin["clean twin"])
    assert make_model(job, tmp_path / "one") == with_twin, "what was measured is kept"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="is no model; give the name of a new folder"):
        make_model(job, tmp_path / "other")


@pytest.mark.slow
def test_ray_makes_the_same_models(pool, spec, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    again = make_pool(spec, tmp_path / "pool", make_executor("ray"))
    assert again.failed == {}
    assert [e.name for e in again.entries] == [e.name for e in pool.entries]
    assert [(e.acc, e.asr) for e in again.entries] == [(e.acc, e.asr) for e in pool.entries]


@pytest.mark.parametrize(
    ("asr", "twin_asr", "status"),
    [(None, None, "clean"), (0.89, 0.0, "weak"), (0.9, 0.49, "backdoored"), (0.9, 0.5, "natural"),
     (0.95, None, "backdoored"), (0.5, 0.9, "weak")],
)  # fmt: skip
def test_what_a_model_counts_as(asr, twin_asr, status):
    scores = {"acc": {"value": 0.9}} | ({"asr": {"value": asr}} if asr is not None else {})
    twin = None if twin_asr is None else {"asr": {"value": twin_asr}}
    assert status_of(scores, twin) == status


def test_a_folder_with_another_record_is_no_model(spec, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "record.json").write_text('{"kind": "demo"}')
    with pytest.raises(InputError, match="is there and is no model"):
        make_model(plan(spec)[0].job, tmp_path / "demo")
