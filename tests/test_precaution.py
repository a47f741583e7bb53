"""The repair of a network in which nothing was found."""

import pytest
from true_patch import Patch

from bezoar import precaution
from bezoar.accuracy_loss import AccuracyLoss, Baseline
from bezoar.evaluation import evaluate
from bezoar.how_far import between
from bezoar.methods import JointUnlearning
from bezoar.methods.recovered import Trigger
from bezoar.metrics import Rate
from bezoar.surviving import Survivors
from bezoar.trying import Unlearning


@pytest.fixture(scope="module")
def given(digits):
    """The planted model, as if nothing had been found, with its true patch as the trigger."""
    known, held_out = digits.clean.split(0.8, seed=0)
    survivors = Survivors(digits.planted, [], [4], known, held_out, seed=0)
    survivors.triggers = [Trigger("hand", 4, Patch(digits.attack))]
    return digits.planted, known, held_out, survivors


def test_a_part_of_the_way_removes_a_backdoor_that_was_not_found(given, digits):
    trial = precaution.repair_as_precaution(*given, max_accuracy_drop=0.05, seed=0)
    before, after = (
        evaluate(c, digits.test, digits.attack) for c in (digits.planted, trial.repair.classifier)
    )
    assert trial.share == precaution.SHARES[0] and trial.weighed.drop <= 0.05
    assert before.asr > 0.95 and after.asr < 0.5 and before.acc - after.acc < 0.05


@pytest.mark.parametrize(("cheap", "share"), [(0.6, 0.6), (0.45, 0.4), (0.1, 0.3)])
def test_it_goes_less_far_where_that_seems_dear(cheap, share, given, monkeypatch):
    """Up to ``cheap`` of the way costs nothing."""
    planted, known, held_out, survivors = given
    step = Unlearning(JointUnlearning(target_class=4), survivors, runs=1)
    whole = step.remove(planted, known, seed=0, progress=lambda *_: None).classifier
    weight = {s: between(planted, whole, s).network.fc.weight for s in precaution.SHARES}
    rate = Rate(1.0, 1.0, 1.0, 1)

    def loss(_baseline, network):
        (at,) = (s for s in weight if network.network.fc.weight.equal(weight[s]))
        value = 0.0 if at <= cheap else 0.2
        return AccuracyLoss(rate, rate, value, value, 0.01)

    monkeypatch.setattr(Baseline, "loss", loss)
    trial = precaution.repair_as_precaution(
        planted, known, held_out, survivors, max_accuracy_drop=0.01, seed=0
    )
    assert trial.share == share and trial.repair.classifier.network.fc.weight.equal(weight[share])
    assert trial.weighed.beyond == (cheap < share)
