"""What was run, what it took and how it was made: the plain facts of one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bezoar.report import fields, words
from bezoar.report.scan_view import Figure


def model_facts(
    record: Mapping[str, Any], config: Mapping[str, Any], model: Mapping[str, Any]
) -> list[Figure]:
    """Method, model, images and seed."""
    images = fields.mapping(record.get("images"))
    clean = fields.number(images.get("clean")) or fields.number(config.get("images"))
    rate, attack = fields.number(model.get("rate")), fields.text(model.get("attack"), 80)
    poisoned = f"{words.percent(rate)} of the training images" if attack else ""
    name, target, status = (
        fields.text(model.get(key), 120) for key in ("name", "target", "status")
    )
    if record.get("label") == "clean twin":  # the record's facts are those of the other network
        name = f"Twin of {name or 'an unnamed model'}, trained without poison"
        attack = target = poisoned = status = ""
    reference = record.get("role") == "reference"
    pairs = (
        ("Method", fields.text(fields.mapping(config.get("method")).get("name"), 80)),
        ("Needs", fields.text(record.get("needs"), 80)),
        ("Model", name),
        ("Network", fields.text(model.get("network"), 80)),
        ("Data", fields.text(model.get("data"), 80)),
        ("Attack", attack or "none: the model was trained without poison"),
        ("Target class", target),
        ("Poisoned", poisoned),
        ("Half of the pool", fields.text(model.get("half"), 40)),
        ("Counts as", status),
        ("Clean images", "" if reference else words.count(clean)),
        ("Public images", fields.text(config.get("public"))),
        ("Test images", words.count(fields.number(config.get("test_images")))),
        ("Seed", words.count(fields.number(config.get("seed")))),
    )
    return [Figure(label, value) for label, value in pairs if value]


def cost_facts(record: Mapping[str, Any]) -> list[Figure]:
    """Time, memory and device."""
    memory = fields.mapping(record.get("peak_memory"))
    size, failure = fields.number(memory.get("bytes")), fields.mapping(record.get("failure"))
    ended = fields.number(failure.get("seconds"))
    of = fields.text(memory.get("of"), 80)
    pairs = (
        ("Time", _seconds(record.get("seconds")), "of the method, without measuring"),
        ("Processor time", _seconds(record.get("processor_seconds")), "of all threads"),
        (
            "Peak memory",
            "" if size is None else f"{size / 2**20:,.0f} MiB",
            f"of {of}" if of else "",
        ),
        ("Failed after", "" if ended is None else words.seconds(ended), ""),
        ("Device", fields.text(record.get("device"), 80), ""),
    )
    return [Figure(label, value, note) for label, value, note in pairs if value]


def _seconds(value: Any) -> str:
    found = fields.number(value)
    return "" if found is None else words.seconds(found)


def made_facts(record: Mapping[str, Any], config: Mapping[str, Any]) -> list[Figure]:
    """Versions, machine and hashes."""
    versions = fields.mapping(record.get("versions"))
    told = ", ".join(f"{fields.text(k, 40)} {fields.text(v, 40)}" for k, v in versions.items())
    pairs = [
        ("Run", fields.text(record.get("key"), 80)),
        ("Made", words.moment(record.get("created"))),
        ("Machine", fields.text(record.get("machine"), 80)),
        ("Versions", told),
        ("Executor", fields.text(record.get("executor"))),
        ("SHA-256 of the test split", fields.text(config.get("images_sha256"), 80)),
    ]
    images = fields.mapping(record.get("images"))
    pairs.append(("SHA-256 of the clean images", fields.text(images.get("clean_sha256"), 80)))
    pairs += [
        (f"SHA-256 of {fields.text(name, 80)}", fields.text(value, 120))
        for name, value in fields.mapping(config.get("files")).items()
    ]
    return [Figure(label, value) for label, value in pairs if value]
