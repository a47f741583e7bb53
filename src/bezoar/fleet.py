"""Scans the many models that a manifest names; what was scanned before is not scanned again.

Each model of the manifest is a task of an executor of its own: one that is broken, hangs or takes
too much memory is named with its reason, and the others go on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

import bezoar
from bezoar import audit, pipeline
from bezoar.decoding import Resize
from bezoar.errors import InputError
from bezoar.executors import Done, Executor, Progress, Task
from bezoar.executors.file_cache import pack
from bezoar.executors.worker import report
from bezoar.fleet_summary import failure_entry, finding_entry, row_entry, summary
from bezoar.images import ImageSet
from bezoar.intake import ModelDescription, load_model
from bezoar.manifest import Row
from bezoar.networks.architectures import sources_beside
from bezoar.records import make_folder, to_json, write_json

KIND = "scan of a manifest"
LONGEST_STEM = 200  # bytes; a file name has at most 255
Finished = Callable[[str, int, int], None]
"""Called with the name of a finished model, the number of finished ones, and of all."""


class ScanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How each model is scanned.

    Attributes:
        methods: who looks.
        audit: whether the models claim to be cleaned.
        seed: of everything drawn at random.
        device: where to compute; by default the accelerator, else the CPU.
        resize: what happens to images of another size.
        limit: at most so many images.
    """

    methods: tuple[str, ...] = (pipeline.AUTO,)
    audit: bool = False
    seed: int = 0
    device: str | None = None
    resize: Resize = "none"
    limit: int | None = None

    def __post_init__(self) -> None:
        pipeline.find_witnesses(self.methods)
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}; expected at least 1")


def scan_models(
    rows: Sequence[Row],
    options: ScanOptions,
    executor: Executor,
    *,
    out: Path | None = None,
    finished: Finished | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scans the models that have no record yet; returns the summary of all.

    Args:
        rows: the models.
        options: how they are scanned.
        executor: where.
        out: a folder for one record of each model, made if it is not there; with None no record is
            kept. A record is named after all that it was made from, so that a model or images that
            have changed are scanned anew, as is one with an architecture of the user's own when a
            Python file beside or below that changes; a model that failed has none, and is tried
            again. Where a record cannot be written, its entry says why, as ``unwritten``.
        finished: called after each model.
        progress: called with a model's name, what it does, and the share that is finished.

    Returns:
        ``models``, an entry for each row, the worst first, and ``counts`` of the verdicts and of
        "not usable".

    Raises:
        InputError: ``out`` cannot be made, or takes no record of a scan that is to come, or a model
            without images is to be audited or looked at by a method that needs them.
    """
    started = time.perf_counter()
    blind = next((row for row in rows if row.images is None), None)
    if blind is not None:
        try:
            pipeline.find_witnesses(options.methods, has_images=False)
            if options.audit:
                raise InputError("an audit needs clean images of the task")
        except InputError as error:
            raise InputError(
                f"line {blind.line} of the manifest names no images: {error}"
            ) from None
    if out is not None:
        make_folder(out)
    names = _names(rows, options)
    found: dict[str, dict[str, Any]] = {}
    for name, row in names.items():
        record = _read(out, name)
        if record is not None:
            found[name] = _entry(row, record, out, name) | {"scanned": "before"}
    missing = [_task(name, row, options) for name, row in names.items() if name not in found]
    if out is not None and missing:
        _check_takes_files(out)
    if finished is not None and found:
        finished("", len(found), len(rows))
    for name, outcome in executor.run(missing, progress=progress):
        row = names[name]
        if isinstance(outcome, Done):
            record = _with_sources(outcome.value, row)
            found[name] = _entry(row, record, out, name) | {"scanned": "now"}
            try:
                if out is not None:
                    write_json(out / f"{name}.json", record)
            except InputError as error:  # what was found must not be lost with it
                found[name] |= {"record": None, "unwritten": str(error)}
        else:
            found[name] = failure_entry(row, outcome)
        if finished is not None:
            finished(row.model, len(found), len(rows))
    return {
        "kind": KIND,
        "bezoar": bezoar.__version__,
        "options": msgspec.to_builtins(options),
        **summary(found.values()),
        "seconds": {"total": time.perf_counter() - started},
    }


def scan_one(
    *,
    weights: str,
    description: dict[str, Any],
    options: dict[str, Any],
    images: str | None = None,
    source: str | None = None,
    pattern: str | None = None,
) -> dict[str, Any]:
    """The task: scans one model and returns the record, as JSON keeps it.

    Args:
        weights: the file of weights.
        description: the ``ModelDescription``, in which the weights may lie elsewhere.
        options: the ``ScanOptions``.
        images: a folder or file with images; None scans without any.
        source: the file of an architecture of the user's own.
        pattern: chooses parquet files in the folder ``images``.

    Raises:
        InputError: the model or the images cannot be used.
    """
    described = msgspec.convert({**description, "weights": weights}, ModelDescription)
    if source is not None:
        function = described.architecture.rpartition(":")[2]
        described = msgspec.structs.replace(described, architecture=f"{source}:{function}")
    chosen = msgspec.convert(options, ScanOptions)
    report("reading", 0.0)
    loaded = load_model(described, device=chosen.device)
    how: dict[str, Any] = {"seed": chosen.seed, "witnesses": chosen.methods, "progress": report}
    if images is None:
        record = pipeline.scan(loaded.classifier, **how).record
    else:
        clean = ImageSet.open(
            images if pattern is None else str(Path(images) / pattern),
            channels=loaded.description.channels,
            size=loaded.classifier.input_size,
            resize=chosen.resize,
            classes=loaded.description.classes,
        )
        if chosen.limit is not None and chosen.limit < len(clean):
            clean = clean.sample(chosen.limit, seed=chosen.seed)
        look = audit.audit if chosen.audit else pipeline.scan
        record = look(loaded.classifier, clean, **how).record
    record["model"] |= loaded.as_record()
    record["notices"] = [*record["notices"], *loaded.notices]
    return to_json(record)  # type: ignore[no-any-return]  # a dict gives a dict


def _task(name: str, row: Row, options: ScanOptions) -> Task:
    arguments: dict[str, Any] = {
        "description": msgspec.to_builtins(row.description),
        "options": msgspec.to_builtins(options),
        "pattern": row.pattern,
    }
    return Task(
        key=name, function=scan_one, arguments=arguments, files=row.files, patterns=row.patterns
    )


def _check_takes_files(folder: Path) -> None:
    """Finds out before any scan; rights alone do not tell, as a file system can be read-only."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part"):
            pass
    except OSError as error:
        raise InputError(
            f"no records can be written in {folder}: {error.strerror or error}; give a folder that "
            "you may write to"
        ) from error


def _names(rows: Sequence[Row], options: ScanOptions) -> dict[str, Row]:
    """Stem of the model and hash of all that its record is made from → row."""

    @functools.cache
    def key(path: str, pattern: str | None) -> str:
        try:
            return pack(Path(path), _forget, pattern).key
        except OSError:  # what cannot be read whole is no ground to keep a record on
            return secrets.token_hex()

    @functools.cache
    def imported(source: str) -> dict[str, str]:
        folder = Path(source).resolve().parent
        return {
            file.relative_to(folder).as_posix(): key(str(file), None)
            for file in sources_beside(Path(source))
        }

    witnesses = [
        {"name": method.name, **method.configuration()}
        for method in pipeline.find_witnesses(options.methods)
    ]
    settings = [bezoar.__version__, _nulls(), witnesses, msgspec.to_builtins(options)]
    named: dict[str, Row] = {}
    for row in rows:
        content: dict[str, Any] = {
            name: key(path, row.patterns.get(name)) for name, path in row.files.items()
        }
        # Only where there are some, so that the names of other records stay.
        if "source" in row.files and (beside := imported(row.files["source"])):
            content["imported"] = beside
        facts = msgspec.to_builtins(row.description) | {"weights": None}
        if "source" in content:
            facts["architecture"] = row.description.architecture.rpartition(":")[2]
        made_from = json.dumps([settings, content, facts, row.pattern], sort_keys=True)
        digest = hashlib.sha256(made_from.encode()).hexdigest()
        named[_unused(f"{_short(Path(row.path).stem)}-{digest[:12]}", named)] = row
    return named


def _short(stem: str) -> str:
    """The beginning of a long name, so that a file can be named by it and what follows it."""
    raw = os.fsencode(stem)
    return stem if len(raw) <= LONGEST_STEM else raw[:LONGEST_STEM].decode(errors="ignore")


def _nulls() -> dict[str, str]:
    """What verdicts are measured by, which may change without the version: file → SHA-256."""
    data = (resources.files("bezoar") / "data").iterdir()
    nulls = {file.name: file.read_bytes() for file in data if file.name.endswith(".json")}
    return {name: hashlib.sha256(nulls[name]).hexdigest() for name in sorted(nulls)}


def _unused(name: str, named: Mapping[str, Row]) -> str:
    """Two files of the same content and name may stand in two folders."""
    numbers = (f"{name}-{n}" for n in range(2, len(named) + 2))
    return name if name not in named else next(one for one in numbers if one not in named)


def _forget(_thing: Any) -> None:
    return None


def _read(out: Path | None, name: str) -> dict[str, Any] | None:
    """The record of an earlier call, if it is there and whole."""
    if out is None:
        return None
    try:
        record = json.loads((out / f"{name}.json").read_bytes())
        return record if record["kind"] == "scan" and record["verdict"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _with_sources(record: dict[str, Any], row: Row) -> dict[str, Any]:
    """The record with the places that the user knows; the task may have seen copies."""
    record["model"] |= {
        "file": row.description.weights,
        "architecture": row.description.architecture,
    }
    if row.images is not None:
        record["images"]["source"] = row.images
    return record


def _entry(row: Row, record: dict[str, Any], out: Path | None, name: str) -> dict[str, Any]:
    kept = None if out is None else str(out / f"{name}.json")
    # A record is named after content alone: an earlier call may have found the file elsewhere.
    here = {"weights": row.description.weights, "record": kept}
    return row_entry(row) | finding_entry(record) | here
