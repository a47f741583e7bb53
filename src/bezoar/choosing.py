"""Which method repairs a model, and in a sentence why that one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bezoar.methods import (
    DHBE,
    FreD,
    Method,
    SyntheticUnlearning,
    is_data_free,
    takes_public,
)
from bezoar.trying import Trial


@dataclass(frozen=True)
class Choice:
    """A method, and why it is taken."""

    method: Method
    reason: str


def asked_for(method: Method) -> Choice:
    """The method that the user named."""
    return Choice(method, f"It was asked for{_untaken(method)}.")


def _untaken(method: Method) -> str:
    """Which images a method leaves to judge it."""
    if is_data_free(method):
        return "; it takes no image"
    return "; it takes no image of the task" if takes_public(method) else ""


def without_images(suspects: Sequence[int], *, has_public: bool) -> Choice:
    """What repairs a model where there is no image of its task and nobody named a method.

    Args:
        suspects: the classes that the weights betray, most suspicious first, all of which are
            removed; without one the method must ask for no class.
        has_public: whether there are public images, or a generator that was trained on such.
    """
    method: Method
    if has_public:
        method = FreD()
    elif suspects:
        method = SyntheticUnlearning(target_class=tuple(suspects) if suspects[1:] else suspects[0])
    else:
        method = DHBE()
    how = "works with the public ones" if has_public else "needs none"
    return Choice(method, f"There are no images of the task; {method.name} {how}.")


def best_of(trials: Sequence[Trial], best: Trial) -> Choice:
    """The repair that is kept of those that were tried.

    Args:
        trials: all.
        best: the one of them that is kept.
    """
    count = len(trials)
    tried = f"{count} repairs were tried" if count > 1 else "One repair was tried"
    if best.weighed is not None and best.weighed.removed:
        return Choice(best.method, f"{tried}; after this one ({best.name}) no sign was seen.")
    return Choice(best.method, f"{tried}; this one ({best.name}) has the best balance.")


def as_precaution(trial: Trial) -> Choice:
    """The repair of a model in which nothing was found."""
    return Choice(
        trial.method,
        f"Nothing was found; it is repaired as a precaution for the most unusual class: "
        f"{trial.name}.",
    )
