"""Scans of a manifest: what is refused by line, what is isolated, what is not done again."""

import csv
import errno
import functools
import io
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from bezoar import cli, fleet, pipeline, scanning
from bezoar.commands.scan import Scan, exit_code
from bezoar.errors import InputError
from bezoar.executors import HereExecutor, LocalExecutor, RayExecutor
from bezoar.executors.machine_memory import machine_memory
from bezoar.fleet import ScanOptions, _names, scan_models
from bezoar.fleet_summary import summary, summary_csv
from bezoar.manifest import read_manifest
from bezoar.verdict import Levels

FACTS = {"architecture": "bezoar:small-cnn", "mean": "0.3", "std": "0.35"}

NETWORKS = """
import os, signal, time
from bezoar import networks
from beside import WIDTH

def good():
    return networks.build("small-cnn", width=WIDTH)

def dies():
    os.write(2, b"no more\\n")
    os.kill(os.getpid(), signal.SIGKILL)

def hangs():
    time.sleep(300)

def eats():
    return bytearray(100 << 30)

def grows():
    import torch
    kept = []
    while True:
        kept.append(torch.ones(16 << 20))

def raises():
    raise ZeroDivisionError("by the network")
"""


@pytest.fixture
def files(model_files, tmp_path):
    """A folder with models and images of its own, which a test may change."""
    folder = tmp_path / "files"
    shutil.copytree(model_files, folder)
    (folder / "text.pt").write_text("these are no weights")
    (folder / "net.py").write_text(NETWORKS)
    (folder / "beside.py").write_text("WIDTH = 32\n")
    return folder


@pytest.fixture
def manifest(files):
    """(rows…) → the manifest, in the folder with the files."""

    def write(*rows, name="models.csv"):
        columns = dict.fromkeys(key for row in rows for key in row)
        with (files / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        return files / name

    return write


def row(model, images="clean.npz", **facts):
    return {"model": model, "images": images, **facts}


# -- reading ---------------------------------------------------------------------------------------


def test_rows_are_read_with_their_facts(files, manifest, monkeypatch):
    monkeypatch.chdir(files.parent)
    path = manifest(
        row("planted.toml"),
        row("twin.safetensors", "", **FACTS, input_size="8 8", classes="a b c d e f g h i j"),
        {},
        row("twin.pt", "files/clean.npz", mean="0.3", std="0.35", architecture="net.py:good"),
    )
    (files / "files").symlink_to(files)
    first, second, third = read_manifest(
        "files/models.csv", images="files/test.npz", facts={"input_size": (8, 8), "mean": (0.5,)}
    )
    assert path.read_text().splitlines()[0].startswith("model,images,architecture")
    assert (first.line, second.line, third.line) == (2, 3, 5)
    assert first.images == "files/clean.npz" and first.files["weights"].endswith(
        "planted.safetensors"
    )
    assert first.description.mean == (0.5,), "an option replaces what the model.toml says"
    assert second.description.mean == (0.3,), "and a cell replaces the option"
    assert second.images == "files/test.npz"
    assert second.description.input_size == (8, 8) and second.description.classes[0] == "a"
    assert third.files["source"] == str(files / "net.py"), "paths are relative to the manifest"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the column 'model' is missing"),
        ("images\nclean.npz\n", "line 1: the column 'model' is missing"),
        ("model,image\nx,y\n", "line 1: there is no column 'image'; perhaps you meant 'images'"),
        ("model,colour\nx,y\n", "line 1: there is no column 'colour'; known: model, images"),
        ("model,model\nx,y\n", "line 1: the column 'model' is there twice"),
        ("model,images\n", "names no model"),
        ("model,images\n,clean.npz\n", "line 2: no model is named"),
        ("model,images\nnone.pt,clean.npz\n", "line 2: there is no file"),
        ("model,images\nnone.toml,clean.npz\n", "line 2: there is no file"),
        ("model,images\nplanted.toml,none\n", "line 2: there is no file or folder"),
        ("model,images\nplanted.toml,\n", "line 2: no images are named; fill the column 'images'"),
        ("model\nplanted.toml\n", "line 2: no images are named"),
        (
            "model,images,architecture,mean,std\nplanted.safetensors,-,bezoar:small-cnn,0.3,0.35\n",
            "line 2: without images, input_size must say",
        ),
        ("model,images\nplanted.toml,clean.npz,x\n", "line 2: there are 3 cells and 2 columns"),
        ('model,images\n"planted.toml,clean.npz\n', "this is no CSV"),
        ("model,images\nplanted.pt,clean.npz\n", "line 2: {files}/planted.pt does not say which"),
        ("model,images,mean\nplanted.toml,clean.npz,much\n", "mean is 'much'; expected numbers"),
        ("model,images,input_size\nplanted.toml,clean.npz,8x8\n", "input_size is '8x8'"),
        ("model,images,std\nplanted.toml,clean.npz,0\n", "std (0.0,); expected finite numbers"),
        (
            "model,images,architecture\nplanted.toml,clean.npz,none.py:f\n",
            "line 2: there is no file {files}/none.py",
        ),
        (
            "model,images\nplanted.toml,clean.npz\ntwin.toml,clean.npz\n./planted.toml,clean.npz\n",
            "line 4: this is the same as line 2; leave one out",
        ),
        (
            "model,images\nnone.pt,clean.npz\nplanted.toml,clean.npz\nnot.pt,clean.npz\n",
            "(1 more lines cannot be used)",
        ),
        (
            "model,images\nplanted.toml,clean.npz\nplanted.toml,clean.npz\nnone.pt,clean.npz\n",
            "line 3: this is the same as line 2; leave one out (1 more lines cannot be used)",
        ),
        (
            "model,images\nnone.pt,clean.npz\nplanted.toml,clean.npz,x\n",
            "line 2: there is no file {files}/none.pt; give a model.toml or a file with weights (1",
        ),
        (
            'model,images\nnone.pt,clean.npz\n"planted.toml,clean.npz\n',
            "line 2: there is no file {files}/none.pt; give a model.toml or a file with weights (1",
        ),
        (
            "model;images\nplanted.toml;clean.npz\n",
            "line 1: 'model;images' is one cell; separate cells by commas",
        ),
        ("model\timages\n", r"line 1: 'model\timages' is one cell; separate cells by commas"),
        ("model,images\nbroken.toml,clean.npz\n", "is no valid TOML"),
        ("model,images\nlost.toml,clean.npz\n", "line 2: there is no file {files}/lost.pt"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_line_before_any_work(text, said, files):
    (files / "broken.toml").write_text("architecture = ")
    good = (files / "planted.toml").read_text()
    (files / "lost.toml").write_text(good.replace("planted.safetensors", "lost.pt"))
    (files / "models.csv").write_text(text)
    with pytest.raises(InputError) as refused:
        read_manifest(files / "models.csv")
    assert said.format(files=files) in str(refused.value)
    assert str(refused.value).startswith(str(files / "models.csv")) or "no model" in said
    assert "\n" not in str(refused.value)


def test_a_way_up_from_a_linked_folder_is_that_of_the_system(files, tmp_path):
    """``current`` leads into a release: ``current/../planted.toml`` lies in that, not beside it."""
    release = tmp_path / "releases" / "7"
    (release / "jobs").mkdir(parents=True)
    for folder, model in ((release, "planted"), (tmp_path, "twin")):
        shutil.copy(files / f"{model}.safetensors", folder / "m.safetensors")
        shutil.copy(files / "clean.npz", folder / "clean.npz")
    (tmp_path / "current").symlink_to(release / "jobs")
    text = f"model,images,{','.join(FACTS)}\n../m.safetensors,../clean.npz,"
    (release / "jobs" / "m.csv").write_text(text + ",".join(FACTS.values()) + "\n")
    (row,) = read_manifest(tmp_path / "current" / "m.csv")
    assert Path(row.files["weights"]).samefile(release / "m.safetensors")
    (name,) = _names([row], ScanOptions())
    (tmp_path / "clean.npz").unlink()  # the one that is not meant
    assert list(_names([row], ScanOptions())) == [name]
    shutil.copy(files / "test.npz", release / "clean.npz")
    assert list(_names([row], ScanOptions())) != [name]


def test_only_a_line_s_end_ends_a_row(files):
    name = "a\u2028b\x0c.safetensors"
    shutil.copy(files / "twin.safetensors", files / name)
    text = f"model,images,{','.join(FACTS)}\r\n{name},clean.npz,{','.join(FACTS.values())}\r\n"
    (files / "odd.csv").write_text(text, newline="")
    (row,) = read_manifest(files / "odd.csv")
    assert row.model == name and row.line == 2


def test_a_record_s_name_is_no_longer_than_a_file_s_may_be(files, manifest, tmp_path):
    long = "\u9577" * 81 + ".safetensors"  # 255 bytes
    shutil.copy(files / "twin.safetensors", files / long)
    path = manifest(row(long, **FACTS))
    (name,) = _names(read_manifest(path), ScanOptions())
    (tmp_path / f"{name}.json").touch()
    assert name.startswith("\u9577" * 60)


def test_a_manifest_that_is_no_text_or_not_there(files):
    with pytest.raises(InputError, match=r"none\.csv cannot be read: No such file"):
        read_manifest(files / "none.csv")
    (files / "models.csv").write_bytes(b"model\n\xff\xfe\n")
    with pytest.raises(InputError, match="cannot be read: it is no UTF-8 text"):
        read_manifest(files / "models.csv")
    (files / "models.csv").write_bytes(b"\xef\xbb\xbfmodel,images\r\nplanted.toml,clean.npz\r\n")
    assert len(read_manifest(files / "models.csv")) == 1, "as spreadsheets write it"


# -- names of records ------------------------------------------------------------------------------


def test_a_record_is_named_after_all_that_it_is_made_from(files, manifest, monkeypatch):
    facts = {**FACTS, "architecture": "net.py:good"}
    path = manifest(row("twin.safetensors", **facts))

    def name(**options):
        (name,) = _names(read_manifest(path), ScanOptions(**options))
        return name

    first = name()
    assert first == name() and first.startswith("twin-") and len(first) == len("twin-") + 12
    different = {first}
    for options in ({"seed": 1}, {"methods": ("neural-cleanse",)}, {"limit": 5}, {"audit": True}):
        different.add(name(**options))
    assert len(different) == 5
    manifest(row("twin.safetensors", **facts | {"std": "0.36"}))
    different.add(name())
    manifest(row("twin.safetensors", "test.npz", **facts))
    different.add(name())
    manifest(row("twin.safetensors", **facts))
    assert name() == first
    (files / "net.py").write_text(NETWORKS + "\n")
    different.add(name())
    shutil.copy(files / "planted.safetensors", files / "twin.safetensors")
    different.add(name())
    arrays = dict(np.load(files / "clean.npz"))
    np.savez(files / "clean.npz", images=255 - arrays["images"], labels=arrays["labels"])
    different.add(name())
    monkeypatch.setattr(fleet, "_nulls", lambda: {"scan_null.json": "measured anew"})
    different.add(name())
    assert len(different) == 11


def test_a_module_that_an_architecture_imports_is_part_of_what_a_record_is_made_from(
    files, manifest
):
    path = manifest(
        row("twin.safetensors", **{**FACTS, "architecture": "net.py:good"}),
        row("twin.safetensors", **FACTS),
    )
    (files / "blocks").mkdir()
    (files / "blocks" / "layers.py").touch()

    def names():
        return tuple(_names(read_manifest(path), ScanOptions()))

    first, without = names()
    (files / "beside.py").write_text("WIDTH = 16\n")
    second, same = names()
    (files / "blocks" / "layers.py").write_text("import torch\n")
    third, as_well = names()
    assert len({first, second, third}) == 3
    assert without == same == as_well, "no code of the user's own goes into it"
    (files / "notes.md").touch()
    assert names() == (third, without)


def test_what_cannot_be_read_whole_is_scanned_anew_each_time(files, manifest, monkeypatch):
    """The scan may do without what the hash stumbles over, such as a folder of the system."""

    def unreadable(*_arguments):
        raise PermissionError(13, "Permission denied")

    path = manifest(row("twin.safetensors", **FACTS))
    monkeypatch.setattr(fleet, "pack", unreadable)
    first, second = (set(_names(read_manifest(path), ScanOptions())) for _ in range(2))
    assert len(first) == 1 and not first & second


def test_a_stranger_s_name_begins_no_row_of_the_table():
    evil = "zero\r=cmd|' /C calc'!A0"
    entry = {"model": "m.toml", "line": 2, "verdict": "suspicious", "suspect_names": [evil]}
    table = list(csv.reader(io.StringIO(summary_csv([entry]), newline="")))
    assert len(table) == 2 and len(table[1]) == len(table[0])
    assert table[1][table[0].index("suspects")] == evil.replace("\r", "\\r")


def test_the_nulls_that_a_record_is_judged_by_are_those_of_the_package():
    assert {"scan_null.json", "rnp_null.json", "bti_dbf_null.json"} <= fleet._nulls().keys()


def test_the_same_file_in_two_folders_gives_two_records(files, manifest):
    (files / "copy").mkdir()
    shutil.copy(files / "twin.safetensors", files / "copy")
    path = manifest(row("twin.safetensors", **FACTS), row("copy/twin.safetensors", **FACTS))
    first, second = _names(read_manifest(path), ScanOptions())
    assert second == f"{first}-2"


# -- scanning --------------------------------------------------------------------------------------


def test_verdicts_are_those_of_single_scans(files, manifest, tmp_path, capsys):
    rows = read_manifest(manifest(row("planted.toml"), row("twin.pt", **FACTS)))
    summary = scan_models(rows, ScanOptions(seed=3), HereExecutor(), out=tmp_path / "out")
    planted, twin = summary["models"]
    assert (planted["verdict"], planted["suspect_names"]) == ("backdoor found", ["4"])
    assert (twin["verdict"], twin["suspects"]) == ("nothing found", [])
    assert summary["counts"] == {"backdoor found": 1, "nothing found": 1}
    arguments = [*("scan", str(files / "planted.toml"), "--images", str(files / "clean.npz"))]
    assert cli.run([*arguments, "--seed", "3", "--json", "-"]) == 1
    alone = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "out" / planted["record"].rpartition("/")[2]).read_text())
    for record in (alone, kept):
        for name in ("command", "created", "seconds", "evidence"):
            record.pop(name, None)
    assert kept == alone


@pytest.mark.slow
def test_a_model_that_is_broken_costs_only_itself(files, manifest, tmp_path):
    own = {"mean": "0.3", "std": "0.35"}
    models = [
        row("planted.toml"),
        row("text.pt", **FACTS),
        *(
            row("twin.safetensors", **own, architecture=f"net.py:{function}")
            for function in ("raises", "dies", "hangs", "eats", "grows", "good")
        ),
        row("twin.toml", "test.npz"),
    ]
    executor = LocalExecutor(workers=1, reuse=True, timeout_s=20, memory_limit=4 << 30)
    rows = read_manifest(manifest(*models))
    heard, out = [], tmp_path / "out"
    summary = scan_models(
        rows, ScanOptions(), executor, out=out, finished=lambda *what: heard.append(what)
    )
    verdicts = [model.get("verdict") for model in summary["models"]]
    assert verdicts == ["backdoor found", *[None] * 6, "nothing found", "nothing found"]
    text, raises, dies, hangs, eats, grows = (m["failed"] for m in summary["models"][1:7])
    assert "is a text file, not a checkpoint" in text["reason"]
    assert text["reason"].startswith(str(files)), "one sentence, without the name of a class"
    assert "ZeroDivisionError: by the network" in raises["reason"]
    assert dies["kind"] == "crash"
    assert dies["reason"] == "the process died (SIGKILL); it last said: no more"
    assert hangs["kind"] == "timeout"
    assert hangs["reason"] == "still running after 20 s; --timeout gives it more"
    assert "MemoryError" in eats["reason"] and "allocate memory" in grows["reason"]
    assert all(m["reason"].endswith("; --memory-limit gives it more") for m in (eats, grows))
    assert summary["counts"] == {"backdoor found": 1, "nothing found": 2, "not usable": 6}
    assert heard[-1][1:] == (9, 9) and len(heard) == 9
    assert len(list(out.iterdir())) == 3, "a model that failed leaves no record"
    assert all(path.name.endswith(".json") for path in out.iterdir())


class Counting:
    """An executor that counts what it is given."""

    def __init__(self):
        self.keys = []

    def run(self, tasks, *, progress=None):
        tasks = list(tasks)
        self.keys += [task.key for task in tasks]
        return HereExecutor().run(tasks, progress=progress)


def test_only_what_is_missing_is_scanned(files, manifest, tmp_path):
    rows = read_manifest(manifest(row("planted.toml"), row("twin.toml"), row("text.pt", **FACTS)))
    out = tmp_path / "new" / "out"

    def scanned(rows, **options):
        executor = Counting()
        summary = scan_models(rows, ScanOptions(**options), executor, out=out)
        return summary, [key.rpartition("-")[0] for key in executor.keys]

    first, keys = scanned(rows[:1])
    assert keys == ["planted"]
    second, keys = scanned(rows)
    assert keys == ["twin", "text"]
    assert [model.get("scanned") for model in second["models"]] == ["before", None, "now"]
    third, keys = scanned(rows)
    assert keys == ["text"], "what failed is tried again"
    same = [
        {k: v for k, v in model.items() if k != "scanned"}
        for summary in (first, second, third)
        for model in summary["models"][:1]
    ]
    assert same[0] == same[1] == same[2]
    (damaged,) = out.glob("planted-*.json")
    damaged.write_text(damaged.read_text()[:100])
    assert scanned(rows[:2])[1] == ["planted"], "half a record is none"
    state = safetensors.torch.load_file(files / "twin.safetensors")
    state["fc.bias"] += 1
    safetensors.torch.save_file(state, files / "twin.safetensors")
    assert scanned(rows[:2])[1] == ["twin"], "the model has changed"
    assert scanned(rows[:2], seed=1)[1] == ["planted", "twin"]


def test_a_record_that_is_used_again_is_told_with_the_path_of_this_time(files, manifest, tmp_path):
    (files / "copy").mkdir()
    shutil.copy(files / "twin.safetensors", files / "copy")
    models = [row(name, **FACTS) for name in ("twin.safetensors", "copy/twin.safetensors")]
    manifest(*models)
    manifest(*reversed(models), name="reordered.csv")
    later = tmp_path / "later build"
    shutil.copytree(files, later)
    options, out = ScanOptions(limit=100), tmp_path / "out"
    for path in (files / "models.csv", files / "reordered.csv", later / "models.csv"):
        told = scan_models(read_manifest(path), options, HereExecutor(), out=out)["models"]
        assert [one["weights"] for one in told] == [str(path.parent / one["model"]) for one in told]
    assert {one["scanned"] for one in told} == {"before"}


def test_without_a_folder_no_record_is_kept(manifest):
    rows = read_manifest(manifest(row("twin.toml")))
    summary = scan_models(rows, ScanOptions(limit=200), HereExecutor())
    assert summary["models"][0]["record"] is None
    assert summary["models"][0]["verdict"] == "nothing found"


def test_a_pattern_chooses_parquet_files(files, manifest, digits):
    """And only these: records that are kept in the same folder are no change of the images."""
    pytest.importorskip("pyarrow")
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    encoded = []
    for image in digits.clean.images:
        stream = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(stream, format="PNG")
        encoded.append({"bytes": stream.getvalue(), "path": None})
    table = pa.table({"image": encoded, "label": digits.clean.labels.tolist()})
    pq.write_table(table.slice(0, 150), files / "part-0.parquet")
    pq.write_table(table.slice(150), files / "part-1.parquet")
    rows = read_manifest(manifest(row("planted.toml", "part-*.parquet")))
    out = files / "out"
    (model,) = scan_models(rows, ScanOptions(), HereExecutor(), out=out)["models"]
    assert (model["verdict"], model["scanned"]) == ("backdoor found", "now")
    (files / "whole.parquet").touch()
    (again,) = scan_models(rows, ScanOptions(), HereExecutor(), out=out)["models"]
    assert again["scanned"] == "before"
    pq.write_table(table.slice(150, 20), files / "part-1.parquet")
    assert list(_names(rows, ScanOptions())) != [next(out.iterdir()).stem]


def test_a_folder_that_takes_no_records_is_refused_before_any_scan(
    files, manifest, tmp_path, monkeypatch
):
    rows = read_manifest(manifest(row("twin.toml")))
    out, options, executor = tmp_path / "out", ScanOptions(methods=("tac",)), Counting()

    def refuse(*_arguments, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "NamedTemporaryFile", refuse)
        with pytest.raises(InputError) as refused:
            scan_models(rows, options, executor, out=out)
    assert str(refused.value).startswith(f"no records can be written in {out}: Permission denied;")
    assert executor.keys == []
    scan_models(rows, options, executor, out=out)
    assert len(list(out.iterdir())) == 1, "what was tried leaves nothing behind"
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    (again,) = scan_models(rows, options, executor, out=out)["models"]
    assert again["scanned"] == "before", "where nothing is to be written, reading is enough"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_nobody_may_create_files_there_root_neither(run, manifest):
    code, shown, error = run("scan", "--manifest", manifest(row("twin.toml")), "--out", "/proc")
    assert (code, shown) == (2, "") and "no records can be written in /proc" in error


# -- the command -----------------------------------------------------------------------------------


HERE = ("--executor", "here")


def test_a_row_without_images_is_scanned_without_any(run, files, manifest, tmp_path):
    path = manifest(row("planted.toml"), row("planted.toml", "-"))
    code, said, _ = run("scan", "--manifest", path, "--out", tmp_path / "out", *HERE)
    assert code in (0, 1)
    assert "Without images: 1;" in " ".join(said.split())
    records = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")]
    (blind,) = (record for record in records if record["images"] is None)
    assert {w["method"] for w in blind["evidence"]} == set(scanning.WITHOUT_IMAGES)
    assert blind["verdict"] != "backdoor found"
    rows = read_manifest(path)
    assert [one.images is None for one in rows] == [False, True] and "images" not in rows[1].files
    for options, said in (
        (ScanOptions(audit=True), "an audit needs clean images"),
        (ScanOptions(methods=("tac",)), "'tac' needs clean images"),
    ):
        with pytest.raises(InputError, match=f"line 3 of the manifest names no images: .*{said}"):
            scan_models(rows, options, HereExecutor())


def test_the_command_shows_a_table_and_keeps_records(run, files, manifest, tmp_path):
    path = manifest(row("planted.toml", ""), row("twin.toml", ""), row("text.pt", "", **FACTS))
    where, out = tmp_path / "summary.json", tmp_path / "out"
    arguments = ("scan", "--manifest", path, "--images", files / "clean.npz", "--out", out, *HERE)
    code, shown, error = run(*arguments, "--json", where)
    assert code == 1
    heading, planted, text, twin, *rest = shown.splitlines()  # the worst first
    assert heading.split() == ["model", "verdict", "suspects", "p", "seconds"]
    assert planted.split()[:4] == ["planted.toml", "backdoor", "found", "4"]
    assert twin.split()[:4] == ["twin.toml", "nothing", "found", "-"]
    assert text.split()[:3] == ["text.pt", "not", "usable"]
    said = " ".join(" ".join(rest).split())
    assert error.startswith("bezoar: text.pt (line 4): ") and "is a text file" in error
    assert "text.pt" not in said
    assert "3 models: 1 backdoor found, 1 not usable, 1 nothing found." in said
    record = json.loads(where.read_text())
    assert record["kind"] == "scan of a manifest" and len(record["models"]) == 3
    assert record["command"].startswith("bezoar")
    assert len(list(out.iterdir())) == 2
    _, shown, _ = run(*arguments)
    assert "Scanned by an earlier call: 2." in shown
    assert run(*arguments, "--quiet") == (1, "", error), "a reason is no summary"
    code, shown, again = run(*arguments, "--json", "-")
    assert code == 1 and json.loads(shown)["counts"]["not usable"] == 1 and again == error


def test_a_record_that_cannot_be_written_costs_only_its_model(run, files, manifest, tmp_path):
    path, out = manifest(row("planted.toml"), row("twin.toml")), tmp_path / "out"
    planted, twin = _names(read_manifest(path), ScanOptions(methods=("tac",)))
    (out / f"{planted}.json").mkdir(parents=True)  # stands in for a full disk
    arguments = ("scan", "--manifest", path, "--out", out, *HERE, "--methods", "tac")
    code, shown, error = run(*arguments, "--json", tmp_path / "summary.json")
    assert code == 1
    assert error.startswith(f"bezoar: planted.toml (line 2): {out / planted}.json is a folder")
    assert "2 models: 1 backdoor found, 1 nothing found." in shown
    assert json.loads((out / f"{twin}.json").read_text())["verdict"] == "nothing found"
    lost, _ = json.loads((tmp_path / "summary.json").read_text())["models"]
    assert lost["record"] is None and "is a folder" in lost["unwritten"]
    assert run(*arguments, "--fail-on", "never")[0] == 2
    (out / f"{planted}.json").rmdir()
    assert run(*arguments, "--fail-on", "never")[0] == 0, "it is tried again"
    assert run(*arguments)[0] == 1


def test_what_a_scan_could_not_see_is_told_beside_nothing_found(run, files, manifest, tmp_path):
    np.savez(files / "unlabelled.npz", images=np.load(files / "clean.npz")["images"])
    note = "The images have no labels; the classes they show were not checked."
    outputs = {name: tmp_path / name for name in ("json", "summary", "sarif")}
    given = [part for name, path in outputs.items() for part in (f"--{name}", path)]
    path = manifest(row("twin.toml"), row("twin.pt", "unlabelled.npz", **FACTS))
    code, shown, _ = run("scan", "--manifest", path, *HERE, "--methods", "tac", *given)
    assert code == 0 and f"\ntwin.pt (line 3): Note: {note}\n" in shown
    assert "twin.toml (line 2): Note" not in shown
    models = {m["model"]: m["notices"] for m in json.loads(outputs["json"].read_text())["models"]}
    assert models == {"twin.toml": [], "twin.pt": [note]}
    with outputs["summary"].open(newline="") as file:
        assert {m["model"]: m["notes"] for m in csv.DictReader(file)} == {
            "twin.toml": "",
            "twin.pt": note,
        }
    results = json.loads(outputs["sarif"].read_text())["runs"][0]["results"]
    told = {r["properties"]["model"]: r["message"]["text"] for r in results}
    assert told["twin.pt"].endswith(f" Note: {note}") and "Note:" not in told["twin.toml"]
    alone = ("scan", files / "twin.toml", "--images", files / "unlabelled.npz", "--methods", "tac")
    code, shown, _ = run(*alone, "--sarif", "-")
    (result,) = json.loads(shown)["runs"][0]["results"]
    assert code == 0 and result["message"]["text"].endswith(f" Note: {note}")


FOUND, MAYBE, NOTHING, BROKEN = "backdoor found", "suspicious", "nothing found", "not usable"


@pytest.mark.parametrize(
    ("verdicts", "codes"),
    [  # of --fail-on suspicious, found and never
        ({NOTHING}, (0, 0, 0)),
        ({MAYBE}, (1, 0, 0)),
        ({FOUND}, (1, 1, 0)),
        ({BROKEN}, (2, 2, 2)),
        ({NOTHING, MAYBE}, (1, 0, 0)),
        ({NOTHING, FOUND}, (1, 1, 0)),
        ({NOTHING, BROKEN}, (2, 2, 2)),
        ({MAYBE, FOUND}, (1, 1, 0)),
        ({MAYBE, BROKEN}, (1, 2, 2)),
        ({FOUND, BROKEN}, (1, 1, 2)),
        ({NOTHING, MAYBE, FOUND, BROKEN}, (1, 1, 2)),
    ],
)
def test_what_was_found_comes_before_what_could_not_be_used(verdicts, codes):
    given = ("suspicious", "found", "never")
    assert tuple(exit_code(verdicts, fail_on) for fail_on in given) == codes


@pytest.mark.parametrize(
    ("models", "fail_on", "code"),
    [
        (["twin.toml"], "suspicious", 0),
        (["twin.toml", "planted.toml"], "suspicious", 1),
        (["twin.toml", "text.pt"], "suspicious", 2),
        (["planted.toml", "text.pt"], "found", 1),
        (["planted.toml", "text.pt"], "never", 2),
    ],
)
def test_the_command_leaves_with_that_code(models, fail_on, code, run, manifest):
    path = manifest(*(row(model, **(FACTS if model == "text.pt" else {})) for model in models))
    arguments = ("--methods", "tac", "--fail-on", fail_on, "--quiet")
    assert run("scan", "--manifest", path, *HERE, *arguments)[0] == code


def test_a_suspicious_model_fails_the_pipeline_unless_only_findings_shall(
    run, manifest, monkeypatch
):
    cautious = functools.partial(pipeline.scan, levels=Levels(found=1e-12))
    monkeypatch.setattr(pipeline, "scan", cautious)
    path = manifest(row("planted.toml"), row("twin.toml"))
    arguments = ("scan", "--manifest", path, *HERE, "--methods", "tac")
    code, shown, _ = run(*arguments, "--json", "-")
    assert (code, list(json.loads(shown)["counts"])) == (1, ["suspicious", "nothing found"])
    assert run(*arguments, "--quiet", "--fail-on", "found")[0] == 0


# -- summary and limits ----------------------------------------------------------------------------


def entry(line, verdict, p=0.5, **more):
    if verdict == BROKEN:
        failed = {"kind": "error", "reason": "why", "traceback": ""}
        return {"line": line, "model": f"{line}.pt", "failed": failed, "seconds": 1.0}
    return {"line": line, "model": f"{line}.pt", "verdict": verdict, "p": p, **more}


def test_the_worst_comes_first():
    entries = [
        *(entry(2, NOTHING, 0.9), entry(3, BROKEN), entry(4, MAYBE, 0.04), entry(5, FOUND, 1e-3)),
        *(entry(6, FOUND, 1e-9), entry(7, NOTHING, 0.1), entry(8, BROKEN), entry(9, MAYBE, 0.04)),
    ]
    told = summary(entries)
    assert [model["line"] for model in told["models"]] == [6, 5, 4, 9, 3, 8, 7, 2]
    assert list(told["counts"].items()) == [(FOUND, 2), (MAYBE, 2), (BROKEN, 2), (NOTHING, 2)]
    assert summary([])["counts"] == {}


def test_the_table_is_a_csv_that_computes_nothing(run, manifest, tmp_path):
    names = ["=1+1", "b", "c", "d", "+e", "f,", "g", "h", "i", "j"]  # +e is the target
    path = manifest(
        row("planted.toml", classes=" ".join(names)), row("twin.toml"), row("text.pt", **FACTS)
    )
    where = tmp_path / "table.csv"
    arguments = ("--methods", "tac", "--quiet", "--summary", where)
    assert run("scan", "--manifest", path, *HERE, *arguments)[0] == 1
    with where.open(newline="") as file:
        found, broken, nothing = csv.DictReader(file)
    assert (found["model"], found["verdict"], found["suspects"]) == ("planted.toml", FOUND, "'+e")
    assert float(found["p"]) < 0.01 and float(found["seconds"]) > 0 and len(found["sha256"]) == 64
    assert (broken["verdict"], broken["p"], broken["suspects"]) == (BROKEN, "", "")
    assert "is a text file" in broken["reason"] and nothing["reason"] == ""
    assert (nothing["model"], nothing["verdict"]) == ("twin.toml", NOTHING)


def test_limits_protect_without_being_asked_for():
    half = machine_memory() // 2

    def limits(**options):
        executor = Scan(**options)._executor()
        return executor.timeout_s, executor.memory_limit

    assert limits() == limits(executor="local:3") == (3600, half)
    assert limits(timeout=5, memory_limit=0.5) == (5, 1 << 29)
    assert limits(timeout=math.inf, memory_limit=math.inf) == (None, None)
    assert limits(executor="ray") == (3600, None), "nodes have a memory of their own"
    assert isinstance(Scan(executor="here")._executor(), HereExecutor)


def test_a_container_may_have_less_memory_than_its_machine(tmp_path, monkeypatch):
    whole = machine_memory()
    group = tmp_path / "memory.max"
    monkeypatch.setattr("bezoar.executors.machine_memory._GROUPS", (group,))
    for text, expected in ((str(1 << 30), 1 << 30), (str(1 << 62), whole), ("max\n", whole)):
        group.write_text(text)
        assert machine_memory() == expected


def test_the_command_isolates_what_a_model_does_to_its_process(run, manifest, tmp_path):
    own = {"mean": "0.3", "std": "0.35"}
    path = manifest(
        row("twin.safetensors", **own, architecture="net.py:dies"),
        row("twin.toml"),
        row("planted.toml"),
    )
    limits = ("--executor", "local:1", "--timeout", "120", "--memory-limit", "4")
    code, shown, _ = run("scan", "--manifest", path, "--methods", "tac", *limits, "--json", "-")
    found, dead, nothing = json.loads(shown)["models"]
    assert code == 1 and found["verdict"] == "backdoor found"
    assert dead["failed"]["kind"] == "crash" and nothing["verdict"] == "nothing found"


@pytest.mark.slow
def test_the_command_gives_up_on_time_and_on_memory(run, manifest):
    own = {"mean": "0.3", "std": "0.35"}
    path = manifest(*(row("twin.pt", **own, architecture=f"net.py:{f}") for f in ("hangs", "eats")))
    limits = ("--executor", "local:1", "--timeout", "15", "--memory-limit", "4", "--threads", "1")
    code, shown, _ = run("scan", "--manifest", path, *limits, "--json", "-")
    hangs, eats = (model["failed"] for model in json.loads(shown)["models"])
    assert code == 2
    assert hangs["reason"].startswith("still running after 15 s")
    assert "MemoryError" in eats["reason"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("scan", "no model is given; give one, or many as --manifest"),
        ("scan {files}/planted.toml --audit", "an audit needs clean images of the task; give them"),
        ("scan {files}/planted.toml --manifest {csv}", "a model is given beside --manifest"),
        ("scan --manifest {csv} --report {out}/r.html", "--report is given beside --manifest"),
        ("scan --manifest {csv} --limit 0", "--limit is 0; expected at least 1"),
        ("scan --manifest {csv} --methods tca", "perhaps you meant 'tac'"),
        ("scan --manifest {csv} --timeout 0", "--timeout is 0.0; expected more than 0"),
        ("scan --manifest {csv} --memory-limit -1", "--memory-limit is -1.0"),
        ("scan --manifest {csv} --threads 0", "--threads is 0"),
        ("scan --manifest {csv} --executor dask", "there is no executor 'dask'"),
        ("scan --manifest {csv} --executor here --timeout 5", "tasks in this process cannot be"),
        ("scan --manifest {csv} --json {csv}", "never overwritten"),
        ("scan --manifest {csv} --json {files}/planted.safetensors", "never overwritten"),
        ("scan --manifest {csv} --json {out}/none/s.json", "does not exist"),
        ("scan --manifest {csv} --out {csv}", "cannot be made: File exists"),
        ("scan --manifest {csv} --sarif {csv}", "never overwritten"),
        ("scan --manifest {csv} --summary {csv}", "never overwritten"),
        ("scan --manifest {csv} --summary {out}/a --sarif {out}/a", "is given for two outputs"),
        ("scan --manifest {csv} --json - --sarif -", "both want standard output"),
        ("scan {files}/planted.toml --images {files}/clean.npz --summary {out}/s.csv", "goes with"),
        ("scan --manifest {files}/none.csv", "none.csv cannot be read"),
        ("scan {files}/planted.toml --images {files}/clean.npz --out {out}/o", "--out goes with"),
        ("scan {files}/planted.toml --images {files}/clean.npz --timeout 5", "--timeout goes with"),
    ],
)
def test_one_clear_sentence_and_nothing_written(arguments, said, run, files, manifest, tmp_path):
    path = manifest(row("planted.toml"))
    before = sorted(tmp_path.rglob("*"))
    places = {"files": files, "csv": path, "out": tmp_path}
    code, shown, error = run(*(part.format(**places) for part in arguments.split()))
    assert (code, shown) == (2, "")
    assert error.startswith("bezoar: ") and error.count("\n") == 1 and said in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_on_ray(files, manifest, tmp_path):
    """Models, images and networks of one's own come out of the cluster."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "node_ip_address": "127.0.0.1"}
    (files / "alone.py").write_text(
        "from bezoar import networks\ndef build():\n    return networks.build('small-cnn')\n"
    )
    (files / "dies.py").write_text("import os\ndef build():\n    os._exit(3)\n")
    own = {"mean": "0.3", "std": "0.35"}
    rows = read_manifest(
        manifest(
            row("planted.toml"),
            row("twin.safetensors", **own, architecture="alone.py:build"),
            row("twin.safetensors", **own, architecture="dies.py:build"),
            row("text.pt", **FACTS),
        )
    )
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        executor = RayExecutor(address=cluster.address, max_retries=1, timeout_s=60)
        summary = scan_models(rows, ScanOptions(), executor, out=tmp_path / "out")
    finally:
        cluster.shutdown()
    verdicts = [model.get("verdict") for model in summary["models"]]
    assert verdicts == ["backdoor found", None, None, "nothing found"]
    assert summary["models"][1]["failed"]["kind"] == "crash"
    assert "is a text file" in summary["models"][2]["failed"]["reason"]
    kept = json.loads(next((tmp_path / "out").glob("twin-*.json")).read_text())
    assert kept["model"]["file"] == str(files / "twin.safetensors")
    assert kept["model"]["architecture"] == f"{files / 'alone.py'}:build"
    assert kept["images"]["source"] == str(files / "clean.npz")
