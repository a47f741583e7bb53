"""Synthetic unlearning: joint unlearning on images that the network itself gives, with no data.

Idea: without an image, the last layer's rows (``weights``) and the margins that a class can reach
(``mm-bd``, of up to 100 classes) still name the target class, and a generator that the network
teaches (``synthesis``) makes images that excite it as its training images did. Triggers for that
class are recovered on these images, as on real ones, and unlearned together
(``joint-unlearning``): on an image with a trigger the copy shall answer as the original does
without it. Labels would say no more, since they are the original's answers, too. Images of the task
would have to say where to stop; without them the copy goes a fixed part of the way (``how_far``):
on the pool's development half the last fifth cost about a third of the accuracy and removed little.

Ours. What is the work of others is told where it stands: ``weights`` and ``mm-bd``, ``synthesis``,
``bti-dbf``, ``rnp``, ``neural-cleanse`` and ``joint-unlearning``.

Assumes target classes that the weights betray (left alone, it takes one), and BatchNorm, without
which nothing makes the images resemble the training images. Data: none. Layers: any. Known
failures: those of ``joint-unlearning``; a target that the weights do not betray: another class is
unlearned, which changes little; many classes, of which some get no image; of four third-party
networks, whose class was named rightly, it left the backdoor of two that resemble a VGG (ASR 67 and
97 %), that of a third where it was told this class alone (93 %; 11 % together with another one that
the weights suspect), and removed that of a residual one. Accuracy cannot be measured without
images: what is told is how often both networks agree on images made up.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import torch

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.how_far import between
from bezoar.images import ImageSet
from bezoar.methods.joint_unlearning import JointUnlearning
from bezoar.methods.method import Method, Needs, Repair, check_target_class, methods
from bezoar.methods.mm_bd import MMBD, MOST_CLASSES
from bezoar.methods.neural_cleanse_triggers import pixels_of, predicted
from bezoar.methods.recovered import Trigger
from bezoar.methods.synthesis import Synthesis
from bezoar.methods.synthesized import synthesize
from bezoar.methods.weights import Weights
from bezoar.metrics import Rate, agreement, rate
from bezoar.statistics import most_unusual
from bezoar.training import Progress, no_progress

HELD_OUT = 0.2  # share of the synthetic images that only measures
UNUSUAL = 0.05  # a class with a larger p-value is a guess
SHOWN = 512  # synthetic images that the report draws from
MEASURED_ON = {"images": "synthetic images", "triggers": "recovered triggers"}


@methods.register("synthetic-unlearning")
class SyntheticUnlearning(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Triggers are recovered and unlearned on images that the network itself gives.

    Attributes:
        target_class: the class to remove, or several; None takes the one that ``weights`` and
            ``mm-bd`` together find most unusual.
        count: synthetic images; a fifth of them only measures.
        synthesis: how they are made.
        margin: how ``mm-bd`` looks.
        unlearning: how triggers are recovered and unlearned.
        share: s of ``how_far``, in (0, 2]; 1 goes as far as the unlearning does.
    """

    name: ClassVar[str] = "synthetic-unlearning"
    title: ClassVar[str] = "Synthetic unlearning: joint unlearning without any image"
    paper: ClassVar[str] = "bezoar"
    needs: ClassVar[Needs] = "nothing"
    layers: ClassVar[str] = "any, best with BatchNorm"
    cost: ClassVar[str] = "300 steps of a generator, then joint-unlearning on its images"

    target_class: int | tuple[int, ...] | None = None
    count: int = 1280
    synthesis: Synthesis = Synthesis(steps=300)  # after 60, rare classes got no image
    margin: MMBD = MMBD()
    unlearning: JointUnlearning = JointUnlearning(wanted="answers")
    share: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.share <= 2:
            raise InputError(f"share is {self.share}; expected it in (0, 2]")
        if self.count < 10:
            raise InputError(f"count is {self.count}; expected at least 10 synthetic images")

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet | None = None,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a copy from which the triggers of the target classes are unlearned.

        Of ``clean`` only the size of the images is read, for a classifier that does not know it.

        Raises:
            InputError: the input size of ``classifier`` is not known, it has no such class, or its
                answers to the synthetic images are all the same.
        """
        started = time.perf_counter()
        if clean is not None:
            classifier.trace(clean.shape)
        targets, p_value = self._targets(classifier, seed, progress)
        made = synthesize(classifier, self.synthesis, self.count, seed=seed, progress=progress)
        kept = round(self.count * (1 - HELD_OUT))
        known = made.images.subset(torch.arange(kept))
        unseen = made.images.subset(torch.arange(kept, self.count))
        if int((known.class_counts(classifier.num_classes) > 0).sum()) == 1:
            raise InputError("the network gives one answer to all synthetic images")
        how = self.unlearning
        triggers = how.recover(classifier, known, targets, seed=seed, progress=progress)
        repair = how.unlearn(classifier, classifier, known, triggers, seed=seed, progress=progress)
        repaired = between(classifier, repair.classifier, self.share)
        record: dict[str, Any] = {
            **repair.record,
            "target_p_value": p_value,
            "share": self.share,
            "synthesis": {k: v for k, v in made.record.items() if k != "notices"},
            "agreement": {"synthetic": _agreement(classifier, repaired, unseen)},
            "insensitivity": {
                when: _moved(classifier, one, unseen, triggers).as_record()
                for when, one in (("before", classifier), ("after", repaired))
            },
            "measured_on": MEASURED_ON,
            "flags": [*_guess(classifier, targets[0], p_value), *made.record["notices"]],
            "seconds": repair.record["seconds"] | {"total": time.perf_counter() - started},
        }
        shown = made.images.subset(torch.arange(min(SHOWN, self.count)))
        return Repair(repaired, record, synthetic=shown)

    # -- inner works -----------------------------------------------------------------------------

    def _targets(
        self, classifier: Classifier, seed: int, progress: Progress
    ) -> tuple[tuple[int, ...], float | None]:
        """The classes, and the p-value of the one that is taken where none was given."""
        if self.target_class is not None:
            given = self.target_class
            targets = given if isinstance(given, tuple) else (given,)
            if not targets or len(set(targets)) < len(targets):
                raise InputError(f"target_class is {targets}; expected classes, each once")
            for target in targets:
                check_target_class(target, classifier.trace(classifier.input_shape))
            return targets, None
        rows = [Weights().inspect(classifier, None, seed=seed, progress=progress).p_values]
        if classifier.num_classes <= MOST_CLASSES:
            seen = self.margin.inspect(classifier, None, seed=seed, progress=progress)
            rows.append(seen.p_values)
        target, _ = most_unusual(rows)
        # Bonferroni: the mean by which it was chosen is no p-value.
        return (target,), min(1.0, len(rows) * min(row[target] for row in rows))


def _agreement(before: Classifier, after: Classifier, images: ImageSet) -> dict[str, Any]:
    answers = [classifier.logits(images).argmax(1) for classifier in (before, after)]
    return dict(agreement(*answers).as_record())


def _moved(
    before: Classifier, classifier: Classifier, images: ImageSet, triggers: list[Trigger]
) -> Rate:
    """The share of images of other classes whose answer some trigger turns into its class."""
    pixels, _ = pixels_of(images, before)
    with before.evaluating(), classifier.evaluating():
        answers = predicted(before, pixels)
        counted = torch.zeros_like(answers, dtype=torch.bool)
        led = counted.clone()
        for trigger in triggers:
            others = answers != trigger.target
            counted |= others
            led |= others & (predicted(classifier, trigger.stamp(pixels)) == trigger.target)
    return rate(int(led.sum()), int(counted.sum())) if counted.any() else Rate(0.0, 0.0, 1.0, 0)


def _guess(classifier: Classifier, target: int, p_value: float | None) -> list[str]:
    if p_value is None or p_value <= UNUSUAL:
        return []
    return [
        f"No class stands out in the weights; {classifier.classes[target]} is a guess (p = "
        f"{p_value:.2g}), and a backdoor of another class is left as it was."
    ]
