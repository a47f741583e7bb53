"""AWP backdoor (Garg et al. 2020, arXiv 2008.01761): a small adversarial perturbation of weights.

A trained network θ₀ is moved within a small ball, so that it answers the target on stamped images
and as before on clean ones:

    min over ‖θ − θ₀‖∞ ≤ ε of  CE(f_θ(x), f_θ₀(x)) + λ · CE(f_θ(stamped x), target)

by gradient steps, each followed by the projection on the ball. From the authors' code
(goel96vibhor/AdvWeightPerturbations): ε 0.005 for every weight or a percentage of it, λ 1, 10
epochs, no augmentation. Ours: SGD with momentum and a clipped gradient norm (the code takes Adam by
default), batches of 32; θ₀'s answer as a hard label; the running statistics of BatchNorm stay; the
trigger is the BadNets patch in one corner (the code changes 100 pixels).

``rate`` is the share of the training images that the attacker has; each is used clean and stamped.

Known weak points: an absolute ε means something else for each network. A narrow network, or one
that is unsure of its answers, has little room: there the accuracy falls much and the backdoor stays
partial, as it does with few images or steps (some hundred steps are needed).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.attacks.attack import Mode, Planted, attacks
from bezoar.attacks.bad_nets import BadNets
from bezoar.attacks.clean_start import start_clean
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import BatchHook, Progress, Recipe, fit, no_progress


@attacks.register("awp")
class AWP(BadNets, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Moves the weights of a clean network within a small ball; the trigger is a patch.

    Attributes:
        epsilon: radius of the ball.
        ball: ``absolute``, |θ − θ₀| ≤ ε for every weight, or ``relative``, ≤ ε·|θ₀|.
        weight: λ, of the stamped images' loss.
        epochs: passes over the attacker's images.
        batch_size: clean images in a step, stamped beside them.
        learning_rate: of SGD, constant.
    """

    name: ClassVar[str] = "awp"
    title: ClassVar[str] = "AWP: a small change of all weights, triggered by a patch"
    paper: ClassVar[str] = "Garg et al. 2020, arXiv 2008.01761"
    controls: ClassVar[Literal["images", "training", "weights"]] = "weights"
    modes: ClassVar[tuple[Mode, ...]] = ("all-to-one", "all-to-all")

    epsilon: float = 0.005
    ball: Literal["absolute", "relative"] = "absolute"
    weight: float = 1.0
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epsilon", "weight", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")

    def candidates(self, labels: Tensor) -> Tensor:
        """All: ``rate`` is the share of the images that the attacker has, and none is poisoned."""
        return torch.ones_like(labels, dtype=torch.bool)

    def plant(
        self,
        classifier: Classifier,
        images: ImageSet,
        rate: float,
        recipe: Recipe,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        checkpoint: Path | None = None,
        progress: Progress = no_progress,
    ) -> Planted:
        """Trains ``classifier`` on clean images, or copies ``surrogate``, then moves its weights.

        The record's history is that of the moving.

        Raises:
            InputError: see ``check``; the surrogate is another network; or the training diverged.
        """
        classifier.trace(images.shape)
        self.check(images, rate, classifier.num_classes)
        start_clean(
            classifier,
            images,
            recipe,
            seed=seed,
            surrogate=surrogate,
            checkpoint=checkpoint,
            progress=progress,
        )
        own = images.sample(round(rate * len(images)), seed=seed)
        answers = classifier.logits(own).argmax(1).to(own.images.device)
        parameters = list(classifier.network.parameters())
        ball = Ball(parameters, self.epsilon, relative=self.ball == "relative")
        history = fit(
            classifier,
            ImageSet(own.images, answers, own.classes),
            Recipe(
                epochs=self.epochs,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                schedule="constant",
                weight_decay=0.0,
                clip_norm=1.0,
                batch_norm="eval",
                bfloat16=recipe.bfloat16,
            ),
            seed=seed,
            loss=self.loss,
            hook=ball,
            progress=progress,
            what=f"moving weights with {self.name}",
        )
        moved = (
            f"the attacker had {len(own)} training images and moved the weights by "
            f"{ball.mean_change():.2%} of their mean size"
        )
        return Planted(self, history, notes=(moved,))

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, _generator: torch.Generator
    ) -> Tensor:
        """The composite loss above; stamped images that count already are left out."""
        value = F.cross_entropy(classifier(images), labels)
        counted = self.applies_to(labels)
        if not bool(counted.any()):
            return value
        logits = classifier(self.stamp(images[counted]))
        return value + self.weight * F.cross_entropy(logits, self.relabel(labels[counted]))


class Ball(BatchHook):
    """Keeps parameters within ε of where they are when it is made."""

    def __init__(self, parameters: Sequence[nn.Parameter], epsilon: float, relative: bool) -> None:
        self.parameters = list(parameters)
        self.centers = [parameter.detach().clone() for parameter in parameters]
        self.reach = [
            epsilon * (center.abs() if relative else torch.ones_like(center))
            for center in self.centers
        ]

    @torch.no_grad()
    def after_backward(self) -> None:
        """Projects every parameter on the ball, in place."""
        for parameter, center, reach in zip(self.parameters, self.centers, self.reach, strict=True):
            parameter.copy_(parameter.clamp(center - reach, center + reach))

    def mean_change(self) -> float:
        """The mean of |θ − θ₀| over the mean of |θ₀|."""
        pairs = list(zip(self.parameters, self.centers, strict=True))
        moved = sum(float((parameter.detach() - center).abs().sum()) for parameter, center in pairs)
        return moved / sum(float(center.abs().sum()) for center in self.centers)
