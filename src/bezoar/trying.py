"""``clean`` without a method: several repairs are tried, and the best one is kept.

The repairs are tried in a fixed order, alone and one after another, on the same images. The order
was chosen on the pool's development half and is not that of their cost. Pruning is no step: on the
five networks of that half on which none of these ends the search, the best of CLP, RNP and ANP,
alone or with the unlearning after them, has a slightly better balance on two and a worse one in the
mean (``benchmarks/pruning_first.py``). Triggers are unlearned three times, each with batches of its
own, and the mean of the three networks is the repair (``Unlearning``). A method that a network does
not suit, say for want of a last linear layer, is a row of the table with the reason.

None sees the images that judge it: held-out accuracy, and what of the backdoor survives
(``surviving``), by triggers that no repair was shown, too. The first repair that costs at most two
points of accuracy, and in which nothing of the backdoor is seen any more, ends the search, and so
does one whose balance leaves nothing to gain. If none is like that, the one with the best balance
is kept,

    score = worst / 2 + max(0, drop) + (1/50 if a suspect stands out, as it is or when audited)

where worst is the largest share that a recovered trigger still carries and drop the loss of
accuracy (``accuracy_loss``): the first two terms are what DER takes off with recovered triggers for
the attacker's. Repairs beyond the user's limit come last. By these two terms each repair also
decides how far to go on its way (``how_far``), and one that they already put behind the best one is
not looked at afresh. One that would be kept is audited: the clean images are unlearned, and a
suspect that this brings out stands out. If it would be kept still, it is tuned for a few steps
(``aftercare``): where that brings the backdoor back, the repair only covers it up. Then worst is
the share after the tuning, and the search goes on.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec.structs import replace

from bezoar.accuracy_loss import AccuracyLoss, Baseline
from bezoar.aftercare import Probe, retuning_probe
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.how_far import mean_of, walk
from bezoar.images import ImageSet
from bezoar.methods import (
    IBAU,
    RNP,
    SAU,
    TAC,
    BtiDbf,
    JointUnlearning,
    Method,
    NeuralCleanse,
    Repair,
)
from bezoar.methods.progress_parts import part_of
from bezoar.surviving import DEAD, Survival, Survivors
from bezoar.training import Progress, no_progress
from bezoar.wording import repair_in_words

STANDS_OUT = 0.02  # a repair may leave the class easy to reach and the trigger dead
CHEAP = 0.02  # a loss of accuracy, in [0, 1], below which nothing better is looked for
ENOUGH = 0.025  # a score below which nothing better is looked for
RUNS = 3  # of an unlearning, whose weights are averaged
_APART = 1_000_003  # between the seeds of these runs, so that small seeds of users share none


class Step(Protocol):
    """A method, or what serves as one."""

    @property
    def name(self) -> str:
        """The method's name."""

    def remove(
        self, classifier: Classifier, clean: ImageSet, /, *, seed: int, progress: Progress
    ) -> Repair:
        """Returns a repaired copy of ``classifier``."""


@dataclass(frozen=True, eq=False)
class Unlearning:
    """Joint unlearning of the triggers that the scan recovered, the mean of several runs.

    Some hundred images leave each run with mistakes of its own. The runs begin at one network and
    stay so near each other that the mean of their weights is a network, too, and a better one than
    most of them: a model soup (Wortsman et al. 2022, arXiv 2203.05482). On the pool's development
    half it costs less accuracy than a single run and leaves as little of the backdoor
    (``benchmarks/mean_of_runs.py``).

    Attributes:
        method: how, and which class.
        survivors: the original and its triggers.
        anew: whether others, recovered from the network that it starts with, are unlearned, too.
        runs: how many networks are averaged; each draws its own batches.
    """

    method: JointUnlearning
    survivors: Survivors
    anew: bool = False
    runs: int = RUNS

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    def remove(
        self, classifier: Classifier, clean: ImageSet, /, *, seed: int, progress: Progress
    ) -> Repair:
        """Returns a repaired copy of ``classifier``."""
        original, triggers = self.survivors.original, list(self.survivors.triggers)
        if self.anew:
            triggers += self.method.recover(classifier, clean, seed=seed, progress=progress)
        repairs = [
            self.method.unlearn(
                classifier,
                original,
                clean,
                triggers,
                seed=own,
                progress=part_of(progress, run / self.runs, (run + 1) / self.runs),
            )
            for run, own in enumerate(seeds_of(seed, self.runs))
        ]
        return Repair(mean_of([r.classifier for r in repairs]), _told_together(repairs))


def seeds_of(seed: int, runs: int) -> list[int]:
    """The seeds of the runs of an ``Unlearning``; one run has that of the whole."""
    return [seed + _APART * run for run in range(runs)]


def _told_together(repairs: Sequence[Repair]) -> dict[str, Any]:
    """The first one's record with the seconds of all."""
    records = [repair.record for repair in repairs]
    seconds = {name: sum(r["seconds"][name] for r in records) for name in records[0]["seconds"]}
    return records[0] | {"runs": len(repairs), "seconds": seconds}


@dataclass(frozen=True, eq=False)
class Weighed:
    """What a network is worth as a repair.

    Attributes:
        loss: of accuracy, on held-out images.
        survival: what of the backdoor is left.
        limit: largest loss of accuracy of a sufficient repair, in [0, 1].
        probe: what a few steps of tuning do to it; None where it was not tried.
    """

    loss: AccuracyLoss
    survival: Survival
    limit: float
    probe: Probe | None = None

    @property
    def drop(self) -> float:
        """The loss of accuracy against the original, in [-1, 1]."""
        return self.loss.value

    @property
    def beyond(self) -> bool:
        """Whether it costs more than the limit."""
        return self.drop > self.limit + 1e-12

    @property
    def returned(self) -> bool:
        """Whether a few steps of tuning bring the backdoor back."""
        return self.probe is not None and self.probe.returned is True

    @property
    def removed(self) -> bool:
        """Whether nothing of the backdoor is seen any more, nor comes back with tuning."""
        return self.survival.removed and not self.returned

    @property
    def worst(self) -> float:
        """The largest share that a trigger carries, after the tuning where that brings it back."""
        after = self.probe.after if self.probe is not None and self.probe.returned else None
        return self.survival.worst if after is None else after

    @property
    def score(self) -> float:
        """The smaller, the better; a fresh look and a probe can only add to it."""
        stands_out = STANDS_OUT if self.survival.shows else 0.0
        return self.worst / 2 + max(0.0, self.drop) + stands_out

    @property
    def balance(self) -> float:
        """The score, with all that lies beyond the limit behind all that does not."""
        return self.score + (2.0 if self.beyond else 0.0)

    @property
    def sufficient(self) -> bool:
        """Whether nothing better is looked for."""
        if self.beyond:
            return False
        nothing_to_gain = self.survival.tried and self.worst <= DEAD and self.score <= ENOUGH
        return nothing_to_gain or (self.removed and self._cheap)

    @property
    def may_suffice(self) -> bool:
        """The same before a fresh look: whether it could be sufficient after one."""
        return not self.beyond and self._cheap and self.survival.worst <= DEAD

    @property
    def _cheap(self) -> bool:
        return self.drop <= CHEAP + 1e-12


@dataclass(frozen=True, eq=False)
class Trial:
    """One repair, or several one after another, and what it is worth.

    Attributes:
        steps: the methods, in their order.
        repair: the last one's, as far as it went; None where a method could not be used.
        weighed: what it is worth; None likewise.
        share: how far it went on its way; 1 is as far as the method does.
        seconds: of the last step and of judging it.
        failure: why there is none.
    """

    steps: tuple[Step, ...]
    repair: Repair | None
    weighed: Weighed | None = None
    share: float = 1.0
    seconds: float = 0.0
    failure: str = ""

    @property
    def name(self) -> str:
        """The steps in words, and how far they went."""
        return repair_in_words([step.name for step in self.steps], self.share)

    @property
    def method(self) -> Method:
        """The last step's."""
        last = self.steps[-1]
        return last.method if isinstance(last, Unlearning) else last  # type: ignore[return-value]

    @property
    def survival(self) -> Survival | None:
        """What of the backdoor is left; None where there is no repair."""
        return self.weighed.survival if self.weighed else None

    @property
    def probe(self) -> Probe | None:
        """What a few steps of tuning do to it; None where that was not tried."""
        return self.weighed.probe if self.weighed else None

    def as_record(self) -> dict[str, Any]:
        """A row of the table of what was tried."""
        loss = self.weighed and self.weighed.loss
        return {
            "steps": [step.name for step in self.steps],
            "share": self.share,
            "accuracy": loss and loss.after.as_record(),
            "accuracy_drop": loss and loss.value,
            "loss": loss and loss.as_record(),
            "survival": self.survival and self.survival.as_record(),
            "tuned": self.probe and self.probe.after,
            "returned": self.probe and self.probe.returned,
            "score": self.weighed and self.weighed.score,
            "seconds": self.seconds,
            "failure": self.failure or None,
        }


def plan_for(survivors: Survivors, found_by: Method | None = None) -> tuple[tuple[Step, ...], ...]:
    """What is tried, in its order; a repair that starts with others follows after them.

    Args:
        survivors: the triggers and the suspects of the original, most suspicious first.
        found_by: the witness that decided the first one; if it is none of ours and repairs, too,
            it comes last, as it was given.
    """
    first = survivors.suspects[0]
    own: list[tuple[Step, ...]] = []
    if found_by is not None and type(found_by).remove is not Method.remove:
        ours = isinstance(found_by, RNP | TAC | BtiDbf | NeuralCleanse)
        if "target_class" in found_by.__struct_fields__:
            found_by = replace(found_by, target_class=first)
        own = [] if ours else [(found_by,)]
    method = JointUnlearning(target_class=first)
    unlearn, again = Unlearning(method, survivors), Unlearning(method, survivors, anew=True)
    shared = SAU()
    return (
        (unlearn,),
        (shared,),
        (shared, unlearn),
        (TAC(target_class=first),),
        (BtiDbf(),),
        (unlearn, again),
        (IBAU(),),
        *own,
    )


def try_repairs(
    original: Classifier,
    known: ImageSet,
    held_out: ImageSet,
    survivors: Survivors,
    plan: Sequence[tuple[Step, ...]],
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
        plan: methods to apply one after another, in the order in which they are tried.
        max_accuracy_drop: largest loss of accuracy of a sufficient repair, in [0, 1].
        seed: of the repairs, and of the views that they are measured on.
        progress: called with what is done and its share.

    Returns:
        The one that is kept, and all in their order.

    Raises:
        InputError: no method of the plan can be used on this network.
    """
    baseline = Baseline(original, held_out, seed=seed)
    done: dict[tuple[Step, ...], Repair] = {}
    trials: list[Trial] = []
    best: Trial | None = None
    least = math.inf  # the best one's balance

    def weigh(network: Classifier) -> Weighed:
        return Weighed(baseline.loss(network), survivors.left(network), max_accuracy_drop)

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
        share, network, weighed = walk(original, repair.classifier, weigh)
        if weighed.may_suffice or weighed.balance < least:
            looked = survivors.look(network, weighed.survival)
            weighed = dataclasses.replace(weighed, survival=looked)
        if weighed.sufficient or weighed.balance < least:
            exposed = survivors.expose(network, weighed.survival)
            weighed = dataclasses.replace(weighed, survival=exposed)
        if weighed.sufficient or weighed.balance < least:
            left = weighed.survival
            probe = retuning_probe(network, known, survivors, left, seed=seed, progress=progress)
            weighed = dataclasses.replace(weighed, probe=probe)
        repair = done[steps] = dataclasses.replace(repair, classifier=network)
        trial = Trial(steps, repair, weighed, share, time.perf_counter() - started)
        trials.append(trial)
        if weighed.sufficient:
            return trial, tuple(trials)
        if weighed.balance < least:
            best, least = trial, weighed.balance
    if best is None:
        raise InputError(f"no repair could be made; the first one says: {trials[0].failure}")
    return best, tuple(trials)
