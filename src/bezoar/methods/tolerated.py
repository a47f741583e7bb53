"""Which augmentations a network tolerates: read off the network itself, never assumed.

Mirroring is harmless for animals and wrong for digits and signs, and the defender may not know
what the images show. A network that answers changed images as well as the originals was trained to
ignore that change, so fine-tuning may use it.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import torch

from bezoar.augmentation import crop_and_flip
from bezoar.classifier import BATCH, Classifier
from bezoar.images import ImageSet
from bezoar.training import Recipe

TOLERANCE = 0.02  # largest loss of accuracy that still counts as none


def recipe_for(
    recipe: Recipe,
    augment: Literal["tolerated", "recipe"],
    classifier: Classifier,
    clean: ImageSet,
    *,
    seed: int,
) -> Recipe:
    """Returns ``recipe`` with the augmentation that a method was asked for.

    Args:
        recipe: how to train.
        augment: ``tolerated`` takes the flips and shifts that cost ``classifier`` no accuracy, and
            needs labels; ``recipe`` what the recipe says.
        classifier: the network before any repair.
        clean: clean images of its task.
        seed: of the shifts that are tried.
    """
    if augment == "recipe":
        return recipe
    return with_tolerated_augmentation(recipe, classifier, clean, seed=seed)


def with_tolerated_augmentation(
    recipe: Recipe, classifier: Classifier, clean: ImageSet, *, seed: int
) -> Recipe:
    """Returns ``recipe`` with the flips and shifts that cost ``classifier`` no accuracy.

    Shifts are a sixteenth of the image's side (2 pixels of 32). Labels are needed.
    """
    height, width = clean.shape[1:]
    plain = _accuracy(classifier, clean, flip=False, padding=0, seed=seed)
    padding = min(height, width) // 16
    flip = _accuracy(classifier, clean, flip=True, padding=0, seed=seed) >= plain - TOLERANCE
    if padding and _accuracy(classifier, clean, flip=False, padding=padding, seed=seed) < (
        plain - TOLERANCE
    ):
        padding = 0
    return msgspec.structs.replace(recipe, flip=flip, crop_padding=padding)


def _accuracy(
    classifier: Classifier, clean: ImageSet, *, flip: bool, padding: int, seed: int
) -> float:
    labels = clean.require_labels("choosing the augmentation")
    generator = torch.Generator().manual_seed(seed)
    answers = []
    with classifier.evaluating(), torch.inference_mode():
        for batch, _ in clean.batches(BATCH, device=classifier.device):
            # Every image is mirrored, not half of them, so that the whole effect is seen.
            changed = batch.flip(3) if flip else batch
            if padding:
                changed = crop_and_flip(changed, padding=padding, flip=False, generator=generator)
            answers.append(classifier(changed).argmax(1).to(labels.device))
    return float((torch.cat(answers) == labels).float().mean())
