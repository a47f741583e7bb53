"""``clean`` without a method: several repairs are tried, and the best one is kept.

The repairs are tried from cheap to dear, alone and one after another, on the same images. None sees
the images that judge it: held-out accuracy, and what of the backdoor survives (``surviving``). The
first repair that costs at most two points of accuracy, and in which nothing of the backdoor is seen
any more, ends the search. If none is like that, the one with the best balance is kept,

    score = worst / 2 + max(0, drop) + (1/50 if a suspect still stands out)

where worst is the largest share that a recovered trigger still carries and drop the loss of
accuracy: the first two terms are what DER takes off with recovered triggers for the attacker's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import IBAU, RNP, TAC, BtiDbf, FineTuning, Method, NeuralCleanse, Repair
from bezoar.metrics import Rate, accuracy
from bezoar.surviving import Survival, Survivors
from bezoar.training import Progress, no_progress

STANDS_OUT = 0.02  # a repair may leave the class easy to reach and the trigger dead
CHEAP = 0.02  # a loss of accuracy, in [0, 1], below which nothing better is looked for


@dataclass(frozen=True, eq=False)
class Trial:
    """One repair, or several one after another, and what it is worth.

    Attributes:
        steps: the methods, in their order.
        repair: the last one's; None where a method could not be used.
        accuracy: on held-out images.
        drop: loss of accuracy against the original, in [-1, 1].
        survival: what of the backdoor is left.
        seconds: of the last step and of judging it.
        failure: why there is none.
    """

    steps: tuple[Method, ...]
    repair: Repair | None
    accuracy: Rate | None = None
    drop: float = 0.0
    survival: Survival | None = None
    seconds: float = 0.0
    failure: str = ""

    @property
    def name(self) -> str:
        """The steps in words."""
        return ", then ".join(step.name for step in self.steps)

    @property
    def score(self) -> float:
        """The smaller, the better; infinite where there is no repair."""
        if self.survival is None:
            return float("inf")
        stands_out = STANDS_OUT if self.survival.stands_out else 0.0
        return self.survival.worst / 2 + max(0.0, self.drop) + stands_out

    def as_record(self) -> dict[str, Any]:
        """A row of the table of what was tried."""
        return {
            "steps": [step.name for step in self.steps],
            "accuracy": self.accuracy and self.accuracy.as_record(),
            "accuracy_drop": self.drop if self.survival else None,
            "survival": self.survival and self.survival.as_record(),
            "score": self.score if self.survival else None,
            "seconds": self.seconds,
            "failure": self.failure or None,
        }


def plan_for(
    suspects: Sequence[int], found_by: Method | None = None
) -> tuple[tuple[Method, ...], ...]:
    """What is tried, in its order; a repair that starts with others follows after them.

    Args:
        suspects: classes, most suspicious first.
        found_by: the witness that decided the first one; if it is none of ours and repairs, too,
            it comes last, as it was given.
    """
    first = suspects[0] if suspects else None
    own: list[tuple[Method, ...]] = []
    if found_by is not None and type(found_by).remove is not Method.remove:
        ours = isinstance(found_by, RNP | TAC | BtiDbf | NeuralCleanse | FineTuning | IBAU)
        if "target_class" in found_by.__struct_fields__:
            found_by = replace(found_by, target_class=first)
        own = [] if ours else [(found_by,)]
    forget = FineTuning(schedule="super-convergent")
    prune, generated = RNP(), BtiDbf()
    patch, shift = NeuralCleanse(target_class=first), TAC(target_class=first)
    return (
        (forget,),
        (prune,),
        (generated,),
        (patch,),
        (IBAU(),),
        (generated, patch),
        (shift,),
        *own,
    )


def try_repairs(
    original: Classifier,
    known: ImageSet,
    held_out: ImageSet,
    survivors: Survivors,
    plan: Sequence[tuple[Method, ...]],
    *,
    max_accuracy_drop: float,
    seed: int,
    progress: Progress = no_progress,
) -> tuple[Trial, tuple[Trial, ...]]:
    """Tries the repairs of ``plan`` until one is sufficient.

    Args:
        original: the suspect; it stays as it is.
        known: labelled images that the repairs work on.
        held_out: labelled images that judge them.
        survivors: the triggers of the original.
        plan: methods to apply one after another, from cheap to dear.
        max_accuracy_drop: largest loss of accuracy of a sufficient repair, in [0, 1].
        seed: of the repairs.
        progress: called with what is done and its share.

    Returns:
        The one that is kept, and all in their order.

    Raises:
        InputError: no method of the plan can be used on this network.
    """
    before = _accuracy(original, held_out)
    done: dict[tuple[Method, ...], Repair] = {}
    trials: list[Trial] = []
    for steps in plan:
        started = time.perf_counter()
        start = done.get(steps[:-1])
        if len(steps) > 1 and start is None:
            continue  # what it builds on could not be done, and the table says so
        try:
            repair = steps[-1].remove(
                original if start is None else start.classifier, known, seed=seed, progress=progress
            )
        except InputError as error:
            trials.append(Trial(steps, None, failure=str(error)))
            continue
        done[steps] = repair
        after = _accuracy(repair.classifier, held_out)
        trial = Trial(
            steps,
            repair,
            after,
            before.value - after.value,
            survivors.after(repair.classifier),
            time.perf_counter() - started,
        )
        trials.append(trial)
        if _sufficient(trial, max_accuracy_drop):
            return trial, tuple(trials)
    most = max_accuracy_drop + 1e-12
    best = min(trials, key=lambda trial: (trial.drop > most, trial.score))
    if best.repair is None:
        raise InputError(f"no repair could be made; the first one says: {trials[0].failure}")
    return best, tuple(trials)


def _sufficient(trial: Trial, max_accuracy_drop: float) -> bool:
    left = trial.survival
    most = min(CHEAP, max_accuracy_drop) + 1e-12
    return left is not None and left.removed and trial.drop <= most


def _accuracy(classifier: Classifier, images: ImageSet) -> Rate:
    labels = images.require_labels("judging a repair").to(classifier.device)
    return accuracy(classifier.logits(images).argmax(1), labels)
