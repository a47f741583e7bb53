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

from collections.abc import Callable

import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.training import Progress

Goal = tuple[Tensor, Tensor]
"""Indices of features (k,), and the values (k,) that they shall have."""

_STEP = 0.05
"""Adam's learning rate in pixel values: a pixel crosses its range in some twenty steps."""


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
