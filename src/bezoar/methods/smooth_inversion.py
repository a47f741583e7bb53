"""The weakest smooth change of the whole image that carries images into a class.

    A_k(x) = clip(x + s d_k, 0, 1),    d_k = sum over u, v < m of theta_kuv b_u(row) b_v(column)

b are the cosines of the discrete cosine transform, each with mean square 1 over the image, so that
|d_k| = sqrt(sum theta_k^2 / c) is the root mean square of the change. For each class k

    min over theta_k  E CE(f(A_k(x)), k) + lambda |d_k|,    s = 1                               (1)

by Adam; lambda grows while the pattern succeeds and falls while it does not, and the smallest one
that succeeded counts.

Ours. Universal perturbations are Moosavi-Dezfooli et al. 2017, arXiv 1610.08401; that low
frequencies are a space to search in, Guo et al. 2018, arXiv 1809.08758; smooth triggers, Zeng et
al. 2021, arXiv 2104.03413. What the sizes tell is ``smooth_pattern``'s business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.device import own_stream
from bezoar.errors import InputError
from bezoar.methods.additive_patterns import AdditivePatterns
from bezoar.methods.neural_cleanse_triggers import (
    Logits,
    classes_in_a_pass,
    of_others,
    predicted,
)
from bezoar.training import Progress, no_progress

_FINEST = 4  # pixels of half a period, at least
_WHAT = "inverting smooth patterns"


class SmoothInversion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How smooth patterns are searched for.

    Attributes:
        frequencies: m, at most, along each side; images of fewer than 4 m pixels have a quarter of
            their side.
        steps: of Adam.
        batch_size: images of each class in a step.
        learning_rate: of Adam, in units of pixels from 0 to 1.
        success: share of the images, in (0, 1], that a pattern must carry into its class.
        memory: how much of the success of former steps counts beside the latest, in [0, 1).
        penalty: lambda at the start.
        multiplier: of lambda, above 1.
        strength: s of the triggers that are unlearned and tried, in units of the weakest pattern.
    """

    frequencies: int = 8
    steps: int = 90
    batch_size: int = 16
    learning_rate: float = 0.003
    success: float = 0.9
    memory: float = 0.7
    penalty: float = 16.0
    multiplier: float = 1.15
    strength: float = 2.0

    def __post_init__(self) -> None:
        for name in ("frequencies", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("learning_rate", "penalty", "strength"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0")
        if not 0 < self.success <= 1 or not 0 <= self.memory < 1:
            raise InputError(
                f"success is {self.success} and memory {self.memory}; expected them in (0, 1] and "
                "in [0, 1)"
            )
        if not 1 < self.multiplier < math.inf:
            raise InputError(f"multiplier is {self.multiplier}; expected more than 1")


def invert_smooth(
    logits: Logits,
    images: Tensor,
    labels: Tensor | None,
    classes: Sequence[int],
    settings: SmoothInversion,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> AdditivePatterns:
    """Solves eq. (1) for all ``classes`` at once; each goes the way it would have gone alone.

    Args:
        logits: the network, in eval mode; only patterns get gradients.
        images: clean ones, (n, c, h, w) in [0, 1], on the network's device.
        labels: (n,); images that show a class or are answered with it do not count for it.
        classes: indices of K logits, each once.
        settings: how.
        seed: of the start and the mini-batches; each class draws from a generator of its own.
        progress: called after each step.

    Raises:
        InputError: no class, or one that is there twice.
    """
    if not classes or len(set(classes)) < len(classes):
        raise InputError(f"classes are {tuple(classes)}; expected at least one, each once")
    counts = of_others(classes, predicted(logits, images), labels).cpu()
    allowed = [torch.nonzero(row).flatten() for row in counts]
    rows = [row for row, some in enumerate(allowed) if len(some)]
    basis = cosines(images.shape[2], images.shape[3], settings.frequencies).to(images)
    channels, count = images.shape[1], settings.batch_size
    together = classes_in_a_pass(count, images)
    draws = [own_stream(seed, k) for k in classes]
    start = [torch.randn(channels, len(basis), generator=draw) for draw in draws]
    theta = settings.learning_rate / 2 * torch.stack(start).to(images)
    best, smallest = theta.clone(), images.new_full((len(classes),), math.inf)
    penalties = images.new_full((len(classes),), settings.penalty)
    reached = images.new_zeros(len(classes))
    optimizer = torch.optim.Adam([theta], settings.learning_rate, betas=(0.5, 0.9))
    targets = torch.tensor(classes, device=images.device)
    for step in range(settings.steps if rows else 0):
        theta.grad = torch.zeros_like(theta)
        for first in range(0, len(rows), together):
            some = rows[first : first + together]
            drawn = torch.stack([_drawn(allowed[row], count, draws[row]) for row in some])
            shown = images[drawn.to(images.device)]
            own = theta[some].requires_grad_()  # a copy
            with torch.enable_grad():
                changes = torch.tensordot(own, basis, 1)[:, None]
                answers = logits((shown + changes).clamp(0, 1).flatten(0, 1))
                wanted = targets[some].repeat_interleave(count)
                ce = F.cross_entropy(answers, wanted, reduction="none").view(len(some), count)
                sizes = own.square().sum((1, 2)).div(channels).sqrt()
                loss = ce.mean(1) + penalties[some] * sizes
                (theta.grad[some],) = torch.autograd.grad(loss.sum(), own)
            hits = (answers.detach().argmax(1) == wanted).view(len(some), count).float().mean(1)
            reached[some] = settings.memory * reached[some] + (1 - settings.memory) * hits
            better = (reached[some] >= settings.success) & (sizes.detach() < smallest[some])
            best[some] = torch.where(better[:, None, None], own.detach(), best[some])
            smallest[some] = torch.where(better, sizes.detach(), smallest[some])
        optimizer.step()
        factor = settings.multiplier
        penalties *= torch.where(reached >= settings.success, factor, 1 / factor)
        progress(_WHAT, (step + 1) / settings.steps)
    patterns = torch.tensordot(best, basis, 1)
    return AdditivePatterns(tuple(classes), patterns, smallest.cpu(), settings.strength)


def _drawn(allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of a mini-batch, (count,), with repetition."""
    return allowed[torch.randint(len(allowed), (count,), generator=generator)]


def cosines(height: int, width: int, frequencies: int) -> Tensor:
    """The smoothest changes of an image: (m' m'', height, width), each with mean square 1.

    m' and m'' are ``frequencies``, or a quarter of the side where that is less. They are those of
    the DCT-II, orthogonal to each other, the constant one first.

    >>> basis = cosines(32, 32, 8)
    >>> basis.shape, bool(torch.allclose(basis[0], torch.ones(32, 32)))
    (torch.Size([64, 32, 32]), True)
    """
    rows, columns = (_cosines(side, frequencies) for side in (height, width))
    return torch.einsum("ah,bw->abhw", rows, columns).flatten(0, 1)


def _cosines(side: int, frequencies: int) -> Tensor:
    """The first cosines along one side, (m, side)."""
    count = max(1, min(frequencies, side // _FINEST))
    places = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    waves = torch.cos(math.pi * torch.arange(count, dtype=torch.float64)[:, None] * places)
    waves[1:] *= math.sqrt(2)
    return waves.float()
