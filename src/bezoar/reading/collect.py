"""Decoding many images into one array, in memory or in a memory-mapped temporary file."""

from __future__ import annotations

import errno
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from bezoar.decoding import Box, Resize, Target, decode, describe
from bezoar.errors import InputError

Progress = Callable[[int, int], None]
"""Called with the number of images done and the number of all."""

RESIDENT_LIMIT = 2 << 30
"""Bytes of pixels up to which a set is kept in memory."""

_CHUNK = 128
# Decoding runs beside Python only inside Pillow: below this size handing images to threads costs
# more than it saves (32x32 WebP: 0.85 times as fast with two threads, 500x375 JPEG: 2 times).
_THREADS_FROM_PIXELS = 256 * 256


@dataclass(frozen=True)
class ReadOptions:
    """How images are read, the same for every kind of source.

    Attributes:
        channels: 1 or 3; None is 1 if all images are greyscale, else 3.
        size: (height, width) that the images must have; None is that of the first image.
        resize: what happens to images of another size.
        classes: names whose positions are the class indices; None takes the source's own.
        progress: called from time to time while images are decoded.
        resident_limit: bytes of pixels above which they go to a temporary file.
    """

    channels: int | None = None
    size: tuple[int, int] | None = None
    resize: Resize = "none"
    classes: tuple[str, ...] | None = None
    progress: Progress | None = None
    resident_limit: int = RESIDENT_LIMIT

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise InputError(
                f"{self.channels} channels were asked for; images have 1 (greyscale) or 3 (RGB)"
            )
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise InputError(f"size {self.size} was given; expected (height, width) in pixels")
        if self.resize not in get_args(Resize):
            raise InputError(
                f"resize {self.resize!r} is not known; choose one of {', '.join(get_args(Resize))}"
            )
        if self.resize != "none" and self.size is None:
            raise InputError(
                f"resize {self.resize!r} was given without a size; give that, too (--input-size "
                "HEIGHT WIDTH; in Python size=(height, width))"
            )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a source held.

    Attributes:
        images: ``uint8`` of shape (n, channels, height, width).
        labels: ``int64`` of shape (n,), or None.
        classes: names in order of their index, or None.
        notices: sentences about what was left out or decided while reading.
        names: what the source calls each image, or None where it has only their order.
    """

    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    notices: tuple[str, ...]
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Encoded:
    """One image as it lies in its source: a name for messages, a file or its content, a box."""

    name: str
    source: Path | bytes
    box: Box | None = None


def decode_all(
    items: Callable[[], Iterator[Encoded]], count: int, options: ReadOptions
) -> np.ndarray:
    """Decodes ``count`` images to ``uint8`` of shape (count, channels, height, width).

    Args:
        items: gives the images from the first one, each time it is called; ``count`` of them, at
            least one.
        count: how many there are.
        options: channels, size and the rest.

    Raises:
        InputError: an image cannot be used; the message names the first such.
    """
    first = next(items())
    grey, size = describe(first.source, first.name)
    channels = options.channels
    if channels is None:
        # The first colour image decides, so that only greyscale sets are gone through twice.
        all_grey = grey and all(describe(item.source, item.name)[0] for item in items())
        channels = 1 if all_grey else 3
    target = Target(
        channels=channels,
        size=options.size or size,
        resize=options.resize,
        size_from="the size asked for" if options.size else f"as {first.name}",
    )
    images = allocate((count, channels, *target.size), options.resident_limit)

    def one(item: Encoded) -> np.ndarray:
        return decode(item.source, item.name, target, box=item.box)

    threads = min(os.cpu_count() or 1, 8) if math.prod(size) >= _THREADS_FROM_PIXELS else 1
    done = 0
    stream = items()
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(stream, _CHUNK)):
            for pixels in pool.map(one, chunk) if threads > 1 else map(one, chunk):
                images[done] = pixels
                done += 1
            if options.progress is not None:
                options.progress(done, count)
    return images


def allocate(shape: tuple[int, ...], resident_limit: int) -> np.ndarray:
    """Room for ``uint8`` pixels: in memory, or above ``resident_limit`` bytes in a mapped file.

    The file lies where temporary files go (the variable TMPDIR chooses) and has no name from the
    start, so it is gone with the last array on it, also when the process is killed.

    Raises:
        InputError: the file would not fit.
    """
    size = math.prod(shape)
    if size <= resident_limit:
        return np.empty(shape, np.uint8)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    try:
        if size > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with tempfile.TemporaryFile(prefix="bezoar-") as file:
            if hasattr(os, "posix_fallocate"):
                # Writing into a mapped hole on a full disk would kill the process.
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise InputError(
            f"the decoded images take {size / 1e9:.1f} GB in a temporary file and {folder} has "
            f"{free / 1e9:.1f} GB free ({error.strerror}); set TMPDIR to a larger disk, raise the "
            "limit for memory, or give fewer images"
        ) from error
