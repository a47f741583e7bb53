"""Fine-tuning on clean images: the baseline that every other method must beat.

Idea: train on for a while on images without triggers and hope that the network forgets. Against a
patch it usually keeps the backdoor (an ASR of 95 to 100 % is common), because nothing in clean
images contradicts it. Its cost in accuracy is the floor for methods that fine-tune.

Paper: the usual baseline, for example in Liu et al. 2018, arXiv 1805.12185. Data: labelled clean
images. Layers: any.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.training import Progress, Recipe, fit, no_progress


@methods.register("ft")
class FineTuning(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Plain fine-tuning of all parameters.

    Attributes:
        recipe: how to train.
    """

    name: ClassVar[str] = "ft"
    title: ClassVar[str] = "Fine-tuning on clean images"
    paper: ClassVar[str] = "baseline, as in Liu et al. 2018, arXiv 1805.12185"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any"
    cost: ClassVar[str] = "20 epochs on the clean images"

    recipe: Recipe = Recipe(epochs=20, batch_size=32, learning_rate=0.01, clip_norm=5.0)

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a fine-tuned copy."""
        clean.require_labels("fine-tuning")
        repaired = classifier.copy()
        history = fit(
            repaired, clean, self.recipe, seed=seed, progress=progress, what="fine-tuning"
        )
        return Repair(repaired, {"history": msgspec.to_builtins(history)})
