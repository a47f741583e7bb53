"""Images and labels as every part of bezoar takes them: an ``ImageSet``.

Images are ``uint8`` NCHW, labels ``int64``. They stay where they were put (memory, a memory-mapped
file, or a device) and leave in batches of ``float32`` in [0, 1]. Normalisation is the classifier's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bezoar.decoding import Resize
from bezoar.errors import InputError
from bezoar.reading import Reading, ReadOptions, read, read_folder, read_npz, read_parquet
from bezoar.reading.collect import RESIDENT_LIMIT, Progress, allocate

_CHUNK = 4096


class ImageSet:
    """A set of images of one size, with labels or without.

    Args:
        images: ``uint8`` tensor of shape (n, channels, height, width).
        labels: ``int64`` tensor of shape (n,), or None.
        classes: the names of the classes where the source had some, in order of their index.
        notices: sentences about what was left out or decided while reading the source.
        names: what the source calls each image (n,), or None where it has only their order.

    >>> import numpy as np
    >>> images = ImageSet.from_arrays(np.zeros((4, 3, 8, 8), np.uint8), [0, 1, 0, 1])
    >>> images
    ImageSet(4 images of 3x8x8, labelled)
    >>> batch, labels = next(images.batches(3))
    >>> batch.dtype, tuple(batch.shape), labels.tolist()
    (torch.float32, (3, 3, 8, 8), [0, 1, 0])
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        *,
        notices: Sequence[str] = (),
        names: Sequence[str] | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(
                f"images have dtype {images.dtype} and shape {tuple(images.shape)}; expected uint8 "
                "of shape (images, channels, height, width)"
            )
        if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1]):
            raise InputError(
                f"labels have dtype {labels.dtype} and shape {tuple(labels.shape)}; expected int64 "
                f"of shape ({len(images)},), one for each image"
            )
        if labels is not None and len(labels) and int(labels.min()) < 0:
            raise InputError(f"label {int(labels.min())} is negative; labels count from 0")
        if names is not None and len(names) != len(images):
            raise InputError(f"{len(names)} names were given for {len(images)} images")
        self.images = images
        self.labels = labels
        self.classes = tuple(classes) if classes is not None else None
        self.notices = tuple(notices)
        self.names = tuple(names) if names is not None else None
        # Above so many bytes a part of this set goes to a temporary file, as the set itself did.
        self._resident_limit: int | None = None

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray | Tensor,
        labels: Sequence[int] | np.ndarray | Tensor | None = None,
        classes: Sequence[str] | None = None,
    ) -> ImageSet:
        """Takes ``uint8`` NCHW images and integer labels as arrays or tensors, without copying."""
        tensor = torch.as_tensor(images)
        if labels is None:
            return cls(tensor, None, classes)
        label_tensor = torch.as_tensor(labels)
        if label_tensor.is_floating_point() or label_tensor.dtype == torch.bool:
            raise InputError(f"labels have dtype {label_tensor.dtype}; expected whole numbers")
        return cls(tensor, label_tensor.to(torch.int64), classes)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        channels: int | None = None,
        size: tuple[int, int] | None = None,
        resize: Resize = "none",
        classes: Sequence[str] | None = None,
        box_column: str | None = None,
        progress: Progress | None = None,
        resident_limit: int = RESIDENT_LIMIT,
    ) -> ImageSet:
        """Reads images from a folder, parquet files or a ``.npz`` archive, whichever is there.

        Args:
            path: a folder with a sub-folder for each class or with images only; a parquet file, a
                folder of them or a pattern such as ``data/test-*.parquet``; or a ``.npz`` archive.
            channels: 1 (colour becomes luminance) or 3 (greyscale becomes RGB); by default 1 if
                all images are greyscale, else 3.
            size: (height, width) that the images must have; by default that of the first image.
            resize: "stretch" resizes images of another size to ``size``, "crop" fits the side
                that needs the larger factor and cuts out the centre, "none" refuses them. Resizing
                is bilinear with antialiasing.
            classes: class names whose positions become the labels; folder names, or the names in
                the file, must be among them. By default the folders in alphabetical order.
            box_column: for parquet, a column of boxes (left, upper, right, lower in pixels); every
                image is cut to its box and resized to its own size again.
            progress: called with the numbers of images done and of all.
            resident_limit: bytes of pixels above which the images lie in a temporary file that is
                mapped into memory.

        Raises:
            InputError: nothing usable is there; the message names the first file in the way.
        """
        return cls._read(
            lambda options: read(path, options, box_column=box_column),
            ReadOptions(
                channels, size, resize, tuple(classes or ()) or None, progress, resident_limit
            ),
        )

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        *,
        channels: int | None = None,
        size: tuple[int, int] | None = None,
        resize: Resize = "none",
        classes: Sequence[str] | None = None,
        progress: Progress | None = None,
        resident_limit: int = RESIDENT_LIMIT,
    ) -> ImageSet:
        """Reads a folder with a sub-folder for each class, or with images only: see ``open``."""
        return cls._read(
            lambda options: read_folder(path, options),
            ReadOptions(
                channels, size, resize, tuple(classes or ()) or None, progress, resident_limit
            ),
        )

    @classmethod
    def from_parquet(
        cls,
        path: str | os.PathLike[str],
        *,
        channels: int | None = None,
        size: tuple[int, int] | None = None,
        resize: Resize = "none",
        classes: Sequence[str] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        box_column: str | None = None,
        progress: Progress | None = None,
        resident_limit: int = RESIDENT_LIMIT,
    ) -> ImageSet:
        """Reads parquet files: see ``open``; the columns can be named where they are unusual."""
        return cls._read(
            lambda options: read_parquet(
                path,
                options,
                image_column=image_column,
                label_column=label_column,
                box_column=box_column,
            ),
            ReadOptions(
                channels, size, resize, tuple(classes or ()) or None, progress, resident_limit
            ),
        )

    @classmethod
    def from_npz(
        cls,
        path: str | os.PathLike[str],
        *,
        channels: int | None = None,
        size: tuple[int, int] | None = None,
        resize: Resize = "none",
        classes: Sequence[str] | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
        progress: Progress | None = None,
        resident_limit: int = RESIDENT_LIMIT,
    ) -> ImageSet:
        """Reads a ``.npz`` archive: see ``open``; the arrays can be named where they are unusual.

        Images are (n, channels, height, width), (n, height, width, channels) or (n, height,
        width), of whole numbers from 0 to 255 or floating point from 0 to 1.
        """
        return cls._read(
            lambda options: read_npz(path, options, image_key=image_key, label_key=label_key),
            ReadOptions(
                channels, size, resize, tuple(classes or ()) or None, progress, resident_limit
            ),
        )

    @classmethod
    def _read(cls, reader: Callable[[ReadOptions], Reading], options: ReadOptions) -> ImageSet:
        reading = reader(options)
        labels = None if reading.labels is None else torch.from_numpy(reading.labels)
        images = torch.from_numpy(reading.images)
        result = cls(images, labels, reading.classes, notices=reading.notices, names=reading.names)
        result._resident_limit = options.resident_limit
        return result

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.images.shape[1:])
        kind = "labelled" if self.labels is not None else "no labels"
        return f"ImageSet({len(self)} images of {shape}, {kind})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def require_labels(self, purpose: str) -> Tensor:
        """Returns the labels, shape (n,); says what needs them where there are none."""
        if self.labels is None:
            raise InputError(
                f"{purpose} needs labelled images, and these have no labels; give a folder with "
                "one sub-folder for each class, or a file with a label column"
            )
        return self.labels

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """The images at ``indices``, in that order."""
        where = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        labels = None if self.labels is None else self.labels[where.to(self.labels.device)]
        names = None if self.names is None else [self.names[i] for i in where.tolist()]
        if self._resident_limit is None or self.images.device.type != "cpu":
            return self._with(self.images[where], labels, names)
        images = torch.from_numpy(allocate((len(where), *self.shape), self._resident_limit))
        for start in range(0, len(where), _CHUNK):
            images[start : start + _CHUNK] = self.images[where[start : start + _CHUNK]]
        return self._with(images, labels, names)

    def to(self, device: torch.device) -> ImageSet:
        """The same images on ``device``.

        Raises:
            InputError: they do not fit there; ``batches`` with a device needs room for one batch.
        """
        try:
            images = self.images.to(device)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{self.images.nbytes / 1e9:.1f} GB of images do not fit on {device}; leave them "
                "in memory and move them batch by batch, or give fewer images"
            ) from error
        labels = None if self.labels is None else self.labels.to(device)
        return self._with(images, labels, self.names)

    def _with(self, images: Tensor, labels: Tensor | None, names: Sequence[str] | None) -> ImageSet:
        result = ImageSet(images, labels, self.classes, notices=self.notices, names=names)
        result._resident_limit = self._resident_limit
        return result

    def class_counts(self, num_classes: int) -> Tensor:
        """The number of images of every class, ``int64`` of shape (num_classes,), on the CPU.

        Raises:
            InputError: there are no labels, or one is ``num_classes`` or more.
        """
        labels = self.require_labels("counting the images of each class").cpu()
        if len(labels) and int(labels.max()) >= num_classes:
            raise InputError(
                f"an image has label {int(labels.max())}; expected labels below {num_classes}, the "
                "number of classes; check that these images belong to this model"
            )
        return torch.bincount(labels, minlength=num_classes)

    def sha256(self) -> str:
        """A hash over shape, pixels and labels; the same wherever and however they are stored."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)}".encode())
        for start in range(0, len(self), _CHUNK):
            part = self.images[start : start + _CHUNK].cpu().contiguous()
            digest.update(part.numpy().data)
        if self.labels is not None:
            digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def sample(self, count: int, *, seed: int) -> ImageSet:
        """Draws ``count`` images, or all if there are fewer.

        Each class keeps its share, and at least one image unless there are more classes than
        ``count``.
        """
        if count >= len(self):
            return self
        generator = torch.Generator().manual_seed(seed)
        labels = torch.zeros(len(self)) if self.labels is None else self.labels.cpu()
        keys = torch.empty(len(self))
        present = torch.unique(labels)
        for label in present:
            members = torch.nonzero(labels == label).flatten()
            ranks = torch.randperm(len(members), generator=generator)
            # The i-th of m members at (i + 1/2) / m: cutting anywhere takes equal shares.
            keys[members] = (ranks + 0.5) / len(members)
            if count >= len(present):
                keys[members[ranks.argmin()]] = 0  # drawn before all shares, however small its own
        return self.subset(keys.argsort(stable=True)[:count].sort().values)

    def split(self, fraction: float, *, seed: int) -> tuple[ImageSet, ImageSet]:
        """Divides into two parts; the first gets ``fraction`` of every class (at random in it).

        Every class with two images or more is in both parts. Without labels the division is plain.
        """
        first, second = self.division(fraction, seed=seed)
        return self.subset(first), self.subset(second)

    def division(self, fraction: float, *, seed: int) -> tuple[list[int], list[int]]:
        """Which images the parts of ``split`` hold, in ascending order."""
        if not 0 < fraction < 1:
            raise InputError(f"fraction {fraction} must lie between 0 and 1")
        generator = torch.Generator().manual_seed(seed)
        first: list[int] = []
        second: list[int] = []
        labels = torch.zeros(len(self), dtype=torch.int64) if self.labels is None else self.labels
        labels = labels.cpu()
        for label in np.unique(labels.numpy()).tolist():
            found = torch.nonzero(labels == label).flatten()
            members = found[torch.randperm(len(found), generator=generator)].tolist()
            count = round(fraction * len(members))
            if len(members) > 1:
                count = min(max(count, 1), len(members) - 1)
            first += members[:count]
            second += members[count:]
        return sorted(first), sorted(second)

    def batches(
        self,
        size: int,
        *,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yields (images, labels): ``float32`` in [0, 1] of shape (size, c, h, w), labels (size,).

        Args:
            size: images in a batch; the last one may be smaller.
            device: where the batches go; by default where the images are.
            generator: shuffles when given; otherwise the order is kept.
        """
        order = None
        if generator is not None:
            order = torch.randperm(len(self), generator=generator).to(self.images.device)
        for start in range(0, len(self), size):
            where = slice(start, start + size) if order is None else order[start : start + size]
            images = self.images[where].to(device or self.images.device)
            labels = None
            if self.labels is not None:
                labels = self.labels[where].to(images.device)
            yield images.float().div_(255), labels
