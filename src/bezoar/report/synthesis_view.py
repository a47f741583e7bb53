"""What ``synthesize`` recorded about the images it made, as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.report.scan_view import Figure

_SETTINGS = {
    "steps": "Steps of the generator",
    "batch_size": "Images in a step",
    "learning_rate": "Learning rate",
    "latent": "Length of a latent vector",
    "width": "Width of the generator",
    "statistics": "Weight of the BatchNorm statistics",
    "balance": "Weight of an even spread over the classes",
    "decision": "Weight of sure answers",
    "roughness": "Weight of TV 1",
    "roughness_norm": "Weight of TV 2",
}


@dataclass(frozen=True)
class Synthesis:
    """Images that were made of nothing, in words and figures."""

    title: str
    lead: str
    figures: list[Figure]
    settings: list[Figure]


def read_synthesis(record: Mapping[str, Any]) -> Synthesis:
    """Reads the record of ``synthesize``."""
    told = (fields.text(record.get(key), 1000) for key in ("sentence", "limits"))
    settings = fields.mapping(record.get("settings"))
    return Synthesis(
        title="What the network takes for its classes",
        lead=" ".join(part for part in told if part),
        figures=_figures(record),
        settings=[
            Figure(_SETTINGS.get(name) or fields.text(name, 80), f"{number:g}")
            for name, value in settings.items()
            if (number := fields.number(value)) is not None
        ],
    )


def _figures(record: Mapping[str, Any]) -> list[Figure]:
    counts = [count for count in fields.numbers(record.get("per_class")) if count is not None]
    figures = []
    if counts:
        made = sum(count > 0 for count in counts)
        low, high = words.count(min(counts)), words.count(max(counts))
        spread = low if low == high else f"{low} to {high}"
        note = f"{spread} images of each"
        figures.append(Figure("Classes with an image", f"{made:,} of {len(counts):,}", note))
    certainty = fields.number(record.get("certainty"))
    if certainty is not None:
        note = "mean probability of the answers"
        figures.append(Figure("Certainty", words.percent(certainty), note))
    if "divergence" in record:
        divergence = fields.number(record["divergence"])
        known = divergence is not None
        figures.append(
            Figure(
                "Divergence",
                f"{words.measure(divergence)}\u00a0nats" if known else words.DASH,
                "from what the BatchNorms remember"
                if known
                else "there is no BatchNorm to compare with",
            )
        )
    return figures
