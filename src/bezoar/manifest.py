"""The manifest of many models: a CSV with one row for each, checked before any work.

All that can be checked without reading weights is checked, and refused by line.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bezoar.errors import InputError
from bezoar.intake import ModelDescription
from bezoar.intake.description import describe, read_fields
from bezoar.places import place_of

FACTS = ("architecture", "mean", "std", "input_size", "classes")
COLUMNS = ("model", "images", *FACTS)
WITHOUT = "-"  # in the column of images: there are none, and a gap would be a mistake


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the manifest, checked as far as that goes without reading it.

    Attributes:
        line: where it stands in the manifest.
        model: the model.toml or file of weights, as the manifest has it.
        path: the same, as it is opened.
        description: complete but for what is read off the weights.
        images: the folder, file or pattern; None where there are none.
    """

    line: int
    model: str
    path: str
    description: ModelDescription
    images: str | None

    @property
    def pattern(self) -> str | None:
        """What chooses among the images of a folder; None takes all."""
        return None if self.images is None else split_pattern(self.images)[1]

    @property
    def patterns(self) -> dict[str, str]:
        """The same for each of ``files`` that has one."""
        return {} if self.pattern is None else {"images": self.pattern}

    @property
    def files(self) -> dict[str, str]:
        """What a scan reads: argument of ``scan_one`` → path."""
        source, _, _ = self.description.architecture.rpartition(":")
        own_code = {"source": source} if source.endswith(".py") else {}
        images = {} if self.images is None else {"images": split_pattern(self.images)[0]}
        return {"weights": self.description.weights, **images, **own_code}


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
    refused: dict[int, str] = {}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = _header(path, next(reader, []))
        for cells in reader:
            try:
                if filled := _filled(header, cells):
                    rows.append(_row(reader.line_num, filled, path.parent, images, facts or {}))
            except InputError as error:
                refused[reader.line_num] = str(error)
    except csv.Error as error:
        refused[reader.line_num] = f"this is no CSV: {error}"
    refused |= _repeated(rows)
    if refused:
        first = min(refused)
        more = f" ({len(refused) - 1} more lines cannot be used)" if len(refused) > 1 else ""
        raise InputError(f"{path}, line {first}: {refused[first]}{more}")
    if not rows:
        raise InputError(f"the manifest {path} names no model; give one in each line")
    return tuple(rows)


def _filled(header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """Column → cell, of those that are not empty."""
    if len(cells) > len(header):
        raise InputError(
            f"there are {len(cells)} cells and {len(header)} columns; put a cell that holds a "
            "comma in double quotes"
        )
    return {n: c.strip() for n, c in zip(header, cells, strict=False) if c.strip()}


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    header = [name.strip() for name in cells]
    for name in header:
        if {";", "\t"} & set(name):
            raise InputError(f"{path}, line 1: {name!r} is one cell; separate cells by commas")
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
    return header


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
    weights = str(place_of(path))
    fields = read_fields(path) if is_toml else {"weights": weights}
    description = describe({**fields, **given, **own}, str(path))
    source = str(folder / cells["images"]) if "images" in cells else images
    if cells.get("images") == WITHOUT:
        source = None
        if description.input_size is None:
            raise InputError("without images, input_size must say what the model takes")
    elif source is None:
        raise InputError(
            "no images are named; fill the column 'images', or give --images for all, or scan "
            f"without images by {WITHOUT!r} in that column"
        )
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


def _repeated(rows: Sequence[Row]) -> dict[int, str]:
    """Line → a sentence, for each row that was there before."""
    first: dict[str, int] = {}
    repeated: dict[int, str] = {}
    for row in rows:
        places = [
            str(Path(file).resolve()) for file in (row.description.weights, row.images) if file
        ]
        facts = msgspec.structs.replace(row.description, weights="")
        same = json.dumps([places, msgspec.to_builtins(facts)], sort_keys=True)
        if first.setdefault(same, row.line) != row.line:
            repeated[row.line] = f"this is the same as line {first[same]}; leave one out"
    return repeated


def split_pattern(images: str) -> tuple[str, str | None]:
    """Where images lie, and the pattern that chooses among them, if there is one."""
    path = Path(images)
    if not path.exists() and any(sign in path.name for sign in "*?["):
        return str(path.parent), path.name
    return images, None
