"""Running a grid: only what is missing, nothing lost, one failure alone."""

import json
import shutil
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
import pytest
import torch
from digit_pool import POOL

from bezoar import bench
from bezoar.bench import harness, material, running
from bezoar.bench.results import path_of
from bezoar.bench.runs import CLEAN_TWIN, NO_DEFENSE
from bezoar.errors import InputError
from bezoar.executors import make_executor
from bezoar.executors.file_cache import pack
from bezoar.methods import Repair
from bezoar.pools import open_pool
from bezoar.report.leaderboard_view import read_board

pytestmark = pytest.mark.xdist_group("bench")  # they share a pool

HERE = make_executor("here")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture
def ready(grid, out, write_grid):
    return bench.make_ready(grid, out)


def records(ready, out):
    found = {one.key: bench.read_result(out, one) for one in ready.plan.runs}
    return {key: record for key, record in found.items() if record is not None}


def named(ready, label, status="backdoored"):
    return next(one for one in ready.plan.runs if one.label == label and one.entry.status == status)


def test_every_run_has_one_file_with_everything_in_it(ready, out):
    told = []
    summary = bench.run(ready, out, HERE, finished=lambda *values: told.append(values[1:]))
    planned = ready.plan.runs
    # 3 models: no defense; 1 twin; clp; two lengths of fine-tuning, one of them asked for.
    assert len(planned) == 3 + 1 + 3 + 2 * 3
    assert summary.done == summary.ran == len(planned) and not summary.failed
    assert told[-1] == (len(planned), len(planned))
    record = json.loads(path_of(out, named(ready, "ft:recipe.epochs=1").key).read_text())
    assert record["state"] == "done"
    for name in ("acc", "asr", "ra"):
        rate = record["after"][name]
        assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
    assert record["config"]["method"]["recipe"]["epochs"] == 1
    assert record["seconds"] > 0 and record["processor_seconds"] > 0
    assert record["peak_memory"]["bytes"] > 0
    assert {"bezoar", "torch"} <= record["versions"].keys()
    assert record["images"]["clean"] == 60 and record["images"]["test"] == 199
    assert record["before"]["asr"]["value"] >= 0.9
    assert record["der"]["low"] <= record["der"]["value"] <= record["der"]["high"]


def test_no_defense_and_the_clean_twin_are_always_there(ready, out):
    bench.run(ready, out, HERE)
    found = records(ready, out)
    nothing, twin = (found[named(ready, label).key] for label in (NO_DEFENSE, CLEAN_TWIN))
    assert nothing["after"]["asr"]["value"] >= 0.9
    assert twin["after"]["asr"]["value"] <= 0.3
    rows = bench.summarise(ready.plan, found)["rows"]
    assert [row["label"] for row in rows[:2]] == [NO_DEFENSE, CLEAN_TWIN]
    assert rows[0]["der"]["mean"] == 0.5


def test_a_rerun_does_nothing(ready, out):
    bench.run(ready, out, HERE)
    for retry in (False, True):  # which is for what failed
        again = bench.run(ready, out, HERE, retry=retry)
        assert again.ran == 0 and again.done == len(ready.plan.runs)


def test_a_larger_grid_does_only_what_is_new(ready, out, write_grid):
    bench.run(ready, out, HERE)
    larger = bench.make_ready(bench.read_grid(write_grid(images="[60, 40]")), out)
    missing = [one for one in larger.plan.runs if bench.read_result(out, one) is None]
    assert {one.run.images for one in missing} == {40}
    assert len(missing) == 2 * 3


def test_another_setting_is_another_run(ready, write_grid, out):
    def key_of(**changes):
        plan = bench.make_ready(bench.read_grid(write_grid(**changes)), out).plan
        return next(one.key for one in plan.runs if one.label.startswith("ft") and one.run.images)

    first = key_of()
    assert first == key_of()
    assert first == key_of(methods='["ft:recipe.epochs=1"]'), "neighbours in the grid have no say"
    others = [
        key_of(methods='["ft:recipe.epochs=2"]'),
        key_of(images="[50]"),
        key_of(seeds="[1]"),
        key_of(test_images="100"),
    ]
    assert len({first, *others}) == 5


@pytest.mark.parametrize("damage", ["cut short", "of another run", "empty"])
def test_a_damaged_result_file_is_done_again_and_told(damage, ready, out):
    bench.run(ready, out, HERE)
    one, other = ready.plan.others[:2]
    file = path_of(out, one.key)
    whole = file.read_text()
    broken = {
        "cut short": whole[: len(whole) // 2],
        "of another run": path_of(out, other.key).read_text(),
        "empty": "",
    }
    file.write_text(broken[damage])
    again = bench.run(ready, out, HERE)
    assert again.ran == 1 and again.renewed == [one.key]
    assert bench.read_result(out, one)["key"] == one.key


def test_an_interruption_loses_no_finished_run(ready, tmp_path):
    (tmp_path / "runs").mkdir()

    def stop(_record, done, _total):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(ready, tmp_path, HERE, finished=stop)
    assert len(records(ready, tmp_path)) == 6
    assert bench.run(ready, tmp_path, HERE).ran == len(ready.plan.runs) - 6


@pytest.fixture
def broken_pool(pool_folder, tmp_path):
    """The pool with one model whose weights are no weights."""
    folder = tmp_path / "broken"
    shutil.copytree(pool_folder, folder)
    (model,) = folder.glob("*bad-nets*")
    (model / "weights.safetensors").write_bytes(b"no weights")
    return folder


def test_a_model_that_does_not_load_fails_alone_and_is_tried_once(
    broken_pool, write_grid, tmp_path
):
    out = tmp_path / "results"
    ready = bench.make_ready(bench.read_grid(write_grid(pool=f'"{broken_pool}"')), out)
    summary = bench.run(ready, out, HERE)
    found = records(ready, out)
    broken = [
        found[one.key] for one in ready.plan.runs if one.entry.attack and one.label != CLEAN_TWIN
    ]
    assert {record["state"] for record in broken} == {"failed"}
    assert summary.done == len(ready.plan.runs) - len(broken)
    reasons = {record["failure"]["message"] for record in broken}
    assert len([r for r in reasons if "its model cannot be used" in r]) == 1
    assert summary.ran == len(ready.plan.runs) - len(broken) + 1, "only the reference was tried"
    again = bench.run(ready, out, HERE)
    assert again.ran == 0 and len(again.failed) == len(broken), "a failure is a result"
    assert bench.run(ready, out, HERE, retry=True).ran == 1
    row = bench.summarise(ready.plan, found)["rows"][0]
    assert row["failed"] == 1


def test_what_is_tried_again_does_not_count_as_done_before_it_is(broken_pool, write_grid, tmp_path):
    out = tmp_path / "results"
    ready = bench.make_ready(bench.read_grid(write_grid(pool=f'"{broken_pool}"')), out)
    failed, all_of_them = len(bench.run(ready, out, HERE).failed), len(ready.plan.runs)
    told = []
    bench.run(ready, out, HERE, retry=True, finished=lambda *values: told.append(values[1:]))
    assert told == [(n, all_of_them) for n in range(all_of_them - failed + 1, all_of_them + 1)]


def test_a_backdoored_model_without_its_trigger_fails_and_is_not_taken_for_a_clean_one(
    pool_folder, write_grid, tmp_path
):
    folder, out = tmp_path / "without trigger", tmp_path / "results"
    shutil.copytree(pool_folder, folder)
    (trigger,) = folder.glob("*bad-nets*/trigger.safetensors")
    trigger.unlink()
    ready = bench.make_ready(bench.read_grid(write_grid(pool=f'"{folder}"')), out)
    bench.run(ready, out, HERE)
    attacked = named(ready, NO_DEFENSE)
    record = bench.read_result(out, attacked)
    assert record["state"] == "failed" and "trigger" in record["failure"]["message"]
    assert bench.summarise(ready.plan, records(ready, out))["counts"]["failed"] >= 2


def test_models_of_its_own_pool_that_could_not_be_made_are_told(write_grid, tmp_path, monkeypatch):
    out, file = tmp_path / "own", write_grid()
    lines = [x for x in file.read_text().splitlines() if not x.startswith("pool")]
    tables = POOL.replace("[[grid]]", "[[pool.grid]]").replace("[recipe]", "[pool.recipe]")
    made = open_pool(file.parent / "pool")
    file.write_text("\n".join(lines) + tables)
    failed, waiting = {"one-of-them": "the process died"}, ("another",)
    lacking = msgspec.structs.replace(made, failed=failed, waiting=waiting)
    monkeypatch.setattr(harness, "open_grid_pool", lambda *_: lacking)
    grid = bench.read_grid(file)
    notices = bench.make_ready(grid, out).plan.notices
    assert notices[-2:] == (
        "the model one-of-them is not there, so no row counts it: the process died",
        "the model another is not there, so no row counts it: it is still to be made",
    )
    assert bench.plan_again(grid, out).notices == notices


class Carrying:
    """Carries the files of tasks to them, as a cluster does, and so needs all of them."""

    def run(self, tasks, *, progress=None):
        tasks = list(tasks)
        for task in tasks:
            for path in task.files.values():
                pack(Path(path), lambda _block: None)
        return HERE.run(tasks, progress=progress)


def test_a_twin_that_is_gone_costs_its_row_and_no_run_on_a_cluster(
    pool_without_twin, write_grid, tmp_path
):
    changes = {"methods": '["clp"]', "control_epochs": "[1]", "status": '["backdoored"]'}
    out = tmp_path / "results"
    file = write_grid(pool=f'"{pool_without_twin}"', **changes)
    ready = bench.make_ready(bench.read_grid(file), out)
    summary = bench.run(ready, out, Carrying())
    assert [one.label for one in ready.plan.runs] == [NO_DEFENSE, "clp", "ft:recipe.epochs=1"]
    assert summary.done == 3 and not summary.failed


def test_a_twin_that_is_gone_is_told_once(ready, pool_without_twin, write_grid, tmp_path):
    assert ready.plan.notices == ()
    grid = bench.read_grid(write_grid(pool=f'"{pool_without_twin}"'))
    plan = bench.make_ready(grid, tmp_path / "results").plan
    (notice,) = plan.notices
    name = next(entry.name for entry in plan.entries if entry.attack)
    assert f"lacks the clean twin of 1 of 1 attacked models ({name})" in notice
    summary = bench.summarise(plan, {})
    assert bench.markdown(summary).count(notice) == 1
    assert read_board(summary, ()).sentence.count(notice) == 1


def test_a_full_disk_costs_the_results_that_do_not_fit_and_no_more(ready, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    full = named(ready, "clp").key
    write = harness.write_result

    def fails(out, record):
        if record["key"] == full:
            raise InputError("cannot be written: No space left on device")
        write(out, record)

    monkeypatch.setattr(harness, "write_result", fails)
    told = []
    summary = bench.run(ready, tmp_path, HERE, finished=lambda *values: told.append(values[1]))
    assert summary.unwritten == {full: "cannot be written: No space left on device"}
    assert len(records(ready, tmp_path)) == len(ready.plan.runs) - 1
    assert summary.done == summary.ran == told[-1] == len(ready.plan.runs) - 1, "what is there"
    monkeypatch.undo()
    assert bench.run(ready, tmp_path, HERE).ran == 1


def test_more_images_than_there_are_is_said_before_any_run(write_grid, out):
    with pytest.raises(InputError, match="images asks for 5000 clean images, and digits has"):
        bench.make_ready(bench.read_grid(write_grid(images="[5000]")), out)
    with pytest.raises(InputError, match="test_images is 400 and the test split of digits has 359"):
        bench.make_ready(bench.read_grid(write_grid(test_images="400")), out)


def test_no_clean_image_is_a_test_image(ready):
    rest, test = material.divided(str(ready.images["digits"].file), 200)

    def prints(images):
        return {row.tobytes() for row in images.images.flatten(1).numpy()}

    assert len(rest) + len(test) == 359 and len(test) == 199
    assert not prints(rest.sample(60, seed=3)) & prints(test)
    assert torch.equal(rest.sample(60, seed=3).images, rest.sample(60, seed=3).images)


def test_the_oracle_is_measured_only_for_those_that_were_named(ready, out, write_grid):
    named_too = bench.make_ready(bench.read_grid(write_grid(oracle='["clp"]')), out)
    changed = {one.key for one in named_too.plan.runs} - {one.key for one in ready.plan.runs}
    assert len(changed) == 1, "clp on the one model with a trigger"
    bench.run(named_too, out, HERE)
    (one,) = (one for one in named_too.plan.runs if one.key in changed)
    record = bench.read_result(out, one)
    assert {"setting", "after", "der"} <= record["oracle"].keys()
    assert record["oracle"]["after"]["asr"]["value"] <= record["after"]["asr"]["value"] + 0.05


def test_the_oracle_asks_for_the_accuracy_of_the_images_that_it_looks_at(digits, monkeypatch):
    """On a part of the images the same network may be better or worse than on all."""
    monkeypatch.setattr(running, "ORACLE_IMAGES", 40)
    repair = Repair(digits.twin, {}, alternatives=lambda: iter([("the twin", digits.twin)]))
    of_all = running.measure(digits.planted, digits.test, digits.attack)
    of_all["acc"]["value"] = 2.0  # what nobody reaches
    found = running.oracle(repair, digits.planted, digits.test, digits.attack, of_all)
    assert found["setting"] == "its own choice"


def test_tables_need_neither_images_nor_their_folder(ready, out, grid, monkeypatch):
    def forbidden(*_arguments, **_options):
        raise AssertionError("an image was opened")

    bench.run(ready, out, HERE)
    monkeypatch.setattr(material, "open_dataset", forbidden)
    again = bench.plan_again(grid, out)
    assert [one.key for one in again.runs] == [one.key for one in ready.plan.runs]


def test_grids_of_other_data_may_share_a_folder(grid, pool_folder, write_grid, tmp_path):
    images = material.open_dataset("digits", "test")
    np.savez(tmp_path / "own.npz", images=images.images.numpy(), labels=images.labels.numpy())
    pool, out = tmp_path / "own pool", tmp_path / "results"
    shutil.copytree(pool_folder, pool)
    index = (pool / "index.json").read_text()
    (pool / "index.json").write_text(index.replace('"digits"', json.dumps(f"{tmp_path}/own.npz")))
    first = bench.make_ready(grid, out).plan
    own = bench.read_grid(write_grid(pool=f'"{pool}"', images="[20]", test_images="40"))
    second = bench.make_ready(own, out).plan
    for made, asked in ((first, grid), (second, own)):
        assert [one.key for one in bench.plan_again(asked, out).runs] == [
            one.key for one in made.runs
        ]


@pytest.fixture
def lent(write_grid, tmp_path):
    """A folder with public images and a generator, and a grid that lends them to a method.

    Nothing is run: what is in the files matters, and not what they are good for.
    """
    draw = np.random.default_rng(0).integers
    np.savez(tmp_path / "public.npz", images=draw(0, 256, (20, 1, 8, 8), np.uint8))
    (tmp_path / "weights.pt").write_bytes(b"trained")
    (tmp_path / "net.py").write_text("first")
    (tmp_path / "generator.toml").write_text(
        'architecture = "net.py:make"\nweights = "weights.pt"\nlatent = 8\n'
    )
    return write_grid(
        methods='["fred"]', public='"public.npz"', generator='"generator.toml"', images="[60]"
    )


def addresses(file, out):
    """Of the runs that get something lent, and of the others."""
    grid = bench.read_grid(file)
    plan = bench.make_ready(grid, out, beside=file.parent).plan
    assert [one.key for one in bench.plan_again(grid, out).runs] == [one.key for one in plan.runs]
    lent = {one.key for one in plan.runs if one.label == "fred"}
    assert len(lent) == 3
    return lent, {one.key for one in plan.runs} - lent


@pytest.mark.parametrize("changed", ["public.npz", "weights.pt", "net.py", "generator.toml"])
def test_other_public_images_or_another_generator_are_other_runs(changed, lent, tmp_path):
    out, file = tmp_path / "results", tmp_path / changed
    before, others = addresses(lent, out)
    assert addresses(lent, out) == (before, others)
    if changed == "public.npz":
        np.savez(file, images=255 - np.load(file)["images"])
    else:
        file.write_bytes(file.read_bytes() + b"\n")
    after, same = addresses(lent, out)
    assert not before & after and same == others


def test_public_images_or_a_generator_alone_are_in_the_address_too(lent, tmp_path):
    out, text = tmp_path / "results", lent.read_text()
    found = []
    for left_out in ("", "public", "generator"):
        lines = (x for x in text.splitlines() if not left_out or not x.startswith(left_out))
        lent.write_text("\n".join(lines))
        found.append(addresses(lent, out)[0])
    assert len(set().union(*found)) == 9


def test_grids_with_other_generators_of_that_name_may_share_a_folder(lent, tmp_path):
    out, grid = tmp_path / "results", bench.read_grid(lent)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("generator.toml", "weights.pt", "net.py"):
        (elsewhere / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
    before, _ = addresses(lent, out)
    lent.write_text(lent.read_text().replace("generator.toml", "elsewhere/generator.toml"))
    with pytest.raises(InputError, match=r"made without generator \.\./elsewhere/generator"):
        bench.plan_again(bench.read_grid(lent), out)
    assert not before & addresses(lent, out)[0]
    assert before <= {one.key for one in bench.plan_again(grid, out).runs}


def test_a_table_with_a_generator_is_made_from_any_working_directory(lent, tmp_path, monkeypatch):
    addresses(lent, tmp_path / "results")
    for folder, beside in ((tmp_path, Path()), (tmp_path / "results", Path(".."))):
        monkeypatch.chdir(folder)
        assert bench.plan_again(bench.read_grid(beside / lent.name), beside / "results").runs


@pytest.mark.parametrize("gone", ["generator.toml", "weights.pt"])
def test_a_generator_that_is_not_there_is_said_before_any_run(gone, lent, tmp_path):
    (tmp_path / gone).unlink()
    with pytest.raises(InputError, match=f"{gone} cannot be read"):
        bench.make_ready(bench.read_grid(lent), tmp_path / "results", beside=tmp_path)


def test_a_table_of_nothing_is_refused(grid, tmp_path):
    with pytest.raises(InputError, match="holds no results of a grid"):
        bench.plan_again(grid, tmp_path)


def test_a_grid_can_make_its_own_pool(write_grid, tmp_path):
    out = tmp_path / "own"
    file = write_grid()
    tables = POOL.replace("[[grid]]", "[[pool.grid]]").replace("[recipe]", "[pool.recipe]")
    lines = [x for x in file.read_text().splitlines() if not x.startswith("pool")]
    file.write_text("\n".join(lines) + tables.replace("epochs = 8", "epochs = 1"))
    with mock.patch.object(harness, "make_pool", wraps=harness.make_pool) as made:
        ready = bench.make_ready(bench.read_grid(file), out, executor=HERE, device="cpu")
    assert made.call_args.kwargs["device"] == "cpu"
    assert len(ready.plan.entries) == 3
    assert (out / "pool" / "index.json").exists()
