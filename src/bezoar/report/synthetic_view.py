"""What a method measured on images that it made up, as the page shows it."""

from __future__ import annotations

from typing import Any

from bezoar.report import fields
from bezoar.report.charts import IntervalChart, Share, interval_chart
from bezoar.report.scan_view import Figure

_CAPTION = (
    "Measured on synthetic images: how often the old and the new model agree, and the share of "
    "answers that generated triggers change, before and after. These are neither images of the "
    "task nor the attacker's trigger."
)


def read_synthetic(record: Any) -> IntervalChart | None:
    """Agreement, and answers that generated triggers change; None where nothing was measured."""
    same, before, after = _shares(record)
    rows = [
        ("Agreement", same),
        ("Changed before", before),
        ("Changed after", after),
    ]
    return interval_chart(
        "Agreement and changed answers, on synthetic images,",
        _CAPTION,
        [(label, share) for label, share in rows if share.value is not None],
    )


def synthetic_figures(record: Any) -> list[Figure]:
    """The same as key figures."""
    same, before, after = _shares(record)
    figures = []
    if same.value is not None:
        note = "same answer before and after, on synthetic images"
        figures.append(Figure("Synthetic agreement", same.words, note))
    if before.value is not None or after.value is not None:
        change = f"{before.words} → {after.words}"
        note = "of synthetic images change their class"
        figures.append(Figure("Under generated triggers", change, note))
    return figures


def _shares(record: Any) -> tuple[Share, Share, Share]:
    repair = fields.mapping(record)
    same = fields.mapping(repair.get("agreement")).get("synthetic")
    moved = fields.mapping(repair.get("insensitivity"))
    return Share.read(same), Share.read(moved.get("before")), Share.read(moved.get("after"))
