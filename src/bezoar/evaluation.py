"""ACC, ASR and RA of a classifier when the trigger is known: the only judge that may know one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bezoar.attacks import Attack
from bezoar.classifier import Classifier
from bezoar.device import evaluation_batch
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
    classifier: Classifier, images: ImageSet, attack: Attack, *, batch_size: int | None = None
) -> Scores:
    """Measures ``classifier`` on labelled test images, clean and stamped.

    The trigger goes on the pixels before normalisation, and the stamped pixels are rounded to
    8 bits as in an image file. An attack of several triggers stamps the images with each in turn.

    Raises:
        InputError: no labels, a label or a target the network does not have, no image of another
            class, or a trigger that does not fit the images.
    """
    check_evaluation(classifier, images, attack)
    labels = images.require_labels("evaluation")
    batch_size = batch_size or evaluation_batch(classifier.device)
    stamped_answers, wanted, truths = [], [], []
    # Stamped ones first, because a trigger that does not fit shows at the first batch.
    for part in attack.parts:
        counted = _counted(part, labels, classifier.num_classes)
        truth = labels[counted]
        stamped_answers.append(_answers(classifier, images.subset(counted), part, batch_size))
        wanted.append(part.relabel(truth))
        truths.append(truth)
    clean_answers = classifier.logits(images, batch_size=batch_size).argmax(1).to(labels.device)
    answers, truth = torch.cat(stamped_answers).to(labels.device), torch.cat(truths)
    rates = {
        "acc": accuracy(clean_answers, labels),
        "asr": attack_success_rate(answers, torch.cat(wanted)),
        "ra": robust_accuracy(answers, truth),
    }
    return Scores(rates["acc"].value, rates["asr"].value, rates["ra"].value, rates)


def check_evaluation(classifier: Classifier, images: ImageSet, attack: Attack | None) -> None:
    """Refuses test images that this attack, or the lack of one, cannot be measured on.

    Raises:
        InputError: as ``evaluate``, but for a trigger that does not fit the images.
    """
    labels = images.require_labels("evaluation")
    classifier.trace(images.shape)
    images.class_counts(classifier.num_classes)
    for part in () if attack is None else attack.parts:
        _counted(part, labels, classifier.num_classes)


def _counted(attack: Attack, labels: Tensor, num_classes: int) -> Tensor:
    """The positions of the images that count for ASR."""
    counted = torch.nonzero(attack.applies_to(labels)).flatten()
    if not len(counted):
        raise InputError(
            "every image is of the target class; ASR needs images of other classes"
            if attack.mode == "all-to-one"
            else f"no image is of a class that the attack is about: {attack!r}"
        )
    highest = max(int(attack.relabel(labels[counted]).max()), attack.num_classes - 1)
    if highest >= num_classes:
        raise InputError(
            f"the attack's target class is {highest} and the network has {num_classes} classes "
            f"(0 to {num_classes - 1})"
        )
    if attack.mode == "all-to-all" and attack.num_classes != num_classes:
        raise InputError(
            f"the attack says num_classes {attack.num_classes} and the network has {num_classes}"
        )
    return counted


def _answers(classifier: Classifier, images: ImageSet, attack: Attack, batch_size: int) -> Tensor:
    """The classes that stamped images are answered with."""
    found = []
    with classifier.evaluating(), torch.inference_mode():
        for batch, _ in images.batches(batch_size, device=classifier.device):
            stamped = (attack.stamp(batch) * 255).round().clamp(0, 255) / 255
            found.append(classifier(stamped).argmax(1))
    return torch.cat(found)


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
