"""Images by name or by path: one argument serves ``cifar10`` and a user's own folder.

A name is looked for in the folder ``BEZOAR_DATA``, then on the Hugging Face hub, then with
torchvision; ``digits`` is part of the package. What is decoded from parquet files or the hub is
kept in a cache. Sources may differ: of GTSRB's 39,209 training images the copy on the hub has
26,640, and a folder has what was put there. A notice tells when a source other than the folder was
used.

Frames of one GTSRB track show the same sign 15 times (or more). The splits here keep the official
test part apart; whoever divides the training part further should divide by track, which this module
does not offer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import numpy as np

from bezoar.datasets.cache import default_folder
from bezoar.datasets.sources import (
    UnavailableError,
    from_folder,
    from_hub,
    from_vision,
    read_digits,
)
from bezoar.datasets.table import DataSet, Split, datasets
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.reading.collect import Progress
from bezoar.reading.parquet import common_classes

__all__ = ["DataSet", "Split", "datasets", "facts", "open_dataset", "read_digits"]

TRAIN_SHARE = 0.8
"""Share of the training part where one set of images must serve for both splits (ours)."""

_CHUNK = 4096
_FILES = (".npz", ".parquet")


def open_dataset(
    name: str | os.PathLike[str],
    split: Split,
    *,
    box_column: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ImageSet:
    """Opens the training or the test images of a data set.

    A path (what ``ImageSet.open`` reads) that holds ``train`` and ``test`` as sub-folders, or
    ``train*.parquet`` and ``test*.parquet``, gives the one asked for; a class has the same index in
    both, also where one lacks others. Any other path is one set of images and is divided: four
    fifths of every class for training, the same ones each time. The same is done with ``digits``,
    and with ``tiny-imagenet`` where only its validation part is at hand. A notice says so. Networks
    trained on one split are never tested on its images.

    Args:
        name: a name from ``datasets``, or a path; a name wins over a folder called the same
            (``./digits`` is the folder).
        split: "train" or "test".
        box_column: for parquet, the column with the box every image is cut to: "roi" for GTSRB. By
            default GTSRB images are whole, as in WaNet's code (arXiv 2102.10369) and the many that
            follow it, and because hub and torchvision come without boxes; other published networks,
            such as I-BAU's, want ``box_column="roi"``.
        cache: folder for decoded and downloaded images; by default ``~/.cache/bezoar``.
        progress: called with the numbers of images done and of all.

    Returns:
        Images of the data set's shape (others are stretched to it), labelled if named; the notices
        say what was divided and, apart from ``BEZOAR_DATA``, where the images come from.

    Raises:
        InputError: the name or split is not known, ``BEZOAR_DATA`` names no folder, or no source
            has the images; the message says why for each.

    >>> open_dataset("digits", "test")
    ImageSet(359 images of 1x8x8, labelled)
    """
    if split not in get_args(Split):
        raise InputError(
            f"there is no split {split!r}; expected one of {', '.join(get_args(Split))}"
        )
    if not _is_named(name):
        return _open_path(Path(name), split, box_column, progress)
    known = _named(os.fspath(name))
    if known.name == "digits":
        if box_column is not None:
            raise InputError(f"digits has no column {box_column!r} to crop to; leave it out")
        return _divide(read_digits(), split, "digits")
    folder = default_folder() if cache is None else Path(cache)
    images, whole = _fetch(known, split, box_column, folder, progress)
    images.require_labels(f"the data set {known.name}")
    images.class_counts(known.classes)  # raises if a label lies outside
    if whole:
        return _divide(images, split, f"{known.name} (only its validation part is at hand)")
    return images


def facts(name: str | os.PathLike[str], images: ImageSet) -> DataSet:
    """What is known of a data set; for a path what ``images``, opened from it, tell.

    Of a user's own images nobody knows whether they may be flipped or shifted, so they are not
    (ours). A deviation below one grey level counts as one, as the classifier divides by it (ours).

    >>> facts("cifar10", open_dataset("digits", "test")).flip
    True
    """
    if _is_named(name):
        return _named(os.fspath(name))
    counts = np.zeros((images.shape[0], 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        part = images.images[start : start + _CHUNK].cpu().numpy()
        for channel, count in enumerate(counts):
            count += np.bincount(part[:, channel].reshape(-1), minlength=256)
    share = counts / counts.sum(1, keepdims=True)
    levels = np.arange(256) / 255
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    labels = images.labels
    classes = 0 if labels is None else int(labels.max()) + 1
    return DataSet(
        name=os.fspath(name),
        title=f"images in {os.fspath(name)}",
        classes=max(classes, len(images.classes or ())),
        shape=images.shape,
        mean=tuple(mean.tolist()),
        std=tuple(np.maximum(std, 1 / 255).tolist()),
        flip=False,
        crop_padding=0,
    )


def _is_named(name: str | os.PathLike[str]) -> bool:
    """Whether this is (meant as) the name of a data set and not a path."""
    if not isinstance(name, str) or name in datasets.names():
        return isinstance(name, str)
    return not (
        os.sep in name
        or any(sign in name for sign in "*?[")
        or name.lower().endswith(_FILES)
        or Path(name).exists()
    )


def _named(name: str) -> DataSet:
    try:
        return datasets.get(name)
    except InputError as error:
        raise InputError(
            f"{error}; or give the path of a folder, a .parquet or a .npz file with images"
        ) from None


def _fetch(
    known: DataSet, split: Split, box_column: str | None, cache: Path, progress: Progress | None
) -> tuple[ImageSet, bool]:
    """The images from the first source that has them, and whether they are still to be divided."""
    reasons = []
    try:
        return from_folder(known, split, box_column, cache, progress)
    except UnavailableError as reason:
        reasons.append(str(reason))
    for source in (from_hub, from_vision):
        if box_column is not None:
            reasons.append(f"{source.__name__.removeprefix('from_')} images come without boxes")
            continue
        try:
            return source(known, split, cache, progress), False
        except UnavailableError as reason:
            reasons.append(str(reason))
    raise InputError(
        f"the {split} images of {known.name} are nowhere to be found: {'; '.join(reasons)}. Set "
        f"BEZOAR_DATA to a folder with {known.files[split]}, or install one of these packages and "
        "go online"
    )


def _open_path(
    path: Path, split: Split, box_column: str | None, progress: Progress | None
) -> ImageSet:
    if all((path / name).is_dir() for name in get_args(Split)):
        found = [_class_folders(path / name) for name in get_args(Split)]
        # A class that one part lacks must not shift the indices of the others.
        classes = None if found[0] == found[1] else sorted(found[0] | found[1])
        return ImageSet.open(
            path / split, classes=classes, box_column=box_column, progress=progress
        )
    if all(any(path.glob(f"{name}*.parquet")) for name in get_args(Split)):
        return ImageSet.open(
            path / f"{split}*.parquet",
            classes=common_classes([path / f"{name}*.parquet" for name in get_args(Split)]),
            box_column=box_column,
            progress=progress,
        )
    images = ImageSet.open(path, box_column=box_column, progress=progress)
    return _divide(images, split, str(path))


def _class_folders(folder: Path) -> set[str]:
    """The sub-folders that are classes for ``ImageSet.from_folder``."""
    return {
        child.name
        for child in folder.iterdir()
        if child.is_dir() and not child.name.startswith(".") and child.name != "__MACOSX"
    }


def _divide(images: ImageSet, split: Split, what: str) -> ImageSet:
    if len(images) < 2:
        raise InputError(f"{what} has {len(images)} image; expected at least 2 to divide them")
    train, test = images.split(TRAIN_SHARE, seed=0)
    part = train if split == "train" else test
    part.notices = (
        *part.notices,
        f"{what} is one set of images and was divided: of {len(images)}, drawn from every class "
        f"alike, {len(train)} are for training and {len(test)} for testing",
    )
    return part
