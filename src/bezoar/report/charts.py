"""Where things lie in the pictures: axes and marks, in per cent of the width of a plot.

Positions are relative so that a plot may be as wide as the page while its letters keep their size.
The templates in ``charts.html.j2`` draw what is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bezoar.report import fields, words


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    x: float
    label: str


@dataclass(frozen=True)
class Scale:
    """A linear axis from ``low`` to ``high``."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Where ``value`` lies, in per cent of the width, held inside the plot."""
        share = (value - self.low) / (self.high - self.low)
        return round(min(max(100 * share, 0.0), 100.0), 2)

    def ticks(self, *, as_percent: bool = False, about: int = 4) -> list[Tick]:
        """Round numbers along the axis, some three to seven."""
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
        decimals = min(max(-math.floor(math.log10(step) + 1e-9), 0), 12)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        found = [place * step for place in range(first, min(last, first + 12) + 1)]
        if as_percent:
            return [
                Tick(self.at(place), f"{100 * place:.{max(decimals - 2, 0)}f}\u00a0%")
                for place in found
            ]
        return [Tick(self.at(place), words.measure(place, decimals)) for place in found]


def scale_of(values: Sequence[float], *, floor: float | None = None) -> Scale:
    """An axis that holds ``values`` with a margin; it starts at ``floor`` where that is near."""
    low, high = _range(values) if values else (0.0, 1.0)
    span = high - low
    start = low - 0.06 * span
    if floor is not None and low >= floor and start - floor < 0.35 * span:
        start = floor
    return Scale(start, high + 0.06 * span)


@dataclass(frozen=True)
class Share:
    """A measured share with its 95 % interval, as the record gives it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int | None = None

    @classmethod
    def read(cls, value: object) -> Share:
        """Reads a plain number, or a mapping with value, low, high and count."""
        if not isinstance(value, Mapping):
            return cls(fields.number(value))
        low, high = fields.number(value.get("low")), fields.number(value.get("high"))
        if low is not None and high is not None and low > high:
            low = high = None
        return cls(fields.number(value.get("value")), low, high, fields.index(value.get("count")))

    @property
    def words(self) -> str:
        """The value: ``84.8 %``."""
        return words.percent(self.value)

    @property
    def interval(self) -> str:
        """The ends of the interval, or nothing."""
        return words.interval(self.low, self.high)


@dataclass(frozen=True)
class IntervalRow:
    """One share on an axis: a dot at ``x`` with a whisker from ``low`` to ``high``."""

    label: str
    share: Share
    x: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class IntervalChart:
    """Shares with whiskers, one below the other."""

    title: str
    caption: str
    rows: list[IntervalRow]
    ticks: list[Tick]
    whiskers: str


def interval_chart(
    title: str,
    caption: str,
    shares: Sequence[tuple[str, Share]],
    *,
    whiskers: str = "95 % intervals",
) -> IntervalChart | None:
    """Draws named shares on one axis of per cent, zoomed to where they are."""
    shown = [
        place
        for _, share in shares
        for place in (share.value, share.low, share.high)
        if place is not None
    ]
    if not any(share.value is not None for _, share in shares):
        return None
    low, high = min(shown), max(shown)
    room = max(0.1 - (high - low), 0.0) / 2
    padded = scale_of([low - room, high + room])
    lowest, highest = min(low, 0.0), max(high, 1.0)
    axis = Scale(max(padded.low, lowest), min(padded.high, highest))
    rows = [
        IntervalRow(
            label,
            share,
            *(
                None if place is None else axis.at(place)
                for place in (share.value, share.low, share.high)
            ),
        )
        for label, share in shares
    ]
    ticks = axis.ticks(as_percent=True)
    return IntervalChart(title, caption, rows, ticks, whiskers)


@dataclass(frozen=True)
class Bar:
    """A quantity as a bar of ``width`` per cent."""

    label: str
    note: str
    width: float
    words: str


def bars(rows: Sequence[tuple[str, str, float | None]]) -> list[Bar]:
    """Bars as long as their numbers, relative to the largest."""
    largest = max((value for _, _, value in rows if value is not None), default=0.0)
    return [
        Bar(
            label,
            note,
            round(100 * max(fields.ratio(value or 0.0, largest), 0.0), 2),
            words.percent(value),
        )
        for label, note, value in rows
    ]


@dataclass(frozen=True)
class Curve:
    """A curve in a box of 100 by 100: ``lines`` are the points of its unbroken pieces."""

    name: str
    x_name: str
    lines: list[str]
    dots: list[tuple[float, float]]
    top: str
    bottom: str
    first: str
    last: str
    end: str


def curve(
    name: str, x_name: str, xs: Sequence[float | None], ys: Sequence[float | None]
) -> Curve | None:
    """Places a curve in its box; a missing number breaks the line, long curves are thinned."""
    if not xs:
        xs = [float(step + 1) for step in range(len(ys))]
    pairs = list(zip(xs, ys, strict=False))
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    if not known:
        return None
    heights = [y for _, y in known]
    across = Scale(*_range([x for x, _ in known]))
    up = scale_of(heights, floor=0.0)
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in _thinned(pairs):
        if x is None or y is None:
            pieces.append([])
        else:
            pieces[-1].append((across.at(x), round(100 - up.at(y), 2)))
    decimals = words.column_decimals(heights)
    return Curve(
        name=name,
        x_name=x_name,
        lines=[" ".join(f"{x:g},{y:g}" for x, y in piece) for piece in pieces if len(piece) > 1],
        dots=[piece[0] for piece in pieces if len(piece) == 1],
        top=words.measure(max(heights), decimals),
        bottom=words.measure(min(heights), decimals),
        first=words.measure(known[0][0], _whole(known[0][0])),
        last=words.measure(known[-1][0], _whole(known[-1][0])),
        end=words.measure(heights[-1], decimals),
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the values, moved apart where they are all but the same."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low > 1e-9 * size and high - low > 1e-90:
        return low, high
    room = size if size > 1e-90 else 1.0
    return low - room / 2, high + room / 2


def _whole(value: float) -> int | None:
    return 0 if value == int(value) else None


def _thinned(
    pairs: Sequence[tuple[float | None, float | None]], buckets: int = 120
) -> list[tuple[float | None, float | None]]:
    """Keeps the first, lowest, highest and last point of every bucket, so that no spike is lost."""
    size = math.ceil(len(pairs) / buckets)
    if size <= 4:
        return list(pairs)
    kept: list[tuple[float | None, float | None]] = []
    for start in range(0, len(pairs), size):
        bucket = pairs[start : start + size]
        known = [place for place, (x, y) in enumerate(bucket) if x is not None and y is not None]
        if not known:
            kept.append((None, None))
            continue
        heights = {place: bucket[place][1] or 0.0 for place in known}
        extremes = (min(known, key=heights.__getitem__), max(known, key=heights.__getitem__))
        kept += [bucket[place] for place in sorted({known[0], *extremes, known[-1]})]
    return kept
