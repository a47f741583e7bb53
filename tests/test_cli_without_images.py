"""``bezoar clean`` by a method that needs no image: options, exit codes, screen, record, page."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from data_free_methods import Shake

from bezoar import cli
from bezoar.intake import read_weights
from bezoar.methods import methods
from bezoar.report.repair_view import read_repair

FACTS = ("--architecture", "bezoar:small-cnn", "--mean", "0.3", "--std", "0.35")
UNMEASURED = "Repaired, accuracy not measured"


@pytest.fixture(autouse=True)
def shake(monkeypatch):
    monkeypatch.setitem(methods._things, "shake", Shake)


@pytest.fixture
def bare(digits, tmp_path_factory):
    """An archive of the clean images without their labels."""
    path = tmp_path_factory.mktemp("bare") / "bare.npz"
    np.savez(path, images=digits.clean.images.numpy())
    return path


@pytest.fixture
def clean(model_files, tmp_path, capsys):
    """(arguments…) → exit code, standard output, standard error, the record."""

    def call(*arguments, model="planted.toml", method=("--method", "shake")):
        capsys.readouterr()
        outputs = ("--out", tmp_path / "out.safetensors", "--json", tmp_path / "out.json")
        given = ("clean", model_files / model, *method, *outputs, *arguments)
        code = cli.run([str(argument) for argument in given])
        said = capsys.readouterr()
        path = tmp_path / "out.json"
        return code, said.out, said.err, json.loads(path.read_text()) if path.exists() else None

    return call


class Text(HTMLParser):
    """The headings and the words of a page."""

    def __init__(self, page):
        super().__init__()
        self.words, self.headings, self.inside = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        if tag in ("h1", "h2"):
            self.headings.append("")

    def handle_data(self, data):
        if self.inside != "style":
            self.words.append(data)
        if self.headings and self.inside in ("h1", "h2", "bdi") and not self.headings[-1]:
            self.headings[-1] = data.strip()

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


@pytest.fixture
def page(tmp_path):
    return lambda: Text((tmp_path / "out.report.html").read_text())


def test_a_checkpoint_alone_is_repaired_and_nothing_is_claimed(clean, page, model_files, tmp_path):
    code, out, err, record = clean()
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == [record["skipped"][0], record["outcome"]]
    assert f"Weights: {tmp_path / 'out.safetensors'}" in out.splitlines()
    assert record["written"] and record["images"] is record["scan"] is None
    ours = read_weights(tmp_path / "out.safetensors").tensors
    theirs = read_weights(model_files / "planted.safetensors").tensors
    assert ours.keys() == theirs.keys()
    assert not torch.equal(ours["fc.weight"], theirs["fc.weight"])
    shown = page()
    assert shown.headings[0] == UNMEASURED
    assert "The repaired model, scanned again" not in shown.headings
    for part in (
        "No clean image of the task was given, so neither accuracy nor the backdoor's removal",
        "Accuracy was not measured: no clean image of the task was given.",
        "Agreement on synthetic images 97.9 %",
        "Under generated triggers 80.1 % → 1.2 %",
        "These are neither images of the task nor the attacker's trigger.",
        "Clean images none were given",
        record["skipped"][0],
        "Generated triggers Changes of an image that the method made up",
    ):
        assert part in shown.text, part
    assert "Accuracy lost" not in shown.text and "within the limit" not in shown.text


def test_the_facts_can_come_as_options_and_the_size_is_asked_for(clean, tmp_path):
    code, _, err, record = clean(*FACTS, model="planted.safetensors")
    assert code == 2 and record is None
    assert "--input-size HEIGHT WIDTH" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    code, _, _, record = clean(*FACTS, "--input-size", "8", "8", model="planted.safetensors")
    assert code == 0 and record["model"]["input"] == [1, 8, 8]


def test_without_images_and_with_a_method_that_needs_them_nothing_is_loaded(clean, tmp_path):
    code, out, err, _ = clean(method=("--method", "tac"), model="nowhere.toml")
    assert (code, out) == (2, "") and list(tmp_path.iterdir()) == []
    assert "no images were given" in err and "--method): " in err and "shake" in err


def test_images_without_labels_give_agreement_and_no_accuracy(clean, page, bare):
    code, out, _, record = clean("--images", bare)
    assert code == 0 and "BACKDOOR FOUND" in out and record["outcome"] in out
    assert record["images"]["source"] == record["scan"]["images"]["source"] == str(bare)
    assert record["agreement"]["count"] == 300 and record["before"] is None
    shown = page()
    assert shown.headings[0] == f"{UNMEASURED}, signs of a backdoor left", "it repairs nothing"
    assert "Accuracy was not measured: the clean images have no labels." in shown.text
    assert "Agreement 100.0 % same answer before and after" in shown.text
    assert "Number of images 300, without labels" in shown.text
    assert "The repaired model, scanned again" in shown.headings


def test_labelled_images_give_accuracy(clean, page, model_files):
    code, out, _, record = clean("--images", model_files / "clean.npz")
    assert code == 0 and "Repaired, signs of a backdoor left: accuracy 99.0 % before" in out
    assert record["fitted_on"] == {"count": 0, "of": 300}
    shown = page()
    assert shown.headings[0] == "Repaired, signs of a backdoor left", "it does nothing"
    assert "Accuracy 99.0 % → 99.0 %" in shown.text and "was not measured" not in shown.text
    assert "Agreement on synthetic images 97.9 %" in shown.text


def test_what_the_method_refuses_is_not_written_unless_forced(clean, page, tmp_path):
    refused = ("--set", "refuses=it diverged")
    code, out, _, _ = clean(*refused)
    assert code == 1 and "Not accepted: it diverged. " in out and "No weights were" in out
    assert not (tmp_path / "out.safetensors").exists()
    assert page().headings[0] == "Not written"
    code, _, _, record = clean(*refused, "--force")
    assert code == 0 and record["forced"] and (tmp_path / "out.safetensors").exists()
    assert page().headings[0] == "Written by force"


def test_the_export_needs_no_images_either(clean, tmp_path):
    code, _, _, record = clean("--export", tmp_path / "out.pt2")
    assert code == 0 and record["output"]["export"] == str(tmp_path / "out.pt2")
    program = torch.export.load(tmp_path / "out.pt2").module()
    assert program(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("odd", [7, "x", [], {}, {"synthetic": None}, {"synthetic": {"value": []}}])
def test_a_broken_record_shows_no_synthetic_figures(odd):
    record = {"outcome": "done", "judged_on": odd}
    view = read_repair(record | {"repair": {"agreement": odd, "insensitivity": odd}})
    assert view.synthetic is None and view.figures == [] and view.title == "Not written"
