"""Which witnesses look where nobody is named, and what a scan without images may say."""

import json

import pytest
import torch

from bezoar import Classifier, networks, scanning
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import MMBD, Weights
from bezoar.records import to_json
from bezoar.scanning import find_witnesses, is_auto, scan
from bezoar.training import Recipe, fit
from bezoar.verdict import Verdict


@pytest.fixture
def sized(digits):
    def make(which):
        one = getattr(digits, which)
        return Classifier(one.network, mean=one.mean, std=one.std, input_size=(8, 8))

    return make


def test_every_witness_looks_and_they_are_judged_against_the_measured_null(every_witness, digits):
    finding = scan(digits.planted, digits.clean, seed=0)
    on_digits = [w for w in scanning.WITNESSES if w != "smooth-pattern"]
    assert [e.method for e in finding.evidence] == on_digits
    told = " ".join(finding.record["notices"])
    assert "smooth-pattern did not look: it needs images of at least 16x16 pixels" in told
    assert finding.verdict is Verdict.BACKDOOR_FOUND
    assert finding.suspects[0] == digits.attack.target
    record = json.loads(json.dumps(to_json(finding.record), allow_nan=False))
    assert record["combined"]["factor"] >= 1 and record["combined"]["networks"] >= 40
    assert any(proof["works"] and proof["class"] == 4 for proof in record["proofs"])
    assert "backdoor-free networks" in record["power"]


def test_nothing_is_found_in_the_clean_twin(every_witness, digits):
    finding = scan(digits.twin, digits.clean, seed=0)
    assert finding.verdict is Verdict.NOTHING_FOUND


def test_who_cannot_look_is_left_out_of_our_choice_and_refused_where_named(every_witness, digits):
    bare = ImageSet(digits.clean.images)
    finding = scan(digits.planted, bare, seed=0)
    assert [e.method for e in finding.evidence] == [
        w for w in scanning.WITNESSES if w not in ("rnp", "plane-waves", "smooth-pattern")
    ]
    assert "The witness rnp could not look" in " ".join(finding.record["notices"])
    with pytest.raises(InputError, match="needs labelled images"):
        scan(digits.planted, bare, witnesses=["rnp"])


def test_names_may_be_left_out_of_our_choice(every_witness, digits):
    finding = scan(digits.planted, digits.clean, without=scanning.WITNESSES[1:])
    assert [e.method for e in finding.evidence] == ["tac"]


def test_witnesses_look_at_a_copy_in_the_fast_layout(digits, monkeypatch):
    given = digits.planted.copy()
    seen = []

    def look(self, classifier, clean, *, seed=0, progress=None):
        seen.append(classifier)
        return Weights().inspect(classifier, clean, seed=seed)

    monkeypatch.setattr(MMBD, "inspect", look)
    scan(given, digits.clean, witnesses=["mm-bd"])
    wide = [p for p in seen[0].network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert wide and all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    assert all(parameter.is_contiguous() for parameter in given.network.parameters())


def test_without_images_the_weights_are_looked_at_and_the_claim_is_weaker(sized, digits):
    finding = scan(sized("planted"))
    assert [e.method for e in finding.evidence] == list(scanning.WITHOUT_IMAGES)
    assert finding.verdict is Verdict.SUSPICIOUS, "never more: nothing could be tried"
    assert finding.suspects == (digits.attack.target,)
    record = json.loads(json.dumps(to_json(finding.record), allow_nan=False))
    assert record["images"] is None and "never more than suspicious" in record["notices"][0]
    twin = scan(sized("twin"))
    assert twin.verdict is Verdict.NOTHING_FOUND
    assert "without any clean image" in twin.record["sentence"]


def test_a_witness_that_needs_images_is_refused_without_any(sized):
    with pytest.raises(InputError, match=r"'tac' needs clean images.*weights, mm-bd"):
        scan(sized("planted"), witnesses=["tac"])


def test_without_images_the_size_must_be_known(digits):
    one = digits.planted
    with pytest.raises(InputError, match="input_size"):
        scan(Classifier(one.network, mean=one.mean, std=one.std))


def test_with_many_classes_a_witness_whose_test_does_not_hold_there_is_left_out():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 120))
    finding = scan(Classifier(network, mean=0.5, std=0.5, input_size=(4, 4)).trace((1, 4, 4)))
    assert [e.method for e in finding.evidence] == ["weights"]
    assert any("mm-bd did not look" in notice for notice in finding.record["notices"])
    assert "of 10 with 200 classes" in finding.record["power"]
    assert "Power was not measured" in finding.record["power"]


def test_a_network_that_tells_nothing_apart_is_told(digits):
    constant = digits.twin.copy()
    with torch.no_grad():
        constant.network.fc.weight.zero_()
    sized = Classifier(constant.network, mean=0.3, std=0.35, input_size=(8, 8))
    bare = ImageSet(digits.clean.images)
    for classifier, images in ((sized, None), (constant, bare)):
        notices = scan(classifier, images, witnesses=["weights"]).record["notices"]
        assert any("the very same logits" in notice for notice in notices)
    sound = scan(digits.twin, bare, witnesses=["weights"]).record["notices"]
    assert not any("the very same logits" in notice for notice in sound)


def test_where_no_method_can_compare_the_classes_nothing_is_called_ordinary():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    finding = scan(Classifier(network, mean=0.5, std=0.5, input_size=(4, 4)).trace((1, 4, 4)))
    assert finding.verdict is Verdict.NOTHING_FOUND
    assert finding.record["sentence"].startswith("Nothing can be told of these 3 classes")
    assert "stands out" not in finding.record["sentence"]


def test_auto_is_our_choice_by_name():
    assert is_auto(None) and is_auto(["auto"]) and is_auto(("auto",))
    assert not is_auto(["tac"]) and not is_auto(Weights())
    assert find_witnesses(["auto"]) == find_witnesses(None)
    assert find_witnesses(None, has_images=False) == (Weights(), MMBD())


@pytest.mark.parametrize(("classes", "silent"), [(2, 5), (3, 4), (4, 0)])
def test_who_can_say_nothing_of_so_few_classes_is_named(classes, silent, every_witness, digits):
    few = digits.clean.subset(torch.nonzero(digits.clean.labels < classes).flatten())
    torch.manual_seed(0)
    classifier = Classifier(networks.build("small-cnn", num_classes=classes), mean=0.3, std=0.35)
    fit(classifier, few, Recipe(epochs=10, batch_size=16, learning_rate=0.05), seed=0)
    record = scan(classifier, few, seed=0).record
    told = [notice for notice in record["notices"] if "can say nothing" in notice]
    assert len(told) == bool(silent)
    assert all(notice.split(" can say")[0].count(",") == silent - 1 for notice in told)
    assert ("so few classes" in record["power"]) == bool(silent)
