"""The record of a scan as the page shows it: verdict, reasons, the chart, the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.report.class_chart import ALL_SHOWN, SMALLEST_SHOWN, ClassChart, Null, class_chart

STATES = {"backdoor found": "found", "suspicious": "suspicious", "nothing found": "nothing"}
MOST_CLASSES = 1_000_000
NO_PROOF = "This is no proof that the model has no backdoor."

# Column titles of the numbers per class that the methods are known to give, and their format.
_COLUMNS = {
    "predicted": ("Images answered so", "number"),
    "norm": ("Shift length", "number"),
    "held_out_flip": ("Held-out images carried", "share"),
    "weight_norm": ("Weight length", "number"),
}


@dataclass(frozen=True)
class Figure:
    """A key figure: a label, the figure, and what it is to be read against."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first cell of a row names it."""

    caption: str
    header: list[str]
    rows: list[tuple[bool, list[str]]]
    note: str


@dataclass(frozen=True)
class Evidence:
    """What one method contributed."""

    method: str
    facts: list[Figure]
    details: str


@dataclass(frozen=True)
class Scan:
    """A scan in words and pictures."""

    verdict: str
    state: str
    sentence: str
    reasons: list[str]
    power: str
    suspects: list[str]
    figures: list[Figure]
    statistic: str
    null: str
    chart: ClassChart | None
    table: Table | None
    evidence: list[Evidence]
    smallest_p: str


def read_scan(record: Any, outer: Mapping[str, Any] | None = None) -> Scan | None:
    """Reads a scan record; None where there is none.

    Args:
        record: the scan, on its own or inside the record of a repair.
        outer: the record it lies in, asked for the class names that the scan does not repeat.
    """
    scan = fields.mapping(record)
    if not scan:
        return None
    statistic = fields.mapping(scan.get("statistic"))
    values = fields.numbers(statistic.get("values"))
    scores = fields.numbers(statistic.get("scores"))
    p_values = fields.numbers(scan.get("p_values"))
    names = _names(scan, outer or {}, max(len(values), len(scores), len(p_values)))
    suspects = [
        place
        for place in map(fields.index, fields.items(scan.get("suspects")))
        if place is not None
    ]
    order = _order(scan.get("ranking"), values, len(names))
    null = _null(statistic, scan)
    verdict = fields.text(scan.get("verdict"))
    state = STATES.get(verdict, "unknown")
    power = fields.text(scan.get("power"), 1000)
    if state == "nothing" and "no proof" not in power.lower():
        power = f"{power} {NO_PROOF}".strip()
    title = fields.text(statistic.get("name"), 200)
    known_p = [value for value in p_values if value is not None]
    smallest_p = words.p_value(min(known_p, default=None))
    flagged = [fields.name_of(names, place) for place in suspects]
    evidence = [fields.mapping(item) for item in fields.items(scan.get("evidence"))]
    return Scan(
        verdict=(verdict[:1].upper() + verdict[1:]) or "No verdict",
        state=state,
        sentence=fields.text(scan.get("sentence"), 1000),
        reasons=fields.texts(scan.get("reasons"), 1000),
        power=power,
        suspects=flagged,
        figures=_figures(flagged, suspects, order, names, values, smallest_p, null, evidence),
        statistic=title or "Statistic of each class",
        null=fields.text(fields.mapping(statistic.get("null")).get("description")).rstrip("."),
        chart=class_chart(names, values, p_values, order, suspects, null),
        table=_table(title, names, order, suspects, values, scores, p_values, evidence),
        evidence=[_evidence(item) for item in evidence if item],
        smallest_p=smallest_p,
    )


def _names(scan: Mapping[str, Any], outer: Mapping[str, Any], least: int) -> list[str]:
    given: Sequence[Any] = ()
    for record in (scan, outer):
        given = given or fields.items(fields.mapping(record.get("model")).get("classes"))
    count = min(max(len(given), least), MOST_CLASSES)
    return [fields.name_of(given, place) for place in range(count)]


def _order(ranking: Any, values: Sequence[float | None], classes: int) -> list[int]:
    """The ranking of the record, then any class it forgot, by value."""
    given = [place for place in map(fields.index, fields.items(ranking)) if place is not None]
    order = [place for place in dict.fromkeys(given) if place < classes]
    missing = set(range(classes)) - set(order)
    return order + sorted(
        missing,
        key=lambda place: (
            math.inf if (value := fields.at(values, place)) is None else value,
            place,
        ),
    )


def _null(statistic: Mapping[str, Any], scan: Mapping[str, Any]) -> Null:
    null = fields.mapping(statistic.get("null"))
    levels = fields.mapping(scan.get("levels"))
    return Null(
        median=fields.number(null.get("median")),
        suspicious=fields.number(null.get("critical_suspicious")),
        found=fields.number(null.get("critical_found")),
        suspicious_level=fields.number(levels.get("suspicious")),
        found_level=fields.number(levels.get("found")),
    )


def _figures(
    flagged: Sequence[str],
    suspects: Sequence[int],
    order: Sequence[int],
    names: Sequence[str],
    values: Sequence[float | None],
    smallest_p: str,
    null: Null,
    evidence: Sequence[Mapping[str, Any]],
) -> list[Figure]:
    if not order:
        return []
    first = suspects[0] if suspects else order[0]
    figures = [
        Figure(
            "Suspected target class" if len(flagged) == 1 else "Suspected target classes",
            words.listed(flagged),
            "class " + words.listed([str(place) for place in suspects]),
        )
        if flagged
        else Figure("Most unusual class", fields.name_of(names, first), "not flagged")
    ]
    if smallest_p != words.DASH:
        classes = words.plural(len(order), "class", "classes")
        figures.append(Figure("Smallest p-value", smallest_p, f"corrected for {classes}"))
    value = fields.at(values, first)
    if value is not None:
        limits = [
            f"{name} below {words.measure(limit)}"
            for name, limit in (("suspicious", null.suspicious), ("found", null.found))
            if limit is not None
        ]
        figures.append(Figure("Its statistic", words.measure(value), ", ".join(limits)))
    for item in evidence:
        flips = fields.numbers(fields.mapping(item.get("per_class")).get("held_out_flip"))
        flip = fields.at(flips, first)
        if flip is not None:
            note = "of the held-out images, by one shift"
            figures.append(Figure("Carried into it", words.percent(flip), note))
            break
    return figures


def _table(
    title: str,
    names: Sequence[str],
    order: Sequence[int],
    suspects: Sequence[int],
    values: Sequence[float | None],
    scores: Sequence[float | None],
    p_values: Sequence[float | None],
    evidence: Sequence[Mapping[str, Any]],
) -> Table | None:
    columns: list[tuple[str, str, Sequence[float | None]]] = [
        ("Statistic", "number", values),
        ("Score", "number", scores),
        ("p-value", "p", p_values),
    ]
    for item in evidence:
        for key, given in list(fields.mapping(item.get("per_class")).items())[:8]:
            column = fields.numbers(given)
            if column == list(values):
                continue
            heading, kind = _COLUMNS.get(key, (fields.text(key, 40).replace("_", " "), "number"))
            if len(evidence) > 1:
                heading = f"{fields.text(item.get('method'), 40)}: {heading}"
            columns.append((heading, kind, column))
    columns = [item for item in columns if any(value is not None for value in item[2])]
    if not order or not columns:
        return None
    shown = order if len(order) <= ALL_SHOWN else order[:SMALLEST_SHOWN]
    cells = [
        _formatted(kind, [fields.at(column, place) for place in shown])
        for _, kind, column in columns
    ]
    rows = [
        (place in suspects, [names[place], str(place), *(column[rank] for column in cells)])
        for rank, place in enumerate(shown)
    ]
    note = ""
    if len(shown) < len(order):
        note = (
            f"The first {len(shown)} of {len(order):,} classes; the JSON record holds all of them."
        )
    header = ["Class", "Index", *(heading for heading, _, _ in columns)]
    caption = f"All numbers by class, most unusual first. Statistic: {title or 'see above'}."
    return Table(caption, header, rows, note)


def _formatted(kind: str, column: Sequence[float | None]) -> list[str]:
    if kind == "p":
        return [words.p_value(value) for value in column]
    if kind == "share":
        return [words.percent(value) for value in column]
    decimals = words.column_decimals(column)
    return [words.measure(value, decimals) for value in column]


def _evidence(item: Mapping[str, Any]) -> Evidence:
    facts = [Figure("Paper", fields.text(item.get("paper")))]
    residual = fields.number(item.get("kkt_residual"))
    if residual is not None:
        note = "how far the solution is from optimal; 0 is exact"
        facts.append(Figure("KKT residual", words.measure(residual), note))
    took = fields.number(item.get("seconds"))
    if took is not None:
        facts.append(Figure("Time", words.seconds(took)))
    return Evidence(
        method=fields.text(item.get("method")) or "unnamed method",
        facts=[fact for fact in facts if fact.value],
        details=fields.block(item.get("details")),
    )
