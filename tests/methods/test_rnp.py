import json

import pytest
import torch
from msgspec.structs import replace

from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.images import ImageSet
from bezoar.methods import RNP, rnp, rnp_exposure
from bezoar.methods.neural_cleanse_schedule import Inversion
from bezoar.methods.rnp_pruning import Pruning
from bezoar.methods.rnp_recovering import Recovering
from bezoar.methods.rnp_tuning import Tuning
from bezoar.methods.rnp_unlearning import Unlearning
from bezoar.records import to_json
from bezoar.training import Recipe

QUICK = RNP(
    unlearning=Unlearning(learning_rate=0.01, batch_size=64, max_epochs=60),
    recovering=Recovering(batch_size=64, epochs=6),
    inversion=Inversion(epochs=10),
    tuning=Tuning(recipe=Recipe(epochs=1, batch_size=32, learning_rate=0.01)),
    repeats=1,
)
BARE = replace(QUICK, inversion=None, tuning=None)


@pytest.fixture(scope="module")
def full(digits):
    return QUICK.remove(digits.planted, digits.clean, seed=0)


@pytest.fixture(scope="module")
def bare(digits):
    """As in the paper: neither trigger nor tuning."""
    return BARE.remove(digits.planted, digits.clean, seed=0)


def state(classifier):
    return {name: value.clone() for name, value in classifier.network.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# -- settings --------------------------------------------------------------------------------------


def test_the_published_settings_are_those_of_the_official_code():
    published = RNP.published()
    first, second, third = published.unlearning, published.recovering, published.pruning
    assert (first.learning_rate, first.momentum, first.weight_decay) == (0.01, 0.9, 5e-4)
    assert (first.max_epochs, first.drops, first.stop) == (21, (10, 20), 0.2)
    assert (first.check_every, first.adapt, first.clip_norm) == (0, False, 0.0)
    assert second.learning_rate == pytest.approx(0.2 * 0.2)  # rate times loss factor
    assert (second.momentum, second.epochs, second.mask_bias) == (0.9, 20, False)
    for step in (first, second):
        assert (step.batch_size, step.crop_padding, step.flip) == (128, 4, True)
    assert (third.grid, third.prune_bias, published.sites) == (0.05, False, "norm")
    assert published.inversion is None and published.tuning is None
    # The official code chooses no threshold; the rule and its images are ours.
    assert (third.max_drop, third.max_share, published.held_out) == (0.05, 0.1, 0.2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"held_out": 0.0}, "held_out is 0.0; expected a share between 0 and 1"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"level": 0.6}, r"level is 0.6; expected one of \(0.75, 0.5, 0.25\)"),
        ({"repeats": 0}, "repeats is 0; expected at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        RNP(**wrong)


# -- what is pruned --------------------------------------------------------------------------------


def test_units_of_the_original_are_pruned_and_all_other_weights_stay_to_the_bit(digits, bare):
    before, after = state(digits.planted), state(bare.classifier)
    names = bare.record["pruning"]["pruned"]
    assert 0 < len(names) == bare.record["pruning"]["count"] <= 16
    for name in names:
        site, _, index = name.removesuffix("]").partition("[")
        assert float(before[f"{site}.weight"][int(index)]) != 0
        before[f"{site}.weight"][int(index)] = 0.0
    assert same(before, after), "weights of the unlearned network, or a shift, got in"


def test_the_pruning_costs_no_more_than_it_may(digits, bare):
    assert bare.record["pruning"]["held_out_after"] >= bare.record["pruning"]["held_out_before"] - (
        BARE.pruning.max_drop
    )
    assert evaluate(bare.classifier, digits.test, digits.attack).acc > 0.9


def test_the_bias_goes_with_the_scale_when_it_is_asked_for(digits):
    method = replace(BARE, pruning=Pruning(prune_bias=True, threshold=0.0))
    repair = method.remove(digits.planted, digits.clean, seed=0)
    after = state(repair.classifier)
    for name in repair.record["pruning"]["pruned"]:
        site, _, index = name.removesuffix("]").partition("[")
        assert after[f"{site}.weight"][int(index)] == after[f"{site}.bias"][int(index)] == 0


def test_where_nothing_is_pruned_the_network_is_the_same_and_that_is_said(digits):
    method = replace(BARE, pruning=Pruning(max_share=0.0), tuning=QUICK.tuning)
    repair = method.remove(digits.planted, digits.clean, seed=0)
    assert same(state(digits.planted), state(repair.classifier))
    assert repair.classifier.network is not digits.planted.network
    assert repair.record["tuning"] is None and repair.record["pruning"]["count"] == 0
    (said,) = [flag for flag in repair.record["flags"] if flag.startswith("Nothing was pruned")]
    assert said.endswith("no unit was a candidate."), "none was tried, so none costs too much"


def test_pruned_units_are_still_pruned_after_the_tuning(full):
    after = state(full.classifier)
    assert full.record["tuning"]["taken"] in ("plain", "against the trigger", "none")
    assert full.record["pruning"]["pruned"]
    for name in full.record["pruning"]["pruned"]:
        site, _, index = name.removesuffix("]").partition("[")
        assert after[f"{site}.weight"][int(index)] == 0


def test_a_seed_repeats_the_repair(digits, full):
    again = QUICK.remove(digits.planted, digits.clean, seed=0)
    assert same(state(full.classifier), state(again.classifier))
    plain, repeated = (to_json(repair.record) | {"seconds": None} for repair in (full, again))
    assert plain == repeated


def test_held_out_images_have_no_part_before_the_choice(digits, monkeypatch):
    seen = {}

    def noted(name, position):
        function = getattr(rnp, name)

        def call(*arguments, **options):
            seen[name] = {image.numpy().tobytes() for image in arguments[position].images}
            return function(*arguments, **options)

        monkeypatch.setattr(rnp, name, call)

    for name, position in (("unlearn", 1), ("recover", 2), ("choose", 3), ("recover_trigger", 2)):
        noted(name, position)
    QUICK.remove(digits.planted, digits.clean, seed=0)
    assert seen["unlearn"] == seen["recover"] == seen["recover_trigger"]
    assert not seen["unlearn"] & seen["choose"]
    assert len(seen["choose"]) == round(0.3 * len(digits.clean))


# -- the record ------------------------------------------------------------------------------------


def test_the_record_tells_everything_in_plain_json(full, digits):
    record = json.loads(json.dumps(to_json(full.record), allow_nan=False))
    assert record["units"] == 160 and [site[2] for site in record["unit_sites"]] == [32, 64, 64]
    assert record["target_class"] == record["unlearning"]["fallback"] == 4
    assert record["trigger"]["class"] == 4 and record["masks"]["zero"] > 0
    assert sum(record["masks"]["zero per site"].values()) == record["masks"]["zero"]
    assert record["masks"]["zero"] <= record["masks"]["at most 0.05"] < record["masks"]["below 1"]
    curves = {curve["name"]: curve for curve in record["curves"]}
    assert len(curves) == 5
    assert all(len(curve["x"]) == len(curve["y"]) > 1 for curve in curves.values())
    assert curves["accuracy while unlearning"]["y"][-1] <= 0.2
    assert curves["recovered trigger while pruning"]["y"][0] == record["trigger"]["carried"]
    seconds = record["seconds"]
    steps = {"unlearning", "recovering", "inverting", "pruning", "tuning"}
    assert set(seconds) == steps | {"total"}
    assert sum(seconds[step] for step in steps) <= seconds["total"]


def test_without_a_trigger_there_is_no_curve_of_one(bare):
    assert bare.record["trigger"] is None and bare.record["tuning"] is None
    assert len(bare.record["curves"]) == 4 and "tuning" not in bare.record["seconds"]


def test_a_stop_that_was_not_reached_is_flagged(digits):
    slow = Unlearning(learning_rate=1e-6, batch_size=128, max_epochs=1)
    repair = replace(BARE, unlearning=slow).remove(digits.planted, digits.clean, seed=0)
    assert repair.record["unlearning"]["reached"] is False
    assert repair.record["flags"][0] == (
        "Unlearning did not reach an accuracy of 0.200; the masks may show nothing."
    )


def test_a_repair_that_went_well_has_no_flag_and_an_incomplete_one_has(digits, full, bare):
    for record in (full.record, bare.record):
        incomplete = record["pruning"]["insufficient"]
        said = [flag for flag in record["flags"] if flag.startswith("Not all units")]
        assert record["unlearning"]["reached"] and len(said) == len(record["flags"]) == incomplete
    assert not (full.record["pruning"]["trigger_died"] and full.record["pruning"]["insufficient"])


# -- the target class ------------------------------------------------------------------------------


def test_another_target_class_can_be_asked_for(digits):
    method = replace(QUICK, target_class=2, tuning=None, inversion=Inversion(epochs=2))
    repair = method.remove(digits.planted, digits.clean, seed=0)
    assert repair.record["target_class"] == repair.record["trigger"]["class"] == 2
    assert repair.record["unlearning"]["fallback"] == 4


@pytest.mark.parametrize(
    ("job", "changes", "message"),
    [
        ("remove", {"target_class": 10}, "target_class is 10 and the network has 10 classes"),
        ("inspect", {"target_class": 10}, "target_class is 10 and the network has 10 classes"),
        ("inspect", {"target_class": -1}, "target_class is -1"),
        ("remove", {"sites": "heads"}, "the network has no units of the kinds heads"),
    ],
)
def test_what_cannot_work_is_refused_before_the_work(job, changes, message, digits, monkeypatch):
    def late(*_arguments, **_options):
        raise AssertionError("it began to unlearn")

    monkeypatch.setattr(rnp, "unlearn", late)
    monkeypatch.setattr(rnp_exposure, "unlearn", late)
    with pytest.raises(InputError, match=message):
        getattr(replace(QUICK, **changes), job)(digits.planted, digits.clean)


def test_too_few_images_are_refused(digits):
    for count in (1, 2):
        with pytest.raises(InputError, match="RNP needs images to unlearn and others to choose"):
            QUICK.remove(digits.planted, digits.clean.subset(range(count)))
    with pytest.raises(InputError, match="RNP needs labelled images"):
        QUICK.inspect(digits.planted, ImageSet(digits.clean.images))


# -- the inspection --------------------------------------------------------------------------------


def test_an_inspection_names_the_target_class_and_shows_its_trigger(digits, monkeypatch):
    monkeypatch.setattr(rnp_exposure, "null_excesses", lambda _: (0.0, 0.01, 0.02, 0.03))
    evidence = QUICK.inspect(digits.planted, digits.clean, seed=0)
    shares = evidence.record["exposure"]["shares"]
    assert evidence.values == pytest.approx([1 - share for share in shares])
    assert min(range(10), key=evidence.values.__getitem__) == 4
    assert evidence.p_values[4] == min(evidence.p_values) == pytest.approx(1 / 5)
    assert evidence.scores[4] == min(evidence.scores) < 0
    assert evidence.recovered.classes == (4,)
    assert evidence.carried[4] == evidence.record["trigger"]["carried"] > 0.5
    assert sum(evidence.carried) == evidence.carried[4]
    json.dumps(to_json(evidence.record), allow_nan=False)


def test_an_inspection_without_inversion_recovers_nothing(digits):
    evidence = BARE.inspect(digits.planted, digits.clean, seed=0)
    assert evidence.recovered is None and evidence.carried is None
    assert evidence.record["trigger"] is None and len(evidence.values) == 10


def test_the_unlearned_network_still_obeys_the_attacker(digits):
    run = rnp.unlearn(digits.planted, digits.clean, QUICK.unlearning, seed=0)
    assert run.reached and evaluate(run.classifier, digits.test, digits.attack).asr > 0.7
