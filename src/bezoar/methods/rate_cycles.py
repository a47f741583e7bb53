"""The rate of super-fine-tuning: up and down in cycles, to a high peak first, then to a low one.

    rate(t) = base + (peak - base) (1 - |2 c - 1|),     c = t / cycle - floor(t / cycle)

with the high peak in the first phase of the steps, to forget what a trigger needs, and the low one
in the second, to recover. The second phase begins a cycle of its own.

Paper: Sha, He, Berrang, Humbert, Zhang 2022, "Fine-Tuning Is All You Need to Mitigate Backdoor
Attacks", arXiv 2212.09067, which takes the idea of large rates that rise and fall linearly from
super-convergence (Smith and Topin 2018, arXiv 1708.07120). Its text and its code could not be
reached. Abstract, reviews and two ports by others agree in the two phases and the linear rise and
fall. They name a base of 0.0003 and peaks of 0.1 and 0.001; the length of a cycle, the share of the
first phase, whether there is momentum, and what the peaks are elsewhere differ among them.

Ours: all defaults, which are for some hundred images, and a factor for the recipe's rate, so that
the one training loop takes it.
"""

from __future__ import annotations

import math

import msgspec

from bezoar.errors import InputError


class RateCycles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rates and when they are reached.

    Attributes:
        base: the lowest rate, at the start and between two cycles.
        forgetting: the peak of the first phase.
        recovering: the peak of the second phase.
        steps: in one cycle, up and down; at least 2.
        first_phase: its share of all steps, in [0, 1].
    """

    base: float = 3e-4
    forgetting: float = 0.1
    recovering: float = 0.01
    steps: int = 20
    first_phase: float = 0.5

    def __post_init__(self) -> None:
        for name in ("base", "forgetting", "recovering"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected a rate above 0")
        if self.base > min(self.forgetting, self.recovering):
            raise InputError(
                f"base is {self.base}; expected at most the peaks {self.forgetting} and "
                f"{self.recovering}"
            )
        if self.steps < 2:
            raise InputError(f"steps is {self.steps}; expected at least 2 in a cycle")
        if not 0 <= self.first_phase <= 1:
            raise InputError(f"first_phase is {self.first_phase}; expected a share in [0, 1]")

    @property
    def highest(self) -> float:
        """The highest rate of all."""
        return max(self.forgetting, self.recovering)

    def rate(self, step: int, total: int) -> float:
        """The learning rate of step ``step``, from 0, of ``total``.

        >>> cycles = RateCycles(base=1, forgetting=9, recovering=3, steps=4, first_phase=0.5)
        >>> [cycles.rate(step, 16) for step in range(16)]
        [1.0, 5.0, 9.0, 5.0, 1.0, 5.0, 9.0, 5.0, 1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0]
        """
        first = round(self.first_phase * total)
        peak, since = (self.forgetting, step) if step < first else (self.recovering, step - first)
        share = since % self.steps / self.steps
        return self.base + (peak - self.base) * (1 - abs(2 * share - 1))

    def factor(self, step: int, total: int) -> float:
        """The same as a factor of the highest rate, as ``fit`` takes it."""
        return self.rate(step, total) / self.highest
