"""Each image's own small change that leads to its most likely wrong class, in a ball of pixels.

    delta_i = argmin CE(f(x_i + delta), t_i),    ||delta||_2 <= r,    x_i + delta in [0, 1]

t_i is the class with the highest logit besides the label. Zhu et al. 2023 (NPD, arXiv 2306.16697)
take these samples for stamped ones, whose trigger they do not know; the steps are those of their
code, in BackdoorBench: delta + rate * the sign of the gradient, projected onto the ball, from 0,
until enough of the batch is led there. A step of theirs is longer than the radius, so that each one
ends on the sphere.

Ours: r is given as a root mean square per value, so that it suits every size of image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.errors import InputError

_TINY = 1e-12  # in the place of a norm of 0


class Ascent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the samples are found.

    Attributes:
        radius: largest root mean square of a change, in pixels of range [0, 1]; 0.0541 is the
            published norm of 3 for 3x32x32 values.
        steps: at most.
        rate: of a step, in pixels.
        enough: share of a batch in its target classes that ends the steps.
    """

    radius: float = 0.0541
    steps: int = 2
    rate: float = 0.1
    enough: float = 0.6

    def __post_init__(self) -> None:
        for name in ("radius", "rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.steps < 1 or not 0 < self.enough <= 1:
            raise InputError(
                f"steps is {self.steps} and enough {self.enough}; expected at least 1, and a share "
                "in (0, 1]"
            )

    @classmethod
    def published(cls) -> Self:
        """The released settings for CIFAR-10: a norm of 3."""
        return cls(radius=3 / math.sqrt(3 * 32 * 32))

    def project(self, changes: Tensor) -> Tensor:
        """The nearest changes (n, c, h, w) in the ball."""
        longest = self.radius * math.sqrt(changes[0].numel())
        norms = changes.flatten(1).norm(dim=1).clamp(min=_TINY).view(-1, 1, 1, 1)
        return torch.mul(changes, (longest / norms).clamp(max=1))


def most_likely_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """The class (n,) with the highest of the logits (n, C) besides the label.

    >>> most_likely_wrong(torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), torch.tensor([0, 1]))
    tensor([2, 0])
    """
    return logits.detach().scatter(1, labels[:, None], -math.inf).argmax(1)


def led_astray(
    logits: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, settings: Ascent
) -> Tensor:
    """Images (n, c, h, w) in [0, 1], each changed so that it is taken for its target (n,).

    Args:
        logits: the network, in eval mode.
        images: in [0, 1].
        targets: a class for each.
        settings: how.
    """
    changes = torch.zeros_like(images)
    for _ in range(settings.steps):
        changes = changes.detach().requires_grad_()
        answers = logits((images + changes).clamp(0, 1))
        if float((answers.argmax(1) == targets).float().mean()) > settings.enough:
            break
        # a sum: the sign of an image's gradient does not depend on the batch around it
        loss = F.cross_entropy(answers.float(), targets, reduction="sum")
        (slope,) = torch.autograd.grad(loss, changes)
        changes = settings.project(changes.detach() - settings.rate * slope.sign())
    return (images + changes.detach()).clamp(0, 1)
