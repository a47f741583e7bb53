"""How samples are searched: the settings of a model inversion (``fred_inversion``).

``Inversion.published()`` is the point search of KED-DMI's released code (Chen et al. 2021, arXiv
2010.04092), by the first author of the paper (Chen et al. 2023, arXiv 2206.07018) whose own numbers
could not be read. The defaults are ours.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import msgspec

from bezoar.errors import InputError
from bezoar.methods.fred_input_stability import InputStability
from bezoar.methods.fred_parameter_stability import ParameterStability


class Inversion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How samples are searched.

    Attributes:
        iterations: of the search; 0 takes the starting points as they are.
        batch_size: samples that are searched together, an even number of 4 or more.
        candidates: random latent vectors of which those that a class likes best are its starting
            points; 0 starts at random.
        clip: latent vectors are held in [-clip, clip]; infinity leaves them free.
        optimizer: ``adam``, or ``nesterov``, SGD with momentum 0.9 on the mean of the batch.
        learning_rate: of either.
        class_weight: of the cross-entropy to the wanted class.
        input_weight: of input instability, as a share of ``class_weight``.
        parameter_weight: of parameter instability, as a share of ``class_weight``.
        prior_weight: of the generator's prior.
        normalise_prior: divide the prior by the running norm of its gradient.
        stability_every: iterations from one with the two stabilities to the next.
        plain: share of the iterations at the start that go without them.
        ramp: share of the iterations in which they then grow to their weights.
        input: which noise.
        parameter: which step of the weights.
    """

    iterations: int = 50
    batch_size: int = 256
    candidates: int = 2048
    clip: float = 2.0
    optimizer: Literal["adam", "nesterov"] = "adam"
    learning_rate: float = 0.1
    class_weight: float = 100.0
    input_weight: float = 0.3
    parameter_weight: float = 0.3
    prior_weight: float = 1.0
    normalise_prior: bool = True
    stability_every: int = 2
    plain: float = 0.3
    ramp: float = 0.2
    input: InputStability = InputStability()
    parameter: ParameterStability = ParameterStability()

    def __post_init__(self) -> None:
        for name, least in {"iterations": 0, "candidates": 0, "stability_every": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if self.batch_size < 4 or self.batch_size % 2:
            raise InputError(
                f"batch_size is {self.batch_size}; expected an even number of 4 or more, for two "
                "halves"
            )
        if not self.clip > 0:
            raise InputError(f"clip is {self.clip}; expected more than 0")
        for name in (
            "learning_rate", "class_weight", "input_weight", "parameter_weight", "prior_weight"
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("plain", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a share in [0, 1]")

    @classmethod
    def published(cls) -> Self:
        """The point search of KED-DMI's released code, without stabilities: plain inversion.

        That code repeats it with five seeds. What Chen et al. 2023 set could not be read.
        """
        return cls(
            iterations=2400,
            batch_size=60,
            candidates=0,
            clip=1.0,
            optimizer="nesterov",
            learning_rate=2e-2,
            input_weight=0.0,
            parameter_weight=0.0,
            normalise_prior=False,
        )

    def stability(self, share: float) -> float:
        """The factor of both stabilities when ``share``, in [0, 1), of the search is done.

        >>> how = Inversion()
        >>> [round(how.stability(share), 3) for share in (0.0, 0.29, 0.4, 0.5, 0.9)]
        [0.0, 0.0, 0.5, 1.0, 1.0]
        """
        if share < self.plain:
            return 0.0
        return min(1.0, (share - self.plain) / self.ramp) if self.ramp else 1.0
