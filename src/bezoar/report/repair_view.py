"""The record of a repair as the page shows it: outcome, accuracy, changes, the check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.report.accuracy_view import (
    UNLABELLED,
    accuracies,
    drop_in_words,
    read_accuracy,
    unmeasured,
)
from bezoar.report.charts import (
    Bar,
    Curve,
    IntervalChart,
    Scale,
    Share,
    Tick,
    bars,
    curve,
)
from bezoar.report.material_view import Material, read_material
from bezoar.report.rounds_view import rounds_in_words
from bezoar.report.scan_view import Figure, Scan, read_scan
from bezoar.report.synthetic_view import read_synthetic, synthetic_figures
from bezoar.report.trials_view import Trials, read_aftercare, read_trials
from bezoar.wording import NOT_ACCEPTED, REPAIRED, SIGNS_LEFT, UNCHANGED

LARGEST_SHOWN = 12
MOST_TENSORS = 300
MOST_CURVES = 24

_MEASURES = (
    ("acc", "ACC", "clean accuracy"),
    ("asr", "ASR", "attack success rate"),
    ("ra", "RA", "robust accuracy"),
)


@dataclass(frozen=True)
class Moved:
    """A share before and after the repair, on an axis from 0 to 100 %."""

    short: str
    name: str
    before: Share
    after: Share
    x_before: float | None
    x_after: float | None


@dataclass(frozen=True)
class Attack:
    """The check with the true trigger, where it is known."""

    name: str
    description: str
    rows: list[Moved]
    ticks: list[Tick]
    repaired: bool
    der: str


@dataclass(frozen=True)
class Method:
    """Which method ran, why, and with which settings."""

    title: str
    paper: str
    reason: str
    settings: list[Figure]


@dataclass(frozen=True)
class Repair:
    """A repair in words and pictures."""

    title: str
    state: str
    untouched: bool
    unchanged: bool
    outcome: str
    scan: Scan | None
    rescan: Scan | None
    figures: list[Figure]
    method: Method | None
    trials: Trials | None
    aftercare: list[str]
    accuracy: IntervalChart | None
    unmeasured: str
    synthetic: IntervalChart | None
    drop: str
    wrapped: str
    changes: list[Bar]
    more_changes: list[Bar]
    unlisted: int
    curves: list[Curve]
    rounds: str
    material: Material
    attack: Attack | None
    output: list[Figure]


def read_repair(record: Any, outer: Mapping[str, Any] | None = None) -> Repair | None:
    """Reads the record of a repair; None where there is none."""
    repair = fields.mapping(record)
    if not repair:
        return None
    names_from = repair if fields.mapping(repair.get("model")) else (outer or {})
    names = fields.items(fields.mapping(names_from.get("model")).get("classes"))
    own = fields.mapping(repair.get("repair"))
    scan = read_scan(repair.get("scan"), names_from)
    told = fields.text(repair.get("heading"), 100)
    heading = told or REPAIRED
    unchanged = heading == UNCHANGED  # then the record tells the first scan once more
    rescan = None if unchanged else read_scan(repair.get("rescan"), names_from)
    drop = fields.number(repair.get("accuracy_drop"))
    most = fields.number(repair.get("max_accuracy_drop"))
    by_force = repair.get("written") is True and repair.get("forced") is True
    # A record made from Python does not say whether anything was written.
    unwritten = repair.get("written", bool(told)) is not True
    unsure = fields.text(repair.get("judged_on")) in UNLABELLED
    title = "Written by force" if by_force else "Not written" if unwritten else heading
    seen = scan if unchanged else rescan
    state = seen.state if seen else "unknown" if unsure else "nothing"
    if title.endswith(SIGNS_LEFT) and state in ("nothing", "unknown"):
        state = "suspicious"
    attack = read_attack(repair.get("attack"))
    changes = _changes(repair.get("changes"))
    return Repair(
        title=title,
        state="suspicious" if by_force or unwritten or heading == NOT_ACCEPTED else state,
        untouched=repair.get("untouched") is True,
        unchanged=unchanged,
        outcome=_without_title(fields.text(repair.get("outcome"), 1000), title),
        scan=scan,
        rescan=rescan,
        figures=_figures(repair, scan, rescan, drop, most, attack),
        method=_method(repair.get("method")),
        trials=read_trials(repair),
        aftercare=read_aftercare(repair),
        accuracy=read_accuracy(repair),
        unmeasured=unmeasured(repair),
        synthetic=read_synthetic(own),
        drop=drop_in_words(
            drop, most, fields.number(fields.mapping(repair.get("loss")).get("error"))
        ),
        wrapped=_wrapped(repair, changes),
        changes=changes[:LARGEST_SHOWN],
        more_changes=changes[LARGEST_SHOWN:MOST_TENSORS],
        unlisted=max(len(changes) - MOST_TENSORS, 0),
        curves=_curves(repair.get("curves")),
        rounds=rounds_in_words(own.get("rounds"), names),
        material=read_material(own, repair.get("public"), names),
        attack=attack,
        output=_output(repair.get("output")),
    )


def read_attack(record: Any) -> Attack | None:
    """Reads ACC, ASR and RA with the true trigger, before and (where repaired) after."""
    attack = fields.mapping(record)
    before, after = fields.mapping(attack.get("before")), fields.mapping(attack.get("after"))
    if not before and not after:
        # The record of an evaluation of one model holds the shares themselves.
        before = attack
    axis = Scale(0.0, 1.0)
    rows = []
    for key, short, name in _MEASURES:
        old, new = Share.read(before.get(key)), Share.read(after.get(key))
        if old.value is None and new.value is None:
            continue
        rows.append(
            Moved(
                short,
                name,
                old,
                new,
                *(None if share.value is None else axis.at(share.value) for share in (old, new)),
            )
        )
    if not rows:
        return None
    return Attack(
        name=fields.text(attack.get("name")),
        description=fields.text(attack.get("description")),
        rows=rows,
        ticks=axis.ticks(as_percent=True),
        repaired=bool(after),
        der=words.percent(fields.number(attack.get("der"))),
    )


def _figures(
    repair: Mapping[str, Any],
    scan: Scan | None,
    rescan: Scan | None,
    drop: float | None,
    most: float | None,
    attack: Attack | None,
) -> list[Figure]:
    before, after = accuracies(repair)
    figures = []
    if before.value is not None or after.value is not None:
        note = f"95 % interval {after.interval}" if after.interval else ""
        figures.append(Figure("Accuracy", _arrow(before.words, after.words), note))
    if drop is not None:
        allowed = "" if most is None else f"at most {words.points(most)} allowed"
        figures.append(Figure("Accuracy lost", words.points(drop), allowed))
    agreement = Share.read(repair.get("agreement"))
    if agreement.value is not None:
        figures.append(Figure("Agreement", agreement.words, "same answer before and after"))
    figures += synthetic_figures(repair.get("repair"))
    cost = fields.mapping(fields.mapping(repair.get("repair")).get("cost"))
    with_it = fields.number(cost.get("milliseconds per image"))
    without = fields.number(cost.get("milliseconds per image without"))
    if with_it is not None and without is not None:
        batch = fields.number(cost.get("batch"))
        note = f"{without:.3g} ms without" + (f", batches of {batch:.0f}" if batch else "")
        figures.append(Figure("Cost per image", f"{with_it:.3g} ms", note))
    if attack:
        for row in attack.rows:
            if row.short == "ASR":
                success = _arrow(row.before.words, row.after.words)
                figures.append(Figure("Attack success", success, "with the true trigger"))
    if scan and scan.smallest_p != words.DASH:
        value = _arrow(scan.smallest_p, rescan.smallest_p) if rescan else scan.smallest_p
        figures.append(Figure("Smallest p-value", value, "of the scan"))
    return figures


def _without_title(outcome: str, title: str) -> str:
    """The outcome without the word it begins with where the heading above it says that already."""
    rest = outcome.removeprefix(f"{title}: ")
    return rest[:1].upper() + rest[1:]


def _arrow(before: str, after: str) -> str:
    return f"{before} → {after}"


def _wrapped(repair: Mapping[str, Any], changes: list[Bar]) -> str:
    parameters = fields.number(fields.mapping(repair.get("wrapped")).get("parameters"))
    if parameters is None:
        return ""
    stands = f"a purifier of {parameters:,.0f} parameters stands in front"
    if changes:
        return f"The weights are changed, and {stands}."
    return f"The weights are unchanged; {stands}."


def _changes(record: Any) -> list[Bar]:
    rows: list[tuple[str, str, float | None]] = []
    for item in map(fields.mapping, fields.items(record)):
        shape = words.TIMES.join(words.count(size) for size in fields.numbers(item.get("shape")))
        name = fields.text(item.get("tensor"), 120) or "unnamed tensor"
        rows.append((name, shape, fields.number(item.get("relative_change"))))
    rows.sort(key=lambda row: -1.0 if row[2] is None else row[2], reverse=True)
    return bars(rows)


def _curves(record: Any) -> list[Curve]:
    found = [
        curve(
            fields.text(item.get("name"), 80) or "curve",
            fields.text(item.get("x_name"), 40),
            fields.numbers(item.get("x")),
            fields.numbers(item.get("y")),
        )
        for item in map(fields.mapping, fields.items(record)[:MOST_CURVES])
    ]
    return [item for item in found if item is not None]


def _method(record: Any) -> Method | None:
    method = fields.mapping(record)
    if not method:
        return None
    settings = [
        Figure(fields.text(key, 80), fields.block(value, 200) or words.DASH)
        for key, value in fields.mapping(method.get("configuration")).items()
    ]
    title, name = fields.text(method.get("title")), fields.text(method.get("name"))
    return Method(
        title=f"{title} ({name})" if title and name else title or name,
        paper=fields.text(method.get("paper")),
        reason=fields.text(method.get("reason")),
        settings=settings,
    )


def _output(record: Any) -> list[Figure]:
    output = fields.mapping(record)
    pairs = (
        ("Written file", output.get("file")),
        ("Source that loads it", output.get("source")),
        ("Exported file", output.get("export")),
        ("SHA-256 of the written file", output.get("sha256")),
    )
    return [Figure(label, shown) for label, value in pairs if (shown := fields.text(value))]
