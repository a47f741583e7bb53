"""A trigger that is a function of the image: a generator G whose change is held within a bound.

    delta = G(x) - x,    A(x) = clip_[0,1](x + delta * min(1, bound / RMS(delta)))

RMS is the root mean square over the channels and pixels of one image, in units of the pixel range.
BTI-DBF (Xu et al., ICLR 2024, OpenReview Tw9wemV6cb) keeps ||x - G(x)|| below a bound tau; its
official code measures the mean square in normalised units, switches the loss for a batch beyond it,
and never clips. Scaling each image back into the ball, pixel units and the clip are ours: what is
returned always keeps the bound and is always an image, so nothing has to be switched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bezoar.errors import InputError


@dataclass(frozen=True)
class GeneratedTrigger:
    """One generator, for every class that its change leads to.

    Attributes:
        classes: these classes, as indices.
        generator: images (n, c, h, w) in [0, 1] → images of the same shape, not bounded and not
            clipped; eval mode is the caller's to set.
        bound: largest RMS change of an image, in (0, 1]; None sets no limit.
    """

    classes: tuple[int, ...]
    generator: Callable[[Tensor], Tensor]
    bound: float | None

    def __post_init__(self) -> None:
        _check(self.bound)

    def stamp(self, images: Tensor, k: int) -> Tensor:
        """A(x) of images (n, c, h, w) in [0, 1], without gradients; the same for every class."""
        if k not in self.classes:
            raise InputError(f"class {k} has no trigger; there are ones for {self.classes}")
        with torch.no_grad():
            return bounded(images, self.generator(images), self.bound)


@dataclass(frozen=True)
class GeneratedTriggers:
    """Several generators, each for the classes that it leads to; the first one for a class counts.

    Attributes:
        triggers: at least one.
    """

    triggers: tuple[GeneratedTrigger, ...]

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes of all of them, each once."""
        return tuple(dict.fromkeys(k for trigger in self.triggers for k in trigger.classes))

    @property
    def bound(self) -> float | None:
        """Largest RMS change, the same for all."""
        return self.triggers[0].bound

    def stamp(self, images: Tensor, k: int) -> Tensor:
        """A(x) of images (n, c, h, w) in [0, 1] with the trigger for class ``k``."""
        for trigger in self.triggers:
            if k in trigger.classes:
                return trigger.stamp(images, k)
        raise InputError(f"class {k} has no trigger; there are ones for {self.classes}")


def bounded(images: Tensor, made: Tensor, bound: float | None) -> Tensor:
    """The images (n, c, h, w) in [0, 1] with the change to ``made``, held within ``bound``.

    Differentiable in both; where nothing changed, the gradient is that of the change unscaled.

    >>> bounded(torch.full((1, 1, 1, 2), 0.5), torch.tensor([[[[3.5, 0.5]]]]), 0.1)
    tensor([[[[0.6414, 0.5000]]]])
    """
    _check(bound)
    if made.shape != images.shape:
        raise InputError(
            f"images of shape {tuple(images.shape)} came back as {tuple(made.shape)}; expected "
            "the same shape from the generator"
        )
    change = made - images
    if bound is not None:
        # The root is taken of numbers above zero alone: that of 0 has no finite slope.
        square = change.square().mean((1, 2, 3), keepdim=True).clamp(min=bound**2)
        change = change * (bound / square.sqrt())
    return (images + change).clamp(0, 1)


def size(images: Tensor, stamped: Tensor) -> Tensor:
    """The RMS change (n,) of images (n, c, h, w) to ``stamped``, in units of the pixel range.

    >>> size(torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.2, 0.0], [0.0, 0.0]]]]))
    tensor([0.1000])
    """
    return (stamped - images).square().mean((1, 2, 3)).sqrt()


def _check(bound: float | None) -> None:
    if bound is not None and not 0 < bound <= 1:
        raise InputError(
            f"the bound of a trigger is {bound}; expected an RMS change in (0, 1], or none"
        )
