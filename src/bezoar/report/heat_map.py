"""DER of every method against every attack, as a table of coloured cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words

# Cells above this share of the colour scale have their letters in the other colour; with the
# colours of the style sheet every letter then has a contrast of at least 4.5 in both schemes.
SWITCH = 70


@dataclass(frozen=True)
class HeatCell:
    """One attack of one method.

    Attributes:
        text: the DER in per cent, or why there is none, in a word.
        share: of the colour scale, in [0, 100]; None where the cell is hatched.
        told: everything that is known of it, in words.
        partial: some of its runs failed or are still to be done.
    """

    text: str
    share: int | None
    told: str
    partial: bool = False

    @property
    def high(self) -> bool:
        """Whether its letters take the other colour."""
        return self.share is not None and self.share > SWITCH


@dataclass(frozen=True)
class HeatRow:
    """One method."""

    label: str
    cells: list[HeatCell]


@dataclass(frozen=True)
class HeatGroup:
    """The methods with one budget."""

    images: str
    title: str
    rows: list[HeatRow]


@dataclass(frozen=True)
class HeatMap:
    """The whole table."""

    attacks: list[str]
    groups: list[HeatGroup]
    partial: bool
    hatched: bool


Cell = tuple[float, str, str]
"""Images, label and attack."""


def heat_map(
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    attacks: Sequence[str],
) -> HeatMap | None:
    """Reads rows and runs of one half of the pool; None where there is nothing to show.

    References are left out: without a defense the DER is 50 % everywhere.
    """
    states: dict[Cell, dict[str, int]] = {}
    for run in runs:
        if run.get("status") == "backdoored":
            images = fields.number(run.get("images")) or 0.0
            cell = images, str(run.get("label")), str(run.get("attack"))
            found = states.setdefault(cell, {"done": 0, "failed": 0, "missing": 0})
            state = str(run.get("state"))
            found[state] = found.get(state, 0) + 1
    columns = [attack for attack in attacks if any(cell[2] == attack for cell in states)]
    groups: dict[float, list[HeatRow]] = {}
    for row in rows:
        if row.get("role") == "reference":
            continue
        images, label = fields.number(row.get("images")) or 0.0, str(row.get("label"))
        cells = [_cell(row, attack, states.get((images, label, attack))) for attack in columns]
        groups.setdefault(images, []).append(HeatRow(fields.text(label, 120), cells))
    if not columns or not groups:
        return None
    everything = [cell for found in groups.values() for row in found for cell in row.cells]
    return HeatMap(
        attacks=list(columns),
        groups=[
            HeatGroup(f"{images:.0f}", budget_in_words(images), found)
            for images, found in groups.items()
        ],
        partial=any(cell.partial for cell in everything),
        hatched=any(cell.share is None for cell in everything),
    )


def budget_in_words(images: float) -> str:
    """A budget as a heading: ``500 clean images``, ``no clean image``."""
    return words.plural(round(images), "clean image") if images else "no clean image"


def _cell(row: Mapping[str, Any], attack: str, states: Mapping[str, int] | None) -> HeatCell:
    about = fields.mapping(fields.mapping(row.get("attacks")).get(attack))
    der = fields.number(about.get("der"))
    failed, missing = ((states or {}).get(state, 0) for state in ("failed", "missing"))
    gaps = [f"{count} {name}" for count, name in ((failed, "failed"), (missing, "to do")) if count]
    if der is None:
        text = "failed" if failed else "to do" if missing else "not run"
        why = ", ".join(gaps) or "the benchmark has no such run"
        return HeatCell(text, None, f"{attack}: no DER; {why}")
    parts = [
        f"{attack}: DER {words.percent(der)}",
        f"ASR {words.percent(fields.number(about.get('asr_after')))}",
        f"ACC drop {words.points(fields.number(about.get('acc_drop')))}",
        words.plural(fields.index(about.get("models")) or 0, "model"),
        *gaps,
    ]
    share = round(100 * min(max((der - 0.5) / 0.5, 0.0), 1.0))
    return HeatCell(words.in_percent(der), share, ", ".join(parts), partial=bool(gaps))
