"""The numbers of every class as a table: what each witness saw, and the p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.report.class_chart import ALL_SHOWN, SMALLEST_SHOWN

Column = tuple[str, str, Sequence[float | None]]  # heading, format, numbers

# Column titles of the numbers per class that the methods are known to give, and their format.
_COLUMNS = {
    "predicted": ("Images answered so", "number"),
    "norm": ("Shift length", "number"),
    "held_out_flip": ("Held-out images carried", "share"),
    "weight_norm": ("Weight length", "number"),
    "anomaly_index": ("Anomaly index", "number"),
}


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first cell of a row names it."""

    caption: str
    header: list[str]
    rows: list[tuple[bool, list[str]]]
    note: str


def class_table(
    names: Sequence[str],
    order: Sequence[int],
    suspects: Sequence[int],
    statistic: Mapping[str, Any],
    p_values: Sequence[float | None],
    evidence: Sequence[Mapping[str, Any]],
) -> Table | None:
    """The table; None where there is no number.

    Args:
        names: the name of every class.
        order: all class indices in the order of the rows.
        suspects: the flagged classes.
        statistic: of the witness that decided.
        p_values: of every class, over all witnesses.
        evidence: the record of each witness.
    """
    columns = _one(statistic, p_values, evidence)
    caption = (
        "All numbers by class, most unusual first. Statistic: "
        f"{fields.text(statistic.get('name'), 200) or 'see above'}."
    )
    if len(evidence) > 1:
        columns = _several(p_values, evidence)
        caption = (
            "All numbers by class, most unusual first. The p-value is that of all methods together."
        )
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
    return Table(caption, ["Class", "Index", *(heading for heading, _, _ in columns)], rows, note)


def _one(
    statistic: Mapping[str, Any],
    p_values: Sequence[float | None],
    evidence: Sequence[Mapping[str, Any]],
) -> list[Column]:
    unit = fields.text(statistic.get("unit"), 40)
    values = fields.numbers(statistic.get("values"))
    return [
        (f"Statistic ({unit})" if unit else "Statistic", "number", values),
        ("Score", "number", fields.numbers(statistic.get("scores"))),
        ("p-value", "p", p_values),
        *(column for item in evidence for column in _per_class(item, values)),
    ]


def _several(
    p_values: Sequence[float | None], evidence: Sequence[Mapping[str, Any]]
) -> list[Column]:
    columns: list[Column] = [("p-value", "p", p_values)]
    further: list[Column] = []
    for item in evidence:
        method = fields.text(item.get("method"), 40)
        statistic = fields.mapping(item.get("statistic"))
        values = fields.numbers(statistic.get("values"))
        unit = fields.text(statistic.get("unit"), 40)
        heading = fields.text(statistic.get("value"), 40) or "statistic"
        columns.append((f"{method}: {heading}{f' ({unit})' if unit else ''}", "number", values))
        further += [
            (f"{method}: {heading[:1].lower()}{heading[1:]}", kind, column)
            for heading, kind, column in _per_class(item, values)
        ]
    return columns + further


def _per_class(item: Mapping[str, Any], values: Sequence[float | None]) -> list[Column]:
    """A witness's further numbers; those that repeat its statistic are left out."""
    columns: list[Column] = []
    for key, given in list(fields.mapping(item.get("per_class")).items())[:8]:
        column = fields.numbers(given)
        if column != list(values):
            heading, kind = _COLUMNS.get(key, (fields.text(key, 40).replace("_", " "), "number"))
            columns.append((heading, kind, column))
    return columns


def _formatted(kind: str, column: Sequence[float | None]) -> list[str]:
    if kind == "p":
        return [words.p_value(value) for value in column]
    if kind == "share":
        return [words.percent(value) for value in column]
    decimals = words.column_decimals(column)
    return [words.measure(value, decimals) for value in column]
