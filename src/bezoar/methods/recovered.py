"""What a method recovered in pixel space, whatever its form: a patch, or a generator of changes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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
