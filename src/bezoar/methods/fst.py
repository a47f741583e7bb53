"""FST, feature shift tuning: a new head that is pushed away from the old one, and features follow.

Idea: fine-tuning leaves the features where they are, because the old head already reads them. So
the linear head is drawn anew, and training punishes it for turning back to where it was; to answer
right all the same, the features themselves have to move, and what the trigger relied on is lost:

    min over phi, w of   E CE(f(w; phi(x)), y) + alpha <w, w_ori>      such that   ||w|| = C

with C = ||w_ori||, which is restored after every step: without it the inner product falls without
end. The head is the final linear layer that tracing finds; its bias is drawn, and free.

Paper: Min, Qin, Shen, Cheng, "Towards Stable Backdoor Purification through Feature Shift Tuning",
NeurIPS 2023, arXiv 2310.01875. Its body could not be reached; ``published`` follows the released
code, of which the rate falls after each epoch and not, as here, after each step.

Ours, for some hundred images, with which the paper's settings cost weak networks far more:

- the original network's answers to the plain images stand in for the labels, since a head that is
  drawn anew has much to learn from few images;
- alpha is 0.2 / classes. <w, w_ori> is a sum over the classes and CE is a mean, so that at a fixed
  alpha the push grows with the classes (the authors' advice is a smaller alpha for many, too). At
  ten classes it is a tenth of the code's 0.2, because the default takes many more steps: at their
  end the head lies *across* the old one, and with the code's alpha opposite to it, which costs
  accuracy without need;
- smaller batches and more epochs; the augmentation that the network tolerates; a limit for the
  gradient's norm, since the first ones through a random head are large.

Data: labelled clean images, some of every class. Layers: any with a final linear layer. Known
failures: with few images a class, the new head costs accuracy; a class without images is lost.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.distilling import divergence
from bezoar.methods.epoch_curves import epoch_curves
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.methods.tolerated import recipe_for
from bezoar.training import BatchHook, Loss, Progress, Recipe, fit, no_progress

_PUSH = 0.2  # alpha times the number of classes
_FEW = 5  # images of a class below which the new head hardly knows it
_BACK = 0.5  # cosine above which the head is called back where it was


@methods.register("fst")
class FST(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fine-tuning with a new head that is kept away from the direction of the old one.

    Attributes:
        alpha: weight of the inner product with the old head; None takes 0.2 / classes.
        distillation: share of the cross-entropy that the divergence from the original network's
            answers replaces; 0 asks for the labels alone, as the paper does.
        temperature: of that divergence.
        recipe: how to train; its momentum is the plain one, as in the released code.
        augment: ``tolerated`` uses the flips and shifts that cost the original network no accuracy,
            ``recipe`` what the recipe says.
    """

    name: ClassVar[str] = "fst"
    title: ClassVar[str] = "Feature shift tuning"
    paper: ClassVar[str] = "Min et al. 2023, arXiv 2310.01875"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any, with a final linear layer"
    cost: ClassVar[str] = "20 epochs on the clean images"

    alpha: float | None = None
    distillation: float = 1.0
    temperature: float = 2.0
    recipe: Recipe = Recipe(
        epochs=20, batch_size=32, learning_rate=0.01, weight_decay=0.0, clip_norm=5.0
    )
    augment: Literal["tolerated", "recipe"] = "tolerated"

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha < math.inf:
            raise InputError(f"alpha is {self.alpha}; expected a finite number of 0 or more")
        if not (0 <= self.distillation <= 1 and 0 < self.temperature < math.inf):
            raise InputError(
                f"distillation is {self.distillation} and temperature {self.temperature}; expected "
                "a share in [0, 1], and more than 0"
            )

    @classmethod
    def published(cls) -> Self:
        """The released code's defaults, with its augmentation for CIFAR-10 (no flips elsewhere).

        The example of its README takes alpha 0.1, and 2 % of the training images.
        """
        recipe = Recipe(
            epochs=10,
            batch_size=128,
            learning_rate=0.01,
            weight_decay=0.0,
            crop_padding=4,
            flip=True,
        )
        return cls(alpha=0.2, distillation=0.0, recipe=recipe, augment="recipe")

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a copy with a new head, tuned to it.

        Raises:
            InputError: no labels, or some that the network has no logit for; no final linear layer,
                or one that is zero; or the tuning diverged.
        """
        clean.require_labels("FST")
        original = classifier.copy()
        original.network.requires_grad_(False).eval()
        repaired = classifier.copy().trace(clean.shape)
        counts = clean.class_counts(repaired.num_classes)
        recipe = recipe_for(self.recipe, self.augment, classifier, clean, seed=seed)
        alpha = _PUSH / repaired.num_classes if self.alpha is None else self.alpha
        away = AwayFromOldHead(repaired, alpha)
        draw_head(repaired, torch.Generator().manual_seed(seed))
        cosines = []
        history = fit(
            repaired,
            clean,
            recipe,
            seed=seed,
            loss=answer_loss(original, self.distillation, self.temperature),
            optimizer=torch.optim.SGD(
                repaired.network.parameters(),
                recipe.learning_rate,
                recipe.momentum,
                weight_decay=recipe.weight_decay,
            ),
            before_epoch=lambda _epoch: cosines.append(away.cosine()),
            hook=away,
            progress=progress,
            what="FST: feature shift tuning",
        )
        cosines.append(away.cosine())
        return Repair(
            repaired,
            {
                "head": repaired.head.name,
                "norm": away.norm,
                "alpha": alpha,
                "cosine": cosines[-1],
                "augmentation": {"flip": recipe.flip, "crop_padding": recipe.crop_padding},
                "flags": _flags(counts, repaired.classes, cosines[-1]),
                "curves": _curves(cosines, history.loss),
                "seconds": {"total": history.seconds},
            },
        )


class AwayFromOldHead(BatchHook):
    """The penalty alpha <w, w_ori>, and the norm C of the head after every step.

    Args:
        classifier: a traced one with the old head in place, whose head is trained.
        alpha: weight of the penalty.

    Attributes:
        norm: C.

    Raises:
        InputError: the old head is zero, so that it has no direction.
    """

    def __init__(self, classifier: Classifier, alpha: float) -> None:
        self.weight = classifier.network.get_parameter(classifier.head.name)
        self.old = self.weight.detach().clone()  # (classes, d) or (classes, d, 1, 1)
        self.norm = float(self.old.norm())
        self.alpha = alpha
        if not self.norm:
            raise InputError(
                f"the weights of the final linear layer {classifier.head.name!r} are all zero; FST "
                "needs a trained head to move away from"
            )

    def penalty(self, classifier: Classifier) -> Tensor | None:  # noqa: ARG002 (of every hook)
        """Alpha times the inner product; it can be negative."""
        return self.alpha * (self.weight * self.old).sum() if self.alpha else None

    def after_backward(self) -> None:
        """Scales the head back to the norm C."""
        with torch.no_grad():
            self.weight.mul_(self.norm / self.weight.norm())

    def cosine(self) -> float:
        """Of the angle between the head and the old one, in [-1, 1]."""
        with torch.no_grad():
            return float((self.weight * self.old).sum() / (self.weight.norm() * self.norm))


def answer_loss(original: Classifier, distillation: float, temperature: float) -> Loss:
    """CE, or the divergence from the original's answers, or a mixture of both.

    Args:
        original: in eval mode; it sees the same (augmented) images.
        distillation: share of the divergence, in [0, 1].
        temperature: of the divergence.
    """

    def loss(
        classifier: Classifier, images: Tensor, labels: Tensor, _generator: torch.Generator
    ) -> Tensor:
        logits = classifier(images)
        total = logits.new_zeros(())
        if distillation < 1:
            total = total + (1 - distillation) * F.cross_entropy(logits, labels)
        if distillation:
            with torch.no_grad():
                wanted = original(images)
            total = total + distillation * divergence(logits, wanted, temperature)
        return total

    return loss


def draw_head(classifier: Classifier, generator: torch.Generator) -> None:
    """Draws the head's weights and its bias, if it has one, uniformly in +-1/sqrt(d), in place.

    Args:
        classifier: a traced one.
        generator: on the CPU.
    """
    name = classifier.head.name
    weight = classifier.network.get_parameter(name)
    bias = getattr(classifier.network.get_submodule(name.rpartition(".")[0]), "bias", None)
    bound = 1 / math.sqrt(weight[0].numel())
    with torch.no_grad():
        for parameter in (weight, bias):
            if isinstance(parameter, nn.Parameter):
                drawn = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((2 * drawn - 1) * bound)


def _flags(counts: Tensor, classes: tuple[str, ...], cosine: float) -> list[str]:
    """What the user should know before trusting the repair."""
    flags = []
    few = torch.nonzero(counts < _FEW).flatten().tolist()
    if few:
        named = ", ".join(f"{classes[k]} ({int(counts[k])})" for k in few[:10])
        more = f" and {len(few) - 10} more" if len(few) > 10 else ""
        flags.append(
            f"Fewer than {_FEW} clean images show these classes: {named}{more}. The new head "
            "learns a class from its images alone and will often miss these."
        )
    if cosine > _BACK:
        flags.append(
            f"The head turned back to its old direction (cosine {cosine:.2f}), so the features may "
            "be where they were; a larger alpha keeps it away."
        )
    return flags


def _curves(cosines: list[float], loss: list[float]) -> list[dict[str, Any]]:
    """The head's direction and the loss, for the report."""
    return [
        {
            "name": "cosine between the head and the old one",
            "x_name": "epoch",
            "x": list(range(len(cosines))),
            "y": cosines,
        },
        *epoch_curves({"loss with the penalty": loss}),
    ]
