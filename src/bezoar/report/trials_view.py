"""The repairs that were tried, as a table, and what is known after the one that was kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.wording import lost_in_words, repair_in_words, signs_left

CAPTION = (
    "What was tried, in its order. No repair saw the images that judge it; triggers are those that "
    "the scan of the original recovered, and carry what does not go to their class without them."
)
HEADER = ["Repair", "Accuracy lost", "Triggers still carry", "p of suspects", "Signs seen", "Time"]


@dataclass(frozen=True)
class Trials:
    """A table: ``marked`` is true for the row of the repair that was kept."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    marked: list[bool]


def read_trials(repair: Mapping[str, Any]) -> Trials | None:
    """Reads the trials of a repair's record; None where a method was asked for."""
    trials = [fields.mapping(item) for item in fields.items(repair.get("trials"))]
    if not trials:
        return None
    kept = fields.index(repair.get("kept"))
    suspected = bool(fields.items(fields.mapping(repair.get("scan")).get("suspects")))
    return Trials(
        CAPTION,
        [HEADER[0], lost_in_words(repair), *HEADER[2:]],
        [_row(trial, suspected) for trial in trials],
        [place == kept for place in range(len(trials))],
    )


def read_aftercare(repair: Mapping[str, Any]) -> list[str]:
    """Sentences on tuning the repaired model, and on the risk that is left."""
    care = fields.mapping(repair.get("aftercare"))
    probe = fields.text(fields.mapping(care.get("probe")).get("sentence"), 500)
    return [line for line in (probe, fields.text(care.get("risk"), 500)) if line]


def _row(trial: Mapping[str, Any], suspected: bool) -> list[str]:
    share = fields.number(trial.get("share"))
    steps = fields.texts(trial.get("steps"), 80)
    name = repair_in_words(steps, 1.0 if share is None else share)
    seconds = fields.number(trial.get("seconds"))
    left = fields.mapping(trial.get("survival"))
    if not left:
        failure = fields.text(trial.get("failure"), 300)
        return [f"{name}: {failure}", *[words.DASH] * 5]
    looks = [fields.mapping(left.get(look)) for look in ("p_values", "exposed")]
    p_values = [fields.number(p) for look in looks for p in look.values()]
    smallest = min((p for p in p_values if p is not None), default=None)
    return [
        name,
        words.points(fields.number(trial.get("accuracy_drop")) or 0.0),
        words.percent(fields.number(left.get("worst"))),
        words.p_value(smallest),
        signs_left(left.get("removed", False), trial.get("returned"), suspected=suspected),
        words.seconds(seconds),
    ]
