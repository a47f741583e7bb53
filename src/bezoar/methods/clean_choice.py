"""How far a pruning may go, chosen by clean held-out images (ours).

Many prunings are a path: the further, the less of the backdoor is left, and the less of the
network. Published code mostly picks the point on it by the attacker's own trigger. Here the
candidates are walked from the mildest to the harshest, and the last one is taken before the
accuracy on held-out images falls below a floor.

A few hundred images tell accuracies apart to a point or so, and no finer; the walk ends at the
first candidate below the floor, since a later one that happens to lie above it is luck.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet

_ROUNDING = 1e-9  # shares of the same images differ by more, or not at all


@dataclass(frozen=True)
class Walk:
    """The setting that was taken and those that were tried.

    Attributes:
        setting: its threshold, count or share.
        tried: the settings that were walked; the one that ended the walk is the last of them.
        accuracy: on the held-out images, of each.
        floor: the least accuracy.
    """

    setting: float
    tried: tuple[float, ...]
    accuracy: tuple[float, ...]
    floor: float

    def as_record(self) -> dict[str, Any]:
        """The plain form that records hold."""
        return {
            "setting": self.setting,
            "tried": list(self.tried),
            "accuracy": list(self.accuracy),
            "floor": self.floor,
        }


@dataclass(frozen=True)
class Choice(Walk):
    """The same with the network that the taken setting makes.

    Attributes:
        classifier: that network.
    """

    classifier: Classifier


def walk(floor: float, settings: Sequence[float], accuracy: Callable[[float], float]) -> Walk:
    """Walks ``settings`` and takes the last one before ``accuracy`` falls below ``floor``.

    Where the first one already lies below, it is taken all the same: make it one that changes
    nothing.

    Args:
        floor: least accuracy on held-out images, in [0, 1].
        settings: mildest first.
        accuracy: of the network of a setting, on labelled images that nothing before was chosen by.

    Raises:
        InputError: there are no settings.

    >>> walk(0.8, [0, 1, 2, 3], [0.9, 0.8, 0.7, 0.9].__getitem__).setting
    1
    """
    if not settings:
        raise InputError("choosing a threshold needs candidates; there are none")
    found: list[float] = []
    taken = settings[0]
    for setting in settings:
        found.append(accuracy(setting))
        if found[-1] < floor - _ROUNDING:
            break
        taken = setting
    return Walk(taken, tuple(settings[: len(found)]), tuple(found), floor)


def last_above(
    floor: float,
    settings: Sequence[float],
    build: Callable[[float], Classifier],
    held_out: ImageSet,
) -> Choice:
    """The ``walk`` with whole networks, of which it keeps the one that is taken.

    Args:
        floor: least accuracy on ``held_out``, in [0, 1].
        settings: mildest first.
        build: the network of a setting.
        held_out: labelled images that nothing before was chosen by.

    Raises:
        InputError: there are no settings, no images, or no labels.
    """
    if not len(held_out):
        raise InputError("choosing a threshold needs held-out images; there are none")
    taken: list[Classifier] = []  # the last one above the floor, or the first

    def accuracy(setting: float) -> float:
        candidate = build(setting)
        share = accuracy_of(candidate, held_out)
        if not taken or share >= floor - _ROUNDING:
            taken[:] = [candidate]
        return share

    way = walk(floor, settings, accuracy)
    return Choice(way.setting, way.tried, way.accuracy, floor, taken[0])


def accuracy_of(classifier: Classifier, images: ImageSet) -> float:
    """The share of labelled images that are answered with their label."""
    labels = images.require_labels("choosing a threshold")
    answers = classifier.logits(images).argmax(1).to(labels.device)
    return float((answers == labels).float().mean())
