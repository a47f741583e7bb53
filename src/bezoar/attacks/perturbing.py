"""Small perturbations of images that lower an objective: projected gradient descent.

``x ← Π(x − step · direction(∇objective(x)))``, where Π projects on the ball of radius ε around the
first image and on [0, 1]; the direction is the sign of the gradient for L∞ and the gradient over
its norm for L2 (Madry et al. 2017, arXiv 1706.06083). Ours: it starts at the image itself, not at
a random point of the ball, so that the same input gives the same output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]

_TINY = 1e-12  # keeps the division by the norm of a vanishing gradient finite


def perturb(
    images: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    norm: Norm,
    epsilon: float,
    step: float,
    steps: int,
) -> Tensor:
    """Images near ``images`` with a smaller objective.

    Args:
        images: shape (n, c, h, w) in [0, 1]; not changed.
        objective: images → one number, a sum over the images; each image is treated on its own.
        norm: in which ε and the step are measured, for each image.
        epsilon: radius of the ball.
        step: length of a step.
        steps: how many.

    Returns:
        New images in [0, 1], within ε of the old ones.

    >>> grey = torch.full((1, 1, 2, 2), 0.5)
    >>> brighter = perturb(
    ...     grey, lambda x: -x.sum(), norm="linf", epsilon=0.25, step=0.125, steps=3
    ... )
    >>> brighter.flatten().tolist()
    [0.75, 0.75, 0.75, 0.75]
    """
    start = images.detach()
    current = start.clone()
    for _ in range(steps):
        with torch.enable_grad():
            current.requires_grad_(True)
            (gradient,) = torch.autograd.grad(objective(current), current)
        current = current.detach()
        if norm == "linf":
            moved = (current - step * gradient.sign() - start).clamp(-epsilon, epsilon)
        else:
            moved = current - step * gradient / _lengths(gradient).clamp(min=_TINY) - start
            moved = moved * (epsilon / _lengths(moved).clamp(min=_TINY)).clamp(max=1)
        current = (start + moved).clamp(0, 1)
    return current


def _lengths(images: Tensor) -> Tensor:
    """The L2 norm of each image, shape (n, 1, 1, 1)."""
    return images.square().sum((1, 2, 3), keepdim=True).sqrt()
