"""How much accuracy a repair costs, from few images.

With a hundred held-out images, the accuracies before and after are each known to four points, and
their difference to three: too coarse for a limit of two or five points. Yet the images are the
same, so the loss can also be read from how sure both networks are of the true class,

    e = mean over images and views of  p(y | x) - p'(y | x)

where p and p' are the softmax of the original and of the repaired network, each at the temperature
that makes its mean largest probability the original's accuracy: a network may be surer than it is
right, and a repair may make it surer and no better. The views are the flips and shifts that cost
the original no accuracy. What is reported weighs the two by their variances

    v = (c / var(c) + e / var(e)) / (1 / var(c) + 1 / var(e)),    var(e) = sampling + OFF^2

so that with many images the count c decides. Ours.

Measured on the pool's development half (``benchmarks/accuracy_loss_error.py``, root mean square
errors in points): after repairs that keep the original's answers (Neural Cleanse, BTI-DBF) c is off
by 1.4 and 2.3, e by 0.9 and 0.8, v by 0.9 and 0.9. Fine-tuning at a high rate changes how a network
is sure, and e is no better there: c 4.7, e 5.7, v 4.6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bezoar.augmentation import crop_and_flip
from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods.tolerated import with_tolerated_augmentation
from bezoar.metrics import Rate, accuracy
from bezoar.training import Recipe

OFF = 0.015  # the error of e beyond sampling after repairs that keep the original's answers, about
LOOKS = 2000  # images and views together
MOST_VIEWS = 16
WIDEST = 1000.0  # largest temperature, and one over the smallest


@dataclass(frozen=True)
class AccuracyLoss:
    """Accuracy before and after, and how much was lost.

    Attributes:
        before: the original's accuracy, counted.
        after: the repaired network's accuracy, counted.
        expected: e, in [-1, 1].
        value: v, in [-1, 1]; negative is a gain.
        error: the standard error of ``value``.
    """

    before: Rate
    after: Rate
    expected: float
    value: float
    error: float

    @property
    def counted(self) -> float:
        """c: the difference of the counted accuracies."""
        return self.before.value - self.after.value

    def as_record(self) -> dict[str, Any]:
        """The figures."""
        return {
            "counted": self.counted,
            "expected": self.expected,
            "value": self.value,
            "error": self.error,
        }


class Baseline:
    """The original's part of the comparison, measured once for however many repairs of it.

    Args:
        original: before any repair.
        images: at least one, with labels, none of which a repair saw.
        seed: of the views.

    Raises:
        InputError: no labels.
    """

    def __init__(self, original: Classifier, images: ImageSet, *, seed: int = 0) -> None:
        labels = images.require_labels("measuring a loss of accuracy").to(original.device)
        self.labels, self.views = labels, _views(original, images, seed)
        probabilities = _probabilities(original, self.views, len(labels))
        answers = probabilities[0].argmax(1)  # of (views, n, C)
        self.right, self.accuracy = answers == labels, accuracy(answers, labels)
        # Away from 0 and 1, which no temperature reaches.
        self.sure = (int(self.right.sum()) + 1) / (len(labels) + 2)
        self.of_truth = self._of_truth(probabilities)

    def loss(self, repaired: Classifier) -> AccuracyLoss:
        """What ``repaired`` lost against the original."""
        count = len(self.labels)
        probabilities = _probabilities(repaired, self.views, count)
        answers = probabilities[0].argmax(1)
        gaps = (self.of_truth - self._of_truth(probabilities)).mean(0)
        changed = self.right.double() - (answers == self.labels).double()
        # One more changed image than was seen keeps a variance of zero away.
        spread = (float(changed.square().mean()) + 1 / count) / count
        sampling = float(gaps.var(correction=0)) / count
        exact = sampling + OFF**2
        weight = (1 / spread, 1 / exact)
        expected = float(gaps.mean())
        value = (float(changed.mean()) * weight[0] + expected * weight[1]) / sum(weight)
        after = accuracy(answers, self.labels)
        return AccuracyLoss(self.accuracy, after, expected, value, math.sqrt(1 / sum(weight)))

    def _of_truth(self, probabilities: Tensor) -> Tensor:
        """p(y | x), (views, n), of (views, n, C) at the original's confidence."""
        truth = self.labels.expand(len(probabilities), -1)[..., None]
        return at_confidence(probabilities, self.sure).gather(2, truth)[..., 0]


def accuracy_loss(
    original: Classifier, repaired: Classifier, images: ImageSet, *, seed: int = 0
) -> AccuracyLoss:
    """Compares one ``repaired`` network with ``original``; see ``Baseline``."""
    return Baseline(original, images, seed=seed).loss(repaired)


def at_confidence(probabilities: Tensor, wanted: float) -> Tensor:
    """The probabilities at the temperature that makes their mean largest one ``wanted``.

    Args:
        probabilities: (..., C), each row sums to 1.
        wanted: in [1 / C, 1]; what no temperature in [1/1000, 1000] reaches is approached.
    """
    logs = probabilities.clamp_min(1e-300).log()
    low, high = 1 / WIDEST, WIDEST
    for _ in range(40):
        middle = math.sqrt(low * high)
        if float((logs / middle).softmax(-1).amax(-1).mean()) > wanted:
            low = middle
        else:
            high = middle
    return (logs / math.sqrt(low * high)).softmax(-1)


def _views(original: Classifier, images: ImageSet, seed: int) -> ImageSet:
    """The images as they are, then shifted and mirrored as the original bears it."""
    some = max(1, min(MOST_VIEWS, LOOKS // len(images)))
    how = with_tolerated_augmentation(Recipe(), original, images, seed=seed)
    if some == 1 or not (how.crop_padding or how.flip):
        return images
    generator = torch.Generator().manual_seed(seed)
    moved = [
        crop_and_flip(images.images, padding=how.crop_padding, flip=how.flip, generator=generator)
        for _ in range(some - 1)
    ]
    return ImageSet(torch.cat([images.images, *moved]))


def _probabilities(classifier: Classifier, views: ImageSet, count: int) -> Tensor:
    probabilities = classifier.logits(views).double().softmax(1)
    probabilities = probabilities.nan_to_num(nan=0.0)  # what is no number is no answer
    return probabilities.view(-1, count, probabilities.shape[1])
