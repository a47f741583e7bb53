"""LIRA (Doan et al. 2021, ICCV): the trigger generator learns with the victim, then is fixed.

Stamped is ``T(x) = clip(x + ε · t(x))`` with a generator t in [-1, 1], so no pixel changes by more
than ε. The paper minimises over the victim θ and the generator ξ

    a · Σ L(f_θ(x), y) + b · Σ L(f_θ(T_ξ(x)), η(y))   with ξ = argmin Σ L(f_θ(T_ξ(x)), η(y)),

in two stages: first alternating steps of θ and ξ, then ξ stays and θ is fine-tuned.

Paper and official code: a = b = 0.5 (there alpha and beta); ε = 0.1 in normalised CIFAR-10 units,
about 0.025 of the pixel range (and down to 0.01 in the second stage on MNIST); a U-Net of 64 to 512
channels (an autoencoder for GTSRB and Tiny ImageNet); Adam at 1e-4 for ξ, SGD at 0.01 for θ; 50
epochs of the first stage and 250 of the second. There the code trains a new victim, while the
paper speaks of fine-tuning.

Ours: the poison rate takes the place of b (0.5 is the paper's): a share of each batch is stamped,
not all of it twice. One pass serves both steps, so the gradient by ξ is taken at θ before its own
step, not after it, and the victim sees the newest ξ, not the one of the last epoch. Both stages are
one training of the given recipe: ``first_stage`` of it trains both, the rest, where the learning
rate falls, is the fine-tuning. A small U-Net, with group normalisation.

Weak points: a short first stage leaves a trigger that is little more than noise; ``learning_rate``
above the published one helps then. Where ε is below a few 8-bit steps, rounding eats the trigger.
What is learned can be a universal adversarial perturbation of the clean network as much as a
backdoor: compare with the ASR of a clean twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bezoar.attacks.attack import attacks
from bezoar.attacks.batch_poisoning import BatchAttack, BatchPoisoning, GeneratorTraining, choose
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.networks.generators import UNet, drawn, rebuilt, weights
from bezoar.training import Progress, Recipe, no_progress


@attacks.register("lira")
class LIRA(BatchAttack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Adds learned noise, bounded in every pixel.

    Attributes:
        bound: ε, the largest change of a pixel, in [0, 1].
        first_stage: share of the training in which the generator learns too.
        learning_rate: of the generator.
        width: channels of the generator's first level; 64 as published.
        depth: levels of the generator.
    """

    name: ClassVar[str] = "lira"
    title: ClassVar[str] = "LIRA: learned noise, bounded in every pixel"
    paper: ClassVar[str] = "Doan et al. 2021, ICCV"

    bound: float = 0.025
    first_stage: float = 0.5
    learning_rate: float = 1e-4
    width: int = 8
    depth: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bound", "first_stage"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(
                    f"{name} {getattr(self, name)} must be greater than 0 and at most 1"
                )
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate is {self.learning_rate}; expected more than 0")
        for name in ("width", "depth"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")

    @property
    def learned(self) -> bool:
        """Always."""
        return True

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """``clip(x + ε · t(x))``."""
        channels = images.shape[1]
        generator = rebuilt(lambda: self._build(channels), tensors, "generator")
        return disturbed(images, generator(images), self.bound)

    def prepare(
        self,
        images: ImageSet,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """Draws the generator that the victim's training will teach."""
        generator = drawn(lambda: self._build(images.shape[0]), seed)
        return self.holding(weights(generator, "generator"), images.shape)

    def hook(
        self, images: ImageSet, rate: float, recipe: Recipe, device: torch.device
    ) -> BatchPoisoning:
        """Trains the generator with the victim in the first stage."""
        steps = recipe.epochs * -(-len(images) // recipe.batch_size)
        return _Disturbing(self, rate, images.shape, device, round(self.first_stage * steps))

    def _build(self, channels: int) -> UNet:
        return UNet(channels, channels, width=self.width, depth=self.depth, output="tanh")


class _Disturbing(GeneratorTraining):
    """Stamps each batch; in the first ``steps`` batches the generator learns."""

    attack: LIRA

    def __init__(
        self,
        attack: LIRA,
        rate: float,
        shape: tuple[int, int, int],
        device: torch.device,
        steps: int,
    ) -> None:
        super().__init__(
            attack,
            rate,
            shape,
            device,
            build=lambda: attack._build(shape[0]),
            prefix="generator",
            learning_rate=attack.learning_rate,
        )
        self.steps_left = steps

    def batch(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The batch with some images stamped; in the first stage the stamps carry gradients."""
        poisoned, _ = choose(self.attack, labels, self.rate, generator)
        mixed = images.clone()
        with torch.set_grad_enabled(self.steps_left > 0):
            own = images[poisoned]
            mixed[poisoned] = disturbed(own, self.generator(own), self.attack.bound)
        return mixed, self.relabelled(labels, poisoned)

    def after_backward(self) -> None:
        """A step of the generator in the first stage."""
        super().after_backward()
        self.steps_left -= 1

    def state_dict(self) -> dict[str, Any]:
        """The generator, its optimizer, and how far the first stage is."""
        return {**super().state_dict(), "steps_left": self.steps_left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        super().load_state_dict(state)
        self.steps_left = state["steps_left"]


def disturbed(images: Tensor, noise: Tensor, bound: float) -> Tensor:
    """``clip(x + ε · t)`` for noise in [-1, 1]."""
    return (images + bound * noise).clamp(0, 1)
