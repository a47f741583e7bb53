"""What the self-test of a scan showed, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bezoar.report import fields


def read_self_test(record: Mapping[str, Any]) -> list[str]:
    """Sentences; none where there was no self-test."""
    test = fields.mapping(record.get("self_test"))
    sentence = fields.text(test.get("sentence"), 800)
    if not sentence:
        return []
    planting, measuring = (fields.index(test.get(k)) for k in ("planted_on", "measured_on"))
    told = [sentence]
    if test.get("planted") is True and planting is not None and measuring is not None:
        cleaned = test.get("untouched") is not True
        done = "Planted, scanned and cleaned" if cleaned else "Planted and scanned"
        told.append(
            f"{done} with {planting} of the clean images; the success rate and the accuracy are "
            f"those on the other {measuring}. It shows the power against a small patch of this "
            "kind; others can be harder to see."
        )
    return told
