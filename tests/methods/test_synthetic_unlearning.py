"""Joint unlearning on images that the network itself gives."""

import pytest
import torch
from method_rows import ROWS, sharing
from msgspec.structs import replace

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.methods import (
    SyntheticUnlearning,
    Weights,
    is_data_free,
    methods,
    synthetic_unlearning,
)
from bezoar.methods.spelling import parse_method
from bezoar.methods.synthesis import Synthesis
from bezoar.training import Recipe

QUICK = ROWS["synthetic-unlearning"].quick()


@pytest.fixture
def repair(full_repair):
    return full_repair("synthetic-unlearning", "planted")


def blind(classifier):
    """The classifier as somebody has it who has no image."""
    return Classifier(classifier.network, mean=0.3, std=0.35, input_size=(8, 8))


@sharing("synthetic-unlearning", "planted")
def test_it_finds_the_class_and_removes_the_backdoor_without_an_image(repair, digits):
    before = evaluate(digits.planted, digits.test, digits.attack)
    after = evaluate(repair.classifier, digits.test, digits.attack)
    assert repair.record["target_classes"] == [digits.attack.target]
    assert before.asr > 0.95 and after.asr < 0.5  # 0.2 to 0.4, by processor
    assert before.acc - after.acc < 0.05


@sharing("synthetic-unlearning", "twin")
def test_a_clean_twin_stays_nearly_as_it_was_and_the_guess_is_told(digits, full_repair):
    twin = full_repair("synthetic-unlearning", "twin")
    before = evaluate(digits.twin, digits.test, digits.attack)
    assert before.acc - evaluate(twin.classifier, digits.test, digits.attack).acc < 0.05
    if twin.record["target_p_value"] > 0.05:
        assert any("is a guess" in flag for flag in twin.record["flags"])


def test_images_give_it_nothing_but_their_size(digits):
    blindly = QUICK.remove(blind(digits.planted), seed=1).classifier.network.state_dict()
    seeing = QUICK.remove(digits.planted, digits.clean, seed=1).classifier.network.state_dict()
    assert all(torch.equal(blindly[name], value) for name, value in seeing.items())


def test_several_classes_are_unlearned_together(digits):
    repair = replace(QUICK, target_class=(4, 7)).remove(blind(digits.planted), seed=0)
    assert repair.record["target_classes"] == [4, 7] and repair.record["target_p_value"] is None
    patches = [t["class"] for t in repair.record["triggers"] if t["witness"] == "neural-cleanse"]
    assert patches == [4, 7]
    assert repair.record["insensitivity"]["before"]["count"] == 12, "each image is another's"
    for wrong in ((4, 4), (), (4, 10)):
        with pytest.raises(InputError, match="target_class is"):
            replace(QUICK, target_class=wrong).remove(blind(digits.planted))
    assert parse_method("synthetic-unlearning:target_class=4+7").target_class == (4, 7)
    assert parse_method("synthetic-unlearning:target_class=4").target_class == 4


def test_a_class_of_many_is_taken_by_its_weights_and_a_p_value_counts_the_witnesses(
    digits, monkeypatch
):
    repair = QUICK.remove(blind(digits.twin), seed=0)
    rows = [w.inspect(blind(digits.twin), None).p_values for w in (Weights(), QUICK.margin)]
    (target,) = repair.record["target_classes"]
    expected = min(1.0, 2 * min(row[target] for row in rows))
    assert repair.record["target_p_value"] == pytest.approx(expected)
    monkeypatch.setattr(synthetic_unlearning, "MOST_CLASSES", 9)
    alone = QUICK.remove(blind(digits.twin), seed=0)
    (target,) = alone.record["target_classes"]
    assert alone.record["target_p_value"] == pytest.approx(min(rows[0])) == rows[0][target]


def test_doing_nothing_would_fail(digits):
    idle = replace(QUICK.unlearning, recipe=Recipe(epochs=1, learning_rate=1e-7))
    idle = replace(QUICK, target_class=digits.attack.target, unlearning=idle)
    after = evaluate(idle.remove(blind(digits.planted)).classifier, digits.test, digits.attack)
    assert after.asr > 0.9


@sharing("synthetic-unlearning", "planted")
def test_what_it_measured_is_told(repair):
    record = repair.record
    assert record["measured_on"] == {"images": "synthetic images", "triggers": "recovered triggers"}
    moved = record["insensitivity"]
    assert moved["before"]["value"] > moved["after"]["value"]
    assert record["agreement"]["synthetic"]["count"] == 256 and repair.synthetic is not None
    assert record["agreement"]["synthetic"]["value"] > 0.7
    assert len(repair.synthetic) == 512


def test_it_goes_a_part_of_the_way(digits):
    start = blind(digits.planted)
    quick = replace(QUICK, target_class=digits.attack.target)
    whole, part = (
        replace(quick, share=share).remove(start, seed=0).classifier.network.fc.weight
        for share in (1.0, 0.5)
    )
    first = start.network.fc.weight
    assert torch.allclose(part, (first + whole) / 2, atol=1e-6) and not torch.equal(first, whole)
    with pytest.raises(InputError, match="share is 0"):
        SyntheticUnlearning(share=0.0)


def test_it_is_data_free_and_refuses_what_it_cannot_use(digits):
    assert is_data_free(SyntheticUnlearning()) and "synthetic-unlearning" in methods.names()
    with pytest.raises(InputError, match="count is 5"):
        SyntheticUnlearning(count=5)
    with pytest.raises(InputError, match="target_class is 10"):
        SyntheticUnlearning(target_class=10).remove(blind(digits.planted))
    dull = digits.planted.copy()
    with torch.no_grad():
        dull.network.fc.weight.zero_()
        dull.network.fc.bias.zero_()[3] = 5.0
    quick = SyntheticUnlearning(target_class=2, count=40, synthesis=Synthesis(steps=2))
    with pytest.raises(InputError):
        quick.remove(blind(dull))
