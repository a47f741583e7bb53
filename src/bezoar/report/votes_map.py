"""Where a recovered trigger sends the images of each class: a heat map of sources and answers.

A row adds up to all counted images of its class; what stays there is framed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words

MOST_SHOWN = 20  # rows and columns


@dataclass(frozen=True)
class Cell:
    """The share of a source's images that get an answer.

    Attributes:
        percent: in [0, 100], rounded.
        shown: the same as text; empty where no image gets that answer.
        stays: the answer is the source itself.
        told: source, answer and count in words.
    """

    percent: int
    shown: str
    stays: bool
    told: str


@dataclass(frozen=True)
class Source:
    """A row: the images of one class."""

    name: str
    cells: list[Cell]
    images: str


@dataclass(frozen=True)
class VotesMap:
    """The heat map: ``answers`` are names and whether the trigger is read as leading there."""

    sentence: str
    answers: list[tuple[str, bool]]
    sources: list[Source]
    note: str


def votes_map(item: Mapping[str, Any], names: Sequence[str]) -> VotesMap | None:
    """Reads the votes of a witness's record; None where it has none.

    Of more than 20 classes those are shown that lose the most images, and those that get the most
    of these.

    Args:
        item: the record of the witness.
        names: of the classes.
    """
    votes = fields.mapping(item.get("votes"))
    counts = _counts(votes.get("counts"), len(names))
    if not counts:
        return None
    images, lost, got = Counter[int](), Counter[int](), Counter[int]()
    for (source, answer), count in counts.items():
        images[source] += count
        lost[source] += count * (answer != source)
    rows = _first(images, lost)
    for (source, answer), count in counts.items():
        got[answer] += count * (answer != source) * (source in rows)
    columns = _first(range(len(names)), got)
    reading = fields.mapping(item.get("reading"))
    targets = set(map(fields.index, fields.items(reading.get("targets"))))
    return VotesMap(
        sentence=fields.text(reading.get("sentence"), 1000),
        answers=[(names[k], k in targets) for k in columns],
        sources=[
            Source(
                names[source],
                [_cell(names, source, k, counts[source, k], images[source]) for k in columns],
                words.count(images[source]),
            )
            for source in rows
        ],
        note=_note(len(names), len(images), len(rows), len(columns)),
    )


def _counts(given: Any, classes: int) -> Counter[tuple[int, int]]:
    """(source, answer) → images, of the entries that make sense."""
    counts = Counter[tuple[int, int]]()
    for entry in fields.items(given):
        numbers = [fields.index(number) for number in fields.items(entry)]
        match numbers:
            case [int(source), int(answer), int(count)] if max(source, answer) < classes and count:
                counts[source, answer] += count
    return counts


def _first(classes: Iterable[int], weight: Counter[int]) -> list[int]:
    """In order of class, those of most weight."""
    return sorted(sorted(classes, key=lambda k: (-weight[k], k))[:MOST_SHOWN])


def _cell(names: Sequence[str], source: int, k: int, count: int, images: int) -> Cell:
    percent = round(100 * count / images)
    shown = "" if not count else str(percent) if percent else "<1"
    told = f"{words.count(count)} of {words.count(images)}: {names[source]} → {names[k]}"
    return Cell(percent, shown, source == k, told)


def _note(classes: int, counted: int, rows: int, columns: int) -> str:
    notes = []
    if counted < classes:
        missing = words.plural(classes - counted, "class has", "classes have")
        notes.append(f"{missing} no counted image.")
    if rows < counted or columns < classes:
        notes.append(
            f"Of {classes:,} classes, the rows are the {rows} that lose the most images, and the "
            f"columns the {columns} that get the most of these."
        )
    return " ".join(notes)
