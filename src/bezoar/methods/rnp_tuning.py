"""A short tuning after pruning: narrow networks get their accuracy back (ours).

In a narrow network a pruned unit served clean images, too. A copy learns to answer as the original
did; the pruned units stay pruned. That alone can bring a part of the backdoor back through units
that were left, so the recovered trigger is stamped on a share of the images, whose wanted answer
stays that to the plain image (Neural Cleanse's repair). A second trigger, inverted from another
seed and never trained on, is the judge: where it works again, the pruned network stays as it is.

A trigger is believed only where it *died with the pruned units*, or is small: pruning and inversion
then saw the same thing. In a network without a backdoor the inversion finds some large patch that
works on whatever is pruned, and tuning against it would only cost accuracy; such a network is tuned
without one. Where no trigger is believed and yet one class drew the unlearned images, there may be
a large or faint trigger that no patch resembles; tuning would bring it back, so the pruned network
stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.distilling import divergence
from bezoar.methods.neural_cleanse_triggers import Triggers
from bezoar.methods.neural_cleanse_unlearning import unlearning_loss
from bezoar.methods.rnp_trigger import RecoveredTrigger
from bezoar.methods.tolerated import recipe_for
from bezoar.training import BatchHook, Loss, Progress, Recipe, fit
from bezoar.units import Units

TEMPERATURE = 2.0  # of the divergence from the original's answers


class StayPruned(BatchHook):
    """Sets the pruned units back to zero after each step.

    Args:
        classifier: in training.
        units: its units.
        kept: (n,), 0 for a pruned unit.
        bias: whether the biases are pruned, too.
    """

    def __init__(self, classifier: Classifier, units: Units, kept: Tensor, *, bias: bool) -> None:
        self.network, self.units = classifier.network, units
        self.kept = kept.to(classifier.device)
        self.shift = self.kept if bias else None

    def after_backward(self) -> None:
        """Multiplies with the mask of zeros and ones."""
        with torch.no_grad():
            for name, value in self.units.tensors(self.network, self.kept, self.shift).items():
                self.network.get_parameter(name).copy_(value)


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How what is left is tuned.

    Attributes:
        recipe: how to train; without a trigger on the images, norms keep their running statistics,
            since fresh ones alone bring a part of a backdoor back.
        share: of the images that carry the trigger.
        small: a trigger is small when its mask's |m|_1 is at most this share of the pixels.
        back: a trigger works again when it carries more than this share of the held-out images.
        drawn: without a believed trigger, nothing is tuned where the suspected class draws this
            much more of the lost images than by chance (the excess of ``rnp_exposure``).
        augment: ``tolerated`` tunes with the flips and shifts that cost the original no accuracy,
            ``recipe`` with what the recipe says.
    """

    recipe: Recipe = Recipe(epochs=5, batch_size=32, learning_rate=0.01, clip_norm=5.0)
    share: float = 0.2
    small: float = 0.025
    back: float = 0.15
    drawn: float = 0.4
    augment: Literal["tolerated", "recipe"] = "tolerated"

    def __post_init__(self) -> None:
        for name in ("share", "small", "back", "drawn"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a share in [0, 1]")


@dataclass
class Tuned:
    """The network that was taken.

    Attributes:
        classifier: the one that was taken.
        taken: ``plain``, ``against the trigger`` or ``none``.
        carried: share of the held-out images that the second trigger carries on the network that
            was tuned against the first; None where there was none.
        loss: of each epoch of the one that was taken.
    """

    classifier: Classifier
    taken: str
    carried: float | None
    loss: list[float]

    def as_record(self) -> dict[str, Any]:
        """The figures."""
        return {"taken": self.taken, "carried": self.carried, "loss": self.loss}


def tune(
    original: Classifier,
    pruned: Classifier,
    stay: Callable[[Classifier], BatchHook],
    clean: ImageSet,
    held_out: ImageSet,
    settings: Tuning,
    *,
    trigger: RecoveredTrigger | None,
    died: bool,
    excess: float,
    second: Callable[[], RecoveredTrigger],
    seed: int,
    progress: Progress,
) -> Tuned:
    """Tunes copies of ``pruned`` and takes the best that keeps the backdoor out.

    Args:
        original: the network before the pruning, in eval mode.
        pruned: afterwards.
        stay: of a classifier, the hook that keeps its pruned units pruned.
        clean: labelled images.
        held_out: images that the triggers do not come from.
        settings: how.
        trigger: recovered from the original, or None.
        died: it does not work on ``pruned``.
        excess: of the class that draws most of the unlearned images.
        second: inverts another one; called only where it is needed.
        seed: of the order and the draws.
        progress: called after each epoch.
    """
    recipe = recipe_for(settings.recipe, settings.augment, original, clean, seed=seed)

    def attempt(triggers: Triggers | None) -> tuple[Classifier, list[float]]:
        copy = pruned.copy()
        statistics: Literal["train", "eval"] = "train" if triggers else "eval"
        history = fit(
            copy,
            clean,
            msgspec.structs.replace(recipe, batch_norm=statistics),
            seed=seed,
            loss=_loss(original, triggers, settings.share),
            hook=stay(copy),
            progress=progress,
            what="RNP: tuning against the trigger" if triggers else "RNP: tuning",
        )
        return copy, history.loss

    if trigger is None or not (died or trigger.covers <= settings.small):
        if trigger is not None and excess >= settings.drawn:
            return Tuned(pruned, "none", None, [])
        plain, loss = attempt(None)
        return Tuned(plain, "plain", None, loss)
    against, loss = attempt(trigger.triggers)
    carried = second().carried_by(against, held_out)
    if died and carried > settings.back:
        return Tuned(pruned, "none", carried, [])
    return Tuned(against, "against the trigger", carried, loss)


def _loss(original: Classifier, triggers: Triggers | None, share: float) -> Loss:
    """The divergence from the original's answer to the plain image."""
    if triggers is not None:
        return unlearning_loss(
            original,
            triggers,
            triggers.classes,
            share=share,
            distillation=1.0,
            temperature=TEMPERATURE,
        )

    def plain(
        classifier: Classifier, images: Tensor, _labels: Tensor, _generator: torch.Generator
    ) -> Tensor:
        with torch.no_grad():
            wanted = original(images)
        return divergence(classifier(images), wanted, TEMPERATURE)

    return plain
