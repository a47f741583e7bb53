"""The pictures of a report: what the suspected class looks like, and who is nearest to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.report.pictures import Picture

SHOWN = 8


def examples(
    classifier: Classifier, images: ImageSet, suspects: Sequence[int], *, most: int = 2
) -> list[Picture]:
    """Two rows for each of the first ``most`` suspects: images of the class, and its neighbours.

    The neighbours are the images of other classes whose logit for the suspect is nearest to their
    highest one: the first that a small change carries over.
    """
    if not suspects:
        return []
    logits = classifier.logits(images).cpu()
    answers = logits.argmax(1)
    rows = []
    for k in list(suspects)[:most]:
        name = classifier.classes[k]
        gap = logits.amax(1) - logits[:, k]
        inside = torch.nonzero(answers == k).flatten()
        outside = torch.nonzero(answers != k).flatten()
        inside = inside[logits[inside, k].argsort(descending=True)][:SHOWN]
        outside = outside[gap[outside].argsort()][:SHOWN]
        if len(inside):
            rows.append(
                Picture(
                    f"Class {name}",
                    "Clean images that the network answers with this class, surest first.",
                    _pixels(images, inside),
                )
            )
        if len(outside):
            rows.append(
                Picture(
                    f"Nearest to class {name}",
                    "Clean images of other classes that need the least to be answered with it.",
                    _pixels(images, outside),
                    tuple(classifier.classes[int(answer)] for answer in answers[outside]),
                )
            )
    return rows


def _pixels(images: ImageSet, where: Tensor) -> np.ndarray:
    chosen = images.subset(where).images.permute(0, 2, 3, 1)
    pixels: np.ndarray = chosen.cpu().numpy()
    return pixels
