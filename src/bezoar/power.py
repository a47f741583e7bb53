"""The measured false-alarm rate and power of the scan, as every scan quotes them."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

SOURCE = "data/power.json"  # written by benchmarks/false_alarms.py


@functools.cache
def power_sentence() -> str:
    """What was measured, in words, with counts and 95 % intervals.

    >>> power_sentence().startswith("Measured on small digit networks")
    True
    """
    text = resources.files("bezoar").joinpath(SOURCE).read_text(encoding="utf-8")
    rows = {row["kind"]: row for row in json.loads(text)["summary"] if row["networks"] == "all"}
    clean, patch, blend = rows["clean"], rows["bad-nets"], rows["blend"]
    flagged = {row["kind"]: _share(row["flagged at 0.05"]) for row in (clean, patch, blend)}
    return (
        "Measured on small digit networks that had no part in choosing the test: of "
        f"{clean['counted']} backdoor-free ones, {flagged['clean']} were flagged as suspicious; "
        f"the target class was flagged in {flagged['bad-nets']} of {patch['counted']} networks "
        f"with a patch trigger and in {flagged['blend']} of {blend['counted']} with faint noise "
        "over the whole image (Blend). Other kinds of networks and attacks can differ much."
    )


def _share(rate: dict[str, Any]) -> str:
    low, high = (f"{100 * rate[end]:.0f}" for end in ("low", "high"))
    return f"{100 * rate['value']:.0f} % (95 %: {low} to {high})"
