"""The generators that BTI-DBF inverts triggers with: their settings, their start, their optimizer.

``residual`` (ours) starts as the identity. ``published`` is the U-Net of the official code, which
has to learn that first (Xu et al., ICLR 2024, OpenReview Tw9wemV6cb). How they are trained:
``bti_dbf_inversion``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import torch
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.networks.generators import drawn
from bezoar.networks.trigger_generators import PublishedGenerator, ResidualGenerator

_BOUND, _NUMBERS = 0.11, 3072  # the default bound, and the numbers of an image it is meant for


class Pretraining(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a generator that does not start as the identity learns it (official code).

    Attributes:
        epochs: passes over the images.
        learning_rate: of Adam.
        limit: mean square of normalised pixels, beyond which the pixel term weighs ``far``.
        far: weight of the pixel term beyond the limit.
        near: and within it.
    """

    epochs: int = 50
    learning_rate: float = 1e-3
    limit: float = 0.1
    far: float = 100.0
    near: float = 0.01

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.learning_rate <= 0 or min(self.limit, self.far, self.near) < 0:
            raise InputError(
                f"pretraining has epochs {self.epochs}, learning_rate {self.learning_rate}, limit "
                f"{self.limit}, far {self.far} and near {self.near}; expected at least 1, more "
                "than 0, and 0 or more"
            )


class GeneratorInversion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the trigger generator is trained.

    Attributes:
        generator: ``residual`` (ours) or ``published`` (the official U-Net).
        features: width of the residual generator's U-Net. 0, the default, leaves its fixed pattern
            alone, G(x) = x + u: on the pool's development half the U-Net found no more backdoors,
            took twice as long, and moved the features of networks without a backdoor further.
        constraint: ``scaled`` holds each image's change within the bound, ``switch`` is the
            official code's.
        bound: largest RMS change; of the pixel range in [0, 1] with ``scaled``, of normalised
            pixels with ``switch``. None takes 0.11 for 3 x 32 x 32 numbers, and for N of them
            0.11 (3072 / N)^(1/4): a patch keeps its RMS times N^(1/2), noise its RMS, and this lies
            between the two.
        distance: of maps: ``norm`` as in the paper, ``mean square`` as in the code.
        benign_weight: w.
        benign_limit: with ``switch``, the largest movement of benign features.
        steps: of Adam; None takes ``epochs`` passes over the images.
        epochs: passes, where ``steps`` is None.
        batch_size: images in a step.
        learning_rate: of Adam, for a network.
        pattern_rate: of Adam, for the residual generator's free pattern.
        target_weight: of CE(f(G(x)), target) where a target is given (the code's later rounds).
        flip: mirror half of the images.
        crop_padding: pixels that images may shift.
        pretraining: for the published generator.
    """

    generator: Literal["residual", "published"] = "residual"
    features: int = 0
    constraint: Literal["scaled", "switch"] = "scaled"
    bound: float | None = None
    distance: Literal["norm", "mean square"] = "norm"
    benign_weight: float = 0.3
    benign_limit: float = 3.0
    steps: int | None = 120
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 3e-3
    pattern_rate: float = 0.02
    target_weight: float = 0.0
    flip: bool = False
    crop_padding: int = 0
    pretraining: Pretraining = Pretraining()

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, 1 if self.steps is None else self.steps) < 1:
            raise InputError(
                f"steps is {self.steps}, epochs {self.epochs} and batch_size {self.batch_size}; "
                "expected at least 1 each"
            )
        largest = 1.0 if self.constraint == "scaled" else math.inf
        if self.bound is not None and not 0 < self.bound <= largest:
            raise InputError(
                f"bound is {self.bound}; expected an RMS change in (0, 1] of the pixel range"
            )
        if self.bound is None and self.constraint == "switch":
            raise InputError("constraint=switch needs a bound, the RMS change of normalised pixels")
        if self.benign_limit < 0:
            raise InputError(f"benign_limit is {self.benign_limit}; expected 0 or more")
        if min(self.features, self.benign_weight, self.target_weight, self.crop_padding) < 0:
            raise InputError(
                f"features is {self.features}, benign_weight {self.benign_weight}, target_weight "
                f"{self.target_weight} and crop_padding {self.crop_padding}; expected 0 or more"
            )
        if min(self.learning_rate, self.pattern_rate) <= 0:
            raise InputError(
                f"learning_rate is {self.learning_rate} and pattern_rate {self.pattern_rate}; "
                "expected more than 0"
            )

    @classmethod
    def published(cls) -> GeneratorInversion:
        """The official code's settings for CIFAR-10; without its flip, as signs and digits mind."""
        return cls(
            generator="published",
            constraint="switch",
            bound=math.sqrt(0.3),
            distance="mean square",
            benign_weight=0.01,
            steps=None,
            batch_size=128,
            learning_rate=1e-3,
            target_weight=1.0,
            crop_padding=4,
        )

    def limit(self, shape: tuple[int, int, int]) -> float:
        """The bound for images of ``shape`` (c, h, w)."""
        if self.bound is not None:
            return self.bound
        return min(1.0, _BOUND * math.sqrt(math.sqrt(_NUMBERS / math.prod(shape))))

    def start(self, classifier: Classifier, seed: int) -> nn.Module:
        """A generator that has learned nothing yet, on the classifier's device.

        Raises:
            InputError: the images are of a size that it cannot take.
        """
        shape = classifier.input_shape
        made: PublishedGenerator | ResidualGenerator
        if self.generator == "published":
            PublishedGenerator.check_size(*shape[1:])
            mean, std = (_of_channels(v, shape[0]) for v in (classifier.mean, classifier.std))
            made = drawn(lambda: PublishedGenerator(shape[0], mean=mean, std=std), seed)
        else:
            made = residual_generator(shape, self.features, seed)
            _break_symmetry(made, seed)
        return made.to(classifier.device)


def residual_generator(shape: tuple[int, int, int], features: int, seed: int) -> ResidualGenerator:
    """A new one for images of ``shape`` (c, h, w): the identity, with up to three U-Net levels."""
    depth = max(1, min(3, min(shape[1:]).bit_length() - 2))  # so often the image can be halved
    return drawn(lambda: ResidualGenerator(*shape, features=features, depth=depth), seed)


def generator_optimizer(
    generator: nn.Module, settings: GeneratorInversion
) -> torch.optim.Optimizer:
    """Adam; the free pattern of a residual generator has a rate of its own."""
    rate = settings.learning_rate
    if not isinstance(generator, ResidualGenerator):
        return torch.optim.Adam(generator.parameters(), rate)
    others = [p for p in generator.parameters() if p is not generator.pattern]
    groups: list[dict[str, Any]] = [
        {"params": [generator.pattern], "lr": settings.pattern_rate},
        {"params": others, "lr": rate},
    ]
    return torch.optim.Adam(groups)


def _break_symmetry(generator: ResidualGenerator, seed: int) -> None:
    """A pattern of 1e-3 instead of 0: at no change at all, the distance moves in no direction."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        generator.pattern.copy_(1e-3 * torch.randn(generator.pattern.shape, generator=draws))


def _of_channels(values: tuple[float, ...], channels: int) -> list[float]:
    return list(values) * channels if len(values) == 1 else list(values)
