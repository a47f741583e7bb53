"""Where the samples come from that a removal learns from: the inversion, or one of its controls.

- ``inverted``: searched in the generator's latent space and selected (``fred_inversion``,
  ``fred_selection``): the method.
- ``random``: images of random latent vectors, labelled by the suspect.
- ``public``: public images, labelled by the suspect.
- ``pixels``: searched in pixels with the help of BatchNorm statistics (``pixel_inversion``).

The last three are controls: they cost nearly nothing, or need no generator, and show whether the
inversion earns its cost. None of them is selected by its scores, so that each is what its name
says. The same number of every class is taken, as far as there are so many.

Beside the samples there are *fresh* images, which take no part in the removal and on which the old
and the new network can be compared: public images that were left out, or new random ones.

Ours throughout.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bezoar.classifier import BATCH, Classifier
from bezoar.errors import InputError
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.methods.fred_inversion import invert
from bezoar.methods.fred_selection import Selection, select
from bezoar.methods.fred_settings import Inversion
from bezoar.methods.pixel_inversion import PixelInversion, invert_pixels
from bezoar.training import Progress, no_progress

Source = Literal["inverted", "random", "public", "pixels"]

_DRAWN = 8  # random images, for each that is wanted
_QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Samples:
    """What a removal learns from.

    Attributes:
        images: with the wanted classes, or the suspect's answers, as labels.
        record: how many were tried and kept, and what is known of them; JSON-able.
    """

    images: ImageSet
    record: dict[str, Any]


def inverted(
    classifier: Classifier,
    generator: PublicGenerator,
    inversion: Inversion,
    selection: Selection | None,
    *,
    per_class: int,
    tried: float,
    seed: int,
    progress: Progress = no_progress,
) -> Samples:
    """Inverts ``tried`` times as many samples as are wanted, and keeps the best of each class.

    Without a ``selection`` as many as are wanted, all of which are kept.
    """
    searched = per_class if selection is None else max(per_class, round(tried * per_class))
    found = invert(
        classifier,
        generator,
        every_class(classifier.num_classes, searched),
        inversion,
        seed=seed,
        progress=progress,
    )
    started = time.perf_counter()
    rows, seen = torch.arange(len(found.labels)), dict(found.diagnostics)
    told: dict[str, Any] | None = None
    if selection is not None:
        kept = select(
            classifier,
            found.images,
            found.labels,
            per_class,
            selection,
            seed=seed,
            progress=progress,
        )
        rows, seen, told = kept.indices, seen | {"stability": kept.scores}, kept.record
    samples = as_samples(classifier, found.images[rows], found.labels[rows])
    record = samples.record | {
        "tried": len(found.labels),
        "short": told["short"] if told else [],
        "quantiles": _quantiles(seen, rows),
        "images_per_minute": found.record["images per minute"],
        "shares": found.record["shares"],
        "search": found.record,
        "selection": told,
        "seconds": {
            "inverting": found.record["seconds"],
            "selecting": time.perf_counter() - started,
        },
    }
    return Samples(samples.images, record)


def accompanied(samples: Samples, companions: Samples) -> Samples:
    """Both sets as one, the samples first."""
    first, second = samples.images, companions.images
    return Samples(
        ImageSet(
            torch.cat([first.images.cpu(), second.images.cpu()]),
            torch.cat([part.require_labels("samples").cpu() for part in (first, second)]),
            first.classes,
        ),
        samples.record | {"companions": companions.record},
    )


def at_random(
    classifier: Classifier, generator: PublicGenerator, *, per_class: int, seed: int
) -> Samples:
    """Images of random latent vectors, labelled by the suspect, the same number of each class."""
    count = _DRAWN * per_class * classifier.num_classes
    return labelled(
        classifier,
        random_images(classifier, generator, count, seed),
        per_class=per_class,
        seed=seed,
    )


def labelled(classifier: Classifier, images: ImageSet, *, per_class: int, seed: int) -> Samples:
    """Up to ``per_class`` images, drawn at random, of each class that the suspect answers."""
    answers = classifier.logits(images).argmax(1).cpu()
    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(answers), generator=draws)
    taken = torch.cat(
        [order[answers[order] == k][:per_class] for k in range(classifier.num_classes)]
    )
    chosen = images.subset(taken)
    counts = answers[taken].bincount(minlength=classifier.num_classes).tolist()
    return Samples(
        ImageSet(chosen.images, answers[taken].to(chosen.images.device), classifier.classes),
        {"kept": len(taken), "tried": len(answers), "per_class": counts} | _missing(counts),
    )


def in_pixels(
    classifier: Classifier,
    settings: PixelInversion,
    *,
    per_class: int,
    seed: int,
    progress: Progress = no_progress,
) -> Samples:
    """Images searched in pixels; there is no generator, and nothing keeps a trigger out of them."""
    wanted = every_class(classifier.num_classes, per_class)
    found = invert_pixels(classifier, wanted, settings, seed=seed, progress=progress)
    samples = as_samples(classifier, found.images, wanted)
    return Samples(samples.images, samples.record | {"tried": len(wanted), "search": found.record})


def random_images(
    classifier: Classifier, generator: PublicGenerator, count: int, seed: int
) -> ImageSet:
    """``count`` images of random latent vectors, without labels."""
    generator = generator.to(classifier.device)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parts = torch.split(generator.latents(count, draws), BATCH)
        return ImageSet(torch.cat([as_pixels(generator(part)) for part in parts]))


def every_class(classes: int, per_class: int) -> Tensor:
    """Labels (classes · per class,), each class as often.

    >>> every_class(3, 2).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    return torch.arange(classes).repeat_interleave(per_class)


def as_pixels(images: Tensor) -> Tensor:
    """Images (n, c, h, w) in [0, 1] as ``uint8``.

    >>> as_pixels(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)).flatten().tolist()
    [0, 128, 255]
    """
    return images.clamp(0, 1).mul(255).round().byte()


def as_samples(classifier: Classifier, images: Tensor, labels: Tensor) -> Samples:
    """Float images with wanted classes as a set; the record says how many of each class."""
    if not len(images):
        raise InputError(
            "no sample is left to learn from: the network answers none of them with its class; "
            "use other public images, or more iterations"
        )
    counts = labels.bincount(minlength=classifier.num_classes).tolist()
    return Samples(
        ImageSet(as_pixels(images), labels, classifier.classes),
        {"kept": len(labels), "per_class": counts} | _missing(counts),
    )


def _missing(counts: list[int]) -> dict[str, Any]:
    return {"missing": [k for k, count in enumerate(counts) if not count]}


def _quantiles(seen: Mapping[str, Tensor], kept: Tensor) -> dict[str, list[float]]:
    """Tenth, middle and ninetieth percentile of what is known of the samples that are kept."""
    places = torch.tensor(_QUANTILES)
    return {
        name.replace(" ", "_"): torch.quantile(values[kept].float(), places).tolist()
        for name, values in seen.items()
        if name != "steps"
    }
