"""BTI-DBF (U): find what is benign, invert the trigger from the rest, unlearn it.

Idea: earlier inversions search for the backdoor, of which the defender knows nothing, once for each
class. The *benign* features are known, for there are images that show them. A mask m decouples them
from the rest of the deepest feature map (``bti_dbf_decoupling``), a generator G of small changes
moves the rest and leaves the benign alone (``bti_dbf_inversion``), and where that leads is the
target class: one mask and one generator, however many classes. The network is then fine-tuned on
generated images with their true answers, and the inversion is repeated on what came out
(``bti_dbf_unlearning``). ``bti_dbf_p`` leaves the network as it is and purifies its images.

Paper: Xu, Huang, Li, Qin, Ren, "Towards Reliable and Efficient Backdoor Trigger Inversion via
Decoupling Benign Features", ICLR 2024 (OpenReview Tw9wemV6cb; no arXiv number). Its body could not
be reached: equations are from quotations in reviews, schedules from the official code, which
``published()`` follows. That names a class for every network, with a backdoor or without.

Ours: everything the modules above call so; the strength of a trigger with its null
(``bti_dbf_strength``), so that nothing is named without a known rate of false alarms; votes by
source, so that all-to-all and several targets are told as such; rounds end when the recovered
trigger is no stronger than those of networks without a backdoor; and the repaired network goes back
towards the original as far as the strong triggers stay dead, since what the fine-tuning changed
beyond that only costs accuracy. A vision transformer is cut at all tokens of its last norm; the
official code cuts at the class token before it.

Assumes that a backdoor has features of its own. Data: labelled images. Layers: any that cuts the
network; for best results the last feature map. Known failures (see ``docs/methods/bti-dbf.md``):
triggers that are smooth or differ from image to image; backdoors in few weights (TBT), whose
trigger is no stronger than a universal perturbation; without a strong trigger the repair is little
more than fine-tuning; vision transformers whose head reads a class token, since nothing reads the
other tokens, which are most of the map, and the generator moves these (``decoupling.layer`` can
name a module that gives the class token alone, as ``fc_norm`` in timm).
"""

from __future__ import annotations

import math
import time
from typing import ClassVar, Self

import torch

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.bti_dbf_decoupling import Decoupling
from bezoar.methods.bti_dbf_generators import GeneratorInversion
from bezoar.methods.bti_dbf_recovering import (
    Found,
    Start,
    check_rounds,
    divided,
    recover,
    rounds_record,
    weaknesses,
)
from bezoar.methods.bti_dbf_settling import settle
from bezoar.methods.bti_dbf_strength import critical_value, null_in_words
from bezoar.methods.bti_dbf_unlearning import GeneratedUnlearning, generated_loss
from bezoar.methods.generated_trigger import GeneratedTrigger, GeneratedTriggers
from bezoar.methods.method import Evidence, Method, Needs, Repair, methods
from bezoar.methods.tolerated import recipe_for
from bezoar.training import Progress, fit, no_progress
from bezoar.wording import GENERATED

LEVEL = 0.05  # a trigger this unusual may not be the only one
MOST_TRIGGERS = 2  # that one scan recovers
STATISTIC = "The pull of images towards their class divided by that of the trigger"


@methods.register("bti-dbf")
class BtiDbf(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trigger is inverted behind the benign features, and unlearned.

    Attributes:
        decoupling: how the mask of benign features is learned.
        inversion: how the trigger generator is trained.
        unlearning: how a network is trained on generated triggers, in each round.
        rounds: how often this is done, at most.
        strong: a further round needs a trigger whose strength has at most this p-value; None does
            all rounds (official code).
        ways: parts of the way from the original to the fine-tuned network, rising to 1; the first
            is taken where every strong trigger is dead.
        dead: a trigger is dead when it carries at most this share of the held-out images.
        held_out: share of the images that judges triggers and takes no part in their inversion; 0
            judges on the images that they come from (official code).
    """

    name: ClassVar[str] = "bti-dbf"
    title: ClassVar[str] = "BTI-DBF (U): trigger inversion by decoupling benign features"
    paper: ClassVar[str] = "Xu et al. 2024, ICLR (OpenReview Tw9wemV6cb)"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any network that one layer cuts in two"
    cost: ClassVar[str] = "3,840 images through network and generator a round; 4 epochs a round"
    inspects: ClassVar[bool] = True

    decoupling: Decoupling = Decoupling()
    inversion: GeneratorInversion = GeneratorInversion()
    unlearning: GeneratedUnlearning = GeneratedUnlearning()
    rounds: int = 5
    strong: float | None = 0.2
    ways: tuple[float, ...] = (0.5, 0.75, 1.0)
    dead: float = 0.15
    held_out: float = 0.2

    def __post_init__(self) -> None:
        check_rounds(self.rounds, self.held_out)
        if not (0 <= self.dead <= 1 and (self.strong is None or 0 <= self.strong <= 1)):
            raise InputError(
                f"dead is {self.dead} and strong {self.strong}; expected shares in [0, 1]"
            )
        rising = all(a < b for a, b in zip(self.ways, self.ways[1:], strict=False))
        if not self.ways or not rising or self.ways[0] <= 0 or self.ways[-1] != 1:
            raise InputError(f"ways is {self.ways}; expected parts above 0 that rise to 1")

    @classmethod
    def published(cls) -> Self:
        """The official code's schedule: five rounds, each of 20, 30 and 30 epochs."""
        return cls(
            decoupling=Decoupling.published(),
            inversion=GeneratorInversion.published(),
            unlearning=GeneratedUnlearning.published(),
            strong=None,
            held_out=0.0,
            ways=(1.0,),
        )

    def inspect(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Evidence:
        """Recovers a trigger and compares its strength with those of backdoor-free networks.

        Where it is stronger than 95 % of them, a second one is recovered that leads elsewhere:
        there may be several. Every target of a trigger carries its p-value.
        """
        started = time.perf_counter()
        known, held_out = divided(clean, self.held_out, seed=seed)
        layer = self.decoupling.layer
        classifier.trace(clean.shape)
        start = Start.of(classifier, known, self.inversion, seed, progress, layer=layer)
        found: list[Found] = []
        # The published generator has but one start.
        most = MOST_TRIGGERS if start.generator is None else 1
        while not found or (len(found) < most and found[-1].p_value <= LEVEL):
            one = recover(
                classifier,
                known,
                held_out,
                self.decoupling,
                self.inversion,
                seed=seed,
                start=start,
                elsewhere=found[-1] if found else None,
                progress=progress,
            )
            found.append(one)
        owners = {k: one for one in reversed(found) for k in one.targets}
        classes = range(classifier.num_classes)
        carried = [owners.get(k, found[0]).carried_into(k) for k in classes]
        record = found[0].as_record(classifier.classes)
        if len(found) > 1:
            record["second trigger"] = found[1].as_record(classifier.classes)
        return Evidence(
            method=self.name,
            statistic=STATISTIC,
            values=tuple(1 / owners[k].strength if k in owners else math.inf for k in classes),
            scores=tuple(owners[k].score if k in owners else math.nan for k in classes),
            p_values=tuple(owners[k].p_value if k in owners else 1.0 for k in classes),
            null=null_in_words(),
            carried=tuple(carried),
            recovered=GeneratedTriggers(
                tuple(
                    GeneratedTrigger(one.targets, one.inverted.generator, one.inverted.bound)
                    for one in found
                )
            ),
            record=record
            | {
                "paper": self.paper,
                "configuration": self.configuration(),
                "flags": weaknesses(found[:1]),
                "seconds": {"total": time.perf_counter() - started},
            },
            words=GENERATED,
            limit=critical_value,
        )

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Inverts and unlearns, in rounds.

        Raises:
            InputError: no labels, too few images, or a network that no layer cuts in two.
        """
        started = time.perf_counter()
        clean.require_labels("BTI-DBF")
        classifier.trace(clean.shape)
        known, held_out = divided(clean, self.held_out, seed=seed)
        how = self.unlearning
        recipe = recipe_for(how.recipe, how.augment, classifier, clean, seed=seed)
        original, repaired = classifier.copy(), classifier.copy()
        original.network.eval()
        repaired.network.eval()
        layer = self.decoupling.layer
        start = Start.of(repaired, known, self.inversion, seed, progress, layer=layer)
        optimizer = None
        if how.optimizer == "adam":
            optimizer = torch.optim.Adam(repaired.network.parameters(), recipe.learning_rate)
        rounds: list[Found] = []
        losses: list[float] = []
        seconds = {"inverting": 0.0, "unlearning": 0.0}
        for n in range(self.rounds):
            before = time.perf_counter()
            found = recover(
                repaired,
                known,
                held_out,
                self.decoupling,
                self.inversion,
                seed=seed + n,
                start=start,
                target=rounds[0].majority if rounds else None,
                progress=progress,
            )
            rounds.append(found)
            inverted = time.perf_counter()
            seconds["inverting"] += inverted - before
            if n and self.strong is not None and found.p_value > self.strong:
                break
            history = fit(
                repaired,
                known,
                recipe,
                seed=seed + n,
                loss=generated_loss(
                    original,
                    start.stamps(rounds),
                    how,
                    live=repaired.split(layer),
                    anchor=original.split(layer),
                ),
                optimizer=optimizer,
                progress=progress,
                what=f"BTI-DBF: unlearning, round {n + 1}",
            )
            losses += history.loss
            seconds["unlearning"] += history.seconds
        strong = [one for one in rounds if self.strong is None or one.p_value <= self.strong]
        settled, way, left = settle(
            original, repaired, strong, held_out, ways=self.ways, dead=self.dead
        )
        return Repair(
            settled,
            rounds_record(rounds, classifier.classes, recipe, losses)
            | {
                "strong triggers": len(strong),
                "way": way,
                "carried after": left,
                "flags": weaknesses(rounds[:1]) + self._flags(left),
                "seconds": seconds | {"total": time.perf_counter() - started},
            },
        )

    def _flags(self, left: list[float]) -> list[str]:
        """What the user should know before trusting the repair."""
        if not left:
            return [
                "The recovered trigger is no stronger than those of networks without a backdoor, "
                "so the repair is little more than fine-tuning."
            ]
        if max(left) > self.dead:
            return [
                f"A recovered trigger still carries {100 * max(left):.0f} % of the held-out "
                "images; a part of the backdoor may be left."
            ]
        return []
