"""Input that cannot be used: one clear sentence, exit code 2, nothing written, no file lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from bezoar import cli, pipeline, report
from bezoar.errors import InputError
from bezoar.intake import writing
from bezoar.methods import fine_tuning

FACTS = "--architecture bezoar:small-cnn --mean 0.3 --std 0.35"
CLEAN = "--images {files}/clean.npz"
OUT = "--out {empty}/out.safetensors"

NO_HEAD = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 3)

    def forward(self, x):
        return self.conv(x).amax((2, 3))

def build():
    return Net()
"""


class Malicious:
    def __init__(self, sentinel):
        self.sentinel = str(sentinel)

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


@pytest.fixture(scope="module")
def bad(model_files, digits, tmp_path_factory):
    """A folder of files that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("bad")
    state = digits.planted.network.state_dict()
    images, labels = digits.clean.images, digits.clean.labels
    good = (model_files / "planted.toml").read_text()

    def describe(name, text=good, weights="planted.safetensors"):
        weights = folder / weights if (folder / weights).exists() else model_files / weights
        text = text.replace('"planted.safetensors"', f'"{weights}"')
        (folder / f"{name}.toml").write_text(text)

    def pack(name, pixels, numbers=None):
        arrays = {"images": pixels.numpy()}
        np.savez(folder / name, **arrays | ({} if numbers is None else {"labels": numbers.numpy()}))

    def fill(name, classes):
        for k in range(classes):
            (folder / name / f"{k:02}").mkdir(parents=True)
            for i, image in enumerate(images[labels == k % 10][:3]):
                Image.fromarray(image[0].numpy()).save(folder / name / f"{k:02}" / f"{i}.png")

    (folder / "text.pt").write_text("these are no weights")
    (folder / "text.toml").write_text("architecture = ")
    (folder / "cut.pt").write_bytes((model_files / "planted.pt").read_bytes()[:9000])
    (folder / "cut.safetensors").write_bytes(
        (model_files / "planted.safetensors").read_bytes()[:9000]
    )
    torch.save({"state_dict": state, "hook": Malicious(folder / "sentinel")}, folder / "evil.pt")
    broken = dict(state) | {"fc.weight": torch.full_like(state["fc.weight"], float("nan"))}
    safetensors.torch.save_file(broken, folder / "nan.safetensors")
    describe("nan", weights="nan.safetensors")
    huge = {name: t * 1e30 if name.endswith("weight") else t for name, t in state.items()}
    safetensors.torch.save_file(huge, folder / "huge.safetensors")
    describe("huge", weights="huge.safetensors")
    describe("sixteen", good.replace("[8, 8]", "[16, 16]"))
    describe("colour", good.replace("[0.3]", "[0.3, 0.3, 0.3]"))
    describe("misspelt", good.replace("small-cnn", "smal-cnn"))
    describe("elsewhere", good.replace("bezoar:", "bezor:"))
    describe("no-architecture", good.partition("\n")[2])
    describe("no-mean", good.replace("mean", "# mean"))
    describe("nine-names", good + f"classes = {list('abcdefghi')}\n")
    (folder / "net.py").write_text(NO_HEAD)
    generator = torch.Generator().manual_seed(0)
    filters = {"conv.weight": torch.randn(10, 1, 3, 3, generator=generator)}
    torch.save(filters | {"conv.bias": torch.zeros(10)}, folder / "no-head.pt")
    describe("no-head", good.replace("bezoar:small-cnn", "net.py:build"), "no-head.pt")
    fill("nine", 9)
    fill("eleven", 11)
    (folder / "no-images").mkdir()
    (folder / "no-images" / "readme.txt").write_text("nothing here")
    pack("high.npz", images, torch.where(torch.arange(300) < 3, 12, labels))
    pack("no-seven.npz", images[labels != 7], labels[labels != 7])
    pack("nine-images.npz", images[:9], labels[:9])
    pack(
        "one-each.npz",
        *(t[[int((labels == k).nonzero()[0]) for k in range(10)]] for t in (images, labels)),
    )
    pack("large.npz", images.repeat_interleave(2, 2).repeat_interleave(2, 3), labels)
    pack("unlabelled.npz", images)
    pack("shuffled.npz", images, (labels + 3) % 10)
    (folder / "text.npz").write_text("no archive")
    np.savez(folder / "archive.npz", np.zeros(3))
    np.save(folder / "flat.npy", np.zeros((8, 8)))
    return folder


MODELS = {
    "a text file": (f"scan {{bad}}/text.pt {FACTS} {CLEAN}", "is a text file, not a checkpoint"),
    "an image as the model": ("inspect {bad}/nine/00/0.png", "is a PNG image, not a checkpoint"),
    "a folder as the model": (f"scan {{bad}}/nine {FACTS} {CLEAN}", "is a folder"),
    "a missing file": (f"scan {{bad}}/none.pt {FACTS} {CLEAN}", "there is no file"),
    "a missing description": (f"scan {{bad}}/none.toml {CLEAN}", "cannot be read: No such file"),
    "a broken description": (f"scan {{bad}}/text.toml {CLEAN}", "is no valid TOML"),
    "half a torch file": (f"scan {{bad}}/cut.pt {FACTS} {CLEAN}", "damaged zip archive"),
    "half a safetensors file": (f"scan {{bad}}/cut.safetensors {FACTS} {CLEAN}", "damaged"),
    "a malicious pickle": (f"scan {{bad}}/evil.pt {FACTS} {CLEAN}", "nothing of it ran"),
    "a malicious pickle, inspected": ("inspect {bad}/evil.pt", "posix.system"),
    "a malicious pickle, cleaned": (f"clean {{bad}}/evil.pt {FACTS} {CLEAN} {OUT}", "refused"),
    "weights that are not numbers": (f"scan {{bad}}/nan.toml {CLEAN}", "NaN or infinite values in"),
    "logits that are no numbers, without images": (
        "scan {bad}/huge.toml",
        "bezoar: the network's logits are not finite numbers",
    ),
    "no input size, without images": (
        f"scan {{files}}/planted.pt {FACTS}",
        "give the input size (--input-size HEIGHT WIDTH; in Python input_size=(height, width)",
    ),
    "no input size to synthesize": (
        f"synthesize {{files}}/planted.pt {FACTS} --out {{empty}}/out.npz",
        "give the input size (--input-size HEIGHT WIDTH; in Python input_size=(height, width)",
    ),
    "a network without a linear head": (
        f"scan {{bad}}/no-head.toml {CLEAN}",
        "has no final linear layer",
    ),
    "a misspelt network": (f"scan {{bad}}/misspelt.toml {CLEAN}", "perhaps you meant 'small-cnn'"),
    "an unknown family": (
        f"scan {{bad}}/elsewhere.toml {CLEAN}",
        "perhaps you meant 'bezoar:small-cnn'",
    ),
    "no architecture": (f"scan {{files}}/planted.pt {CLEAN}", "give the architecture"),
    "no architecture in the description": (
        f"scan {{bad}}/no-architecture.toml {CLEAN}",
        "give the architecture",
    ),
    "no mean": (
        f"scan {{files}}/planted.pt {CLEAN} --architecture bezoar:small-cnn --std 1",
        "mean is missing",
    ),
    "no mean in the description": (f"scan {{bad}}/no-mean.toml {CLEAN}", "mean is missing"),
    "no std": (
        f"scan {{files}}/planted.pt {CLEAN} --architecture bezoar:small-cnn --mean 0",
        "std is missing",
    ),
    "nine names for ten classes": (f"scan {{bad}}/nine-names.toml {CLEAN}", "names 9 classes"),
}

SCAN = "scan {files}/planted.toml"
IMAGES = {
    "nine class folders": (f"{SCAN} --images {{bad}}/nine", "no clean image shows class 9"),
    "eleven class folders": (
        f"{SCAN} --images {{bad}}/eleven",
        "11 classes and the network has 10",
    ),
    "labels up to 12": (f"{SCAN} --images {{bad}}/high.npz", "13 classes and the network has 10"),
    "labels up to 12, evaluated": (
        "evaluate {files}/planted.toml --images {bad}/high.npz --trigger bad-nets",
        "an image has label 12",
    ),
    "a folder without images": (f"{SCAN} --images {{bad}}/no-images", "there are no images in"),
    "an empty folder": (f"{SCAN} --images {{empty}}", "there are no images in"),
    "no such folder": (f"{SCAN} --images {{bad}}/none", "there is no file or folder"),
    "a class without an image": (f"{SCAN} --images {{bad}}/no-seven.npz", "shows class 7"),
    "fewer images than classes": (
        f"{SCAN} --images {{bad}}/nine-images.npz",
        "9 clean images and 10",
    ),
    "one image of each class, to clean": (
        f"clean {{files}}/planted.toml --images {{bad}}/one-each.npz {OUT}.x --method ft",
        "none is left to judge the repair",
    ),
    "images of another size": (f"{SCAN} --images {{bad}}/large.npz", "16 pixels wide and 16 high"),
    "to be resized to no size": (
        f"scan {{files}}/planted.pt {FACTS} --images {{bad}}/large.npz --resize stretch",
        "give that, too (--input-size HEIGHT WIDTH; in Python size=(height, width))",
    ),
    "a network of another size": (f"scan {{bad}}/sixteen.toml {CLEAN}", "expected 16 wide and 16"),
    "other channels": (f"scan {{bad}}/colour.toml {CLEAN}", "gives 3 values as mean"),
    "classes in another order": (
        f"{SCAN} --images {{bad}}/shuffled.npz",
        "once the classes are put in another order",
    ),
    "an archive that is none": (f"{SCAN} --images {{bad}}/text.npz", "text.npz"),
    "no labels to clean with": (
        f"clean {{files}}/planted.toml --images {{bad}}/unlabelled.npz --method ft {OUT}",
        "cleaning needs labelled images",
    ),
    "no image at all": (f"{SCAN} {CLEAN} --limit 0", "--limit is 0; expected at least 1"),
}

CLEANING = f"clean {{files}}/planted.toml {CLEAN}"
OUTPUTS = {
    "a missing folder": (f"{CLEANING} --out {{empty}}/none/out.pt", "none does not exist"),
    "a folder": (f"{CLEANING} --out {{empty}}", "is a folder"),
    "the weights": (f"{CLEANING} --out {{files}}/planted.safetensors", "never overwritten"),
    "the weights, by a detour": (
        f"{CLEANING} --out {{files}}/../{{files_name}}/planted.safetensors",
        "never overwritten",
    ),
    "the description": (f"{CLEANING} --out {{files}}/planted.toml", "never overwritten"),
    "another container": (f"{CLEANING} --out {{empty}}/out.pt", "whose container is kept"),
    "the images": (f"{CLEANING} --out {{files}}/clean.npz", "never overwritten"),
    "the report over the weights": (
        f"{CLEANING} {OUT} --report {{files}}/planted.safetensors",
        "never overwritten",
    ),
    "the record over the description": (
        f"{SCAN} {CLEAN} --json {{files}}/planted.toml",
        "never overwritten",
    ),
    "the record over the weights": (
        "inspect {files}/planted.pt --json {files}/planted.pt",
        "never overwritten",
    ),
    "one name for two outputs": (
        f"{CLEANING} {OUT} --json {{empty}}/out.safetensors",
        "two outputs",
    ),
    "a report in a missing folder": (f"{CLEANING} {OUT} --report {{bad}}/none/r.html", "not exist"),
    "a record that is a folder": (f"{SCAN} {CLEAN} --json {{bad}}", "is a folder"),
    "a record in a missing folder": (
        f"{SCAN} {CLEAN} --json {{bad}}/none/s.json",
        "does not exist",
    ),
    "a record of an evaluation": (
        f"evaluate {{files}}/planted.toml {CLEAN} --trigger bad-nets --json {{bad}}/none/s.json",
        "does not exist",
    ),
    "a record of the demo": ("demo --out {empty}/d --json {bad}/none/s.json", "does not exist"),
    "a file as the demo's folder": ("demo --out {bad}/text.pt", "cannot be made: File exists"),
}

TAC = f"{CLEANING} {OUT} --method tac --set"
EVALUATE = f"evaluate {{files}}/planted.toml {CLEAN} --trigger"
OPTIONS = {
    "a seed out of range": (f"{SCAN} {CLEAN} --seed {10**20}", "--seed is 1000"),
    "no training image": ("attack none --data digits --out {empty}/x --train-images 0", "is 0;"),
    "an unknown method": (f"{CLEANING} {OUT} --method tca", "perhaps you meant 'tac'"),
    "an unknown method, listed": ("methods fft", "perhaps you meant 'ft'"),
    "an unknown setting": (f"{TAC} betta=1", "expected name=value with one of target_class,"),
    "a setting without a value": (f"{TAC} beta", "expected name=value"),
    "a setting inside nothing": (f"{TAC} beta.deep=1", "expected name=value"),
    "a setting of another type": (f"{TAC} beta=much", "Expected `float`"),
    "a setting out of range": (f"{TAC} beta=-1", "expected beta >= 0"),
    "an inner setting out of range": (f"{TAC} recipe.epochs=0", "epochs is 0; expected at least 1"),
    "a class the model has not": (f"{TAC} target_class=12", "target_class is 12"),
    "settings without a method": (f"{CLEANING} {OUT} --set beta=1", "need a --method"),
    "no published settings": (f"{CLEANING} {OUT} --method ft --preset published", "no published"),
    "a learning rate that explodes": (
        f"{CLEANING} {OUT} --method ft --set recipe.learning_rate=1e20 recipe.epochs=2",
        "use a smaller learning rate",
    ),
    "a negative limit": (
        f"{CLEANING} {OUT} --max-accuracy-drop -1",
        "expected points from 0 to 100",
    ),
    "a limit over 100": (f"{CLEANING} {OUT} --max-accuracy-drop 101", "from 0 to 100"),
    "an unknown attack": (f"{EVALUATE} badnets", "perhaps you meant 'bad-nets'"),
    "a parameter without a value": (f"{EVALUATE} bad-nets:size", "is no key=value pair"),
    "an unknown parameter": (f"{EVALUATE} bad-nets:sise=2", "unknown field `sise`"),
    "a target the model has not": (f"{EVALUATE} bad-nets:target=10", "target class is 10"),
    "a patch larger than the images": (f"{EVALUATE} bad-nets:size=9", "does not fit images of 8x8"),
    "a trigger that is nowhere": (
        f"{EVALUATE} stored-pattern:file={{bad}}/none.npy",
        "No such file",
    ),
    "an archive as trigger": (
        f"{EVALUATE} stored-pattern:file={{bad}}/archive.npz",
        "give an .npy",
    ),
    "a flat trigger": (f"{EVALUATE} stored-pattern:file={{bad}}/flat.npy", "expected (2, c, h, w)"),
    "an unknown device": (f"{SCAN} {CLEAN} --device gpu", "device 'gpu' cannot be used"),
    "a device without memory": (f"{SCAN} {CLEAN} --device meta", "device 'meta' cannot be used"),
}

CASES = {
    **{f"model: {name}": case for name, case in MODELS.items()},
    **{f"images: {name}": case for name, case in IMAGES.items()},
    **{f"output: {name}": case for name, case in OUTPUTS.items()},
    **{f"option: {name}": case for name, case in OPTIONS.items()},
}


def snapshot(*folders):
    return {
        path: path.read_bytes() if path.is_file() else None
        for folder in folders
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("case", CASES)
def test_one_clear_sentence_and_nothing_written(case, bad, model_files, tmp_path, capsys):
    command, said = CASES[case]
    places = {"bad": bad, "files": model_files, "files_name": model_files.name, "empty": tmp_path}
    arguments = [part.format(**places) for part in command.split()]
    if arguments[0] == "scan" and "--json" not in arguments:
        arguments += ["--json", f"{tmp_path}/scan.json", "--report", f"{tmp_path}/scan.html"]
    before = snapshot(bad, model_files, tmp_path)
    started = time.perf_counter()
    assert cli.run(arguments) == 2
    assert time.perf_counter() - started < 10, "the error comes before the work"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bezoar: ") and err.count("\n") == 1, "one line"
    assert said in err
    assert "Traceback" not in err and "Error:" not in err
    assert snapshot(bad, model_files, tmp_path) == before


def test_weights_of_another_network_get_a_readable_difference(model_files, tmp_path, capsys):
    other = FACTS.replace("small-cnn", "resnet-8").split()
    arguments = ["scan", str(model_files / "planted.pt"), *other]
    assert cli.run([*arguments, "--images", str(model_files / "clean.npz")]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("bezoar: ") and "planted.pt" in first
    assert any("conv1.weight" in line for line in rest)
    assert any("convs.0.weight" in line for line in rest)


# -- Ctrl-C ----------------------------------------------------------------------------------------


def cleaning(model_files, out):
    return [
        *("clean", str(model_files / "twin.toml"), "--images", str(model_files / "clean.npz")),
        *("--out", str(out), "--method", "ft", "--set", "recipe.epochs=1"),
    ]


def interrupt(*_arguments, **_options):
    raise KeyboardInterrupt


def interrupt_in_training(monkeypatch):
    monkeypatch.setattr(fine_tuning, "fit", interrupt)


def interrupt_in_writing(monkeypatch):
    def cut_off(file):
        os.truncate(file, 100)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.os, "fsync", cut_off)


def interrupt_in_renaming(monkeypatch):
    monkeypatch.setattr(Path, "replace", interrupt)


@pytest.mark.parametrize(
    "moment", [interrupt_in_training, interrupt_in_writing, interrupt_in_renaming]
)
@pytest.mark.parametrize("there_already", [False, True])
def test_ctrl_c_leaves_nothing_half_written(
    moment, there_already, model_files, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out.safetensors"
    if there_already:
        out.write_bytes(b"the result of yesterday")
    before = snapshot(model_files, tmp_path)
    with monkeypatch.context() as patch:
        moment(patch)
        assert cli.run(cleaning(model_files, out)) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1] == "bezoar: interrupted; no file is half-written."
    assert "Traceback" not in "".join(err)
    assert snapshot(model_files, tmp_path) == before
    assert cli.run([*cleaning(model_files, out), "--quiet"]) == 0, "the same works afterwards"
    assert out.stat().st_size > 1000


def test_a_full_disk_is_one_sentence(model_files, tmp_path, monkeypatch, capsys):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    out = tmp_path / "out.safetensors"
    assert cli.run([*cleaning(model_files, out), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err and err.count("\n") == 1
    (page,) = tmp_path.iterdir()
    assert page.name == "out.report.html" and "Not written" in page.read_text()
    assert f"The repaired network could not be written: {out}" in page.read_text()


INTERRUPTED = """
import signal, sys
from bezoar import cli
from bezoar.methods import fine_tuning

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
fit = fine_tuning.fit

def announced(*arguments, **options):
    print("training", flush=True)
    return fit(*arguments, **options)

fine_tuning.fit = announced
cli.main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_a_signal_in_the_middle_of_the_training_ends_the_process(model_files, tmp_path):
    out = tmp_path / "out.safetensors"
    arguments = cleaning(model_files, out)
    arguments[-1] = "recipe.epochs=1000000"
    process = subprocess.Popen(  # noqa: S603 (our own interpreter, arguments from this file)
        [sys.executable, "-c", INTERRUPTED, *arguments, "--scan-methods", "tac", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "training\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 2
    assert err == "bezoar: interrupted; no file is half-written.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def broken(model_files, monkeypatch, capsys):
    """(an error) → what a scan says that meets it; Python would leave with 1, as if it found."""

    def scan(error):
        def breaks(*_arguments, **_options):
            raise error

        monkeypatch.setattr(pipeline, "scan", breaks)
        images = ["--images", str(model_files / "clean.npz")]
        assert cli.run(["scan", str(model_files / "planted.toml"), *images]) == 2
        return capsys.readouterr().err

    return scan


def test_a_defect_is_no_verdict(broken):
    err = broken(ZeroDivisionError())
    assert "ZeroDivisionError" in err and "a defect of bezoar and no verdict" in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_no_defect(error, broken):
    err = broken(error)
    assert "there is not enough memory" in err and "defect" not in err and "Traceback" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_standard_output_is_one_sentence():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bezoar", "methods"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("bezoar: ") and done.stderr.count("\n") == 1


def test_a_report_that_cannot_be_written_does_not_cost_the_verdict(
    model_files, tmp_path, monkeypatch, capsys
):
    def full(*_arguments, **_options):
        raise InputError("no space left")

    monkeypatch.setattr(report, "write", full)
    arguments = ["scan", str(model_files / "planted.toml"), "--report", str(tmp_path / "r.html")]
    assert cli.run([*arguments, "--images", str(model_files / "clean.npz")]) == 2
    out, err = capsys.readouterr()
    assert "backdoor found" in out.lower() and "no space left" in err


def test_nothing_of_the_malicious_file_ran(bad, model_files, capsys):
    """After all of the above; and the file would have run in an ordinary unpickler."""
    images = ["--images", str(model_files / "clean.npz")]
    assert cli.run(["scan", str(bad / "evil.pt"), *FACTS.split(), *images]) == 2
    assert "posix.system" in capsys.readouterr().err
    assert not (bad / "sentinel").exists()
    torch.load(bad / "evil.pt", weights_only=False)
    assert (bad / "sentinel").exists()
    (bad / "sentinel").unlink()
