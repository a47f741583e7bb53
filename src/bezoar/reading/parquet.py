"""Images in parquet files, as Hugging Face ``datasets`` writes them."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bezoar.errors import InputError
from bezoar.reading.collect import Encoded, Reading, ReadOptions, decode_all
from bezoar.reading.labels import settle_labels

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")

_BATCH = 256
_PARTS = frozenset({"train", "test", "valid", "validation", "val", "dev"})


def read_parquet(
    path: str | os.PathLike[str],
    options: ReadOptions,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    box_column: str | None = None,
) -> Reading:
    """Reads images, and labels if there are some, from one parquet file or from its parts.

    The image column holds encoded files, as bytes or as a struct of ``bytes`` and ``path`` (a path
    is relative to the parquet file). Labels are class indices or class names; null and -1 mean "no
    label". Class names are those that ``datasets`` leaves in the schema.

    Args:
        path: a file, a folder of parquet files, or a pattern such as ``data/test-*.parquet``.
        options: channels, size and the rest.
        image_column: the name of the column; by default "image" or "img".
        label_column: the same for labels; by default "label", "labels" or "fine_label".
        box_column: a column of left, upper, right, lower in pixels; every image is cut to its box
            and resized (bicubic) to its own size again.

    Raises:
        InputError: pyarrow is not installed, a file or an image cannot be used, or a column is
            missing.
    """
    files = _files(path)
    parts = [_open(file) for file in files]
    columns = parts[0].schema_arrow.names
    image_column = _column(columns, IMAGE_COLUMNS, image_column, files[0])
    if image_column is None:
        raise InputError(
            f"{files[0]} has the columns {', '.join(columns)}; expected the images in one called "
            f"{' or '.join(IMAGE_COLUMNS)}; rename it to {IMAGE_COLUMNS[0]}, or in Python pass "
            "image_column to ImageSet.from_parquet"
        )
    label_column = _column(columns, LABEL_COLUMNS, label_column, files[0])
    _column(columns, (), box_column, files[0])
    wanted = [name for name in (image_column, label_column, box_column) if name is not None]
    for file, part in zip(files, parts, strict=True):
        for name in wanted:
            _column(part.schema_arrow.names, (), name, file)
    count = sum(part.metadata.num_rows for part in parts)
    if not count:
        raise InputError(f"{path} has no rows; expected at least one image")

    labels: np.ndarray | None = None
    classes = options.classes
    notices: tuple[str, ...] = ()
    if label_column is not None:
        values = _labels(files, parts, label_column)
        own = _class_names(files, parts, label_column)
        labels, classes, notices = settle_labels(values, str(path), own, options.classes)
    images = decode_all(lambda: _rows(files, parts, image_column, box_column), count, options)
    return Reading(images=images, labels=labels, classes=classes, notices=notices)


def common_classes(paths: Sequence[str | os.PathLike[str]]) -> tuple[str, ...] | None:
    """Class names by which a label has the same index in all parts of one data set.

    Args:
        paths: each part: a file, a folder of parquet files, or a pattern.

    Returns:
        The names of the first schema that gives some, or else all names that are labels, sorted.
        None where the parts agree already, or where one has labels without names or none.

    Raises:
        InputError: as ``read_parquet``.
    """
    schemas, found = [], []
    for path in paths:
        files = _files(path)
        parts = [_open(file) for file in files]
        column = _column(parts[0].schema_arrow.names, LABEL_COLUMNS, None, files[0])
        if column is None:
            return None
        for file, part in zip(files, parts, strict=True):
            _column(part.schema_arrow.names, (), column, file)
        schemas.append(_class_names(files, parts, column))
        names = schemas[-1]
        if names is None:
            values = {value for value in _labels(files, parts, column) if isinstance(value, str)}
            names = tuple(sorted(values))
        found.append(names)
    if not all(found) or len(set(found)) == 1:
        return None
    every = tuple(sorted({name for names in found for name in names}))
    return next((names for names in schemas if names is not None), every)


def _files(path: str | os.PathLike[str]) -> list[Path]:
    """The parquet files that ``path`` names, in order of their names."""
    where = Path(path)
    if where.is_dir():
        found = sorted(child for child in where.iterdir() if child.suffix.lower() == ".parquet")
        if not found:
            raise InputError(f"there are no .parquet files in {where}; check the path")
    elif where.exists():
        found = [where]
    else:
        matches = glob.glob(os.fspath(path), recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        found = sorted(Path(name) for name in matches)
        if not found:
            raise InputError(f"no file matches {where}; expected parquet files; check the path")
        strange = [file for file in found if file.suffix.lower() != ".parquet"]
        if strange:
            raise InputError(
                f"the pattern {where} matches {strange[0]}; expected .parquet files only; narrow "
                "the pattern"
            )
    words = {word for file in found for word in re.split(r"[^a-z]+", file.stem.lower())}
    if len(words & _PARTS) > 1:
        raise InputError(
            f"{where} holds the {' and the '.join(sorted(words & _PARTS))} part of a data set; "
            "expected one; give one file or a pattern such as 'data/test-*.parquet'"
        )
    return found


def _open(file: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(
            f"reading {file} needs pyarrow, which is not installed; run, in your copy of bezoar, "
            "pip install -c constraints.txt -e '.[data]'"
        ) from error
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"{file} cannot be read as parquet ({reason}); expected a complete parquet file; fetch it "
        "again"
    )


def _column(
    columns: Sequence[str], known: tuple[str, ...], wanted: str | None, file: Path
) -> str | None:
    """``wanted`` after checking that it is there, or the first known column, or None."""
    if wanted is None:
        return next((name for name in known if name in columns), None)
    if wanted not in columns:
        raise InputError(
            f"{file} has no column {wanted!r}; it has {', '.join(columns)}; choose one of these"
        )
    return wanted


def _batches(file: Path, part: Any, columns: list[str]) -> Iterator[Any]:
    import pyarrow as pa

    try:
        yield from part.iter_batches(batch_size=_BATCH, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _labels(files: list[Path], parts: list[Any], column: str) -> np.ndarray:
    """The label column of all files, shape (rows,); missing ones are NaN or None."""
    return np.concatenate(
        [
            batch.column(0).to_numpy(zero_copy_only=False)
            for file, part in zip(files, parts, strict=True)
            for batch in _batches(file, part, [column])
        ]
    )


def _class_names(files: list[Path], parts: list[Any], column: str) -> tuple[str, ...] | None:
    """Class names from the schema's ``huggingface`` entry; None where it has none."""
    names = [_names_in(part.schema_arrow.metadata or {}, column) for part in parts]
    for file, other in zip(files, names, strict=True):
        if other != names[0]:
            raise InputError(
                f"{file} has other class names than {files[0]}; expected parts of one data set; "
                "read them one by one"
            )
    return names[0]


def _names_in(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...] | None:
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names) or None


def _rows(
    files: list[Path], parts: list[Any], image_column: str, box_column: str | None
) -> Iterator[Encoded]:
    columns = [image_column] if box_column is None else [image_column, box_column]
    for file, part in zip(files, parts, strict=True):
        row = 0
        for batch in _batches(file, part, columns):
            images = batch.column(image_column).to_pylist()
            boxes = [None] * len(images)
            if box_column is not None:
                boxes = batch.column(box_column).to_pylist()
            for cell, box in zip(images, boxes, strict=True):
                yield _row(file, row, cell, box, box_column)
                row += 1


def _row(file: Path, row: int, cell: Any, box: Any, box_column: str | None) -> Encoded:
    name = f"{file}, row {row}"
    inner = None
    if isinstance(cell, dict):
        inner = cell.get("path")
        cell = cell.get("bytes")
    if cell is None and isinstance(inner, str):
        if Path(inner).is_absolute() or ".." in Path(inner).parts:
            raise InputError(
                f"{name} names the file {inner!r}, which does not lie beside the data; a data set "
                "of a stranger shall show nothing else of this machine; put the images beside it, "
                "or into it"
            )
        cell = file.parent / inner
    if isinstance(inner, str):
        name += f" ({inner})"
    if not isinstance(cell, bytes | Path):
        raise InputError(
            f"{name} has no image but {type(cell).__name__}; expected an encoded image as bytes, "
            "or a struct of bytes and path; take the row out or convert the column"
        )
    if box_column is None:
        return Encoded(name, cell)
    if not isinstance(box, list) or len(box) != 4 or None in box:
        raise InputError(
            f"{name} has {box!r} in column {box_column!r}; expected four numbers: left, upper, "
            "right, lower in pixels; choose another column or read without it"
        )
    left, upper, right, lower = map(float, box)
    return Encoded(name, cell, (left, upper, right, lower))
