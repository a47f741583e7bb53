"""NAD, neural attention distillation: fine-tune, and look where a fine-tuned teacher looks.

Idea: a copy that was fine-tuned on the clean images (the teacher) has forgotten some of the
backdoor. The backdoored network (the student) is fine-tuned as well, and its attention, which
positions of its feature maps are active, has to be the teacher's; the two together forget more
than the teacher did alone:

    L = CE(f_s(x), y) + sum_l beta_l MSE( A(F_l^s), A(F_l^t) )
    A(F) = sum_c |F_c|^p, divided by its L2 norm over the positions

The maps F_l, of any network, and A are in ``nad_maps``; the mean is over positions and images. The
teacher runs in eval mode and gets no gradient, and all maps of the student come from the one
forward pass that its answers come from, so that running statistics move once a step.

Paper: Li, Lyu, Koren, Lyu, Li, Ma, "Neural Attention Distillation: Erasing Backdoor Triggers from
Deep Neural Networks", ICLR 2021, arXiv 2101.05930. Its body could not be reached: the loss, beta
and the settings of ``published`` are those of the released code, a WRN-16-1 on CIFAR-10.

Ours: which maps are taken of other networks. The default also multiplies the mean over the
positions by their number: normalised attention has a square length of 1 over all of them, so that
its mean falls with the size of the map, and a beta of the released code holds for one size only.
The default beta 0.5, 4 and 16 are 500, 1000 and 1000 over 1024, 256 and 64 positions, rounded.
Smaller batches, a rate that falls along a cosine, a limit for the gradient's norm, and the
augmentation that the network tolerates are ours, too.

A network without such maps is refused, and not fine-tuned under this name: who compares methods
would read a number of NAD that is none.

Data: labelled clean images. Layers: any network with a feature map of several positions. Known
failures: the teacher caps the result: where fine-tuning leaves the backdoor, the student is asked
to look where a backdoored network looks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self

import msgspec
import torch

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.epoch_curves import epoch_curves
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.methods.nad_alignment import Alignment, Mean
from bezoar.methods.nad_maps import FeatureMap, find_maps, watched
from bezoar.methods.progress_parts import part_of
from bezoar.methods.tolerated import with_tolerated_augmentation
from bezoar.training import History, Loss, Progress, Recipe, fit, no_progress


@methods.register("nad")
class NAD(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fine-tuning with the attention maps of a fine-tuned teacher.

    Attributes:
        betas: weights of the maps, the deepest last; a network with fewer maps takes the last ones.
        power: p of the attention, at least 1.
        mean: over ``positions`` or over the ``map``, see ``misalignment``.
        teacher: how the teacher is fine-tuned.
        student: how the student is trained; its epochs are its own.
        start: what comes before either recipe, with the same momentum; None begins with them.
        augment: ``tolerated`` uses the flips and shifts that cost the original network no accuracy,
            ``recipe`` what the recipes say.
    """

    name: ClassVar[str] = "nad"
    title: ClassVar[str] = "Neural attention distillation"
    paper: ClassVar[str] = "Li et al. 2021, arXiv 2101.05930"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any with a feature map of several positions"
    cost: ClassVar[str] = "30 epochs on the clean images, and 20 passes of the teacher"

    betas: tuple[float, ...] = (0.5, 4.0, 16.0)
    power: float = 2.0
    mean: Mean = "map"
    teacher: Recipe = Recipe(epochs=10, batch_size=32, learning_rate=0.05, clip_norm=5.0)
    student: Recipe = Recipe(epochs=20, batch_size=32, learning_rate=0.05, clip_norm=5.0)
    start: Recipe | None = None
    augment: Literal["tolerated", "recipe"] = "tolerated"

    def __post_init__(self) -> None:
        if not self.betas or not all(0 <= beta < math.inf for beta in self.betas):
            raise InputError(
                f"betas is {self.betas}; expected a weight of 0 or more for each map, at least one"
            )
        if not 1 <= self.power < math.inf:
            raise InputError(f"power is {self.power}; expected a number of 1 or more")

    @classmethod
    def published(cls) -> Self:
        """The released code's settings for a WRN-16-1 on CIFAR-10: 20 epochs, a teacher of 10.

        Two epochs at rate 0.1, then 0.01; its rate of 1e-4 begins with epoch 20, which 20 epochs do
        not reach. The teacher has the same schedule and 10 of the 5 to 10 epochs that the authors
        name. A later version of the code weighs the last map alone, with 5000. The code also cuts a
        hole of 2x2 pixels into every image (Cutout), which is left out here.
        """
        recipe = Recipe(
            epochs=18,
            batch_size=64,
            learning_rate=0.01,
            schedule="constant",
            weight_decay=1e-4,
            crop_padding=4,
            flip=True,
        )
        return cls(
            betas=(500.0, 1000.0, 1000.0),
            mean="positions",
            teacher=msgspec.structs.replace(recipe, epochs=8),
            student=recipe,
            start=msgspec.structs.replace(recipe, epochs=2, learning_rate=0.1),
            augment="recipe",
        )

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a copy that was distilled from a fine-tuned copy.

        Raises:
            InputError: no labels, or some that the network has no logit for; no map to align; or a
                training diverged.
        """
        clean.require_labels("NAD")
        clean.class_counts(classifier.trace(clean.shape).num_classes)
        few, _ = next(clean.batches(2, device=classifier.device))
        maps = find_maps(classifier, few, len(self.betas))
        betas = self.betas[len(self.betas) - len(maps) :]
        started = time.perf_counter()
        teacher, student = classifier.copy(), classifier.copy()
        lessons, exercises = self._stages(classifier, clean, seed)
        taught = self._fit(
            teacher, clean, lessons, None, seed=seed, progress=part_of(progress, 0.0, 0.3)
        )
        fine_tuned = time.perf_counter()
        teacher.network.requires_grad_(False)
        alignment = Alignment(teacher, maps, betas, self.power, self.mean)
        with (
            watched(teacher.network, maps) as theirs,
            watched(student.network, maps) as ours,
        ):
            history = self._fit(
                student,
                clean,
                exercises,
                alignment.loss(ours, theirs),
                seed=seed,
                progress=part_of(progress, 0.3, 1.0),
                before_epoch=alignment.next_epoch,
            )
        return Repair(
            student,
            {
                "maps": [
                    {"layer": one.layer, "positions": list(one.positions), "beta": beta}
                    for one, beta in zip(maps, betas, strict=True)
                ],
                "augmentation": {
                    "flip": exercises[-1].flip,
                    "crop_padding": exercises[-1].crop_padding,
                },
                "history": {"teacher": taught.loss, "student": history.loss},
                "flags": _flags(maps, self.betas),
                "curves": _curves(taught, history, maps, alignment.by_epoch()),
                "seconds": {
                    "fine-tuning the teacher": fine_tuned - started,
                    "distilling": time.perf_counter() - fine_tuned,
                },
            },
        )

    def _stages(
        self, classifier: Classifier, clean: ImageSet, seed: int
    ) -> tuple[list[Recipe], list[Recipe]]:
        """What the teacher and what the student are trained by."""
        start = [] if self.start is None else [self.start]
        lessons, exercises = [*start, self.teacher], [*start, self.student]
        if self.augment == "recipe":
            return lessons, exercises
        found = with_tolerated_augmentation(self.student, classifier, clean, seed=seed)

        def tolerated(recipes: list[Recipe]) -> list[Recipe]:
            return [
                msgspec.structs.replace(one, flip=found.flip, crop_padding=found.crop_padding)
                for one in recipes
            ]

        return tolerated(lessons), tolerated(exercises)

    def _fit(
        self,
        classifier: Classifier,
        clean: ImageSet,
        stages: Sequence[Recipe],
        loss: Loss | None,
        *,
        seed: int,
        progress: Progress,
        before_epoch: Callable[[int], None] | None = None,
    ) -> History:
        """The stages one after another, by one optimizer."""
        recipe = stages[-1]
        optimizer = torch.optim.SGD(
            classifier.network.parameters(),
            recipe.learning_rate,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )
        total, done, found = sum(stage.epochs for stage in stages), 0, History()
        for number, stage in enumerate(stages):
            history = fit(
                classifier,
                clean,
                stage,
                seed=seed + number,
                loss=loss,
                optimizer=optimizer,
                before_epoch=before_epoch,
                progress=part_of(progress, done / total, (done + stage.epochs) / total),
                what="NAD: distilling attention" if loss else "NAD: fine-tuning the teacher",
            )
            done += stage.epochs
            found.loss += history.loss
            found.seconds += history.seconds
        return found


def _flags(maps: Sequence[FeatureMap], betas: Sequence[float]) -> list[str]:
    if len(maps) == len(betas):
        return []
    return [
        f"The network has {len(maps)} feature maps to align, not {len(betas)}; the last "
        f"{len(maps)} of betas were used."
    ]


def _curves(
    taught: History, history: History, maps: Sequence[FeatureMap], apart: Sequence[list[float]]
) -> list[dict[str, Any]]:
    lines = {"loss of the teacher": taught.loss, "loss of the student": history.loss}
    for number, one in enumerate(maps):
        lines[f"attention apart at {one.layer}"] = [means[number] for means in apart]
    return epoch_curves(lines)
