"""Inverting triggers: for each class, the smallest patch that carries all images into it.

A(x) = (1 - m) x + m D stamps the pattern D, (c, h, w) in [0, 1], under the mask m, (1, h, w) in
[0, 1]; both are (tanh + 1) / 2 of free numbers. For each class k

    min over m, D of  E CE(f(A(x)), k) + lambda |m|_1                                          (1)

by Adam; ``neural_cleanse_schedule`` moves lambda. Wang et al., IEEE S&P 2019 (it has no arXiv
number), and its official code.

Ours: a step stacks the mini-batches of *all* classes into one forward pass. In eval mode no image
feels its neighbours, and Adam works number by number, so every class goes the way that it would
have gone alone: its draws come from a generator of its own, and lambda, the best mask and the stop
are its own. A class that is done leaves the batch.

The network is any function of images, so a partly unlearned one, or a sum of two, serves as well.
Known failures: triggers that are large, warp the image, or differ from image to image; a network
that answers k without any trigger makes the empty mask the best one (``already`` leaves such images
out).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.device import own_stream
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.neural_cleanse_schedule import Inversion, Schedule
from bezoar.methods.neural_cleanse_triggers import (
    Logits,
    Triggers,
    carried_shares,
    classes_in_a_pass,
    of_others,
    pixels_of,
    predicted,
    stamped,
)
from bezoar.training import Progress, no_progress


def inverted_for(
    classifier: Classifier,
    images: ImageSet,
    classes: Sequence[int],
    settings: Inversion,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> Triggers:
    """Solves eq. (1) for ``classes`` on a classifier, which is in eval mode meanwhile.

    Args:
        classifier: looked at, and left as it is.
        images: clean ones; with labels, those of a class do not count for it.
        classes: indices, each once.
        settings: how.
        seed: as for ``invert``.
        progress: called after each epoch.

    Raises:
        InputError: no image, or classes that do not fit.
    """
    pixels, labels = pixels_of(images, classifier)
    with classifier.evaluating():
        return invert(classifier, pixels, labels, classes, settings, seed=seed, progress=progress)


def invert(
    logits: Logits,
    images: Tensor,
    labels: Tensor | None,
    classes: Sequence[int],
    settings: Inversion,
    *,
    seed: int,
    already: Tensor | None = None,
    progress: Progress = no_progress,
) -> Triggers:
    """Solves eq. (1) for every class of ``classes`` at once.

    Args:
        logits: the network, in eval mode; only images get gradients, never its parameters.
        images: clean ones, (n, c, h, w) in [0, 1], on the network's device.
        labels: (n,); without them ``exclude_own`` goes by the network's answers alone.
        classes: indices of K logits, each once.
        settings: how.
        seed: of the start and the mini-batches; each class draws from a generator of its own.
        already: True, (K, n), where an image shall not count for a class, because the network
            gives that answer without a trigger.
        progress: called after each epoch.

    Raises:
        InputError: no image, or classes, labels or ``already`` that do not fit.
    """
    _check(images, labels, classes, already)
    counts = _counted(logits, images, labels, classes, settings, already)
    draws = [_Draws(row, seed=seed, k=k) for row, k in zip(counts, classes, strict=True)]
    start = torch.stack([draw.start(images.shape[1:]) for draw in draws]).to(images)
    free = start.requires_grad_()  # (K, 1 + c, h, w): of the masks, then of the patterns
    best = _squash(free.detach())
    optimizer = torch.optim.Adam([free], settings.learning_rate, betas=settings.betas)
    first = 1 / best[0, 0].numel() if settings.penalty is None else settings.penalty
    schedules = [Schedule(settings, first) for _ in classes]
    epochs = [0] * len(classes)
    active = [row for row, draw in enumerate(draws) if len(draw.allowed)]
    at_once = classes_in_a_pass(settings.batch_size, images)
    for epoch in range(settings.epochs):
        if not active:
            break
        order = torch.stack([draws[k].take(settings.steps * settings.batch_size) for k in active])
        penalties = torch.tensor([schedules[k].penalty for k in active]).to(images)
        targets = torch.tensor([classes[k] for k in active], device=images.device)
        rows = torch.tensor(active, device=images.device)
        totals = images.new_zeros(2, len(active))  # of success and of |m|_1; read once an epoch
        for step in torch.split(order.to(images.device), settings.batch_size, dim=1):
            free.grad = torch.zeros_like(free)
            for part in torch.split(torch.arange(len(active)), at_once):
                gradient, seen = _gradient(
                    logits, images[step[part]], targets[part], free, rows[part], penalties[part]
                )
                free.grad += gradient
                totals[:, part] += seen
            optimizer.step()  # rows that have left drift on; nobody reads them any more
        for k, success, norm in zip(active, *(totals / settings.steps).tolist(), strict=True):
            epochs[k] = epoch + 1
            if schedules[k].update(success, norm) or schedules[k].best == math.inf:
                best[k] = _squash(free.detach()[k])
        active = [k for k in active if not schedules[k].done]
        progress("Neural Cleanse: inverting triggers", (epoch + 1) / settings.epochs)
    masks, patterns = best[:, :1], best[:, 1:]
    norms = masks.flatten(1).sum(1).cpu()
    norms[torch.tensor([schedule.best == math.inf for schedule in schedules])] = math.inf
    found = Triggers(
        classes=tuple(classes),
        masks=masks,
        patterns=patterns,
        norms=norms,
        success=torch.zeros(len(classes)),  # until they are tried, below
        counted=tuple(len(draw.allowed) for draw in draws),
        penalties=tuple(schedule.penalty for schedule in schedules),
        epochs=tuple(epochs),
        passes=sum(epochs) * settings.steps * settings.batch_size,
    )
    return replace(
        found, success=carried_shares(logits, images, found.stamp, found.classes, counts)
    )


def _gradient(
    logits: Logits, images: Tensor, targets: Tensor, free: Tensor, rows: Tensor, penalties: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of eq. (1) for some classes from one pass over their mini-batches.

    Args:
        logits: the network.
        images: (K', b, c, h, w).
        targets: the classes, (K',).
        free: all free numbers, (K, 1 + c, h, w).
        rows: which of them, (K',).
        penalties: lambda, (K',).

    Returns:
        The gradient, like ``free``, and success and |m|_1 of these mini-batches, (2, K').
    """
    with torch.enable_grad():
        both = _squash(free[rows])
        mask, pattern = both[:, None, :1], both[:, None, 1:]
        answers = logits(stamped(images, mask, pattern).flatten(0, 1))
        wanted = targets.repeat_interleave(images.shape[1])
        norms = mask.flatten(1).sum(1)
        ce = F.cross_entropy(answers, wanted, reduction="sum") / images.shape[1]
        # autograd.grad towards ``free`` alone: no gradient reaches the network's parameters.
        (gradient,) = torch.autograd.grad(ce + (penalties * norms).sum(), [free])
    hits = (answers.detach().argmax(1) == wanted).view(images.shape[:2])
    return gradient, torch.stack([hits.to(norms).mean(1), norms.detach()])


def _squash(free: Tensor) -> Tensor:
    return (torch.tanh(free) + 1) / 2


class _Draws:
    """One class's start and its endless stream of images, shuffled anew each time they run out."""

    def __init__(self, counted: Tensor, *, seed: int, k: int) -> None:
        self.allowed = torch.nonzero(counted.cpu()).flatten()
        # Of the class, not of its place: a class gets the same draws in whatever company it is.
        self.generator = own_stream(seed, k)
        self.left = self.allowed[:0]

    def start(self, shape: Sequence[int]) -> Tensor:
        """Free numbers (1 + c, h, w) of a mask and a pattern that are uniform in [0, 1]."""
        channels, height, width = shape
        uniform = torch.rand(1 + channels, height, width, generator=self.generator)
        return torch.atanh((2 * uniform - 1).clamp(-0.999, 0.999))

    def take(self, count: int) -> Tensor:
        """The next ``count`` indices of images."""
        while len(self.left) < count:
            order = torch.randperm(len(self.allowed), generator=self.generator)
            self.left = torch.cat([self.left, self.allowed[order]])
        taken, self.left = self.left[:count], self.left[count:]
        return taken


def _counted(
    logits: Logits,
    images: Tensor,
    labels: Tensor | None,
    classes: Sequence[int],
    settings: Inversion,
    already: Tensor | None,
) -> Tensor:
    """Which images (n) count for which class (K): a bool tensor (K, n)."""
    counted = torch.ones(len(classes), len(images), dtype=torch.bool, device=images.device)
    if settings.exclude_own:
        counted &= of_others(classes, predicted(logits, images), labels)
    if already is not None:
        counted &= ~already.to(images.device)
    return counted


def _check(
    images: Tensor, labels: Tensor | None, classes: Sequence[int], already: Tensor | None
) -> None:
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise InputError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; expected at least one, "
            "floating point in [0, 1], of shape (images, channels, height, width)"
        )
    if not classes or len(set(classes)) < len(classes) or min(classes) < 0:
        raise InputError(f"classes are {tuple(classes)}; expected indices from 0, each once")
    if labels is not None and labels.shape != images.shape[:1]:
        raise InputError(f"{tuple(labels.shape)} labels for {len(images)} images; expected as many")
    if already is not None and already.shape != (len(classes), len(images)):
        raise InputError(
            f"already has shape {tuple(already.shape)}; expected ({len(classes)}, {len(images)}), "
            "one row for each class"
        )
