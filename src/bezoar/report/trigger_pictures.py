"""The pictures of a report: the triggers that were recovered, and what the network makes of them.

A patch is shown as its mask m and pattern D; A(x) = (1 - m) x + m D is the stamped image. Any other
trigger is shown by what it does: images without it, with it, and the difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods import Evidence
from bezoar.methods.generated_trigger import size
from bezoar.methods.neural_cleanse_triggers import Triggers
from bezoar.report.pictures import Picture

SHOWN = 8
MOST_AMPLIFIED = 100

ANSWERS = "Below each image stands what the network answers without the trigger and with it."


def triggers(
    classifier: Classifier,
    images: ImageSet,
    evidence: Sequence[Evidence],
    suspects: Sequence[int],
    *,
    most: int = 2,
) -> list[Picture]:
    """Rows for each of the first ``most`` suspects and each witness with a trigger for it.

    A patch has two: its mask, pattern and their product; then the patch on clean images that are
    answered with other classes, one of each class first, with the network's answers before and
    after. Any other trigger has three: such images without it, with it, and the difference.
    """
    rows = []
    answers = classifier.logits(images).argmax(1).cpu() if suspects else torch.empty(0)
    for k in list(suspects)[:most]:
        chosen = one_of_each(answers, k)
        plain = images.subset(chosen).images.to(classifier.device).float() / 255
        before = [classifier.classes[answer] for answer in answers[chosen].tolist()]
        for witness in evidence:
            found = witness.recovered
            if found is None or k not in found.classes:
                continue
            title = f"Trigger recovered for class {classifier.classes[k]} by {witness.method}"
            caption = _works(witness.carried_into(k))
            if isinstance(found, Triggers):
                rows.append(_patch(found, k, title, caption))
            if not len(chosen):
                continue
            stamped = found.stamp(plain, k)
            moved = _moved(classifier, stamped, before)
            if isinstance(found, Triggers):
                rows.append(
                    Picture("That trigger on clean images", ANSWERS, _pixels(stamped), moved)
                )
            else:
                rows += _without_and_with(plain, stamped, before, moved, title, caption)
    return rows


def _works(share: float | None) -> str:
    works = ""
    if share is not None:
        works = f"It works on {100 * share:.1f} % of the held-out images of other classes. "
    return f"{works}The attacker's own trigger may look different."


def _patch(found: Triggers, k: int, title: str, works: str) -> Picture:
    row = found.classes.index(k)
    mask, pattern = found.masks[row], found.patterns[row]
    return Picture(
        title,
        f"A trigger whose mask adds up to {float(mask.sum()):.1f} of {mask.numel():,} pixels. "
        + works,
        _pixels(torch.stack([mask.expand_as(pattern), pattern, mask * pattern])),
        ("mask", "pattern", "mask × pattern"),
    )


def _without_and_with(
    plain: Tensor,
    stamped: Tensor,
    before: Sequence[str],
    moved: tuple[str, ...],
    title: str,
    works: str,
) -> list[Picture]:
    change = stamped - plain
    # The strongest change reaches black or white: half of the range.
    factor = min(MOST_AMPLIFIED, max(1.0, 0.5 / max(float(change.abs().max()), 1e-9)))
    strength = f"{factor:.3g} times amplified" if factor > 1 else "not amplified"
    levels = [f"{255 * float(rms):.1f}" for rms in size(plain, stamped)]
    return [
        Picture(
            f"{title}: images without it",
            "Clean images, with the network's answers.",
            _pixels(plain),
            tuple(before),
        ),
        Picture("The same images with that trigger", f"{ANSWERS} {works}", _pixels(stamped), moved),
        Picture(
            "What it changes",
            f"The difference, {strength}; grey is unchanged. Below stands its root mean square "
            "over the pixels, in levels of 255.",
            _pixels((0.5 + factor * change).clamp(0, 1)),
            tuple(levels),
        ),
    ]


def _moved(classifier: Classifier, stamped: Tensor, before: Sequence[str]) -> tuple[str, ...]:
    """The answers without and with the trigger, for each image."""
    with classifier.evaluating(), torch.inference_mode():
        after = classifier(stamped).argmax(1).tolist()
    return tuple(f"{old} → {classifier.classes[k]}" for old, k in zip(before, after, strict=True))


def one_of_each(answers: Tensor, k: int, most: int = SHOWN) -> Tensor:
    """Up to ``most`` images that are not answered with ``k``: first one of each class, in turns.

    >>> one_of_each(torch.tensor([3, 3, 1, 0, 1, 3]), 0, most=4).tolist()
    [2, 0, 4, 1]
    """
    turns: dict[int, int] = {}
    order = []
    for place, answer in enumerate(answers.tolist()):
        turn = turns[answer] = turns.get(answer, -1) + 1
        if answer != k:
            order.append((turn, answer, place))
    return torch.tensor([place for *_, place in sorted(order)[:most]], dtype=torch.long)


def _pixels(images: Tensor) -> np.ndarray:
    """Images (n, c, h, w) in [0, 1] as uint8 (n, h, w, c)."""
    pixels: np.ndarray = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels
