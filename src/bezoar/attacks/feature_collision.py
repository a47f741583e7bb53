"""Feature collision as a backdoor: the hidden trigger (Saha et al. 2020, arXiv 1910.00033).

Poison Frogs (Shafahi et al. 2018, arXiv 1804.00792) makes images of the target class collide in
feature space with one test image, which is then misclassified: there is no trigger, and no ASR. The
hidden trigger is the same collision with stamped images, and so the form that a benchmark of
backdoors can measure. A poisoned image z stays near an image t of the target class and keeps its
label, while a trained network sees in it an image s of another class with the trigger:

    min over ‖z − t‖∞ ≤ ε of  ‖features(z) − features(stamped s)‖²

The victim fine-tunes that same network (transfer learning): ``plant`` starts from the surrogate's
weights. The trigger appears in no training image.

From the paper and its code (UMBCvision/Hidden-Trigger-Backdoor-Attacks): ε 16 of 255; a patch of
4x4 random colours resized (30 pixels of 224, here 4 of 32); the features are the input of the final
layer, which alone is trained again; each z is paired with its nearest s, no s twice. Theirs: 5,000
gradient steps from 0.01, pairs found anew at each, patches at random places, two classes in most
experiments. Ours: signed steps of 2.5 ε / 200, 200 of them; pairs found once, among a random draw
of stamped images; the patch one pixel from the lower right corner; SGD over the recipe's batches,
30 epochs from 0.001 by default (their numbers, for one source class), BatchNorm's statistics fixed.

Rate: a share of all images. ``sources`` restricts s to those classes (``source-specific``, the
paper's first setting; nothing is covered, so other classes may follow the trigger too).

Known weak points: the weakest attack here. One patch has to work from all classes through a new
final layer alone, on a network that was never taught to see the patch; and a victim that trains
from scratch forgets the collision.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.attacks.attack import Attack, Mode, Planted, attacks
from bezoar.attacks.clean_start import start_clean
from bezoar.attacks.perturbing import perturb
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import Progress, Recipe, fit, no_progress

_CHUNK = 256  # images collided at a time: the backward pass needs the memory
_SOURCES = 2048  # stamped images to pair with


@attacks.register("feature-collision")
class FeatureCollision(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Images of the target class with the features of stamped images; a random patch at test time.

    Attributes:
        size: side of the patch in pixels.
        margin: pixels between the patch and the lower right corner's edges.
        pattern_seed: which colours.
        epsilon: the bound of the perturbation in pixels of [0, 1], L∞.
        steps: of projected gradient descent.
        tuned: what the victim trains again, the final layer (``head``) or ``all``.
        epochs: of that.
        learning_rate: of that, falling to 0.
    """

    name: ClassVar[str] = "feature-collision"
    title: ClassVar[str] = "Feature collision: a hidden trigger"
    paper: ClassVar[str] = "Saha et al. 2020, arXiv 1910.00033"
    clean_label: ClassVar[bool] = True
    modes: ClassVar[tuple[Mode, ...]] = ("all-to-one", "source-specific")
    needs_surrogate: ClassVar[bool] = True

    size: int = 4
    margin: int = 1
    pattern_seed: int = 0
    epsilon: float = 16 / 255
    steps: int = 200
    tuned: Literal["head", "all"] = "head"
    epochs: int = 30
    learning_rate: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1 or self.margin < 0:
            raise InputError(
                f"size {self.size} must be at least 1 and margin {self.margin} at least 0"
            )
        if not 0 < self.epsilon < float("inf") or self.steps < 1 or self.epochs < 1:
            raise InputError(
                f"epsilon {self.epsilon} must be above 0, and steps {self.steps} and epochs "
                f"{self.epochs} at least 1"
            )
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate is {self.learning_rate}; expected more than 0")

    def cover_rate_for(self, rate: float) -> float:
        """0: this attack covers nothing."""
        return 0.0

    def draw(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """``pattern``, shape (c, h, w), and ``mask``, (1, h, w), 1 where the pattern replaces."""
        channels, height, width = shape
        if self.size + self.margin > min(height, width):
            raise InputError(
                f"a patch of {self.size} pixels, {self.margin} from the edge, does not fit images "
                f"of {height}x{width}"
            )
        generator = torch.Generator().manual_seed(self.pattern_seed)
        colours = torch.rand(1, channels, 4, 4, generator=generator)
        pattern, mask = torch.zeros(shape), torch.zeros(1, height, width)
        last = slice(-self.size - self.margin, -self.margin or None)
        pattern[:, last, last] = F.interpolate(colours, (self.size, self.size), mode="bilinear")[0]
        mask[:, last, last] = 1
        return {"pattern": pattern, "mask": mask}

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Replaces the patch's pixels on images (n, c, h, w) in [0, 1]."""
        return torch.where(tensors["mask"] > 0, tensors["pattern"].to(images), images)

    def prepare(
        self,
        images: ImageSet,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """This attack with the surrogate and the features to collide with at hand."""
        if surrogate is None:
            raise InputError(
                f"{self.name} makes its training images with a network trained on clean images; "
                "give a surrogate"
            )
        labels = images.require_labels(self.name)
        wanted = images.subset(torch.nonzero(self.applies_to(labels)).flatten())
        wanted = wanted.sample(_SOURCES, seed=seed)
        with surrogate.evaluating(), torch.no_grad():
            batches = wanted.batches(_CHUNK, device=surrogate.device)
            goals = torch.cat([surrogate.features(self.stamp(batch)) for batch, _ in batches])
        attack = msgspec.structs.replace(self)
        attack.__dict__.update(surrogate=surrogate, goals=goals)
        return attack

    def stamp_for_training(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, *, cover: bool
    ) -> Tensor:
        """Images that collide with stamped ones; they carry no trigger.

        Raises:
            InputError: no surrogate is at hand.
        """
        surrogate: Classifier | None = self.__dict__.get("surrogate")
        if surrogate is None:
            raise InputError(
                f"{self.name} makes its training images with a network trained on clean images; "
                "call prepare with a surrogate first, or plant"
            )
        goals: Tensor = self.__dict__["goals"]
        parts = []
        for part in torch.split(images.to(surrogate.device), _CHUNK):
            drawn = torch.randperm(len(goals), generator=generator)[: len(part)]
            parts.append(self.collide(part, goals[drawn.to(goals.device)], surrogate))
        return torch.cat(parts).to(images.device)

    def collide(self, images: Tensor, goals: Tensor, surrogate: Classifier) -> Tensor:
        """Images within ε whose features come near ``goals``, (m, d), each near its own."""
        with surrogate.evaluating():
            with torch.no_grad():
                own = goals[nearest_pairs(surrogate.features(images), goals)]
            return perturb(
                images,
                lambda z: (surrogate.features(z) - own).square().sum(),
                norm="linf",
                epsilon=self.epsilon,
                step=2.5 * self.epsilon / self.steps,
                steps=self.steps,
            )

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
        """Trains ``classifier`` on clean images, or copies ``surrogate``, then fine-tunes it.

        Raises:
            InputError: see ``check``; the surrogate is another network; or the training diverged.
        """
        classifier.trace(images.shape)
        self.check(images, rate, classifier.num_classes)
        self.stamp(images.images[:1].float() / 255)
        start_clean(
            classifier,
            images,
            recipe,
            seed=seed,
            surrogate=surrogate,
            checkpoint=checkpoint,
            progress=progress,
        )
        attack = self.prepare(images, seed=seed, surrogate=classifier, progress=progress)
        poisoned = attack.poison(images, rate, seed=seed)
        head = classifier.network.get_submodule(classifier.head.name.rpartition(".")[0])
        tuned = head if self.tuned == "head" else classifier.network
        history = fit(
            classifier,
            poisoned.images,
            msgspec.structs.replace(
                recipe,
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                schedule="cosine",
                batch_norm="eval",
            ),
            seed=seed,
            parameters=list(tuned.parameters()),
            progress=progress,
            what=f"fine-tuning with {self.name}",
        )
        note = f"the victim fine-tuned {self.tuned} of a network that was trained on clean images"
        return Planted(self, history, int(poisoned.where.sum()), notes=(note,))


def nearest_pairs(features: Tensor, goals: Tensor) -> Tensor:
    """For each of ``features`` (n, d) the position of its goal (m, d); none twice while they last.

    The closest pair of all is taken first, then the closest of those left.
    """
    apart = torch.cdist(features.float(), goals.float()).cpu()
    distances = apart.clone()
    pairs = torch.zeros(len(features), dtype=torch.int64)
    free = torch.ones(len(features), dtype=torch.bool)
    for _ in range(len(features)):
        if bool(distances[free].isinf().all()):  # fewer goals than features: all are free again
            distances[free] = apart[free]
        row, column = divmod(int(distances.argmin()), len(goals))
        pairs[row], free[row] = column, False
        distances[row], distances[:, column] = float("inf"), float("inf")
    return pairs.to(goals.device)
