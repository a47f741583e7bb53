"""I-BAU's outer problem: the network learns to answer rightly under the universal pattern.

    F(δ, θ) = mean_i CE(f_θ(x_i + m_i δ), y_i)      m_i = 1 for a few images, else 0
    g(δ, θ) = −mean_j CE(f_θ(x_j + δ), y_j) + rho ‖δ‖²,   Φ = δ − alpha ∇_δ g

and θ goes along the hypergradient of F through the inner problem (``implicit_hypergradient``), by
Adam, in eval mode: running statistics stay, scales and shifts of norms learn.

Source: Zeng et al. 2022, arXiv 2110.03735, and its released code; 1 % of a batch carries the
pattern, rounded down, so that below 100 images none does and the step is ordinary fine-tuning; g
is always taken on the first batch. Ours: at least one image carries it, g is taken on a batch drawn
at random, the images without it are also to be answered as by the original network,

    + w T² KL(softmax(f_0(x) / T) ‖ softmax(f_θ(x) / T))       over the images with m_i = 0

which keeps what a few hundred labels would let the network forget, and the gradient is clipped. By
default the original network's answers also stand in for the labels, on images with the pattern,
too: w = 1 and no label at all. The pattern comes in all strengths, since its weaker forms work,
too, and those of earlier rounds come back, so that what they opened stays shut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal, Self

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.distilling import divergence
from bezoar.methods.implicit_hypergradient import Hypergradient, Implicit, hypergradient
from bezoar.methods.indexed_batches import endless_batches, in_order, pixels
from bezoar.methods.second_derivatives import second_derivatives
from bezoar.methods.universal_pattern import Ascent

_SMALL, _LARGE = 1e6, 5e6  # parameters
_FAST, _SLOW = 1e-3, 1e-4  # their learning rates


class PatternUnlearning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the network learns to ignore the pattern, in each round.

    Attributes:
        steps: of the network; 0 goes through the images once, in order (released code).
        batch_size: images in a step.
        fraction: the share of a batch that carries the pattern.
        rounding: of their number: to the ``nearest`` whole one, at least 1, or ``down`` (released
            code), which may be 0.
        learning_rate: of Adam; None takes 1e-3 for up to a million parameters, 1e-4 from five
            million on, and between them falls evenly in logarithms (ours).
        labels: whether the given labels count for ``all`` images, for those that carry the pattern
            (``patched``), or for ``none``: then the divergence from the original network's answer
            to the plain image is taken in their place, with the same weight as elsewhere.
        distillation: w, of the divergence from the original network; 0 is published.
        strengths: ``full``, or ``all``: each image gets its pattern at a random strength in
            [0.25, 1].
        memory: patterns, those of this round and the last ones before, of which each image that
            carries one gets one; 1 is published.
        temperature: T.
        clip_norm: largest gradient norm; 0 does not clip.
        inner_batch: where g is taken: a batch drawn at ``random``, or the ``first`` one.
        inner_step: alpha.
        inner_penalty: rho.
    """

    steps: int = 40
    batch_size: int = 100
    fraction: float = 0.05
    rounding: Literal["nearest", "down"] = "nearest"
    learning_rate: float | None = None
    labels: Literal["all", "patched", "none"] = "none"
    distillation: float = 1.0
    strengths: Literal["all", "full"] = "all"
    memory: int = 12
    temperature: float = 1.0
    clip_norm: float = 5.0
    inner_batch: Literal["random", "first"] = "random"
    inner_step: float = 0.1
    inner_penalty: float = 0.001

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1:
            raise InputError(
                f"steps is {self.steps} and batch_size {self.batch_size}; expected 0 or more, and "
                "at least 1"
            )
        if self.memory < 1:
            raise InputError(f"memory is {self.memory}; expected at least 1 pattern")
        if self.labels == "none" and not self.distillation:
            raise InputError("labels is none and distillation 0: nothing is left to learn")
        if not 0 <= self.fraction <= 1:
            raise InputError(f"fraction is {self.fraction}; expected a share in [0, 1]")
        for name in ("distillation", "clip_norm", "inner_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("temperature", "inner_step", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; expected more than 0")

    @classmethod
    def published(cls) -> Self:
        """The released code's; the script, the notebooks and the README agree on it."""
        return cls(
            steps=0,
            batch_size=100,
            fraction=0.01,
            rounding="down",
            learning_rate=1e-3,
            labels="all",
            distillation=0.0,
            strengths="full",
            memory=1,
            clip_norm=0.0,
            inner_batch="first",
        )

    def patched(self, count: int) -> int:
        """How many of ``count`` images carry the pattern.

        >>> PatternUnlearning().patched(10), PatternUnlearning.published().patched(99)
        (1, 0)
        """
        if self.rounding == "down":
            return int(count * self.fraction)
        return min(count, max(1, round(count * self.fraction))) if self.fraction else 0


def rate_for(network: nn.Module) -> float:
    """Adam's learning rate by the number of parameters (ours).

    The published 1e-3 is for 0.3 million; BackdoorBench takes 1e-4 for eleven million.

    >>> rate_for(nn.Linear(10, 10))
    0.001
    """
    count = max(1, sum(parameter.numel() for parameter in network.parameters()))
    share = math.log(count / _SMALL) / math.log(_LARGE / _SMALL)
    return float(_FAST * (_SLOW / _FAST) ** min(1.0, max(0.0, share)))


class PatternUnlearner:
    """One network in training, over all rounds.

    Args:
        classifier: is trained, in eval mode; all its parameters need gradients.
        images: labelled, on its device.
        wanted: the original network's logits on them, (n, C).
        settings: how.
        implicit: how the implicit part of the gradient is found.
        ascent: how the pattern is put on images.
        seed: of the batches, and of which images carry the pattern.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: ImageSet,
        wanted: Tensor,
        settings: PatternUnlearning,
        implicit: Implicit,
        ascent: Ascent,
        *,
        seed: int,
    ) -> None:
        self.classifier, self.images, self.wanted = classifier, images, wanted
        self.settings, self.implicit, self.ascent = settings, implicit, ascent
        self.labels = images.require_labels("unlearning a pattern")
        self.parameters = list(classifier.network.parameters())
        self.rate = settings.learning_rate or rate_for(classifier.network)
        self.optimizer = torch.optim.Adam(self.parameters, self.rate)
        self._places = torch.Generator().manual_seed(seed)
        self._batches = self._drawn(seed + 1)
        self._inner = self._drawn(seed + 2)
        self.seen: list[Hypergradient] = []
        self._patterns: list[Tensor] = []  # those of this round come last

    def play(self, patterns: Sequence[Tensor], *, pace: float = 1.0) -> None:
        """One round: ``patterns``, each (c, h, w), stay; the network learns to ignore them.

        The gradient goes through the last one; the others, and those of earlier rounds, are fixed.
        ``pace`` is the share of the learning rate.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = pace * self.rate
        self._patterns = [*self._patterns, *patterns][-max(self.settings.memory, len(patterns)) :]
        pattern = self._patterns[-1]
        count, size = len(self.images), self.settings.batch_size
        rows: Iterator[Tensor]
        if self.settings.steps:
            rows = islice(self._batches, self.settings.steps)
        else:
            rows = in_order(count, size)
        for where in rows:
            found = self.gradient(pattern, where)
            for parameter, gradient in zip(self.parameters, found.gradients, strict=True):
                parameter.grad = gradient
            if self.settings.clip_norm:
                nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.seen.append(replace(found, gradients=()))

    def gradient(self, pattern: Tensor, where: Tensor) -> Hypergradient:
        """dF/dθ on the images at ``where``, an index (m,) on the CPU; draws who is patched."""
        count = self.settings.patched(len(where))
        drawn = torch.randperm(len(where), generator=self._places)
        device = self.images.images.device
        chosen, others = drawn[:count].to(device), drawn[count:].to(device)
        wear = self._wear(count, device)
        where = where.to(device)
        if self.settings.inner_batch == "first":
            inner = next(in_order(len(self.images), self.settings.batch_size))
        else:
            inner = next(self._inner)
        return hypergradient(
            lambda delta: self._outer(wear(delta), where, chosen, others),
            lambda delta: self._inner_step(delta, inner.to(device)),
            pattern,
            self.parameters,
            self.implicit,
        )

    def _wear(self, count: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Draws what each of ``count`` images gets: δ (c, h, w) → patterns (count, c, h, w)."""
        known = self._patterns[:-1]
        last = len(known)
        which, strengths = torch.full((count,), last), torch.ones(count)
        if known:
            which = torch.randint(last + 1, (count,), generator=self._places)
        if self.settings.strengths == "all":
            strengths = 0.25 + 0.75 * torch.rand(count, generator=self._places)
        factors = strengths.view(-1, 1, 1, 1).to(device)
        return lambda delta: torch.stack([*known, delta])[which.to(device)] * factors

    def weaknesses(self) -> list[str]:
        """Says so where batches are too small for the published fraction."""
        how = self.settings
        sizes = [len(where) for where in in_order(len(self.images), how.batch_size)]
        if how.steps and len(sizes) > 1 and 2 * sizes[-1] < how.batch_size:
            sizes.pop()  # ``endless_batches`` leaves it out
        bare = sum(not how.patched(size) for size in sizes)
        if not bare or not how.fraction:
            return []
        return [
            f"In {bare} of {len(sizes)} batches no image carries the pattern, since "
            f"{100 * how.fraction:g} % of so few is rounded down to none, as in the released code: "
            "these steps are ordinary fine-tuning."
        ]

    def _outer(self, patterns: Tensor, where: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
        """F, and the divergence, with ``patterns`` (m, c, h, w) on the images ``chosen`` (m,)."""
        images = pixels(self.images, where)
        if len(chosen):  # otherwise nothing may depend on the pattern
            images = images.index_copy(0, chosen, self.ascent.show(images[chosen], patterns))
        logits = self.classifier(images).float()
        settings = self.settings
        if settings.labels == "none":
            wanted = divergence(logits, self.wanted[where], settings.temperature)
            return settings.distillation * wanted
        losses = F.cross_entropy(logits, self.labels[where], reduction="none")
        counted = losses if settings.labels == "all" else losses[chosen]
        total = counted.sum() / len(where)
        if settings.distillation and len(others):
            wanted = self.wanted[where[others]]
            total = total + settings.distillation * divergence(
                logits[others], wanted, settings.temperature
            )
        return total

    def _inner_step(self, delta: Tensor, where: Tensor) -> Tensor:
        """Φ, with its graph."""
        with second_derivatives():
            logits = self.classifier(self.ascent.show(pixels(self.images, where), delta))
        loss = -F.cross_entropy(logits.float(), self.labels[where])
        loss = loss + self.settings.inner_penalty * delta.square().sum()
        (slope,) = torch.autograd.grad(loss, delta, create_graph=True)
        return delta - self.settings.inner_step * slope

    def _drawn(self, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return endless_batches(len(self.images), self.settings.batch_size, generator)
