"""Images of a network's classes to look at, and what is known of them (ours).

A generator is taught by the network alone (``synthesis``) and draws images; each gets the network's
answer to it as a label. The record says what they are worth as far as that shows without data: how
many each class has, how sure the network is, and how far the images are from the training images
in the eyes of the network's BatchNorms (``statistics_prior``).

The images are held in [0, 1] while the generator learns. A free generator leaves that range, and
what is clipped only afterwards to be looked at is no longer what it learned to make: on digits the
classes had 70 to 134 of 1,024 images each when held, and 3 to 404 when clipped afterwards.

Assumes what ``synthesis`` does, and fails where it fails.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.statistics_prior import StatisticsPrior
from bezoar.methods.synthesis import Synthesis, as_image_set, source_for
from bezoar.training import Progress, no_progress

WORTH = (
    "They show what excites the network: they are not its training images, need not look like "
    "its classes, and prove nothing about a backdoor."
)
NO_STATISTICS = (
    "The network has no BatchNorm that remembers its training images, so that only its answers "
    "guided the generator; images that look like noise can satisfy these."
)


@dataclass(frozen=True)
class Synthesized:
    """Images that were made of nothing.

    Attributes:
        images: ``uint8``, with the network's answers as labels and its class names.
        record: the settings, how many images each class has, ``missing`` ones by name,
            ``certainty`` (the mean probability of the answers), ``divergence`` (in nats, the mean
            of ``StatisticsPrior`` over batches; None without BatchNorm), what that is worth in
            words, seconds.
    """

    images: ImageSet
    record: dict[str, Any]


def synthesize(
    classifier: Classifier,
    settings: Synthesis,
    count: int,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Synthesized:
    """Teaches a generator and draws ``count`` images from it; ``classifier`` stays as it is.

    Raises:
        InputError: ``count`` is below 1, or the classifier's input size is not known.
    """
    if count < 1:
        raise InputError(f"{count} images are asked for; expected at least 1")
    started = time.perf_counter()
    source = source_for(classifier, settings, seed)
    source.learn(settings.steps, progress)
    learned = time.perf_counter()
    parts = [
        as_image_set(classifier, source.images())  # batch by batch: as pixels they are small
        for _ in range(-(-count // settings.batch_size))
    ]
    drawn = torch.cat([part.images.cpu() for part in parts])
    answers = torch.cat([part.require_labels("counting").cpu() for part in parts])[:count]
    certainty, divergence = _seen(classifier, ImageSet(drawn), settings.batch_size)
    images = ImageSet(drawn[:count], answers, classifier.classes)
    counts = images.class_counts(classifier.num_classes).tolist()
    missing = [name for name, n in zip(classifier.classes, counts, strict=True) if not n]
    return Synthesized(
        images,
        {
            "settings": msgspec.to_builtins(settings),
            "count": count,
            "per_class": counts,
            "missing": missing,
            "certainty": float(certainty[:count].mean()),
            "divergence": divergence,
            "sentence": _sentence(count, len(counts), len(missing)),
            "limits": WORTH,
            "notices": _notices(missing, len(counts), divergence),
            "seconds": {
                "learning": learned - started,
                "total": time.perf_counter() - started,
            },
        },
    )


def _seen(
    classifier: Classifier, images: ImageSet, batch_size: int
) -> tuple[torch.Tensor, float | None]:
    """The probability of each answer (n,), and the mean divergence of whole batches."""
    certainty, divergences = [], []
    with classifier.evaluating(), torch.no_grad(), StatisticsPrior(classifier.network) as prior:
        for batch, _ in images.batches(batch_size, device=classifier.device):
            certainty.append(classifier(batch).float().softmax(1).amax(1).cpu())
            if not prior.empty:
                divergences.append(float(prior.distance()))
    return torch.cat(certainty), sum(divergences) / len(divergences) if divergences else None


def _sentence(count: int, classes: int, missing: int) -> str:
    made = f"{count:,} {'image was' if count == 1 else 'images were'} made without data"
    return f"{made}; the network answers them with {classes - missing:,} of {classes:,} classes."


def _notices(missing: Sequence[str], classes: int, divergence: float | None) -> list[str]:
    notices = []
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5:,} more" * (len(missing) > 5))
        notices.append(
            f"No image is answered with {len(missing):,} of {classes:,} classes: {shown}. More "
            "images or more steps may find some; that a class is missing says nothing about it."
        )
    if divergence is None:
        notices.append(NO_STATISTICS)
    return notices
