"""Whether synthetic samples carry the attacker's trigger, when that is known: benchmarks only.

Three looks (ours) at a labelled set of samples, for each trigger of the attack:

- *Accuracy* of an independent, clean classifier on them: the target class against the others. A
  sample that shows the trigger instead of the class convinces the suspect alone.
- *Correlation*: t is what the trigger adds to an image, the mean of stamp(x) - x over samples of
  other classes, less its own mean; d the mean sample of the target class less that of the others.
  ``correlation`` = <d, t> / (|d| |t|); ``share`` = <d, t> / |t|², 1 where the whole trigger is
  there. The p-value is that of <d, t> when labels are permuted among the samples; ``rank`` is the
  target's place when each class in turn is compared with the rest, 1 for the largest.
- *Inpainting*: the pixels that the trigger changes are filled from around. ``change`` is by how
  much, relative to before, the suspect's logit of a sample's label (less the mean of the logits)
  moves: far down where the trigger made the label. It is told for the target class and the others.

Known failures: a class can look like the trigger by nature (a bright corner), and the p-value then
is small without any trigger, so that the rank should be read beside it; with ten classes a rank of
1 alone happens by chance in one of ten. A trigger that differs from image to image (``constancy``
well below 1) has no mean to correlate with, and one that covers most of the image leaves nothing to
fill it from.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.attacks import Attack
from bezoar.classifier import BATCH, Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.metrics import accuracy

PERMUTATIONS = 2000
THRESHOLD = 8 / 255  # the mean change from which on a pixel is the trigger's
LARGEST = 0.5  # share of the image above which nothing is left to fill the trigger from


def check_samples(
    images: ImageSet,
    attack: Attack,
    *,
    evaluator: Classifier | None = None,
    suspect: Classifier,
    seed: int,
) -> dict[str, Any]:
    """Runs the checks; both classifiers stay as they are.

    Args:
        images: the samples, with the labels that they are meant to have.
        attack: the one that was planted in the suspect, holding its trigger.
        evaluator: an independent classifier of the same classes without a backdoor; None skips
            the accuracy.
        suspect: the backdoored classifier.
        seed: of the permutations.

    Returns:
        JSON-able: ``count``; ``accuracy`` of the evaluator, ``overall`` and ``per_class``, or None;
        ``triggers``, for each of the attack's triggers its ``name``, ``target``, ``accuracy``,
        ``correlation`` and ``inpainting``. What cannot be measured is None, beside a ``reason``.

    Raises:
        InputError: no labels, a label the suspect does not have, an attack without one target
            class, or a trigger that does not fit the images.
    """
    labels = images.require_labels("checking samples").cpu()
    for part in attack.parts:
        if part.mode == "all-to-all":
            raise InputError(
                f"{part!r} has a target for every class; the samples of one target class cannot "
                "be compared with the others"
            )
    for classifier in (suspect, *([evaluator] if evaluator is not None else [])):
        classifier.trace(images.shape)
        images.class_counts(classifier.num_classes)
    answers = None if evaluator is None else evaluator.logits(images).argmax(1).cpu()
    return {
        "count": len(images),
        "accuracy": None if answers is None else _accuracies(answers, labels),
        "triggers": [
            _one_trigger(images, labels, part, answers, suspect, seed) for part in attack.parts
        ],
    }


def _accuracies(answers: Tensor, labels: Tensor) -> dict[str, Any]:
    return {
        "overall": accuracy(answers, labels).as_record(),
        "per_class": {
            str(int(k)): accuracy(answers[labels == k], labels[labels == k]).as_record()
            for k in torch.unique(labels)
        },
    }


def _one_trigger(
    images: ImageSet,
    labels: Tensor,
    attack: Attack,
    answers: Tensor | None,
    suspect: Classifier,
    seed: int,
) -> dict[str, Any]:
    """The three looks for one trigger."""
    record = {"name": attack.name, "target": attack.target}
    of_target = labels == attack.target
    if not of_target.any() or of_target.all():
        kind = "no sample" if not of_target.any() else "every sample"
        reason = f"{kind} is of the target class {attack.target}"
        return {**record, "reason": reason} | dict.fromkeys(
            ("accuracy", "correlation", "inpainting")
        )
    pixels = images.images.cpu().float() / 255
    added = torch.cat(
        [attack.stamp(part) - part for part in torch.split(pixels[~of_target], BATCH)]
    )
    groups = {"target": of_target, "others": ~of_target}
    return {
        **record,
        "reason": None,
        "accuracy": None
        if answers is None
        else {
            name: accuracy(answers[where], labels[where]).as_record()
            for name, where in groups.items()
        },
        "correlation": correlation(pixels, labels, attack.target, added, seed=seed),
        "inpainting": _inpainting(images, labels, of_target, added, suspect),
    }


def correlation(
    pixels: Tensor, labels: Tensor, target: int, added: Tensor, *, seed: int
) -> dict[str, Any]:
    """How much of a trigger the mean sample of the target class shows.

    Args:
        pixels: the samples, (n, c, h, w), in [0, 1].
        labels: (n,), of the target class and of others.
        target: the class.
        added: what the trigger adds to images, (m, c, h, w).
        seed: of the permutations.

    Returns:
        ``correlation``, ``share``, ``p_value``, ``rank`` of so many ``classes`` (as described for
        the module), and ``constancy``: |mean of what is added|² over the mean of |what is added|².
        None with a ``reason`` where the trigger adds the same to every pixel, or nothing.
    """
    flat = pixels.flatten(1).double()
    changes = added.flatten(1).double()
    mean = changes.mean(0)
    energy = float(changes.square().sum(1).mean())
    t = mean - mean.mean()
    length = float(t.norm())
    if length <= 1e-9 * math.sqrt(len(t)):
        return dict.fromkeys(
            ("correlation", "share", "p_value", "rank", "classes", "constancy")
        ) | {"reason": "on average the trigger adds the same to every pixel, or nothing"}
    along = flat @ t  # <d, t> is a difference of means of these
    gaps = {int(k): _gap(along, labels == k) for k in torch.unique(labels)}
    of_target = labels == target
    d = flat[of_target].mean(0) - flat[~of_target].mean(0)
    d = d - d.mean()
    generator = torch.Generator().manual_seed(seed)
    reached = sum(
        _gap(along, of_target[torch.randperm(len(along), generator=generator)]) >= gaps[target]
        for _ in range(PERMUTATIONS)
    )
    span = float(d.norm()) * length
    return {
        "correlation": gaps[target] / span if span else 0.0,
        "share": gaps[target] / length**2,
        "p_value": (1 + reached) / (1 + PERMUTATIONS),
        "rank": 1 + sum(gap > gaps[target] for gap in gaps.values()),
        "classes": len(gaps),
        "constancy": float(mean.square().sum()) / energy,
        "reason": None,
    }


def _gap(values: Tensor, chosen: Tensor) -> float:
    """The mean of the chosen values less that of the others."""
    return float(values[chosen].mean() - values[~chosen].mean())


def _inpainting(
    images: ImageSet, labels: Tensor, of_target: Tensor, added: Tensor, suspect: Classifier
) -> dict[str, Any]:
    """What filling the trigger's region does to the suspect's logits of the labels."""
    region = added.abs().mean(0).amax(0) > THRESHOLD
    share = float(region.float().mean())
    if not 0 < share <= LARGEST:
        return {"region": share, "target": None, "others": None} | {
            "reason": f"the trigger changes {share:.0%} of the pixels by more than "
            f"{THRESHOLD * 255:.0f}/255; the region is to be above 0 and at most {LARGEST:.0%}"
        }
    filled = inpaint(images.images.cpu().float() / 255, region)
    painted = ImageSet((filled * 255).round().byte(), labels)
    before, after = (suspect.logits(part).cpu() for part in (images, painted))
    answered = after.argmax(1) == labels
    own = [
        (logits - logits.mean(1, keepdim=True)).gather(1, labels[:, None]).flatten()
        for logits in (before, after)
    ]
    return {
        "region": share,
        **{
            name: {
                "change": float((own[1] - own[0])[where].mean() / own[0][where].abs().mean()),
                "before": accuracy(before.argmax(1)[where], labels[where]).as_record(),
                "after": float(answered[where].float().mean()),
            }
            for name, where in (("target", of_target), ("others", ~of_target))
        },
        "reason": None,
    }


def inpaint(images: Tensor, region: Tensor) -> Tensor:
    """Fills ``region`` from its border inwards; the input stays as it was.

    Round by round each pixel with known ones among its eight neighbours becomes their mean.

    Args:
        images: (n, c, h, w).
        region: bool, (h, w); not the whole image.

    Raises:
        InputError: the region is the whole image.

    >>> inpaint(torch.tensor([[[[1.0, 9.0, 2.0]]]]), torch.tensor([[False, True, False]]))
    tensor([[[[1.0000, 1.5000, 2.0000]]]])
    """
    if bool(region.all()):
        raise InputError("the region to fill is the whole image; there is nothing to fill it from")
    known = (~region).to(images)[None, None]
    filled = images * known
    kernel = torch.ones(1, 1, 3, 3).to(images)
    channels = images.shape[1]
    while not bool(known.all()):
        count = F.conv2d(known, kernel, padding=1)
        total = F.conv2d(filled, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)
        new = (known == 0) & (count > 0)
        filled = torch.where(new, total / count.clamp_min(1), filled)
        known = torch.maximum(known, new.to(known))
    return filled
