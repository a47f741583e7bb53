"""Poisoning inside the training loop: every batch is stamped anew.

What attackers do who control the training (WaNet, BppAttack, input-aware, LIRA): of each batch,
which comes in random order, the first images that may be poisoned get the trigger and the label of
the attacker, and the next ones a disturbed trigger and keep their label. So every image is stamped
in some epochs and clean in others. The published codes take ``int(rate · batch size)`` images of
any class; here (ours) they are images that the attack applies to, and their number is rounded up or
down at random, so that the expected share of every batch is the rate however small the batch is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bezoar.attacks.attack import Attack, Mode, Planted
from bezoar.attacks.spelling import configuration
from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.networks.generators import rebuilt, weights
from bezoar.training import BatchHook, Progress, Recipe, fit, no_progress


class BatchAttack(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An attack that stamps in the training loop; a subclass that learns there gives a ``hook``."""

    controls: ClassVar[Literal["images", "training", "weights"]] = "training"
    modes: ClassVar[tuple[Mode, ...]] = ("all-to-one", "all-to-all")

    def hook(
        self,
        images: ImageSet,
        rate: float,
        recipe: Recipe,
        device: torch.device,
    ) -> BatchPoisoning:
        """What the training loop calls for every batch, for training on ``device``."""
        return BatchPoisoning(self, rate)

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
        """Trains with a share ``rate`` of every batch stamped: see ``Attack.plant``."""
        attack = self.prepared(
            classifier, images, rate, recipe, seed=seed, surrogate=surrogate, progress=progress
        )
        hook = attack.hook(images, rate, recipe, classifier.device)
        history = fit(
            classifier,
            images,
            recipe,
            seed=seed,
            hook=hook,
            checkpoint=checkpoint,
            progress=progress,
            what=f"training with {self.name}",
        )
        note = f"{rate:.4g} of every batch was stamped anew and got the attacker's label"
        covered = self.cover_rate_for(rate)
        if covered:
            note += f", and {covered:.4g} got a disturbed trigger and kept its own"
        return Planted(hook.learned(), history, notes=(f"{note}.",))


class BatchPoisoning(BatchHook):
    """Stamps each batch; here with a trigger that does not change during the training."""

    def __init__(self, attack: Attack, rate: float) -> None:
        self.attack = attack
        self.rate = rate

    def batch(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The batch with a share of it stamped; see ``choose``."""
        poisoned, covered = choose(self.attack, labels, self.rate, generator)
        stamped = images.clone()
        for where, cover in ((poisoned, False), (covered, True)):
            if len(where):
                stamped[where] = self.attack.stamp_for_training(
                    images[where], labels[where], generator, cover=cover
                )
        return stamped, self.relabelled(labels, poisoned)

    def facts(self) -> dict[str, Any]:
        """The attack and the rate: the images, which tell other trainings apart, stay clean."""
        return {"attack": configuration(self.attack), "rate": self.rate}

    def relabelled(self, labels: Tensor, where: Tensor) -> Tensor:
        """The labels with the attacker's at these positions."""
        labels = labels.clone()
        labels[where] = self.attack.relabel(labels[where])
        return labels

    def learned(self) -> Attack:
        """The attack with the trigger that the training ended with."""
        return self.attack


class GeneratorTraining(BatchPoisoning):
    """Stamps each batch with a generator that learns from the victim's loss on it.

    Args:
        attack: holds the generator's weights under ``prefix``; they stay as they were.
        rate: share of each batch to poison.
        shape: of the images, (c, h, w).
        device: where the training runs.
        build: makes the generator.
        prefix: of the generator's weights among the tensors of the attack.
        learning_rate: of Adam.
        betas: of Adam.
    """

    def __init__(
        self,
        attack: Attack,
        rate: float,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        build: Callable[[], nn.Module],
        prefix: str,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__(attack, rate)
        self.shape = shape
        self.prefix = prefix
        self.tensors = {n: t.to(device, copy=True) for n, t in attack.tensors(shape).items()}
        self.generator = rebuilt(build, self.tensors, prefix).train().requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), learning_rate, betas=betas)

    def after_backward(self) -> None:
        """A step of the generator, where this batch gave it a gradient."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def learned(self) -> Attack:
        """The attack with the generator as it is now."""
        tensors = {**self.tensors, **weights(self.generator, self.prefix)}
        return self.attack.holding(tensors, self.shape)

    def state_dict(self) -> dict[str, Any]:
        """The generator and its optimizer."""
        return {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])


def choose(
    attack: Attack, labels: Tensor, rate: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The positions in a batch that are poisoned and those that are covered.

    Args:
        attack: says which images may be chosen, and how many are covered at this rate.
        labels: the true labels of the batch, shape (n,).
        rate: share of the batch to poison.
        generator: rounds the two numbers.
    """
    wanted = _rounded(rate * len(labels), generator)
    poisoned = torch.nonzero(attack.candidates(labels)).flatten()[:wanted]
    free = attack.cover_candidates(labels)
    free[poisoned] = False
    wanted = _rounded(attack.cover_rate_for(rate) * len(labels), generator)
    return poisoned, torch.nonzero(free).flatten()[:wanted]


def _rounded(number: float, generator: torch.Generator) -> int:
    """The whole number above or below, at random, so that the mean is ``number``."""
    return int(number + float(torch.rand((), generator=generator)))
