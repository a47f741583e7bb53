"""Patterns that are added to images."""

import pytest
import torch
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.additive_patterns import AdditivePatterns


def test_a_pattern_is_put_on_with_its_strength_and_stays_in_range():
    pattern = torch.zeros(1, 1, 2, 2)
    pattern[0, 0, 0] = 0.3
    found = AdditivePatterns((7,), pattern, torch.tensor([0.2]), 2.0)
    stamped = found.stamp(torch.full((1, 1, 2, 2), 0.6), 7)
    assert torch.allclose(stamped[0, 0], torch.tensor([[1.0, 1.0], [0.6, 0.6]]))
    with pytest.raises(InputError, match="class 1 has no pattern"):
        found.stamp(stamped, 1)


class Brightest(nn.Module):
    """Answers with the number of the brightest of four pixels."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4, bias=False)
        self.fc.weight.data = torch.eye(4)

    def forward(self, x):
        return self.fc(x.flatten(1))


def four(strength=1.0):
    """A pattern for classes 3 and 1: each brightens its pixel."""
    patterns = torch.zeros(2, 1, 2, 2)
    patterns[0, 0, 1, 1] = patterns[1, 0, 0, 1] = 0.5
    return AdditivePatterns((3, 1), patterns, torch.tensor([0.25, 0.3]), strength)


def test_those_of_some_classes_are_the_same_patterns():
    only = four(2.0).of([1])
    assert only.classes == (1,) and only.strength == 2.0
    assert torch.equal(only.patterns[0], four().patterns[1])
    assert float(only.sizes[0]) == pytest.approx(0.3)
    assert four().of([]) is None


def test_what_is_carried_counts_images_of_other_classes_alone():
    classifier = Classifier(Brightest(), mean=0.0, std=1.0, input_size=(2, 2))
    pixels = torch.zeros(5, 1, 2, 2)
    for row, k in enumerate((0, 0, 2, 3, 1)):
        pixels[row].view(-1)[k] = 0.2 if row else 0.8  # the first is too bright to be carried
    images = ImageSet.from_arrays((pixels * 255).round().byte().numpy())
    assert four().carried(classifier, images) == pytest.approx((0.0, 0.75, 0.0, 0.75))
    labels = torch.tensor([3, 0, 2, 3, 1])  # a label counts as the class, whatever the answer
    assert four().carried(classifier, ImageSet(images.images, labels))[3] == 1.0
    assert (
        four().carried(classifier, images.subset(torch.tensor([], dtype=torch.long))) == (0.0,) * 4
    )
