"""ACC, ASR and RA on a network whose answers can be worked out by hand."""

import pytest
import torch
from torch import nn

from bezoar.attacks import Attack, BadNets, Blend, StoredPattern
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.evaluation import compare, evaluate
from bezoar.images import ImageSet

CORNER = {"size": 1, "pattern": "square", "position": "top-left"}


def corner_reader(*, mean=0.0, std=1.0):
    """Answers 1 where the corner is brighter than 0.6, else 2 where the next pixel is, else 0.

    The thresholds lie in pixel space whatever the normalisation.
    """
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[1, 0], network[1].bias[1] = 100 * std, 100 * (mean - 0.6)
        network[1].weight[2, 1], network[1].bias[2] = 10 * std, 10 * (mean - 0.6)
        network[1].bias[0] = 0
    return Classifier(network, mean=mean, std=std)


def images(*rows):
    """Images from (corner, next pixel, label), brightness in [0, 1]."""
    pixels = torch.zeros(len(rows), 1, 2, 2)
    for i, (corner, beside, _) in enumerate(rows):
        pixels[i, 0, 0] = torch.tensor([corner, beside])
    labels = torch.tensor([label for *_, label in rows], dtype=torch.int64)
    return ImageSet((pixels * 255).round().to(torch.uint8), labels)


FIVE = images((0, 0, 0), (1, 0, 1), (0, 1, 2), (0, 1, 0), (1, 0, 2))


@pytest.mark.parametrize("batch_size", [1, 2, 512])
def test_the_rates_are_those_counted_by_hand(batch_size):
    scores = evaluate(corner_reader(), FIVE, BadNets(target=1, **CORNER), batch_size=batch_size)
    # Clean answers 0, 1, 2, 2, 1 against labels 0, 1, 2, 0, 2. Stamped: all 1; four of them count.
    assert (scores.acc, scores.asr, scores.ra) == (3 / 5, 1.0, 0.0)
    assert [scores.intervals[name].count for name in ("acc", "asr", "ra")] == [5, 4, 4]
    assert scores.intervals["asr"].low < 1.0 == scores.intervals["asr"].high


def test_a_trigger_that_does_not_work_leaves_the_true_labels():
    nothing = BadNets(target=0, size=1, pattern="square", position="bottom-right")
    scores = evaluate(corner_reader(), FIVE, nothing)
    # Of labels 1, 2, 2 the answers stay 1, 2, 1.
    assert scores.asr == 0.0
    assert scores.ra == pytest.approx(2 / 3)


def test_the_trigger_is_put_on_before_the_normalisation():
    scores = evaluate(corner_reader(mean=0.9, std=0.05), FIVE, BadNets(target=1, **CORNER))
    assert (scores.acc, scores.asr) == (3 / 5, 1.0)


def test_stamped_pixels_are_rounded_as_in_a_file():
    class Faint(Attack, frozen=True, kw_only=True):
        def stamp(self, batch):
            return (batch + 0.4 / 255).clamp(0, 1)

    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[1, 0], network[1].bias[1] = 1000.0, -0.5
    dark = images((0, 0, 0), (0, 0, 0))
    assert evaluate(Classifier(network, mean=0.0, std=1.0), dark, Faint(target=1)).asr == 0.0


def test_evaluating_leaves_the_network_as_it_was():
    classifier = corner_reader()
    classifier.network.train()
    evaluate(classifier, FIVE, BadNets(target=1, **CORNER))
    assert classifier.network.training and classifier.network[1].training


def test_a_planted_backdoor_is_seen_and_its_twin_has_none(digits):
    planted = evaluate(digits.planted, digits.test, digits.attack)
    twin = evaluate(digits.twin, digits.test, digits.attack)
    assert planted.asr > 0.95 and planted.acc > 0.95 and planted.ra < 0.05
    assert twin.asr < 0.05 and twin.acc > 0.95 and twin.ra > 0.9


def test_a_comparison_holds_both_and_the_der():
    attack = BadNets(target=1, **CORNER)
    before = evaluate(corner_reader(), FIVE, attack)
    blind = corner_reader()
    with torch.no_grad():
        blind.network[1].bias[1] = -1000  # never answers 1 any more
    after = evaluate(blind, FIVE, attack)
    record = compare(attack, before, after)
    assert after.asr == 0.0 and after.acc == 2 / 5
    assert record["der"] == pytest.approx((1.0 - 0.2 + 1) / 2)
    assert record["before"]["asr"]["value"] == 1.0 and record["after"]["asr"]["value"] == 0.0
    assert record["name"] == "bad-nets" and "position='top-left'" in record["description"]


@pytest.mark.parametrize(
    ("images", "attack", "message"),
    [
        (ImageSet(FIVE.images), BadNets(size=1), "evaluation needs labelled images"),
        (FIVE, BadNets(target=3, size=1), "target class is 3 and the network has 3 classes"),
        (images((0, 0, 1), (1, 1, 1)), BadNets(target=1, size=1), "every image is of the target"),
        (images((0, 0, 1), (1, 1, 7)), BadNets(target=1, size=1), "an image has label 7"),
        (FIVE, BadNets(size=3), "does not fit images of 2x2"),
        (FIVE, BadNets(size=1, mode="all-to-all", num_classes=2), "num_classes 2 and .* has 3"),
        (FIVE, StoredPattern(file="nowhere.npy", target=1), "nowhere.npy cannot be read"),
        (images(), Blend(), "every image is of the target class"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(images, attack, message):
    with pytest.raises(InputError, match=message):
        evaluate(corner_reader(), images, attack)


def test_a_trigger_that_does_not_fit_shows_before_the_work(monkeypatch):
    def no_work(*_arguments, **_options):
        raise AssertionError("the network ran over all images first")

    monkeypatch.setattr(Classifier, "logits", no_work)
    with pytest.raises(InputError, match="does not fit"):
        evaluate(corner_reader(), FIVE, BadNets(size=3))
