"""The record of a scan as the page shows it: verdict, reasons, the chart, the evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.report.class_chart import ClassChart, Null, class_chart
from bezoar.report.class_table import Table, class_table
from bezoar.report.votes_map import VotesMap, votes_map
from bezoar.wording import NO_PROOF

STATES = {"backdoor found": "found", "suspicious": "suspicious", "nothing found": "nothing"}
MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Figure:
    """A key figure: a label, the figure, and what it is to be read against."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Statistic:
    """One witness's number for each class, as a picture, and what it is judged against."""

    title: str
    null: str
    chart: ClassChart


@dataclass(frozen=True)
class Evidence:
    """What one method contributed."""

    method: str
    facts: list[Figure]
    votes: VotesMap | None
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
    statistics: list[Statistic]
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
    scores = fields.items(statistic.get("scores"))
    p_values = fields.numbers(scan.get("p_values"))
    evidence = [fields.mapping(item) for item in fields.items(scan.get("evidence"))]
    names = _names(scan, outer or {}, max(len(values), len(scores), len(p_values)))
    suspects = [
        place
        for place in map(fields.index, fields.items(scan.get("suspects")))
        if place is not None
    ]
    order = _order(scan.get("ranking"), values, len(names))
    verdict = fields.text(scan.get("verdict"))
    state = STATES.get(verdict, "unknown")
    power = fields.text(scan.get("power"), 3000)
    if state == "nothing" and "no proof" not in power.lower():
        power = f"{power} {NO_PROOF}.".strip()
    known_p = [value for value in p_values if value is not None]
    smallest_p = words.p_value(min(known_p, default=None))
    flagged = [fields.name_of(names, place) for place in suspects]
    return Scan(
        verdict=(verdict[:1].upper() + verdict[1:]) or "No verdict",
        state=state,
        sentence=fields.text(scan.get("sentence"), 1000),
        reasons=fields.texts(scan.get("reasons"), 2000),
        power=power,
        suspects=flagged,
        figures=_figures(flagged, suspects, order, names, smallest_p, scan, evidence),
        statistics=_statistics(names, order, suspects, scan, evidence),
        table=class_table(names, order, suspects, statistic, p_values, evidence),
        evidence=[_evidence(item, names) for item in evidence if item],
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


def _statistics(
    names: Sequence[str],
    order: Sequence[int],
    suspects: Sequence[int],
    scan: Mapping[str, Any],
    evidence: Sequence[Mapping[str, Any]],
) -> list[Statistic]:
    """The picture of the witness that decided, then those of the others, if there are any."""
    first = fields.mapping(scan.get("statistic"))
    if len(evidence) < 2:
        p_values = fields.numbers(scan.get("p_values"))
        chart = _chart(names, p_values, order, suspects, first, scan, 1)
        return [] if chart is None else [Statistic(_title(first), _null_in_words(first), chart)]
    given = [fields.mapping(item.get("statistic")) for item in evidence]
    given.sort(key=lambda item: item.get("method") != first.get("method"))
    found = []
    for statistic in given:
        values = fields.numbers(statistic.get("values"))
        own = _order(None, values, len(names))  # each by its own numbers, smallest first
        p_values = fields.numbers(statistic.get("p_values"))
        chart = _chart(names, p_values, own, suspects, statistic, scan, len(evidence))
        if chart is not None:
            method = fields.text(statistic.get("method"), 40)
            title = f"{method}: {_title(statistic)}"
            found.append(Statistic(title, _null_in_words(statistic), chart))
    return found


def _chart(
    names: Sequence[str],
    p_values: Sequence[float | None],
    order: Sequence[int],
    suspects: Sequence[int],
    statistic: Mapping[str, Any],
    scan: Mapping[str, Any],
    witnesses: int,
) -> ClassChart | None:
    return class_chart(
        names,
        fields.numbers(statistic.get("values")),
        p_values,
        order,
        suspects,
        _null(statistic, scan, witnesses),
        absence=fields.text(statistic.get("absence"), 200),
    )


def _null(statistic: Mapping[str, Any], scan: Mapping[str, Any], witnesses: int) -> Null:
    """Where the limits lie; where the witnesses share the levels, each has its part of them.

    Where their p-values are combined, no limit of one witness decides.
    """
    null = fields.mapping(statistic.get("null"))
    levels = fields.mapping(scan.get("levels"))
    suspicious, found = (fields.number(levels.get(key)) for key in ("suspicious", "found"))
    together = fields.number(fields.mapping(scan.get("combined")).get("factor")) is not None
    parts = 1 if together else witnesses
    return Null(
        median=fields.number(null.get("median")),
        suspicious=fields.number(null.get("critical_suspicious")),
        found=fields.number(null.get("critical_found")),
        suspicious_level=None if suspicious is None else suspicious / parts,
        found_level=None if found is None else found / parts,
        decides=not together,
    )


def _title(statistic: Mapping[str, Any]) -> str:
    title = fields.text(statistic.get("name"), 200) or "Statistic of each class"
    unit = fields.text(statistic.get("unit"), 40)
    return f"{title}, in {unit}" if unit else title


def _null_in_words(statistic: Mapping[str, Any]) -> str:
    return fields.text(fields.mapping(statistic.get("null")).get("description")).rstrip(".")


def _figures(
    flagged: Sequence[str],
    suspects: Sequence[int],
    order: Sequence[int],
    names: Sequence[str],
    smallest_p: str,
    scan: Mapping[str, Any],
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
    several = len(evidence) > 1
    if smallest_p != words.DASH:
        corrected = f"corrected for {words.plural(len(order), 'class', 'classes')}"
        methods = f" and {len(evidence)} methods" if several else ""
        figures.append(Figure("Smallest p-value", smallest_p, corrected + methods))
    statistic = fields.mapping(scan.get("statistic"))
    value = fields.at(fields.numbers(statistic.get("values")), first)
    if value is not None:
        null = _null(statistic, scan, max(len(evidence), 1))
        limits = [
            f"{name} below {words.measure(limit)}"
            for name, limit in (("suspicious", null.suspicious), ("found", null.found))
            if limit is not None and null.decides
        ]
        unit = fields.text(statistic.get("unit"), 40)
        label = f"Its {fields.text(statistic.get('value'), 40)}" if several else "Its statistic"
        figures.append(Figure(label, f"{words.measure(value)} {unit}".strip(), ", ".join(limits)))
    for item in evidence:
        flips = fields.numbers(fields.mapping(item.get("per_class")).get("held_out_flip"))
        flip = fields.at(flips, first)
        if flip is not None and _decided(item, statistic):
            carrier = fields.text(statistic.get("carrier"), 40) or "shift"
            note = f"of the held-out images, by one {carrier}"
            figures.append(Figure("Carried into it", words.percent(flip), note))
            break
    return figures


def _decided(item: Mapping[str, Any], statistic: Mapping[str, Any]) -> bool:
    """Whether the first statistic of the record is this witness's (older ones name none)."""
    return "method" not in statistic or item.get("method") == statistic.get("method")


def _evidence(item: Mapping[str, Any], names: Sequence[str]) -> Evidence:
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
        votes=votes_map(item, names),
        details=fields.block(item.get("details")),
    )
