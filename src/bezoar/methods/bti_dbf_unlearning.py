"""BTI-DBF (U): what the recovered trigger does is unlearned.

A share of each batch carries the generated trigger and keeps its true label, and the maps of an
image with and without it are drawn together:

    CE(f(x~), y) + w MSE(a(x), a(x~))                x~: x, with the trigger on a share of the rows

Paper: Xu et al., ICLR 2024 (OpenReview Tw9wemV6cb); the alignment is in its official code alone,
where both maps come from the network in training, which shrinking maps please as well.

Ours: the wanted answer is the original network's to the plain image, at a temperature, and so is
the map that the maps are drawn to, if at all (``anchor``): a small set of labels teaches a network
less than it forgets. The trigger comes in all strengths, since its weaker forms work, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.distilling import divergence
from bezoar.recipe import Recipe
from bezoar.splitting import Split
from bezoar.training import Loss

Stamp = Callable[[Tensor], Tensor]
"""Images (n, c, h, w) in [0, 1] → the same with the trigger."""


class GeneratedUnlearning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a network is trained on generated triggers, in each round.

    Attributes:
        recipe: how to train.
        optimizer: ``sgd`` is new in each round; ``adam`` is kept over all rounds (official code).
        share: of the images that carry the trigger; the official code puts it on one more image of
            each batch than that share, rounded down.
        distillation: share, in [0, 1], of the cross-entropy with the label that is replaced by the
            divergence from the original network's answer to the plain image.
        temperature: of that divergence.
        alignment: w, of the mean square between the maps.
        anchor: where the maps of plain images come from: the ``original`` network or the ``live``
            one in training.
        strengths: ``all`` scales each image's trigger by a random factor in [0.25, 1], ``full``
            never does.
        augment: ``tolerated`` uses the flips and shifts that cost the original network no accuracy,
            ``recipe`` what the recipe says.
    """

    recipe: Recipe = Recipe(epochs=4, batch_size=64, learning_rate=0.01, clip_norm=5.0)
    optimizer: Literal["sgd", "adam"] = "sgd"
    share: float = 0.1
    distillation: float = 1.0
    temperature: float = 2.0
    alignment: float = 0.0
    anchor: Literal["original", "live"] = "original"
    strengths: Literal["all", "full"] = "all"
    augment: Literal["tolerated", "recipe"] = "tolerated"

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.distillation <= 1):
            raise InputError(
                f"share is {self.share} and distillation {self.distillation}; expected both in "
                "[0, 1]"
            )
        if not (0 < self.temperature < float("inf") and 0 <= self.alignment < float("inf")):
            raise InputError(
                f"temperature is {self.temperature} and alignment {self.alignment}; expected more "
                "than 0, and 0 or more"
            )

    @classmethod
    def published(cls) -> GeneratedUnlearning:
        """The official code's settings for CIFAR-10; without its flip, as signs and digits mind."""
        return cls(
            recipe=Recipe(
                epochs=30,
                batch_size=128,
                learning_rate=1e-4,
                schedule="constant",
                crop_padding=4,
            ),
            optimizer="adam",
            share=0.1,
            distillation=0.0,
            alignment=1.0,
            anchor="live",
            strengths="full",
            augment="recipe",
        )


def generated_loss(
    original: Classifier,
    stamps: Sequence[Stamp],
    settings: GeneratedUnlearning,
    *,
    live: Split,
    anchor: Split,
) -> Loss:
    """Returns the loss of the unlearning.

    Args:
        original: the network before the repair, in eval mode.
        stamps: the triggers; each batch gets one of them, drawn at random. They get no gradients.
        settings: how.
        live: the network in training, cut where maps are aligned.
        anchor: the original network, cut at the same layer.
    """

    def loss(
        classifier: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        which = int(torch.randint(len(stamps), (), generator=generator))
        shown = stamp_some(images, stamps[which], settings, generator)
        if settings.alignment:
            maps, answers = live.both(shown)
        else:
            answers = classifier(shown)
        total = (1 - settings.distillation) * F.cross_entropy(answers, labels)
        if settings.distillation:
            with torch.no_grad():
                wanted = original(images)
            total = total + settings.distillation * divergence(
                answers, wanted, settings.temperature
            )
        if settings.alignment:
            if settings.anchor == "live":
                plain = live.front(images)
            else:
                with torch.no_grad():
                    plain = anchor.front(images)
            total = total + settings.alignment * F.mse_loss(maps, plain)
        return total

    return loss


def stamp_some(
    images: Tensor, stamp: Stamp, settings: GeneratedUnlearning, generator: torch.Generator
) -> Tensor:
    """Puts the trigger on a share of the images (n, c, h, w) in [0, 1], drawn at random."""
    count = min(len(images), int(settings.share * len(images)) + 1) if settings.share else 0
    chosen = torch.randperm(len(images), generator=generator)[:count].to(images.device)
    if not count:
        return images
    with torch.no_grad():
        plain = images[chosen]
        change = stamp(plain) - plain
        if settings.strengths == "all":
            factor = 0.25 + 0.75 * torch.rand(count, 1, 1, 1, generator=generator)
            change = change * factor.to(images.device)
    shown = images.clone()  # with the graph of images that need gradients (``training.fit``)
    shown[chosen] = plain + change
    return shown
