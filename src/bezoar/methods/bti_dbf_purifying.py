"""BTI-DBF (P): a purifier in front of the classifier takes the trigger off; the weights stay.

    z = Q(x~ + noise),   CE(f(z), y) + w_a MSE(a(x), a(z)) + w_p MSE(x, z)

x~ is a batch with the generated trigger on a share of its images, x the same without it. Paper: Xu
et al., ICLR 2024 (OpenReview Tw9wemV6cb); the two alignments and the noise are in the official code
alone, with a pixel weight of 100 beyond a mean square of 0.05 (normalised pixels) and 1 below.

Ours: Q starts as the identity (``ResidualGenerator``); the wanted answer is the one without trigger
and purifier, at a temperature; the trigger comes in all strengths; no noise, so that the same image
gets the same answer. The classifier behind Q stays in eval mode and gets no gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.bti_dbf_unlearning import GeneratedUnlearning, Stamp, stamp_some
from bezoar.methods.distilling import divergence
from bezoar.networks.purified import Purified
from bezoar.recipe import Recipe
from bezoar.splitting import Split
from bezoar.training import Loss


class Purifying(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the purifier is trained, in each round.

    Attributes:
        generator: its form, ``residual`` (ours) or ``published`` (the official U-Net).
        features: width of the residual form's U-Net.
        recipe: how to train; the optimizer is Adam and is kept over all rounds.
        share: of the images that carry the trigger.
        distillation: share, in [0, 1], of the cross-entropy with the label that is replaced by the
            divergence from the answer without trigger and purifier.
        temperature: of that divergence.
        alignment: w_a.
        pixels: w_p within ``limit``.
        far: w_p beyond it.
        limit: mean square of normalised pixels.
        noise: standard deviation of what is added before the purifier, in normalised pixels, when
            it is trained and when it is used.
        strengths: as in ``GeneratedUnlearning``.
        augment: the same.
    """

    generator: Literal["residual", "published"] = "residual"
    features: int = 8
    recipe: Recipe = Recipe(
        epochs=8, batch_size=32, learning_rate=2e-3, batch_norm="eval", clip_norm=5.0
    )
    share: float = 0.25
    distillation: float = 1.0
    temperature: float = 2.0
    alignment: float = 0.0
    pixels: float = 1.0
    far: float = 1.0
    limit: float = 0.05
    noise: float = 0.0
    strengths: Literal["all", "full"] = "all"
    augment: Literal["tolerated", "recipe"] = "tolerated"

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.distillation <= 1 and 0 <= self.noise <= 1):
            raise InputError(
                f"share is {self.share}, distillation {self.distillation} and noise {self.noise}; "
                "expected all in [0, 1]"
            )
        if not 0 < self.temperature < float("inf") or self.features < 1:
            raise InputError(
                f"temperature is {self.temperature} and features {self.features}; expected more "
                "than 0, and at least 1"
            )
        if min(self.alignment, self.pixels, self.far, self.limit) < 0:
            raise InputError(
                f"alignment is {self.alignment}, pixels {self.pixels}, far {self.far} and limit "
                f"{self.limit}; expected 0 or more"
            )

    @classmethod
    def published(cls) -> Purifying:
        """The official code's settings for CIFAR-10; without its flip, as signs and digits mind."""
        return cls(
            generator="published",
            recipe=Recipe(
                epochs=30,
                batch_size=128,
                learning_rate=1e-3,
                schedule="constant",
                batch_norm="eval",
                crop_padding=4,
            ),
            share=0.1,
            distillation=0.0,
            alignment=1.0,
            far=100.0,
            noise=0.03,
            strengths="full",
            augment="recipe",
        )


def in_front(classifier: Classifier, purifier: nn.Module, settings: Purifying) -> Classifier:
    """A classifier whose network is that of ``classifier`` (not a copy) behind ``purifier``."""
    pixel_noise = settings.noise * sum(classifier.std) / len(classifier.std)
    network = Purified(
        classifier.network, purifier, mean=classifier.mean, std=classifier.std, noise=pixel_noise
    )
    return Classifier(
        network.to(classifier.device),
        mean=classifier.mean,
        std=classifier.std,
        classes=classifier.classes,
        input_size=classifier.input_size,
    ).trace(classifier.input_shape)


def purifying_loss(
    original: Classifier, stamps: Sequence[Stamp], settings: Purifying, *, anchor: Split
) -> Loss:
    """Returns the loss of the purifier, for ``training.fit`` on a classifier of ``in_front``.

    Args:
        original: the classifier without purifier, in eval mode.
        stamps: the triggers; each batch gets one of them, drawn at random. They get no gradients.
        settings: how.
        anchor: ``original``, cut where maps are aligned.
    """
    share = GeneratedUnlearning(share=settings.share, strengths=settings.strengths)

    def loss(
        classifier: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        assert isinstance(classifier.network, Purified)  # noqa: S101 (made by in_front)
        which = int(torch.randint(len(stamps), (), generator=generator))
        purified = classifier.network.purify(stamp_some(images, stamps[which], share, generator))
        maps, answers = anchor.both(purified)
        total = (1 - settings.distillation) * F.cross_entropy(answers, labels)
        with torch.no_grad():
            plain, wanted = anchor.both(images)
        if settings.distillation:
            total = total + settings.distillation * divergence(
                answers, wanted, settings.temperature
            )
        if settings.alignment:
            total = total + settings.alignment * F.mse_loss(maps, plain)
        away = F.mse_loss(original.normalise(purified), original.normalise(images))
        weight = settings.far if float(away.detach()) > settings.limit else settings.pixels
        return total + weight * away

    return loss
