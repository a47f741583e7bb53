"""BTI-DBF (P): a purifier before the classifier, whose weights stay as they are.

Idea: the trigger generator G of ``bti_dbf`` puts a trigger on an image; a purifier Q learns to take
it off again, and to leave images without one alone. G is then inverted against the classifier
*behind* Q, Q learns from that as well, and so on, in rounds. The repaired classifier is f(Q(x)):
where the weights may not change, or nobody has the right to change them, this is what can be done.

Paper: Xu et al., ICLR 2024 (OpenReview Tw9wemV6cb); schedule of the official code, which
``published()`` follows. Its noise makes answers random.

Ours: as in ``bti_dbf`` and ``bti_dbf_purifying``; rounds end when the trigger that survives Q is no
stronger than those of networks without a backdoor. Where the first one is no stronger, Q stays the
identity: taking universal perturbations off costs accuracy and removes nothing.

Assumes what ``bti_dbf`` assumes. Data: labelled images. Layers: any that cuts the network. Known
failures: those of ``bti_dbf``; every image costs the purifier's time as well; the backdoor is still
in the weights, and whoever has the file without the purifier has it, too.
"""

from __future__ import annotations

import copy
import time
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.bti_dbf_decoupling import Decoupling
from bezoar.methods.bti_dbf_generators import GeneratorInversion, residual_generator
from bezoar.methods.bti_dbf_inversion import Front
from bezoar.methods.bti_dbf_purifying import Purifying, in_front, purifying_loss
from bezoar.methods.bti_dbf_recovering import (
    Found,
    Start,
    check_rounds,
    divided,
    recover,
    rounds_record,
    weaknesses,
)
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.methods.neural_cleanse_triggers import pixels_of
from bezoar.methods.purifying_cost import measure
from bezoar.methods.tolerated import recipe_for
from bezoar.networks.purified import Purified
from bezoar.training import Progress, fit, no_progress

TIMED = 32  # images of the batch that tells what the purifier costs


@methods.register("bti-dbf-p")
class BtiDbfP(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trigger is inverted behind the benign features, and taken off by a purifier.

    Attributes:
        decoupling: how the mask of benign features is learned.
        inversion: how the trigger generator is trained.
        purifying: how the purifier is trained, in each round.
        rounds: how often this is done, at most.
        strong: a round needs a trigger whose strength has at most this p-value, the first one as
            well: a purifier that was never shown a backdoor's trigger stays the identity. None does
            all rounds (official code).
        held_out: share of the images that judges triggers and takes no part in their inversion; 0
            judges on the images that they come from (official code).
    """

    name: ClassVar[str] = "bti-dbf-p"
    title: ClassVar[str] = "BTI-DBF (P): a purifier in front of the classifier"
    paper: ClassVar[str] = "Xu et al. 2024, ICLR (OpenReview Tw9wemV6cb)"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any network that one layer cuts in two"
    cost: ClassVar[str] = "3,840 images through network and generator a round; 8 epochs a round"
    purifies: ClassVar[bool] = True

    decoupling: Decoupling = Decoupling()
    inversion: GeneratorInversion = GeneratorInversion()
    purifying: Purifying = Purifying()
    rounds: int = 3
    strong: float | None = 0.2
    held_out: float = 0.2

    def __post_init__(self) -> None:
        check_rounds(self.rounds, self.held_out)
        if self.strong is not None and not 0 <= self.strong <= 1:
            raise InputError(f"strong is {self.strong}; expected a p-value in [0, 1], or none")

    @classmethod
    def published(cls) -> Self:
        """The official code's schedule: five rounds, each of 20, 30 and 30 epochs."""
        return cls(
            decoupling=Decoupling.published(),
            inversion=GeneratorInversion.published(),
            purifying=Purifying.published(),
            rounds=5,
            strong=None,
            held_out=0.0,
        )

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Trains a purifier; the repaired classifier's network is a ``Purified``.

        Raises:
            InputError: no labels, too few images, or a network that no layer cuts in two.
        """
        started = time.perf_counter()
        clean.require_labels("BTI-DBF")
        classifier.trace(clean.shape)
        known, held_out = divided(clean, self.held_out, seed=seed)
        how = self.purifying
        recipe = recipe_for(how.recipe, how.augment, classifier, clean, seed=seed)
        behind = classifier.copy()
        behind.network.requires_grad_(False).eval()
        layer = self.decoupling.layer
        start = Start.of(behind, known, self.inversion, seed, progress, layer=layer)
        purifier = self._purifier(behind, start, seed).requires_grad_(False)
        purified = in_front(behind, purifier, how)
        front = purified.network
        assert isinstance(front, Purified)  # noqa: S101 (made by in_front)
        optimizer = torch.optim.Adam(purifier.parameters(), recipe.learning_rate)
        rounds: list[Found] = []
        losses: list[float] = []
        seconds = {"inverting": 0.0, "purifying": 0.0}
        for n in range(self.rounds):
            before = time.perf_counter()
            found = recover(
                behind,
                known,
                held_out,
                self.decoupling,
                self.inversion,
                seed=seed + n,
                start=start,
                front=front.purify if n else None,
                noiseless=self._noiseless(front) if n else None,
                target=rounds[0].majority if rounds else None,
                progress=progress,
            )
            rounds.append(found)
            seconds["inverting"] += time.perf_counter() - before
            if self.strong is not None and found.p_value > self.strong:
                break
            anchor = behind.split(layer)
            history = fit(
                purified,
                known,
                recipe,
                seed=seed + n,
                loss=purifying_loss(behind, start.stamps(rounds), how, anchor=anchor),
                parameters=purifier.parameters(),
                optimizer=optimizer,
                progress=progress,
                what=f"BTI-DBF: training the purifier, round {n + 1}",
            )
            losses += history.loss
            seconds["purifying"] += history.seconds
        _restore_gradients(purified.network, classifier.network)
        purified.network.eval()
        some = held_out.sample(TIMED, seed=seed)
        flags = weaknesses(rounds[:1])
        if not losses:
            flags.append(
                "The recovered trigger is no stronger than those of networks without a backdoor, "
                "so the purifier was not trained: it leaves images as they are."
            )
        return Repair(
            purified,
            rounds_record(rounds, classifier.classes, recipe, losses)
            | {
                "flags": flags,
                "cost": measure(behind, purified, pixels_of(some, classifier)[0]),
                "seconds": seconds | {"total": time.perf_counter() - started},
            },
        )

    def _noiseless(self, front: Purified) -> Front | None:
        """What a later trigger is inverted behind: Q alone, with the official code's switch."""
        if self.inversion.constraint != "switch":
            return None

        def purified(pixels: Tensor) -> Tensor:
            images: Tensor = front.purifier(pixels)
            return images.clamp(0, 1)

        return purified

    def _purifier(self, behind: Classifier, start: Start, seed: int) -> nn.Module:
        """A purifier that has seen no trigger; the published one starts where the generator did."""
        how = self.purifying
        if how.generator == "published":
            if start.generator is None:
                raise InputError(
                    "a published purifier starts from the pre-trained published generator; use "
                    "inversion.generator=published as well"
                )
            return copy.deepcopy(start.generator)
        made = residual_generator(behind.input_shape, how.features, seed)
        return made.to(behind.device)


def _restore_gradients(purified: nn.Module, original: nn.Module) -> None:
    """Which parameters a user may train is the user's: as in the original, and the purifier's."""
    assert isinstance(purified, Purified)  # noqa: S101 (made by in_front)
    purified.purifier.requires_grad_(True)
    flags = dict(original.named_parameters())
    for name, parameter in purified.network.named_parameters():
        parameter.requires_grad_(flags[name].requires_grad)
