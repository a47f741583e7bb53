"""FT-SAM: fine-tuning that minimises the loss at the worst weights nearby.

Idea: what serves a backdoor has large norms, and plain fine-tuning hardly moves it, since clean
images give it no gradient. With the step taken at the worst weights nearby, nearby being relative
to each weight, large weights are moved most, and the answers have to do without their exact values:

    min over theta  max over ||T^-1 e|| <= rho  of  E CE(f(x; theta + e), y),      T = diag(|theta|)
    e = rho theta^2 g / || |theta| g ||,      g = grad CE at theta

and the step is SGD's with the gradient at theta + e, in which e is a constant. Without ``adaptive``
T is the identity and e = rho g / ||g||.

Paper: Zhu, Wei, Shen, Fan, Wu, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware
Minimization", ICCV 2023, arXiv 2304.11823. Its body was not read; the formulas and ``published``
are those of BackdoorBench, by the same authors. Running statistics of norms move in the first pass
only, as there.

Ours, for some hundred images: smaller batches and fewer epochs, a rho of 3 that makes up for them,
no label smoothing, a limit for the gradient's norm, and the augmentation that the network
tolerates.

Data: labelled clean images. Layers: any. Known failures: nothing in it looks for a backdoor, so
with a small rho it is plain fine-tuning and with a large one accuracy goes; rho is a distance over
all weights, so that what is right depends on the network (without norms, less; the record says when
it was too much), and it fits one of the two forms only (2 to 4 for the adaptive, some tenths or
hundredths for the plain one).
"""

from __future__ import annotations

import functools
import math
from typing import ClassVar, Literal, Self

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.clean_choice import accuracy_of
from bezoar.methods.epoch_curves import epoch_curves
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.methods.moved_weights import Weights, loss_at_moved_weights, norm_of
from bezoar.methods.tolerated import recipe_for
from bezoar.training import Progress, Recipe, fit, no_progress

_WORSE = 0.02  # accuracy on the images of the tuning itself that it may lose without a word
_TOO_FAR = (
    "After the tuning {1:.1%} of the images that it was done on are answered rightly, and {0:.1%} "
    "before it: rho is too large for this network, or the tuning too short."
)


@methods.register("ft-sam")
class FTSAM(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fine-tuning with sharpness-aware minimisation.

    Attributes:
        rho: how far the worst weights may lie away, 0 or more; with ``adaptive`` relative to each
            weight, without it an absolute distance. 0 is plain fine-tuning.
        adaptive: whether large weights may move more.
        recipe: how to train; its label smoothing counts.
        augment: ``tolerated`` uses the flips and shifts that cost the original network no accuracy,
            ``recipe`` what the recipe says.
    """

    name: ClassVar[str] = "ft-sam"
    title: ClassVar[str] = "Fine-tuning with sharpness-aware minimisation"
    paper: ClassVar[str] = "Zhu et al. 2023, arXiv 2304.11823"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any"
    cost: ClassVar[str] = "20 epochs on the clean images, each step two passes"

    rho: float = 3.0
    adaptive: bool = True
    recipe: Recipe = Recipe(epochs=20, batch_size=32, learning_rate=0.01, clip_norm=5.0)
    augment: Literal["tolerated", "recipe"] = "tolerated"

    def __post_init__(self) -> None:
        if not 0 <= self.rho < math.inf:
            raise InputError(f"rho is {self.rho}; expected a finite distance of 0 or more")

    @classmethod
    def published(cls) -> Self:
        """BackdoorBench's settings for CIFAR-10.

        Three things differ: its rate swings with a period of 200 steps, since a cosine that was
        made for 100 epochs is stepped with each batch, and falls once here; it spreads the label
        smoothing over the *other* classes, here it is over all; its momentum is not Nesterov's.
        """
        recipe = Recipe(
            epochs=100,
            batch_size=256,
            learning_rate=0.01,
            label_smoothing=0.1,
            crop_padding=4,
            flip=True,
        )
        return cls(rho=2.0, adaptive=True, recipe=recipe, augment="recipe")

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
            InputError: no labels, or some that the network has no logit for; or the tuning
                diverged.
        """
        clean.require_labels("FT-SAM")
        repaired = classifier.copy()
        recipe = recipe_for(self.recipe, self.augment, classifier, clean, seed=seed)
        way = functools.partial(uphill, rho=self.rho, adaptive=self.adaptive)
        history = fit(
            repaired,
            clean,
            recipe,
            seed=seed,
            loss=loss_at_moved_weights(way, label_smoothing=recipe.label_smoothing),
            progress=progress,
            what="FT-SAM: fine-tuning",
        )
        before, after = accuracy_of(classifier, clean), accuracy_of(repaired, clean)
        return Repair(
            repaired,
            {
                "augmentation": {"flip": recipe.flip, "crop_padding": recipe.crop_padding},
                "accuracy": {"before": before, "after": after},
                "flags": [_TOO_FAR.format(before, after)] if after < before - _WORSE else [],
                "curves": epoch_curves({"loss at the worst weights nearby": history.loss}),
                "seconds": {"total": history.seconds},
            },
        )


def uphill(weights: Weights, gradients: Weights, *, rho: float, adaptive: bool) -> Weights:
    """The way e to the worst weights within rho, to first order.

    All tensors count as one vector. Where every gradient is 0 nothing moves.

    Args:
        weights: theta, by name.
        gradients: g.
        rho: largest ||T^-1 e||.
        adaptive: T = diag(|theta|); else the identity.
    """
    if not adaptive:
        length = rho / norm_of(gradients.values())
        return {name: length * gradient for name, gradient in gradients.items()}
    length = rho / norm_of(weights[name].abs() * gradient for name, gradient in gradients.items())
    return {
        name: length * weights[name].square() * gradient for name, gradient in gradients.items()
    }
