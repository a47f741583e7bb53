"""Repairs by a method that needs no image: by what they are judged, and what is claimed of them."""

import copy
import json
import math
from typing import ClassVar

import pytest
import torch
from data_free_methods import MEASURED, Shake
from torch import nn

from bezoar import choosing, looking, pipeline
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.judging import judge_repair
from bezoar.methods import TAC, Evidence, FineTuning, Method, Repair, is_data_free, methods
from bezoar.methods.method import Needs
from bezoar.metrics import rate
from bezoar.records import to_json
from bezoar.wording import UNMEASURED

NO_LABELS = "the 300 clean images have no labels"


@pytest.fixture(autouse=True)
def shake(monkeypatch):
    monkeypatch.setitem(methods._things, "shake", Shake)
    Shake.given.clear()


@pytest.fixture
def planted(digits):
    """The planted classifier as a user has it who knows the size of its images."""
    classifier = digits.planted.copy()
    return Classifier(classifier.network, mean=0.3, std=0.35, input_size=(8, 8))


def plain(record):
    return json.loads(json.dumps(to_json(record), allow_nan=False))


def bare(images):
    return ImageSet(images.images)


class NoScan(TAC, frozen=True, kw_only=True):
    def inspect(self, *_arguments, **_options):
        raise AssertionError("nothing can be scanned without images")


# -- no images -------------------------------------------------------------------------------------


def test_without_images_nothing_is_scanned_and_accuracy_is_not_claimed(planted):
    repair = pipeline.clean(planted, method="shake", witnesses=[NoScan()], seed=3)
    record = plain(repair.record)
    assert Shake.given == [None] and repair.evidence == ()
    assert record["judged_on"] == "no images" and record["accepted"]
    nothing = ("images", "scan", "rescan", "before", "after", "agreement", "accuracy_drop")
    assert {key: record[key] for key in nothing} == dict.fromkeys(nothing)
    assert record["fitted_on"] == {"count": 0, "of": 0}
    assert record["model"]["input"] == [1, 8, 8]
    (skipped,) = record["skipped"]
    assert skipped == (
        "The model was not scanned: without clean images of the task only the weights could be "
        "looked at, and with a method named nothing depends on that."
    )
    assert record["method"]["reason"] == "It was asked for; it takes no image."
    assert record["changes"], "the repair itself is recorded as ever"


def test_what_was_measured_instead_is_told_with_what_it_is_worth(planted):
    record = pipeline.clean(planted, method="shake").record
    assert record["repair"]["agreement"] == MEASURED["agreement"]
    assert record["repair"]["insensitivity"] == MEASURED["insensitivity"]
    assert record["outcome"] == (
        f"{UNMEASURED}: no clean image of the task was given, so neither accuracy nor the "
        "backdoor's removal could be verified. Measured instead: the old and the new model answer "
        "97.9 % (95 %: 97.2 to 98.4) of 2000 synthetic images with the same class; generated "
        "triggers change the class of 80.1 % of synthetic images before and 1.2 % after. Synthetic "
        "images are no images of the task and generated triggers are not the attacker's: this "
        "shows how far the method reached its own goal, and no more."
    )


def test_a_method_that_measured_nothing_is_not_lent_any_figures(planted):
    record = pipeline.clean(planted, method=Shake(measures=False)).record
    assert record["outcome"].endswith("could be verified. Nothing was measured instead.")


def test_a_seed_repeats_the_repair_and_the_caller_s_model_stays(planted):
    before = copy.deepcopy(planted.network.state_dict())
    first, second, other = (
        pipeline.clean(planted, method="shake", seed=seed).classifier.network.state_dict()
        for seed in (1, 1, 2)
    )
    same = [[torch.equal(first[name], s[name]) for name in first] for s in (second, other)]
    assert all(same[0]) and not all(same[1])
    assert all(torch.equal(before[name], planted.network.state_dict()[name]) for name in before)


@pytest.mark.parametrize(
    ("method", "who"),
    [("tac", "the method 'tac'"), (FineTuning(), "the method 'ft'")],
)
def test_a_method_that_needs_images_is_refused_with_those_that_do_not(method, who, planted):
    message = f"no images were given, and {who} needs labelled clean images; .*--images.*: .*shake"
    with pytest.raises(InputError, match=message):
        pipeline.clean(planted, method=method)


def test_the_needs_of_a_method_decide_and_not_its_class():
    assert is_data_free(Shake()) and not is_data_free(TAC())


def no_size(classifier):
    return Classifier(classifier.network, mean=0.3, std=0.35)


def two_channels(classifier):
    return Classifier(classifier.network, mean=[0.3, 0.3], std=0.35, input_size=(8, 8))


def infinite(classifier):
    with torch.no_grad():
        classifier.network.fc.weight[0, 0] = math.inf
    return classifier


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            no_size,
            "the input size is not known yet.*--input-size HEIGHT WIDTH; in Python input_size",
        ),
        (two_channels, "cannot take images of 2x8x8.*mean and std for each channel"),
        (infinite, "'fc.weight' holds values that are not finite"),
    ],
)
def test_a_model_that_does_not_say_what_it_takes_is_refused_before_the_work(
    spoil, message, planted
):
    with pytest.raises(InputError, match=message):
        pipeline.clean(spoil(planted), method="shake")
    assert Shake.given == []


# -- images without labels -------------------------------------------------------------------------


def test_images_without_labels_take_no_part_and_all_of_them_give_agreement(digits):
    repair = pipeline.clean(digits.planted, bare(digits.clean), method=Shake(size=0.4), seed=1)
    record = plain(repair.record)
    assert Shake.given == [None]
    assert record["judged_on"] == "unlabelled images" and record["accepted"]
    assert record["fitted_on"] == {"count": 0, "of": 300}
    old, new = (c.logits(digits.clean).argmax(1) for c in (digits.planted, repair.classifier))
    share = int((old == new).sum()) / 300
    assert 0.3 < share < 1, "else this test shows nothing"
    assert record["agreement"]["value"] == pytest.approx(share)
    assert record["agreement"]["count"] == 300
    assert record["before"] is record["after"] is record["accuracy_drop"] is None
    assert record["heading"] == f"{UNMEASURED}, signs of a backdoor left", "it repairs nothing"
    assert record["outcome"].startswith(f"{record['heading']}: {NO_LABELS}. ")
    most = math.ceil(1000 * (1 - share)) / 10
    assert f"cannot have fallen by more than {most:.1f} points; whether it is" in record["outcome"]
    assert "limit of 5 points could not be judged. Agreement says nothing" in record["outcome"]


def test_the_scan_runs_on_images_without_labels_before_and_after(digits):
    record = pipeline.clean(digits.planted, bare(digits.clean), method="shake").record
    assert record["scan"]["verdict"] == record["rescan"]["verdict"] == "backdoor found"
    assert record["skipped"] == []
    assert "A new scan of the repaired model says: backdoor found." in record["outcome"]
    care = record["aftercare"]  # it worked on no image, and these show what it left
    assert care["probe"]["before"] > 0.9 and record["outcome"].endswith(care["risk"])
    assert any("trigger still carries" in sign for sign in care["signs"])
    assert "that is within the limit of 5 points. " in record["outcome"], "they hardly differ"


@pytest.mark.parametrize(
    ("count", "witness", "why"),
    [(6, "tac", "6 clean images and 10 classes"), (300, "rnp", "RNP needs labelled images")],
)
def test_a_scan_that_is_not_possible_does_not_stop_a_repair_that_needs_none(
    count, witness, why, digits
):
    images = ImageSet(digits.clean.images[:count], notices=["Two files left out."])
    record = pipeline.clean(digits.planted, images, method="shake", witnesses=[witness]).record
    assert record["scan"] is record["rescan"] is None
    (skipped,) = record["skipped"]
    assert skipped.startswith("The model was not scanned: ") and why in skipped
    assert "Two files left out." in record["notices"], "the scan would have told it"
    assert record["agreement"]["count"] == count and "new scan" not in record["outcome"]


def test_images_that_do_not_fit_are_refused_all_the_same(digits):
    wide = ImageSet(digits.clean.images.repeat(1, 3, 1, 1))
    with pytest.raises(InputError, match="cannot take images of 3x8x8"):
        pipeline.clean(digits.planted, wide, method="shake")
    with pytest.raises(InputError, match="there are no clean images"):
        pipeline.clean(digits.planted, bare(digits.clean.subset([])), method="shake")
    with pytest.raises(InputError, match="cleaning needs labelled images"):
        pipeline.clean(digits.planted, bare(digits.clean), method="ft")
    assert Shake.given == []


# -- labelled images -------------------------------------------------------------------------------


def test_all_labelled_images_judge_and_none_is_given_to_the_method(digits):
    repair = pipeline.clean(digits.planted, digits.clean, method=Shake(size=0.4), seed=1)
    record = plain(repair.record)
    assert Shake.given == [None]
    assert record["judged_on"] == "labelled images"
    assert record["fitted_on"] == {"count": 0, "of": 300}
    truth = digits.clean.labels
    for key, classifier in (("before", digits.planted), ("after", repair.classifier)):
        share = float((classifier.logits(digits.clean).argmax(1) == truth).float().mean())
        assert record[key]["accuracy"]["value"] == pytest.approx(share)
        assert record[key]["accuracy"]["count"] == 300
    assert record["accuracy_drop"] > 0.05 and not record["accepted"]
    assert record["agreement"]["count"] == 300 and record["scan"] and record["rescan"]
    assert "on 300 held-out clean images; estimated as a loss of " in record["outcome"]
    assert "(beyond the limit of 5 points)" in record["outcome"]


def test_one_image_of_each_class_is_enough_to_judge_by(digits):
    ten = digits.clean.subset([int((digits.clean.labels == k).nonzero()[0]) for k in range(10)])
    record = pipeline.clean(digits.planted, ten, method="shake").record
    assert record["before"]["accuracy"]["count"] == 10


def test_labelled_images_of_another_order_are_an_error_as_ever(digits):
    wrong = ImageSet(digits.clean.images, (digits.clean.labels + 1) % 10)
    with pytest.raises(InputError, match="once the classes are put in another order"):
        pipeline.clean(digits.planted, wrong, method="shake")


# -- judging ---------------------------------------------------------------------------------------


class Answers(nn.Module):
    """Answers with the class that is written in the first pixel; below ``wrong``, with another."""

    def __init__(self, classes, wrong=0):
        super().__init__()
        self.classes, self.wrong = classes, wrong
        self.fc = nn.Linear(classes, classes, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(classes))

    def forward(self, x):
        said = (x[:, 0, 0, 0] * 255).round().long()
        said = torch.where(said < self.wrong, said + self.classes // 2, said) % self.classes
        return self.fc(nn.functional.one_hot(said, self.classes).float())


def answering(classes=100, wrong=0):
    """A classifier, and 100 images; it answers the first ``wrong`` of them wrongly."""
    classifier = Classifier(Answers(classes, wrong), mean=0.0, std=1.0)
    images = torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return classifier, ImageSet(images.contiguous())


@pytest.mark.parametrize(
    ("wrong", "limit", "said"),
    [
        (5, 0.05, "by more than 5.0 points; that is within the limit of 5 points"),
        (6, 0.05, "by more than 6.0 points; whether it is within the limit of 5 points could not"),
        (0, 0.0, "by more than 0.0 points; that is within the limit of 0 points"),
    ],
)
def test_the_bound_is_the_share_of_changed_answers(wrong, limit, said):
    (before, images), (after, _) = answering(), answering(wrong=wrong)
    judged = judge_repair(before, Repair(after, {}), images, max_accuracy_drop=limit)
    assert judged.accepted and said in judged.told


def test_the_bound_holds_whatever_the_labels_are():
    (before, images), (after, _) = answering(), answering(wrong=30)
    generator = torch.Generator().manual_seed(0)
    hidden = [before.logits(images).argmax(1), after.logits(images).argmax(1)]
    hidden += [torch.randint(100, (100,), generator=generator) for _ in range(20)]
    drops = []
    for labels in hidden:
        known = ImageSet(images.images, labels)
        drops.append(judge_repair(before, Repair(after, {}), known, max_accuracy_drop=1).record)
    counted = [record["loss"]["counted"] for record in drops]
    assert max(counted) == pytest.approx(0.3), "it is reached"


def test_a_bound_is_rounded_up():
    images = ImageSet(torch.arange(3, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 2))
    (before, _), (after, _) = answering(), answering(wrong=1)
    judged = judge_repair(before, Repair(after, {}), images, max_accuracy_drop=0.05)
    assert "more than 33.4 points" in judged.told, "a third"


def nan_weights(classifier):
    ruined = classifier.copy()
    with torch.no_grad():
        ruined.network.fc.weight[0, 0] = math.nan
    return ruined


@pytest.mark.parametrize("images", [None, "unlabelled"])
def test_a_ruined_network_is_not_accepted_however_little_is_known(images, digits):
    given = None if images is None else bare(digits.clean)
    planted = digits.planted
    planted.trace((1, 8, 8))
    judged = judge_repair(planted, Repair(nan_weights(planted), {}), given, max_accuracy_drop=0.05)
    assert judged.heading == "Not accepted" and not judged.accepted
    assert judged.told.startswith(
        "the repaired network holds values that are not finite numbers. Accuracy was not measured: "
    )
    if given is not None:
        far = Shake(size=50.0).remove(planted)
        judged = judge_repair(planted, far, given, max_accuracy_drop=0.05)
        assert not judged.accepted and "no better than chance" in judged.told


def test_synthetic_agreement_at_chance_is_not_accepted(digits):
    digits.planted.trace((1, 8, 8))
    for successes, accepted in ((100, False), (150, True)):  # of 1000, for ten classes
        record = {"agreement": {"synthetic": rate(successes, 1000).as_record()}}
        repair = Repair(digits.planted.copy(), record)
        judged = judge_repair(digits.planted, repair, None, max_accuracy_drop=0.05)
        assert judged.accepted is accepted


@pytest.mark.parametrize("kind", ["none", "unlabelled", "labelled"])
def test_a_method_that_does_not_stand_by_its_work_is_believed(kind, digits, planted):
    images = {"none": None, "unlabelled": bare(digits.clean), "labelled": digits.clean}[kind]
    method = Shake(refuses="the student does not follow the teacher.")
    record = pipeline.clean(planted, images, method=method).record
    assert not record["accepted"]
    assert record["outcome"].startswith(
        "Not accepted: the student does not follow the teacher. Accuracy "
    )


class Brief(Shake, frozen=True, kw_only=True):
    """A repair that is a copy, and knows what it was asked for."""

    measures: bool = False
    target_class: int | None = None

    def remove(self, classifier, _images=None, *, seed=0, progress=None):
        return Repair(classifier.copy(), {})


class Blind(Method, frozen=True, kw_only=True):
    """Names a class without an image."""

    name: ClassVar[str] = "blind"
    needs: ClassVar[Needs] = "nothing"
    inspects: ClassVar[bool] = True

    named: int | None = None

    def inspect(self, classifier, clean=None, *, seed=0, progress=None):
        assert clean is None
        p_values = [1.0] * 10
        if self.named is not None:
            p_values[self.named] = 1e-6
        zeros = (0.0,) * 10
        return Evidence("blind", "Nothing", zeros, zeros, tuple(p_values), "none")


def chosen(monkeypatch, name, title, needs="nothing"):
    kind = type("Chosen", (Brief,), {"__annotations__": {}}, frozen=True, kw_only=True)
    kind.name, kind.needs = title, needs
    monkeypatch.setattr(choosing, name, kind)


def test_with_public_images_and_no_method_fred_is_taken(planted, monkeypatch):
    chosen(monkeypatch, "FreD", "fred", "public images")
    drawn = ImageSet(torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8))
    record = pipeline.clean(planted, public=drawn).record
    assert record["method"]["name"] == "fred" and record["scan"]["verdict"] == "suspicious"
    reason = "There are no images of the task; fred works with the public ones."
    assert record["method"]["reason"] == reason
    quiet = {"public": drawn, "witnesses": [Blind()]}
    assert pipeline.clean(planted, **quiet).record["heading"] == "Left untouched"
    careful = pipeline.clean(planted, **quiet, precaution=True).record
    assert careful["method"]["name"] == "fred" and not careful["untouched"]
    monkeypatch.setattr(looking, "FEWEST_CLASSES", 11)
    few = pipeline.clean(planted, **quiet).record
    assert few["method"]["name"] == "fred" and few["skipped"] == [looking.TOO_FEW]


def test_without_images_the_class_that_the_weights_betray_is_repaired(planted, monkeypatch):
    chosen(monkeypatch, "SyntheticUnlearning", "synthetic-unlearning")
    record = pipeline.clean(planted, witnesses=[Blind(named=6)]).record
    assert record["method"]["name"] == "synthetic-unlearning"
    assert record["method"]["configuration"]["target_class"] == 6
    assert record["method"]["reason"].endswith("synthetic-unlearning needs none.")
    assert record["scan"]["verdict"] == "suspicious" and record["rescan"] is None
    assert record["judged_on"] == "no images" and record["accepted"]
    with pytest.raises(InputError, match="needs clean images"):
        pipeline.clean(planted, witnesses=["tac"])


def test_without_images_and_without_a_suspect_a_model_is_left_untouched(planted, monkeypatch):
    chosen(monkeypatch, "DHBE", "dhbe")
    record = plain(pipeline.clean(planted, witnesses=[Blind()]).record)
    assert record["untouched"] and record["accepted"]
    assert record["outcome"].startswith("Left untouched: the scan found nothing")
    careful = pipeline.clean(planted, witnesses=[Blind()], precaution=True).record
    assert careful["method"]["name"] == "dhbe" and not careful["untouched"]
