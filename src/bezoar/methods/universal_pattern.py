"""The one additive pattern, bounded in norm, that fools a network on as many images as it can.

    max_δ  mean_i CE(f(x_i + δ), y_i) − rho ‖δ‖²,      ‖δ‖ ≤ r

In I-BAU it plays the trigger: there is no search over target classes, and y_i is the network's own
answer to x_i, so that wrong labels do not matter.

Source: Zeng et al. 2022, arXiv 2110.03735, and its released code: one pass of plain SGD (rate 10)
or Adam (rate 1) from δ = 0, and a projection at the end (notebooks) or none (script). There δ can
leave every ball during the pass: on the released BadNets checkpoint ‖δ‖ reached 788, and no image
in [0, 1] is longer than 55. Ours: steps along the normalised gradient, as long as a share of the
radius, projected after each; the best δ seen is kept; r is a root mean square per value, in pixels
of range [0, 1], so that it suits every size of image; x + δ stays an image.

Known limits: with few coarse steps the direction comes from saturated regions and misses triggers
that many small steps find. A pattern of this size moves the answers of backdoor-free networks too,
and often towards one class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Self

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.indexed_batches import Logits, answered, endless_batches, in_order, pixels

_NEAR = 0.1  # of the radius: where a random start is
_TINY = 1e-30  # in the place of a norm of 0


class Ascent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the pattern is found.

    Attributes:
        steps: on batches drawn at random; 0 goes through the images once, in order (released).
        batch_size: images in a step.
        optimizer: ``unit`` steps along the normalised gradient (ours), ``sgd`` or ``adam``.
        rate: of Adam or SGD; the length of a unit step as a share of the radius.
        radius: largest root mean square of δ, in pixels of range [0, 1]; 0.1443 is a norm of 8, and
            0.1804 the published one of 10, for 3x32x32 values.
        projection: onto the ball, after ``every step`` (ours; the best δ is kept), at the ``end``
            (notebooks) or ``none`` (script), where the last δ is kept.
        clamp: whether x + δ is clamped to [0, 1].
        labels: y, what the network must be led away from: its own answers (``model``) or those
            that are ``given``.
        start: ``zero``, or ``random``: normal, as long as a tenth of the radius, so that every
            ascent finds another pattern.
        penalty: rho. Where a network is very sure, it outweighs the first gradients of unit steps.
    """

    steps: int = 10
    batch_size: int = 100
    optimizer: Literal["unit", "sgd", "adam"] = "unit"
    rate: float = 0.2
    radius: float = 0.1443
    projection: Literal["every step", "end", "none"] = "every step"
    clamp: bool = True
    labels: Literal["model", "given"] = "model"
    start: Literal["zero", "random"] = "random"
    penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1:
            raise InputError(
                f"steps is {self.steps} and batch_size {self.batch_size}; expected 0 or more, and "
                "at least 1"
            )
        for name in ("rate", "radius"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0")
        if not 0 <= self.penalty < math.inf:
            raise InputError(f"penalty is {self.penalty}; expected 0 or more")

    @classmethod
    def published(cls) -> Self:
        """The CIFAR-10 notebook's: SGD at rate 10, projected at the end to a norm of 10."""
        return cls(
            steps=0,
            batch_size=100,
            optimizer="sgd",
            rate=10.0,
            radius=10 / math.sqrt(3 * 32 * 32),
            projection="end",
            clamp=False,
            start="zero",
            penalty=0.001,
        )

    def show(self, images: Tensor, pattern: Tensor) -> Tensor:
        """Images with the pattern, x + δ: images (n, c, h, w) in [0, 1], pattern (c, h, w)."""
        shown = images + pattern
        return shown.clamp(0, 1) if self.clamp else shown

    def project(self, pattern: Tensor) -> Tensor:
        """The nearest pattern in the ball."""
        longest = self.radius * math.sqrt(pattern.numel())
        return torch.mul(pattern, longest / pattern.norm().clamp(min=longest))


@dataclass(frozen=True)
class Ascended:
    """A pattern and how it was found.

    Attributes:
        pattern: δ, (c, h, w), in pixels of range [0, 1].
        cross_entropy: of each step's batch, before the step.
    """

    pattern: Tensor
    cross_entropy: list[float]


def universal_ascent(
    logits: Logits, images: ImageSet, settings: Ascent, generator: torch.Generator
) -> Ascended:
    """Finds the pattern; the network is only read.

    Args:
        logits: the network, in eval mode.
        images: on its device; with labels if the settings ask for them.
        settings: how.
        generator: of the batches, on the CPU.

    Raises:
        InputError: the settings ask for labels and there are none.
    """
    device = images.images.device
    pattern = _start(images, settings, generator).requires_grad_()
    best, highest = torch.zeros_like(pattern), torch.tensor(-math.inf, device=device)
    step = _stepper(pattern, settings)
    seen: list[Tensor] = []
    if settings.steps:
        # One batch more than there are steps: it judges the last pattern.
        drawn = endless_batches(len(images), settings.batch_size, generator)
        rows = list(islice(drawn, settings.steps + 1))
    else:
        rows = list(in_order(len(images), settings.batch_size))
    labels = _labels(logits, images, settings, torch.unique(torch.cat(rows)).to(device))
    for number, where in enumerate(rows):
        where = where.to(device)
        with torch.enable_grad():
            answers = logits(settings.show(pixels(images, where), pattern))
            value = F.cross_entropy(answers.float(), labels[where])
            loss = -value + settings.penalty * pattern.square().sum()
        seen.append(value.detach())
        better = seen[-1] > highest
        best = torch.where(better, pattern.detach(), best)
        highest = torch.where(better, seen[-1], highest)
        if settings.steps and number == settings.steps:
            break
        step(torch.autograd.grad(loss, pattern)[0])
        if settings.projection == "every step":
            with torch.no_grad():
                pattern.copy_(settings.project(pattern))
    found = best if settings.projection == "every step" else pattern.detach()
    if settings.projection == "end":
        found = settings.project(found)
    return Ascended(found, torch.stack(seen).tolist())


def _labels(logits: Logits, images: ImageSet, settings: Ascent, seen: Tensor) -> Tensor:
    """What the network must be led away from, (n,); -1 for images that are not ``seen``."""
    if settings.labels == "given":
        return images.require_labels("this ascent")
    labels = torch.full((len(images),), -1, device=seen.device)
    labels[seen] = answered(logits, images.subset(seen))
    return labels


def _start(images: ImageSet, settings: Ascent, generator: torch.Generator) -> Tensor:
    if settings.start == "zero":
        return torch.zeros(images.shape, device=images.images.device)
    drawn = torch.randn(images.shape, generator=generator).to(images.images.device)
    return drawn * (_NEAR * settings.radius)


def _stepper(pattern: Tensor, settings: Ascent) -> Callable[[Tensor], None]:
    """What moves ``pattern`` in place, given the gradient of what is minimised."""
    if settings.optimizer == "unit":
        length = settings.rate * settings.radius * math.sqrt(pattern.numel())

        def unit(gradient: Tensor) -> None:
            with torch.no_grad():
                # Without any gradient there is no direction, and the pattern stays.
                pattern.sub_(gradient * (length / gradient.norm().clamp(min=_TINY)))

        return unit
    kind = torch.optim.SGD if settings.optimizer == "sgd" else torch.optim.Adam
    optimizer = kind([pattern], lr=settings.rate)

    def step(gradient: Tensor) -> None:
        pattern.grad = gradient
        optimizer.step()

    return step
