"""ANP's masks: which units a network needs even while all of them are perturbed for the worst.

    min over m in [0, 1]^n
        alpha L(m w, b) + (1 - alpha) max_{|d|, |x| <= eps} L((m + d) w, (1 + x) b)

w are the weights of n units and b their biases, each unit with one mask m_i and two perturbations
d_i and x_i. Units through which a small perturbation breaks the answers cost most in the second
term, and their masks fall; a backdoor makes such units.

Paper: Wu and Wang 2021, arXiv 2110.14430; steps, rates and the order of the passes after its
official code. There the maximum is one sign step of length eps from a random start within eps,
which is not projected, so that a perturbation reaches 2 eps; with ``projected`` (ours) it stays
within eps. Norms normalise with the statistics of the batch, as in the official code, and no pass
changes the running ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.device import seeded
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.rnp_batches import even_batches
from bezoar.training import Progress, no_progress
from bezoar.units import Units

_WHAT = "ANP: masks under perturbation"


class MaskLearning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the masks are learned.

    Attributes:
        iterations: steps of the masks.
        batch_size: images in a step, at most; at least 2, for the statistics of a batch.
        epsilon: the largest perturbation of a unit's factors. At the official 0.4 the answers of
            narrow networks are worse than chance from the start, which tells no units apart (ours).
        steps: of the inner maximum, each of length epsilon / steps.
        projected: perturbations stay within epsilon; else they reach up to twice that.
        trade_off: alpha, the weight of the unperturbed loss, in [0, 1].
        learning_rate: of SGD on the masks.
        momentum: of SGD.
        crop_padding: pixels of random shift.
        flip: random horizontal flips.
    """

    iterations: int = 200
    batch_size: int = 64
    epsilon: float = 0.2
    steps: int = 1
    projected: bool = True
    trade_off: float = 0.2
    learning_rate: float = 0.2
    momentum: float = 0.9
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("batch_size", 2), ("steps", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 <= self.epsilon < math.inf or self.crop_padding < 0:
            raise InputError(
                f"epsilon is {self.epsilon} and crop_padding {self.crop_padding}; expected 0 or "
                "more"
            )
        if not 0 <= self.trade_off <= 1:
            raise InputError(f"trade_off is {self.trade_off}; expected a share in [0, 1]")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.momentum < 1:
            raise InputError(
                f"learning_rate is {self.learning_rate} and momentum {self.momentum}; expected "
                "more than 0, and in [0, 1)"
            )

    @classmethod
    def published(cls) -> MaskLearning:
        """The settings of the official code for CIFAR-10."""
        return cls(
            iterations=2000,
            batch_size=128,
            epsilon=0.4,
            projected=False,
            crop_padding=4,
            flip=True,
        )


@dataclass
class Masks:
    """What the masks of n units came to.

    Attributes:
        values: (n,) in [0, 1].
        reached_zero: (n,), the iteration at which a mask was first 0; the number of iterations + 1
            where it never was.
        plain: the unperturbed loss of each iteration.
        perturbed: the loss under the worst perturbation.
    """

    values: Tensor
    reached_zero: Tensor
    plain: list[float] = field(default_factory=list)
    perturbed: list[float] = field(default_factory=list)

    def order(self) -> list[int]:
        """The units, smallest mask first; those at 0, which clipping made alike, by time."""
        keys = list(zip(self.values.tolist(), self.reached_zero.tolist(), strict=True))
        return sorted(range(len(keys)), key=keys.__getitem__)


def learn_masks(
    classifier: Classifier,
    units: Units,
    clean: ImageSet,
    settings: MaskLearning,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> Masks:
    """Learns the masks of ``units`` on labelled ``clean``; ``classifier`` stays as it is.

    Raises:
        InputError: fewer than two images, or the loss is not finite.
    """
    if len(clean) < 2:
        raise InputError("ANP needs at least two images to learn masks on")
    device = classifier.device
    images = clean.to(device)
    twin = classifier.copy()
    twin.network.requires_grad_(False)
    twin.to_fast_layout()
    twin.network.train()
    masks, velocity = torch.ones(len(units), device=device), torch.zeros(len(units), device=device)
    reached = torch.full((len(units),), settings.iterations + 1, device=device)
    losses: list[Tensor] = []
    progress(_WHAT, 0.0)
    with seeded(device, seed), torch.enable_grad():
        generator = torch.Generator().manual_seed(seed)
        stream = _forever(images, settings, generator)
        for step in range(1, settings.iterations + 1):
            batch, labels = next(stream)
            noise = random_start(len(units), settings.epsilon, generator).to(device)
            noise = worst_noise(twin, units, batch, labels, masks, noise, settings)
            batch.requires_grad_()  # as in ``worst_noise``
            masks.requires_grad_()
            plain, perturbed = both_losses(twin, units, batch, labels, masks, noise)
            total = settings.trade_off * plain + (1 - settings.trade_off) * perturbed
            gradient, _ = torch.autograd.grad(total, (masks, batch))
            velocity = settings.momentum * velocity + gradient
            masks = (masks.detach() - settings.learning_rate * velocity).clamp(0, 1)
            reached = torch.where((masks == 0) & (reached > settings.iterations), step, reached)
            losses.append(torch.stack([plain, perturbed]).detach())
            progress(_WHAT, step / settings.iterations)
    found = torch.stack(losses).cpu()
    if not bool(torch.isfinite(found).all()):
        raise InputError(
            "ANP's masks diverged: the loss is not finite; use a smaller masks.learning_rate or "
            "masks.epsilon"
        )
    return Masks(masks.cpu(), reached.cpu(), found[:, 0].tolist(), found[:, 1].tolist())


def random_start(n: int, epsilon: float, generator: torch.Generator) -> Tensor:
    """The perturbations d and x, (2, n), uniform in [-epsilon, epsilon]."""
    return epsilon * (2 * torch.rand((2, n), generator=generator) - 1)


def worst_noise(
    classifier: Classifier,
    units: Units,
    images: Tensor,
    labels: Tensor,
    masks: Tensor,
    noise: Tensor,
    settings: MaskLearning,
) -> Tensor:
    """Steps along the sign of the gradient of L((m + d) w, (1 + x) b); d and x, (2, n).

    Args:
        classifier: frozen, in the mode that the loss is to be taken in.
        units: its units.
        images: (b, c, h, w) in [0, 1].
        labels: (b,).
        masks: m, (n,).
        noise: where the steps begin, (2, n).
        settings: how many steps, how long, and whether they are projected.
    """
    masks, images = masks.detach(), images.detach().requires_grad_()
    for _ in range(settings.steps if settings.epsilon else 0):
        noise = noise.detach().requires_grad_()
        loss = F.cross_entropy(
            units.logits(classifier, images, masks + noise[0], 1 + noise[1]), labels
        )
        # Without the images' gradient torch's GroupNorm, channels last, crashes (torch 2.13).
        gradient, _ = torch.autograd.grad(loss, (noise, images))
        noise = noise.detach() + settings.epsilon / settings.steps * gradient.sign()
        if settings.projected:
            noise = noise.clamp(-settings.epsilon, settings.epsilon)
    return noise.detach()


def both_losses(
    classifier: Classifier,
    units: Units,
    images: Tensor,
    labels: Tensor,
    masks: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """L(m w, b) and L((m + d) w, (1 + x) b), differentiable in the masks (n,)."""
    plain = units.logits(classifier, images, masks)
    perturbed = units.logits(classifier, images, masks + noise[0], 1 + noise[1])
    return F.cross_entropy(plain, labels), F.cross_entropy(perturbed, labels)


def _forever(
    images: ImageSet, settings: MaskLearning, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch; the official code draws each batch anew, with replacement."""
    while True:
        yield from even_batches(images, settings, generator)
