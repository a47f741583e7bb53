"""What a method measured on images of its own, or on public ones, as the page shows it."""

from __future__ import annotations

from typing import Any

from bezoar.report import fields
from bezoar.report.charts import IntervalChart, Share, interval_chart
from bezoar.report.scan_view import Figure
from bezoar.wording import measured_on


def read_synthetic(record: Any) -> IntervalChart | None:
    """Agreement, and answers that the method's triggers change; None where nothing was measured."""
    images, triggers = _words(record)
    same, before, after = _shares(record)
    rows = [
        ("Agreement", same),
        ("Changed before", before),
        ("Changed after", after),
    ]
    caption = (
        f"Measured on {images}: how often the old and the new model agree, and the share of "
        f"answers that {triggers} change, before and after. These are neither images of the task "
        "nor the attacker's trigger."
    )
    return interval_chart(
        f"Agreement and changed answers, on {images},",
        caption,
        [(label, share) for label, share in rows if share.value is not None],
    )


def synthetic_figures(record: Any) -> list[Figure]:
    """The same as key figures."""
    images, triggers = _words(record)
    same, before, after = _shares(record)
    figures = []
    if same.value is not None:
        figures.append(Figure(f"Agreement on {images}", same.words, "same answer before and after"))
    if before.value is not None or after.value is not None:
        change = f"{before.words} → {after.words}"
        figures.append(Figure(f"Under {triggers}", change, f"of {images} change their class"))
    return figures


def _words(record: Any) -> tuple[str, str]:
    images, triggers = measured_on(fields.mapping(record))
    return fields.text(images, 80), fields.text(triggers, 80)


def _shares(record: Any) -> tuple[Share, Share, Share]:
    repair = fields.mapping(record)
    same = fields.mapping(repair.get("agreement")).get("synthetic")
    moved = fields.mapping(repair.get("insensitivity"))
    return Share.read(same), Share.read(moved.get("before")), Share.read(moved.get("after"))
