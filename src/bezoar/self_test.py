"""Plant and find: would this scan have seen a backdoor in *this* model, and cleaning removed it?

A measured power comes from other networks. Here a known patch is planted in a copy of the user's
own model, by a short fine-tuning on a part of the clean images, and the copy goes through
``clean``, which scans it first, with the same images and settings as the model itself. The patch
and its class are used afterwards, on images that the planting did not see:

    L = KL(f_0(x) || f(x)) + CE(f(A(x)), t)        f_0 the model, A the patch, t the planted class

The first term keeps the copy what the model is; the second plants. This is the one place where a
trigger and a scan meet; the scan is given neither (ours).

What it shows is power against a small patch of this kind, planted by a short fine-tuning. A real
attacker trains from the start and may have chosen another trigger; those are often harder to see.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.attacks import BadNets
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.evaluation import Scores, evaluate
from bezoar.images import ImageSet
from bezoar.methods.distilling import divergence
from bezoar.pipeline import clean as clean_model
from bezoar.scanning import Witnesses
from bezoar.training import Loss, Progress, Recipe, fit, no_progress

PLANTING = 0.6  # share of the images that plant; the others measure
SHARE = 0.3  # of a batch that carries the patch
PLANTED = 0.95  # attack success rate, in [0, 1], from which the patch counts as planted
COST = 0.05  # largest loss of accuracy of a planted copy
ROUNDS = 6
RECIPE = Recipe(
    epochs=8,
    batch_size=32,
    learning_rate=0.01,
    schedule="cosine",
    batch_norm="eval",  # the statistics of batches that carry patches would cost accuracy
    clip_norm=5.0,
)


def self_test(
    classifier: Classifier,
    images: ImageSet,
    *,
    seed: int = 0,
    witnesses: Witnesses | None = None,
    avoid: Collection[int] = (),
    recipe: Recipe = RECIPE,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Plants a patch in a copy, scans and cleans the copy, and measures with the patch.

    Args:
        classifier: the user's model; it stays as it is.
        images: labelled clean images, the same as for the scan.
        seed: of the class, the planting and everything after it.
        witnesses: who looks, as in the scan.
        avoid: classes that are not planted, such as those that the model's own scan suspects.
        recipe: of one round of planting.
        progress: called with what is done and its share.

    Returns:
        The record: ``planted``, ``found``, the figures and a ``sentence``.

    Raises:
        InputError: no labels, too few images, or no class is left to plant.
    """
    started = time.perf_counter()
    images.require_labels("the self-test")
    classifier.trace(images.shape)
    planting, measuring = images.split(PLANTING, seed=seed)
    if not len(measuring):
        raise InputError(
            f"there are {len(images)} clean images, one of each class, and the self-test needs "
            "some to plant with and others to measure; give at least two images of each class"
        )
    attack = trigger(classifier, images, seed=seed, avoid=avoid)
    name = classifier.classes[attack.target]
    planted, before = plant(classifier, planting, measuring, attack, recipe, seed, progress)
    was = evaluate(classifier, measuring, attack)
    record: dict[str, Any] = {
        "trigger": {"name": attack.name, "size": attack.size, "position": attack.position},
        "target": attack.target,
        "model": was.as_record(),
        "copy": before.as_record(),
        "planted": _planted(was, before),
        "planted_on": len(planting),
        "measured_on": len(measuring),
    }
    patch = f"a {attack.size}x{attack.size} patch for class {name}"
    if not record["planted"]:
        record["sentence"] = (
            f"The self-test could not plant {patch} in a copy of this model: its success rate is "
            f"{_percent(before.asr)}, accuracy went from {_percent(was.acc)} to "
            f"{_percent(before.acc)}. So it says nothing about the scan."
        )
        return record | {"seconds": {"total": time.perf_counter() - started}}
    repair = clean_model(planted, images, seed=seed, witnesses=witnesses, progress=progress)
    scan = repair.record["scan"]
    kept = repair.classifier if repair.record["accepted"] else planted
    after = evaluate(kept, measuring, attack)
    trials, which = repair.record.get("trials", []), repair.record.get("kept")
    record |= {
        "verdict": scan["verdict"],
        "rank": scan["ranking"].index(attack.target) + 1,
        "p": scan["p_values"][attack.target],
        "found": attack.target in scan["suspects"],
        "untouched": repair.record["untouched"],
        "accepted": repair.record["accepted"],
        "steps": trials[which]["steps"] if which is not None else [],
        "cleaned": after.as_record(),
    }
    record["sentence"] = _sentence(patch, record, before, after)
    return record | {"seconds": {"total": time.perf_counter() - started}}


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
    side = min(images.shape[1:])
    return BadNets(target=target, size=min(side, max(2, round(side / 10))))


def plant(
    classifier: Classifier,
    planting: ImageSet,
    measuring: ImageSet,
    attack: BadNets,
    recipe: Recipe,
    seed: int,
    progress: Progress = no_progress,
) -> tuple[Classifier, Scores]:
    """A copy with the patch, and its scores on images that did not plant.

    Rounds of training end as soon as the patch works on the measuring images at little cost.
    """
    was = evaluate(classifier, measuring, attack)
    original, copy = classifier.copy(), classifier.copy()
    original.network.eval()
    for parameter in copy.network.parameters():
        parameter.requires_grad_(True)
    loss = planting_loss(original, attack)
    for number in range(ROUNDS):
        what = f"self-test: planting a patch, round {number + 1}"
        fit(copy, planting, recipe, seed=seed + number, loss=loss, progress=progress, what=what)
        scores = evaluate(copy, measuring, attack)
        if _planted(was, scores):
            break
    return copy, scores


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


def _planted(was: Scores, copy: Scores) -> bool:
    return copy.asr >= PLANTED and was.acc - copy.acc <= COST


def _sentence(patch: str, record: dict[str, Any], before: Scores, after: Scores) -> str:
    p = record["p"]
    shown = "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"
    told = (
        f"On a copy of this model with {patch}, planted by us, this scan said: "
        f"{record['verdict']}; that class came {_place(record['rank'])} ({shown}). "
    )
    if record["untouched"]:
        return f"{told}So cleaning left the copy as it was: the scan would have missed this patch."
    success = f"from {_percent(before.asr)} to {_percent(after.asr)}"
    accuracy = f"accuracy from {_percent(before.acc)} to {_percent(after.acc)}"
    refused = "" if record["accepted"] else " (the repair was not accepted)"
    return f"{told}Cleaning took the attack success rate {success}, {accuracy}{refused}."


def _place(rank: int) -> str:
    return "first" if rank == 1 else f"as number {rank}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
