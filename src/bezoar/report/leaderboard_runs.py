"""The runs behind a row of the leaderboard, model by model, and the runs that failed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words

_UNCOUNTED = {"weak": "weak, in no mean", "natural": "natural, in no mean", "clean": "no backdoor"}


@dataclass(frozen=True)
class RunLink:
    """One run: ``href`` is its page, empty where it has none."""

    seed: str
    model: str
    told: str
    state: str
    href: str


@dataclass(frozen=True)
class ModelRuns:
    """The runs on one model."""

    model: str
    about: str
    runs: list[RunLink]


@dataclass(frozen=True)
class Failure:
    """Runs of one method and budget that failed for one reason."""

    label: str
    images: str
    reason: str
    models: str
    runs: list[RunLink]


def runs_of(runs: Sequence[Mapping[str, Any]], pages: Collection[str]) -> list[ModelRuns]:
    """The runs of one row by model, in the order in which they come.

    Args:
        runs: the flat rows of the summary.
        pages: addresses of runs that have a page.
    """
    models: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        models.setdefault(fields.text(run.get("model"), 120), []).append(run)
    return [
        ModelRuns(
            model or "unnamed model", _about(group[0]), [link_of(run, pages) for run in group]
        )
        for model, group in models.items()
    ]


def in_words(runs: Sequence[Mapping[str, Any]]) -> str:
    """How many there are: ``48 runs``."""
    return words.plural(len(runs), "run")


def failures_of(runs: Sequence[Mapping[str, Any]], pages: Collection[str]) -> list[Failure]:
    """What failed, with the same reasons together; the most frequent first."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        if run.get("state") == "failed":
            reason = fields.text(run.get("failure")) or "no reason is known"
            images = words.DASH
            if run.get("role") != "reference":
                images = words.count(fields.number(run.get("images")))
            key = fields.text(run.get("label"), 120), images, reason
            groups.setdefault(key, []).append(run)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [
        Failure(
            label=label,
            images=images,
            reason=reason,
            models=words.plural(len({str(run.get("model")) for run in group}), "model"),
            runs=[link_of(run, pages) for run in group],
        )
        for (label, images, reason), group in ordered
    ]


def page_of(key: str) -> str:
    """The page of a run, seen from the index."""
    return f"runs/{key}.html"


def _about(run: Mapping[str, Any]) -> str:
    attack, status = fields.text(run.get("attack"), 40), fields.text(run.get("status"), 40)
    return ", ".join(part for part in (attack, _UNCOUNTED.get(status, "")) if part)


def link_of(run: Mapping[str, Any], pages: Collection[str]) -> RunLink:
    """A run by its seed, with its DER or what became of it."""
    state, key = fields.text(run.get("state"), 20), fields.text(run.get("key"), 80)
    told = {"failed": "failed", "missing": "to do"}.get(state, "")
    der = fields.number(fields.mapping(run.get("der")).get("value"))
    drop = fields.number(run.get("acc_drop"))
    if not told and der is not None:
        told = f"DER {words.in_percent(der)}"
    elif not told:
        told = "done" if drop is None else f"ACC drop {words.in_percent(drop)}"
    seed = words.count(fields.number(run.get("seed")))
    model = fields.text(run.get("model"), 120)
    return RunLink(f"seed {seed}", model, told, state, page_of(key) if key in pages else "")
