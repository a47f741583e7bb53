"""Small data and quick victims for the tests of attacks."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bezoar import networks
from bezoar.attacks.attack import Attack, Planted
from bezoar.classifier import Classifier
from bezoar.demo import DIGITS_RECIPE, load_digits
from bezoar.evaluation import Scores, evaluate
from bezoar.images import ImageSet
from bezoar.training import Recipe, fit


@dataclass(frozen=True)
class Result:
    """A planted model, its scores under its own trigger, and the clean twin's."""

    classifier: Classifier
    planted: Planted
    scores: Scores
    twin_scores: Scores
    train: ImageSet
    test: ImageSet


def coloured(images: ImageSet) -> ImageSet:
    """Digits twice as large in a colour of their own on a coloured ground: 16x16 RGB."""
    generator = torch.Generator().manual_seed(7)
    ink = images.images.float() / 255
    ink = F.interpolate(ink, scale_factor=2, mode="bilinear")
    count = len(images)
    ground, paint = torch.rand(2, count, 3, 1, 1, generator=generator)
    ground, paint = 0.4 * ground, 0.6 + 0.4 * paint
    pixels = ground * (1 - ink) + paint * ink
    return ImageSet((pixels * 255).round().to(torch.uint8), images.labels, images.classes)


@functools.cache
def data(kind: str) -> tuple[ImageSet, ImageSet]:
    """Training and test images: ``digits`` (8x8 grey) or ``coloured`` (16x16 RGB)."""
    train, _, test = load_digits(seed=0)
    if kind == "digits":
        return train, test
    return coloured(train), coloured(test)


def fresh(kind: str, seed: int = 0, width: int = 32) -> Classifier:
    """An untrained network for the data called ``kind``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = networks.build(
            "small-cnn", num_classes=10, channels=1 if kind == "digits" else 3, width=width
        )
    size = (8, 8) if kind == "digits" else (16, 16)
    return Classifier(network, mean=0.3, std=0.35, input_size=size)


@functools.cache
def twin(kind: str) -> Classifier:
    """The same network trained on clean images."""
    classifier = fresh(kind)
    fit(classifier, data(kind)[0], DIGITS_RECIPE, seed=0)
    return classifier


@functools.cache
def planted(
    attack: Attack, rate: float, kind: str = "digits", seed: int = 0, recipe: Recipe = DIGITS_RECIPE
) -> Result:
    """Plants ``attack`` in a fresh network; with the clean twin as surrogate."""
    train, test = data(kind)
    classifier = fresh(kind, seed)
    done = attack.plant(classifier, train, rate, recipe, seed=seed, surrogate=twin(kind))
    return Result(
        classifier,
        done,
        evaluate(classifier, test, done.attack),
        evaluate(twin(kind), test, done.attack),
        train,
        test,
    )
