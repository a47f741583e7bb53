"""Neural Cleanse: the class that a small patch reaches, found by inverting a trigger for each.

Idea: where a backdoor is, a *small* patch moves the images of all other classes into the target
class; into any other class only a large one does. For each class k a mask m and a pattern D are
optimised so that A(x) = (1 - m) x + m D is answered with k and |m|_1 is small
(``neural_cleanse_inversion``). The class with an unusually small |m|_1 is the suspect. To remove
the backdoor, a copy is fine-tuned on clean images of which a fifth carry the found trigger and keep
their *true* labels.

Paper: Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural
Networks", IEEE S&P 2019 (it has no arXiv number); inversion and outlier test after its official
code. There a class is flagged if its norm lies more than 2 MADs below the median. The paper's text
could not be reached: the fine-tuning (10 % of the training data, a fifth stamped, one epoch) is
given from memory, its learning rate is not known. The paper's other repair, pruning of neurons that
the trigger activates, is not here.

Ours: a short schedule; all classes in one batch; images that show a class or are answered with it
do not count for it; the test takes log |m|_1, because norms are positive and a backdoor shortens
one by a factor (a raw index can never exceed median / MAD, however small the norm), and corrects
for having picked the smallest of C (``bezoar.statistics.mad_outliers``); the proof on held-out
images; the fine-tuning asks for the original network's answer to the image without the trigger.

Assumes one target class or few, and a trigger that is a small patch at a fixed place. Data:
inspection needs images without labels, removal needs labels. Layers: any. Known failures: triggers
that are large or faint (Blend), warp the image (WaNet), or differ from image to image;
all-to-all; a class that is naturally close to all others looks like a target; MAD over ten norms is
coarse, so that weak backdoors stay below the corrected limit; three classes or fewer cannot be
tested. The found patch is rarely the true one: unlearning it can leave part of the backdoor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import msgspec

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.method import (
    HELD_OUT,
    Evidence,
    Method,
    Needs,
    Repair,
    check_target_class,
    methods,
)
from bezoar.methods.neural_cleanse_inversion import inverted_for
from bezoar.methods.neural_cleanse_schedule import Inversion
from bezoar.methods.neural_cleanse_triggers import Triggers, pixels_of
from bezoar.methods.neural_cleanse_unlearning import unlearning_loss
from bezoar.methods.tolerated import recipe_for
from bezoar.statistics import FEWEST_CLASSES, Outliers, mad_outliers
from bezoar.training import Progress, Recipe, fit, no_progress
from bezoar.wording import PATCH, PATCH_OF_SOME

CUT = 2.0  # the paper's: an anomaly index above it is an outlier
LEVEL = 0.05  # p-value of a class that is removed without being named (ours)


@methods.register("neural-cleanse")
class NeuralCleanse(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A trigger inverted for each class; the unusually small ones are unlearned.

    Attributes:
        target_class: the class to remove; None takes all that are flagged, or else the one with the
            smallest mask.
        classes: a scan inverts triggers for these alone, at least four, and the others take no part
            in its test; None takes all. The test corrects for the number that it compares.
        inversion: how triggers are inverted.
        images: at most so many clean images take part in the inversion; None takes all.
        outliers: ``corrected`` tests the logarithms of the norms and flags classes at p <= 0.05,
            corrected for having picked the smallest; ``published`` takes the norms themselves and
            flags every class with an anomaly index above 2.
        share: of the fine-tuning's images that carry a trigger, in [0, 1].
        distillation: share, in [0, 1], of the cross-entropy with the label that is replaced by the
            divergence from the original network's answer to the image without the trigger.
        temperature: of that divergence.
        augment: ``tolerated`` uses the flips and shifts that cost the original network no accuracy,
            ``recipe`` what the recipe says. The trigger is put on afterwards, at its place.
        recipe: how to fine-tune.
    """

    name: ClassVar[str] = "neural-cleanse"
    title: ClassVar[str] = "Neural Cleanse: the smallest trigger of each class"
    paper: ClassVar[str] = "Wang et al. 2019, IEEE S&P"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any"
    cost: ClassVar[str] = "up to 1440 images forward and backward for each class; 20 epochs"
    inspects: ClassVar[bool] = True

    target_class: int | None = None
    classes: tuple[int, ...] | None = None
    inversion: Inversion = Inversion()
    images: int | None = 500
    outliers: Literal["corrected", "published"] = "corrected"
    share: float = 0.5
    distillation: float = 1.0
    temperature: float = 2.0
    augment: Literal["tolerated", "recipe"] = "tolerated"
    recipe: Recipe = Recipe(epochs=20, batch_size=32, learning_rate=0.01, clip_norm=5.0)

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.distillation <= 1):
            raise InputError(
                f"share is {self.share} and distillation {self.distillation}; expected both in "
                "[0, 1]"
            )
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}; expected more than 0")
        if self.classes is not None and len(set(self.classes)) < FEWEST_CLASSES:
            raise InputError(
                f"classes are {self.classes}; expected at least {FEWEST_CLASSES} different ones, "
                "or None for all"
            )
        if self.images is not None and self.images < 2:
            raise InputError(f"images is {self.images}; expected at least 2, or None for all")

    @classmethod
    def published(cls) -> Self:
        """The official code's inversion and cut; one epoch with a fifth of the images stamped.

        The optimizer and the learning rate of the fine-tuning are not known; these are ours.
        """
        return cls(
            inversion=Inversion.published(),
            images=None,
            outliers="published",
            share=0.2,
            distillation=0.0,
            augment="recipe",
            recipe=Recipe(epochs=1, batch_size=32, learning_rate=0.01, schedule="constant"),
        )

    def inspect(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Evidence:
        """Inverts a trigger for each class on four fifths of the images, tries it on the rest."""
        started = time.perf_counter()
        known, held_out = clean.split(1 - HELD_OUT, seed=seed)  # what judges is never inverted on
        known = self._some(known, seed)
        for k in self.classes or ():
            check_target_class(k, classifier.trace(clean.shape))
        chosen = None if self.classes is None else sorted(set(self.classes))
        triggers = self._invert(classifier, known, chosen, seed=seed, progress=progress)
        inverted = time.perf_counter()
        carried = (0.0,) * len(triggers.classes)
        if len(held_out):
            pixels, labels = pixels_of(held_out, classifier)
            with classifier.evaluating():
                carried = tuple(triggers.carried(classifier, pixels, labels).tolist())
        outliers = self._outliers(triggers)
        record = self._record(triggers) | {
            "paper": self.paper,
            "configuration": self.configuration(),
            "seconds": {"inverting": inverted - started, "trying": time.perf_counter() - inverted},
        }
        logs = self.outliers == "corrected"

        def of_all(row: Sequence[float], elsewhere: float) -> tuple[float, ...]:
            known = dict(zip(triggers.classes, row, strict=True))
            return tuple(known.get(k, elsewhere) for k in range(classifier.num_classes))

        return Evidence(
            method=self.name,
            statistic="L1 norm of the smallest mask that carries images into the class",
            values=of_all(triggers.norms.tolist(), math.inf),
            scores=of_all(outliers.scores, math.nan),
            p_values=of_all(outliers.p_values, 1.0),
            outliers="mad" if logs else None,
            null=(
                f"{'logarithms of the norms' if logs else 'norms'}, each against the median in "
                "MADs: the smallest of C independent normal values (simulated)"
            ),
            carried=of_all(carried, 0.0),
            recovered=triggers,
            record=record
            | {"norms": list(of_all(record["norms"], math.inf))}
            | {"anomaly_index": list(of_all(record["anomaly_index"], math.nan))},
            words=PATCH if chosen is None else PATCH_OF_SOME,
        )

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Fine-tunes a copy until the found triggers no longer change its answers.

        Raises:
            InputError: no labels, or the network has no such target class.
        """
        started = time.perf_counter()
        clean.require_labels("Neural Cleanse's fine-tuning")
        check_target_class(self.target_class, classifier.trace(clean.shape))
        chosen = None if self.target_class is None else [self.target_class]
        some = self._some(clean, seed)
        triggers = self._invert(classifier, some, chosen, seed=seed, progress=progress)
        inverted = time.perf_counter()
        targets = chosen or self._targets(triggers)
        recipe = recipe_for(self.recipe, self.augment, classifier, clean, seed=seed)
        repaired, original = classifier.copy(), classifier.copy()
        original.network.eval()
        history = fit(
            repaired,
            clean,
            recipe,
            seed=seed,
            loss=unlearning_loss(
                original,
                triggers,
                targets,
                share=self.share,
                distillation=self.distillation,
                temperature=self.temperature,
            ),
            progress=progress,
            what="Neural Cleanse: unlearning the trigger",
        )
        curve = {"name": "training loss", "x_name": "epoch", "y": history.loss}
        return Repair(
            repaired,
            self._record(triggers)
            | {
                "target_classes": targets,
                "recipe": msgspec.to_builtins(recipe),
                "curves": [curve | {"x": list(range(1, recipe.epochs + 1))}],
                "seconds": {
                    "inverting": inverted - started,
                    "training": history.seconds,
                    "total": time.perf_counter() - started,
                },
            },
        )

    # -- inner works -----------------------------------------------------------------------------

    def _some(self, clean: ImageSet, seed: int) -> ImageSet:
        return clean if self.images is None else clean.sample(self.images, seed=seed)

    def _invert(
        self,
        classifier: Classifier,
        clean: ImageSet,
        classes: list[int] | None = None,
        *,
        seed: int,
        progress: Progress,
    ) -> Triggers:
        classifier.trace(clean.shape)
        classes = classes or list(range(classifier.num_classes))
        return inverted_for(
            classifier, clean, classes, self.inversion, seed=seed, progress=progress
        )

    def _outliers(self, triggers: Triggers) -> Outliers:
        norms = triggers.norms.tolist()
        if self.outliers == "published":
            return mad_outliers(norms)
        return mad_outliers([math.log(norm) if norm > 0 else math.inf for norm in norms])

    def _flagged(self, triggers: Triggers) -> list[int]:
        """The unusually small classes, smallest first."""
        outliers = self._outliers(triggers)
        if self.outliers == "published":
            small = [score < -CUT for score in outliers.scores]
        else:
            small = [p <= LEVEL for p in outliers.p_values]
        norms = triggers.norms.tolist()
        rows = sorted((row for row, flag in enumerate(small) if flag), key=norms.__getitem__)
        return [triggers.classes[row] for row in rows]

    def _targets(self, triggers: Triggers) -> list[int]:
        """The flagged classes, else the smallest; where no trigger works, the one nearest to it."""
        nearest = min(
            range(len(triggers.classes)),
            key=lambda row: (float(triggers.norms[row]), -float(triggers.success[row])),
        )
        return self._flagged(triggers) or [triggers.classes[nearest]]

    def _record(self, triggers: Triggers) -> dict[str, Any]:
        index = mad_outliers(triggers.norms.tolist())
        return {
            "classes": list(triggers.classes),
            "norms": triggers.norms.tolist(),
            "success": triggers.success.tolist(),
            "counted_images": list(triggers.counted),
            "anomaly_index": [-score for score in index.scores],
            "published_flags": [score < -CUT for score in index.scores],
            "lambda": list(triggers.penalties),
            "epochs": list(triggers.epochs),
            "image_passes": triggers.passes,
        }
