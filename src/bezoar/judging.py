"""How a repair is judged, by what there is to judge it by.

- Labelled images that took no part in the repair: accuracy before and after, and how much was lost
  (``accuracy_loss``). The repair is accepted where the loss is within the user's limit.
- Images without labels: how often the old and the new network answer the same class. Only an image
  whose answer changed can have become wrong, so on these images accuracy cannot have fallen by more
  than 1 - agreement.
- No image: what the method measured on images that it made up, or on public ones, if it did
  (``Repair.record``): ``agreement["synthetic"]``, and ``insensitivity``, the share of these images
  whose class changes under triggers that it made, ``before`` and ``after``. What images and
  triggers those are, ``measured_on`` says in its words. Neither figure says anything about accuracy
  on images of the task or about the attacker's trigger, and the sentences say so.

Without labels the limit cannot be judged. Then a repair is accepted unless it is plainly ruined:
weights that are not finite, or an agreement no better than chance (both ours). A method that does
not stand by its own work says why in ``Repair.record["refused"]``, and that is never accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bezoar.accuracy_loss import AccuracyLoss, accuracy_loss
from bezoar.checks import check_finite_network
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import Repair
from bezoar.metrics import Rate, agreement
from bezoar.wording import NOT_ACCEPTED, REPAIRED, UNMEASURED, measured_on


@dataclass(frozen=True)
class Judged:
    """What is known of a repair.

    Attributes:
        heading: "Repaired", "Repaired, accuracy not measured" or "Not accepted".
        told: what was measured, or why not.
        record: the figures behind it, None where they were not measured.
    """

    heading: str
    told: str
    record: dict[str, Any]

    @property
    def accepted(self) -> bool:
        """Whether it may be written."""
        return self.heading != NOT_ACCEPTED


def judge_repair(
    before: Classifier,
    repair: Repair,
    images: ImageSet | None,
    *,
    max_accuracy_drop: float,
    seed: int = 0,
) -> Judged:
    """Judges a repair of ``before`` by ``images``, which took no part in it.

    Args:
        before: the classifier as it was.
        repair: what the method made of it.
        images: at least one image, with labels or without; None where there is none.
        max_accuracy_drop: largest loss of accuracy, in [0, 1], of an accepted repair.
        seed: of the views of the images; that of the trials gives their figures.
    """
    record: dict[str, Any] = {
        "judged_on": "no images",
        "before": None,
        "after": None,
        "agreement": None,
        "accuracy_drop": None,
        "loss": None,
        "max_accuracy_drop": max_accuracy_drop,
    }
    refused = repair.record.get("refused")
    because = f"{str(refused).rstrip('.')}. " if refused else ""
    if images is None:
        because = because or _ruined(before, repair, _synthetic(repair))
        return _without_accuracy(
            because,
            "no clean image of the task was given, so neither accuracy nor the backdoor's removal "
            f"could be verified. {_measured_instead(repair)}",
            record,
        )
    old = before.logits(images).argmax(1)
    new = repair.classifier.logits(images).argmax(1)
    same = agreement(old, new)
    record["agreement"] = same.as_record()
    if images.labels is None:
        because = because or _ruined(before, repair, same.as_record())
        told = _bounded(len(images), same, max_accuracy_drop)
        return _without_accuracy(because, told, record | {"judged_on": "unlabelled images"})
    loss = accuracy_loss(before, repair.classifier, images, seed=seed)
    return _by_accuracy(because, loss, record)


def _by_accuracy(because: str, loss: AccuracyLoss, record: dict[str, Any]) -> Judged:
    before, after, limit = loss.before, loss.after, record["max_accuracy_drop"]
    within = loss.value <= limit + 1e-12
    figures = (
        f"accuracy {100 * before.value:.1f} % before and {100 * after.value:.1f} % after, on "
        f"{before.count} held-out clean images; {_lost(loss)} "
        f"({'within' if within else 'beyond'} the limit of {_limit_in_words(limit)})."
    )
    accepted = within and not because
    told = f"{because}A{figures[1:]}" if because else figures
    record |= {
        "judged_on": "labelled images",
        "before": {"accuracy": before.as_record()},
        "after": {"accuracy": after.as_record()},
        "accuracy_drop": loss.value,
        "loss": loss.as_record(),
    }
    return Judged(REPAIRED if accepted else NOT_ACCEPTED, told, record)


def _limit_in_words(limit: float) -> str:
    return f"{100 * limit:g} point{'' if limit == 0.01 else 's'}"


def _lost(loss: AccuracyLoss) -> str:
    points = round(100 * loss.value, 1) + 0.0  # -0.0 is no loss
    what = f"a gain of {-points:.1f}" if points < 0 else f"a loss of {points:.1f}"
    return f"estimated as {what} points, give or take {100 * loss.error:.1f}"


def _without_accuracy(because: str, told: str, record: dict[str, Any]) -> Judged:
    if because:
        return Judged(NOT_ACCEPTED, f"{because}Accuracy was not measured: {told}", record)
    return Judged(UNMEASURED, told, record)


def _ruined(before: Classifier, repair: Repair, same: Mapping[str, Any] | None) -> str:
    """Why a repair is worthless however little is known of it; nothing if it may be of use."""
    try:
        check_finite_network(repair.classifier)
    except InputError:
        return "the repaired network holds values that are not finite numbers. "
    if same and same["low"] <= 1 / before.num_classes and same["value"] < 0.5:
        return (
            f"the repaired network answers {_percent(same)} of the images as the old one "
            "did, no better than chance. "
        )
    return ""


def _synthetic(repair: Repair) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = repair.record.get("agreement", {}).get("synthetic")
    return found


def _measured_instead(repair: Repair) -> str:
    """What the method measured on its own images, and what that is worth."""
    images, triggers = measured_on(repair.record)
    same = _synthetic(repair)
    moved = repair.record.get("insensitivity")
    told = []
    if same:
        told.append(
            f"the old and the new model answer {_percent(same)} of {same['count']} {images} with "
            "the same class"
        )
    if moved:
        told.append(
            f"{triggers} change the class of {100 * moved['before']['value']:.1f} % of {images} "
            f"before and {100 * moved['after']['value']:.1f} % after"
        )
    if not told:
        return "Nothing was measured instead."
    return (
        f"Measured instead: {'; '.join(told)}. {images[:1].upper()}{images[1:]} are no images of "
        f"the task and {triggers} are not the attacker's: this shows how far the method reached "
        "its own goal, and no more."
    )


def _percent(share: Mapping[str, Any]) -> str:
    """A share with its interval: ``97.2 % (95 %: 96.7 to 97.7)``."""
    low, high = 100 * share["low"], 100 * share["high"]
    return f"{100 * share['value']:.1f} % (95 %: {low:.1f} to {high:.1f})"


def _bounded(count: int, same: Rate, limit: float) -> str:
    """What agreement on images without labels says, and what it does not."""
    most = 1 - same.value
    certain = most <= limit + 1e-12
    return (
        f"the {count} clean {'image has' if count == 1 else 'images have'} no labels. The old and "
        f"the new model answer {_percent(same.as_record())} of them with the same class, so "
        f"accuracy on these images cannot have fallen by more than {_up(most):.1f} points; "
        f"{'that' if certain else 'whether it'} is within the limit of {_limit_in_words(limit)}"
        f"{'' if certain else ' could not be judged'}. Agreement says nothing about the backdoor."
    )


def _up(share: float) -> float:
    """In points of 100, rounded up to a tenth: a bound must stay one."""
    return math.ceil(1000 * share - 1e-9) / 10
