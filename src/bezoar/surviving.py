"""What of a backdoor survives a repair, judged without the attacker's trigger.

The triggers that the scan of the *original* model recovered, every witness's for every suspect, are
put on held-out images again: as they are, on shifted images, and shifted together with them, since
a repair may have closed the one place where a trigger was found and not its neighbourhood. What
counts is the share of images that a trigger carries into its class beyond those that the repaired
model answers with that class anyway: else its ordinary mistakes would speak for repairs that never
answer with the class again. A repair that unlearned just these kills them whatever it left;
therefore others judge beside them, recovered from the original with another seed, which no repair
is shown. A recovered trigger is not the attacker's. So the repaired model is looked at afresh as
well: a quick scan of it says whether a suspect still stands out, and re-exposure whether one does
once the clean images are unlearned (``audit``), since a repair can hide what it does not remove.
None of these is a measured attack success rate, and a repair can pass them all and leave a part of
the backdoor. Where no witness recovered a trigger in pixel space, Neural Cleanse inverts a patch
for each suspect; and a smooth pattern is looked for where ``smooth-pattern`` did not look.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bezoar.augmentation import crop_and_flip
from bezoar.classifier import Classifier
from bezoar.combining import combine
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import RNP, TAC, BtiDbf, Evidence, PlaneWaves, SmoothPattern
from bezoar.methods.neural_cleanse_inversion import inverted_for
from bezoar.methods.neural_cleanse_schedule import Inversion
from bezoar.methods.neural_cleanse_triggers import pixels_of, predicted
from bezoar.methods.recovered import Trigger, triggers_in
from bezoar.methods.rnp_exposure import why_silent
from bezoar.methods.smooth_inversion import SmoothInversion
from bezoar.methods.smooth_pattern import unusual_smooth

DEAD = 0.1  # a trigger that carries at most this share is dead
ANEW = 101  # added to the seed of the triggers that no repair is shown
USUAL = 0.05  # a class with a larger p-value does not stand out


@dataclass(frozen=True)
class Survival:
    """What is left in a repaired model.

    Attributes:
        carried: for each recovered trigger, "method, class" → the largest share of held-out images
            of other classes that it still carries, beyond those that go there without it.
        p_values: suspect → its p-value in a fresh look; empty where none was possible.
        looked: whether there was a fresh look. Without it nothing counts as removed.
        tried: whether there were images to try every trigger on; likewise.
        exposed: suspect → its p-value in a re-exposure; empty where there was none.
    """

    carried: dict[str, float]
    p_values: dict[int, float]
    looked: bool = True
    tried: bool = True
    exposed: dict[int, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest share; 0 where no trigger was recovered."""
        return max(self.carried.values(), default=0.0)

    @property
    def stands_out(self) -> bool:
        """Whether a suspect is still unusual."""
        return any(p <= USUAL for p in self.p_values.values())

    @property
    def re_exposed(self) -> bool:
        """Whether unlearning the clean images brings a suspect out."""
        return any(p <= USUAL for p in self.exposed.values())

    @property
    def shows(self) -> bool:
        """Whether a suspect is seen, as the network is or when it is audited."""
        return self.stands_out or self.re_exposed

    @property
    def removed(self) -> bool:
        """Whether nothing of the backdoor is seen any more."""
        return self.looked and self.tried and self.worst <= DEAD and not self.shows

    def as_record(self) -> dict[str, Any]:
        """The figures; ``removed`` is None where only a fresh look or other images could tell."""
        alive = self.worst > DEAD or self.shows
        unknown = not alive and not (self.looked and self.tried)
        return {
            "carried": dict(self.carried),
            "worst": self.worst if self.tried or self.carried else None,
            "p_values": {str(k): p for k, p in self.p_values.items()},
            "exposed": {str(k): p for k, p in self.exposed.items()},
            "removed": None if unknown else self.removed,
        }


class Survivors:
    """The triggers that a scan recovered for its suspects, ready to be tried on repairs.

    ``triggers`` are the scan's, and what was looked for beside them; a repair may unlearn them.

    Args:
        original: the suspect model.
        evidence: what the witnesses saw in it.
        suspects: the classes whose triggers count.
        known: images for the fresh look at a repair.
        held_out: images that triggers are tried on.
        seed: of the shifts.
    """

    def __init__(
        self,
        original: Classifier,
        evidence: Sequence[Evidence],
        suspects: Sequence[int],
        known: ImageSet,
        held_out: ImageSet,
        *,
        seed: int,
    ) -> None:
        self.original, self.suspects, self.known, self.seed = original, suspects, known, seed
        self.triggers = triggers_in(evidence, suspects)
        self.pixels, _ = pixels_of(held_out, original)
        if not self.triggers:  # witnesses that look at features alone: a patch is inverted for each
            self.triggers = self._patches("neural-cleanse", seed)
        self.triggers += self._smooth(SmoothPattern.name, self._unsettled(evidence), seed)

    def _unsettled(self, evidence: Sequence[Evidence]) -> list[int]:
        """The suspects of which the scan does not know whether a smooth pattern leads to them.

        It compares classes with each other, so that of several suspects one may hide another.
        """
        looked = [e for e in evidence if e.method == SmoothPattern.name]
        found = {k for e in looked if e.recovered is not None for k in e.recovered.classes}
        alone = len(self.suspects) == 1
        known = {k for e in looked for k in self.suspects if alone and math.isfinite(e.values[k])}
        return [k for k in self.suspects if k not in found | known]

    @functools.cached_property
    def judging(self) -> list[Trigger]:
        """The scan's triggers, and others of the original that no repair is shown."""
        seed = self.seed + ANEW
        others = self._patches("neural-cleanse again", seed)
        try:
            self.original.trace(self.known.shape)
            found = BtiDbf().inspect(self.original, self.known, seed=seed).recovered
        except InputError:  # the patches are left
            found = None
        if found is not None:
            led = [k for k in self.suspects if k in found.classes]
            others += [Trigger("bti-dbf again", k, found) for k in led]
        smooth = [t.target for t in self.triggers if t.witness == SmoothPattern.name]
        others += self._smooth(f"{SmoothPattern.name} again", smooth, seed)
        return [*self.triggers, *others]

    def after(self, repaired: Classifier) -> Survival:
        """What is left in ``repaired``."""
        return self.expose(repaired, self.look(repaired, self.left(repaired)))

    def left(self, repaired: Classifier) -> Survival:
        """What the triggers still carry, without a fresh look."""
        carried: dict[str, float] = {}
        shares = self._carried_by(repaired, self.judging)
        for t, share in zip(self.judging, shares, strict=True):
            name = f"{t.witness}, class {self.original.classes[t.target]}"
            if share is not None:
                carried[name] = max(share, carried.get(name, 0.0))  # names of classes may repeat
        return Survival(carried, {}, looked=False, tried=None not in shares)

    def look(self, repaired: Classifier, left: Survival) -> Survival:
        """``left`` with a fresh look at ``repaired``."""
        fresh = self._fresh(repaired)
        return dataclasses.replace(left, p_values=fresh, looked=bool(fresh))

    def expose(self, repaired: Classifier, left: Survival) -> Survival:
        """``left`` with what unlearning the clean images brings out in ``repaired``."""
        return dataclasses.replace(left, exposed=self._exposed(repaired))

    def carried(self, classifier: Classifier, trigger: Trigger) -> float | None:
        """The largest share of images of other classes that a trigger carries into its class.

        Those that ``classifier`` answers with it without the trigger are taken off, down to 0. None
        where every held-out image is of that class in the eyes of the original.
        """
        return self._carried_by(classifier, [trigger])[0]

    def worst(self, classifier: Classifier) -> float:
        """The largest share that any trigger carries; 0 where none could be tried."""
        shares = self._carried_by(classifier, self.judging)
        return max((share for share in shares if share is not None), default=0.0)

    def _carried_by(
        self, classifier: Classifier, triggers: Sequence[Trigger]
    ) -> list[float | None]:
        """For each trigger, as it is, on shifted images, and shifted with them."""
        moved = self._moved
        shares: list[float | None] = []
        with classifier.evaluating():
            plain, plain_moved = (predicted(classifier, images) for images in (self.pixels, moved))
            for trigger in triggers:
                others = self._answers != trigger.target
                if not others.any():
                    shares.append(None)
                    continue
                stamped = trigger.stamp(self.pixels)
                pairs = (
                    (stamped, plain),
                    (trigger.stamp(moved), plain_moved),
                    (self._shifted(stamped), plain_moved),
                )
                into = [
                    (predicted(classifier, images)[others] == trigger.target).float().mean()
                    - (without[others] == trigger.target).float().mean()
                    for images, without in pairs
                ]
                shares.append(max(0.0, *map(float, into)))
        return shares

    def _patches(self, name: str, seed: int) -> list[Trigger]:
        """A patch for each suspect."""
        found = inverted_for(self.original, self.known, self.suspects, Inversion(), seed=seed)
        return [Trigger(name, k, found) for k in self.suspects]

    def _smooth(self, name: str, classes: Sequence[int], seed: int) -> list[Trigger]:
        """A smooth pattern for each of these suspects that an unusually weak one leads to."""
        if not classes:
            return []
        found = unusual_smooth(
            self.original,
            self.known,
            classes,
            SmoothInversion(),
            suspects=self.suspects,
            seed=seed,
        )
        return [] if found is None else [Trigger(name, k, found) for k in found.classes]

    @functools.cached_property
    def _answers(self) -> Tensor:
        with self.original.evaluating():
            return predicted(self.original, self.pixels)

    @functools.cached_property
    def _moved(self) -> Tensor:
        """The held-out images, shifted."""
        return self._shifted(self.pixels)

    def _shifted(self, images: Tensor) -> Tensor:
        padding = max(1, min(images.shape[2:]) // 16)
        generator = torch.Generator().manual_seed(self.seed)
        return crop_and_flip(images, padding=padding, flip=False, generator=generator)

    def _fresh(self, repaired: Classifier) -> dict[int, float]:
        """The suspects' p-values in a quick look: TAC's shifts and BTI-DBF's trigger.

        And plane waves, where the original's suspects had one. What a smooth pattern still carries
        is tried already (``judging``), and to search for all classes' again takes too long.
        """
        seen = []
        waved = any(t.witness == PlaneWaves.name for t in self.triggers)
        for witness in (TAC(), BtiDbf(), *([PlaneWaves()] if waved else [])):
            try:
                repaired.trace(self.known.shape)
                seen.append(witness.inspect(repaired, self.known, seed=self.seed))
            except InputError:
                continue  # what made it unusable for one witness is told by the judge
        if not seen:
            return {}
        p_values = combine(seen).p_values
        return {k: p_values[k] for k in self.suspects}

    def _exposed(self, repaired: Classifier) -> dict[int, float]:
        """The suspects' p-values in a re-exposure; empty where it can be of no use."""
        if why_silent(repaired.network, repaired.num_classes, USUAL):
            return {}
        try:
            found = RNP(inversion=None).inspect(repaired, self.known, seed=self.seed)
        except InputError:
            return {}
        return {k: found.p_values[k] for k in self.suspects}
