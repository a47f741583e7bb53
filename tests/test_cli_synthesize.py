"""``bezoar synthesize`` as users run it, and what ``clean`` shows of images a method made up."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from data_free_methods import Shake

from bezoar import cli, intake, networks
from bezoar.images import ImageSet
from bezoar.methods import methods, synthesized

FACTS = ("--architecture", "bezoar:small-cnn", "--mean", "0.3", "--std", "0.35")
QUICK = ("--steps", "30", "--count", "200")
HEADING = "What the network takes for its classes"


@pytest.fixture
def synthesize(model_files, tmp_path, capsys):
    """(arguments…) → exit code, standard output, standard error."""

    def call(*arguments, model="planted.toml", out="out.npz"):
        capsys.readouterr()
        given = ("synthesize", model_files / model, "--out", tmp_path / out, *QUICK, *arguments)
        code = cli.run([str(argument) for argument in given])
        return code, *capsys.readouterr()

    return call


def test_images_record_and_page_agree(synthesize, model_files, tmp_path):
    code, out, err = synthesize("--json", tmp_path / "out.json", "--seed", "3")
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "out.json").read_text())
    images = ImageSet.open(tmp_path / "out.npz")
    classifier = intake.load_model(model_files / "planted.toml").classifier
    assert torch.equal(images.labels, classifier.logits(images).argmax(1))
    assert images.class_counts(10).tolist() == record["per_class"] and len(images) == 200
    assert record["kind"] == "synthesize" and record["settings"]["steps"] == 30
    assert record["seed"] == 3 and record["model"]["file"].endswith("planted.safetensors")
    assert record["output"] == {"file": str(tmp_path / "out.npz")} and record["images"] is None
    told = " ".join(out.split())
    assert record["sentence"] in told and record["limits"] in told
    assert f"Images: {tmp_path / 'out.npz'}" in out
    page = (tmp_path / "out.report.html").read_text()
    assert page.count("<img") == sum(min(count, 8) for count in record["per_class"])
    assert HEADING in page and "no proof" not in page and "No scan was run" not in page
    assert "What was skipped" not in page and "p-value" not in page
    for count in record["per_class"]:
        assert f">{count} image" in page or (count == 0 and ">no image<" in page)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.npz", "out.report.html"]


def test_the_images_go_into_other_commands(synthesize, model_files, tmp_path, capsys):
    assert synthesize("--steps", "60", "--count", "300", "--quiet")[:2] == (0, "")
    images = ("--images", str(tmp_path / "out.npz"))
    model = str(model_files / "planted.toml")
    assert cli.run(["evaluate", model, *images, "--trigger", "bad-nets:target=4,size=2"]) == 0
    assert capsys.readouterr().out.startswith("ACC  100.0 %")
    assert cli.run(["scan", model, *images, "--quiet"]) in (0, 1)


def test_the_same_seed_gives_the_same_file(synthesize, tmp_path):
    pixels = []
    for seed in ("5", "5", "6"):
        assert synthesize("--seed", seed, "--steps", "5", "--quiet")[0] == 0
        with np.load(tmp_path / "out.npz") as archive:
            pixels.append(archive["images"])
    assert np.array_equal(pixels[0], pixels[1]) and not np.array_equal(pixels[0], pixels[2])


def test_options_and_the_place_of_the_page(synthesize, tmp_path):
    chosen = ("--count", "90", "--per-class", "2", "--report", tmp_path / "page.html")
    code, out, _ = synthesize(*chosen, "--json", "-")
    record = json.loads(out)
    assert code == 0 and record["count"] == sum(record["per_class"]) == 90
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == sum(min(count, 2) for count in record["per_class"])
    assert not (tmp_path / "out.report.html").exists()


def test_missing_classes_are_told_everywhere(synthesize, tmp_path):
    code, out, _ = synthesize("--count", "1", "--steps", "1", "--json", tmp_path / "out.json")
    (notice,) = json.loads((tmp_path / "out.json").read_text())["notices"]
    assert code == 0 and notice.startswith("No image is answered with 9 of 10 classes: ")
    assert notice in " ".join(out.split())
    page = (tmp_path / "out.report.html").read_text()
    assert notice in page and page.count(">no image<") == 9 and "9 classes have no image." in page


def test_a_network_without_batchnorm_says_so(tmp_path, capsys):
    torch.save(networks.build("gn-resnet-8").state_dict(), tmp_path / "gn.pt")
    facts = (
        "--architecture",
        "bezoar:gn-resnet-8",
        "--mean",
        "0",
        "0",
        "0",
        "--std",
        "1",
        "1",
        "1",
    )
    few = ("--input-size", "16", "16", "--count", "8", "--steps", "1")
    given = ("synthesize", tmp_path / "gn.pt", *facts, *few, "--out", tmp_path / "out.npz")
    assert cli.run([str(argument) for argument in given]) == 0
    assert synthesized.NO_STATISTICS in " ".join(capsys.readouterr().out.split())
    assert synthesized.NO_STATISTICS in (tmp_path / "out.report.html").read_text()


def test_bad_input_is_one_sentence_before_the_work(synthesize, model_files, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesized, "source_for", None)
    weights = model_files / "planted.safetensors"
    before = weights.read_bytes()
    cases = [
        (synthesize(out="out.html"), "expected a name that ends in .npz"),
        (synthesize("--per-class", "0"), "0 images of each class"),
        (synthesize("--per-class", "17"), "expected 1 to 16"),
        (synthesize("--count", "0"), "0 images are asked for; expected at least 1"),
        (synthesize("--steps", "-1"), "steps is -1; expected 0 or more"),
        (synthesize(out="none/out.npz"), "does not exist"),
        (synthesize("--report", weights), "never overwritten"),
        (synthesize("--json", tmp_path / "out.npz"), "given for two outputs"),
        (synthesize("--device", "nonsense"), "nonsense"),
        (synthesize(*FACTS, model="planted.safetensors"), "--input-size HEIGHT WIDTH"),
    ]
    for (code, out, err), said in cases:
        assert (code, out) == (2, ""), said
        assert err.startswith("bezoar: ") and err.count("\n") == 1 and said in err, err
    assert weights.read_bytes() == before and list(tmp_path.iterdir()) == []


class Dream(Shake, frozen=True, kw_only=True):
    """Shakes the weights, and shows two images of class 3 as what it did so with."""

    name = "dream"

    def remove(self, classifier, clean=None, *, seed=0, progress=None):
        repair = super().remove(classifier, clean, seed=seed, progress=progress)
        pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
        return dataclasses.replace(repair, synthetic=ImageSet(pixels, torch.tensor([3, 3])))


@pytest.mark.parametrize(("method", "shown"), [("dream", 2), ("shake", 0)])
def test_clean_shows_what_the_method_made_up(method, shown, model_files, tmp_path, monkeypatch):
    for kind in (Shake, Dream):
        monkeypatch.setitem(methods._things, kind.name, kind)
    given = ("clean", model_files / "planted.toml", "--method", method, "--quiet", "--out",
             tmp_path / "out.safetensors")  # fmt: skip
    assert cli.run([str(argument) for argument in given]) == 0
    page = (tmp_path / "out.report.html").read_text()
    assert len(re.findall(r"<img", page)) == shown
    assert ("Images that the repair was made with" in page) == bool(shown)
    assert (">2 images<" in page) == bool(shown)
