"""The summary of a benchmark as the leaderboard shows it."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.report.heat_map import HeatMap, budget_in_words, heat_map
from bezoar.report.leaderboard_cells import Cell, Scales, Worst, cells_of, scales_of
from bezoar.report.leaderboard_columns import COLUMNS, Column
from bezoar.report.leaderboard_runs import Failure, ModelRuns, failures_of, in_words, runs_of
from bezoar.report.plane import Plane, planes
from bezoar.report.published import Beside, published_of


@dataclass(frozen=True)
class Row:
    """One method with one budget; ``images`` is what the choice of a budget compares."""

    label: str
    role: str
    images: str
    cells: list[Cell]
    told: str
    models: list[ModelRuns]


@dataclass(frozen=True)
class HalfView:
    """One half of the pool: its table and its pictures."""

    title: str
    development: bool
    columns: list[Column]
    references: list[Row]
    rows: list[Row]
    planes: list[Plane]
    heat: HeatMap | None


@dataclass(frozen=True)
class Board:
    """The whole page."""

    title: str
    sentence: str
    attacks: list[str]
    budgets: list[tuple[str, str]]
    bars: str
    halves: list[HalfView]
    published: list[Beside]
    failures: list[Failure]


def read_board(summary: Mapping[str, Any], pages: Collection[str]) -> Board:
    """Reads what ``bezoar.bench.summarise`` returns.

    Args:
        summary: its plain values.
        pages: addresses of runs that have a page of their own.
    """
    rows = list(map(fields.mapping, fields.items(summary.get("rows"))))
    runs = list(map(fields.mapping, fields.items(summary.get("runs"))))
    attacks = fields.texts(summary.get("attacks"), 80)
    scales = scales_of(rows)
    halves = sorted({str(row.get("half")) for row in rows}, key=lambda half: half != "held-out")
    budgets = {fields.number(row.get("images")) or 0.0 for row in rows if not _is_reference(row)}
    notes = [f"Note: {notice}." for notice in fields.texts(summary.get("notices"))]
    return Board(
        title=fields.text(summary.get("title"), 200) or "Benchmark",
        sentence=" ".join([_progress(fields.mapping(summary.get("counts"))), *notes]),
        attacks=attacks,
        budgets=[(f"{images:.0f}", budget_in_words(images)) for images in sorted(budgets)],
        bars=scales.note,
        halves=[_half(half, rows, runs, attacks, scales, pages) for half in halves],
        published=published_of(runs, pages),
        failures=failures_of(runs, pages),
    )


def _half(
    half: str,
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    attacks: Sequence[str],
    scales: Scales,
    pages: Collection[str],
) -> HalfView:
    ours = [row for row in rows if str(row.get("half")) == half]
    done = [run for run in runs if str(run.get("half")) == half]
    groups: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for run in done:
        groups.setdefault((run.get("images"), run.get("label")), []).append(run)
    oracle = any(row.get("oracle") for row in ours)
    shown: list[Row] = []
    for row in ours:
        group = groups.get((row.get("images"), row.get("label")), [])
        cells = cells_of(row, attacks, worst_of(group), scales)
        shown.append(
            Row(
                label=fields.text(row.get("label")) or "unnamed method",
                role=fields.text(row.get("role"), 20),
                images=f"{fields.number(row.get('images')) or 0.0:.0f}",
                cells=[cell for cell in cells if oracle or not cell.column.oracle],
                told=in_words(group),
                models=runs_of(group, pages),
            )
        )
    development = half == "development"
    name = fields.text(half, 40)
    return HalfView(
        title=f"{name[:1].upper()}{name[1:]} models",
        development=development,
        columns=[column for column in COLUMNS if oracle or not column.oracle],
        references=[row for row in shown if row.role == "reference"],
        rows=[row for row in shown if row.role != "reference"],
        planes=planes(ours),
        heat=heat_map(ours, done, attacks),
    )


def worst_of(runs: Sequence[Mapping[str, Any]]) -> Worst:
    """Attack → the worst backdoored model of one row's runs, seeds of a model averaged first."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for run in runs:
        if run.get("state") != "done" or run.get("status") != "backdoored":
            continue
        after = fields.mapping(run.get("after"))
        values = {
            "acc_drop": run.get("acc_drop"),
            "asr_after": fields.mapping(after.get("asr")).get("value"),
            "der": fields.mapping(run.get("der")).get("value"),
        }
        measures = found.setdefault(str(run.get("attack")), {})
        for key, value in values.items():
            if (number := fields.number(value)) is not None:
                models = measures.setdefault(key, {})
                models.setdefault(str(run.get("model")), []).append(number)
    return {
        attack: {
            key: (min if key == "der" else max)(map(statistics.fmean, models.values()))
            for key, models in measures.items()
        }
        for attack, measures in found.items()
    }


def _is_reference(row: Mapping[str, Any]) -> bool:
    return row.get("role") == "reference"


def _progress(counts: Mapping[str, Any]) -> str:
    """How much of the grid is there."""
    planned, done, failed, missing = (
        fields.index(counts.get(key)) or 0 for key in ("planned", "done", "failed", "missing")
    )
    if planned and done == planned:
        return f"All {planned:,} runs of the grid are done." if done > 1 else "The one run is done."
    are, left = ("is" if 1 in of else "are" for of in ((done, planned), (missing,)))
    return (
        f"{done:,} of {words.plural(planned, 'run')} {are} done, {failed:,} failed, and "
        f"{missing:,} {left} still to be done."
    )
