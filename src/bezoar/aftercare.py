"""After a repair: does ordinary fine-tuning bring the backdoor back, and what risk is left?

Whoever receives a cleaned model will often train it further. Some repairs only cover a backdoor
up, and a few steps on clean images uncover it (Zhu et al. 2024, "Breaking the False Sense of
Security in Backdoor Defense through Re-Activation Attack", arXiv 2405.16134). So a copy of the
repaired model is fine-tuned for a few steps, and the triggers that the scan of the original
recovered are put on held-out images before and after. The probe is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.surviving import DEAD, Survival, Survivors
from bezoar.training import Progress, Recipe, fit, no_progress

PROBE = Recipe(epochs=3, batch_size=32, learning_rate=0.01, schedule="constant", clip_norm=5.0)
BACK = 0.3  # a trigger that carries this much again is back


@dataclass(frozen=True)
class Probe:
    """What a few steps of ordinary fine-tuning do to a repair.

    Attributes:
        before: the largest share of held-out images that a recovered trigger carries, as it is.
        after: the same after the tuning; None where that could not be made.
        failure: why it could not.
    """

    before: float
    after: float | None
    failure: str = ""

    @property
    def returned(self) -> bool | None:
        """Whether it brings the backdoor back; None where it could not be tried."""
        if self.after is None:
            return None
        return self.after >= BACK and self.after > self.before + DEAD

    @property
    def revived(self) -> float | None:
        """The share that dead triggers carry once more, where it does not count as back; or None.

        It is told and is no sign: of 40 repairs that left them dead (``benchmarks/automatic.py``,
        *tuned*), nine came to this, and with the true trigger eight of these had an ASR of 0 to 8 %
        and the ninth of 22 %.
        """
        if self.after is None or self.returned or not self.before <= DEAD < self.after:
            return None
        return self.after

    @property
    def sentence(self) -> str:
        """What was seen."""
        if self.after is None:
            return f"Whether fine-tuning brings it back could not be tried: {self.failure}."
        if self.returned:
            begins = "Fine-tuning brings it back: the recovered triggers"
        elif self.revived is not None:
            begins = "Fine-tuning brings a part of it back: the recovered triggers"
        elif self.before > DEAD:  # it never left
            begins = "The recovered triggers still"
        else:
            begins = "Fine-tuning does not bring it back: the recovered triggers"
        return (
            f"{begins} carry {100 * self.before:.0f} % of held-out images before and "
            f"{100 * self.after:.0f} % after {PROBE.epochs} epochs of ordinary fine-tuning."
        )

    def as_record(self) -> dict[str, Any]:
        """The figures, and the sentence."""
        return {
            "recipe": {"epochs": PROBE.epochs, "learning_rate": PROBE.learning_rate},
            "before": self.before,
            "after": self.after,
            "returned": self.returned,
            "sentence": self.sentence,
        }


def retuning_probe(
    repaired: Classifier,
    known: ImageSet,
    survivors: Survivors,
    left: Survival,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> Probe:
    """Tunes a copy for a few steps and puts the recovered triggers on held-out images.

    Where the tuning cannot be made, the probe says so: it must not cost the repair.

    Args:
        repaired: stays as it is.
        known: labelled images to tune on.
        survivors: the triggers of the original model.
        left: what of them is left in ``repaired``.
        seed: of the tuning.
        progress: called with what is done and its share.
    """
    if not left.tried:
        return Probe(left.worst, None, "no other class is among the held-out images")
    tuned = repaired.copy()
    try:
        fit(tuned, known, PROBE, seed=seed, progress=progress, what="trying a few steps of tuning")
    except InputError as error:
        return Probe(left.worst, None, str(error))
    return Probe(left.worst, survivors.worst(tuned))


NOTHING_TO_WATCH = (
    "Residual risk: the scan found nothing, so there is no sign of a backdoor to watch; one that "
    "the scan does not see may be left whole."
)
NEW_SUSPECT = "a class stands out that did not before the repair"
NEWLY_SUSPECTED = (
    f"Residual risk: {NEW_SUSPECT}; do not rely on this model without further tests. One "
    "backdoor-free network in twenty is suspected by chance."
)


def signs_of_backdoor(
    *, stands_out: bool | None, re_exposed: bool, returned: bool | None, worst: float
) -> list[str]:
    """What still speaks for a backdoor in a repaired model, each in a few words.

    Args:
        stands_out: whether a scan of it still finds a class unusual; None where nobody looked.
        re_exposed: whether unlearning the clean images brings a suspect out.
        returned: whether tuning brought the backdoor back; None where that could not be tried.
        worst: the largest share of the images that a recovered trigger still carries.
    """
    signs = []
    if stands_out:
        signs.append("a class still stands out")
    if re_exposed:
        signs.append("unlearning the clean images brings a suspected class out")
    if worst > DEAD:
        signs.append(f"a recovered trigger still carries {100 * worst:.0f} % of the images")
    if returned:
        signs.append("fine-tuning brings the backdoor back")
    return signs


def residual_risk(
    signs: Sequence[str],
    *,
    looked: bool,
    tried: bool,
    audited: bool,
    probe: Probe,
    labelled: bool,
) -> str:
    """One line on what is left to fear.

    Args:
        signs: of ``signs_of_backdoor``.
        looked: whether a witness could look at the repaired model.
        tried: whether there were images to try the recovered triggers on.
        audited: whether unlearning the clean images could tell anything.
        probe: what a tuning did.
        labelled: whether accuracy was measured.
    """
    told = list(signs)
    if not looked:
        told.append("no witness could look at the repaired model")
    if not tried:
        told.append("the recovered triggers could not be tried on images of other classes")
    if not audited:
        told.append("whether unlearning brings a class out could not be tried")
    if probe.after is None:
        told.append("whether fine-tuning brings the backdoor back could not be tried")
    if not labelled:
        told.append("accuracy could not be measured")
    if told:
        listed = ", ".join(told[:-1]) + " and " * (len(told) > 1) + told[-1]
        return f"Residual risk: {listed}; do not rely on this model without further tests."
    again = ""
    if probe.revived is not None:
        again = (
            f" Fine-tuning revives a recovered trigger to {100 * probe.revived:.0f} % of the "
            "images: scan the model again after any further training."
        )
    return (
        "Residual risk: none of the signs of the backdoor is left, but recovered triggers are not "
        f"the attacker's; a part that only the true trigger reaches would not be seen here.{again}"
    )
