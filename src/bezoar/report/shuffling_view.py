"""The shuffling test of the images of a repair, class by class, as the page shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.report.charts import Share

MOST_ROWS = 12


@dataclass(frozen=True)
class Table:
    """Cells in words, the heading of a row first; ``marked`` says of each row if it stands out."""

    caption: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    marked: list[bool]


def shuffling_table(shuffling: Mapping[str, Any], names: Sequence[Any]) -> Table | None:
    """The shares of the classes that stand out most; None where the record has none.

    Args:
        shuffling: for each class ``own``, the share of its images that keep their label, ``drawn``,
            that of the other images which are given it, and ``p_value``; ``standing_out``.
        names: of the classes.
    """
    standing = set(fields.numbers(shuffling.get("standing_out")))
    found = []
    for key, value in fields.mapping(shuffling.get("per_class")).items():
        seen = fields.mapping(value)
        own, drawn = (Share.read(seen.get(which)) for which in ("own", "drawn"))
        if re.fullmatch("[0-9]{1,6}", str(key)) and own.value is not None:
            k, p = int(key), fields.number(seen.get("p_value"))
            row = (fields.name_of(names, k), own.words, drawn.words, words.p_value(p))
            found.append((k not in standing, 1.0 if p is None else p, k, row))
    if not found:
        return None
    shown = sorted(found)[:MOST_ROWS]
    caption = (
        "Per class: how many of its images keep their label, how many images of other classes are "
        "given it, and how often one of the classes would stand out as far by chance."
    )
    if len(shown) < len(found):
        caption += f" The {len(shown)} classes that stand out most of {len(found):,}."
    header = ("Class", "Keep their label", "Others given it", "p")
    return Table(caption, header, [row for *_, row in shown], [not calm for calm, *_ in shown])
