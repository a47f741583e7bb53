"""Labels in another order than the network's classes, told apart from a network that is just weak.

Folders are often sorted as text, so that class 10 comes before class 2, and then a good network
seems to be a bad one. Half of the images of each label find which label stands for which answer,
the other half show whether that explains the answers. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.metrics import Rate, accuracy


@dataclass(frozen=True)
class ClassOrder:
    """Which answer each label stands for, one for one.

    Attributes:
        answers: label → the network's class; labels that no answer was left for are not in it.
        right: how many images of the other half are answered so.
    """

    answers: dict[int, int]
    right: Rate

    @property
    def example(self) -> tuple[int, int] | None:
        """The first label that stands for another class, and that class; None if none does."""
        moved = ((label, k) for label, k in sorted(self.answers.items()) if label != k)
        return next(moved, None)


def find_order(answers: Tensor, labels: Tensor, classes: int) -> ClassOrder:
    """Pairs labels with answers, the most frequent pair first.

    Args:
        answers: the network's, (n,) int64 below ``classes``.
        labels: (n,) int64 below ``classes``; two images of one label at least.
        classes: of the network.

    >>> labels = torch.tensor([0, 0, 1, 1, 2, 2])
    >>> order = find_order((labels + 1) % 3, labels, 3)
    >>> order.answers, order.right.value, order.example
    ({0: 1, 1: 2, 2: 0}, 1.0, (0, 1))
    """
    choosing = _halved(labels)
    pairs = labels[choosing] * classes + answers[choosing]
    table = torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
    found: dict[int, int] = {}
    while int(table.max()) > 0:
        label, answer = divmod(int(table.argmax()), classes)
        found[label] = answer
        table[label, :] = 0
        table[:, answer] = 0
    stands_for = torch.tensor([found.get(label, -1) for label in range(classes)])
    rest = ~choosing
    return ClassOrder(found, accuracy(answers[rest], stands_for[labels[rest]]))


def _halved(labels: Tensor) -> Tensor:
    """True for the first, third, fifth … image of each label."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    starts = (counts.cumsum(0) - counts)[labels[order]]
    chosen = torch.empty(len(labels), dtype=torch.bool)
    chosen[order] = (torch.arange(len(labels)) - starts) % 2 == 0
    return chosen
