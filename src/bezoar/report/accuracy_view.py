"""What a repair cost, measured on clean images, as the page shows it; or why that is not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bezoar.report import fields, words
from bezoar.report.charts import IntervalChart, Share, interval_chart

# What a repair was judged on, where that was no labelled images: why there is no accuracy.
UNLABELLED = {
    "no images": "no clean image of the task was given.",
    "unlabelled images": "the clean images have no labels.",
}


def accuracies(repair: Mapping[str, Any]) -> tuple[Share, Share]:
    """Accuracy before and after the repair."""
    before, after = (fields.mapping(repair.get(when)) for when in ("before", "after"))
    return Share.read(before.get("accuracy")), Share.read(after.get("accuracy"))


def read_accuracy(repair: Mapping[str, Any]) -> IntervalChart | None:
    """Accuracy and agreement on clean images; None where neither was measured."""
    before, after = accuracies(repair)
    shares = [("Accuracy before", before), ("Accuracy after", after)]
    title = "Accuracy and agreement"
    if before.value is None and after.value is None:
        shares, title = [], "Agreement"
    agreement = Share.read(repair.get("agreement"))
    if agreement.value is not None:
        shares.append(("Agreement", agreement))
    caption = "Measured on held-out clean images."
    if fields.mapping(repair.get("loss")):
        caption += (
            " The loss is estimated from these counts and from how sure both networks are of the "
            "true classes."
        )
    return interval_chart(title, caption, shares)


def unmeasured(repair: Mapping[str, Any]) -> str:
    """Why there is no accuracy; nothing where there is."""
    if any(share.value is not None for share in accuracies(repair)):
        return ""
    judged_on = fields.text(repair.get("judged_on"), 40)
    why = UNLABELLED.get(judged_on, "there were no labelled held-out images.")
    return f"Accuracy was not measured: {why}"


def drop_in_words(drop: float | None, most: float | None, error: float | None = None) -> str:
    """How much accuracy the repair cost; nothing where that is not known.

    Args:
        drop: the loss, in [-1, 1].
        most: what was allowed.
        error: the standard error, where the loss was estimated.
    """
    if drop is None:
        return ""
    verb = "gained" if drop < 0 else "lost"
    told = f"The repair {verb} {words.points(abs(drop))} of accuracy"
    if error is not None:
        told = f"The repair {verb} an estimated {words.points(abs(drop))} of accuracy"
        told += f", give or take {words.points(error)}"
    return told + ("." if most is None else f"; {words.points(most)} were allowed.")
