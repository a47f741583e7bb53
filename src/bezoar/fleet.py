"""Scans the many models that a manifest names; what was scanned before is not scanned again.

A manifest is a CSV with one row for each model. All that can be checked without reading weights is
checked first, and refused by line. Each model is then a task of an executor of its own: one that is
broken, hangs or takes too much memory is named with its reason, and the others go on.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

import bezoar
from bezoar import audit, pipeline
from bezoar.decoding import Resize
from bezoar.errors import InputError
from bezoar.executors import Done, Executor, Failed, Progress, Task
from bezoar.executors.file_cache import pack
from bezoar.executors.worker import report
from bezoar.images import ImageSet
from bezoar.intake import ModelDescription, load_model
from bezoar.intake.description import describe, read_fields
from bezoar.records import make_folder, to_json, write_json

KIND = "scan of a manifest"
FACTS = ("architecture", "mean", "std", "input_size", "classes")
COLUMNS = ("model", "images", *FACTS)

Finished = Callable[[str, int, int], None]
"""Called with the name of a finished model, the number of finished ones, and of all."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the manifest, checked as far as that goes without reading it.

    Attributes:
        line: where it stands in the manifest.
        model: the model.toml or file of weights, as the manifest has it.
        path: the same, as it is opened.
        description: complete but for what is read off the weights.
        images: the folder, file or pattern.
    """

    line: int
    model: str
    path: str
    description: ModelDescription
    images: str

    @property
    def files(self) -> dict[str, str]:
        """What a scan reads: argument of ``scan_one`` → path."""
        source, _, _ = self.description.architecture.rpartition(":")
        own_code = {"source": source} if source.endswith(".py") else {}
        return {"weights": self.description.weights, "images": _split(self.images)[0], **own_code}


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

    methods: tuple[str, ...] = pipeline.WITNESSES
    audit: bool = False
    seed: int = 0
    device: str | None = None
    resize: Resize = "none"
    limit: int | None = None

    def __post_init__(self) -> None:
        pipeline.find_witnesses(self.methods)
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}; expected at least 1")


def read_manifest(
    path: str | Path, *, images: str | None = None, facts: Mapping[str, Any] | None = None
) -> tuple[Row, ...]:
    """Reads a manifest; paths in it are relative to its folder.

    Args:
        path: a CSV with a header; ``COLUMNS`` says what it may hold.
        images: for the rows that name none.
        facts: about the models of rows that do not say them; they replace those of a model.toml.

    Raises:
        InputError: it cannot be read, or a line cannot be used; the message names the first.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InputError(f"the manifest {path} cannot be read: {reason}") from error
    rows: list[Row] = []
    refused: list[str] = []
    for line, cells in _lines(path, text):
        try:
            rows.append(_row(line, cells, path.parent, images, facts or {}))
        except InputError as error:
            refused.append(f"{path}, line {line}: {error}")
    refused += _repeated(path, rows)
    if refused:
        more = f" ({len(refused) - 1} more lines cannot be used)" if refused[1:] else ""
        raise InputError(refused[0] + more)
    if not rows:
        raise InputError(f"the manifest {path} names no model; give one in each line")
    return tuple(rows)


def _lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row that is not empty: its line, and the cells that are not empty."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header)
        for cells in reader:
            if len(cells) > len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: there are {len(cells)} cells and "
                    f"{len(header)} columns; put a cell that holds a comma in double quotes"
                )
            filled = {n: c.strip() for n, c in zip(header, cells, strict=False) if c.strip()}
            if filled:
                yield reader.line_num, filled
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: this is no CSV: {error}") from error


def _check_header(path: Path, header: Sequence[str]) -> None:
    for name in header:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f"perhaps you meant {near[0]!r}" if near else f"known: {', '.join(COLUMNS)}"
            raise InputError(f"{path}, line 1: there is no column {name!r}; {hint}")
    if "model" not in header:
        raise InputError(
            f"{path}, line 1: the column 'model' is missing; the first line names the columns: "
            f"{', '.join(COLUMNS)}"
        )
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise InputError(f"{path}, line 1: the column {twice[0]!r} is there twice; give it once")


def _row(
    line: int, cells: dict[str, str], folder: Path, images: str | None, facts: Mapping[str, Any]
) -> Row:
    if "model" not in cells:
        raise InputError("no model is named; give a model.toml or a file of weights")
    given = {name: value for name, value in facts.items() if value is not None}
    own = {name: _fact(name, cells[name]) for name in FACTS if name in cells}
    if ".py:" in own.get("architecture", ""):
        own["architecture"] = str(folder.resolve() / own["architecture"])
    if ".py:" in given.get("architecture", ""):
        given["architecture"] = str(Path(given["architecture"]).absolute())
    path = folder / cells["model"]
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise InputError(f"{what}; give a model.toml or a file with weights")
    is_toml = path.suffix.lower() == ".toml"
    fields = read_fields(path) if is_toml else {"weights": str(path.resolve())}
    description = describe({**fields, **given, **own}, str(path))
    source = str(folder / cells["images"]) if "images" in cells else images
    if source is None:
        raise InputError("no images are named; fill the column 'images', or give --images for all")
    row = Row(
        line=line, model=cells["model"], path=str(path), description=description, images=source
    )
    for name, file in row.files.items():
        if name == "images" and not Path(file).exists():
            raise InputError(f"there is no file or folder {file}; give clean images")
        if name != "images" and not Path(file).is_file():
            raise InputError(f"there is no file {file}; correct the path")
    return row


def _fact(name: str, text: str) -> Any:
    """The value of a cell; several are separated by spaces."""
    words = text.split()
    try:
        if name in ("mean", "std"):
            return tuple(map(float, words))
        if name == "input_size":
            return int(words[0]) if len(words) == 1 else tuple(map(int, words))
    except ValueError:
        raise InputError(
            f"{name} is {text!r}; expected numbers that are separated by spaces"
        ) from None
    return tuple(words) if name == "classes" else text


def _repeated(path: Path, rows: Sequence[Row]) -> list[str]:
    """A sentence for each row that was there before."""
    first: dict[str, int] = {}
    repeated = []
    for row in rows:
        places = [str(Path(file).resolve()) for file in (row.description.weights, row.images)]
        facts = msgspec.structs.replace(row.description, weights="")
        same = json.dumps([places, msgspec.to_builtins(facts)], sort_keys=True)
        if first.setdefault(same, row.line) != row.line:
            repeated.append(
                f"{path}, line {row.line}: this is the same as line {first[same]}; leave one out"
            )
    return repeated


def _split(images: str) -> tuple[str, str | None]:
    """Where images lie, and the pattern that chooses among them, if there is one."""
    path = Path(images)
    if not path.exists() and any(sign in path.name for sign in "*?["):
        return str(path.parent), path.name
    return images, None


# -- the work --------------------------------------------------------------------------------------


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
            have changed are scanned anew; a model that failed has none, and is tried again.
        finished: called after each model.
        progress: called with a model's name, what it does, and the share that is finished.

    Returns:
        ``models``, one for each row, and ``counts`` of the verdicts and of "not usable".

    Raises:
        InputError: ``out`` cannot be made, or a record cannot be written.
    """
    started = time.perf_counter()
    if out is not None:
        make_folder(out)
    names = _names(rows, options)
    found: dict[str, dict[str, Any]] = {}
    for name, row in names.items():
        record = _read(out, name)
        if record is not None:
            found[name] = _summary(row, record, out, name) | {"scanned": "before"}
    missing = [_task(name, row, options) for name, row in names.items() if name not in found]
    if finished is not None and found:
        finished("", len(found), len(rows))
    for name, outcome in executor.run(missing, progress=progress):
        row = names[name]
        if isinstance(outcome, Done):
            record = _with_sources(outcome.value, row)
            if out is not None:
                write_json(out / f"{name}.json", record)
            found[name] = _summary(row, record, out, name) | {"scanned": "now"}
        else:
            found[name] = _named(row) | {"failed": _failure(outcome), "seconds": outcome.seconds}
        if finished is not None:
            finished(row.model, len(found), len(rows))
    models = [found[name] for name in names]
    counts = Counter(model.get("verdict", "not usable") for model in models)
    return {
        "kind": KIND,
        "bezoar": bezoar.__version__,
        "options": msgspec.to_builtins(options),
        "models": models,
        "counts": dict(counts),
        "seconds": {"total": time.perf_counter() - started},
    }


def scan_one(
    *,
    weights: str,
    images: str,
    description: dict[str, Any],
    options: dict[str, Any],
    source: str | None = None,
    pattern: str | None = None,
) -> dict[str, Any]:
    """The task: scans one model and returns the record, as JSON keeps it.

    Args:
        weights: the file of weights.
        images: a folder or file with images.
        description: the ``ModelDescription``, in which the weights may lie elsewhere.
        options: the ``ScanOptions``.
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
    finding = look(
        loaded.classifier, clean, seed=chosen.seed, witnesses=chosen.methods, progress=report
    )
    record = finding.record
    record["model"] |= loaded.as_record()
    record["notices"] = [*record["notices"], *loaded.notices]
    return to_json(record)  # type: ignore[no-any-return]  # a dict gives a dict


def _task(name: str, row: Row, options: ScanOptions) -> Task:
    arguments: dict[str, Any] = {
        "description": msgspec.to_builtins(row.description),
        "options": msgspec.to_builtins(options),
        "pattern": _split(row.images)[1],
    }
    return Task(key=name, function=scan_one, arguments=arguments, files=row.files)


def _names(rows: Sequence[Row], options: ScanOptions) -> dict[str, Row]:
    """Stem of the model and hash of all that its record is made from → row."""
    keys: dict[str, str] = {}

    def key(path: str) -> str:
        if path not in keys:
            try:
                keys[path] = pack(Path(path), _forget).key
            except OSError as error:  # the scan will say so, and leave no record
                keys[path] = str(error)
        return keys[path]

    witnesses = [
        {"name": method.name, **method.configuration()}
        for method in pipeline.find_witnesses(options.methods)
    ]
    settings = [bezoar.__version__, witnesses, msgspec.to_builtins(options)]
    named: dict[str, Row] = {}
    for row in rows:
        content = {name: key(path) for name, path in row.files.items()}
        facts = msgspec.to_builtins(row.description) | {"weights": None}
        if "source" in content:
            facts["architecture"] = row.description.architecture.rpartition(":")[2]
        made_from = json.dumps([settings, content, facts, _split(row.images)[1]], sort_keys=True)
        digest = hashlib.sha256(made_from.encode()).hexdigest()
        named[_unused(f"{Path(row.path).stem}-{digest[:12]}", named)] = row
    return named


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
    record["images"]["source"] = row.images
    return record


def _named(row: Row) -> dict[str, Any]:
    return {"line": row.line, "model": row.model, "images": row.images}


def _summary(row: Row, record: dict[str, Any], out: Path | None, name: str) -> dict[str, Any]:
    """What the table shows of a record."""
    classes = record["model"]["classes"]
    return _named(row) | {
        "verdict": record["verdict"],
        "suspects": record["suspects"],
        "suspect_names": [classes[k] for k in record["suspects"]],
        "p": min(record["p_values"]),
        "seconds": record["seconds"]["total"],
        "record": None if out is None else str(out / f"{name}.json"),
    }


def _failure(failed: Failed) -> dict[str, str]:
    """Why a model could not be used, in one sentence, and all that is known of it."""
    reason = failed.message
    for kind in ("InputError", "UnsafeFileError"):
        reason = reason.removeprefix(f"{kind}: ")
    said = failed.traceback.strip().splitlines()
    if failed.kind == "crash" and said:
        reason += f"; it last said: {said[-1].strip()}"
    return {"kind": failed.kind, "reason": reason, "traceback": failed.traceback}
