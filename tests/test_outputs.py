"""Outputs that cannot be written: the verdict is shown, the others are made, the exit code is 2."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bezoar import sifting
from bezoar.commands.outputs import check_outputs, every_output
from bezoar.errors import InputError
from bezoar.methods.rnp_unlearning import Unlearning

FULL = Path("/dev/full")
CANNOT = "/dev/full cannot be written: No space left on device"
LINE = "import sys; from bezoar import cli; cli.main(sys.argv[1:])"
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")


def on_images(command, model_files, *more, model="planted.toml"):
    return (command, model_files / model, *more, "--images", model_files / "clean.npz")


@needs_full
def test_a_device_needs_no_folder_to_write_in(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # an ordinary user's /dev
    check_outputs(FULL)
    with pytest.raises(InputError, match="no files can be made in"):
        check_outputs(tmp_path / "a")


# -- what was found is kept ------------------------------------------------------------------------


def attempts(*errors):
    """Attempts an output for each; those that are None are made. Gives the number of these."""
    made = 0
    with every_output() as attempt:
        for error in errors:
            with attempt():
                if error is not None:
                    raise error
                made += 1
    return made


def test_every_output_is_attempted_and_every_reason_told():
    assert attempts() == 0 and attempts(None, None) == 2
    with pytest.raises(InputError) as raised:
        attempts(InputError("one"), None, OSError("two"), None)
    assert str(raised.value) == "one\ntwo"


@pytest.mark.parametrize("error", [InputError("a"), BrokenPipeError()])
def test_one_error_alone_stays_as_it_is(error):
    with pytest.raises(type(error)) as raised:
        attempts(error, None)
    assert raised.value is error


@pytest.mark.parametrize("end", [KeyboardInterrupt(), ZeroDivisionError()])
def test_what_is_no_output_that_failed_ends_the_rest(end):
    with pytest.raises(type(end)) as raised:
        attempts(InputError("a"), end, InputError("b"))
    assert raised.value is end


@needs_full
@pytest.mark.parametrize("option", ["--report", "--json", "--sarif"])
def test_a_scan_makes_its_other_outputs(option, run, model_files, tmp_path):
    outputs = {name: tmp_path / name[2:] for name in ("--report", "--json", "--sarif")}
    given = [part for name, path in (outputs | {option: FULL}).items() for part in (name, path)]
    code, shown, error = run(*on_images("scan", model_files, "--methods", "tac", *given))
    assert code == 2 and "BACKDOOR FOUND" in shown
    assert error.startswith(f"bezoar: {CANNOT}") and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"report", "json", "sarif"} - {option[2:]}
    assert ("Report: " in shown) == (option != "--report")


@pytest.fixture
def manifest(model_files, tmp_path):
    path = tmp_path / "models.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "images"])
        for name in ("planted.toml", "twin.toml"):
            writer.writerow([model_files / name, model_files / "clean.npz"])
    return ("scan", "--manifest", path, "--executor", "here", "--methods", "tac")


@needs_full
@pytest.mark.parametrize("failing", ["summary", "sarif", "json"])
def test_a_manifest_makes_its_other_outputs(failing, run, manifest, tmp_path):
    outputs = {name: tmp_path / f"out.{name}" for name in ("summary", "sarif", "json")}
    given = [
        part for name, path in (outputs | {failing: FULL}).items() for part in (f"--{name}", path)
    ]
    code, shown, error = run(*manifest, *given)
    assert code == 2 and "2 models: 1 backdoor found, 1 nothing found." in shown
    assert error.startswith(f"bezoar: {CANNOT}") and error.count("\n") == 1
    written = {name for name, path in outputs.items() if path.exists()}
    assert written == outputs.keys() - {failing}


@needs_full
def test_a_cleaning_whose_page_cannot_be_written_is_told_and_recorded(run, model_files, tmp_path):
    out, record = tmp_path / "out.safetensors", tmp_path / "out.json"
    given = ("--out", out, "--report", FULL, "--json", record)
    method = ("--method", "ft", "--set", "recipe.epochs=1")
    code, shown, error = run(*on_images("clean", model_files, *method, *given))
    assert code == 2 and error.startswith(f"bezoar: {CANNOT}")
    assert "BACKDOOR FOUND" in shown and f"Weights: {out}" in shown and "Report: " not in shown
    told = json.loads(record.read_text())
    assert told["written"] and told["output"]["file"] == str(out) and out.exists()


@needs_full
def test_a_cleaning_whose_record_cannot_be_written_has_its_page(run, model_files, tmp_path):
    given = ("--out", tmp_path / "out.safetensors", "--json", FULL)
    method = ("--method", "ft", "--set", "recipe.epochs=1")
    call = on_images("clean", model_files, *method, *given, model="twin.toml")
    code, shown, error = run(*call)
    assert code == 2 and error.startswith(f"bezoar: {CANNOT}") and "Report: " in shown
    assert (tmp_path / "out.report.html").exists()


@needs_full
def test_a_sifting_whose_table_cannot_be_written_is_told_and_recorded(
    run, model_files, tmp_path, monkeypatch
):
    monkeypatch.setattr(sifting, "Unlearning", lambda: Unlearning(learning_rate=0.01, max_epochs=1))
    given = ("--out", FULL, "--json", tmp_path / "out.json")
    code, shown, error = run(*on_images("sift", model_files, model_files / "test.npz", *given))
    record = json.loads((tmp_path / "out.json").read_text())
    assert code == 2 and error.startswith(f"bezoar: {CANNOT}")
    assert record["sentence"] in " ".join(shown.split()) and "All images: " not in shown


@needs_full
def test_a_synthesis_whose_page_cannot_be_written_is_told_and_recorded(run, model_files, tmp_path):
    given = ("--out", tmp_path / "out.npz", "--report", FULL, "--json", tmp_path / "out.json")
    few = ("--steps", "1", "--count", "20")
    code, shown, error = run("synthesize", model_files / "planted.toml", *few, *given)
    record = json.loads((tmp_path / "out.json").read_text())
    assert code == 2 and error.startswith(f"bezoar: {CANNOT}")
    assert record["sentence"] in " ".join(shown.split()) and (tmp_path / "out.npz").exists()


@needs_full
def test_an_evaluation_whose_record_cannot_be_written_is_told(run, model_files):
    given = ("--trigger", "bad-nets:target=4,size=2", "--json", FULL)
    code, shown, error = run(*on_images("evaluate", model_files, *given))
    assert code == 2 and error.startswith(f"bezoar: {CANNOT}") and "ASR " in shown


# -- the exit code is 2 and nothing else -----------------------------------------------------------


@pytest.mark.parametrize("module", ["tyro", "bezoar.commands.scan", "torch"])
def test_ctrl_c_while_bezoar_is_imported_is_no_finding(module, model_files):
    interrupted = f"""
import sys

class Interrupt:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt)
"""
    scan = on_images("scan", model_files)
    done = subprocess.run(  # noqa: S603 (our own interpreter, arguments from this file)
        [sys.executable, "-c", interrupted + LINE, *map(str, scan)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = "bezoar: interrupted; no file is half-written.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.skipif(os.name == "nt", reason="Windows tells nobody that a pipe is closed")
@pytest.mark.parametrize(
    "arguments", [["scna"], ["scan", "--sede"], ["scan", "none.pt"], ["--help"]]
)
def test_a_closed_pipe_is_no_finding(arguments):
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(  # noqa: S603 (our own interpreter, arguments from this file)
        [sys.executable, "-c", LINE, *arguments], stdout=theirs, stderr=theirs, check=False
    )
    os.close(theirs)
    assert done.returncode == 2


@needs_full
def test_full_streams_are_no_finding(model_files):
    scan = on_images("scan", model_files, "--methods", "tac")
    with FULL.open("w") as full:
        done = subprocess.run(  # noqa: S603 (our own interpreter, arguments from this file)
            [sys.executable, "-c", LINE, *map(str, scan)], stdout=full, stderr=full, check=False
        )
    assert done.returncode == 2
