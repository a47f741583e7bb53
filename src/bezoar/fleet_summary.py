"""The summary of the scans of many models: an entry for each, the worst first, and the totals."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from bezoar.executors import Failed
from bezoar.manifest import Row
from bezoar.spreadsheet import inert

NOT_USABLE = "not usable"
WORST_FIRST = ("backdoor found", "suspicious", NOT_USABLE, "nothing found")
COLUMNS = (
    *("model", "images", "verdict", "suspects", "p", "seconds", "reason", "notes"),
    *("weights", "sha256", "record"),
)


def finding_entry(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary holds of a scan's record."""
    classes = record["model"]["classes"]
    suspects = record["suspects"]
    return {
        "weights": record["model"]["file"],
        "sha256": record["model"]["sha256"],
        "verdict": record["verdict"],
        "sentence": record["sentence"],
        "reasons": record["reasons"],
        "notices": record["notices"],
        "suspects": suspects,
        "suspect_names": [classes[k] for k in suspects],
        "suspect_p": [record["p_values"][k] for k in suspects],
        "p": min(record["p_values"]),
        "seconds": record["seconds"]["total"],
    }


def failure_entry(row: Row, failed: Failed) -> dict[str, Any]:
    """Why a model could not be used: the reason in one sentence, and all that is known of it."""
    return row_entry(row) | {
        "weights": row.description.weights,
        "failed": {"kind": failed.kind, "reason": _reason(failed), "traceback": failed.traceback},
        "seconds": failed.seconds,
    }


def row_entry(row: Row) -> dict[str, Any]:
    """What the manifest says of a model."""
    return {"line": row.line, "model": row.model, "images": row.images}


def verdict_of(entry: Mapping[str, Any]) -> str:
    """The verdict of an entry, or that its model could not be used."""
    return str(entry.get("verdict", NOT_USABLE))


def summary(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The entries as ``models``, the worst first, and the ``counts`` of their verdicts.

    Among equal verdicts the smallest p-value comes first, then the order of the manifest.
    """
    models = sorted(entries, key=lambda one: (_place(one), one.get("p", 0.0), one["line"]))
    counts = Counter(map(verdict_of, models))
    return {
        "models": models,
        "counts": {name: counts[name] for name in WORST_FIRST if counts[name]},
    }


def summary_csv(models: Iterable[Mapping[str, Any]]) -> str:
    """The entries of a summary as a table in CSV, one line each, with a header."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for entry in models:
        shown = {
            "verdict": verdict_of(entry),
            "suspects": ", ".join(entry.get("suspect_names", ())),
            "reason": entry.get("failed", {}).get("reason", entry.get("unwritten")),
            "notes": " ".join(entry.get("notices", ())),
        }
        writer.writerow({key: inert(value) for key, value in {**entry, **shown}.items()})
    return stream.getvalue()


def _place(entry: Mapping[str, Any]) -> int:
    return WORST_FIRST.index(verdict_of(entry))


def _reason(failed: Failed) -> str:
    """One sentence, with the option that helps where it was one of our limits."""
    reason = failed.message
    for kind in ("InputError", "UnsafeFileError"):
        reason = reason.removeprefix(f"{kind}: ")
    said = failed.traceback.strip().splitlines()
    if failed.kind == "crash" and said:
        reason += f"; it last said: {said[-1].strip()}"
    if failed.kind == "timeout":
        reason += "; --timeout gives it more"
    elif any(sign in reason for sign in ("MemoryError", "allocate memory")):
        reason += "; --memory-limit gives it more"
    return reason
