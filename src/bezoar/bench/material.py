"""The images of a benchmark: opened once, divided once, and handed to every run as one file.

The test split of a data set is cut in two: ``test_images`` of it measure every model, and nothing
else is done with them; the clean images of the defender are drawn from the rest, each class with
its share, by the seed of the run. Pools are trained on the training split, so no network has seen
either part.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bezoar.datasets import open_dataset
from bezoar.errors import InputError
from bezoar.generators.generator_descriptions import described
from bezoar.images import ImageSet
from bezoar.records import write_bytes

_DIVISION_SEED = 12345  # every model, seed and method is measured on the same images


@dataclass(frozen=True)
class Material:
    """One data set, ready for the runs.

    Attributes:
        file: an ``.npz`` of its test split.
        sha256: of these images and labels.
        shape: (c, h, w).
        rest: how many images clean ones can be drawn from.
    """

    file: Path
    sha256: str
    shape: tuple[int, int, int]
    rest: int


def prepare(data: str, folder: Path, *, test_images: int) -> Material:
    """Opens a data set's test split and writes it into ``folder``, unless it is there.

    Raises:
        InputError: the data set cannot be had, or is too small for that many test images.
    """
    images = open_dataset(data, "test")
    images.require_labels(f"measuring on {data}")
    if test_images >= len(images):
        raise InputError(
            f"test_images is {test_images} and the test split of {data} has {len(images)} images, "
            "of which some must be left as clean images"
        )
    digest = images.sha256()
    file = folder / f"{Path(data).stem}-{digest[:12]}.npz"
    if not file.is_file():
        _write(file, images)
    return Material(file, digest, images.shape, len(divide(images, test_images)[0]))


def prepare_public(
    source: str, beside: Path, folder: Path, shape: tuple[int, int, int]
) -> tuple[Path, str]:
    """Writes public images in the size of a model into ``folder``, unless they are there.

    Args:
        source: what ``ImageSet.open`` reads; looked for in ``beside``, then in the folder
            ``BEZOAR_DATA``.
        beside: the folder of the grid's file.
        folder: where to.
        shape: (c, h, w).

    Returns:
        The file, and the SHA-256 of the images.

    Raises:
        InputError: it is in neither.
    """
    places = [beside, *map(Path, filter(None, [os.environ.get("BEZOAR_DATA")]))]
    for place in places:
        path = place / source
        if path.exists():
            break
    else:
        tried = " and ".join(str(place) for place in places)
        raise InputError(f"there are no public images {source!r} in {tried}")
    images = ImageSet.open(path, channels=shape[0], size=shape[1:], resize="crop")
    digest = images.sha256()
    file = folder / f"public-{digest[:12]}-{'x'.join(map(str, shape))}.npz"
    if not file.is_file():
        _write(file, ImageSet(images.images))
    return file, digest


def generator_sha256(source: Path) -> str:
    """Of a generator's description, its weights and, where it has some, its own code.

    Raises:
        InputError: one of them cannot be read, or the description is none.
    """
    description = described(source, {})
    code, _, _ = description.architecture.rpartition(":")
    digest = hashlib.sha256()
    own_code = [Path(code)] if code.endswith(".py") else []
    for file in (source, Path(description.weights), *own_code):
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise InputError(
                f"the generator's {file} cannot be read: {error.strerror or error}"
            ) from error
    return digest.hexdigest()


def divide(images: ImageSet, test_images: int) -> tuple[ImageSet, ImageSet]:
    """What clean images are drawn from, and the test images: the same ones every time."""
    test, rest = images.split(test_images / len(images), seed=_DIVISION_SEED)
    return rest, test


@functools.lru_cache(maxsize=4)
def read(file: str) -> ImageSet:
    """The images of a prepared file; a process that serves many runs reads it once."""
    return ImageSet.open(file)


@functools.lru_cache(maxsize=4)
def divided(file: str, test_images: int) -> tuple[ImageSet, ImageSet]:
    """The two parts of a prepared file; divided once a process."""
    return divide(read(file), test_images)


def _write(file: Path, images: ImageSet) -> None:
    content = io.BytesIO()
    arrays = {"images": images.images.cpu().numpy()}
    if images.labels is not None:
        arrays["labels"] = images.labels.cpu().numpy()
    np.savez(content, allow_pickle=False, **arrays)
    write_bytes(file, content.getvalue())
