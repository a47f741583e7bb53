"""How firm a network's answers to given images are while its weights move: parameter instability.

    theta'   = theta - eta grad_theta mean_A CE(f_theta(x + delta_u), y)   a virtual removal step
    L_par(x) = CE(f_theta'(x), y)  for x in B

A batch is cut into a support half A and a query half B: to train on an image and then to ask about
the same image would lower its loss whatever it shows.

Paper: Chen et al. 2023 (TMLR), "Turning a Curse into a Blessing", arXiv 2206.07018. Its abstract
says that predictions on samples must be stable under perturbations of the parameters, and that the
objective is bi-level; its equations could not be read. Everything here is a reconstruction (ours):
the virtual step, the two halves, and that the step's length is given relative to the weights, so
that eta is a constant for gradients.

``first order`` takes theta' - theta as a constant, so that gradients reach B only; ``second order``
differentiates the step too; ``sharpness`` takes no removal step but the worst small change of each
filter, after SAM (Foret et al. 2021, arXiv 2010.01412) with the filter norms of Li et al. 2018
(arXiv 1712.09913).

Nothing is written to the network: theta' is a dict that stands in the place of its parameters.
Buffers stay. Known failures: where all of A is answered with certainty, the direction of the step
is that of what little loss is left.
"""

from __future__ import annotations

import contextlib
import math
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.moved_weights import TINY, norm_of
from bezoar.methods.second_derivatives import second_derivatives
from bezoar.other_weights import logits_with


class ParameterStability(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which step of the weights, and how long.

    Attributes:
        form: a virtual removal step in ``first order`` or ``second order``, or ``sharpness``.
        steps: of gradient descent, 1 to 3.
        length: r, of the way that they go together, relative to the norm of all parameters.
        radius: of sharpness, for each filter relative to its norm.
    """

    form: Literal["first order", "second order", "sharpness"] = "first order"
    steps: int = 1
    length: float = 3e-3
    radius: float = 0.05

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 3:
            raise InputError(f"steps is {self.steps}; expected 1 to 3 virtual steps")
        for name in ("length", "radius"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0")


def parameter_instability(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    support: Tensor,
    query: Tensor,
    settings: ParameterStability,
    *,
    pattern: Tensor | None = None,
) -> Tensor:
    """L_par of each image of the query half: (len(query),).

    Args:
        classifier: in eval mode; it stays as it is.
        images: (n, c, h, w) in [0, 1]; gradients flow into the query half, and in second order
            into the support half.
        labels: (n,).
        support: indices of A, at least one.
        query: indices of B.
        settings: which step.
        pattern: delta_u (c, h, w), added to the support images; None adds nothing.
    """
    step = sharpest_step if settings.form == "sharpness" else virtual_step
    moved = step(classifier, images[support], labels[support], settings, pattern=pattern)
    return F.cross_entropy(
        logits_with(classifier, images[query], moved), labels[query], reduction="none"
    )


def virtual_step(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    settings: ParameterStability,
    *,
    pattern: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gives theta' by name: after ``settings.steps`` steps of length r / steps times ||theta||.

    A function of ``images`` in second order, a constant in first.

    Args:
        classifier: in eval mode; it stays as it is.
        images: of the support half, (m, c, h, w) in [0, 1], at least one.
        labels: (m,).
        settings: how many steps, how long, and whether they are differentiated.
        pattern: (c, h, w), added to the images, which are held in [0, 1]; None adds nothing.
    """
    second = settings.form == "second order"
    shown = _stamped(images if second else images.detach(), pattern)
    now = _parameters(classifier)
    way = settings.length / settings.steps * norm_of(now.values())
    with torch.enable_grad():
        for _ in range(settings.steps):
            slopes = _slopes(classifier, now, shown, labels, create_graph=second)
            eta = way / norm_of(slopes.values())
            now = {name: value - eta * slopes[name] for name, value in now.items()}
            if not second:
                now = {name: value.detach().requires_grad_() for name, value in now.items()}
    return now if second else {name: value.detach() for name, value in now.items()}


def sharpest_step(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    settings: ParameterStability,
    *,
    pattern: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gives theta' by name: uphill by ``settings.radius`` times each filter's norm; a constant.

    A filter is a row of a parameter of two or more dimensions; biases and norms stay, as in the
    filter-wise directions of Li et al. Arguments as for ``virtual_step``.
    """
    now = _parameters(classifier)
    slopes = _slopes(classifier, now, _stamped(images.detach(), pattern), labels)
    moved = {}
    for name, value in now.items():
        if value.ndim > 1:
            rows, uphill = value.detach().flatten(1), slopes[name].flatten(1)
            way = settings.radius * rows.norm(dim=1, keepdim=True)
            step = way * uphill / uphill.norm(dim=1, keepdim=True).clamp(min=TINY)
            moved[name] = value.detach() + step.view_as(value)
        else:
            moved[name] = value.detach()
    return moved


def _parameters(classifier: Classifier) -> dict[str, Tensor]:
    """Gives theta by name, to differentiate by; the parameters themselves get no gradients."""
    named = classifier.network.named_parameters()
    return {name: value.detach().requires_grad_() for name, value in named}


def _slopes(
    classifier: Classifier,
    parameters: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    create_graph: bool = False,
) -> dict[str, Tensor]:
    with torch.enable_grad():
        with second_derivatives() if create_graph else contextlib.nullcontext():
            logits = logits_with(classifier, images, parameters)
        loss = F.cross_entropy(logits, labels)
        slopes = torch.autograd.grad(
            loss,
            list(parameters.values()),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    return dict(zip(parameters, slopes, strict=True))


def _stamped(images: Tensor, pattern: Tensor | None) -> Tensor:
    return images if pattern is None else (images + pattern).clamp(0, 1)
