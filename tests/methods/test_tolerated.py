"""Which augmentations a network tolerates."""

import pytest
import torch
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.tolerated import recipe_for, with_tolerated_augmentation
from bezoar.training import Recipe


class BrightSide(nn.Module):
    """Class 1 where the given part of the image is brighter than the rest."""

    def __init__(self, part):
        super().__init__()
        self.register_buffer("part", part)
        self.fc = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[-1.0], [1.0]]))

    def forward(self, x):
        brighter = (x * self.part).mean((1, 2, 3)) - (x * (1 - self.part)).mean((1, 2, 3))
        return self.fc(brighter[:, None])


def halves(rows, columns):
    part = torch.zeros(16, 16)
    part[rows, columns] = 1
    return part


LEFT, TOP = halves(slice(None), slice(8)), halves(slice(8), slice(None))
FIRST_COLUMN = halves(slice(None), slice(0, 16, 2))  # a shift by one pixel turns it around


def network_and_images(part):
    """A network that answers all of its images rightly."""
    bright = torch.stack([1 - part, part])[:, None].mul(255).to(torch.uint8)
    images = ImageSet(bright.repeat(20, 1, 1, 1), torch.tensor([0, 1] * 20))
    return Classifier(BrightSide(part), mean=0.0, std=1.0), images


@pytest.mark.parametrize(
    ("part", "flip", "padding"), [(LEFT, False, 1), (TOP, True, 1), (FIRST_COLUMN, False, 0)]
)
def test_what_costs_no_accuracy_is_tolerated(part, flip, padding):
    found = with_tolerated_augmentation(Recipe(), *network_and_images(part), seed=0)
    assert (found.flip, found.crop_padding) == (flip, padding)


def test_a_method_gets_what_it_asked_for():
    classifier, images = network_and_images(LEFT)
    given = Recipe(epochs=3, flip=True, crop_padding=7)
    assert recipe_for(given, "recipe", classifier, images, seed=0) is given
    found = recipe_for(given, "tolerated", classifier, images, seed=0)
    assert found == with_tolerated_augmentation(given, classifier, images, seed=0)
    assert (found.epochs, found.flip, found.crop_padding) == (3, False, 1)
    bare = ImageSet(images.images)
    assert recipe_for(given, "recipe", classifier, bare, seed=0) is given
    with pytest.raises(InputError, match="label"):
        recipe_for(given, "tolerated", classifier, bare, seed=0)
