import json

import pytest
import torch

from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.clean_choice import accuracy_of, last_above, walk


def noting(values, asked):
    def accuracy(setting):
        asked.append(setting)
        return values[setting]

    return accuracy


@pytest.mark.parametrize(
    ("accuracies", "taken", "tried"),
    [
        ([0.9, 0.85, 0.81, 0.79, 0.5], 2, 4),  # the last one above
        ([0.9, 0.8, 0.8, 0.8], 3, 4),  # the floor itself is allowed, and all are
        ([0.9, 0.7, 0.95], 0, 2),  # one that happens to lie above again is luck
        ([0.9, 0.85, 0.95, 0.6], 2, 4),  # ups and downs above the floor are none
        ([0.5, 0.9, 0.9], 0, 1),  # not even the first: nothing better is there
        ([0.9], 0, 1),
    ],
)
def test_the_last_setting_before_the_first_fall_is_taken(accuracies, taken, tried):
    asked = []
    settings = list(range(len(accuracies)))
    way = walk(0.8, settings, noting(accuracies, asked))
    assert way.setting == taken
    assert way.tried == tuple(settings[:tried]) == tuple(asked), "it walked on, or twice"
    assert way.accuracy == tuple(accuracies[:tried])


def test_rounding_decides_nothing():
    """0.3 + 0.6 is a little less than 0.9."""
    assert walk(0.9, [0, 1], [1.0, 0.3 + 0.6].__getitem__).setting == 1
    assert walk(0.9, [0, 1], [1.0, 0.899].__getitem__).setting == 0


def broken(classifier, share):
    """The head's rows of so many of the classes gone."""
    twin = classifier.copy()
    with torch.no_grad():
        twin.network.fc.bias[: round(share * 10)] -= 1000
    return twin


def test_with_networks_the_one_of_the_taken_setting_comes_back(digits):
    settings, built = [0.0, 0.1, 0.2, 0.3, 0.4], {}

    def build(share):
        built[share] = broken(digits.planted, share)
        return built[share]

    choice = last_above(0.75, settings, build, digits.test)
    assert choice.setting == 0.2 and choice.classifier is built[0.2]
    assert list(built) == [0.0, 0.1, 0.2, 0.3], "a network was built after the fall"
    assert choice.accuracy == tuple(accuracy_of(built[s], digits.test) for s in choice.tried)
    record = choice.as_record()
    assert json.loads(json.dumps(record)) == record
    assert record["floor"] == 0.75 and record["setting"] == 0.2


def test_where_even_the_first_is_below_the_first_comes_back(digits):
    """Not the last one that was built, and not nothing."""
    first = digits.planted.copy()
    choice = last_above(1.1, [0.0, 0.9], lambda s: broken(first, s) if s else first, digits.test)
    assert choice.setting == 0.0 and choice.classifier is first and len(choice.tried) == 1


def test_accuracy_is_the_share_that_is_answered_with_its_label(digits):
    answers = digits.planted.logits(digits.test).argmax(1)
    right = int((answers == digits.test.labels).sum())
    assert accuracy_of(digits.planted, digits.test) == pytest.approx(right / len(digits.test))


def test_what_cannot_be_chosen_by_is_refused(digits):
    with pytest.raises(InputError, match="needs candidates; there are none"):
        last_above(0.5, [], lambda _: digits.planted, digits.test)
    with pytest.raises(InputError, match="needs held-out images; there are none"):
        last_above(0.5, [0.0], lambda _: digits.planted, digits.test.subset([]))
    with pytest.raises(InputError, match="choosing a threshold needs labelled images"):
        last_above(0.5, [0.0], lambda _: digits.planted, ImageSet(digits.test.images))
