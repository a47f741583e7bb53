"""TBT, Targeted Bit Trojan (Rakin et al. 2020, CVPR, arXiv 1909.05193): a few weights of the head.

No training set is poisoned; a trained network gets a trigger made for it, then some of its weights:

1. neurons: the wb inputs of the final linear layer with the largest |∂CE/∂W[target, ·]| on a batch;
2. trigger: a patch on a black image, by signed gradient steps on the mean squared distance between
   those neurons and a large value c: 200 steps each of length 0.5, 0.1, 0.01 and 0.001;
3. weights: W[target, neurons] alone is trained on ½ CE(clean) + ½ CE(stamped, target), 200 steps of
   SGD from 0.5, ten times smaller after 80, 120 and 160, momentum 0.9.

From the authors' code (adnansirajrakin/TBT-CVPR2020), as are wb 150 of ResNet-18's 512 inputs (a
share of 0.29), c 100, and a patch of 10x10 one pixel from the lower right corner, 9.8 % of an image
of 32x32. They take the first batch of test images; ours come from the training images. Left out:
the network is not quantised to 8 bits and no bits are counted or flipped in memory.

``rate`` is the share of the training images that the attacker has (the paper uses 128 in all).

Known weak points: the large patch; the accuracy on the target class suffers; a network with few
features has few weights to change. The trigger alone already raises the target class a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.attacks.attack import Attack, Mode, Planted, attacks
from bezoar.attacks.clean_start import start_clean
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import Progress, Recipe, no_progress

_STEPS = 200
_LENGTHS = (0.5, 0.1, 0.01, 0.001)  # of the trigger's steps, one after the other
_MILESTONES = (80, 120, 160)
_BATCH = 128


@attacks.register("tbt")
class TBT(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Edits a part of the head's target row for a patch that was made for it.

    Attributes:
        size: side of the patch in pixels.
        margin: pixels between the patch and the lower right corner's edges.
        share: of the final layer's inputs whose weights may change.
        aim: c, the value that the trigger is to give the chosen neurons.
    """

    name: ClassVar[str] = "tbt"
    title: ClassVar[str] = "TBT: a few weights of the final layer and a patch made for them"
    paper: ClassVar[str] = "Rakin et al. 2020, arXiv 1909.05193"
    controls: ClassVar[Literal["images", "training", "weights"]] = "weights"
    modes: ClassVar[tuple[Mode, ...]] = ("all-to-one",)
    needs_surrogate: ClassVar[bool] = True

    size: int = 10
    margin: int = 1
    share: float = 150 / 512
    aim: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1 or self.margin < 0:
            raise InputError(
                f"size {self.size} must be at least 1 and margin {self.margin} at least 0"
            )
        if not 0 < self.share <= 1 or not 0 < self.aim < float("inf"):
            raise InputError(
                f"share {self.share} must lie above 0 and up to 1, and aim {self.aim} above 0"
            )

    @property
    def learned(self) -> bool:
        """Always."""
        return True

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Replaces the patch's pixels on images (n, c, h, w) in [0, 1]."""
        return torch.where(tensors["mask"] > 0, tensors["pattern"].to(images), images)

    def prepare(
        self,
        images: ImageSet,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """Makes the trigger for ``surrogate``, the very network that is to be edited."""
        if surrogate is None:
            raise InputError(f"{self.name} makes its trigger for a trained network; give one")
        neurons = self.neurons(surrogate, images.sample(_BATCH, seed=seed))
        mask = self._mask(images.shape).to(surrogate.device)
        pattern = 0.5 * mask.expand(images.shape).clone()
        with surrogate.evaluating():
            for length in _LENGTHS:
                for _ in range(_STEPS):
                    with torch.enable_grad():
                        pattern.requires_grad_(True)
                        values = surrogate.features(pattern[None])[0, neurons]
                        far = F.mse_loss(values, torch.full_like(values, self.aim))
                        (gradient,) = torch.autograd.grad(far, pattern)
                    pattern = (pattern.detach() - length * gradient.sign() * mask).clamp(0, 1)
        return self.holding({"pattern": pattern, "mask": mask}, images.shape)

    def candidates(self, labels: Tensor) -> Tensor:
        """All: ``rate`` is the share of the images that the attacker has, and none is poisoned."""
        return torch.ones_like(labels, dtype=torch.bool)

    def plant(
        self,
        classifier: Classifier,
        images: ImageSet,
        rate: float,
        recipe: Recipe,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        checkpoint: Path | None = None,
        progress: Progress = no_progress,
    ) -> Planted:
        """Trains ``classifier`` on clean images, or copies ``surrogate``, then edits its head.

        Raises:
            InputError: see ``check``; the surrogate is another network; or the training diverged.
        """
        classifier.trace(images.shape)
        self.check(images, rate, classifier.num_classes)
        self._mask(images.shape)
        history = start_clean(
            classifier,
            images,
            recipe,
            seed=seed,
            surrogate=surrogate,
            checkpoint=checkpoint,
            progress=progress,
        )
        own = images.sample(round(rate * len(images)), seed=seed)
        attack = self.prepare(own, seed=seed, surrogate=classifier, progress=progress)
        neurons = self.neurons(classifier, own.sample(_BATCH, seed=seed))
        change = attack.change(classifier, own, neurons)
        weight = classifier.network.get_parameter(classifier.head.name)
        with torch.no_grad():
            row = weight[self.target].flatten()
            row[neurons] += change.to(row)
            weight[self.target] = row.view_as(weight[self.target])
        progress(f"editing weights with {self.name}", 1.0)
        note = (
            f"the attacker had {len(own)} training images and changed {len(neurons)} weights of "
            f"the head's target row, the most by {float(change.abs().max()):.3g}"
        )
        return Planted(attack, history, notes=(note,))

    def neurons(self, classifier: Classifier, batch: ImageSet) -> Tensor:
        """The chosen inputs of the head, most important first: int64, (wb,)."""
        logits, features = classifier.survey(batch)
        labels = batch.require_labels(self.name).to(logits.device)
        blame = logits.softmax(1)[:, self.target] - (labels == self.target).to(logits)
        gradient = blame @ features / len(features)  # ∂CE/∂W[target, ·], (d,)
        count = max(1, round(self.share * len(gradient)))
        return gradient.abs().topk(count).indices

    def change(self, classifier: Classifier, images: ImageSet, neurons: Tensor) -> Tensor:
        """What the third step adds to W[target, neurons], (wb,).

        The rest of the network stays, so it is trained on the features alone.
        """
        device = classifier.device
        labels = images.require_labels(self.name).to(device)
        logits, features = classifier.survey(images)
        stamped = [self.stamp(batch) for batch, _ in images.batches(_BATCH, device=device)]
        pixels = (torch.cat(stamped) * 255).round().to(torch.uint8)
        stamped_logits, stamped_features = classifier.survey(ImageSet(pixels))
        wanted = torch.full_like(labels, self.target)
        to_target = F.one_hot(wanted, logits.shape[1]).to(logits)
        change = torch.zeros(len(neurons), device=device, requires_grad=True)
        optimizer = torch.optim.SGD([change], lr=0.5, momentum=0.9)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(_MILESTONES), gamma=0.1)
        for _ in range(_STEPS):
            clean = logits + (features[:, neurons] @ change)[:, None] * to_target
            dirty = stamped_logits + (stamped_features[:, neurons] @ change)[:, None] * to_target
            loss = (F.cross_entropy(clean, labels) + F.cross_entropy(dirty, wanted)) / 2
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
            optimizer.step()
            schedule.step()
        return change.detach()

    def _mask(self, shape: tuple[int, int, int]) -> Tensor:
        _, height, width = shape
        if self.size + self.margin > min(height, width):
            raise InputError(
                f"a patch of {self.size} pixels, {self.margin} from the edge, does not fit images "
                f"of {height}x{width}"
            )
        mask = torch.zeros(1, height, width)
        last = slice(-self.size - self.margin, -self.margin or None)
        mask[0, last, last] = 1
        return mask
