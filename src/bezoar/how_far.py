"""How far to go: networks on the line from the original through its repair.

    theta(s) = theta_0 + s (theta_1 - theta_0)

s = 0 is the original, s = 1 the repair. A method stops after so many epochs, seldom just where the
trigger dies. A shorter way often removes as much and costs less accuracy; where a part of the
backdoor is left, a longer one removes more. So ``SHARES`` are walked from 1 downwards while what
judges repairs likes each step better by ``LEAST``, and upwards if the first step down is no better.
A step costs a look at some hundred images, a thousandth of a repair.

The variances that norms remember go geometrically, v_0^(1 - s) v_1^s, so that they stay positive;
what counts in whole numbers is the repair's.

The walk is ours. Weights between a network and its fine-tuned copy are Wortsman et al. 2022, arXiv
2109.01903; beyond it, Ilharco et al. 2023, arXiv 2212.04089.

Assumes that the loss changes smoothly on the line, as it does after a short fine-tuning. Known
failures: a judge that does not see the backdoor likes the shorter way for its accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.network_tensors import named_tensors

SHARES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.7)
LEAST = 0.005  # in the units of a balance; a smaller gain is noise

_VARIANCE = "running_var"  # as norms name it
_TINY = 1e-12  # keeps the logarithm of a variance of zero finite


class Balanced(Protocol):
    """What a judge says of a network."""

    @property
    def balance(self) -> float:
        """The smaller, the better."""


W = TypeVar("W", bound=Balanced)


def walk(
    original: Classifier, repaired: Classifier, weigh: Callable[[Classifier], W]
) -> tuple[float, Classifier, W]:
    """The best network that is found on the line.

    Args:
        original: before the repair.
        repaired: s = 1; with other tensors than ``original`` it is the only one there is.
        weigh: judges a network; called for ``repaired`` first.

    Returns:
        Its share s, the network (``repaired`` itself for s = 1) and what the judge says of it.
    """
    best = 1.0, repaired, weigh(repaired)
    if not _alike(original, repaired):
        return best
    start = SHARES.index(1.0)
    for way in (SHARES[:start][::-1], SHARES[start + 1 :]):
        for share in way:
            network = between(original, repaired, share)
            weighed = weigh(network)
            if not weighed.balance <= best[2].balance - LEAST:  # nor where it is no number
                break
            best = share, network, weighed
        if best[0] != 1.0:
            break
    return best


def between(original: Classifier, repaired: Classifier, share: float) -> Classifier:
    """theta(share) as a copy of ``repaired``.

    Args:
        original: theta_0.
        repaired: theta_1, with tensors of the same names and shapes.
        share: s, finite; beyond 1 it is past the repair.
    """
    made = repaired.copy()
    start, end = _tensors(original), _tensors(repaired)
    with torch.no_grad():
        # From the repair's own values: a tensor under two names is written twice, not moved twice.
        for name, value in _tensors(made).items():
            if not value.is_floating_point():
                continue
            if name.rpartition(".")[2] == _VARIANCE:
                value.copy_(_geometric(start[name], end[name], share))
            else:
                value.copy_(start[name] + share * (end[name] - start[name]))
    return made


def mean_of(networks: Sequence[Classifier]) -> Classifier:
    """The network in the middle of several copies of one; the variances' mean is geometric.

    Args:
        networks: at least one, with tensors of the same names and shapes.
    """
    made = networks[0]
    for count, other in enumerate(networks[1:], start=2):
        made = between(made, other, 1 / count)
    return made


def _geometric(start: Tensor, end: Tensor, share: float) -> Tensor:
    first, last = (v.clamp_min(_TINY).log() for v in (start, end))
    return (first + share * (last - first)).exp()


def _alike(one: Classifier, other: Classifier) -> bool:
    first, second = ({k: v.shape for k, v in _tensors(c).items()} for c in (one, other))
    return first == second


def _tensors(classifier: Classifier) -> dict[str, Tensor]:
    """Not those of a state dict, which may be overridden and hold copies."""
    return named_tensors(classifier.network, every_name=True)
