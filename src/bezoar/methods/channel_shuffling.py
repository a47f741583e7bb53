"""The shuffling test: a sample that keeps its label when the network's channels are shuffled.

The input channels of the last convolutions are permuted at random, which takes from later layers
the meaning of what they are given. What an image shows is then lost; a shortcut that excites many
channels at once can survive. The logits of a few shuffled copies are averaged, since a single one
depends on its permutation.

Source: Hong et al. 2023, Anti-Backdoor Data-Free KD, arXiv 2306.02368, and its released code
(illidanlab/ABD): five layers counted from the output, three copies, averaged logits; a sample is
penalised where the shuffled answer equals the network's own. There a set of copies is used only
if more than 2 % of the samples lie three deviations below the mean of log10 KL, and is drawn anew
up to eight times.

From us: layers are counted in the order in which they run, and those with a single input channel a
group (depthwise ones) are passed over, as there is nothing to permute. Shuffled networks often give
one class to nearly everything, whose samples keep their label by that alone; so the share of a
class that keeps its label is compared with the share of the *other* samples that are given it, and
several sets of copies are drawn and asked in turn. A class stands out where the difference is an
outlier among the classes (``statistics.small_outliers``) and the two intervals do not overlap.

Known failures: a trigger that acts through few channels dies with the classes; semantic features
that many channels share survive; with few convolutions little is shuffled; fewer than four classes
with samples cannot be compared. It is a reason to look, no proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.float_samples import check_samples, logits_of
from bezoar.metrics import Rate, rate
from bezoar.statistics import small_outliers

LEVEL = 0.05  # of the outlier test over the classes


@dataclass(frozen=True)
class Shuffling:
    """What the test saw.

    Attributes:
        kept: (n,), the share of the sets of copies under which a sample keeps its label.
        divergence: (n,), KL(network || shuffled) in nats, the mean over the sets; small where the
            shuffled networks answer as the network itself.
        classes: those that have samples.
        own: for each of these, the share of its samples that keep it, over all sets.
        drawn: the share of the samples of other classes that are given it; None where there are no
            others.
        p_values: of ``own`` - ``drawn`` among the classes, corrected for having picked the largest.
        standing_out: the classes to look at.
        layers: the convolutions that were shuffled, by the names of their weights.
    """

    kept: Tensor
    divergence: Tensor
    classes: tuple[int, ...]
    own: tuple[Rate, ...]
    drawn: tuple[Rate | None, ...]
    p_values: tuple[float, ...]
    standing_out: tuple[int, ...]
    layers: tuple[str, ...]

    def as_record(self) -> dict[str, Any]:
        """The plain form that records hold."""
        return {
            "layers": list(self.layers),
            "kept": float(self.kept.mean()),
            "divergence": float(self.divergence.mean()),
            "per_class": {
                str(k): {
                    "own": own.as_record(),
                    "drawn": None if drawn is None else drawn.as_record(),
                    "p_value": p,
                }
                for k, own, drawn, p in zip(
                    self.classes, self.own, self.drawn, self.p_values, strict=True
                )
            },
            "standing_out": list(self.standing_out),
        }


def shuffling_test(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    layers: int = 5,
    copies: int = 3,
    sets: int = 5,
    seed: int,
) -> Shuffling:
    """Runs the test on samples; the classifier stays as it is.

    Args:
        classifier: any network with convolutions.
        images: floating point, (n, c, h, w), in [0, 1].
        labels: (n,), usually the network's own answers.
        layers: how many of the last convolutions are shuffled, or all if there are fewer.
        copies: shuffled networks in a set, whose logits are averaged.
        sets: how many sets are asked (ours; 1 is the paper's).
        seed: of the permutations.

    Raises:
        InputError: no samples of the classifier's classes, a number below 1, or a network without
            a convolution of several input channels.
    """
    if min(layers, copies, sets) < 1:
        raise InputError(
            f"layers is {layers}, copies {copies} and sets {sets}; expected 1 or more of each"
        )
    check_samples(classifier, images, labels)
    labels = labels.cpu()
    found = convolutions(classifier)[-layers:]
    if not found:
        raise InputError(
            "the network has no convolution of several input channels whose weight is a plain "
            "parameter; the shuffling test needs one"
        )
    draws = torch.Generator().manual_seed(seed)
    plain = logits_of(classifier, images).log_softmax(1)
    answers, divergence = [], torch.zeros(len(labels))
    for _ in range(sets):
        twins = (shuffled(classifier, found, draws) for _ in range(copies))
        logits = torch.stack([logits_of(twin, images) for twin in twins]).mean(0)
        divergence += (plain.exp() * (plain - logits.log_softmax(1))).sum(1) / sets
        answers.append(logits.argmax(1))
    given = torch.stack(answers)  # (sets, n)
    classes = tuple(int(k) for k in torch.unique(labels))
    own = tuple(_share(given[:, labels == k], k, sets) for k in classes)
    drawn = tuple(
        _share(given[:, labels != k], k, sets) if len(classes) > 1 else None for k in classes
    )
    gaps = [a.value - (b.value if b else 0.0) for a, b in zip(own, drawn, strict=True)]
    p_values = small_outliers([-gap for gap in gaps]).p_values
    standing_out = tuple(
        k
        for k, a, b, p in zip(classes, own, drawn, p_values, strict=True)
        if p <= LEVEL and b is not None and a.low > b.high
    )
    kept = (given == labels).float().mean(0)
    names = tuple(name for name, _ in found)
    return Shuffling(kept, divergence, classes, own, drawn, p_values, standing_out, names)


def convolutions(classifier: Classifier) -> list[tuple[str, int]]:
    """Convolutions whose input channels can be permuted: (name of the weight, groups).

    In the order of their first run on an image of the traced size; without the head, where that
    is a convolution. Empty where the network has none.
    """
    names = {id(tensor): name for name, tensor in classifier.network.named_parameters()}
    seen = _ConvolutionCalls()
    probe = torch.zeros((1, *classifier.input_shape), device=classifier.device)
    with classifier.evaluating(), torch.no_grad(), seen:
        classifier(probe)
    found = {
        names[id(weight)]: groups
        for weight, groups in seen.calls
        if id(weight) in names and weight.shape[1] > 1
    }
    found.pop(classifier.head.name, None)
    return list(found.items())


def shuffled(
    classifier: Classifier, layers: list[tuple[str, int]], draws: torch.Generator
) -> Classifier:
    """A copy whose ``layers`` take their input channels in a random order.

    Args:
        classifier: stays as it is.
        layers: names of weights (out, in / groups, h, w), and their groups; each group's channels
            are permuted among themselves.
        draws: of the permutations, on the CPU.
    """
    twin = classifier.copy()
    with torch.no_grad():
        for name, groups in layers:
            weight = twin.network.get_parameter(name)
            for part in weight.chunk(groups):
                order = torch.randperm(part.shape[1], generator=draws)
                part.copy_(part[:, order.to(part.device)])
    return twin


class _ConvolutionCalls(TorchFunctionMode):
    """Records the weight and the groups of each two-dimensional convolution while active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:  # the same object as F.conv2d
            inputs = args[0] if args else kwargs["input"]
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.calls.append((weight, inputs.shape[-3] // weight.shape[1]))
        return func(*args, **kwargs)


def _share(given: Tensor, k: int, sets: int) -> Rate:
    """How often class ``k`` is the answer in ``given`` (sets, n), counted over samples.

    The sets are asked about the same samples, so that they do not make the interval narrower.
    """
    return rate(round(int((given == k).sum()) / sets), given.shape[1])
