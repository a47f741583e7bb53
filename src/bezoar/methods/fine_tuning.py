"""Fine-tuning on clean images: the baseline that every other method must beat, and its variants.

Idea: train on for a while on images without triggers and hope that the network forgets. Against a
patch it usually keeps the backdoor (an ASR of 95 to 100 % is common), because nothing in clean
images contradicts it. Its cost in accuracy is the floor for methods that fine-tune.

What is ``trained`` tells where an effect comes from: all weights; the norms alone, whose refreshed
statistics are a part of what any fine-tuning does; or the head alone, which leaves the features as
they are. How the rate goes may matter more: ``super-convergent`` lets it swing up and down, first
to a high peak, to forget, then to a low one, to recover (``rate_cycles``).

Paper: the usual baseline, for example in Liu et al. 2018, arXiv 1805.12185; the swinging rate is
the super-fine-tuning of Sha et al. 2022, arXiv 2212.09067. Data: labelled clean images. Layers:
any; ``norms`` are those of torch's classes and of classes derived from them.

Known failures: with a few hundred images a high peak costs accuracy that they do not bring back.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec
from msgspec.structs import replace
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.epoch_curves import epoch_curves
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.methods.rate_cycles import RateCycles
from bezoar.training import Progress, Recipe, fit, no_progress

Trained = Literal["all", "norms", "head"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@methods.register("ft")
class FineTuning(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Plain fine-tuning of all parameters, or of some.

    Attributes:
        recipe: how to train.
        trained: ``all``; ``norms``, their scales and shifts, and the running statistics follow; or
            ``head``, the final linear layer, and all else stays, the running statistics too.
        schedule: how the learning rate goes: as the ``recipe`` says, or ``super-convergent``.
        cycles: the rates of the latter, in the place of the recipe's rate and schedule.
    """

    name: ClassVar[str] = "ft"
    title: ClassVar[str] = "Fine-tuning on clean images"
    paper: ClassVar[str] = "baseline, as in Liu et al. 2018, arXiv 1805.12185"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any"
    cost: ClassVar[str] = "20 epochs on the clean images"

    recipe: Recipe = Recipe(epochs=20, batch_size=32, learning_rate=0.01, clip_norm=5.0)
    trained: Trained = "all"
    schedule: Literal["recipe", "super-convergent"] = "recipe"
    cycles: RateCycles = RateCycles()

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a fine-tuned copy.

        Raises:
            InputError: no labels, or some that the network has no logit for; there is nothing to
                train of the kind that was asked for; or the training diverged.
        """
        clean.require_labels("fine-tuning")
        repaired = classifier.copy().trace(clean.shape)
        recipe, rate = self.recipe, None
        if self.trained == "head":
            recipe = replace(recipe, batch_norm="eval")
        if self.schedule == "super-convergent":
            recipe = replace(recipe, learning_rate=self.cycles.highest)
            rate = self.cycles.factor
        history = fit(
            repaired,
            clean,
            recipe,
            seed=seed,
            parameters=trained_parameters(repaired, self.trained),
            rate=rate,
            progress=progress,
            what="fine-tuning",
        )
        return Repair(
            repaired,
            {
                "history": msgspec.to_builtins(history),
                "curves": epoch_curves({"training loss": history.loss}),
                "seconds": {"training": history.seconds},
            },
        )


def trained_parameters(classifier: Classifier, trained: Trained) -> list[nn.Parameter]:
    """The parameters of a traced ``classifier`` that are trained, each once.

    Raises:
        InputError: there is none of that kind.
    """
    network = classifier.network
    if trained == "all":
        return list(network.parameters())
    if trained == "head":
        name = classifier.head.name
        head = network.get_submodule(name.rpartition(".")[0])
        bias = getattr(head, "bias", None)
        return [network.get_parameter(name), *([bias] if isinstance(bias, nn.Parameter) else [])]
    norms = [module for module in network.modules() if isinstance(module, _NORMS)]
    found = {id(p): p for norm in norms for p in norm.parameters(recurse=False)}
    if not found:
        reason = (
            f"its {len(norms)} norms have no scales or shifts (affine=False)"
            if norms
            else "the network has no norm"
        )
        raise InputError(
            f"trained is 'norms' and {reason}; there is nothing to train: use trained='all' or "
            "'head'"
        )
    return list(found.values())
