"""A contact sheet: images class by class, those first that a network is surest of.

Up to 20 classes have a row each; more are a grid of cells with fewer and smaller images, and of
very many only some are shown, so that the page stays a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.report import fields, words
from bezoar.report.pictures import Thumbnail, thumbnail

PER_CLASS = 8
MOST_PER_CLASS = 16
ROWS_UP_TO = 20  # classes
MOST_CLASSES = 100
_CELL = 4  # images of a class in the grid
_ROW_SIDE, _CELL_SIDE = 96, 48  # pixels of an image: what the page needs, and small as a file


@dataclass(frozen=True)
class Row:
    """The images of one class."""

    name: str
    count: str
    thumbnails: list[Thumbnail]


@dataclass(frozen=True)
class ContactSheet:
    """Images of classes as the page shows them; ``compact`` is the grid."""

    rows: list[Row]
    compact: bool
    note: str


def contact_sheet(
    classifier: Classifier, images: ImageSet, *, per_class: int = PER_CLASS
) -> ContactSheet:
    """Lays out ``images`` by their labels, which should be the classifier's own answers.

    Args:
        classifier: says how sure each image is: log p of its label.
        images: of the classifier's size, with labels; a class may be without.
        per_class: at most so many of each class, from 1 to 16.

    Raises:
        InputError: ``per_class`` is out of range, or there are no labels.
    """
    check_per_class(per_class)
    labels = images.require_labels("a contact sheet").cpu()
    counts = images.class_counts(classifier.num_classes)
    # In float64: in float32 all very sure images are equally sure.
    logs = classifier.logits(images).cpu().double().log_softmax(1)
    sureness = logs.gather(1, labels[:, None])[:, 0]
    classes = len(counts)
    compact = classes > ROWS_UP_TO
    most, side = (min(per_class, _CELL), _CELL_SIDE) if compact else (per_class, _ROW_SIDE)
    shown = _shown(counts)
    rows = []
    for k in shown:
        inside = torch.nonzero(labels == k).flatten()
        best = inside[sureness[inside].argsort(descending=True, stable=True)][:most]
        name = fields.name_of(classifier.classes, k)
        chosen = images.subset(best).images.permute(0, 2, 3, 1).cpu().numpy()
        rows.append(
            Row(
                name,
                words.plural(int(counts[k]), "image") if counts[k] else "no image",
                [
                    thumbnail(pixels, f"{name}, image {place + 1}", largest=side)
                    for place, pixels in enumerate(chosen)
                ],
            )
        )
    return ContactSheet(rows, compact, _note(counts, len(shown), most))


def check_per_class(per_class: int) -> None:
    """Refuses a number of images of each class that no sheet has."""
    if not 1 <= per_class <= MOST_PER_CLASS:
        raise InputError(
            f"{per_class} images of each class are asked for; expected 1 to {MOST_PER_CLASS}"
        )


def _shown(counts: Tensor) -> Sequence[int]:
    """All classes; of very many those with the most images, in order of class."""
    if len(counts) <= MOST_CLASSES:
        return range(len(counts))
    most: list[int] = (
        counts.argsort(descending=True, stable=True)[:MOST_CLASSES].sort().values.tolist()
    )
    return most


def _note(counts: Tensor, shown: int, most: int) -> str:
    """What is on the sheet, and what is not."""
    classes, missing = len(counts), int((counts == 0).sum())
    note = "Of each class, the image that the network is surest of."
    if most > 1:
        note = f"Of each class, up to {most} images: those that the network is surest of."
    if shown < classes:
        note += f" {shown:,} of {classes:,} classes are shown, those with the most images."
    if missing:
        note += f" {words.plural(missing, 'class has', 'classes have')} no image."
    return note
