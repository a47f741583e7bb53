"""A whole record as the page shows it: the headline, the parts, and where it all came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.errors import InputError
from bezoar.report import fields, words
from bezoar.report.glossary import glossary
from bezoar.report.pictures import Gallery, Picture, gallery
from bezoar.report.repair_view import Attack, Repair, read_attack, read_repair
from bezoar.report.scan_view import Figure, Scan, read_scan
from bezoar.report.self_test_view import read_self_test
from bezoar.report.synthesis_view import Synthesis, read_synthesis

KINDS = ("scan", "clean", "demo", "synthesize")


@dataclass(frozen=True)
class Page:
    """Everything on the page, ready to be written."""

    kind: str
    title: str
    state: str
    heading: str
    lead: str
    eyebrow: list[str]
    figures: list[Figure]
    scan: Scan | None
    self_test: list[str]
    repair: Repair | None
    synthesis: Synthesis | None
    twin: Scan | None
    twin_attack: Attack | None
    galleries: list[Gallery]
    skipped: list[str]
    notices: list[str]
    history: list[str]
    command: str
    reproduce: list[Figure]
    provenance: list[Figure]
    glossary: list[tuple[str, str]]


def read_page(record: Mapping[str, Any], pictures: Sequence[Picture] = ()) -> Page:
    """Reads the record of a scan, a repair, a synthesis or a demo.

    Raises:
        InputError: it is none of these.
    """
    kind = record.get("kind") if isinstance(record, Mapping) else None
    if kind not in KINDS:
        raise InputError(
            f"a record of kind {kind!r} was given to the report; expected one of "
            f"{', '.join(KINDS)}: give the JSON that one of these commands wrote"
        )
    twin_record = fields.mapping(record.get("clean_twin"))
    scan = repair = twin = synthesis = None
    if kind == "scan":
        scan = read_scan(record)
    elif kind == "clean":
        repair = read_repair(record)
        scan = repair.scan if repair else None
    elif kind == "synthesize":
        synthesis = read_synthesis(record)
    else:
        backdoored = fields.mapping(record.get("backdoored"))
        repair = read_repair(record.get("repair"), record)
        scan = read_scan(backdoored.get("scan"), record) or (repair.scan if repair else None)
        twin = read_scan(twin_record.get("scan"), record)
    file = fields.text(fields.mapping(record.get("model")).get("file"))
    galleries = [gallery(picture) for picture in pictures]
    heading, state, lead, figures = _headline(kind, record, scan, repair, synthesis, twin)
    twin_attack = read_attack(twin_record.get("attack"))
    return Page(
        kind=kind,
        title=": ".join(part for part in ("bezoar", kind, file) if part),
        state=state,
        heading=heading,
        lead=lead,
        eyebrow=_eyebrow(record, kind),
        figures=figures,
        scan=scan,
        self_test=read_self_test(record),
        repair=repair,
        synthesis=synthesis,
        twin=twin,
        twin_attack=twin_attack,
        galleries=galleries,
        skipped=_told(record, "skipped"),
        notices=_told(record, "notices"),
        history=[line for item in fields.items(record.get("history")) if (line := _line(item))],
        command=fields.block(record.get("command"), 8000),
        reproduce=_reproduce(record),
        provenance=_provenance(record, repair),
        glossary=glossary(repair, synthesis, twin_attack),
    )


def _headline(
    kind: str,
    record: Mapping[str, Any],
    scan: Scan | None,
    repair: Repair | None,
    synthesis: Synthesis | None,
    twin: Scan | None,
) -> tuple[str, str, str, list[Figure]]:
    if kind == "scan" and scan:
        return scan.verdict, scan.state, scan.sentence, scan.figures
    if kind == "clean" and repair:
        figures = [] if repair.untouched else repair.figures  # the scan's stand below
        return repair.title, repair.state, repair.outcome, figures
    if synthesis:
        return synthesis.title, "story", synthesis.lead, synthesis.figures
    figures = []
    if scan:
        suspects = f"class {words.listed(scan.suspects)}" if scan.suspects else ""
        figures.append(Figure("The backdoored network", scan.verdict, suspects))
    if repair:
        shown = ("Accuracy", "Attack success")
        figures += [figure for figure in repair.figures if figure.label in shown]
    if twin:
        figures.append(Figure("Its twin without a backdoor", twin.verdict, "the control"))
    heading = fields.text(record.get("title"), 200) or "Demo"
    return heading, "story", fields.text(record.get("sentence"), 1000), figures


def _eyebrow(record: Mapping[str, Any], kind: str) -> list[str]:
    model = fields.mapping(record.get("model"))
    version = fields.text(record.get("bezoar"), 40)
    parts = [f"bezoar {version}".strip(), kind, fields.text(model.get("file"), 120)]
    return [part for part in (*parts, words.moment(record.get("created"))) if part]


def _told(record: Mapping[str, Any], key: str) -> list[str]:
    """The lines of a record, of its images, and of the scans that it tells of, each once.

    Not those of a scan after a repair, which looks with fewer witnesses by design.
    """
    planted, twin = (fields.mapping(record.get(k)) for k in ("backdoored", "clean_twin"))
    parts = [record, record.get("images"), *(p.get("scan") for p in (record, planted, twin))]
    lines = [fields.texts(fields.mapping(part).get(key), 1000) for part in parts]
    return list(dict.fromkeys(line for told in lines for line in told))


def _line(item: Any) -> str:
    return " ".join(fields.block(item, 600).split())


def _reproduce(record: Mapping[str, Any]) -> list[Figure]:
    versions = fields.mapping(record.get("versions"))
    seed = fields.number(record.get("seed"))
    given = [("bezoar", record.get("bezoar")), *versions.items()]
    shown = [
        f"{fields.text(name, 40)} {version}"
        for name, value in given
        if (version := fields.text(value, 60))
    ]
    pairs = [
        ("Seed", "" if seed is None else f"{int(seed)}"),
        ("Device", fields.text(record.get("device"), 80)),
        ("Versions", ", ".join(shown)),
    ]
    return _present(pairs)


def _provenance(record: Mapping[str, Any], repair: Repair | None) -> list[Figure]:
    model, images = (fields.mapping(record.get(key)) for key in ("model", "images"))
    classes = len(fields.items(model.get("classes")))
    parameters = fields.number(model.get("parameters"))
    count = fields.number(images.get("count"))
    pairs = [
        ("Model file", fields.text(model.get("file"))),
        ("SHA-256 of the model file", fields.text(model.get("sha256"))),
        ("Container", fields.text(model.get("container"))),
        ("Architecture", fields.text(model.get("architecture"))),
        ("Final layer", fields.text(model.get("head"))),
        ("Parameters", "" if parameters is None else words.count(parameters)),
        ("Classes", f"{classes:,}" if classes else ""),
        (
            "Input",
            words.TIMES.join(words.count(size) for size in fields.numbers(model.get("input"))),
        ),
        ("Mean", _row(model.get("mean"))),
        ("Standard deviation", _row(model.get("std"))),
        ("Clean images", fields.text(images.get("source")) if images else _none(record)),
        ("Number of images", "" if count is None else words.count(count) + _spread(images)),
        ("SHA-256 of the images", fields.text(images.get("sha256"))),
        *_public(record.get("public")),
        ("Time", _times(record.get("seconds"))),
    ]
    output = repair.output if repair else []
    return _present(pairs) + output


def _public(given: Any) -> list[tuple[str, str]]:
    """What the user had in the place of images of the task."""
    public = fields.mapping(given)
    source, count = fields.text(public.get("source")), fields.number(public.get("count"))
    if fields.text(public.get("kind")) == "generator":
        return [("Generator", source)]
    return [
        ("Public images", source),
        ("Number of public images", "" if count is None else words.count(count)),
        ("SHA-256 of the public images", fields.text(public.get("sha256"))),
    ]


def _present(pairs: Sequence[tuple[str, str]]) -> list[Figure]:
    return [Figure(label, value) for label, value in pairs if label and value]


def _none(record: Mapping[str, Any]) -> str:
    return "none were given" if record.get("kind") == "clean" and "images" in record else ""


def _row(values: Any) -> str:
    return ", ".join(words.measure(value) for value in fields.numbers(values)[:16])


def _spread(images: Mapping[str, Any]) -> str:
    if images.get("labelled") is False:
        return ", without labels"
    counts = [value for value in fields.numbers(images.get("per_class")) if value is not None]
    if not counts:
        return ""
    low, high = words.count(min(counts)), words.count(max(counts))
    return f", {low} of each class" if low == high else f", {low} to {high} of each class"


def _times(record: Any) -> str:
    shown = [
        f"{fields.text(name, 60).replace('_', ' ')} {words.seconds(value)}"
        for name, given in fields.mapping(record).items()
        if (value := fields.number(given)) is not None
    ]
    return ", ".join(shown)
