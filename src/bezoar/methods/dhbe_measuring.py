"""What can be measured of an erased backdoor without any data (ours).

- Agreement: the share of fresh synthetic images on which both networks give the same class.
- Insensitivity: the share of synthetic images whose class changes under generated triggers, for the
  network before and after. For each, *new* pattern generators are taught to move its answers, so
  that the student is not asked about the very patterns it was trained against.

Neither says anything about accuracy on real images, and the attacker's trigger may lie outside the
family: they show how far the game came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezoar.methods.dhbe_losses import sensitivity
from bezoar.methods.dhbe_patterns import PatternFamily, ascend, mixed_stamps
from bezoar.metrics import Rate, agreement, rate
from bezoar.training import gradients_only_for

FEWEST_OTHERS = 20  # images of other classes that tell which share of them is led into a class


@dataclass(frozen=True)
class Changed:
    """What patterns do to a network's answers.

    Attributes:
        share: of the images, whose class changes.
        towards: the class to which most of the others are led.
        led: the share of the images of other classes that are led there; of ``FEWEST_OTHERS`` such
            images or more, as a few tell no share.
    """

    share: Rate
    towards: int
    led: float


def agreement_on(images: Tensor, before: nn.Module, after: nn.Module) -> Rate:
    """The share of normalised images (n, c, h, w) that both networks answer alike, in eval mode."""
    return agreement(answers(before, images), answers(after, images))


def changed_by_fresh_patterns(
    network: nn.Module,
    images: Tensor,
    fresh: Sequence[PatternFamily],
    *,
    steps: int,
    batch_size: int,
) -> Changed:
    """The answers that patterns change which were taught, anew, to move those of ``network``.

    Args:
        network: in eval mode.
        images: normalised, (n, c, h, w).
        fresh: untaught families; they are taught here.
        steps: of the pattern generators.
        batch_size: images in a step.
    """
    batches = torch.split(images, batch_size)
    with torch.enable_grad(), gradients_only_for(network, []):
        for step in range(steps):
            batch = batches[step % len(batches)]
            with torch.no_grad():
                clean = network(batch)
            stamped = network(batch + mixed_stamps(fresh, len(batch))[0])
            ascend(fresh, sensitivity(clean, stamped))
    with torch.no_grad():
        stamped = torch.cat([batch + mixed_stamps(fresh, len(batch))[0] for batch in batches])
    old, new = answers(network, images), answers(network, stamped)
    moved = new[new != old].bincount(minlength=1)
    others = [int((old != k).sum()) for k in range(len(moved))]
    shares = [
        int(count) / other if other >= FEWEST_OTHERS else 0.0
        for count, other in zip(moved, others, strict=True)
    ]
    best = max(range(len(shares)), key=shares.__getitem__)
    return Changed(rate(int(moved.sum()), len(images)), best, shares[best])


def answers(network: nn.Module, images: Tensor) -> Tensor:
    """The classes that ``network`` gives to normalised images, (n,)."""
    with torch.no_grad():
        return torch.cat([network(batch).argmax(1) for batch in torch.split(images, 512)])
