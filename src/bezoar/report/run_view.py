"""The record of one run of a benchmark as its page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bezoar.records import to_json
from bezoar.report import fields, words
from bezoar.report.charts import Share
from bezoar.report.published import Beside, published_of
from bezoar.report.repair_view import Attack, read_attack
from bezoar.report.run_facts import cost_facts, made_facts, model_facts
from bezoar.report.scan_view import Figure
from bezoar.report.tree import Node, read_tree

_MEASURES = (("acc", "ACC"), ("asr", "ASR"), ("ra", "RA"))


@dataclass(frozen=True)
class Measured:
    """One measure before and after; a share with its interval, or a dash."""

    name: str
    before: tuple[str, str]
    after: tuple[str, str]
    change: str


@dataclass(frozen=True)
class Failure:
    """Why there is no result."""

    kind: str
    message: str
    traceback: str


@dataclass(frozen=True)
class Oracle:
    """What a choice with the true trigger would have given."""

    setting: str
    reason: str
    figures: list[Figure]


@dataclass(frozen=True)
class RunView:
    """The whole page."""

    benchmark: str
    title: str
    sentence: str
    failure: Failure | None
    figures: list[Figure]
    chart: Attack | None
    measured: list[Measured]
    beside: list[Beside]
    oracle: Oracle | None
    model: list[Figure]
    settings: list[Node]
    cost: list[Figure]
    decided: list[Node]
    made: list[Figure]
    everything: str


def read_run(record: Mapping[str, Any], benchmark: str) -> RunView:
    """Reads a result file, whole or failed.

    Args:
        record: its content.
        benchmark: the title of the leaderboard that it belongs to.
    """
    config, model = (fields.mapping(record.get(key)) for key in ("config", "model"))
    before, after = (fields.mapping(record.get(key)) for key in ("before", "after"))
    failed = record.get("state") == "failed"
    method = {k: v for k, v in fields.mapping(config.get("method")).items() if k != "name"}
    label = fields.text(record.get("label"), 200) or "unnamed method"
    flat = {**record, **model, "model": model.get("name"), "images": config.get("images")}
    return RunView(
        benchmark=fields.text(benchmark, 200) or "Benchmark",
        title=label,
        sentence=_sentence(record, config, model),
        failure=_failure(fields.mapping(record.get("failure"))) if failed else None,
        figures=_figures(record, before, after),
        chart=read_attack({"before": before, "after": after}) if before and after else None,
        measured=_measured(before, after),
        beside=published_of([flat], ()),
        oracle=_oracle(fields.mapping(record.get("oracle"))),
        model=model_facts(record, config, model),
        settings=read_tree(method),
        cost=cost_facts(record),
        decided=read_tree(record.get("decided")),
        made=made_facts(record, config),
        everything=_json(record),
    )


def _sentence(
    record: Mapping[str, Any], config: Mapping[str, Any], model: Mapping[str, Any]
) -> str:
    name = fields.text(model.get("name"), 120) or "an unnamed model"
    start = "It failed on" if record.get("state") == "failed" else "On"
    if record.get("role") == "reference":
        return f"{start} {name}, as a reference."
    images = fields.index(config.get("images")) or 0
    given = words.plural(images, "clean image") if images else "no clean image"
    seed = words.count(fields.number(config.get("seed")))
    control = ", as a control" if record.get("role") == "control" else ""
    return f"{start} {name}, with {given}, seed {seed}{control}."


def _failure(failure: Mapping[str, Any]) -> Failure:
    kinds = {
        "error": "It ended with an error.",
        "crash": "Its process died.",
        "timeout": "It ran out of time and was ended.",
    }
    return Failure(
        kind=kinds.get(str(failure.get("kind")), "It failed."),
        message=fields.block(failure.get("message")) or "No reason is known.",
        traceback=fields.block(failure.get("traceback"), 20_000),
    )


def _figures(
    record: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[Figure]:
    """The numbers at the top of the page."""
    found = []
    der = Share.read(record.get("der"))
    if der.value is not None:
        note = f"95 % interval {der.interval}" if der.interval else ""
        found.append(Figure("DER", der.words, note))
    for key, short in _MEASURES[:2]:
        old, new = Share.read(before.get(key)), Share.read(after.get(key))
        if new.value is not None:
            found.append(
                Figure(short, new.words, f"{old.words} before" if old.value is not None else "")
            )
    drop = fields.number(record.get("acc_drop"))
    if drop is not None:
        found.append(Figure("ACC drop", words.points(drop)))
    return found


def _measured(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Measured]:
    rows = []
    for key, short in _MEASURES:
        old, new = Share.read(before.get(key)), Share.read(after.get(key))
        if old.value is None and new.value is None:
            continue
        change = words.DASH
        if old.value is not None and new.value is not None:
            moved = new.value - old.value
            change = f"{'+' if moved > 0 else ''}{words.points(moved)}"
        rows.append(Measured(short, _share(old), _share(new), change))
    return rows


def _share(share: Share) -> tuple[str, str]:
    images = "" if share.count is None else f"of {share.count:,} images"
    return share.words, ", ".join(part for part in (share.interval, images) if part)


def _oracle(oracle: Mapping[str, Any]) -> Oracle | None:
    if not oracle:
        return None
    after = fields.mapping(oracle.get("after"))
    shares = [("DER", Share.read(oracle.get("der")))]
    shares += [(short, Share.read(after.get(key))) for key, short in _MEASURES]
    return Oracle(
        setting=fields.text(oracle.get("setting")),
        reason=fields.text(oracle.get("reason")),
        figures=[
            Figure(short, share.words, f"95 % interval {share.interval}" if share.interval else "")
            for short, share in shares
            if share.value is not None
        ],
    )


def _json(record: Mapping[str, Any]) -> str:
    try:
        return fields.block(to_json(dict(record)), longest=2_000_000)
    except RecursionError:
        return "It is nested too deeply to be shown."
