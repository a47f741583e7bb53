"""The plane of ACC drop and ASR after: one dot a method, one picture a budget of clean images.

Both axes are stretched near zero (inverse hyperbolic sine), since that is where repairs that work
differ. A picture has a fixed size in its own pixels, so that names can be placed without covering
one another; the page shrinks it as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.report.charts import Tick
from bezoar.report.heat_map import budget_in_words
from bezoar.report.labels import LETTER, LINE, Box, Label, place

WIDTH, HEIGHT = 560, 440
ROOM = Box(48.0, 14.0, 548.0, 392.0)  # where dots and names are; the axes lie around it
# The corner is what the column "removed" counts, see bezoar.bench.summary.
CORNER_ASR, CORNER_DROP = 0.10, 0.05
_UNIT_DROP, _UNIT_ASR = 0.02, 0.05  # below this the axes are all but linear
_TICKS = (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_TARGET = f"target: ASR ≤ {100 * CORNER_ASR:.0f} %, loss ≤ {100 * CORNER_DROP:.0f} points"
_LONGEST = 24  # letters of a name in the picture


@dataclass(frozen=True)
class Dot:
    """A method: its place in pixels, what it is, and where its name stands."""

    x: float
    y: float
    kind: str
    name: str
    told: str
    label: Label | None


@dataclass(frozen=True)
class Plane:
    """One picture.

    Attributes:
        images: the budget.
        title: the budget in words.
        dots: the methods and the references.
        across: ticks of ACC drop.
        up: ticks of ASR; their ``x`` is a height.
        corner: the right and the upper edge of the target corner.
        target: what the corner is called.
        named: where that name starts.
        unnamed: how many dots have no name in the picture.
    """

    images: str
    title: str
    dots: list[Dot]
    across: list[Tick]
    up: list[Tick]
    corner: tuple[float, float]
    target: str
    named: tuple[float, float]
    unnamed: int


@dataclass(frozen=True)
class _Stretched:
    """An axis that is stretched near zero, from ``start`` to ``end`` in pixels."""

    low: float
    high: float
    unit: float
    start: float
    end: float

    def at(self, value: float) -> float:
        low, high, here = (math.asinh(v / self.unit) for v in (self.low, self.high, value))
        share = min(max((here - low) / (high - low), 0.0), 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, apart: float) -> list[Tick]:
        """Round numbers at least so many pixels apart; zero is always there."""
        inside = [value for value in _TICKS if self.low <= value <= self.high]
        kept: list[float] = []
        for value in sorted(inside, key=abs):
            if all(abs(self.at(value) - self.at(other)) >= apart for other in kept):
                kept.append(value)
        return [
            Tick(self.at(value), f"{100 * value:g}".replace("-", words.MINUS))
            for value in sorted(kept)
        ]


def planes(rows: Sequence[Mapping[str, Any]]) -> list[Plane]:
    """One picture for every budget of one half of the pool, all with the same axes."""
    measured = [row for row in rows if _point(row) is not None]
    references = [row for row in measured if row.get("role") == "reference"]
    others = [row for row in measured if row.get("role") != "reference"]
    if not others:
        return []
    drops = [point[0] for row in measured if (point := _point(row))]
    across = _Stretched(
        min(*drops, -0.01) - 0.002, max(*drops, 1.2 * CORNER_DROP) * 1.1, _UNIT_DROP,
        ROOM.left + 8, ROOM.right - 8,
    )  # fmt: skip
    up = _Stretched(0.0, 1.0, _UNIT_ASR, ROOM.bottom - 8, ROOM.top + 8)
    budgets = sorted({fields.number(row.get("images")) or 0.0 for row in others})
    return [
        _plane(
            images,
            [row for row in others if (fields.number(row.get("images")) or 0.0) == images]
            + references,
            across,
            up,
        )
        for images in budgets
    ]


def _plane(
    images: float, rows: Sequence[Mapping[str, Any]], across: _Stretched, up: _Stretched
) -> Plane:
    points = [point for row in rows if (point := _point(row))]
    places = [(across.at(drop), up.at(asr)) for drop, asr in points]
    names = [_short(fields.text(row.get("label"), 120)) for row in rows]
    corner = across.at(CORNER_DROP), up.at(CORNER_ASR)
    sign = _sign(corner, places)
    labels = place(places, names, ROOM, taken=[sign])
    dots = [
        Dot(
            x=x,
            y=y,
            kind=_kind(row),
            name=name,
            told=f"{fields.text(row.get('label'), 120)}: ACC drop {words.points(drop)}, "
            f"ASR {words.percent(asr)}",
            label=label,
        )
        for row, (drop, asr), (x, y), name, label in zip(
            rows, points, places, names, labels, strict=True
        )
    ]
    return Plane(
        images=f"{images:.0f}",
        title=budget_in_words(images),
        dots=dots,
        across=across.ticks(26),
        up=up.ticks(18),
        corner=corner,
        target=_TARGET,
        named=(round(sign.left, 1), round(sign.bottom - 4, 1)),
        unnamed=sum(label is None for label in labels),
    )


def _sign(corner: tuple[float, float], dots: Sequence[tuple[float, float]]) -> Box:
    """Where the name of the corner covers the fewest dots: along its edges, or right of it."""
    right, top = corner
    width = LETTER * len(_TARGET)
    starts = (
        (right - width - 4, top + 2), (ROOM.left + 4, top + 2), (right + 6, ROOM.bottom - LINE - 4),
        (right + 6, top + 2), (ROOM.left + 4, ROOM.bottom - LINE - 4),
    )  # fmt: skip
    boxes = [Box(x, y, x + width, y + LINE) for x, y in starts]
    return min(boxes, key=lambda box: sum(box.near(dot, 7.0) for dot in dots))


def _point(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """(ACC drop, ASR after), the means over models."""
    drop = fields.number(fields.mapping(row.get("acc_drop")).get("mean"))
    asr = fields.number(fields.mapping(row.get("asr_after")).get("mean"))
    return None if drop is None or asr is None else (drop, asr)


def _kind(row: Mapping[str, Any]) -> str:
    """What mark it gets."""
    if row.get("role") == "reference":
        return "twin" if row.get("label") == "clean twin" else "undefended"
    return "control" if row.get("role") == "control" else "method"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
