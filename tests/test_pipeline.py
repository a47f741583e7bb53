import json
from typing import ClassVar

import msgspec
import numpy as np
import pytest
import torch
from few_images import first_of_each

from bezoar import accuracy_loss, pipeline, scanning
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.given import HELD_OUT
from bezoar.images import ImageSet
from bezoar.methods import TAC, Evidence, FineTuning, Method, Repair
from bezoar.methods.method import Needs
from bezoar.precaution import LIMIT, SHARES
from bezoar.records import to_json
from bezoar.repair_record import changes
from bezoar.training import Recipe
from bezoar.verdict import Levels, Verdict

pytestmark = pytest.mark.xdist_group("pipeline")  # one process makes its fixtures

RUINOUS = FineTuning(recipe=Recipe(epochs=1, batch_size=32, learning_rate=5.0))


def without_times(record):
    """What must be the same again when the same is done again."""
    if isinstance(record, dict):
        return {k: without_times(v) for k, v in record.items() if k not in ("seconds", "created")}
    if isinstance(record, list):
        return [without_times(item) for item in record]
    return record


def plain(record):
    return json.loads(json.dumps(to_json(record), allow_nan=False))


def same_weights(first, second):
    ours, theirs = first.network.state_dict(), second.network.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def planted_repair(digits):
    return pipeline.clean(digits.planted, digits.clean, seed=2)


# -- scan ------------------------------------------------------------------------------------------


def test_a_planted_backdoor_is_found(digits):
    finding = pipeline.scan(digits.planted, digits.clean, seed=0)
    assert finding.verdict is Verdict.BACKDOOR_FOUND
    assert finding.suspects == (digits.attack.target,)
    assert finding.ranking[0] == digits.attack.target
    assert sorted(finding.ranking) == list(range(10))
    assert len(finding.p_values) == 10
    assert finding.p_values[digits.attack.target] == min(finding.p_values) <= 0.01
    assert "class 4" in finding.record["sentence"]


def test_nothing_is_found_in_its_clean_twin_and_that_is_called_no_proof(digits):
    finding = pipeline.scan(digits.twin, digits.clean, seed=0)
    assert finding.verdict is Verdict.NOTHING_FOUND
    assert finding.suspects == ()
    assert "no proof" in finding.record["sentence"]
    assert "Measured" in finding.record["power"] and "no proof" in finding.record["power"]


def test_the_record_is_plain_json_and_repeats_the_finding(digits):
    finding = pipeline.scan(digits.planted, digits.clean, seed=3)
    record = plain(finding.record)
    assert record["verdict"] == finding.verdict.value
    assert record["suspects"] == list(finding.suspects)
    assert record["ranking"] == list(finding.ranking)
    assert record["p_values"] == list(finding.p_values)
    assert record["seed"] == 3
    assert record["images"]["count"] == 300 and sum(record["images"]["per_class"]) == 300
    assert record["images"]["sha256"] == digits.clean.sha256()
    assert record["model"]["head"] == "fc.weight" and record["model"]["input"] == [1, 8, 8]
    null = record["statistic"]["null"]
    value = record["statistic"]["values"][digits.attack.target]
    assert value < null["critical_found"] < null["critical_suspicious"] < null["median"]


@pytest.mark.parametrize("level", ["suspicious", "found"])
def test_the_critical_values_in_the_record_are_where_the_verdict_turns(level, digits):
    record = pipeline.scan(digits.planted, digits.clean).record
    p = record["p_values"][digits.attack.target]
    for factor, is_outside in ((0.99, False), (1.01, True)):
        levels = msgspec.structs.replace(Levels(), **{level: p * factor})
        again = pipeline.scan(digits.planted, digits.clean, levels=levels).record
        critical = again["statistic"]["null"][f"critical_{level}"]
        assert (again["statistic"]["values"][digits.attack.target] < critical) == is_outside


def test_a_seed_repeats_the_scan_to_the_digit(digits):
    first, second = (pipeline.scan(digits.planted, digits.clean, seed=5) for _ in range(2))
    assert without_times(plain(first.record)) == without_times(plain(second.record))


def test_scanning_changes_nothing(digits):
    before = digits.planted.copy()
    pipeline.scan(digits.planted, digits.clean)
    assert same_weights(before, digits.planted)


def test_images_without_labels_are_enough_and_it_says_what_was_not_checked(digits):
    labelled = pipeline.scan(digits.planted, digits.clean)
    bare = pipeline.scan(digits.planted, ImageSet(digits.clean.images))
    assert bare.p_values == labelled.p_values and bare.verdict is labelled.verdict
    assert bare.record["images"]["per_class"] is None
    assert any("no labels" in notice for notice in bare.record["notices"])


def test_what_was_noticed_while_reading_is_in_the_record(digits):
    images = ImageSet(digits.clean.images, digits.clean.labels, notices=["Two files left out."])
    assert "Two files left out." in pipeline.scan(digits.twin, images).record["notices"]


def test_progress_is_told(digits):
    heard = []
    pipeline.scan(digits.twin, digits.clean, progress=lambda what, share: heard.append(share))
    assert heard and max(heard) == 1.0


# -- several witnesses -----------------------------------------------------------------------------


class Pointing(Method, frozen=True, kw_only=True):
    """Finds class ``points_at`` without looking, and repairs nothing."""

    name: ClassVar[str] = "pointing"
    title: ClassVar[str] = "Points at a class"
    inspects: ClassVar[bool] = True

    points_at: int = 6
    p_value: float = 1e-6
    target_class: int | None = None

    def inspect(self, classifier, clean, *, seed=0, progress=None):
        p_values = [1.0] * classifier.num_classes
        p_values[self.points_at] = self.p_value
        blank = (0.0,) * classifier.num_classes
        return Evidence(self.name, "Nothing", blank, blank, tuple(p_values), "none")

    def remove(self, classifier, clean, *, seed=0, progress=None):
        return Repair(classifier.copy(), {"target_class": self.target_class})


class OnlyPointing(Pointing, frozen=True, kw_only=True):
    """A method that finds and has no repair."""

    name: ClassVar[str] = "only pointing"
    remove = Method.remove


def test_the_witness_is_tac_unless_others_are_named(digits):
    default = pipeline.scan(digits.planted, digits.clean)
    for witnesses in (["tac"], (TAC(),), "tac"):
        named = pipeline.scan(digits.planted, digits.clean, witnesses=witnesses)
        assert without_times(plain(named.record)) == without_times(plain(default.record))


def test_several_witnesses_are_judged_together(digits):
    finding = pipeline.scan(digits.planted, digits.clean, witnesses=["tac", Pointing()])
    assert [evidence.method for evidence in finding.evidence] == ["tac", "pointing"]
    target = digits.attack.target
    assert finding.suspects == (6, target) and finding.verdict is Verdict.BACKDOOR_FOUND
    assert finding.deciding[6] == 1 and finding.deciding[target] == 0
    alone = pipeline.scan(digits.planted, digits.clean)
    assert finding.p_values[target] == pytest.approx(2 * alone.p_values[target])
    record = plain(finding.record)
    assert record["found_by"] == ["pointing", "tac"]
    assert record["statistic"]["method"] == "pointing", "of the most suspicious class"


def test_neural_cleanse_finds_the_patch_and_its_figures_are_in_the_record(digits):
    finding = pipeline.scan(digits.planted, digits.clean, witnesses=["neural-cleanse"])
    assert finding.suspects == (digits.attack.target,)
    record = plain(finding.record)
    assert record["verdict"] == "backdoor found" and "A small patch" in record["sentence"]
    null = record["statistic"]["null"]
    value = record["statistic"]["values"][digits.attack.target]
    assert value < null["critical_found"] < null["critical_suspicious"] < null["median"]
    (size,) = record["evidence"][0]["recovered"]
    assert size["mask_l1"] == pytest.approx(value, rel=1e-3) and size["image_pixels"] == 64
    assert record["skipped"] == []


BAD_WITNESSES = {
    "unknown": (["tca"], "no method 'tca'; perhaps you meant 'tac'"),
    "one that does not look": (["tac", "ft"], "'ft' removes .* methods that do: .*tac"),
    "the same twice": (["tac", TAC()], "'tac' is given twice"),
    "none": ([], "no method is given that looks; there are .*tac"),
}


@pytest.mark.parametrize("case", BAD_WITNESSES)
@pytest.mark.parametrize("job", [pipeline.scan, pipeline.clean])
def test_witnesses_that_cannot_look_are_refused_before_any_work(case, job, digits, monkeypatch):
    def no_work(*_arguments, **_options):
        raise AssertionError("this comes after the checks")

    monkeypatch.setattr(scanning, "check_input", no_work)
    monkeypatch.setattr(TAC, "inspect", no_work)
    witnesses, message = BAD_WITNESSES[case]
    with pytest.raises(InputError, match=message):
        job(digits.planted, digits.clean, witnesses=witnesses)


def test_two_settings_of_one_method_are_two_witnesses():
    found = pipeline.find_witnesses(["tac", TAC(quantile=None)])
    assert found == (TAC(), TAC(quantile=None))


# -- input that cannot be used ---------------------------------------------------------------------


def broken(digits):
    classifier = digits.twin.copy()
    with torch.no_grad():
        classifier.network.fc.weight[0, 0] = float("inf")
    return classifier, digits.clean


BAD = {
    "no image": (lambda d: (d.twin, d.clean.subset([])), "there are no clean images"),
    "fewer images than classes": (
        lambda d: (d.twin, d.clean.subset(list(range(9)))),
        "9 clean images and 10 classes",
    ),
    "fewer, without labels": (
        lambda d: (d.twin, ImageSet(d.clean.images[:9])),
        "9 clean images and 10 classes",
    ),
    "a class without an image": (
        lambda d: (d.twin, d.clean.subset(torch.nonzero(d.clean.labels != 7).flatten())),
        "no clean image shows class 7; give at least one",
    ),
    "too many classes": (
        lambda d: (d.twin, ImageSet(d.clean.images, d.clean.labels + 3)),
        "the images have 13 classes and the network has 10",
    ),
    "labels of another order": (
        lambda d: (d.twin, ImageSet(d.clean.images, (d.clean.labels + 1) % 10)),
        r"label 0 are answered with class 9, counted from 0\); give the classes the order",
    ),
    "labels of no order": (
        lambda d: (d.twin, ImageSet(d.clean.images, torch.arange(len(d.clean)) % 10)),
        "no better than chance; check the order of the classes",
    ),
    "infinite weights": (broken, "fc.weight.* not finite numbers"),
    "another number of channels": (
        lambda d: (d.twin, ImageSet(d.clean.images.repeat(1, 3, 1, 1), d.clean.labels)),
        "cannot take images of 3x8x8",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("job", [pipeline.scan, pipeline.clean])
def test_input_that_cannot_be_used_is_refused(case, job, digits, monkeypatch):
    def no_work(*_arguments, **_options):
        raise AssertionError("this comes after the checks")

    for method in (TAC, FineTuning):
        monkeypatch.setattr(method, "remove", no_work)
        monkeypatch.setattr(method, "inspect", no_work)
    make, message = BAD[case]
    with pytest.raises(InputError, match=message):
        job(*make(digits))


def test_many_missing_classes_are_counted_and_not_all_named(digits):
    few = digits.clean.subset(torch.nonzero(digits.clean.labels < 3).flatten())
    with pytest.raises(InputError, match="no clean image shows class 3, 4, 5, 6, 7 and 2 more"):
        pipeline.scan(digits.twin, few)


def test_a_low_accuracy_is_a_notice(digits):
    labels = digits.clean.labels.clone()
    wrong = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:200]
    labels[wrong] = (labels[wrong] + 1 + torch.arange(200) % 9) % 10
    finding = pipeline.scan(digits.twin, ImageSet(digits.clean.images, labels))
    assert any("answers only 3" in notice for notice in finding.record["notices"])
    assert not pipeline.scan(digits.twin, digits.clean).record["notices"]


# -- clean -----------------------------------------------------------------------------------------


def test_without_a_method_a_suspected_class_is_repaired(digits, planted_repair):
    record = planted_repair.record
    assert record["accepted"] and not record["untouched"]
    kept = record["trials"][record["kept"]]
    assert record["method"]["name"] == kept["steps"][-1]
    assert "tried" in record["method"]["reason"]
    usable = [t for t in record["trials"] if t["accuracy_drop"] <= record["max_accuracy_drop"]]
    assert kept["survival"]["removed"] or kept["score"] == min(t["score"] for t in usable)
    scores = evaluate(planted_repair.classifier, digits.test, digits.attack)
    assert scores.asr <= 0.2 and scores.acc >= 0.93
    assert record["aftercare"]["risk"] in record["outcome"]


def test_the_kept_repair_loses_in_the_outcome_what_it_loses_in_the_table(digits, monkeypatch):
    def mirrored(recipe, classifier, clean, *, seed):
        return msgspec.structs.replace(recipe, flip=True)

    monkeypatch.setattr(accuracy_loss, "with_tolerated_augmentation", mirrored)
    repair = pipeline.clean(digits.planted, digits.clean, seed=3)
    loss = repair.record["loss"]
    assert loss == repair.record["trials"][repair.record["kept"]]["loss"]
    _, held_out = digits.clean.split(1 - HELD_OUT, seed=3)
    told = [
        accuracy_loss.accuracy_loss(digits.planted, repair.classifier, held_out, seed=seed)
        for seed in (3, 0)
    ]
    assert loss == told[0].as_record() != told[1].as_record(), "the seed of the views counts"


def test_precaution_repairs_a_model_in_which_nothing_was_found(digits):
    repair = pipeline.clean(digits.twin, digits.clean, precaution=True)
    record = plain(repair.record)
    assert not record["untouched"] and record["max_accuracy_drop"] == LIMIT
    assert record["accepted"] == (record["accuracy_drop"] <= LIMIT)
    (trial,) = record["trials"]
    assert trial["share"] in SHARES and record["kept"] == 0
    assert trial["accuracy_drop"] == pytest.approx(record["accuracy_drop"])
    assert record["method"]["reason"].startswith("Nothing was found; it is repaired as a precaut")
    assert record["method"]["reason"].endswith(
        f"for the most unusual class: joint-unlearning, {trial['share']} of the way."
    )
    assert record["aftercare"]["probe"] is None
    assert record["outcome"].endswith(record["aftercare"]["risk"])
    assert "nothing, so there is no sign" in record["aftercare"]["risk"]
    assert not same_weights(repair.classifier, digits.twin)
    with pytest.raises(InputError, match="precaution is for a choice of methods"):
        pipeline.clean(digits.twin, digits.clean, precaution=True, method="ft")


def test_images_without_labels_are_given_the_model_s_own_answers(digits):
    repair = pipeline.clean(digits.planted, ImageSet(digits.clean.images))
    record = plain(repair.record)
    assert record["judged_on"] == "unlabelled images" and record["accepted"]
    scores = evaluate(repair.classifier, digits.test, digits.attack)
    assert scores.asr <= 0.2 and scores.acc >= 0.93
    assert "accuracy could not be measured" in record["aftercare"]["risk"]


def test_without_a_method_a_model_with_nothing_found_comes_back_untouched(digits):
    repair = pipeline.clean(digits.twin, digits.clean)
    assert repair.record["untouched"] and repair.record["accepted"]
    assert repair.classifier.network is not digits.twin.network
    assert same_weights(repair.classifier, digits.twin)
    assert repair.record["heading"] == "Left untouched"
    assert repair.record["aftercare"]["signs"] == [] and repair.record["aftercare"]["probe"] is None
    assert repair.record["outcome"].startswith("Left untouched: the scan found nothing")
    assert "no proof" in repair.record["outcome"]
    plain(repair.record)


@pytest.mark.parametrize("method", ["ft", FineTuning()])
def test_a_method_that_was_asked_for_runs_whatever_the_scan_says(method, digits):
    repair = pipeline.clean(digits.twin, digits.clean, method=method)
    assert not repair.record["untouched"]
    assert repair.record["method"]["name"] == "ft"
    assert repair.record["method"]["reason"] == "It was asked for."
    assert not same_weights(repair.classifier, digits.twin)


def test_the_record_of_a_repair_is_plain_json_with_everything_measured(planted_repair):
    record = plain(planted_repair.record)
    before, after = record["before"]["accuracy"], record["after"]["accuracy"]
    assert before["low"] <= before["value"] <= before["high"]
    assert record["loss"]["counted"] == pytest.approx(before["value"] - after["value"])
    assert record["accuracy_drop"] == record["loss"]["value"]
    assert record["fitted_on"]["count"] + before["count"] == record["fitted_on"]["of"] == 300
    assert 0.9 < record["agreement"]["value"] <= 1
    assert record["changes"] and record["curves"]
    assert record["scan"]["verdict"] == "backdoor found"
    assert f"on {before['count']} held-out clean images" in record["outcome"]


def test_the_caller_s_model_stays_as_it_was(digits):
    before = digits.planted.copy()
    digits.planted.network.train()
    try:
        pipeline.clean(digits.planted, digits.clean, method=FineTuning(recipe=Recipe(epochs=1)))
        assert all(module.training for module in digits.planted.network.modules())
    finally:
        digits.planted.network.eval()
    assert same_weights(before, digits.planted)


def test_a_seed_repeats_the_repair_to_the_bit(digits):
    method = TAC(recipe=Recipe(epochs=2))
    first, second, other = (
        pipeline.clean(digits.planted, digits.clean, method=method, seed=seed) for seed in (4, 4, 5)
    )
    assert same_weights(first.classifier, second.classifier)
    assert without_times(plain(first.record)) == without_times(plain(second.record))
    assert not same_weights(first.classifier, other.classifier)


class Witness(Method, frozen=True, kw_only=True):
    """Keeps what it is given and repairs nothing."""

    name: ClassVar[str] = "witness"
    title: ClassVar[str] = "Keeps what it is given"
    needs: ClassVar[Needs] = "labelled images"
    seen: ClassVar[list] = []

    def remove(self, classifier, clean, *, seed=0, progress=None):
        self.seen.append(clean)
        return Repair(classifier.copy(), {})


def test_a_fifth_of_every_class_judges_the_repair_and_takes_no_part_in_it(digits):
    Witness.seen.clear()
    repair = pipeline.clean(digits.twin, digits.clean, method=Witness(), seed=1)
    (given,) = Witness.seen
    whole, part = digits.clean.class_counts(10), given.class_counts(10)
    assert all(abs(float(p) / float(w) - 0.8) < 0.03 for w, p in zip(whole, part, strict=True))
    assert repair.record["fitted_on"]["count"] == len(given)
    held_out = repair.record["before"]["accuracy"]["count"]
    assert held_out == len(digits.clean) - len(given)

    def rows(images):
        return {image.numpy().tobytes() for image in images.images}

    assert len(rows(digits.clean) - rows(given)) == held_out, "no held-out image was given"


def test_the_seed_draws_which_images_judge(digits):
    Witness.seen.clear()
    for seed in (1, 1, 2):
        pipeline.clean(digits.twin, digits.clean, method=Witness(), seed=seed)
    first, second, other = (images.sha256() for images in Witness.seen)
    assert first == second != other


def test_a_repair_that_changes_nothing_says_so(digits):
    record = pipeline.clean(digits.planted, digits.clean, method=Witness()).record
    assert record["changes"] == []
    assert record["accuracy_drop"] == pytest.approx(0, abs=1e-6)
    assert record["agreement"]["value"] == 1
    assert record["heading"] == "Nothing changed"
    assert "does not bring it back" not in record["aftercare"]["probe"]["sentence"]
    assert "recovered triggers still carry" in record["aftercare"]["probe"]["sentence"]
    assert record["outcome"].startswith("Nothing changed: witness left the network as it was. ")
    assert record["rescan"] == record["scan"], "one verdict for one network"
    assert "The scan's verdict stands: backdoor found." in record["outcome"]
    assert "Residual risk" in record["outcome"]


def test_a_repair_that_leaves_the_backdoor_is_headed_so(digits, planted_repair):
    idle = FineTuning(recipe=Recipe(epochs=1, learning_rate=1e-6))
    record = pipeline.clean(digits.planted, digits.clean, method=idle).record
    assert record["accepted"], "it costs no accuracy"
    assert record["heading"] == "Repaired, signs of a backdoor left"
    assert record["outcome"].startswith(f"{record['heading']}: accuracy ")
    assert any("trigger still carries" in sign for sign in record["aftercare"]["signs"])
    assert all(sign in record["aftercare"]["risk"] for sign in record["aftercare"]["signs"])
    # Whether two repairs in few steps leave signs depends on the processor's arithmetic.
    repair = planted_repair.record
    left = ", signs of a backdoor left" if repair["aftercare"]["signs"] else ""
    assert repair["outcome"].startswith(f"Repaired{left}: accuracy ")


def test_where_nothing_was_found_no_sign_is_left(digits):
    idle = FineTuning(recipe=Recipe(epochs=1, learning_rate=1e-6))
    record = pipeline.clean(digits.twin, digits.clean, method=idle).record
    assert record["outcome"].startswith("Repaired: accuracy ")
    assert record["aftercare"]["signs"] == []


def test_the_changes_are_relative_and_largest_first(digits):
    other = digits.planted.copy()
    with torch.no_grad():
        other.network.fc.weight.mul_(1.5)
        other.network.fc.bias.mul_(1.25)
    rows = changes(digits.planted, other)
    assert [row["tensor"] for row in rows] == ["fc.weight", "fc.bias"]
    assert [row["relative_change"] for row in rows] == pytest.approx([0.5, 0.25], rel=1e-5)
    assert rows[0]["shape"] == [10, 64]
    assert changes(digits.planted, digits.planted) == []


def test_a_repair_that_costs_too_much_is_not_accepted(digits):
    repair = pipeline.clean(digits.twin, digits.clean, method=RUINOUS, max_accuracy_drop=0.05)
    assert not repair.record["accepted"]
    assert repair.record["accuracy_drop"] > 0.05
    assert repair.record["outcome"].startswith("Not accepted: accuracy ")
    assert "beyond the limit of 5 points" in repair.record["outcome"]
    tolerant = pipeline.clean(digits.twin, digits.clean, method=RUINOUS, max_accuracy_drop=1.0)
    assert tolerant.record["accepted"]
    plain(repair.record)


class Refuses(Witness, frozen=True, kw_only=True):
    """Repairs nothing, and says so."""

    name: ClassVar[str] = "refuses"

    def remove(self, classifier, clean, *, seed=0, progress=None):
        return Repair(classifier.copy(), {"refused": "It did not work."})


def test_what_a_method_does_not_stand_by_is_not_told_as_an_unchanged_network(digits):
    record = pipeline.clean(digits.twin, digits.clean, method=Refuses()).record
    assert record["changes"] == [] and not record["accepted"]
    assert record["outcome"].startswith("Not accepted: It did not work. ")


class Ruin(Method, frozen=True, kw_only=True):
    """Answers class 0 to everything."""

    name: ClassVar[str] = "ruin"
    needs: ClassVar[Needs] = "nothing"

    def remove(self, classifier, clean, *, seed=0, progress=None):
        ruined = classifier.copy()
        with torch.no_grad():
            ruined.network.fc.weight.zero_()
            ruined.network.fc.bias.zero_()[0] = 1.0
        return Repair(ruined, {})


def test_a_network_that_the_repair_ruined_is_not_accepted_instead_of_called_bad_input(digits):
    repair = pipeline.clean(digits.planted, digits.clean, method=Ruin())
    assert not repair.record["accepted"]
    assert repair.record["rescan"] is None
    assert "could not be scanned again: the network answers" in repair.record["outcome"]
    plain(repair.record)


def test_a_loss_of_exactly_the_limit_is_within_it(digits):
    drop = pipeline.clean(digits.twin, digits.clean, method=Ruin()).record["accuracy_drop"]
    at = pipeline.clean(digits.twin, digits.clean, method=Ruin(), max_accuracy_drop=drop)
    below = pipeline.clean(digits.twin, digits.clean, method=Ruin(), max_accuracy_drop=drop - 1e-6)
    assert at.record["accepted"] and not below.record["accepted"]


def test_one_image_of_each_class_leaves_none_to_judge_a_repair(digits, monkeypatch):
    ten = first_of_each(digits.clean)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "look_before", lambda *_: pytest.fail("the scan began"))
        for method in (None, "ft"):
            with pytest.raises(InputError, match="none is left to judge the repair"):
                pipeline.clean(digits.planted, ten, method=method)
    twenty = first_of_each(digits.clean, 2)
    repair = pipeline.clean(digits.planted, twenty, method=Witness())
    assert repair.record["before"]["accuracy"]["count"] == 10


@pytest.mark.parametrize("limit", [-0.01, 1.01, np.nan])
def test_the_limit_is_a_share(limit, digits):
    with pytest.raises(InputError, match=r"max_accuracy_drop is .*; expected a share"):
        pipeline.clean(digits.planted, digits.clean, max_accuracy_drop=limit)


def test_an_unknown_method_and_missing_labels_are_refused(digits):
    with pytest.raises(InputError, match="no method 'tc'; perhaps you meant 'tac'"):
        pipeline.clean(digits.planted, digits.clean, method="tc")
    with pytest.raises(InputError, match="cleaning needs labelled images"):
        pipeline.clean(digits.planted, ImageSet(digits.clean.images), method="ft")
