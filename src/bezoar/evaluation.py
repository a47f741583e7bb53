"""ACC, ASR and RA of a classifier when the trigger is known: the only judge that may know one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bezoar.attacks import Attack
from bezoar.classifier import BATCH, Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.metrics import (
    Rate,
    accuracy,
    attack_success_rate,
    defense_effectiveness,
    robust_accuracy,
)


@dataclass(frozen=True)
class Scores:
    """A classifier against a known attack; all rates in [0, 1].

    Attributes:
        acc: accuracy on all clean images.
        asr: share of stamped images, none of the target class, answered as the attacker wants.
        ra: share of the same stamped images answered with their true label.
        intervals: the three as ``Rate``, with 95 % intervals and counts.
    """

    acc: float
    asr: float
    ra: float
    intervals: dict[str, Rate]

    def as_record(self) -> dict[str, Any]:
        """The plain form that records hold."""
        return {name: rate.as_record() for name, rate in self.intervals.items()}


def evaluate(
    classifier: Classifier, images: ImageSet, attack: Attack, *, batch_size: int = BATCH
) -> Scores:
    """Measures ``classifier`` on labelled test images, clean and stamped.

    The trigger goes on the pixels before normalisation, and the stamped pixels are rounded to
    8 bits as in an image file.

    Raises:
        InputError: no labels, a label or a target the network does not have, no image of another
            class, or a trigger that does not fit the images.
    """
    labels = images.require_labels("evaluation")
    classifier.trace(images.shape)
    images.class_counts(classifier.num_classes)
    if attack.target >= classifier.num_classes:
        raise InputError(
            f"the attack's target class is {attack.target} and the network has "
            f"{classifier.num_classes} classes (0 to {classifier.num_classes - 1})"
        )
    counted = attack.applies_to(labels)
    if not bool(counted.any()):
        raise InputError("every image is of the target class; ASR needs images of other classes")
    stamped_answers = []  # first, because a trigger that does not fit shows at the first batch
    with classifier.evaluating(), torch.inference_mode():
        chosen = images.subset(torch.nonzero(counted).flatten())
        for batch, _ in chosen.batches(batch_size, device=classifier.device):
            stamped = (attack.stamp(batch) * 255).round().clamp(0, 255) / 255
            stamped_answers.append(classifier(stamped).argmax(1).to(labels.device))
    clean_answers = classifier.logits(images, batch_size=batch_size).argmax(1).to(labels.device)
    answers, truth = torch.cat(stamped_answers), labels[counted]
    rates = {
        "acc": accuracy(clean_answers, labels),
        "asr": attack_success_rate(answers, attack.relabel(truth)),
        "ra": robust_accuracy(answers, truth),
    }
    return Scores(rates["acc"].value, rates["asr"].value, rates["ra"].value, rates)


def compare(attack: Attack, before: Scores, after: Scores) -> dict[str, Any]:
    """The record of one repair against a known attack, with its DER."""
    return {
        "name": attack.name,
        "description": f"{attack.title}; {attack!r}",
        "before": before.as_record(),
        "after": after.as_record(),
        "der": defense_effectiveness(
            acc_before=before.acc, acc_after=after.acc, asr_before=before.asr, asr_after=after.asr
        ),
    }
