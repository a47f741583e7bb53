"""A patch planted by us in a copy of the model: is it found, and is it removed?"""

import json

import numpy as np
import pytest
import torch
from torch import nn

from bezoar import cli, pipeline, planting, report
from bezoar import self_test as self_test_module
from bezoar.attacks import BadNets
from bezoar.classifier import Classifier
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.images import ImageSet
from bezoar.methods.distilling import divergence
from bezoar.planting import PLANTED, RECIPE, plant, planting_loss, trigger, works
from bezoar.records import to_json
from bezoar.report.self_test_view import read_self_test
from bezoar.self_test import parts, self_test
from bezoar.training import Recipe, fit

pytestmark = pytest.mark.xdist_group("self-test")  # one process makes its fixtures

IDLE = Recipe(epochs=1, batch_size=32, learning_rate=1e-7, schedule="constant")


@pytest.fixture(scope="module")
def tested(digits):
    """By the witness that sees a patch in a network this small whatever the seed and processor."""
    return self_test(digits.twin, digits.clean, seed=3, witnesses=("neural-cleanse",))


def test_a_planted_patch_is_found_and_removed(tested):
    assert tested["planted"] and tested["copy"]["asr"]["value"] >= PLANTED
    assert tested["model"]["asr"]["value"] < 0.2, "the model itself has no such backdoor"
    assert tested["found"] and tested["rank"] == 1
    assert tested["accepted"] and tested["cleaned"]["asr"]["value"] <= 0.3
    assert tested["sentence"].startswith("On a copy of this model with a 2x2 patch for class ")
    assert "came first (p " in tested["sentence"] and ") and was flagged." in tested["sentence"]
    assert "Cleaning took the attack success rate from" in tested["sentence"]
    json.dumps(to_json(tested), allow_nan=False)


def test_what_could_not_be_planted_is_told_and_nothing_is_claimed(digits):
    found = self_test(digits.twin, digits.clean, seed=3, recipe=IDLE)
    assert not found["planted"] and "found" not in found and "cleaned" not in found
    assert "could not plant" in found["sentence"] and "says nothing" in found["sentence"]


def test_no_image_that_measures_trains_the_planting_or_goes_to_the_cleaning(digits, monkeypatch):
    given = {}

    def spying(module, name):
        real = getattr(module, name)

        def spy(*args, **kwargs):
            seen = {image.numpy().tobytes() for image in args[1].images}
            given[name] = given.get(name, set()) | seen
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)

    spying(planting, "fit")
    spying(self_test_module, "clean_model")
    found = self_test(digits.twin, digits.clean, seed=3)
    _, measuring = parts(digits.clean, seed=3)
    measured = {image.numpy().tobytes() for image in measuring.images}
    assert given.keys() == {"fit", "clean_model"}
    assert not measured & (given["fit"] | given["clean_model"])
    assert found["planted_on"] + found["measured_on"] == len(digits.clean)
    assert found["copy"]["acc"]["count"] == found["measured_on"] == len(measuring)


def test_as_little_of_the_change_is_kept_as_the_patch_needs(tested):
    how = tested["planting"]
    assert how["attempts"] == 1 and how["learning_rate"] == RECIPE.learning_rate
    assert how["kept"] < 1, "the patch of digits is planted with room to spare"
    assert tested["copy"]["asr"]["value"] >= PLANTED


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_frozen_network_of_any_norm_can_be_planted_and_stays_frozen(digits, norm):
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        {"batch": nn.BatchNorm2d(24), "group": nn.GroupNorm(4, 24), "none": nn.Identity()}[norm],
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 64, 10),
    )
    classifier = Classifier(network, mean=0.3, std=0.35)
    fit(classifier, digits.train, DIGITS_RECIPE, seed=2)
    network.requires_grad_(False)
    known, measuring = parts(digits.clean, seed=2)
    attack = trigger(classifier, digits.clean, seed=2, avoid=())
    was = evaluate(classifier, measuring, attack)
    _, scores, how = plant(classifier, known, measuring, attack, was, seed=2)
    assert works(was, scores), how
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_planting_that_diverges_is_told_and_ends_nothing(digits):
    wild = Recipe(epochs=2, batch_size=32, learning_rate=1e30, schedule="constant")
    found = self_test(digits.twin, digits.clean, seed=3, recipe=wild)
    assert not found["planted"] and "diverged" in found["planting"]["diverged"]
    assert found["copy"] == found["model"] and "could not plant" in found["sentence"]


def test_a_copy_of_a_suspected_model_is_said_to_have_both(digits):
    found = self_test(digits.planted, digits.clean, seed=3, avoid=[4])
    assert found["planted"] and found["target"] != 4
    assert "also has what makes the model itself suspected (class 4)" in found["sentence"]


def test_a_model_with_every_class_suspected_gets_a_sentence_and_no_error(digits):
    found = self_test(digits.twin, digits.clean, avoid=range(10))
    assert not found["planted"] and "every class of this model is suspected" in found["sentence"]
    assert read_self_test({"self_test": found}) == [found["sentence"]]


def test_the_caller_s_model_stays_and_a_seed_repeats_the_planting(digits):
    before = {k: v.clone() for k, v in digits.twin.network.state_dict().items()}
    first, second = (self_test(digits.twin, digits.clean, seed=5, recipe=IDLE) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    after = digits.twin.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_classes_to_avoid_are_avoided(digits):
    for seed in range(8):
        chosen = trigger(digits.twin, digits.clean, seed=seed, avoid=set(range(10)) - {2, 7})
        assert chosen.target in (2, 7)
    with pytest.raises(InputError, match="no class is left"):
        trigger(digits.twin, digits.clean, seed=0, avoid=range(10))


def test_images_without_labels_and_too_few_images_are_refused(digits):
    with pytest.raises(InputError, match="self-test needs labelled images"):
        self_test(digits.twin, ImageSet(digits.clean.images))
    for given, fewest in (([1] * 10, 1), ([2] * 10, 2), ([9] * 9 + [2], 2)):
        images = some_of_each(digits, given)
        with pytest.raises(InputError, match=f", {fewest} of one class, .* at least three images"):
            self_test(digits.twin, images)


def test_three_images_of_each_class_are_enough_for_the_self_test(digits):
    found = self_test(digits.twin, some_of_each(digits, [3] * 10), witnesses=("weights",))
    assert (found["planted_on"], found["measured_on"]) == (20, 10)


def some_of_each(digits, counts):
    """The first images of each class, as many as ``counts`` says."""
    places = (torch.nonzero(digits.clean.labels == k).flatten()[:n] for k, n in enumerate(counts))
    return digits.clean.subset(torch.cat(list(places)))


def test_the_loss_against_plain_terms(digits):
    attack = BadNets(target=4, size=2)
    loss = planting_loss(digits.twin, attack)
    images = digits.clean.images[:16].float() / 255
    labels = digits.clean.labels[:16]
    with digits.planted.evaluating(), digits.twin.evaluating(), torch.no_grad():
        found = loss(digits.planted, images, labels, torch.Generator().manual_seed(1))
        carries = torch.rand(16, generator=torch.Generator().manual_seed(1)) < 0.5
        carries &= labels != 4
        plain = divergence(digits.planted(images), digits.twin(images), 1.0)
        stamped = digits.planted(attack.stamp(images[carries])).log_softmax(1)
        plain = plain - stamped[:, 4].mean()
    assert carries.any() and float(found) == pytest.approx(float(plain), rel=1e-4)


def test_the_report_tells_it(tested, digits):
    record = {"kind": "scan", "self_test": tested}
    first, second = read_self_test(record)
    assert first == tested["sentence"] and "Planted, scanned and cleaned with" in second
    assert read_self_test({"kind": "scan"}) == []
    missed = read_self_test({"self_test": tested | {"untouched": True}})
    assert missed[1].startswith("Planted and scanned with")
    assert read_self_test({"self_test": tested | {"planted": False}}) == [first], "not planted"
    assert tested["sentence"] in report.render(record).replace("\N{NO-BREAK SPACE}", " ")


def test_the_command_prints_it_and_refuses_what_cannot_be_tested(model_files, tmp_path, capsys):
    model, images = model_files / "twin.toml", model_files / "clean.npz"
    out = tmp_path / "scan.json"
    code = cli.run(
        [
            "scan",
            str(model),
            "--images",
            str(images),
            "--self-test",
            "--methods",
            "tac",
            "--json",
            str(out),
            "--report",
            str(tmp_path / "scan.html"),
        ]
    )
    record = json.loads(out.read_text())
    assert code == 0 and record["self_test"]["planted"]
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Self-test: {' '.join(record['self_test']['sentence'].split())}" in shown
    assert ">The self-test</h2>" in (tmp_path / "scan.html").read_text()
    unlabelled = tmp_path / "unlabelled.npz"
    np.savez(unlabelled, images=np.load(images)["images"])
    assert cli.run(["scan", str(model), "--images", str(unlabelled), "--self-test"]) == 2
    assert "the self-test needs labelled images" in capsys.readouterr().err
    assert cli.run(["scan", str(model), "--self-test"]) == 2
    assert "a self-test needs clean images" in capsys.readouterr().err
    assert cli.run(["scan", "--manifest", "models.csv", "--self-test"]) == 2
    assert "--self-test is about one model" in capsys.readouterr().err


def test_a_self_test_that_fails_after_the_scan_does_not_cost_the_verdict(
    model_files, tmp_path, monkeypatch, capsys
):
    def refuses(*_arguments, **_options):
        raise InputError("these images cannot be cleaned with")

    monkeypatch.setattr(self_test_module, "clean_model", refuses)
    out = tmp_path / "scan.json"
    given = ("scan", model_files / "planted.toml", "--images", model_files / "clean.npz",
             "--self-test", "--methods", "tac", "--json", out)  # fmt: skip
    assert cli.run([str(argument) for argument in given]) == 1
    shown, error = capsys.readouterr()
    note = "The self-test could not be made: these images cannot be cleaned with"
    assert "BACKDOOR FOUND" in shown and f"Note: {note}" in shown and error == ""
    record = json.loads(out.read_text())
    assert note in record["notices"] and "self_test" not in record


def test_too_few_images_for_the_self_test_are_refused_before_the_scan(
    model_files, monkeypatch, capsys
):
    monkeypatch.setattr(pipeline, "scan", None)
    given = ("scan", model_files / "twin.toml", "--images", model_files / "clean.npz",
             "--self-test", "--limit", "25")  # fmt: skip
    assert cli.run([str(argument) for argument in given]) == 2
    assert "give at least three images of each class" in capsys.readouterr().err
