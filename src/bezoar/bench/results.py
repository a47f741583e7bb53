"""Result files: one JSON a run, named by the run's address, written beside and renamed.

A file that was cut short, or that holds another run than its name says, counts as missing: the run
is done again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from bezoar.bench.runs import PlannedRun, Run
from bezoar.records import write_json

FOLDER = "runs"
KIND = "bench run"


def path_of(out: Path, key: str) -> Path:
    """The file of the run with this address."""
    return out / FOLDER / f"{key}.json"


def read_result(out: Path, planned: PlannedRun) -> dict[str, Any] | None:
    """The record of a run; None where there is none that can be used."""
    record = _parsed(path_of(out, planned.key))
    return record if record is not None and record["key"] == planned.key else None


def write_result(out: Path, record: dict[str, Any]) -> None:
    """Writes the file of a run.

    Raises:
        InputError: nothing can be written there.
    """
    write_json(path_of(out, record["key"]), record)


def _parsed(file: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        run = msgspec.convert(record["config"], Run)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = record.get("kind") == KIND and record.get("state") in ("done", "failed")
    return record if whole and record.get("key") == run.key else None
