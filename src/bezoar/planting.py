"""A known patch, planted in a copy of a model by a short fine-tuning on clean images.

    L = KL(f_0(x) || f(x)) + CE(f(A(x)), t)        f_0 the model, A the patch, t the planted class
    theta = theta_0 + a (theta_1 - theta_0)        theta_1 after training, the smallest a that works

The first term keeps the copy what the model is; the second plants. The way back towards the model
gives up the part of the change that the patch does not need; Wortsman et al. 2022 (arXiv
2109.01903) average a tuned and an original network for another end. All of this is ours, and is
for the self-test alone: an attacker who trains from the start plants better.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import Tensor, nn

from bezoar.attacks import BadNets
from bezoar.attacks.bad_nets import Position
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.evaluation import Scores, evaluate
from bezoar.images import ImageSet
from bezoar.methods.distilling import divergence
from bezoar.training import Loss, Progress, Recipe, fit, no_progress

SHARE = 0.5  # of a batch that is shown with the patch as well
PLANTED = 0.95  # attack success rate, in [0, 1], from which the patch counts as planted
COST = 0.05  # largest loss of accuracy of a planted copy
ATTEMPTS = 3  # each with half the learning rate of the one before
STEP = 0.05  # of the way back to the model
RECIPE = Recipe(
    epochs=36,
    batch_size=32,
    learning_rate=0.02,
    schedule="one-cycle",
    batch_norm="eval",  # the statistics of batches that carry patches would cost accuracy
    clip_norm=5.0,  # without it, networks whose statistics stay diverge
)
CORNERS: tuple[Position, ...] = ("bottom-right", "bottom-left", "top-right", "top-left")


def trigger(
    classifier: Classifier, images: ImageSet, *, seed: int, avoid: Collection[int]
) -> BadNets:
    """A patch in a corner, about a tenth of the side, for a class that is drawn.

    Raises:
        InputError: every class is to be avoided.
    """
    left = [k for k in range(classifier.num_classes) if k not in avoid]
    if not left:
        raise InputError("no class is left to plant a patch for: all are suspected already")
    generator = torch.Generator().manual_seed(seed)
    target = left[int(torch.randint(len(left), (1,), generator=generator))]
    position = CORNERS[int(torch.randint(len(CORNERS), (1,), generator=generator))]
    side = min(images.shape[1:])
    return BadNets(target=target, size=min(side, max(2, round(side / 10))), position=position)


def plant(
    classifier: Classifier,
    planting: ImageSet,
    measuring: ImageSet,
    attack: BadNets,
    was: Scores,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[Classifier, Scores, dict[str, Any]]:
    """A copy with the patch, its scores on the measuring images, and how it was planted.

    Attempts end as soon as the patch works at little cost. ``was`` are the model's own scores.
    """
    original = classifier.copy()
    original.network.eval()
    loss = planting_loss(original, attack)
    for number in range(ATTEMPTS):
        copy = original.copy()
        for parameter in copy.network.parameters():
            parameter.requires_grad_(True)
        halved = replace(recipe, learning_rate=recipe.learning_rate / 2**number)
        what = f"self-test: planting a patch, attempt {number + 1}"
        how: dict[str, Any] = {
            "attempts": number + 1,
            "share": SHARE,
            "epochs": halved.epochs,
            "learning_rate": halved.learning_rate,
        }
        try:
            fit(copy, planting, halved, seed=seed + number, loss=loss, progress=progress, what=what)
        except InputError as error:  # it diverged; a smaller learning rate may not
            copy, scores = original.copy(), was
            how |= {"diverged": str(error)}
            continue
        how["kept"], scores = towards(original, copy, measuring, attack)
        if works(was, scores):
            break
    return copy, scores, how


def towards(
    original: Classifier, copy: Classifier, measuring: ImageSet, attack: BadNets
) -> tuple[float, Scores]:
    """Takes ``copy`` back towards the original, in place, as far as the patch works.

    Returns:
        The share of the change that is kept, and the scores with it.
    """
    start = [p.detach().clone() for p in original.network.parameters()]
    end = [p.detach().clone() for p in copy.network.parameters()]
    kept, scores = 1.0, evaluate(copy, measuring, attack)
    while scores.asr >= PLANTED and kept > STEP:
        share = round(kept - STEP, 2)
        _blend(copy.network, start, end, share)
        less = evaluate(copy, measuring, attack)
        if less.asr < PLANTED:
            break
        kept, scores = share, less
    _blend(copy.network, start, end, kept)
    return kept, scores


@torch.no_grad()
def _blend(network: nn.Module, start: list[Tensor], end: list[Tensor], share: float) -> None:
    for parameter, first, last in zip(network.parameters(), start, end, strict=True):
        parameter.copy_(torch.lerp(first, last, share))


def planting_loss(original: Classifier, attack: BadNets) -> Loss:
    """The loss above; the patch is put on after the augmentation, so that it stays whole."""

    def loss(
        classifier: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        carries = torch.rand(len(images), generator=generator).to(images.device) < SHARE
        carries &= labels != attack.target
        with torch.no_grad():
            wanted = original(images)
        stamped = attack.stamp(images[carries])
        answers = classifier(torch.cat((images, stamped)))
        total = divergence(answers[: len(images)], wanted, 1.0)
        if len(stamped):
            target = torch.full_like(labels[carries], attack.target)
            total = total + F.cross_entropy(answers[len(images) :], target)
        return total

    return loss


def works(was: Scores, copy: Scores) -> bool:
    """Whether a copy counts as planted, beside the model's own scores."""
    return copy.asr >= PLANTED and was.acc - copy.acc <= COST
