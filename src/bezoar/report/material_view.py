"""The images that a repair was made with, and how far they can be trusted, as the page shows it.

A method that is given no image of the task makes such images, searches for them, or takes others.
What it tells of them stands in its record: ``samples`` (where they come from), ``inversion`` (what
a search kept and how good it is), ``generator``, ``shuffling`` (the shuffling test), ``controls``
(the same repair with images that nothing was searched for).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.report import fields, words
from bezoar.report.charts import IntervalChart, Share, interval_chart
from bezoar.report.scan_view import Figure
from bezoar.report.shuffling_view import Table, shuffling_table

_MOST = 12  # classes that are named, and rows

_NOT_THE_TASK = "They are not its training images and need not look like its classes."
_LEADS = {
    "": "The method worked on them instead of images of the task; each stands with the class that "
    f"the original model answers. {_NOT_THE_TASK}",
    "made up": "The method made them up, without data; each stands with the class that the "
    f"original model answers. They show what excites that model. {_NOT_THE_TASK}",
    "inverted": "The method searched for them among all images that a generator can make; each "
    "stands with the class that was searched for. They show what of these images the original "
    f"model takes for its classes. {_NOT_THE_TASK}",
    "random": "They are random images of a generator, for which nothing was searched; each stands "
    f"with the class that the original model answers. {_NOT_THE_TASK}",
    "public": "They are the public images that were given; each stands with the class that the "
    f"original model answers. {_NOT_THE_TASK}",
    "pixels": "The method searched for them pixel by pixel, with no generator between that could "
    "keep a trigger out of them; each stands with the class that was searched for. "
    f"{_NOT_THE_TASK}",
}
_SOURCES = {
    "made up": "Images made of nothing",
    "inverted": "Images found by inversion",
    "random": "Random images of the generator",
    "public": "Public images",
    "pixels": "Images found pixel by pixel",
    "clean": "Clean images of the task",
}
_TERMS = {
    "class": "sure answers",
    "prior": "naturalness",
    "generator": "the generator",
}


@dataclass(frozen=True)
class Column:
    """The images of one class, as per cent of the picture; ``marked`` where they are too few."""

    x: float
    width: float
    height: float
    marked: bool


@dataclass(frozen=True)
class Columns:
    """How many images each class has."""

    title: str
    caption: str
    columns: list[Column]


@dataclass(frozen=True)
class Material:
    """What is known of the images of a repair.

    Attributes:
        lead: where they come from.
        told: whether the record says anything about them.
        independence: whether the argument stands that they hold no trigger.
        doubtful: it does not stand, or is not known to.
        facts: what the search kept, and what it cost.
        spread: how sure and how stable the answers to them are.
        counts: how many each class has.
        generator: facts about the generator.
        shuffling: what the shuffling test says; ``shuffled`` has its figures.
        controls: the same repair with other images.
    """

    lead: str
    told: bool
    independence: str
    doubtful: bool
    facts: list[Figure]
    spread: IntervalChart | None
    counts: Columns | None
    generator: list[Figure]
    shuffling: str
    shuffled: Table | None
    controls: Table | None


def read_material(record: Any, public: Any, names: Sequence[Any]) -> Material:
    """Reads what a method told of its images.

    Args:
        record: the method's record.
        public: what the user gave in the place of images of the task.
        names: of the classes.
    """
    repair = fields.mapping(record)
    given = fields.mapping(public)
    samples = fields.text(repair.get("samples"), 40) or ("" if given else "made up")
    inversion, shuffling = (fields.mapping(repair.get(key)) for key in ("inversion", "shuffling"))
    generator = fields.mapping(repair.get("generator")) or given
    independence = fields.text(generator.get("sentence") or generator.get("independence"), 600)
    return Material(
        lead=_LEADS.get(samples, _LEADS[""]),
        told=bool(samples != "made up" or inversion or shuffling or generator),
        independence=independence,
        doubtful=generator.get("apart") is not True,
        facts=_facts(inversion, names),
        spread=_spread(inversion.get("quantiles")),
        counts=_counts(inversion, names),
        generator=[
            Figure(fields.text(key, 60).replace("_", " "), fields.block(value, 400) or words.DASH)
            for key, value in fields.mapping(generator.get("origin")).items()
        ],
        shuffling=fields.text(shuffling.get("sentence"), 1000),
        shuffled=shuffling_table(shuffling, names),
        controls=_controls(repair.get("controls")),
    )


def _facts(inversion: Mapping[str, Any], names: Sequence[Any]) -> list[Figure]:
    kept, tried = (fields.number(inversion.get(key)) for key in ("kept", "tried"))
    facts = []
    if kept is not None:
        of = "" if tried is None else f"of {words.count(tried)} that were tried"
        facts.append(Figure("Images kept", words.count(kept), of))
    short = [fields.name_of(names, k) for k in _too_few(inversion)]
    if short:
        facts.append(Figure("Classes with too few", words.listed(short, 8)))
    odd = fields.numbers(fields.mapping(inversion.get("quantiles")).get("unnaturalness"))
    low, middle, high = (fields.at(odd, place) for place in range(3))
    if middle is not None:
        between = "" if low is None or high is None else _between(low, high)
        facts.append(Figure("Unnaturalness", words.measure(middle), between))
    speed = fields.number(inversion.get("images_per_minute"))
    if speed is not None:
        facts.append(Figure("Images a minute", words.measure(speed)))
    shares = [
        f"{_TERMS.get(key) or fields.text(key, 40)} {words.percent(share)}"
        for key, value in fields.mapping(inversion.get("shares")).items()
        if (share := fields.number(value)) is not None
    ]
    if shares:
        facts.append(Figure("Time of the search", ", ".join(shares)))
    return facts


def _between(low: float, high: float) -> str:
    return f"four fifths lie between {words.measure(low)} and {words.measure(high)}"


def _spread(record: Any) -> IntervalChart | None:
    quantiles = fields.mapping(record)
    rows = []
    for key, label in (("confidence", "Confidence"), ("stability", "Stability score")):
        low, middle, high = (fields.at(fields.numbers(quantiles.get(key)), k) for k in range(3))
        if middle is not None:
            rows.append((label, Share(middle, low, high)))
    caption = (
        "How probable the original model finds the class of an image, and how far it stays with it "
        "under small changes of the image and of its own weights: the median of the images."
    )
    return interval_chart(
        "Confidence and stability", caption, rows, whiskers="the 10 % and 90 % quantiles"
    )


def _counts(inversion: Mapping[str, Any], names: Sequence[Any]) -> Columns | None:
    counts = [count or 0.0 for count in fields.numbers(inversion.get("per_class"))]
    if len(counts) < 2 or max(counts) <= 0:
        return None
    short = _too_few(inversion)
    least, most = words.count(min(counts)), words.count(max(counts))
    caption = f"Images of each class, {least} to {most}, in order of class."
    if least == most:
        caption = f"Images of each class: {most}."
    if short:
        caption += " Marked: those with too few."
    width = 100 / len(counts)
    columns = [
        Column(
            x=round(k * width, 3),
            width=round(width * 0.9, 3),
            height=round(100 * max(fields.ratio(count, max(counts)), 0.0), 2),
            marked=k in short,
        )
        for k, count in enumerate(counts)
    ]
    marked = ", ".join(fields.name_of(names, k) for k in short[:_MOST])
    title = f"Images of each class, {least} to {most}{f'; too few: {marked}' if marked else ''}"
    return Columns(title, caption, columns)


def _controls(record: Any) -> Table | None:
    rows: list[tuple[str, ...]] = []
    for control in map(fields.mapping, fields.items(record)[:_MOST]):
        samples = fields.text(control.get("samples"), 40)
        same, changed = (Share.read(control.get(key)) for key in ("agreement", "changed"))
        if samples and (same.value is not None or changed.value is not None):
            rows.append((_SOURCES.get(samples, samples), same.words, changed.words))
    if not rows:
        return None
    caption = (
        "The same repair with other images. Where these do as well, the search was not needed here."
    )
    header = ("Images", "Agreement", "Still changed")
    return Table(caption, header, rows, [False] * len(rows))


def _too_few(inversion: Mapping[str, Any]) -> list[int]:
    """The classes with few images or none, in order."""
    named = (*fields.items(inversion.get("short")), *fields.items(inversion.get("missing")))
    return sorted({k for item in named if (k := fields.index(item)) is not None})
