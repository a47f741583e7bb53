"""The per-class statistic against its null as a picture: one dot a class, smallest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bezoar.report import fields, words
from bezoar.report.charts import Scale, Tick, scale_of

ALL_SHOWN = 40  # up to so many classes each has a row
SMALLEST_SHOWN = 20  # of more classes only the smallest have one
BINS = 48


@dataclass(frozen=True)
class ClassRow:
    """One class: its dot lies at ``x``; None where the class has no value."""

    name: str
    index: int
    suspect: bool
    x: float | None
    value: str
    p_value: str


@dataclass(frozen=True)
class Mark:
    """A vertical line of the null with its name."""

    kind: str
    label: str
    x: float


@dataclass(frozen=True)
class HistogramBar:
    """A column of the histogram over all classes, in per cent of the plot and of the height."""

    x: float
    width: float
    height: float


@dataclass(frozen=True)
class Key:
    """An entry of the legend."""

    kind: str
    label: str


@dataclass(frozen=True)
class ClassChart:
    """Everything that the picture shows, in words and in per cent of its width."""

    rows: list[ClassRow]
    classes: int
    marks: list[Mark]
    band: float | None
    stem: float
    histogram: list[HistogramBar]
    ticks: list[Tick]
    legend: list[Key]
    notes: list[str]
    description: str


@dataclass(frozen=True)
class Null:
    """What backdoor-free models show: values of the statistic and the two levels.

    ``decides`` is false where the witness is one of several whose p-values are combined, so that a
    value beyond its limits alone makes no verdict.
    """

    median: float | None
    suspicious: float | None
    found: float | None
    suspicious_level: float | None
    found_level: float | None
    decides: bool = True

    def label(self, kind: str) -> str:
        """What the line of a verdict is called."""
        level = self.found_level if kind == "found" else self.suspicious_level
        return kind if self.decides or level is None else f"{100 * level:.4g} % level"


def class_chart(
    names: Sequence[str],
    values: Sequence[float | None],
    p_values: Sequence[float | None],
    order: Sequence[int],
    suspects: Sequence[int],
    null: Null,
    absence: str = "",
) -> ClassChart | None:
    """Lays out the picture; None where no class has a value.

    Args:
        names: the name of every class.
        values: the statistic of every class; None where it has none.
        p_values: of every class.
        order: all class indices in the order of the rows.
        suspects: the flagged classes; they always have a row.
        null: what the values are judged against.
        absence: why a class can be without a value.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    axis, marks, notes = _axis_and_marks(known, null)
    shown = list(order)
    if len(order) > ALL_SHOWN:
        flagged = set(suspects)
        first = order[:SMALLEST_SHOWN]
        shown = [*first, *(place for place in order[SMALLEST_SHOWN:] if place in flagged)]
        shown = shown[: SMALLEST_SHOWN + ALL_SHOWN]
    decimals = words.column_decimals(known)
    rows = [
        ClassRow(
            name=names[place],
            index=place,
            suspect=place in suspects,
            x=None if (value := fields.at(values, place)) is None else axis.at(value),
            value=words.measure(value, decimals),
            p_value=words.p_value(fields.at(p_values, place)),
        )
        for place in shown
    ]
    if any(row.x is None for row in rows):
        because = absence or "no such change of the network exists"
        notes.append(f"A class without a dot has no value: {because}.")
    at_marks = {mark.kind: mark.x for mark in marks}
    return ClassChart(
        rows=rows,
        classes=len(order),
        marks=marks,
        band=at_marks.get("suspicious"),
        stem=at_marks.get("median", 100.0),
        histogram=_histogram(known, axis) if len(order) > ALL_SHOWN else [],
        ticks=axis.ticks(),
        legend=_legend(null, marks),
        notes=notes,
        description=_description(rows, len(order)),
    )


def _axis_and_marks(known: Sequence[float], null: Null) -> tuple[Scale, list[Mark], list[str]]:
    places = [
        ("found", null.label("found"), null.found),
        ("suspicious", null.label("suspicious"), null.suspicious),
        ("median", "median", null.median),
    ]
    shown = list(known)
    span = max(known) - min(known) or abs(known[0]) or 1.0
    notes: list[str] = []
    drawn: list[tuple[str, str, float]] = []
    for kind, label, place in places:
        if place is None:
            continue
        # A line farther outside would squeeze all dots into one corner.
        if min(known) - 8 * span <= place <= max(known) + 8 * span:
            drawn.append((kind, label, place))
            shown.append(place)
        else:
            side = "left" if place < min(known) else "right"
            notes.append(
                f"The line “{label}” lies at {words.measure(place)}, beyond the {side} edge."
            )
    axis = scale_of(shown, floor=0.0)
    return axis, [Mark(kind, label, axis.at(place)) for kind, label, place in drawn], notes


def _histogram(known: Sequence[float], axis: Scale) -> list[HistogramBar]:
    counts = [0] * BINS
    for value in known:
        counts[min(int(axis.at(value) / 100 * BINS), BINS - 1)] += 1
    highest = max(counts)
    width = 100 / BINS
    return [
        HistogramBar(round(place * width, 2), round(width, 2), round(100 * number / highest, 1))
        for place, number in enumerate(counts)
        if number
    ]


def _legend(null: Null, marks: Sequence[Mark]) -> list[Key]:
    drawn = {mark.kind for mark in marks}
    entries: list[Key] = []
    for kind, value, level in (
        ("found", null.found, null.found_level),
        ("suspicious", null.suspicious, null.suspicious_level),
    ):
        if kind not in drawn:
            continue
        if null.decides:
            share = "" if level is None else f" ({100 * level:.4g} % level)"
            entries.append(Key(kind, f"{kind} below {words.measure(value)}{share}"))
        else:
            alone = f"{null.label(kind)} of this witness alone: below {words.measure(value)}"
            entries.append(Key(kind, alone))
    if "median" in drawn:
        entries.append(Key("median", f"median {words.measure(null.median)}"))
    if "suspicious" in drawn and null.suspicious_level is not None:
        often = f"{100 * (1 - null.suspicious_level):.4g}"
        entries.append(
            Key(
                "band", f"where every class of a backdoor-free model lies, in {often} of 100 models"
            )
        )
    return entries


def _description(rows: Sequence[ClassRow], classes: int) -> str:
    smallest = rows[0]
    flagged = [f"{row.name} ({row.value})" for row in rows if row.suspect]
    told = f"{words.plural(classes, 'class', 'classes')}, smallest value first. "
    told += f"The smallest is {smallest.name} at {smallest.value}. "
    return told + (f"Flagged: {words.listed(flagged)}." if flagged else "No class is flagged.")
