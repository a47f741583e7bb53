"""Several repairs are tried and the best one is kept, judged without the true trigger."""

import copy
import dataclasses
import math
from typing import ClassVar

import pytest
import torch
from msgspec.structs import replace
from true_patch import Patch

from bezoar import aftercare, choosing, how_far, surviving, trying
from bezoar.accuracy_loss import accuracy_loss
from bezoar.aftercare import Probe, residual_risk, retuning_probe, signs_of_backdoor
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.methods import (
    RNP,
    SAU,
    TAC,
    BtiDbf,
    Evidence,
    FineTuning,
    JointUnlearning,
    Method,
    PlaneWaves,
    Repair,
    rnp_exposure,
)
from bezoar.methods.additive_patterns import AdditivePatterns
from bezoar.methods.neural_cleanse_triggers import predicted
from bezoar.methods.recovered import Trigger
from bezoar.surviving import Survival, Survivors
from bezoar.training import Recipe
from bezoar.trying import ENOUGH, STANDS_OUT, Unlearning, Weighed, plan_for, try_repairs

pytestmark = [
    pytest.mark.usefixtures("thorough_judges"),
    pytest.mark.xdist_group("trying"),  # one process recovers the triggers that tests share
]

SHORT = Recipe(epochs=1, learning_rate=1e-3)


def evidence(found):
    blank = (1.0,) * 10
    return Evidence("hand", "Nothing", blank, blank, blank, "none", recovered=found)


class Gives(Method, frozen=True, kw_only=True):
    """A repair that is a given classifier."""

    name: ClassVar[str] = "gives"

    gift: str = ""

    def remove(self, classifier, clean, *, seed=0, progress=None):
        if self.gift == "refuses":
            raise InputError("not this network")
        return Repair(GIFTS[self.gift], {"from": classifier})


class Ends(Gives, frozen=True, kw_only=True):
    name: ClassVar[str] = "ends"


GIFTS = {}


@pytest.fixture(scope="module")
def patched(digits, thorough_judges):
    """Survivors of the true patch."""
    known, held_out = digits.clean.split(0.8, seed=0)
    found = evidence(Patch(digits.attack))
    return Survivors(digits.planted, [found], [4], known, held_out, seed=0)


@pytest.fixture(scope="module")
def bare(digits, thorough_judges):
    """Survivors of a suspicion without a trigger."""
    known, held_out = digits.clean.split(0.8, seed=0)
    return Survivors(digits.planted, [evidence(None)], [4], known, held_out, seed=0)


@pytest.fixture
def bench(digits, patched, monkeypatch):
    known, held_out = digits.clean.split(0.8, seed=0)
    survivors = copy.copy(patched)
    monkeypatch.setattr(Survivors, "_fresh", lambda _self, _repaired: {4: 1.0})
    monkeypatch.setattr(Survivors, "_exposed", lambda _self, _repaired: {4: 1.0})
    monkeypatch.setattr(how_far, "SHARES", (1.0,))  # tests/test_how_far.py walks
    survivors.__dict__["judging"] = survivors.triggers
    ruined = digits.twin.copy()
    with torch.no_grad():
        ruined.network.fc.weight.mul_(-1)
    GIFTS.update(planted=digits.planted.copy(), twin=digits.twin.copy(), ruined=ruined)

    def run(*plan, limit=0.05):
        return try_repairs(
            digits.planted, known, held_out, survivors, plan, max_accuracy_drop=limit, seed=0
        )

    return run


def test_a_repair_that_leaves_the_backdoor_is_passed_over_and_the_search_ends_at_one_that_does_not(
    bench,
):
    best, trials = bench((Gives(gift="planted"),), (Gives(gift="twin"),), (Ends(gift="twin"),))
    assert best.repair.classifier is GIFTS["twin"] and len(trials) == 2
    first, second = (trial.survival for trial in trials)
    assert first.worst >= 0.95 and not first.removed
    assert second.worst <= 0.1 and second.removed


def test_a_dead_trigger_and_a_class_that_stands_out_end_the_search_where_nothing_is_to_be_gained(
    bench, monkeypatch
):
    monkeypatch.setattr(Survivors, "_fresh", lambda _self, _repaired: {4: 0.001})
    _, trials = bench((Gives(gift="twin"),), (Ends(gift="twin"),))
    assert not trials[0].survival.removed
    score = trials[0].weighed.score
    assert len(trials) == (1 if score <= ENOUGH else 2)
    monkeypatch.setattr(trying, "ENOUGH", score)
    assert len(bench((Gives(gift="twin"),), (Ends(gift="twin"),))[1]) == 1
    monkeypatch.setattr(trying, "ENOUGH", score - 1e-6)
    assert len(bench((Gives(gift="twin"),), (Ends(gift="twin"),))[1]) == 2


def test_a_balance_that_leaves_nothing_to_gain_ends_the_search_beyond_two_points_too(
    bench, monkeypatch
):
    monkeypatch.setattr(trying, "CHEAP", -1.0)  # every repair costs more than that
    monkeypatch.setattr(trying, "ENOUGH", 0.0)
    twice = (Gives(gift="twin"),), (Ends(gift="twin"),)
    _, trials = bench(*twice)
    assert len(trials) == 2
    monkeypatch.setattr(trying, "ENOUGH", trials[0].weighed.score)
    assert len(bench(*twice)[1]) == 1


def test_a_repair_that_only_covers_the_backdoor_up_does_not_end_the_search(bench, monkeypatch):
    """Fine-tuning uncovers it; what a trigger carries then counts for what it carries now."""

    def tuned(repaired, known, survivors, left, *, seed, progress):
        probed.append(repaired)
        return Probe(left.worst, 0.8 if repaired is GIFTS["twin"] else left.worst)

    probed = []
    monkeypatch.setattr(trying, "retuning_probe", tuned)
    GIFTS["other"] = GIFTS["twin"].copy()
    best, trials = bench((Gives(gift="twin"),), (Gives(gift="planted"),), (Ends(gift="other"),))
    covered, live, other = trials
    assert best is other and probed == [GIFTS["twin"], GIFTS["other"]]
    assert covered.survival.removed and not covered.weighed.removed and covered.weighed.returned
    assert covered.weighed.worst == 0.8 and covered.weighed.score == pytest.approx(
        0.4 + max(0.0, covered.weighed.drop)
    )
    assert not covered.weighed.sufficient and other.weighed.sufficient
    assert live.probe is None, "it could not be kept"
    rows = [trial.as_record() for trial in trials]
    assert [row["returned"] for row in rows] == [True, None, False]
    assert rows[0]["tuned"] == 0.8 and rows[1]["tuned"] is None
    assert choosing.best_of(trials, other).reason.endswith("no sign was seen.")
    assert choosing.best_of(trials[:1], covered).reason.endswith("has the best balance.")


def test_a_repair_that_an_audit_sees_through_does_not_end_the_search(bench, monkeypatch):
    """Unlearning the clean images brings out what it hides."""
    audited = []
    GIFTS["other"] = GIFTS["twin"].copy()
    monkeypatch.setattr(
        Survivors,
        "_exposed",
        lambda _self, c: audited.append(c) or {4: 0.02 if c is GIFTS["twin"] else 1.0},
    )
    monkeypatch.setattr(trying, "ENOUGH", 0.0)
    best, trials = bench((Gives(gift="twin"),), (Gives(gift="planted"),), (Ends(gift="other"),))
    hidden, live, other = trials
    assert best is other and audited == [GIFTS["twin"], GIFTS["other"]]
    assert hidden.survival.re_exposed and not hidden.survival.stands_out
    assert not hidden.weighed.removed and not hidden.weighed.sufficient
    assert hidden.weighed.score == pytest.approx(other.weighed.score + STANDS_OUT)
    assert not live.survival.exposed, "it could not be kept"
    assert hidden.as_record()["survival"]["exposed"] == {"4": 0.02}
    assert hidden.as_record()["survival"]["removed"] is False


def test_a_covered_backdoor_is_kept_before_one_that_is_more_alive(bench, monkeypatch):
    def tuned(_repaired, _known, _survivors, left, **_options):
        return Probe(left.worst, 0.8 if left.worst < 0.1 else left.worst)

    monkeypatch.setattr(trying, "retuning_probe", tuned)
    best, trials = bench((Gives(gift="planted"),), (Gives(gift="twin"),))
    assert best is trials[1] and best.weighed.returned
    assert trials[0].weighed.worst >= 0.95, "0.8 after a tuning is the lesser evil"


def test_a_balance_counts_only_within_the_limit(bench, monkeypatch):
    _, (trial, *_) = bench((Gives(gift="twin"),))
    loss = dataclasses.replace(trial.weighed.loss, value=0.03)
    dear, too_dear = (dataclasses.replace(trial.weighed, loss=loss, limit=t) for t in (0.05, 0.02))
    monkeypatch.setattr(trying, "ENOUGH", dear.score)
    assert dear.sufficient and not too_dear.sufficient
    assert dear.balance < 1 < too_dear.balance


def test_a_repair_that_costs_too_much_is_not_kept_although_it_removes_more(bench):
    best, trials = bench((Gives(gift="ruined"),), (Gives(gift="planted"),))
    assert best.repair.classifier is GIFTS["planted"] and len(trials) == 2
    assert trials[0].weighed.drop > 0.5


def test_each_trial_is_compared_with_the_original_which_is_measured_once(
    bench, digits, monkeypatch
):
    asked = []
    run = Classifier.logits
    monkeypatch.setattr(
        Classifier, "logits", lambda self, images: asked.append(self) or run(self, images)
    )
    _, trials = bench((Gives(gift="ruined"),), (Gives(gift="planted"),), (Gives(gift="twin"),))
    assert asked == [digits.planted, *(GIFTS[name] for name in ("ruined", "planted", "twin"))]
    _, held_out = digits.clean.split(0.8, seed=0)
    for trial in trials:
        assert trial.weighed.loss == accuracy_loss(
            digits.planted, trial.repair.classifier, held_out
        )


def test_a_repair_goes_as_far_as_the_judges_like(bench, digits, monkeypatch):
    monkeypatch.setattr(how_far, "SHARES", (0.5, 1.0))
    asked = []

    def between(original, repaired, share):
        asked.append((original, repaired, share))
        return GIFTS["twin"]

    monkeypatch.setattr(how_far, "between", between)
    best, (trial,) = bench((Gives(gift="planted"),), (Ends(gift="twin"),))
    assert asked == [(digits.planted, GIFTS["planted"], 0.5)]
    assert best is trial and trial.share == 0.5 and trial.survival.removed
    assert trial.repair.classifier is GIFTS["twin"] and "from" in trial.repair.record
    assert trial.name == "gives, 0.5 of the way" and trial.as_record()["share"] == 0.5


def test_the_next_step_starts_where_the_one_before_ended(bench, monkeypatch):
    monkeypatch.setattr(how_far, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(how_far, "between", lambda *_: GIFTS["planted"])
    _, trials = bench((Gives(gift="ruined"),), (Gives(gift="ruined"), Ends(gift="twin")))
    assert trials[0].share == 0.5 and trials[1].repair.record["from"] is GIFTS["planted"]


def test_what_cannot_win_is_not_looked_at_afresh_and_never_counts_as_removed(bench, monkeypatch):
    looked = []
    monkeypatch.setattr(Survivors, "_fresh", lambda _self, c: looked.append(c) or {4: 0.001})
    monkeypatch.setattr(trying, "CHEAP", -1.0)
    monkeypatch.setattr(trying, "ENOUGH", 0.0)
    plan = (Gives(gift="twin"),), (Gives(gift="planted"),), (Ends(gift="twin"),)
    best, trials = bench(*plan)
    assert best is trials[0] and looked == [GIFTS["twin"]] * 2, "the last one might have won"
    hopeless = trials[1].survival
    assert not hopeless.looked and not hopeless.removed and hopeless.p_values == {}
    assert hopeless.as_record()["removed"] is False, "its trigger is alive"
    assert Survival({"a": 0.05}, {}, looked=False).as_record()["removed"] is None


def test_a_cheap_repair_without_a_live_trigger_is_looked_at_though_another_has_the_better_score(
    bench, monkeypatch
):
    """It would end the search if nothing stood out."""
    monkeypatch.setattr(trying, "CHEAP", 1.0)
    monkeypatch.setattr(trying, "ENOUGH", 0.0)
    sights = iter([{4: 0.001}, {4: 1.0}])
    monkeypatch.setattr(Survivors, "_fresh", lambda _self, _c: next(sights))
    best, trials = bench((Gives(gift="twin"),), (Ends(gift="twin"),), (Gives(gift="planted"),))
    assert best is trials[1] and len(trials) == 2


def test_a_method_that_cannot_be_used_is_a_row_and_what_builds_on_it_is_not_tried(bench):
    refusing = Gives(gift="refuses")
    best, trials = bench((refusing,), (refusing, Ends(gift="twin")), (Gives(gift="twin"),))
    assert [trial.name for trial in trials] == ["gives", "gives"]
    assert trials[0].failure == "not this network" and best is trials[1]
    assert trials[0].as_record()["accuracy_drop"] is None
    with pytest.raises(InputError, match=r"no repair could be made.*not this network"):
        bench((refusing,))


def test_steps_build_on_one_another(bench):
    _, trials = bench((Gives(gift="planted"),), (Gives(gift="planted"), Ends(gift="twin")))
    assert trials[1].name == "gives, then ends"
    assert trials[1].repair.record["from"] is GIFTS["planted"]


def test_the_score_is_what_der_takes_off_and_a_class_that_stands_out():
    class One(Survival):
        pass

    worst = One({"a": 0.4, "b": 0.1}, {2: 0.01})
    assert worst.worst == 0.4 and worst.stands_out and not worst.removed
    assert Survival({"a": 0.1}, {2: 0.06}).removed
    assert not Survival({"a": 0.11}, {2: 0.06}).removed
    assert Survival({}, {}).removed
    assert Survival({}, {2: 0.06}, exposed={2: 0.06}).removed
    assert not Survival({}, {2: 0.06}, exposed={2: 0.04}).removed
    assert Survival({}, {}, looked=False, exposed={2: 0.04}).as_record()["removed"] is False


def test_the_plan_tells_the_methods_the_suspect_and_adds_a_stranger_s_own_repair(digits):
    survivors = Survivors(
        digits.planted, [evidence(Patch(digits.attack))], [4, 2], digits.clean, digits.clean, seed=0
    )

    def told(found_by=None):
        return [tuple(step.name for step in steps) for steps in plan_for(survivors, found_by)]

    plan = plan_for(survivors)
    assert (SAU(),) in plan and (TAC(target_class=4),) in plan
    assert plan[0][0].method == JointUnlearning(target_class=4)
    anew = {steps: steps[-1].anew for steps in plan if isinstance(steps[-1], Unlearning)}
    assert [(len(steps), found) for steps, found in anew.items()] == [
        (1, False),
        (2, False),
        (2, True),
    ]
    stranger = Gives(gift="twin")
    assert plan_for(survivors, stranger)[-1] == (stranger,)
    assert told(stranger)[:-1] == told() == told(RNP())
    done = [told()[:place] for place in range(len(told()))]
    for before, steps in zip(done, told(), strict=True):
        assert len(steps) == 1 or steps[:-1] in before, "what a repair builds on comes first"


def test_unlearning_anew_looks_at_the_network_that_it_starts_with(digits, monkeypatch):
    known, held_out = digits.clean.split(0.8, seed=0)
    given = Patch(digits.attack)
    survivors = Survivors(digits.planted, [evidence(given)], [4], known, held_out, seed=0)
    looked = []

    def recover(self, classifier, clean, *, seed=0, progress=None):
        looked.append(classifier)
        return [Trigger("again", 4, given)]

    monkeypatch.setattr(JointUnlearning, "recover", recover)
    step = Unlearning(JointUnlearning(target_class=4, recipe=SHORT), survivors)
    how = {"seed": 0, "progress": lambda *_: None}
    first = step.remove(digits.planted, known, **how)
    assert not looked and [t["witness"] for t in first.record["triggers"]] == ["hand"]
    step.remove(first.classifier, known, **how)
    assert not looked
    second = dataclasses.replace(step, anew=True).remove(first.classifier, known, **how)
    assert looked == [first.classifier]
    assert [t["witness"] for t in second.record["triggers"]] == ["hand", "again"]


def test_triggers_are_unlearned_several_times_and_the_weights_averaged(digits):
    known, held_out = digits.clean.split(0.8, seed=0)
    found = evidence(Patch(digits.attack))
    survivors = Survivors(digits.planted, [found], [4], known, held_out, seed=0)
    step = Unlearning(JointUnlearning(target_class=4, recipe=SHORT), survivors)
    told = []

    def made(runs, progress=lambda *_: None):
        own = dataclasses.replace(step, runs=runs)
        return own.remove(digits.planted, known, seed=0, progress=progress)

    three, two, one = made(3, lambda _what, share: told.append(share)), made(2), made(1)
    assert step.runs == 3 and three.record["runs"] == 3 and told == sorted(told) and told[-1] == 1
    assert made(3).classifier.network.fc.weight.equal(three.classifier.network.fc.weight)
    weights = [r.classifier.network.fc.weight.detach().double() for r in (one, two, three)]
    second = 2 * weights[1] - weights[0]
    third = 3 * weights[2] - weights[0] - second
    start = digits.planted.network.fc.weight.detach().double()
    steps = [(w - start).norm() for w in (weights[0], second, third)]
    assert min(steps) > 0.5 * max(steps), "each run is a training of its own"
    for run, other in ((weights[0], second), (second, third), (weights[0], third)):
        assert (run - other).norm() > 0.05 * max(steps), "with batches of its own"
    plain = step.method.unlearn(digits.planted, digits.planted, known, survivors.triggers, seed=0)
    assert one.classifier.network.fc.weight.equal(plain.classifier.network.fc.weight)


@pytest.mark.parametrize("witness", ["plane-waves", "hand"])
def test_a_fresh_look_asks_for_waves_where_one_was_recovered(digits, monkeypatch, witness):
    known, held_out = digits.clean.split(0.8, seed=0)
    found = dataclasses.replace(evidence(Patch(digits.attack)), method=witness)
    survivors = Survivors(digits.planted, [found], [4], known, held_out, seed=0)

    def refused(self, classifier, clean, *, seed=0, progress=None):
        raise InputError("not now")

    def stands_out(self, classifier, clean, *, seed=0, progress=None):
        return dataclasses.replace(found, p_values=(1.0,) * 4 + (1e-3,) + (1.0,) * 5)

    monkeypatch.setattr(TAC, "inspect", refused)
    monkeypatch.setattr(BtiDbf, "inspect", refused)
    monkeypatch.setattr(PlaneWaves, "inspect", stands_out)
    looked = survivors.look(digits.planted, Survival({}, {}))
    assert looked.stands_out == looked.looked == (witness == "plane-waves")


def test_where_every_held_out_image_is_of_the_target_nothing_counts_as_dead(digits):
    """An unrepaired network would else pass: no image is there that its trigger could carry."""
    known, held_out = digits.clean.split(0.8, seed=0)
    own = digits.planted.logits(held_out).argmax(1) == 4
    of_target = held_out.subset(torch.nonzero(own).flatten().tolist())
    found = evidence(Patch(digits.attack))
    survivors = Survivors(digits.planted, [found], [4], known, of_target, seed=0)
    left = survivors.left(digits.planted)
    assert not left.tried and left.carried == {}
    quiet = dataclasses.replace(left, p_values={4: 0.9}, looked=True, exposed={4: 0.9})
    assert not quiet.removed
    assert (quiet.as_record()["removed"], quiet.as_record()["worst"]) == (None, None)
    nothing_lost = accuracy_loss(digits.planted, digits.planted, held_out)
    assert not Weighed(nothing_lost, quiet, 0.05).sufficient
    probe = retuning_probe(digits.planted, known, survivors, quiet, seed=0)
    assert probe.returned is None and "no other class is among the held-out" in probe.sentence
    assert (
        Survivors(digits.planted, [found], [4], known, held_out, seed=0).left(digits.planted).tried
    )


def test_a_network_without_numbers_is_no_repair(digits, bench):
    """A loss that is no number would compare as no loss at all."""
    broken = digits.planted.copy()
    with torch.no_grad():
        broken.network.fc.weight.fill_(torch.nan)
    GIFTS.update(broken=broken)
    best, trials = bench((Gives(gift="broken"),), (Gives(gift="twin"),))
    assert best.repair.classifier is GIFTS["twin"] and len(trials) == 2
    assert trials[0].weighed.beyond and trials[0].weighed.drop > 0.5


def test_triggers_are_tried_on_shifted_images_too(digits):
    known, held_out = digits.clean.split(0.8, seed=0)

    class Nowhere(Patch):
        seen: ClassVar[list] = []

        def stamp(self, images, k):
            self.seen.append(images)
            return images

    found = Nowhere(digits.attack)
    survivors = Survivors(digits.planted, [evidence(found)], [4], known, held_out, seed=0)
    assert survivors.carried(digits.planted, survivors.triggers[0]) == 0
    plain, shifted = Nowhere.seen
    assert not torch.equal(plain, shifted) and plain.shape == shifted.shape


def test_what_goes_to_the_class_without_a_trigger_is_not_carried(digits, patched):
    (trigger,) = patched.triggers
    assert patched.carried(digits.planted, trigger) >= 0.95
    leaning = digits.planted.copy()
    with torch.no_grad():
        leaning.network.fc.bias[4] += 8.0
    images = patched.pixels[patched._answers != 4]
    with leaning.evaluating():
        anyway = float((predicted(leaning, images) == 4).float().mean())
        stamped = float((predicted(leaning, trigger.stamp(images)) == 4).float().mean())
    assert 0.05 < anyway < 0.9 <= stamped
    moved = patched._shifted(patched.pixels)[patched._answers != 4]
    with leaning.evaluating():
        anyway_moved = float((predicted(leaning, moved) == 4).float().mean())
    least = stamped - max(anyway, anyway_moved)
    assert least - 1e-6 <= patched.carried(leaning, trigger) <= 1 - min(anyway, anyway_moved)
    with torch.no_grad():
        leaning.network.fc.bias[4] += 1000.0
    assert patched.carried(leaning, trigger) == 0, "accuracy tells what such a repair is worth"


def test_triggers_that_no_repair_was_shown_judge_beside_the_scan_s(digits):
    known, held_out = digits.clean.split(0.8, seed=0)
    dead = Patch(digits.attack)
    dead.stamp = lambda images, k: images
    survivors = Survivors(digits.planted, [evidence(dead)], [4], known, held_out, seed=0)
    left = survivors.after(digits.planted).carried
    assert left["hand, class 4"] < 0.2, "as after a repair that has unlearned just this one"
    assert left["neural-cleanse again, class 4"] > 0.9
    assert survivors.worst(digits.planted) == max(left.values())
    assert [t.witness for t in survivors.triggers] == ["hand"], "what a repair is shown"


def test_an_unusual_smooth_pattern_is_unlearned_and_another_one_judges(digits, monkeypatch):
    known, held_out = digits.clean.split(0.8, seed=0)
    seeds = []

    def unusual(classifier, images, classes, settings, *, suspects, seed):
        assert classifier is digits.planted and images is known
        assert tuple(classes) == tuple(suspects) == (4,)
        seeds.append(seed)
        return AdditivePatterns((4,), torch.full((1, 1, 8, 8), 0.1), torch.tensor([0.1]), 2.0)

    monkeypatch.setattr(surviving, "unusual_smooth", unusual)
    given = evidence(Patch(digits.attack))
    survivors = Survivors(digits.planted, [given], [4], known, held_out, seed=0)
    assert [t.witness for t in survivors.triggers] == ["hand", "smooth-pattern"]
    assert "smooth-pattern again" in [t.witness for t in survivors.judging]
    assert len(set(seeds)) == 2
    monkeypatch.setattr(surviving, "unusual_smooth", lambda *_, **__: None)
    usual = Survivors(digits.planted, [given], [4], known, held_out, seed=0)
    assert "smooth-pattern" not in {t.witness for t in usual.judging}


def test_a_smooth_pattern_that_the_scan_looked_for_is_not_looked_for_again(digits, monkeypatch):
    known, held_out = digits.clean.split(0.8, seed=0)
    asked = []

    def unusual(classifier, images, classes, settings, *, suspects, seed):
        asked.append(tuple(classes))

    monkeypatch.setattr(surviving, "unusual_smooth", unusual)
    found = AdditivePatterns((4,), torch.full((1, 1, 8, 8), 0.1), torch.tensor([0.1]), 2.0)
    ratios = [1.5] * 8 + [math.inf] * 2  # classes 8 and 9 were left out
    looked = dataclasses.replace(evidence(None), method="smooth-pattern", values=tuple(ratios))
    seen = [evidence(Patch(digits.attack)), looked]
    Survivors(digits.planted, seen, [4], known, held_out, seed=0)
    assert asked == [], "the scan knows of 4"
    Survivors(digits.planted, seen, [8], known, held_out, seed=0)
    Survivors(digits.planted, seen, [4, 6], known, held_out, seed=0)
    assert asked == [(8,), (4, 6)], "of two suspects one may have hidden the other"
    recovered = dataclasses.replace(looked, recovered=found)
    survivors = Survivors(digits.planted, [recovered], [4, 6], known, held_out, seed=0)
    assert [(t.witness, t.target) for t in survivors.triggers] == [("smooth-pattern", 4)]
    assert asked[2:] == [(6,)]
    assert survivors.judging and asked[3:] == [(4,)], "another judges where there was one"


def test_without_a_recovered_trigger_a_patch_is_inverted(digits, bare):
    (patch,) = bare.triggers
    assert (patch.witness, patch.target) == ("neural-cleanse", 4)
    assert bare.carried(digits.planted, patch) >= 0.9


def test_a_backdoor_that_comes_back_with_tuning_is_told(digits, patched):
    """Planted again by poisoned tuning images: the probe must be able to see it return."""
    left = patched.after(digits.twin)
    safe = retuning_probe(digits.twin, patched.known, patched, left, seed=0)
    assert not safe.returned and safe.before <= 0.1
    assert "does not bring it back" in safe.sentence
    poisoned = digits.attack.poison(digits.train, 0.2, seed=0).images
    bad = retuning_probe(digits.twin, poisoned, patched, left, seed=0)
    assert bad.returned and bad.after >= 0.3 and "brings it back" in bad.sentence


def test_an_audit_tells_the_backdoor_from_its_absence_and_a_ruin_says_nothing(digits, bare):
    nothing = Survival({}, {})
    assert bare.expose(digits.planted, nothing).re_exposed
    assert bare.expose(digits.twin, nothing).exposed[4] > 0.05
    ruined = digits.planted.copy()
    with torch.no_grad():
        ruined.network.fc.weight.fill_(float("nan"))
    assert bare.expose(ruined, nothing).exposed == {}
    assert bare.after(digits.planted).re_exposed


def test_where_an_audit_can_say_nothing_none_is_made(digits, monkeypatch, bare):
    """Of networks without batch norms too few were measured for a small p-value."""
    monkeypatch.setattr(rnp_exposure, "has_batch_norm", lambda _network: False)
    monkeypatch.setattr(RNP, "inspect", None)  # a call would fail
    assert bare.expose(digits.planted, Survival({}, {})).exposed == {}


def test_without_a_look_nothing_counts_as_removed_and_the_risk_says_so(digits, bare):
    ruined = digits.planted.copy()
    with torch.no_grad():
        ruined.network.fc.weight.fill_(float("nan"))
    survival = bare.look(ruined, Survival({}, {}, looked=False))
    assert not survival.looked and not survival.removed and survival.worst == 0
    untried = Probe(0.0, None)
    assert not signs_of_backdoor(stands_out=None, re_exposed=False, returned=None, worst=0.0)
    risk = residual_risk([], looked=False, tried=False, audited=True, probe=untried, labelled=True)
    assert "no witness could look" in risk and "tuning brings the backdoor back could not" in risk
    assert "could not be tried on images of other classes" in risk


def test_triggers_of_one_name_count_with_the_larger_share(digits, monkeypatch):
    known, held_out = digits.clean.split(0.8, seed=0)
    given = evidence(Patch(digits.attack))
    survivors = Survivors(digits.planted, [given, given], [4], known, held_out, seed=0)
    shares = iter([0.9, 0.1, *[0.0] * 9])
    monkeypatch.setattr(
        survivors, "_carried_by", lambda _repaired, triggers: [next(shares) for _ in triggers]
    )
    assert survivors.left(digits.planted).worst == 0.9


def test_a_probe_that_cannot_be_made_does_not_cost_the_repair(digits, monkeypatch, bare):
    def diverges(*_arguments, **_options):
        raise InputError("it diverged")

    monkeypatch.setattr(aftercare, "fit", diverges)
    probe = retuning_probe(digits.twin, bare.known, bare, Survival({"a": 0.2}, {}), seed=0)
    assert probe.returned is None and "could not be tried: it diverged" in probe.sentence


@pytest.mark.parametrize(
    ("before", "after", "part"), [(0.0, 0.29, True), (0.1, 0.11, True), (0.0, 0.1, False)]
)
def test_a_part_that_tuning_revives_is_told_and_is_no_sign(before, after, part):
    probe = Probe(before, after)
    assert probe.returned is False and (probe.revived == after) == part
    assert ("brings a part of it back" in probe.sentence) == part
    risk = residual_risk([], looked=True, tried=True, audited=True, probe=probe, labelled=True)
    assert (f"to {100 * after:.0f} % of the images: scan the model again" in risk) == part
    assert "none of the signs of the backdoor is left" in risk


def test_what_is_back_or_never_left_is_not_told_as_revived():
    assert Probe(0.0, 0.3).returned and Probe(0.0, 0.3).revived is None
    assert Probe(0.2, 0.25).revived is None and Probe(0.0, None).revived is None


def test_the_line_on_risk_names_every_sign():
    quiet = Probe(0.05, 0.09)
    assert not signs_of_backdoor(stands_out=False, re_exposed=False, returned=False, worst=0.05)
    calm = residual_risk([], looked=True, tried=True, audited=True, probe=quiet, labelled=True)
    assert "none of the signs" in calm and "not the attacker's" in calm
    signs = signs_of_backdoor(stands_out=True, re_exposed=True, returned=True, worst=0.4)
    bad = residual_risk(signs, looked=True, tried=True, audited=False, probe=quiet, labelled=False)
    brings = ("brings the backdoor back", "brings a suspected class out")
    unknown = ("unlearning brings a class out could not be tried", "could not be measured")
    for sign in ("stands out", *brings, "40 %", *unknown):
        assert sign in bad


def test_one_trial_of_a_real_method_removes_the_planted_backdoor(digits, bench):
    best, _ = bench((replace(FineTuning(), schedule="super-convergent"),), limit=0.1)
    assert evaluate(best.repair.classifier, digits.test, digits.attack).asr <= 0.3
    idle = FineTuning(recipe=Recipe(epochs=1, learning_rate=1e-6))
    _, (trial,) = bench((idle,))
    assert trial.survival.worst >= 0.9, "a repair that does nothing must not pass"
