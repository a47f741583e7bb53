"""Networks without a backdoor, of many kinds, from which the scan's null is measured.

Each is trained for a few epochs on a part of a training file: CIFAR-10 (10 classes), GTSRB (43),
the first twelve of these, the digits in the package, or 200 classes of pairs of digits. Depth,
width and normalisation differ. Clean images take no part in the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from pool_methods import clean_accuracy, parts

from bezoar import networks
from bezoar.attacks import Attack
from bezoar.classifier import Classifier
from bezoar.datasets import open_dataset
from bezoar.demo import load_digits
from bezoar.evaluation import evaluate
from bezoar.images import ImageSet
from bezoar.training import Recipe, fit

CLEAN_IMAGES = 500
POISON_RATE = 0.1
RECIPE = Recipe(
    epochs=6,
    batch_size=64,
    learning_rate=0.05,
    schedule="one-cycle",
    crop_padding=2,
    label_smoothing=0.1,
    clip_norm=5.0,
)


Kind = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What null networks learn.

    Attributes:
        kinds: networks of our own, with their arguments.
        others: such that no null is made of, to see how far the nulls carry.
        images: to train on, at most.
        epochs: over them.
        padding: pixels of random shift.
    """

    kinds: tuple[Kind, ...]
    others: tuple[Kind, ...]
    images: int
    epochs: int
    padding: int = 2


_PICTURES: tuple[Kind, ...] = (
    ("resnet-8", {"width": 8}),
    ("small-cnn", {"channels": 3, "width": 32}),
    ("resnet-8", {"width": 12}),
)
_OTHER_PICTURES: tuple[Kind, ...] = (
    ("resnet-20", {"width": 8}),
    ("small-cnn", {"channels": 3, "width": 48}),
)
_OTHER_SIGNS: tuple[Kind, ...] = (*_OTHER_PICTURES, ("plain-cnn", {"width": 12}))
_DIGITS: tuple[Kind, ...] = (
    ("small-cnn", {"width": 16}),
    ("small-cnn", {"width": 32, "norm": False}),
    ("small-cnn", {"width": 64}),
)
_OTHER_DIGITS: tuple[Kind, ...] = (
    ("small-cnn", {"width": 24}),
    ("small-cnn", {"width": 48, "norm": False}),
)
_PAIRS: tuple[Kind, ...] = (_DIGITS[0], ("small-cnn", {"width": 32}))
_OTHER_PAIRS: tuple[Kind, ...] = (_OTHER_DIGITS[0], ("small-cnn", {"width": 48}))
TASKS = {
    "cifar10": Task(_PICTURES, _OTHER_PICTURES, 8000, 6),
    "gtsrb": Task(_PICTURES, _OTHER_SIGNS, 8000, 12),
    "twelve signs": Task(_PICTURES, _OTHER_SIGNS, 8000, 6),
    "digits": Task(_DIGITS, _OTHER_DIGITS, 1000, 30, 0),
    "pairs": Task(_PAIRS, _OTHER_PAIRS, 12000, 10, 0),
}


def image_sets(task: str, seed: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Images to train on, those that clean images are drawn from, and test images."""
    if task in ("digits", "pairs"):
        found = load_digits(seed=seed)
        if task == "digits":
            return found
        train, rest, test = (
            pairs(images, count, seed=seed + part)
            for part, (images, count) in enumerate(zip(found, (12000, 2000, 2000), strict=True))
        )
        return train, rest, test
    data = "cifar10" if task == "cifar10" else "gtsrb"
    found = (open_dataset(data, "train"), *parts(data))
    if task != "twelve signs":
        return found
    train, rest, test = map(twelve, found)
    return train, rest, test


def twelve(images: ImageSet) -> ImageSet:
    """The first twelve classes."""
    labels = images.require_labels("choosing classes")
    return images.subset(torch.nonzero(labels < 12).flatten())


def pairs(digits: ImageSet, count: int, *, seed: int) -> ImageSet:
    """200 classes: two digits side by side, 00 to 99, as they are or as negatives.

    Args:
        digits: 8x8 images of ten classes.
        count: how many images; about as many of each class.
        seed: of the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = digits.require_labels("choosing classes")
    left, right = torch.randint(len(digits), (2, count), generator=generator)
    images = torch.cat((digits.images[left], digits.images[right]), 3)
    negative = torch.arange(count) % 2 == 1
    images[negative] = 255 - images[negative]
    classes = 100 * negative + 10 * labels[left] + labels[right]
    return ImageSet.from_arrays(images.numpy(), classes.numpy())


def null_network(
    task: str,
    number: int,
    keep: Path | None = None,
    *,
    kind: int | None = None,
    other: bool = False,
    attack: Attack | None = None,
) -> tuple[Classifier, ImageSet, dict[str, Any]]:
    """A network without a backdoor, at most 500 clean images for it, and its facts.

    Args:
        task: one of ``TASKS``.
        number: its seed, of all that is drawn.
        keep: a folder where trained networks are kept, and taken from where they are there.
        kind: which of the task's networks; by default they take turns.
        other: takes one of the kinds that no null is made of.
        attack: gives it a backdoor after all, on a tenth of its training images; ``asr`` is then
            among the facts. Keep such networks in a folder of their own.
    """
    how = TASKS[task]
    kinds = how.others if other else how.kinds
    name, arguments = kinds[(number if kind is None else kind) % len(kinds)]
    train, rest, test = image_sets(task, number)
    train = train.sample(min(how.images, len(train)), seed=number)
    if attack is not None:
        train = attack.poison(train, POISON_RATE, seed=number).images
    classes = int(train.require_labels("counting classes").max()) + 1
    pixels = train.images.float() / 255
    mean = tuple(pixels.mean((0, 2, 3)).tolist())
    std = tuple(pixels.std((0, 2, 3)).tolist())
    torch.manual_seed(number)
    network = networks.build(name, num_classes=classes, **arguments)
    classifier = Classifier(network, mean=mean, std=std)
    kept = keep and keep / f"{task.replace(' ', '-')}-{number}.pt"
    if kept and kept.exists():
        network.load_state_dict(torch.load(kept, weights_only=True))
        network.eval()
    else:
        normed = arguments.get("norm", name != "plain-cnn")
        rate = RECIPE.learning_rate if normed else 0.03
        recipe = msgspec.structs.replace(
            RECIPE, epochs=how.epochs, crop_padding=how.padding, learning_rate=rate
        )
        fit(classifier, train, recipe, seed=number)
    if kept and not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), kept)
    clean = rest.sample(min(CLEAN_IMAGES, len(rest)), seed=number)
    facts = {
        "task": task,
        "network": " ".join([name, *(f"{k}={v}" for k, v in arguments.items())]),
        "seed": number,
        "classes": classes,
        "acc": clean_accuracy(classifier, test)["value"],
    }
    if attack is not None:
        facts["asr"] = evaluate(classifier, test, attack).asr
    return classifier, clean, facts
