"""Images in a numpy ``.npz`` archive, with the layout recognised by the shape."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np

from bezoar.decoding import Target, adapt
from bezoar.errors import InputError
from bezoar.reading.collect import Reading, ReadOptions, allocate
from bezoar.reading.labels import settle_labels

IMAGE_KEYS = ("images", "image", "x", "data", "x_test", "test_images", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "targets", "y_test", "test_labels", "arr_1")

Layout = Literal["NCHW", "NHWC", "NHW"]

_CHUNK = 1024
# MemoryError: a header may declare more than there can be.
_DAMAGE = (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error)


def read_npz(
    path: str | os.PathLike[str],
    options: ReadOptions,
    *,
    image_key: str | None = None,
    label_key: str | None = None,
) -> Reading:
    """Reads images, and labels if there are some, from a ``.npz`` archive.

    Pixels are whole numbers from 0 to 255 or floating point from 0 to 1, which is scaled by 255
    and rounded. Nothing pickled is ever loaded.

    Args:
        path: the archive.
        options: channels, size and the rest.
        image_key: the name of the array; by default the only one among ``IMAGE_KEYS``, in any case.
        label_key: the same for labels and ``LABEL_KEYS``.

    Raises:
        InputError: the archive cannot be read, holds no images or several, or their shape, type or
            range is not one of the above.
    """
    file = Path(path)
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise InputError(
                f"{file} holds a single array without a name; expected a .npz archive; save it "
                "with numpy.savez(file, images=…)"
            )
        with loaded as archive:
            image_key = _choose(archive.files, IMAGE_KEYS, image_key, file, "images")
            found_label_key = _choose(archive.files, LABEL_KEYS, label_key, file, "labels")
            if image_key is None:
                raise InputError(
                    f"{file} has the arrays {', '.join(archive.files) or '(none)'}; expected the "
                    f"images under one of {', '.join(IMAGE_KEYS)}; rename the array"
                )
            raw = archive[image_key]
            raw_labels = None if found_label_key is None else archive[found_label_key]
            unused = [key for key in archive.files if key not in (image_key, found_label_key)]
    except InputError:
        raise
    except _DAMAGE as error:
        if "allow_pickle" in str(error):
            reason = "holds pickled objects, which can run code when loaded, and was refused"
        elif isinstance(error, OSError) and error.errno is not None:
            reason = f"cannot be read ({error.strerror})"
        else:
            reason = f"is no complete .npz archive ({str(error).splitlines()[0]})"
        raise InputError(
            f"{file} {reason}; expected an archive of plain arrays, as numpy.savez writes it"
        ) from error
    if raw_labels is not None and raw_labels.shape not in ((len(raw),), (len(raw), 1)):
        raise InputError(
            f"the labels of {file} have shape {raw_labels.shape}; expected ({len(raw)},), one "
            "class index for each image"
        )
    source = f"{image_key!r} of {file}"
    images = _to_images(raw, source, options)
    notices = []
    if unused:
        notices.append(f"Other arrays of {file} were left out: {', '.join(sorted(unused)[:10])}.")
    if raw.dtype.kind in "iu" and raw.max() == 1:
        notices.append(f"No pixel of {source} is above 1 of 255: the images are almost black.")
    labels, classes = None, options.classes
    if raw_labels is not None:
        labels, classes, more = settle_labels(
            raw_labels.reshape(len(raw)), str(file), None, options.classes
        )
        notices += more
    return Reading(images=images, labels=labels, classes=classes, notices=tuple(notices))


def layout_of(shape: tuple[int, ...], size: tuple[int, int] | None = None) -> Layout:
    """Recognises where the channels are in an array of images.

    Four axes: the one of axis 1 and the last axis that has length 1 or 3 holds the channels; if
    both do, ``size`` decides. Three axes: greyscale, unless the last has length 1 or 3, which
    would be a single colour image.

    >>> layout_of((10, 3, 32, 32)), layout_of((10, 32, 32, 3)), layout_of((10, 28, 28))
    ('NCHW', 'NHWC', 'NHW')

    Raises:
        InputError: neither, or both equally.
    """
    if len(shape) == 3 and shape[2] not in (1, 3):
        return "NHW"
    if len(shape) == 4:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first and last and size is not None:
            first, last = shape[2:] == size, shape[1:3] == size
        if first != last:
            return "NCHW" if first else "NHWC"
    raise InputError(
        f"an array of shape {tuple(shape)} is not recognisable as images; expected (images, "
        "channels, height, width), (images, height, width, channels) with 1 or 3 channels, or "
        "(images, height, width)"
    )


def _choose(
    keys: Collection[str], known: tuple[str, ...], wanted: str | None, file: Path, what: str
) -> str | None:
    """The one key that holds ``what``; None when there is none."""
    if wanted is not None:
        if wanted not in keys:
            raise InputError(
                f"{file} has no array {wanted!r}; it has {', '.join(keys)}; choose one of these"
            )
        return wanted
    found = [key for key in keys if key.lower() in known]
    if len(found) > 1:
        raise InputError(
            f"{file} has several arrays that may be the {what}: {', '.join(found)}; expected one; "
            f"save the one you want as {known[0]!r}"
        )
    return found[0] if found else None


def _to_images(raw: np.ndarray, source: str, options: ReadOptions) -> np.ndarray:
    """Any accepted array to ``uint8`` (n, channels, height, width) as the options want it."""
    if raw.size == 0:
        raise InputError(f"{source} is empty (shape {raw.shape}); expected images")
    if raw.dtype.kind not in "iuf":
        raise InputError(
            f"{source} has type {raw.dtype}; expected whole numbers from 0 to 255 (uint8) or "
            "floating point from 0 to 1"
        )
    layout = layout_of(raw.shape, options.size)
    if layout == "NHWC":
        raw = raw.transpose(0, 3, 1, 2)
    elif layout == "NHW":
        raw = raw[:, None]
    floating = raw.dtype.kind == "f"
    low, high, top = raw.min(), raw.max(), 1 if floating else 255
    if not (low >= 0 and high <= top):
        kind = "floating-point" if floating else "whole-number"
        raise InputError(
            f"{source} has {kind} pixels from {low:g} to {high:g}; expected 0 to {top}; undo the "
            "normalisation, or save the pixels as uint8"
        )
    count, channels, height, width = raw.shape
    target = Target(
        channels=options.channels or channels,
        size=options.size or (height, width),
        resize=options.resize,
    )
    plain = (channels, height, width) == (target.channels, *target.size)
    images = allocate((count, target.channels, *target.size), options.resident_limit)
    for start in range(0, count, _CHUNK):
        part = raw[start : start + _CHUNK]
        if floating:
            part = np.rint(part.astype(np.float64) * 255)
        part = part.astype(np.uint8)
        stop = start + len(part)
        if plain:
            images[start:stop] = part
        else:
            for index, pixels in enumerate(part, start):
                images[index] = adapt(pixels, f"image {index} of {source}", target)
        if options.progress is not None:
            options.progress(stop, count)
    return images
