"""Labels in another order than the network's classes, told apart from a network that is just weak.

Folders are often sorted as text, so that class 10 comes before class 2, and then a good network
seems to be a bad one. Half of the images of each label find which label stands for which answer,
the other half show whether that explains the answers; every label counts the same, so that no
confusion of one frequent class with another is taken for an order. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassOrder:
    """Which answer each label stands for, one for one.

    Attributes:
        answers: label → the network's class; labels that no answer was left for are not in it.
        right: the share of the other half's images that are answered so, the mean over labels.
        as_given: the same for the order as it is.
    """

    answers: dict[int, int]
    right: float
    as_given: float

    @property
    def example(self) -> tuple[int, int] | None:
        """The first label that stands for another class, and that class; None if none does."""
        moved = ((label, k) for label, k in sorted(self.answers.items()) if label != k)
        return next(moved, None)


def find_order(answers: Tensor, labels: Tensor, classes: int) -> ClassOrder:
    """Pairs labels with answers, the pair first that holds for most images of its label.

    Args:
        answers: the network's, (n,) int64 below ``classes``.
        labels: (n,) int64 below ``classes``; two images of one label at least.
        classes: of the network.

    >>> labels = torch.tensor([0, 0, 1, 1, 2, 2])
    >>> order = find_order((labels + 1) % 3, labels, 3)
    >>> order.answers, order.right, order.as_given, order.example
    ({0: 1, 1: 2, 2: 0}, 1.0, 0.0, (0, 1))
    """
    choosing = _halved(labels)
    every = (labels * classes + answers)[choosing]
    pairs, counts = torch.unique(every, return_counts=True)
    shares = counts / torch.bincount(labels[choosing], minlength=classes)[pairs // classes]
    found: dict[int, int] = {}
    taken: set[int] = set()
    for pair in pairs[shares.argsort(descending=True, stable=True)].tolist():
        label, answer = divmod(pair, classes)
        if label not in found and answer not in taken:
            found[label] = answer
            taken.add(answer)
    stands_for = torch.tensor([found.get(label, -1) for label in range(classes)])
    rest = ~choosing
    answers, labels = answers[rest], labels[rest]
    return ClassOrder(
        found, _mean(answers == stands_for[labels], labels), _mean(answers == labels, labels)
    )


def _halved(labels: Tensor) -> Tensor:
    """True for the first, third, fifth … image of each label."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    starts = (counts.cumsum(0) - counts)[labels[order]]
    chosen = torch.empty(len(labels), dtype=torch.bool)
    chosen[order] = (torch.arange(len(labels)) - starts) % 2 == 0
    return chosen


def _mean(right: Tensor, labels: Tensor) -> float:
    """The share of right answers, every label counting the same."""
    of_each = torch.bincount(labels)
    shares = torch.bincount(labels, weights=right.double()) / of_each
    return float(shares[of_each > 0].mean())
