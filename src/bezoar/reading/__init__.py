"""Images on disk to arrays: folders, parquet files and ``.npz``; ``ImageSet`` is built on it."""

from __future__ import annotations

import os
from pathlib import Path

from bezoar.errors import InputError
from bezoar.reading.collect import Reading, ReadOptions
from bezoar.reading.folder import read_folder
from bezoar.reading.npz import read_npz
from bezoar.reading.parquet import read_parquet

__all__ = ["ReadOptions", "Reading", "read", "read_folder", "read_npz", "read_parquet"]


def read(
    path: str | os.PathLike[str], options: ReadOptions, *, box_column: str | None = None
) -> Reading:
    """Reads ``path``, whichever kind it is.

    Args:
        path: a folder of images, a parquet file, a folder or a pattern (``data/test-*.parquet``) of
            parquet files, or a ``.npz`` file.
        options: channels, size and the rest.
        box_column: for parquet, the column with the box to crop to.

    Raises:
        InputError: nothing is there, its kind is not known, or it cannot be used.
    """
    where = Path(path)
    is_parquet = where.suffix.lower() == ".parquet"
    if where.is_dir():
        try:
            is_parquet = any(child.suffix.lower() == ".parquet" for child in where.iterdir())
        except OSError as error:
            raise InputError(
                f"the folder {where} cannot be read ({error.strerror}); check its permissions"
            ) from error
    elif not where.exists() and any(sign in os.fspath(path) for sign in "*?["):
        is_parquet = True
    elif not where.exists():
        raise InputError(
            f"there is no file or folder {where}; expected images: a folder, a .parquet file or a "
            ".npz file; check the path"
        )
    if is_parquet:
        return read_parquet(path, options, box_column=box_column)
    if box_column is not None:
        raise InputError(
            f"{where} has no column {box_column!r} to crop to; boxes are read from parquet files "
            "only; leave the box column out"
        )
    if where.is_dir():
        return read_folder(path, options)
    if where.suffix.lower() == ".npz":
        return read_npz(path, options)
    raise InputError(
        f"{where} is neither a folder of images nor a .parquet or .npz file; give one of these, "
        "for one image the folder it lies in"
    )
