"""Adversarial examples that fool two networks into the same class: the inner problem of SAU.

    max over e   b1 1/2 (CE(f(x + e), y) + CE(f_0(x + e), y)) - b2 JS(f(x + e), f_0(x + e)),
                 |e| <= r at every pixel

by steps along the gradient's sign. The first term counts, network by network, while the answer is
still the one to the plain image; the second while the networks do not yet give the *same* wrong
answer. A finished example has no gradient and stays where it is.

Source: Wei et al. 2023, arXiv 2307.10562, through the authors' code in BackdoorBench. There x + e
leaves the range of pixels, and the step is as long as the radius, so that e jumps between corners
of the ball. Ours in the default: x + e stays an image; shorter steps from a random start; and b1 as
large as b2. With the code's 0.01 the search gives up on an image as soon as *f* holds out: the
divergence then pulls f_0 back to the right answer, and after some epochs on few images hardly an
example fools even f_0, so that nothing is left to unlearn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError


class Examples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the examples are found.

    Attributes:
        radius: r, the largest change of a pixel of range [0, 1].
        steps: of the search.
        step_size: the change of each pixel in a step.
        start: ``random`` in the ball, or its ``upper`` corner, e = r (released code).
        clamp: whether x + e stays in [0, 1].
        fooling: b1.
        sharing: b2.
    """

    radius: float = 0.2
    steps: int = 3
    step_size: float = 0.1
    start: Literal["random", "upper"] = "random"
    clamp: bool = True
    fooling: float = 1.0
    sharing: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError(f"steps is {self.steps}; expected 0 or more")
        for name in ("radius", "step_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("fooling", "sharing"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")

    @classmethod
    def published(cls) -> Self:
        """The released code's."""
        return cls(steps=5, step_size=0.2, start="upper", clamp=False, fooling=0.01)

    def project(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """The nearest perturbed images, (n, c, h, w), that are allowed."""
        near = images + (perturbed - images).clamp(-self.radius, self.radius)
        return near.clamp(0, 1) if self.clamp else near


@dataclass(frozen=True)
class Answers:
    """What both networks answer, (n,) each, and what follows from it.

    Attributes:
        plain: of f, to the plain images.
        original_plain: of f_0.
        perturbed: of f, to the perturbed ones.
        original_perturbed: of f_0.
    """

    plain: Tensor
    original_plain: Tensor
    perturbed: Tensor
    original_perturbed: Tensor

    @property
    def fooled(self) -> Tensor:
        """Where f changed its answer."""
        return self.perturbed != self.plain

    @property
    def original_fooled(self) -> Tensor:
        """Where f_0 did."""
        return self.original_perturbed != self.original_plain

    @property
    def shared(self) -> Tensor:
        """Where both did, and now give the same answer."""
        same = self.perturbed == self.original_perturbed
        return self.fooled & self.original_fooled & same


def jensen_shannon(logits: Tensor, others: Tensor) -> Tensor:
    """The divergence of Jensen and Shannon of each row, (n,), of two sets of logits (n, C).

    In [0, log 2]; symmetric; 0 for equal distributions.

    >>> jensen_shannon(torch.zeros(1, 2), torch.zeros(1, 2)).item()
    0.0
    """
    p, q = F.log_softmax(logits.float(), 1), F.log_softmax(others.float(), 1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return ((p.exp() * (p - middle) + q.exp() * (q - middle)).sum(1) / 2).clamp(min=0)


def search_loss(
    logits: Tensor, others: Tensor, labels: Tensor, answers: Answers, settings: Examples
) -> Tensor:
    """What the search *minimises*, a scalar: the mean over the images of the masked terms.

    Args:
        logits: of f on perturbed images, (n, C).
        others: of f_0.
        labels: (n,).
        answers: to the same images.
        settings: the weights of the terms.
    """
    towards = F.cross_entropy(logits.float(), labels, reduction="none") * ~answers.fooled
    original = F.cross_entropy(others.float(), labels, reduction="none") * ~answers.original_fooled
    apart = jensen_shannon(logits, others) * ~answers.shared
    return (settings.sharing * apart - settings.fooling * (towards + original) / 2).mean()


def shared_examples(
    classifier: Classifier,
    original: Classifier,
    images: Tensor,
    labels: Tensor,
    settings: Examples,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Perturbs images so that both networks give the same wrong answer; eval mode throughout.

    No gradient reaches a weight.

    Args:
        classifier: f.
        original: f_0, in eval mode.
        images: (n, c, h, w) in [0, 1].
        labels: (n,).
        settings: how.
        generator: of the random start, on the CPU.

    Returns:
        The perturbed images, detached, and the answers of f_0 to the plain ones, (n,).
    """
    with classifier.evaluating():
        with torch.no_grad():
            plain, original_plain = classifier(images).argmax(1), original(images).argmax(1)
        away = torch.ones(images.shape)
        if settings.start == "random":
            away = 2 * torch.rand(images.shape, generator=generator) - 1
        perturbed = settings.project(images + settings.radius * away.to(images), images)
        for _ in range(settings.steps):
            perturbed.requires_grad_(True)
            logits, others = classifier(perturbed), original(perturbed)
            answers = Answers(plain, original_plain, logits.argmax(1), others.argmax(1))
            if bool(answers.shared.all()):
                break
            loss = search_loss(logits, others, labels, answers, settings)
            # Of the examples alone: backward() would leave gradients in the weights.
            (slope,) = torch.autograd.grad(loss, perturbed)
            with torch.no_grad():
                stepped = perturbed - settings.step_size * slope.sign()
                perturbed = settings.project(stepped, images)
    return perturbed.detach(), original_plain
