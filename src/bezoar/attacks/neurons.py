"""Raising neurons: what triggers that are optimised on a network have in common.

Liu et al. 2018 (NDSS, "Trojaning attack on neural networks") choose a neuron by the sum of its
absolute weights and change the trigger's pixels until its value is near a target. Li et al. 2020
(arXiv 1909.02742) do the same with several neurons and a bound on the trigger's norm.

Ours: the neurons are the features before the final linear layer and the sum runs over its weights,
so any classifier will do (Liu et al. look at the weights that come in); a neuron that is constant
on the images is left out; the loss is averaged over clean images that carry the trigger (Liu et al.
feed the trigger alone); the goal is a multiple of the neuron's largest value on clean images; Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor

from bezoar.attacks.attack import Attack
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import Progress, no_progress

Goal = tuple[Tensor, Tensor]
"""Indices of features (k,), and the values (k,) that they shall have."""

_STEP = 0.05
"""Adam's learning rate in pixel values: a pixel crosses its range in some twenty steps."""


class NeuronTrigger(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What attacks have in common whose trigger is learned by raising neurons.

    Attributes:
        neurons: how many features are raised.
        scale: the goal, in multiples of their largest value on clean images.
        steps: of the optimisation.
        samples: clean images that it is learned on.
    """

    needs_surrogate: ClassVar[bool] = True

    neurons: int = 1
    scale: float = 10.0
    steps: int = 200
    samples: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("neurons", "steps", "samples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 < self.scale < math.inf:
            raise InputError(f"scale {self.scale} must be greater than 0")

    @property
    def learned(self) -> bool:
        """Always."""
        return True

    def prepare(
        self,
        images: ImageSet,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """Learns the trigger's arrays, from noise."""
        if surrogate is None:
            raise InputError(f"{self.name} needs a surrogate: a classifier trained on clean images")
        sample = clean_sample(surrogate, images, self.samples, seed)
        goal = strongest(surrogate, sample, self.neurons, self.scale)
        generator = torch.Generator().manual_seed(seed)
        start = torch.rand(images.shape, generator=generator).to(surrogate.device)
        return self.holding(self._learn(surrogate, sample, goal, start, progress), images.shape)

    def _learn(
        self,
        classifier: Classifier,
        images: Tensor,
        goal: Goal,
        start: Tensor,
        progress: Progress,
    ) -> dict[str, Tensor]:
        """The arrays that ``apply`` takes, from the start (c, h, w) on."""
        raise NotImplementedError


def clean_sample(classifier: Classifier, images: ImageSet, count: int, seed: int) -> Tensor:
    """``count`` images, (n, c, h, w) in [0, 1], where the classifier is."""
    classifier.trace(images.shape)
    return images.sample(count, seed=seed).images.to(classifier.device).float() / 255


def strongest(classifier: Classifier, images: Tensor, count: int, scale: float) -> Goal:
    """The ``count`` features with the largest weights, and ``scale`` times their largest values."""
    with torch.no_grad(), classifier.evaluating():
        features = classifier.features(images)
    sizes = classifier.head.weight.abs().sum(0) * (features.std(0) > 0)
    neurons = sizes.topk(min(count, len(sizes))).indices
    return neurons, scale * features[:, neurons].abs().amax(0)


def distance(classifier: Classifier, images: Tensor, goal: Goal) -> Tensor:
    """Mean squared distance of the features from the goal; the network must be in eval mode."""
    neurons, values = goal
    return (classifier.features(images)[:, neurons] - values).square().mean()


def optimise(
    classifier: Classifier,
    goal: Goal,
    start: Tensor,
    *,
    stamp: Callable[[Tensor], Tensor],
    project: Callable[[Tensor], Tensor],
    steps: int,
    progress: Progress,
) -> Tensor:
    """Changes an array so that images stamped with it come near the goal.

    Args:
        classifier: is not changed.
        goal: see ``strongest``.
        start: the array to begin with.
        stamp: the array → the stamped images.
        project: the array → the nearest one that is allowed; after every step.
        steps: of Adam.
        progress: called while it works.
    """
    array = project(start).clone().requires_grad_()
    adam = torch.optim.Adam([array], _STEP)
    with classifier.evaluating():
        for index in range(steps):
            loss = distance(classifier, stamp(array), goal)
            (array.grad,) = torch.autograd.grad(loss, array)
            adam.step()
            with torch.no_grad():
                array.copy_(project(array))
            progress("learning a trigger", (index + 1) / steps)
    return array.detach()
