"""The loss at weights that were moved a little way along, or across, its own gradient.

    L'(w) = (1 - s) L(w) + s L(w + e),    e = way(w, grad L(w)), a constant for gradients

so that its gradient is (1 - s) grad L(w) + s grad L(w + e). Sharpness-aware minimisation (Foret et
al. 2021, arXiv 2010.01412) is s = 1 with a way uphill; a share below 1 punishes the norm of the
gradient. What the methods differ in is the way.

The first pass moves the running statistics of norms, the second leaves them as they are, since
nobody will use the network with those weights. Dropout is drawn anew in the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.other_weights import logits_with
from bezoar.training import Loss

TINY = 1e-12  # keeps a gradient of zero from dividing

Weights = dict[str, Tensor]
"""Tensors of the network by name."""

Way = Callable[[Weights, Weights], Weights]
"""(weights, gradients) → how far each weight moves."""


def loss_at_moved_weights(way: Way, *, share: float = 1.0, label_smoothing: float = 0.0) -> Loss:
    """L'(w) of the cross-entropy, to be minimised by ``fit``.

    Args:
        way: how the parameters that are trained move; the others stay.
        share: s, in [0, 1].
        label_smoothing: of the cross-entropy, in both passes.
    """

    def loss(
        classifier: Classifier, images: Tensor, labels: Tensor, _generator: torch.Generator
    ) -> Tensor:
        named = classifier.network.named_parameters()
        trained = {name: parameter for name, parameter in named if parameter.requires_grad}
        logits = classifier(images)
        here = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        asked: list[Tensor] = list(trained.values())
        if images.requires_grad:  # a GroupNorm may need this: ``needs_gradients_of_images``
            asked.append(images)
        slopes = torch.autograd.grad(here, asked, allow_unused=True, materialize_grads=True)
        gradients = dict(zip(trained, slopes, strict=False))  # without the images'
        with torch.no_grad():
            moves = way({name: value.detach() for name, value in trained.items()}, gradients)
        moved = {name: value + moves[name] for name, value in trained.items()}
        logits = logits_with(classifier, images, moved)
        there = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        if share == 1:
            return there
        return (1 - share) * _with_gradients(here, trained, gradients) + share * there

    return loss


def norm_of(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all of them as one vector, a constant above 0."""
    squares = [tensor.detach().square().sum() for tensor in tensors]
    return torch.stack(squares).sum().sqrt().clamp(min=TINY)


def _with_gradients(value: Tensor, weights: Mapping[str, Tensor], gradients: Weights) -> Tensor:
    """The value again with its gradients as they are known, which saves going back once more."""
    inner = torch.stack([(weights[name] * gradients[name]).sum() for name in weights]).sum()
    return value.detach() + inner - inner.detach()
