"""SAU, shared adversarial unlearning: unlearn examples that fool the old and the new network alike.

Idea: an image with a trigger fools the backdoored network f_0, and as long as the backdoor is there
it fools the network f that is being repaired into the same class. So the risk of a backdoor is
bounded by the risk of *shared* adversarial examples, which are made from clean images
(``sau_examples``), and f learns to disagree with f_0 on them:

    min over f   l1 CE(f(x), y) + l2 CE(f(x'), y) + l3 L_sh(x'),
    L_sh = mean over x' of  1[f_0 was fooled] * -log(1 - p_k(f(x'))),   k the answer of f_0 to x'

Where f_0 was fooled: its answer to x' is neither the label nor its answer to x.

Paper: Wei, Zhang, Zha, Wu, "Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared
Adversarial Examples", NeurIPS 2023, arXiv 2307.10562. Its body could not be reached; all of this
follows the authors' code in BackdoorBench, which also cuts p_k off below 0.001, where the gradient
is next to zero (not followed).

Ours, for some hundred images on a CPU: what ``sau_examples`` calls so; small batches, a larger rate
that falls to 0, and 8 rounds instead of 100.

Data: labelled clean images. Layers: any. Known failures: a trigger that
changes pixels by more than the radius (a patch of full contrast) is only met through what it shares
with small changes; accuracy is paid for it, by networks without a backdoor too; seeds differ.
"""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.epoch_curves import epoch_curves
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.methods.sau_examples import Answers, Examples, shared_examples
from bezoar.training import Progress, Recipe, fit, no_progress

_BETA = 0.999  # Adam's second; the first is the recipe's momentum
_MANY = 0.1  # share of examples that are still shared at the end, above which it is said


@methods.register("sau")
class SAU(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unlearning of adversarial examples that the network shares with what it was.

    Attributes:
        examples: how they are made.
        clean: l1, weight of the loss on plain images.
        adversarial: l2, weight of the loss on the examples with their true labels.
        shared: l3, weight of the loss on the class that the original network answers.
        recipe: how to train, by Adam, whose first beta is the momentum.
    """

    name: ClassVar[str] = "sau"
    title: ClassVar[str] = "Shared adversarial unlearning"
    paper: ClassVar[str] = "Wei et al. 2023, arXiv 2307.10562"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any"
    cost: ClassVar[str] = "8 epochs, each image some ten times; a minute on a CPU"

    examples: Examples = Examples()
    clean: float = 1.0
    adversarial: float = 0.0
    shared: float = 1.0
    recipe: Recipe = Recipe(
        epochs=8, batch_size=32, learning_rate=1e-3, weight_decay=0.0, batch_norm="eval"
    )

    def __post_init__(self) -> None:
        for name in ("clean", "adversarial", "shared"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")

    @classmethod
    def published(cls) -> Self:
        """The authors' settings in BackdoorBench, for PreActResNet-18 and 2500 images."""
        return cls(
            examples=Examples.published(),
            recipe=Recipe(
                epochs=100,
                batch_size=256,
                learning_rate=1e-4,
                schedule="constant",
                weight_decay=0.0,
                batch_norm="eval",
            ),
        )

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a copy that shares fewer adversarial examples with the original.

        Raises:
            InputError: no labels, or some that the network has no logit for; or it diverged.
        """
        started = time.perf_counter()
        clean.require_labels("SAU")
        repaired, original = classifier.copy(), classifier.copy()
        original.network.requires_grad_(False).eval()
        original.trace(clean.shape).to_fast_layout()
        unlearning = SharedUnlearning(original, self)
        recipe = self.recipe
        history = fit(
            repaired,
            clean,
            recipe,
            seed=seed,
            loss=unlearning,
            optimizer=torch.optim.Adam(
                repaired.network.parameters(),
                recipe.learning_rate,
                betas=(recipe.momentum, _BETA),
                weight_decay=recipe.weight_decay,
            ),
            before_epoch=unlearning.begin,
            progress=progress,
            what="SAU: shared adversarial unlearning",
        )
        fooled, shared = unlearning.shares()
        return Repair(
            repaired,
            {
                "original fooled": fooled,
                "shared": shared,
                "flags": _flags(fooled, shared),
                "curves": _curves(fooled, shared, history.loss),
                "seconds": {"total": time.perf_counter() - started},
            },
        )


class SharedUnlearning:
    """The loss of SAU on a batch, as ``fit`` calls it; it makes the examples itself.

    Args:
        original: f_0, frozen and in eval mode.
        settings: the weights, and how examples are made.
    """

    def __init__(self, original: Classifier, settings: SAU) -> None:
        self.original = original
        self.settings = settings
        self.seen: list[list[Tensor]] = []  # of each epoch, of each batch (original fooled, shared)

    def begin(self, _epoch: int) -> None:
        """Counts a new epoch."""
        self.seen.append([])

    def __call__(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """The loss, with a graph to the weights of ``classifier`` alone."""
        how = self.settings
        perturbed, original_plain = shared_examples(
            classifier, self.original, images, labels, how.examples, generator
        )
        with torch.no_grad():
            wrong = self.original(perturbed).argmax(1)
        # One pass over both: with batch statistics, these are of all images.
        plain, logits = classifier(torch.cat([images, perturbed])).float().chunk(2)
        answers = Answers(plain.argmax(1), original_plain, logits.argmax(1), wrong)
        fooled = answers.original_fooled & (wrong != labels)
        self.seen[-1].append(
            torch.stack([fooled, answers.shared & (logits.argmax(1) != labels)]).float()
        )
        loss = how.clean * F.cross_entropy(plain, labels)
        if how.adversarial:
            loss = loss + how.adversarial * F.cross_entropy(logits, labels)
        return loss + how.shared * shared_risk(logits, wrong, fooled)

    def shares(self) -> tuple[list[float], list[float]]:
        """Of each epoch: how many examples fooled the original, and how many were shared."""
        # With batch statistics, ``fit`` leaves out single images: an epoch of one has no batch.
        means = [torch.cat(batches, 1).mean(1).tolist() for batches in self.seen if batches]
        return [fooled for fooled, _ in means], [shared for _, shared in means]


def shared_risk(logits: Tensor, classes: Tensor, fooled: Tensor) -> Tensor:
    """L_sh: the mean over all n images of -log(1 - p_k) where f_0 was fooled, and 0 elsewhere.

    Args:
        logits: of f, (n, C).
        classes: k, the answers of f_0, (n,).
        fooled: where f_0 was fooled, (n,).

    >>> both = torch.tensor([True, False])
    >>> round(float(shared_risk(torch.zeros(2, 4), torch.tensor([1, 3]), both)), 4)  # -log(3/4) / 2
    0.1438
    """
    rest = logits.scatter(1, classes[:, None], -math.inf)
    # log(1 - p_k) = logsumexp(other logits) - logsumexp(all logits), without cancellation
    kept = torch.logsumexp(rest, 1) - torch.logsumexp(logits, 1)
    return torch.where(fooled, -kept, 0.0).mean()


def _flags(fooled: list[float], shared: list[float]) -> list[str]:
    """What the user should know before trusting the repair."""
    flags = []
    if max(fooled) < _MANY:
        flags.append(
            f"At most {max(fooled):.0%} of the examples fooled the original network, so there was "
            "little to unlearn; a larger examples.radius finds more."
        )
    if shared[-1] > _MANY:
        flags.append(
            f"In the last epoch {shared[-1]:.0%} of the examples still fooled the network and the "
            "original into the same class; a part of a backdoor may be left."
        )
    return flags


def _curves(fooled: list[float], shared: list[float], loss: list[float]) -> list[dict[str, Any]]:
    """Shares and loss, for the report."""
    return epoch_curves(
        {
            "share of examples that fool the original": fooled,
            "share of examples that are shared": shared,
            "loss": loss,
        }
    )
