"""The measured false-alarm rate and power of the scan, as every scan quotes them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from bezoar.combining import MANY
from bezoar.metrics import rate
from bezoar.packaged import packaged

SOURCE = "data/power.json"  # written by benchmarks/false_alarms.py
TOGETHER = "data/scan_power.json"  # written by benchmarks/scan_power.py
CLEAN_IMAGES = 500  # with which it looked at backdoored networks


@functools.cache
def power_sentence() -> str:
    """What was measured, in words, with counts and 95 % intervals.

    >>> power_sentence().startswith("Measured on small digit networks")
    True
    """
    rows = {row["kind"]: row for row in packaged(SOURCE)["summary"] if row["networks"] == "all"}
    clean, patch, blend = rows["clean"], rows["bad-nets"], rows["blend"]
    flagged = {row["kind"]: _share(row["flagged at 0.05"]) for row in (clean, patch, blend)}
    return (
        "Measured on small digit networks that had no part in choosing the test: of "
        f"{clean['counted']} backdoor-free ones, {flagged['clean']} were flagged as suspicious; "
        f"the target class was flagged in {flagged['bad-nets']} of {patch['counted']} networks "
        f"with a patch trigger and in {flagged['blend']} of {blend['counted']} with faint noise "
        "over the whole image (Blend). Other kinds of networks and attacks can differ much."
    )


def combined_power_sentence(names: Sequence[str], *, many: bool, images: int = 0) -> str | None:
    """What was measured of several witnesses together; None where these were not.

    Args:
        names: of the witnesses.
        many: of networks with more than 100 classes, or of the others.
        images: that were given to witnesses that look at them; 0 where none does.

    >>> combined_power_sentence(["mm-bd", "weights"], many=False).startswith("Measured: of ")
    True
    """
    key = "witnesses, many classes" if many else "witnesses"
    found = next((row for row in _together() if set(row[key]) == set(names)), None)
    if found is None:
        return None
    share, count, counts = _alarms(found["false alarms"], many)
    told = (
        f"Measured: of {count} backdoor-free networks, each judged by the others, {share} were "
        f"flagged as suspicious ({counts})."
    )
    if "fresh" in found:
        share, count, counts = _alarms(found["fresh"], many)
        told += f" Of {count} more, from which the test was not made, {share} ({counts})."
    if many:
        told += " Power was not measured of networks with so many classes."
    elif "held-out" in found:
        told += _found_of(found["held-out"], images)
    return f"{told} Other kinds of networks and attacks can differ much."


def _alarms(rows: Mapping[str, Any], many: bool) -> tuple[str, int, str]:
    """The share of false alarms, of how many networks, and both for each number of classes."""
    own = {k: row["at 0.05"] for k, row in rows.items() if k != "all" and (int(k) > MANY) == many}
    flagged = sum(round(row["value"] * row["count"]) for row in own.values())
    of_all = rate(flagged, sum(row["count"] for row in own.values()))
    counts = [f"{_share(row)} of {row['count']} with {k} classes" for k, row in own.items()]
    return _share(of_all.as_record()), of_all.count, "; ".join(counts)


def _found_of(power: dict[str, Any], images: int) -> str:
    """How many backdoored networks that nobody tuned on were found, and with how many images."""
    shown = f", each with {CLEAN_IMAGES} clean images," if images else ","
    told = (
        f" Of {power['flagged']['count']} backdoored networks that had no part in choosing the "
        f"test{shown} {_share(power['flagged'])} were flagged, {_share(power['right'])} with the "
        f"right class first{_drawn(power['seeds'])}."
    )
    if (new := power.get("new attacks")) is not None:
        told += (
            f" Of the {new['flagged']['count']} of them whose {new['attacks']} attacks had no "
            f"part in it either, {_share(new['flagged'])}."
        )
    if 0 < images < CLEAN_IMAGES:
        told += f" This scan had {images}; fewer images find less."
    return told


@functools.cache
def _together() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = packaged(TOGETHER)["power"]
    return rows


def _drawn(seeds: int) -> str:
    return f", on average over {seeds} draws of clean images" if seeds > 1 else ""


def _share(rate: Mapping[str, Any]) -> str:
    low, high = (f"{100 * rate[end]:.0f}" for end in ("low", "high"))
    return f"{100 * rate['value']:.0f} % (95 %: {low} to {high})"
