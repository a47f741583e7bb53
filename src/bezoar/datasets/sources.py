"""The places a named data set may come from; each says in one sentence why it is not there."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from bezoar.datasets.cache import cached
from bezoar.datasets.table import DataSet, Split
from bezoar.decoding import Target, adapt
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.networks.vision import import_torchvision
from bezoar.reading.collect import Encoded, Progress, ReadOptions, decode_all
from bezoar.reading.parquet import IMAGE_COLUMNS, LABEL_COLUMNS

VARIABLE = "BEZOAR_DATA"


class UnavailableError(Exception):
    """This source does not have the data set; the text says why and what would help."""


def read_digits() -> ImageSet:
    """All 1,797 digits of the package, 8x8 and grey, in the order of the UCI file."""
    packed = resources.files("bezoar").joinpath("data/digits.npz").read_bytes()
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        return ImageSet.from_arrays(
            arrays["images"], arrays["labels"], [str(digit) for digit in range(10)]
        )


def from_folder(
    known: DataSet, split: Split, box_column: str | None, cache: Path, progress: Progress | None
) -> tuple[ImageSet, bool]:
    """Reads the parquet files in the folder that ``BEZOAR_DATA`` names.

    Returns:
        The images, and whether they are those of both splits and must be divided.

    Raises:
        UnavailableError: the variable is not set, or the folder lacks these files.
        InputError: the variable names no folder, or a file in it cannot be used.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        raise UnavailableError(
            f"the variable {VARIABLE}, which names a folder with data, is not set"
        )
    folder = Path(named)
    if not folder.is_dir():
        raise InputError(
            f"the variable {VARIABLE} names {named}, which is no folder; expected one with "
            f"{known.files[split]} in it; correct or unset the variable"
        )
    whole = known.divides and not list(folder.glob(known.files["train"]))
    pattern = known.files["test" if whole else split]
    sources = sorted(folder.glob(pattern))
    if not sources:
        raise UnavailableError(f"the folder {folder} ({VARIABLE}) has no {pattern}")

    def decode() -> ImageSet:
        channels, height, width = known.shape
        return ImageSet.from_parquet(
            folder / pattern,
            channels=channels,
            size=(height, width),
            resize="stretch",
            box_column=box_column,
            progress=progress,
        )

    label = "-".join(
        [known.name, "whole" if whole else split, *([box_column] if box_column else [])]
    )
    return cached(decode, label, sources, cache), whole


def from_hub(known: DataSet, split: Split, cache: Path, progress: Progress | None) -> ImageSet:
    """Fetches the data set with Hugging Face ``datasets``, which keeps the files itself.

    Raises:
        UnavailableError: no copy is known there, the package is missing, or fetching failed.
    """
    if not known.hub:
        raise UnavailableError("we know of no copy on the Hugging Face hub")
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise UnavailableError(
            f"Hugging Face datasets cannot be imported ({error}); pip install datasets"
        ) from error
    try:
        table = library.load_dataset(known.hub, split=known.hub_splits[split])
    except Exception as error:  # its errors have no common base
        raise UnavailableError(
            f"{known.hub} could not be fetched from the hub: {_said(error)}"
        ) from error
    image = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    label = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if image is None or label is None:
        raise UnavailableError(
            f"{known.hub} on the hub has no images with labels any more but the columns "
            f"{', '.join(table.column_names)}"
        )
    # Undecoded, so that our own decoder does the work, as for every other source.
    encoded = table.select_columns([image]).cast_column(image, library.Image(decode=False))

    def items() -> Iterator[Encoded]:
        for number, row in enumerate(encoded):
            cell = row[image]
            source = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])
            yield Encoded(f"{known.hub}, image {number}", source)

    def decode() -> ImageSet:
        channels, height, width = known.shape
        options = ReadOptions(channels, (height, width), "stretch", progress=progress)
        pixels = decode_all(items, len(encoded), options)
        names = getattr(table.features[label], "names", None)
        images = ImageSet.from_arrays(pixels, np.asarray(table[label][:], np.int64), names)
        images.notices = (f"{known.name} ({split}) was read from the hub: {known.hub}",)
        return images

    sources = [Path(entry["filename"]) for entry in table.cache_files]
    return cached(decode, f"{known.name}-{split}-hub", sources, cache) if sources else decode()


def from_vision(known: DataSet, split: Split, cache: Path, progress: Progress | None) -> ImageSet:
    """Fetches the data set with torchvision into the folder ``cache``.

    Raises:
        UnavailableError: torchvision lacks it or is missing, or fetching failed.
    """
    if not known.vision:
        raise UnavailableError("torchvision does not have it")
    try:
        vision = import_torchvision()
    except InputError as error:
        raise UnavailableError(f"torchvision cannot be imported ({error.__cause__})") from error
    make = getattr(importlib.import_module(vision.__name__ + ".datasets"), known.vision)
    root = cache / "torchvision"
    try:
        root.mkdir(parents=True, exist_ok=True)
        # It prints while it downloads, and standard output may be carrying a record.
        with contextlib.redirect_stdout(sys.stderr):
            items: Any = make(root=str(root), download=True, **known.vision_splits[split])
    except Exception as error:  # whatever goes wrong while it downloads, also in urllib or tarfile
        raise UnavailableError(
            f"torchvision could not fetch it into {root}: {_said(error)}"
        ) from error
    channels, height, width = known.shape
    target = Target(
        channels=channels, size=(height, width), resize="stretch", size_from="of this data set"
    )
    pixels = np.empty((len(items), *known.shape), np.uint8)
    labels = np.empty(len(items), np.int64)
    for number in range(len(items)):
        picture, labels[number] = items[number]
        raw = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        pixels[number] = adapt(raw, f"{known.vision}, image {number}", target)
        if progress is not None and (number % 1000 == 999 or number + 1 == len(items)):
            progress(number + 1, len(items))
    images = ImageSet.from_arrays(pixels, labels, getattr(items, "classes", None))
    images.notices = (f"{known.name} ({split}) was read with torchvision: {known.vision}",)
    return images


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
