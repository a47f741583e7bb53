"""What the record of a scan says, from evidence made by hand."""

import functools
import json
import math
from dataclasses import replace

import pytest
import torch

from bezoar.methods import Evidence
from bezoar.methods.generated_trigger import GeneratedTrigger
from bezoar.methods.neural_cleanse_triggers import Triggers
from bezoar.methods.votes import Votes, reading
from bezoar.power import combined_power_sentence
from bezoar.records import to_json
from bezoar.scan_record import scan_record
from bezoar.scanning import FEW_CLASSES, LARGE_IMAGES, WITHOUT_IMAGES, WITNESSES
from bezoar.statistics import mad_outliers, small_outliers
from bezoar.verdict import Levels, judge
from bezoar.wording import FALLBACK, GENERATED, PATCH, Words

NAMES = ("Ant", "bee", "cow", "dog", "elk", "fly", "gnu", "hen")
USUAL = (4.9, 5.4, 5.0, 5.2, 4.8, 5.1, 5.3)


def logs(values):
    return [math.log(value) for value in values]


def shifts(values=(2.0, *USUAL), carried=0.9):
    """As TAC tells it."""
    outliers = small_outliers(logs(values))
    return Evidence(
        method="tac",
        statistic="Length of the shift",
        values=tuple(values),
        scores=outliers.scores,
        p_values=outliers.p_values,
        outliers="grubbs",
        null="Grubbs",
        carried=(carried,) * len(values),
        perturbations=torch.zeros(len(values), 3),
        record={"norms": list(values), "seconds": {"all": 0.5}},
    )


def patches(values=(0.5, *USUAL), carried=0.9, test=mad_outliers):
    """As Neural Cleanse tells it."""
    outliers = test(logs(values))
    count = len(values)
    ones = (1,) * count
    return Evidence(
        method="neural-cleanse",
        statistic="L1 norm of the mask",
        values=tuple(values),
        scores=outliers.scores,
        p_values=outliers.p_values,
        outliers="mad" if test is mad_outliers else None,
        null="MADs",
        carried=(carried,) * count,
        recovered=Triggers(
            classes=tuple(range(count)),
            masks=torch.full((count, 1, 2, 2), 0.25),
            patterns=torch.ones(count, 1, 2, 2),
            norms=torch.tensor(values),
            success=torch.ones(count),
            counted=ones,
            penalties=(1.0,) * count,
            epochs=ones,
            passes=1,
        ),
        record={"norms": list(values), "anomaly_index": [1.0] * count},
    )


def generated(answers, values=(0.5, *USUAL)):
    """As BTI-DBF tells it, with a table of votes."""
    outliers = small_outliers(logs(values))
    votes = Votes(answers)
    return Evidence(
        method="bti-dbf",
        statistic="Pull",
        values=tuple(values),
        scores=outliers.scores,
        p_values=outliers.p_values,
        null="Grubbs",
        carried=(0.9,) * len(values),
        recovered=GeneratedTrigger(tuple(range(len(values))), lambda images: images, 0.1),
        record={"votes": votes.as_record(), "reading": reading(votes).as_record(NAMES)},
        words=GENERATED,
    )


def plain(evidence, levels=None):
    """The record, as a reader of the JSON file gets it."""
    levels = levels or Levels()
    record = scan_record(judge(evidence, NAMES, levels), evidence, NAMES, 300, levels)
    return json.loads(json.dumps(to_json(record), allow_nan=False))


def swapped(values, other):
    """With the unusual value at class ``other`` instead of the first."""
    moved = list(values)
    moved[0], moved[other] = moved[other], moved[0]
    return moved


# -- words -----------------------------------------------------------------------------------------


def test_a_shift_is_told_as_a_change_and_a_patch_as_a_patch():
    assert plain([shifts()])["sentence"] == (
        "A small change of the last layer's input, the same for all images, carries most images "
        "into class Ant, and backdoor-free models hardly ever show one so small."
    )
    assert plain([patches()])["sentence"] == (
        "A small patch, the same for all images, carries most images into class Ant, and "
        "backdoor-free models hardly ever show one so small."
    )


def test_each_suspect_is_told_by_the_witness_that_decided_it():
    record = plain([shifts(), patches(swapped((0.5, *USUAL), 2))])
    change, patch = record["sentence"].split("so small. ")
    assert "change" in change and "class Ant," in change and "cow" not in change
    assert "patch" in patch and "class cow," in patch and "Ant" not in patch
    assert sorted(zip(record["suspects"], record["found_by"], strict=True)) == [
        (0, "tac"),
        (2, "neural-cleanse"),
    ]


def test_only_the_classes_that_are_proven_are_told_as_found():
    record = plain([shifts(), patches(swapped((0.5, *USUAL), 2), carried=0.1)])
    assert record["verdict"] == "backdoor found" and sorted(record["suspects"]) == [0, 2]
    found, suspected = record["sentence"].split("so small. ")
    assert "Ant" in found and "cow" not in found
    assert suspected == (
        "Class cow can be reached more easily than backdoor-free models show, without the proof "
        "that would make it a finding."
    )


def test_several_classes_are_told_each_by_itself():
    two = patches((0.2, 0.3, *USUAL[1:]))
    two = replace(two, p_values=(0.001, 0.002, *two.p_values[2:]))
    found = plain([two])
    assert found["suspects"] == [0, 1]
    assert found["sentence"] == (
        "For each of the classes Ant, bee: A small patch, the same for all images, carries most "
        "images into it, and backdoor-free models hardly ever show one so small."
    )
    unproven = plain([replace(two, carried=(0.1,) * 8)])["sentence"]
    assert unproven.startswith("Each of the classes Ant, bee can be reached more easily ")


def test_nothing_found_names_all_that_was_looked_for():
    quiet = (5.5, *USUAL)
    record = plain([shifts(quiet), patches(quiet)])
    assert record["verdict"] == "nothing found"
    assert record["sentence"].startswith(
        "None of the 8 classes is unusually easy to reach with these 300 clean images. This is no "
        "proof that the model has no backdoor: "
    )
    assert record["power"].endswith(
        "This is no proof that the model has no backdoor: the scan looks for one class that is too "
        "easy to reach in the last layer, or that a small patch at a fixed place reaches, and some "
        "attacks do not show there."
    )
    fallen = Evidence("rnp", "Share", quiet, (0.0,) * 8, (1.0,) * 8, "measured", words=FALLBACK)
    assert plain([fallen])["sentence"].startswith("None of the 8 classes draws unusually many ")
    assert plain([fallen, shifts(quiet)])["sentence"].startswith("None of the 8 classes stands out")


def test_no_witness_borrows_the_measured_power_of_another():
    alone = plain([shifts()])["power"]
    assert alone.startswith("Measured on small digit networks")
    assert plain([patches()])["power"] == (
        "False alarms and power of neural-cleanse were not measured."
    )
    both = plain([patches(), shifts()])["power"]
    assert both.startswith("The p-values of 2 witnesses are combined by their harmonic mean")
    assert "False alarms and power were measured of tac alone, not of " in both
    assert "Measured on small digit networks" in both


def test_the_power_of_a_scan_is_told_with_the_images_that_it_was_measured_with():
    said = functools.partial(combined_power_sentence, WITNESSES, many=False)
    for images, fewer in ((100, True), (500, False), (800, False)):
        told = said(images=images)
        assert "test, each with 500 clean images, " in told
        assert (f"This scan had {images}; fewer images find less." in told) is fewer
    assert "clean images, " not in combined_power_sentence(["mm-bd", "weights"], many=False)


@pytest.mark.parametrize(
    ("names", "many", "classes"),
    [
        (WITNESSES, False, ("10", "43")),
        ([name for name in WITNESSES if name not in FEW_CLASSES], True, ("200",)),
        ([name for name in WITNESSES if name not in LARGE_IMAGES], False, ("10",)),
        (WITHOUT_IMAGES, False, ("10", "43")),
    ],
)
def test_false_alarms_are_told_of_networks_that_the_test_was_not_made_from(names, many, classes):
    told = combined_power_sentence(names, many=many)
    before, fresh = told.split(", each judged by the others, ")[1].split(" more, from which ", 1)
    assert before.rsplit(" Of ", 1)[1].isdigit()
    counted = fresh.split(").")[0] + ")"
    assert [k for k in ("10", "12", "43", "200") if f"with {k} classes" in counted] == [*classes]


def test_no_setting_borrows_the_measured_power_of_another():
    other = replace(shifts(), record=shifts().record | {"configuration": {"quantile": 0.5}})
    assert plain([other])["power"] == (
        "False alarms and power of tac with these settings were not measured."
    )


def test_what_was_skipped():
    assert plain([shifts()])["skipped"] == [
        "No trigger in pixel space was recovered: the scan shifts the last layer's input."
    ]
    assert plain([shifts(), patches()])["skipped"] == []
    values = (2.0, *USUAL)
    bare = Evidence("rnp", "Share", values, (0.0,) * 8, (1.0,) * 8, "measured")
    assert plain([bare])["skipped"] == ["No trigger in pixel space was recovered."]


def all_to(k):
    return 20 * torch.nn.functional.one_hot(torch.full((8,), k), 8)


def test_a_mapping_is_told_as_one_and_not_as_one_class():
    mapping = 20 * torch.eye(8, dtype=torch.long).roll(1, 1)
    record = plain([generated(mapping), shifts()])
    assert record["verdict"] == "backdoor found"
    assert record["reasons"][-1].startswith(
        "bti-dbf: the recovered trigger has no single target (all-to-all): it sends most images of "
        "8 "
    )
    assert record["reasons"][-1].endswith("and 5 more.")
    quiet = plain([generated(mapping, (5.5, *USUAL))])
    assert quiet["verdict"] == "nothing found"
    assert "(all-to-all)" in quiet["reasons"][-1]
    assert quiet["reasons"][-1].endswith(
        "Networks without a backdoor can show the like, so this alone is not suspicious."
    )


def test_a_trigger_that_leads_to_another_class_than_the_suspect_is_told_with_that():
    assert plain([generated(all_to(0))])["reasons"][-1].endswith("are answered with Ant.")
    other = plain([generated(all_to(3))])["reasons"][-1]
    assert "answered with dog. Networks without a backdoor can" in other
    still = plain([generated(20 * torch.eye(8, dtype=torch.long))])["reasons"][-1]
    assert still == "bti-dbf: the recovered trigger leads to no class that stands out."


def test_a_generated_trigger_is_told_in_its_words():
    record = plain([generated(all_to(0))])
    assert record["sentence"] == (
        "One bounded change of the pixels carries most images into class Ant, and "
        "backdoor-free models hardly ever show one of such strength."
    )
    assert record["reasons"][0].startswith("bti-dbf, class Ant: pull is 0.5, ")
    assert " Recovered from four fifths of the images, that trigger" in record["reasons"][0]
    (item,) = record["evidence"]
    assert item["recovered"] == [{"class": 0, "rms_bound": 0.1}] and item["details"] == {}
    assert item["votes"]["classes"] == 8 and item["reading"]["kind"] == "one target"


def test_only_patches_of_all_classes_are_told_as_patches():
    patch = patches()
    assert patch.told == PATCH
    made = generated(all_to(0))
    bare = Evidence("x", "x", made.values, made.scores, made.p_values, "", recovered=made.recovered)
    assert bare.told == Words()


# -- figures ---------------------------------------------------------------------------------------


def test_each_witness_has_its_statistic_and_the_deciding_one_comes_first():
    record = plain([shifts((5.5, *USUAL)), patches()])
    statistic = record["statistic"]
    assert statistic["method"] == "neural-cleanse" and statistic["unit"] == "pixels"
    assert statistic == record["evidence"][1]["statistic"]
    first = record["evidence"][0]["statistic"]
    assert (first["method"], first["value"], first["unit"]) == ("tac", "shift", "")
    assert statistic["p_values"] == list(patches().p_values), "what the witness says alone"
    assert record["combined"]["factor"] >= 1
    assert min(record["p_values"]) > min(statistic["p_values"])


def test_columns_of_a_witness():
    shift, patch = plain([shifts(), patches()])["evidence"]
    assert set(shift["per_class"]) == {"norm", "held_out_flip"} and shift["seconds"] == 0.5
    assert set(patch["per_class"]) == {"norm", "held_out_flip", "anomaly_index"}
    assert "norms" not in patch["details"]


def test_sizes_of_triggers_are_in_the_record_but_not_their_pixels():
    shift, patch = plain([shifts(), patches()])["evidence"]
    assert "recovered" not in shift
    assert patch["recovered"] == [{"class": 0, "mask_l1": 1.0, "image_pixels": 4}]
    assert "pattern" not in json.dumps(patch)


@pytest.mark.parametrize("make", [shifts, patches])
@pytest.mark.parametrize("witnesses", [1, 2])
@pytest.mark.parametrize("level", ["suspicious", "found"])
def test_a_limit_is_where_the_p_value_passes_the_level(make, witnesses, level):
    company = [Evidence("other", "x", (5.5, *USUAL), (0.0,) * 8, (1.0,) * 8, "none")]
    evidence = [make(), *company[: witnesses - 1]]
    limit = plain(evidence)["statistic"]["null"][f"critical_{level}"]
    share = getattr(Levels(), level)
    for factor, passes in ((0.99, True), (1.01, False)):
        moved = make((factor * limit, *USUAL))
        judgement = judge([moved, *company[: witnesses - 1]], NAMES)
        assert (judgement.p_values[0] <= share) is passes


def test_a_null_that_is_no_known_test_has_a_median_and_no_limits():
    made = patches(test=lambda values: small_outliers([2 * v + v * v for v in values]))
    null = plain([made])["statistic"]["null"]
    assert set(null) == {"description", "median"}
    alike = replace(shifts(), p_values=(1.0,) * 8, outliers=None)  # any test can say that
    assert set(plain([alike])["statistic"]["null"]) == {"description", "median"}
    unscored = Evidence("x", "x", (1.0,) * 8, (math.nan,) * 8, (1.0,) * 8, "none")
    assert set(plain([unscored])["statistic"]["null"]) == {"description"}


def test_values_that_are_infinite_take_no_part():
    record = plain([patches((0.5, math.inf, *USUAL[:-1]))])
    assert record["statistic"]["values"][1] is None
    assert math.isfinite(record["statistic"]["null"]["critical_found"])


def test_words_fit_any_method_that_brings_none():
    values = (2.0, *USUAL)
    outliers = small_outliers(logs(values))
    made = Evidence("third", "Size", values, outliers.scores, outliers.p_values, "x", (0.9,) * 8)
    assert made.told == Words()
    sentence = plain([made])["sentence"]
    assert sentence.startswith("One perturbation, the same for all images, carries most images ")
