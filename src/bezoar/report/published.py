"""What others report, beside what was measured here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.report.leaderboard_runs import RunLink, link_of


@dataclass(frozen=True)
class Ours:
    """The runs on one model with one budget: means over their seeds, before → after, per cent."""

    acc: str
    asr: str
    setting: str
    runs: list[RunLink]


@dataclass(frozen=True)
class Beside:
    """A published result, and what was measured here with the same method, attack and data."""

    method: str
    attack: str
    data: str
    acc: str
    asr: str
    setting: str
    source: str
    ours: list[Ours]


def published_of(runs: Sequence[Mapping[str, Any]], pages: Collection[str]) -> list[Beside]:
    """All published results that runs on models that count as backdoored can be set beside.

    Args:
        runs: flat rows of a summary, or one result file read as such.
        pages: addresses of runs that have a page of their own.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        comparable = run.get("role") == "method" and run.get("status") == "backdoored"
        if comparable and run.get("state") == "done" and run.get("before"):
            for one in fields.items(run.get("reported")):
                key = fields.text(run.get("label"), 120), json.dumps(one, sort_keys=True)
                found.setdefault(key, []).append(run)
    return [
        _beside(label, fields.mapping(json.loads(one)), group, pages)
        for (label, one), group in sorted(found.items(), key=lambda item: item[0])
    ]


def _beside(
    label: str,
    one: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    pages: Collection[str],
) -> Beside:
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        images = fields.number(run.get("images")) or 0.0
        groups.setdefault((images, str(run.get("model"))), []).append(run)
    return Beside(
        method=label,
        attack=fields.text(one.get("attack"), 80),
        data=fields.text(one.get("data"), 80),
        acc=_way(fields.numbers(one.get("acc"))),
        asr=_way(fields.numbers(one.get("asr"))),
        setting=_setting(one),
        source=fields.text(one.get("source")),
        ours=[
            Ours(
                acc=_way([_mean(group, when, "acc") for when in ("before", "after")]),
                asr=_way([_mean(group, when, "asr") for when in ("before", "after")]),
                setting=f"{_setting(group[0])}, {fields.text(group[0].get('half'), 40)}",
                runs=[link_of(run, pages) for run in group],
            )
            for _, group in sorted(groups.items(), key=lambda item: item[0])
        ],
    )


def _setting(one: Mapping[str, Any]) -> str:
    network = fields.text(one.get("network"), 80) or "network unknown"
    return f"{network}, {words.count(fields.number(one.get('images')))} images"


def _mean(runs: Sequence[Mapping[str, Any]], when: str, name: str) -> float | None:
    values = [
        fields.number(fields.mapping(fields.mapping(run.get(when)).get(name)).get("value"))
        for run in runs
    ]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _way(pair: Sequence[float | None]) -> str:
    return " → ".join(words.in_percent(value) for value in pair[:2]) or words.DASH
