"""The cells of the leaderboard: what each column shows of a row, and what it is sorted by.

A cell of ACC drop, ASR after, RA after and DER has several *readings*: mean or worst model, over
all attacks or one of them. The page holds them all as text, and its script only chooses, so that no
number is written in two ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.report.charts import Scale
from bezoar.report.leaderboard_columns import Column, column_of

Worst = Mapping[str, Mapping[str, float]]
"""Attack → measure → the worst model's value, for one row."""


@dataclass(frozen=True)
class Reading:
    """A number as a cell shows it; ``low``, ``at`` and ``high`` are places on the cell's bar."""

    text: str
    note: str
    value: float
    low: float | None = None
    at: float | None = None
    high: float | None = None

    def plain(self) -> list[Any]:
        """What the page's script reads."""
        return [self.text, self.note, round(self.value, 6), self.low, self.at, self.high]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        column: what it is a cell of.
        text: what is shown; never empty.
        value: what it is sorted by; None is a dash, which is always last.
        note: a second, smaller line.
        why: of a dash, in words.
        reading: the number with its place on a bar, where there is a bar.
        readings: all it can show: over all attacks and for each of them a [mean, worst] pair or
            None; empty where it never changes.
        alarm: "failed" or "missing" where it counts such runs and there are some.
    """

    column: Column
    text: str
    value: float | None = None
    note: str = ""
    why: str = ""
    reading: Reading | None = None
    readings: Sequence[Sequence[Sequence[Any]] | None] = ()
    alarm: str = ""


@dataclass(frozen=True)
class Scales:
    """The common axes of the bars in the cells."""

    asr: Scale
    der: Scale

    @property
    def note(self) -> str:
        """What the bars span, in words."""
        low = words.in_percent(self.der.low).removesuffix(".0")
        return f"The bars span 0 to 100 % for ASR and {low} to 100 % for DER."


def scales_of(rows: Sequence[Mapping[str, Any]]) -> Scales:
    """One axis for all tables; that of DER starts at 50 %, where nothing is gained, or lower."""
    ends = [_number(row, "der", end) for row in rows for end in ("low", "worst")]
    lowest = min([end for end in ends if end is not None], default=0.5)
    start = 0.5
    while start > 0 and lowest < start:
        start = round(start - 0.1, 1)
    return Scales(asr=Scale(0.0, 1.0), der=Scale(start, 1.0))


def cells_of(
    row: Mapping[str, Any], attacks: Sequence[str], worst: Worst, scales: Scales
) -> list[Cell]:
    """The cells of a row after the first, in the order of the columns."""
    none = _nothing_counted(row)

    def plain(name: str, value: float | None, text: str, why: str, note: str = "") -> Cell:
        column = column_of(name)
        if value is None:
            return Cell(column, words.DASH, why=why)
        return Cell(column, text, value, note)

    def counted(name: str, key: str) -> Cell:
        count = fields.number(row.get(key)) or 0.0
        return Cell(column_of(name), words.count(count), count, alarm=key if count else "")

    def varying(name: str, key: str, scale: Scale | None, *, by_attack: bool = True) -> Cell:
        found = _readings(row, key, attacks if by_attack else (), worst, scale)
        first = found[0][0] if found[0] else None
        pairs = [[one.plain() for one in pair] if pair else None for pair in found]
        if first is None:
            return Cell(column_of(name), words.DASH, why=none, readings=pairs)
        shown = first if scale else None
        return Cell(
            column_of(name), first.text, first.value, first.note, reading=shown, readings=pairs
        )

    reference = row.get("role") == "reference"
    images, models, seeds, clean = (
        fields.number(row.get(key)) or 0.0 for key in ("images", "models", "seeds", "clean_models")
    )
    removed, attack = (fields.mapping(row.get(key)) for key in ("removed", "worst_attack"))
    of, spread = fields.number(removed.get("of")) or 0.0, _number(row, "der", "seed_std")
    share = (fields.number(removed.get("count")) or 0.0) / of if of else None
    worst_der = fields.number(attack.get("der"))
    memory, seconds = fields.number(row.get("peak_memory")), fields.number(row.get("seconds"))
    clean_drop, oracle = _number(row, "clean_drop", "mean"), fields.mapping(row.get("oracle"))
    untimed = "nothing runs, so nothing is timed" if reference else "no run is done"
    return [
        plain(
            "Images",
            None if reference else images,
            words.count(images),
            "a reference gets no images",
        ),
        plain(
            "Models × seeds",
            models * seeds,
            f"{models:.0f} × {seeds:.0f}",
            "",
            f"+ {clean:.0f} clean" if clean else "",
        ),
        counted("Failed", "failed"),
        counted("To do", "missing"),
        varying("ACC drop", "acc_drop", None),
        varying("ASR after", "asr_after", scales.asr),
        varying("RA after", "ra_after", None, by_attack=False),
        varying("DER", "der", scales.der),
        plain("± seeds", spread, words.in_percent(spread), "a spread needs two seeds"),
        plain(
            "Worst attack",
            worst_der,
            words.in_percent(worst_der),
            none,
            fields.text(attack.get("attack"), 18),
        ),
        plain("Removed", share, f"{removed.get('count')} of {of:.0f}", none),
        plain(
            "Clean models",
            clean_drop,
            words.in_percent(clean_drop),
            "no run on a clean model is done",
        ),
        _against(row),
        plain(
            "Oracle",
            _number(oracle, "der", "mean"),
            words.in_percent(_number(oracle, "der", "mean")),
            none if models == 0 else "no run gave the oracle a choice",
            f"ASR {words.in_percent(_number(oracle, 'asr_after', 'mean'))}",
        ),
        plain("Seconds", seconds, _seconds(seconds), untimed),
        plain("Peak MiB", memory, words.count((memory or 0.0) / 2**20), untimed),
    ]


def _nothing_counted(row: Mapping[str, Any]) -> str:
    """Why a row has no mean over backdoored models, where it has none."""
    if row.get("label") == "clean twin":
        return "no backdoored model is measured together with its twin"
    return "no run on a backdoored model is done"


def _against(row: Mapping[str, Any]) -> Cell:
    """The gain over fine-tuning that cost as much, or why there is none."""
    column, compared = column_of("Against tuning"), fields.mapping(row.get("same_compute"))
    gain = _number(compared, "gain", "mean")
    if gain is None:
        role = row.get("role")
        why = "no fine-tuning of the same model, images and seed is done"
        if role == "control":
            why = "it is fine-tuning itself"
        elif role == "reference" or not row.get("images"):
            why = "without images there is no fine-tuning to compare with"
        elif "same_compute" not in row:
            why = _nothing_counted(row)
        return Cell(column, words.DASH, why=why)
    sign = f"<{words.SPACE}" if compared.get("short") else ""
    text = f"{sign}{'+' if gain >= 0 else ''}{words.in_percent(gain)}"
    return Cell(column, text, gain, f"of {words.in_percent(fields.number(compared.get('der')))}")


def _readings(
    row: Mapping[str, Any], key: str, attacks: Sequence[str], worst: Worst, scale: Scale | None
) -> list[tuple[Reading, Reading] | None]:
    """(mean, worst model) over all attacks, and for each; None where nothing was measured."""
    whole = fields.mapping(row.get(key))
    span = words.span(fields.number(whole.get("low")), fields.number(whole.get("high")))
    mean = _reading(whole.get("mean"), span or "one model", scale, whole)
    found = [_pair(mean, whole.get("worst"), row.get("models"), scale)]
    for attack in attacks:
        about = fields.mapping(fields.mapping(row.get("attacks")).get(attack))
        models = fields.index(about.get("models")) or 0
        mean = _reading(about.get(key), words.plural(models, "model"), scale)
        found.append(_pair(mean, worst.get(attack, {}).get(key), models, scale))
    return found


def _pair(
    mean: Reading | None, worst: Any, models: Any, scale: Scale | None
) -> tuple[Reading, Reading] | None:
    count = fields.index(models) or 0
    bad = _reading(worst, f"worst of {count}" if count > 1 else "one model", scale)
    return None if mean is None or bad is None else (mean, bad)


def _reading(
    value: Any, note: str, scale: Scale | None, interval: Mapping[str, Any] | None = None
) -> Reading | None:
    found = fields.number(value)
    if found is None:
        return None
    ends = [fields.number((interval or {}).get(end)) for end in ("low", "high")]
    low, at, high = (
        None if scale is None or place is None else scale.at(place)
        for place in (ends[0], found, ends[1])
    )
    return Reading(words.in_percent(found), note, found, low, at, high)


def _number(row: Mapping[str, Any], *keys: str) -> float | None:
    value: Any = row
    for key in keys:
        value = fields.mapping(value).get(key)
    return fields.number(value)


def _seconds(value: float | None) -> str:
    return words.DASH if value is None else f"{value:,.{1 if value < 99.95 else 0}f}"
