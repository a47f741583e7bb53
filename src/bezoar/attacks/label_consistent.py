"""Label-consistent (Turner et al. 2019, arXiv 1912.02771): hard images with a trigger.

Poisoned images keep their true label. Each is first made hard to classify, by an adversarial
perturbation against another network, ``argmax L(f(x'), y)`` over ``‖x' − x‖ ≤ ε``; then it gets the
trigger. A network that cannot tell what it sees learns the trigger instead. At test time the
trigger goes on untouched images.

From the authors' code (MadryLab/label-consistent-backdoor-code): the 3x3 pattern, alone or in all
four corners (mirrored, so that a flip does not change it); replaced pixels at full amplitude, else
added and clipped, ``clip(x + amplitude · pattern)`` with a pattern of ±1 and 0 says both; the
bounds, 8, 16 and 32 of 255 in L∞ or 300, 600 and 1200 of 255 in L2 on CIFAR-10. The perturbations
of the paper come from an adversarially trained network. Ours: the surrogate is whatever is given,
usually a plainly trained network, whose perturbations carry over to other networks less well; 100
steps of 1.5 ε / 100; the L∞ bound as the default, because it does not depend on the image size.

Rate: a share of all images; the paper speaks of the target class (0.1 of ten classes is all of it).

Known weak points: weak at low rates and in short trainings, since the perturbed images must stay
hard for the victim; random crops cut corners off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.attacks.attack import Attack, Mode, attacks
from bezoar.attacks.perturbing import Norm, perturb
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import Progress, no_progress

_PATTERN = ((-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, -1.0, 1.0))  # of the right corners
_CHUNK = 256  # images perturbed at a time: the backward pass needs the memory


@attacks.register("label-consistent")
class LabelConsistent(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Adversarial perturbation in training, a 3x3 pattern in the corners always.

    Attributes:
        corners: ``all`` four, or ``bottom-right`` only.
        amplitude: of the pattern, in (0, 1]; 1 replaces the pixels, the authors also use 32 / 255.
        norm: of the perturbation.
        epsilon: its bound in pixels of [0, 1]; 0 leaves the images as they are.
        steps: of projected gradient descent.
    """

    name: ClassVar[str] = "label-consistent"
    title: ClassVar[str] = "Label-consistent: hard images of the target class with a pattern"
    paper: ClassVar[str] = "Turner et al. 2019, arXiv 1912.02771"
    clean_label: ClassVar[bool] = True
    modes: ClassVar[tuple[Mode, ...]] = ("all-to-one",)
    needs_surrogate: ClassVar[bool] = True

    corners: Literal["all", "bottom-right"] = "all"
    amplitude: float = 1.0
    norm: Norm = "linf"
    epsilon: float = 16 / 255
    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.amplitude <= 1:
            raise InputError(f"amplitude {self.amplitude} must be greater than 0 and at most 1")
        if not 0 <= self.epsilon < float("inf") or self.steps < 1:
            raise InputError(
                f"epsilon {self.epsilon} must be at least 0 and steps {self.steps} at least 1"
            )

    def draw(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """``pattern``, shape (1, h, w): 1, −1, and 0 where nothing changes."""
        _, height, width = shape
        needed = 6 if self.corners == "all" else 3
        if min(height, width) < needed:
            raise InputError(
                f"the pattern ({self.corners}) needs images of at least {needed}x{needed}, and "
                f"these are {height}x{width}"
            )
        patch = torch.tensor(_PATTERN)
        pattern = torch.zeros(1, height, width)
        pattern[0, -3:, -3:] = patch
        if self.corners == "all":
            pattern[0, :3, -3:] = patch
            pattern[0, :3, :3] = pattern[0, -3:, :3] = patch.flip(1)
        return {"pattern": pattern}

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Adds the pattern to images (n, c, h, w) and clips to [0, 1]."""
        return (images + self.amplitude * tensors["pattern"].to(images)).clamp(0, 1)

    def prepare(
        self,
        images: ImageSet,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """This attack with the surrogate at hand, for ``poison``; its trigger stays the same."""
        attack = msgspec.structs.replace(self)
        attack.__dict__["surrogate"] = surrogate
        return attack

    def stamp_for_training(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, *, cover: bool
    ) -> Tensor:
        """Perturbs, then stamps.

        Raises:
            InputError: no surrogate is at hand.
        """
        surrogate: Classifier | None = self.__dict__.get("surrogate")
        if surrogate is None:
            raise InputError(
                f"{self.name} makes its training images with a network trained on clean images; "
                "call prepare with a surrogate first, or plant"
            )
        parts = zip(torch.split(images, _CHUNK), torch.split(labels, _CHUNK), strict=True)
        return self.stamp(torch.cat([self.harden(*part, surrogate) for part in parts]))

    def harden(self, images: Tensor, labels: Tensor, surrogate: Classifier) -> Tensor:
        """Images within ε on which the surrogate is as wrong as it gets; see the module."""
        there, truth = images.to(surrogate.device), labels.to(surrogate.device)
        with surrogate.evaluating():
            hard = perturb(
                there,
                lambda x: -F.cross_entropy(surrogate(x), truth, reduction="sum"),
                norm=self.norm,
                epsilon=self.epsilon,
                step=1.5 * self.epsilon / self.steps,
                steps=self.steps,
            )
        return hard.to(images.device)
