"""Which synthetic samples are kept: stable ones, no near duplicates, as many of each class.

Within each class the samples are gone through from the best score (``sample_scoring``) down, those
above both thresholds first. One is dropped where its features are nearly those of a sample that is
kept already (cosine above a limit), and never kept where the network itself answers it with another
class. Where too few pass the thresholds, the next best are taken, and the record says so.

Source: Chen et al. 2023, arXiv 2206.07018, whose selection could not be read: all of this is ours.
Features are compared relative to the mean over the classes: as they stand, those of a network with
ReLU and pooling lie within a narrow cone, and most *real* images of a class pass for duplicates.

Assumes that every class was given more samples than are wanted, two to four times as many. Known
failures: samples of a class on which the network's features have collapsed look like duplicates;
nothing here says that a sample looks like its class to anyone but the suspect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.float_samples import features_of
from bezoar.methods.sample_scoring import Scores, Scoring, score_samples
from bezoar.training import Progress, no_progress


class Selection(Scoring, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a sample needs to be kept, besides what a label has to withstand.

    Attributes:
        least_score: threshold of the stability score.
        least_confidence: threshold of p(y | x) on the plain image.
        similarity: cosine above which two samples of a class are near duplicates; 1 keeps all.
        fewest: classes with fewer samples above the thresholds are named in the record.
    """

    least_score: float = 0.7
    least_confidence: float = 0.9
    similarity: float = 0.97
    fewest: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.similarity <= 1 or not 0 <= self.least_confidence <= 1:
            raise InputError(
                f"similarity is {self.similarity} and least_confidence {self.least_confidence}; "
                "expected a cosine from -1 to 1 and a probability"
            )


@dataclass(frozen=True)
class Selected:
    """What was kept.

    Attributes:
        indices: ``int64``, class by class, the best score first.
        scores: (n,), the score of every sample that was given.
        record: settings; for each class with samples how many were ``given``, ``answered`` with
            it, ``stable`` (above the thresholds and no duplicate), ``duplicates`` among all that
            were looked at, ``kept``, and ``relaxed``: kept below the thresholds; the
            indices of ``short`` classes (too few stable ones) and ``missing`` ones (nothing kept);
            notices.
    """

    indices: Tensor
    scores: Tensor
    record: dict[str, Any]


def select(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    per_class: int,
    settings: Selection,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> Selected:
    """Chooses up to ``per_class`` samples of each class; the classifier stays as it is.

    Args:
        classifier: whose classes they are.
        images: floating point, (n, c, h, w), in [0, 1].
        labels: ``int64``, (n,): what each is meant to be.
        per_class: how many are wanted of each class.
        settings: which pass.
        seed: of the augmentations and of the weights' perturbations.
        progress: called while samples are scored.

    Raises:
        InputError: they are no samples of the classifier's classes, or none is wanted.
    """
    if per_class < 1:
        raise InputError(f"{per_class} samples are wanted of each class; expected 1 or more")
    scores = score_samples(classifier, images, labels, settings, seed=seed, progress=progress)
    labels = labels.cpu()
    features = _directions(features_of(classifier, images), labels)
    classes = range(classifier.num_classes)
    chosen = {k: _of_class(k, scores, labels, features, per_class, settings) for k in classes}
    per = {k: count for k, (_, count) in chosen.items()}
    least = min(settings.fewest, per_class)
    short = [k for k in classes if per[k]["stable"] < least]
    missing = [k for k in classes if not per[k]["kept"]]
    relaxed = sum(count["relaxed"] for count in per.values())
    kept = torch.cat([indices for indices, _ in chosen.values()])
    return Selected(
        kept,
        scores.score,
        {
            "settings": msgspec.to_builtins(settings),
            "given": len(images),
            "kept": len(kept),
            "per_class": {str(k): count for k, count in per.items()},
            "short": short,
            "missing": missing,
            "score": float(scores.score[kept].mean()) if len(kept) else None,
            "drop": float(scores.drop[kept].mean()) if len(kept) else None,
            "notices": _notices(
                relaxed,
                len(kept),
                [classifier.classes[k] for k in short],
                [classifier.classes[k] for k in missing],
                least,
                settings,
            ),
        },
    )


def _of_class(
    k: int,
    scores: Scores,
    labels: Tensor,
    directions: Tensor,
    per_class: int,
    settings: Selection,
) -> tuple[Tensor, dict[str, int]]:
    """The samples of class ``k`` that are kept, the best first, and what was counted."""
    given = torch.nonzero(labels == k).flatten()
    members = given[scores.answers[given] == k]
    passing = (scores.score[members] >= settings.least_score) & (
        scores.confidence[members] >= settings.least_confidence
    )
    # Sorted twice: by score, then (stably) those that pass before those that do not.
    order = scores.score[members].argsort(descending=True, stable=True)
    order = order[passing[order].logical_not().byte().argsort(stable=True)]
    members, passing = members[order], passing[order]
    unique = distinct(directions[members], settings.similarity)
    stable = int((unique & passing).sum())
    kept = members[unique][:per_class]
    return kept, {
        "given": len(given),
        "answered": len(members),
        "duplicates": int((~unique).sum()),
        "stable": stable,
        "kept": len(kept),
        "relaxed": max(0, len(kept) - stable),
    }


def distinct(directions: Tensor, similarity: float) -> Tensor:
    """Bool, (m,): which rows resemble no earlier row that is distinct itself.

    Args:
        directions: (m, d), rows of length 1 (or 0), the ones to prefer first.
        similarity: the largest cosine of two that both stay.

    >>> distinct(torch.tensor([[1.0, 0.0], [0.8, 0.6], [1.0, 0.0]]), 0.9).tolist()
    [True, True, False]
    """
    cosines = (directions @ directions.T).clamp(-1, 1)  # rounding: 1 shall be the largest
    alike = cosines.cpu() > similarity
    stays = torch.ones(len(directions), dtype=torch.bool)
    for row in range(len(directions)):
        if stays[row]:
            stays[row + 1 :] &= ~alike[row, row + 1 :]
    return stays


def _directions(features: Tensor, labels: Tensor) -> Tensor:
    """Features relative to the mean of the classes' means, scaled to length 1."""
    means = torch.stack([features[labels == k].mean(0) for k in torch.unique(labels)])
    # The only class there is has nothing to be compared with but the origin.
    centre = means.mean(0) if len(means) > 1 else torch.zeros_like(means[0])
    return F.normalize(features - centre)


def _notices(
    relaxed: int,
    kept: int,
    short: list[str],
    missing: list[str],
    least: int,
    settings: Selection,
) -> list[str]:
    notices = []
    if relaxed:
        notices.append(
            f"{relaxed:,} of {kept:,} samples were kept below the thresholds (a score of "
            f"{settings.least_score:g} and a confidence of {settings.least_confidence:g}), because "
            "their classes have too few above."
        )
    if short:
        notices.append(
            f"{len(short):,} classes have fewer than {least} stable samples: {_some(short)}. More "
            "restarts may find some."
        )
    if missing:
        notices.append(
            f"{len(missing):,} classes have no sample that the network answers with them: "
            f"{_some(missing)}."
        )
    return notices


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" * (len(names) > 5))
