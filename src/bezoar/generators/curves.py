"""The losses of a training, for its record: the means of its fiftieths."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bezoar.errors import InputError

_BLOCKS = 50
_STEPS_TO_LOSE = 100  # without much regret


class Curves:
    """One curve for each loss.

    Args:
        what: the name of the training.
        names: of the losses.
        steps: how many the training has.
    """

    def __init__(self, what: str, names: tuple[str, ...], steps: int) -> None:
        self.what, self.names = what, names
        self.block = max(1, steps // _BLOCKS)
        self.means: dict[str, list[float]] = {name: [] for name in names}
        self._open: list[Tensor] = []

    def add(self, *losses: Tensor) -> bool:
        """Takes the losses of a step; returns whether a block of steps is full, and closes it."""
        self._open.append(torch.stack([loss.detach() for loss in losses]))
        full = len(self._open) == self.block
        if full:
            self.close()
        return full

    def close(self) -> None:
        """Ends a block with a point of each curve.

        Raises:
            InputError: a loss is no finite number.
        """
        if not self._open:
            return
        means = torch.stack(self._open).mean(0).tolist()
        self._open = []
        if not all(map(math.isfinite, means)):
            seen = ", ".join(f"{n} {m}" for n, m in zip(self.names, means, strict=True))
            raise InputError(f"{self.what} diverged ({seen}); use smaller learning rates")
        for name, mean in zip(self.names, means, strict=True):
            self.means[name].append(mean)

    @property
    def said(self) -> str:
        """What is being done, with the latest means."""
        latest = [f"{name} {curve[-1]:.3g}" for name, curve in self.means.items() if curve]
        return self.what + (f" ({', '.join(latest)})" if latest else "")

    def state_dict(self) -> dict[str, Any]:
        """The curves; to be called where a block was closed."""
        return {name: list(curve) for name, curve in self.means.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the curves back."""
        self.means = state


def worth_saving(step: int, steps: int, block: int) -> bool:
    """Whether, at the end of a block, so much is done that a checkpoint should be renewed."""
    blocks = -(-_STEPS_TO_LOSE // block)
    return step < steps and step % (block * blocks) == 0
