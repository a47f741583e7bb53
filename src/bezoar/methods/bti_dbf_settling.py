"""The way back: how much of a fine-tuning is needed, and the rest undone (ours).

What fine-tuning on a few images changes beyond what kills the trigger only costs accuracy. So the
network is taken that lies on the straight line between the original and the fine-tuned weights and
statistics, as near to the original as the strong recovered triggers stay dead on held-out images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bezoar.classifier import BATCH, Classifier
from bezoar.images import ImageSet
from bezoar.methods.bti_dbf_recovering import Found
from bezoar.methods.neural_cleanse_triggers import pixels_of, predicted
from bezoar.network_tensors import named_tensors


def settle(
    original: Classifier,
    repaired: Classifier,
    strong: Sequence[Found],
    held_out: ImageSet,
    *,
    ways: Sequence[float],
    dead: float,
) -> tuple[Classifier, float, list[float]]:
    """The first network on the way to ``repaired`` where all strong triggers are dead.

    Args:
        original: the network before the repair.
        repaired: the fine-tuned one.
        strong: the triggers; with none, the first way is taken.
        held_out: images that the triggers do not come from.
        ways: parts of the way, rising to 1; at least one.
        dead: the share of images that a dead trigger carries at most.

    Returns:
        The network, the part of the way, and the share that each trigger still carries; the last
        network where no way is enough.
    """
    for way in ways:
        network = _between(original, repaired, way)
        left = [still_carried(network, found, held_out, original) for found in strong]
        if max(left, default=0.0) <= dead:
            break
    return network, way, left


def still_carried(
    classifier: Classifier, found: Found, held_out: ImageSet, original: Classifier
) -> float:
    """The share of held-out images that a trigger sends where it sent most of their class.

    Images count that ``original`` answered rightly, of classes that went anywhere. The target's own
    stay where they are: single ones that leave do not make it one of these.

    Args:
        classifier: the network the trigger is tried on.
        found: the trigger, and where it led.
        held_out: images that it does not come from.
        original: the network before the repair.
    """
    leads = found.sources_lead()
    pixels, labels = pixels_of(held_out, classifier)
    with classifier.evaluating(), original.evaluating(), torch.no_grad():
        plain = predicted(original, pixels)
        source = plain if labels is None else torch.where(plain == labels, plain, -1)
        wanted = torch.where(source >= 0, leads.to(source.device)[source.clamp(min=0)], -1)
        counted = wanted >= 0
        if not bool(counted.any()):
            return 0.0
        stamped = torch.cat([found.inverted.stamp(part) for part in torch.split(pixels, BATCH)])
        return float((predicted(classifier, stamped)[counted] == wanted[counted]).float().mean())


def _between(original: Classifier, repaired: Classifier, way: float) -> Classifier:
    """The network whose weights and statistics lie ``way`` of the way from one to the other."""
    result = repaired.copy()
    if way < 1:
        old = named_tensors(original.network)
        with torch.no_grad():
            for name, value in named_tensors(result.network).items():
                if value.is_floating_point():
                    value.copy_(torch.lerp(old[name], value, way))
    return result
