"""Scans in the format that pipelines and code hosts read: SARIF 2.1.0 (OASIS, 2020).

One run; a rule for each verdict. A backdoor that was found is an error and a suspicious model a
warning; a scan that found nothing is a result of the kind ``pass``, so that a gate sees that it was
made. A model that could not be used is no result but a notification of the tool, whose execution
then was not successful.

GitHub's code scanning asks for more than the standard: descriptions and help of each rule, a
location with a region for each result, and the fingerprint ``primaryLocationLineHash``. A file of
weights has no lines; the region is the empty one at its start.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bezoar
from bezoar.places import place_of

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
ROOT = "%SRCROOT%"  # what relative locations are relative to, as other tools name it
NOT_USABLE = "not-usable"

_LEVELS = {"backdoor found": "error", "suspicious": "warning", "nothing found": "none"}
_START = {"startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 1}
_TEXTS = {  # what it says, what that means, what to do
    "backdoor found": (
        "A backdoor was found in the model.",
        "A recovered trigger or perturbation works on held-out images, and models without a "
        "backdoor hardly ever show one like it.",
        "Do not use the model. See the evidence with bezoar scan --report, and repair the model "
        "with bezoar clean, or get one from a source that you trust.",
    ),
    "suspicious": (
        "The model is suspicious.",
        "A statistic lies outside what models without a backdoor show, without a trigger that "
        "is proven to work.",
        "See the evidence with bezoar scan --report, and scan again with more clean images, or "
        "with what its notes ask for.",
    ),
    "nothing found": (
        "The scan of the model found nothing.",
        "No class stands out from what models without a backdoor show. This is no proof that "
        "there is no backdoor.",
        "Nothing has to be done; the message says what the scan leaves open.",
    ),
    "not usable": (
        "The model could not be scanned.",
        "It could not be read or run, took too long, or took too much memory.",
        "The message says why; nothing is known about this model.",
    ),
}


def sarif_log(
    entries: Sequence[Mapping[str, Any]], *, base: Path, command: str | None = None
) -> dict[str, Any]:
    """The log of one call.

    Args:
        entries: one for each model, as ``fleet_summary`` makes them.
        base: the folder in which the command runs. Files below it are named relative to it, others
            with their full path.
        command: the command line.
    """
    places: dict[str, dict[str, Any]] = {}  # URI → the artifact
    results, notifications = [], []
    for entry in entries:
        where = _location(entry, base, places)
        if "failed" in entry:
            notifications.append(_notification(entry, where))
        else:
            results.append(_result(entry, where))
    invocation: dict[str, Any] = {
        "executionSuccessful": not notifications,
        "toolExecutionNotifications": notifications,
    }
    if command is not None:
        invocation["commandLine"] = command
    run = {
        "tool": {"driver": _driver()},
        "invocations": [invocation],
        "originalUriBaseIds": {
            ROOT: {"description": {"text": "The folder in which bezoar was run."}}
        },
        "artifacts": list(places.values()),
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _driver() -> dict[str, Any]:
    return {
        "name": "bezoar",
        "version": bezoar.__version__,
        "shortDescription": {"text": "Finds backdoors in trained image classifiers."},
        "rules": [
            _descriptor(verdict, level) | {"properties": {"tags": ["security", "backdoor"]}}
            for verdict, level in _LEVELS.items()
        ],
        "notifications": [_descriptor("not usable", "error")],
    }


def _descriptor(name: str, level: str) -> dict[str, Any]:
    says, means, to_do = _TEXTS[name]
    return {
        "id": _identifier(name),
        "name": name.title().replace(" ", ""),
        "shortDescription": {"text": says},
        "fullDescription": {"text": means},
        "help": {"text": to_do},
        "defaultConfiguration": {"level": level},
    }


def _identifier(name: str) -> str:
    return name.replace(" ", "-")


def _result(entry: Mapping[str, Any], where: dict[str, Any]) -> dict[str, Any]:
    verdict = entry["verdict"]
    rule = _identifier(verdict)
    level = _LEVELS[verdict]
    notes = (f"Note: {notice}" for notice in entry["notices"])  # such as what could not be seen
    sentences = (f"{verdict.capitalize()}.", entry["sentence"], *entry["reasons"], *notes)
    return {
        "ruleId": rule,
        "ruleIndex": list(_LEVELS).index(verdict),
        "kind": "pass" if level == "none" else "fail",
        "level": level,
        "message": {"text": _plain(" ".join(sentences))},
        "locations": [{"physicalLocation": where | {"region": _START}}],
        "partialFingerprints": _fingerprints(rule, where, entry["sha256"]),
        "properties": {
            **{key: entry[key] for key in ("model", "images", "line") if key in entry},
            "verdict": verdict,
            "p": entry["p"],
            "suspects": [
                {"class": k, "name": name, "p": p}
                for k, name, p in zip(
                    entry["suspects"], entry["suspect_names"], entry["suspect_p"], strict=True
                )
            ],
            "seconds": entry["seconds"],
        },
    }


def _notification(entry: Mapping[str, Any], where: dict[str, Any]) -> dict[str, Any]:
    failed = entry["failed"]
    return {
        "descriptor": {"id": NOT_USABLE, "index": 0},
        "level": "error",
        "message": {"text": _plain(f"{entry['model']} could not be used: {failed['reason']}")},
        "locations": [{"physicalLocation": where}],
        "properties": {
            **{key: entry[key] for key in ("model", "images", "line")},
            "kind": failed["kind"],
            "seconds": entry["seconds"],
        },
    }


def _location(
    entry: Mapping[str, Any], base: Path, places: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The place of a file of weights, which is entered among the artifacts."""
    place = _place(base, entry["weights"])
    artifact = places.setdefault(place["uri"], {"location": place, "roles": ["analysisTarget"]})
    if "sha256" in entry:
        artifact["hashes"] = {"sha-256": entry["sha256"]}
    return {"artifactLocation": place | {"index": list(places).index(place["uri"])}}


def _place(base: Path, file: str) -> dict[str, Any]:
    """Relative to ``base`` where the file, or a link to it, lies below; links are followed first.

    Code hosts know a file by its own path and not by that of a link.
    """
    given, top = place_of(base / file), base.resolve()
    for path, root in ((given.resolve(), top), (given, place_of(base)), (given, top)):
        if path.is_relative_to(root):
            inside = os.fsencode(path.relative_to(root).as_posix())
            return {"uri": urllib.parse.quote(inside), "uriBaseId": ROOT}
    return {"uri": given.resolve().as_uri()}


def _fingerprints(rule: str, where: Mapping[str, Any], sha256: str) -> dict[str, str]:
    """The same for the same verdict on the same file at the same place, whatever the p-values."""
    same = "\n".join((rule, where["artifactLocation"]["uri"], sha256))
    digest = hashlib.sha256(same.encode()).hexdigest()
    return {"verdictOnWeights/v1": digest, "primaryLocationLineHash": f"{digest[:16]}:1"}


def _plain(text: str) -> str:
    """Text as a message, in which braces stand for arguments and ``[a](b)`` for a link.

    Names of classes come from files that are not trusted.
    """
    return text.replace("{", "{{").replace("}", "}}").replace("](", "] (")
