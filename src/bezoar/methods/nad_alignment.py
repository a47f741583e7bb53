"""The loss of NAD: right answers, and the attention of the teacher.

    L = CE(f_s(x), y) + sum_l beta_l MSE( A(F_l^s), A(F_l^t) )

Li et al. 2021, arXiv 2101.05930; the attention A and the maps F_l are in ``nad_maps``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.methods.nad_maps import FeatureMap, attention
from bezoar.training import Loss

Mean = Literal["positions", "map"]


def misalignment(student: Tensor, teacher: Tensor, mean: Mean) -> Tensor:
    """How far two attentions (n, positions) lie apart, a scalar; the teacher gets no gradient.

    Args:
        student: normalised, differentiable.
        teacher: the same.
        mean: over ``positions`` (the paper), or over images alone (``map``): the squared distance
            of two attention maps, which lies between 0 and 2 whatever their size.
    """
    distance = F.mse_loss(student, teacher.detach())
    return distance * student.shape[1] if mean == "map" else distance


class Alignment:
    """The loss of the student, and how far each map was from the teacher's.

    Args:
        teacher: in eval mode.
        maps: which ones.
        betas: the weight of each.
        power: p of the attention.
        mean: see ``misalignment``.
    """

    def __init__(
        self,
        teacher: Classifier,
        maps: Sequence[FeatureMap],
        betas: Sequence[float],
        power: float,
        mean: Mean,
    ) -> None:
        self.teacher, self.maps, self.betas = teacher, maps, betas
        self.power, self.mean = power, mean
        self.epochs: list[list[Tensor]] = []  # of each epoch its steps, (maps,)

    def next_epoch(self, _epoch: int) -> None:
        """Called before each epoch."""
        self.epochs.append([])

    def loss(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Loss:
        """What ``fit`` minimises, given where the student's and the teacher's maps appear."""

        def loss(
            student: Classifier, images: Tensor, labels: Tensor, _generator: torch.Generator
        ) -> Tensor:
            with torch.no_grad():
                self.teacher(images)
            cross_entropy = F.cross_entropy(student(images), labels)
            apart = torch.stack(
                [
                    misalignment(
                        attention(ours[one.layer], self.power, one.channels),
                        attention(theirs[one.layer], self.power, one.channels),
                        self.mean,
                    )
                    for one in self.maps
                ]
            )
            self.epochs[-1].append(apart.detach())
            return cross_entropy + (apart * apart.new_tensor(self.betas)).sum()

        return loss

    def by_epoch(self) -> list[list[float]]:
        """The means of each epoch, one number for each map."""
        return [torch.stack(steps).mean(0).tolist() for steps in self.epochs if steps]
