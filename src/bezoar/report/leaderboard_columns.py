"""The columns of the leaderboard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: in its head.
        meaning: one sentence for who points at it.
        best: the sort that puts the best first, ``ascending`` or ``descending``.
        lens: it changes with the choice of an attack.
        oracle: it is no result.
    """

    name: str
    meaning: str
    best: str = "ascending"
    lens: bool = False
    oracle: bool = False


COLUMNS = (
    Column("Method", "The method as the grid's file writes it, and its runs."),
    Column("Images", "Clean images that the method gets."),
    Column("Models × seeds", "Backdoored models and seeds with at least one run.", "descending"),
    Column("Failed", "Runs that ended without a result."),
    Column("To do", "Runs that have not been done yet."),
    Column("ACC drop", "Points of clean accuracy that were lost.", lens=True),
    Column("ASR after", "Attack success rate of the repaired model, per cent.", lens=True),
    Column("RA after", "Stamped images answered with their true label.", "descending"),
    Column("DER", "Defense effectiveness rating, per cent.", "descending", lens=True),
    Column("± seeds", "Standard deviation of the mean DER between seeds."),
    Column("Worst attack", "The attack with the lowest mean DER, and that DER.", "descending"),
    Column("Removed", "Runs with an ASR ≤ 10 % and a loss ≤ 5 points.", "descending"),
    Column("Clean models", "Points of accuracy lost where there was no backdoor."),
    Column("Against tuning", "DER less that of fine-tuning that cost as much.", "descending"),
    Column("Oracle", "No result: DER of a choice by the true trigger.", "descending", oracle=True),
    Column("Seconds", "Mean seconds of a run, measuring excluded."),
    Column("Peak MiB", "Largest peak memory of a run."),
)  # fmt: skip


def column_of(name: str) -> Column:
    """The column with that name."""
    return next(column for column in COLUMNS if column.name == name)
