"""How firm a network's answers to given images are under noise: input instability.

    L_in(x) = KL(p(x) || p(x + delta))

Paper: Chen et al. 2023 (TMLR), "Turning a Curse into a Blessing", arXiv 2206.07018. Its abstract
says that predictions on samples must be stable under perturbations of their input; its equations
could not be read. Everything here is a reconstruction (ours): the forms, their sizes, and that
noise keeps images in [0, 1].

``adversarial`` noise comes from a random start and signed steps (1.25 times the bound in one step
is what Wong et al. 2020, arXiv 2001.03994, found best for training), ``gaussian`` noise is drawn,
and ``gradient`` is ||grad_x CE(f(x), y)||^2 instead. Known failures: noise as strong as a trigger
makes samples that are unfit to unlearn one; where a network is sure of everything, all values are
near 0 and there is nothing to choose by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.errors import InputError
from bezoar.methods.second_derivatives import second_derivatives

Logits = Callable[[Tensor], Tensor]
"""Images (n, c, h, w) in [0, 1] to logits (n, classes)."""


class InputStability(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which noise, and how strong.

    Attributes:
        form: ``adversarial``, ``gaussian``, or the ``gradient`` penalty, which takes no noise.
        bound: largest change of a pixel by adversarial noise, in [0, 1].
        steps: of the adversarial search; each goes 1.25 times the bound over their number.
        deviation: standard deviation of Gaussian noise.
        draws: of Gaussian noise for each image.
    """

    form: Literal["adversarial", "gaussian", "gradient"] = "adversarial"
    bound: float = 4 / 255
    steps: int = 1
    deviation: float = 4 / 255
    draws: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "draws"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected 1 or more")
        for name in ("bound", "deviation"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(
                    f"{name} is {getattr(self, name)}; expected a share of the pixel range, above "
                    "0 and at most 1"
                )


def divergences(logits: Tensor, others: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(others)) of each row of (n, classes), in nats: (n,).

    >>> one = torch.tensor([[0.0, 0.0]])
    >>> round(float(divergences(one, torch.tensor([[1.0, 3.0]]).log())), 4)  # 0.5 ln(4 / 3)
    0.1438
    """
    logs, other_logs = logits.log_softmax(1), others.log_softmax(1)
    return (logs.exp() * (logs - other_logs)).sum(1)


def input_instability(
    network: Logits,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    settings: InputStability,
    draws: torch.Generator,
) -> Tensor:
    """L_in of each image, (n,), or its gradient penalty; noise is a constant for gradients.

    Args:
        network: in eval mode.
        images: (n, c, h, w) in [0, 1]; gradients flow into them.
        labels: (n,); only the gradient penalty asks for them.
        logits: the network's answer to ``images``; gradients flow into them as well, so that a
            caller who has them need not pay for them twice.
        settings: which noise.
        draws: of the noise, on the device of the images.
    """
    if settings.form == "gradient":
        return gradient_penalty(network, images, labels)
    if settings.form == "adversarial":
        shift = adversarial_shift(network, images, logits, settings, draws)
        return divergences(logits, network(images + shift))
    found = [
        divergences(logits, network(images + gaussian_shift(images, settings, draws)))
        for _ in range(settings.draws)
    ]
    return torch.stack(found).mean(0)


def gaussian_shift(images: Tensor, settings: InputStability, draws: torch.Generator) -> Tensor:
    """Noise like ``images`` (n, c, h, w) that keeps them in [0, 1], a constant."""
    noise = torch.randn(images.shape, generator=draws, device=images.device, dtype=images.dtype)
    return _held(images.detach(), settings.deviation * noise)


def adversarial_shift(
    network: Logits,
    images: Tensor,
    logits: Tensor,
    settings: InputStability,
    draws: torch.Generator,
) -> Tensor:
    """Noise within ``settings.bound`` that moves the answers far, a constant; [0, 1] is kept.

    From a random start, because the divergence has no slope where there is no noise.
    """
    fixed, wanted, bound = images.detach(), logits.detach(), settings.bound
    start = torch.rand(fixed.shape, generator=draws, device=fixed.device, dtype=fixed.dtype)
    shift = _held(fixed, bound * (2 * start - 1))
    for _ in range(settings.steps):
        shift.requires_grad_()
        with torch.enable_grad():
            moved = divergences(wanted, network(fixed + shift)).sum()
            (slope,) = torch.autograd.grad(moved, shift)
        further = shift.detach() + 1.25 * bound / settings.steps * slope.sign()
        shift = _held(fixed, further.clamp(-bound, bound))
    return shift


def gradient_penalty(network: Logits, images: Tensor, labels: Tensor) -> Tensor:
    """||d CE(f(x), y) / dx||_2^2 of each image, (n,), to be differentiated once more."""
    with torch.enable_grad():
        with second_derivatives():
            logits = network(images)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, images, create_graph=True)
    return slope.flatten(1).square().sum(1)


def _held(images: Tensor, shift: Tensor) -> Tensor:
    return (images + shift).clamp(0, 1) - images
