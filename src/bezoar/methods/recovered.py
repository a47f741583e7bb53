"""What a method recovered in pixel space, whatever its form: a patch, or a generator of changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from bezoar.methods.method import Evidence


class Recovered(Protocol):
    """A trigger for each of some classes."""

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that a trigger was recovered for, as indices."""

    def stamp(self, images: Tensor, k: int) -> Tensor:
        """Puts the trigger of class ``k`` on images (n, c, h, w) in [0, 1]; the same range back.

        Raises:
            InputError: there is no trigger for ``k``.
        """


@dataclass(frozen=True)
class Trigger:
    """A recovered trigger for one class, and who recovered it.

    Attributes:
        witness: the method's name.
        target: the class that it leads to.
        recovered: what puts it on images.
    """

    witness: str
    target: int
    recovered: Recovered

    def stamp(self, images: Tensor) -> Tensor:
        """Puts it on images (n, c, h, w) in [0, 1]; the same range back."""
        return self.recovered.stamp(images, self.target)


def triggers_in(evidence: Sequence[Evidence], classes: Sequence[int]) -> list[Trigger]:
    """What each witness recovered for each of ``classes``, where it recovered anything."""
    return [
        Trigger(e.method, k, e.recovered)
        for e in evidence
        for k in classes
        if e.recovered is not None and k in e.recovered.classes
    ]
