"""How far synthetic samples of one class lie apart in the eyes of the network (ours).

    V = sum_k sum_{i in k} |f(x_i) - mean_k|^2 / sum_k (n_k - 1)

with the features f before the last layer: the variance within the classes, compared with that of
other images, for example random public ones. A search that asks for more certainty or stability
than its images can bear ends in one flat prototype a class, and a network that learns from these
loses the boundaries between the classes: a V below half of the reference is a warning.

Known failures: features of a well-trained network vary little on its own training classes, so that
real images can have less variance than unrelated ones; a single outlier can carry V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.float_samples import check_samples, features_of, logits_of

LEAST_DIVERSITY = 0.5  # of the reference's variance


@dataclass(frozen=True)
class Diversity:
    """How far samples of one class lie apart in the network's features.

    Attributes:
        variance: summed over the features, about each class's mean, pooled over the classes.
        reference: that of the reference images; None without any.
        ratio: of the two; None where there is no reference, or it does not vary.
        low: whether the ratio is below a half: samples are washed-out prototypes of their classes,
            and what is learned from them loses the boundaries between these.
    """

    variance: float
    reference: float | None = None
    ratio: float | None = None

    @property
    def low(self) -> bool:
        """See above."""
        return self.ratio is not None and self.ratio < LEAST_DIVERSITY

    def as_record(self) -> dict[str, float | bool | None]:
        """The plain form that records hold."""
        return {
            "variance": self.variance,
            "reference": self.reference,
            "ratio": self.ratio,
            "low": self.low,
        }


def diversity(
    classifier: Classifier, images: Tensor, labels: Tensor, reference: Tensor | None = None
) -> Diversity:
    """The variance of features within the classes; the classifier stays as it is.

    Args:
        classifier: whose features.
        images: floating point, (n, c, h, w), in [0, 1].
        labels: ``int64``, (n,).
        reference: other images, (m, c, h, w), in [0, 1], such as random public ones; each belongs
            to the class that the network answers.

    Raises:
        InputError: they are no samples of the classifier's classes, or no class has two.
    """
    check_samples(classifier, images, labels)
    variance = _within(features_of(classifier, images), labels.cpu())
    if variance is None:
        raise InputError("no class has two samples, and one alone has no variance")
    if reference is None:
        return Diversity(variance)
    answers = logits_of(classifier, reference).argmax(1)
    other = _within(features_of(classifier, reference), answers)
    return Diversity(variance, other, variance / other if other else None)


def _within(features: Tensor, labels: Tensor) -> float | None:
    """The pooled variance within the classes, summed over d; None where no class has two."""
    squares, degrees = 0.0, 0
    for k in torch.unique(labels):
        members = features[labels == k].double()
        squares += float((members - members.mean(0)).square().sum())
        degrees += len(members) - 1
    return squares / degrees if degrees else None
