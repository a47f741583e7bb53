"""What one additive pattern does to a network's answers, and where it leads them.

A class that most of the changed answers go to is the target that the pattern suggests. It has no
known rate of false alarms: universal patterns lead the answers of backdoor-free networks, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import BATCH
from bezoar.images import ImageSet
from bezoar.methods.indexed_batches import Logits, in_order, pixels
from bezoar.methods.universal_pattern import Ascent


@dataclass(frozen=True)
class Effect:
    """What a pattern does to a network's answers, on n images.

    Attributes:
        cross_entropy: mean, with the network's own answers to the plain images.
        norm: ‖δ‖.
        changed: the share of the answers that change.
        towards: how many of the changed answers are each class, (C,).
        target: the commonest of them; the lowest class where none changed.
        led: the share of the images of other answers that are led there.
    """

    cross_entropy: float
    norm: float
    changed: float
    towards: tuple[int, ...]
    target: int
    led: float

    def as_record(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """The plain form; the target's share is that of the changed answers, None without any."""
        moved = sum(self.towards)
        return {
            "cross_entropy": self.cross_entropy,
            "norm": self.norm,
            "changed": self.changed,
            "towards": list(self.towards),
            "suspected_target": self.target if moved else None,
            "suspected_class": classes[self.target] if moved else None,
            "target_share": self.towards[self.target] / moved if moved else None,
            "led": self.led,
        }


def effect_of(logits: Logits, images: ImageSet, pattern: Tensor, settings: Ascent) -> Effect:
    """What ``pattern`` does to the network's answers to ``images``, at least one, on its device."""
    plain, shown = [], []
    with torch.no_grad():
        for where in in_order(len(images), BATCH):
            batch = pixels(images, where.to(images.images.device))
            plain.append(logits(batch).argmax(1))
            shown.append(logits(settings.show(batch, pattern)).float())
    before, after = torch.cat(plain), torch.cat(shown)
    answers, classes = after.argmax(1), after.shape[1]
    towards = answers[answers != before].bincount(minlength=classes)
    target = int(towards.argmax())
    others = int((before != target).sum())
    return Effect(
        cross_entropy=float(F.cross_entropy(after, before)),
        norm=float(pattern.norm()),
        changed=int(towards.sum()) / len(before),
        towards=tuple(towards.tolist()),
        target=target,
        led=int(towards[target]) / max(1, others),
    )
