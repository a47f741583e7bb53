"""Joint unlearning: every trigger that several methods recovered is unlearned in one training.

Idea: no method recovers the attacker's trigger itself. BTI-DBF finds a change of the whole image,
RNP's and Neural Cleanse's inversions a patch, ``smooth_pattern`` a faint smooth one where there is
any, each another shadow of the same shortcut, and a repair that closes one leaves the others open.
So a copy is fine-tuned on batches of which half the images carry one of the triggers, drawn at
random, at a random part of its strength and shifted by some pixels, as no recovered trigger has
just the attacker's strength and place:

    CE(f(A(x)), y) for images with a trigger,    T^2 KL(f0(x) || f(x)) for images without one

with f0 the network before the repair. A label for the former, since f0's answers still lean
towards the target; f0's answer for the latter, since some hundred labels teach a network less than
it forgets.

Ours. The fine-tuning on stamped images with their true labels is Neural Cleanse's (Wang et al.,
IEEE S&P 2019), random strengths are taken from BTI-DBF's repair here, distillation is Hinton et al.
2015, arXiv 1503.02531. ``clean`` without a method uses the triggers that its scan recovered; alone,
the method recovers them itself: BTI-DBF's and RNP's for the class that both together find most
unusual, and for that class a patch, and a smooth pattern where it is unusually weak.

Assumes one target class. Data: labelled images. Layers: any. Known failures: a trigger that no
recovered one resembles, such as a fine wave over the whole image that ``plane_waves`` did not
recover, or one that was made together with a few changed weights (TBT): the recovered ones die and
the true one lives.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.augmentation import crop_and_flip
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.bti_dbf import BtiDbf
from bezoar.methods.distilling import divergence
from bezoar.methods.method import Evidence, Method, Needs, Repair, check_target_class, methods
from bezoar.methods.neural_cleanse_inversion import inverted_for
from bezoar.methods.neural_cleanse_schedule import Inversion
from bezoar.methods.recovered import Trigger, triggers_in
from bezoar.methods.rnp import RNP
from bezoar.methods.smooth_inversion import SmoothInversion
from bezoar.methods.smooth_pattern import SmoothPattern, unusual_smooth
from bezoar.methods.tolerated import recipe_for
from bezoar.statistics import most_unusual
from bezoar.training import Loss, Progress, Recipe, fit, no_progress

WEAKEST = 0.25  # the smallest part of a trigger's change that is put on


@methods.register("joint-unlearning")
class JointUnlearning(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several methods' triggers for one class, unlearned together.

    Attributes:
        target_class: the class to remove; None takes the one that the witnesses together find most
            unusual.
        generated: how a change of the whole image is recovered.
        exposed: how a patch is recovered from the network without its benign units.
        inversion: how a patch is inverted on the network as it is.
        smooth: how a smooth pattern is; it counts where it is far weaker than other classes'.
        share: of the images that carry a trigger, in [0, 1].
        wanted: what is asked for on images with a trigger: their ``labels``, or the original's
            ``answers`` to them without it.
        temperature: of the divergence from the original's answers.
        shift: triggers are moved by up to this part of the image's side, in [0, 1/2].
        augment: ``tolerated`` uses the flips and shifts that cost the original network no accuracy,
            ``recipe`` what the recipe says. Triggers are put on afterwards.
        recipe: how to fine-tune.
    """

    name: ClassVar[str] = "joint-unlearning"
    title: ClassVar[str] = "Joint unlearning: the triggers of all witnesses at once"
    paper: ClassVar[str] = "bezoar"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any"
    cost: ClassVar[str] = "the scans of bti-dbf and rnp; 20 epochs"

    target_class: int | None = None
    generated: BtiDbf = BtiDbf()
    exposed: RNP = RNP()
    inversion: Inversion = Inversion()
    smooth: SmoothInversion = SmoothInversion()
    share: float = 0.5
    wanted: Literal["labels", "answers"] = "labels"
    temperature: float = 2.0
    shift: float = 1 / 16
    augment: Literal["tolerated", "recipe"] = "tolerated"
    recipe: Recipe = Recipe(epochs=20, batch_size=32, learning_rate=0.01, clip_norm=5.0)

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.shift <= 0.5):
            raise InputError(
                f"share is {self.share} and shift {self.shift}; expected them in [0, 1] and in "
                "[0, 1/2]"
            )
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; expected more than 0")

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Recovers triggers and unlearns them.

        Raises:
            InputError: no labels, or the network has no such target class.
        """
        started = time.perf_counter()
        clean.require_labels("joint unlearning")
        check_target_class(self.target_class, classifier.trace(clean.shape))
        triggers = self.recover(classifier, clean, seed=seed, progress=progress)
        recovered = time.perf_counter() - started
        repair = self.unlearn(classifier, classifier, clean, triggers, seed=seed, progress=progress)
        seconds = repair.record["seconds"] | {"recovering": recovered}
        seconds["total"] += recovered
        return Repair(repair.classifier, repair.record | {"seconds": seconds})

    def unlearn(
        self,
        start: Classifier,
        original: Classifier,
        clean: ImageSet,
        triggers: Sequence[Trigger],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Unlearns triggers that were recovered before.

        Args:
            start: what is copied and trained: the original, or a repair of it.
            original: the network before any repair, whose answers are kept.
            clean: labelled images.
            triggers: at least one.
            seed: of everything drawn at random.
            progress: called with what is done and its share.
        """
        if not triggers:
            raise InputError("there is no recovered trigger to unlearn")
        recipe = recipe_for(self.recipe, self.augment, original, clean, seed=seed)
        repaired, teacher = start.copy(), original.copy()
        teacher.network.eval()
        history = fit(
            repaired,
            clean,
            recipe,
            seed=seed,
            loss=joint_loss(teacher, triggers, self),
            progress=progress,
            what="joint unlearning",
        )
        return Repair(repaired, self._record(triggers, recipe, history.loss, history.seconds))

    def recover(
        self,
        classifier: Classifier,
        clean: ImageSet,
        targets: Sequence[int] = (),
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> list[Trigger]:
        """Triggers for the target class, or for several: at least a patch for each.

        Args:
            classifier: looked at, and left as it is.
            clean: images; with labels RNP looks, too.
            targets: the classes, each once; none takes ``target_class``.
            seed: of everything drawn at random.
            progress: called with what is done and its share.
        """
        evidence: list[Evidence] = []
        for witness in (self.generated, self.exposed):
            try:
                evidence.append(witness.inspect(classifier, clean, seed=seed, progress=progress))
            except InputError:
                continue  # a network that it cannot look at still has patches
        if not targets and self.target_class is not None:
            targets = (self.target_class,)
        if not targets:
            rows = [e.p_values for e in evidence] or [(1.0,) * classifier.num_classes]
            targets = (most_unusual(rows)[0],)
        patches = inverted_for(classifier, clean, targets, self.inversion, seed=seed)
        smooth = unusual_smooth(classifier, clean, targets, self.smooth, seed=seed)
        name = SmoothPattern.name
        return [
            *triggers_in(evidence, targets),
            *([] if smooth is None else [Trigger(name, k, smooth) for k in smooth.classes]),
            *(Trigger("neural-cleanse", k, patches) for k in targets),
        ]

    # -- inner works -----------------------------------------------------------------------------

    def _record(
        self, triggers: Sequence[Trigger], recipe: Recipe, losses: list[float], seconds: float
    ) -> dict[str, Any]:
        epochs = list(range(1, recipe.epochs + 1))
        return {
            "triggers": [{"witness": t.witness, "class": t.target} for t in triggers],
            "target_classes": sorted({t.target for t in triggers}),
            "recipe": msgspec.to_builtins(recipe),
            "curves": [{"name": "training loss", "x_name": "epoch", "x": epochs, "y": losses}],
            "seconds": {"training": seconds, "total": seconds},
        }


def joint_loss(original: Classifier, triggers: Sequence[Trigger], how: JointUnlearning) -> Loss:
    """The loss of the fine-tuning.

    Args:
        original: the network before the repair, in eval mode.
        triggers: each image gets one of them, or none.
        how: the settings.
    """

    def loss(
        classifier: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        shown, carries = stamp_some(images, triggers, how, generator)
        answers = classifier(shown)
        count = len(images)
        labelled = carries if how.wanted == "labels" else torch.zeros_like(carries)
        total = answers.new_zeros(())
        if labelled.any():
            missed = F.cross_entropy(answers[labelled], labels[labelled], reduction="sum")
            total = total + missed / count
        if not labelled.all():
            with torch.no_grad():
                wanted = original(images[~labelled])
            kept = int((~labelled).sum()) / count
            total = total + kept * divergence(answers[~labelled], wanted, how.temperature)
        return total

    return loss


def stamp_some(
    images: Tensor,
    triggers: Sequence[Trigger],
    how: JointUnlearning,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Puts the triggers on a share of the images (n, c, h, w) in [0, 1], drawn at random.

    Returns:
        The images, and which of them carry a trigger, (n,) bool.
    """
    count, device = len(images), images.device
    which = torch.randint(len(triggers), (count,), generator=generator)
    carries = torch.rand(count, generator=generator) < how.share
    part = WEAKEST + (1 - WEAKEST) * torch.rand(count, 1, 1, 1, generator=generator)
    pixels = round(how.shift * min(images.shape[2:]))
    shown = images.clone()
    for number, trigger in enumerate(triggers):
        rows = torch.nonzero((which == number) & carries).flatten()
        if not len(rows):
            continue
        here = rows.to(device)
        with torch.no_grad():
            change = trigger.stamp(images[here]) - images[here]
        if pixels:
            moved = crop_and_flip(change, padding=pixels, flip=False, generator=generator)
            stays = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
            change = torch.where(stays.to(device), change, moved)
        shown[here] = (images[here] + part[rows].to(device) * change).clamp(0, 1)
    return shown, carries.to(device)
