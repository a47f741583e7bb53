"""BTI-DBF, second step: a generator that leaves the benign features alone and moves the rest.

    min_G  mean_x  w |m (a(x) - a(G(x)))|  -  |(1 - m) (a(x) - a(G(x)))|     s.t. |x - G(x)| <= tau

with the feature map a and the mask m of ``bti_dbf_decoupling``. No class appears in it, so there is
no scan over classes: in a network with a backdoor the steepest way to move what is not benign is
the backdoor, and the class it leads to falls out of the answers (``votes``).

Paper: Xu et al., ICLR 2024 (OpenReview Tw9wemV6cb), eq. (2). Its official code takes mean squares
for norms, w = 0.01, and instead of the constraint a switch: a batch beyond 0.3 (mean square of
normalised pixels), or whose benign features move by more than 3, only pulls G back; behind a
purifier Q it puts Q(G(x)) for G(x) everywhere, there too. Its U-Net has no way around its norms and
must learn the identity for 50 epochs first (``pretrain``); the code's agreement term, a
cross-entropy fed with probabilities, is here the KL divergence from the clean to the generated
answer.

Ours: the generator starts as the identity (``ResidualGenerator``), the constraint holds for every
image by scaling its change back (``generated_trigger.bounded``), in pixel units whatever the
normalisation is, and what comes out is clipped to an image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.augmentation import crop_and_flip
from bezoar.classifier import BATCH, Classifier
from bezoar.device import seeded
from bezoar.errors import InputError
from bezoar.methods.bti_dbf_decoupling import Decoupled, index_batches
from bezoar.methods.bti_dbf_generators import GeneratorInversion, generator_optimizer
from bezoar.methods.distilling import divergence
from bezoar.methods.generated_trigger import bounded
from bezoar.splitting import Split
from bezoar.training import Progress, gradients_only_for, no_progress

Front = Callable[[Tensor], Tensor]
"""What stands before the network: images (n, c, h, w) in [0, 1] → the same (a purifier)."""


@dataclass
class Inverted:
    """A trained generator.

    Attributes:
        generator: images (n, c, h, w) in [0, 1] → the same, neither bounded nor clipped.
        bound: RMS limit of its change, or None.
        moved: mean movement of what is not benign, at each tenth.
        benign: mean movement of the benign features, at each tenth.
        pulled_back: share of batches that were beyond the switch's limits; 0 where the constraint
            always holds.
        steps: how many there were.
    """

    generator: nn.Module
    bound: float | None
    moved: list[float] = field(default_factory=list)
    benign: list[float] = field(default_factory=list)
    pulled_back: float = 0.0
    steps: int = 0

    def stamp(self, images: Tensor) -> Tensor:
        """G(x) within the bound and clipped, for images (n, c, h, w) in [0, 1]; differentiable."""
        return bounded(images, self.generator(images), self.bound)

    def as_record(self) -> dict[str, Any]:
        """The figures."""
        return {
            "steps": self.steps,
            "moved": self.moved,
            "benign moved": self.benign,
            "pulled back": self.pulled_back,
        }


def invert_generator(
    classifier: Classifier,
    decoupled: Decoupled,
    images: Tensor,
    settings: GeneratorInversion,
    *,
    seed: int,
    start: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    front: Front | None = None,
    target: int | None = None,
    avoid: Tensor | None = None,
    progress: Progress = no_progress,
) -> Inverted:
    """Trains a generator against ``classifier``, which is in eval mode and stays as it is.

    Args:
        classifier: whose maps ``decoupled`` cuts.
        decoupled: the mask.
        images: (n, c, h, w) in [0, 1], on the classifier's device.
        settings: how.
        seed: of the start and the order.
        start: a generator to go on with, in place; what is found has a copy. None makes a new one.
        optimizer: of ``start``, to go on with; None makes a new one.
        front: stands before the classifier: the trigger must survive it.
        target: the class for the target term.
        avoid: (n,), for each image a class that it must not be carried into; None forbids none.
        progress: called after each tenth.

    Raises:
        InputError: there is no image, or one of a size that the generator cannot take.
    """
    if not len(images):
        raise InputError("there are no clean images; the trigger generator needs at least one")
    generator = settings.start(classifier, seed) if start is None else start
    optimizer = optimizer or generator_optimizer(generator, settings)
    limit = settings.limit(classifier.input_shape)
    found = Inverted(generator, limit if settings.constraint == "scaled" else None)
    draws = torch.Generator().manual_seed(seed)
    steps = settings.steps or settings.epochs * -(-len(images) // settings.batch_size)
    stream = _batches(images, settings, draws)
    spread = 0.0 if avoid is None else natural_spread(decoupled, images)
    pulled = 0
    generator.train()
    # Only the generator learns. A purifier in front may add noise.
    with seeded(classifier.device, seed), gradients_only_for(classifier.network, []):
        for step in range(steps):
            batch, chosen = next(stream)
            loss, logits, moved, benign, back = _objective(
                classifier, decoupled, batch, found, limit, settings, front
            )
            if target is not None and settings.target_weight:
                wanted = torch.full((len(batch),), target, device=logits.device)
                loss = loss + settings.target_weight * F.cross_entropy(logits, wanted)
            if avoid is not None:
                loss = loss + spread * _above(logits, avoid[chosen]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
            optimizer.step()
            pulled += back
            if (step + 1) % max(1, steps // 10) == 0:
                found.moved.append(float(moved))
                found.benign.append(float(benign))
                progress("BTI-DBF: inverting the trigger", (step + 1) / steps)
    generator.eval()
    if start is not None:
        found.generator = copy.deepcopy(generator)  # a later round goes on with ``start``
    found.pulled_back, found.steps = pulled / steps, steps
    return found


def pretrain(
    classifier: Classifier,
    split: Split,
    images: Tensor,
    settings: GeneratorInversion,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> nn.Module:
    """Teaches a new generator the identity, as pixels, maps and answers see it (official code)."""
    how = settings.pretraining
    generator = settings.start(classifier, seed)
    optimizer = torch.optim.Adam(generator.parameters(), how.learning_rate)
    draws = torch.Generator().manual_seed(seed)
    steps = how.epochs * -(-len(images) // settings.batch_size)
    stream = _batches(images, settings, draws)
    generator.train()
    with gradients_only_for(classifier.network, []):
        for step in range(steps):
            batch, _ = next(stream)
            with torch.no_grad():
                maps, answers = split.both(batch)
            made = generator(batch)
            new_maps, new_answers = split.both(made)
            pixels = F.mse_loss(classifier.normalise(made), classifier.normalise(batch))
            weight = how.far if float(pixels.detach()) > how.limit else how.near
            loss = divergence(new_answers, answers, 1.0)
            loss = loss + F.mse_loss(new_maps, maps) + weight * pixels
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
            optimizer.step()
            if (step + 1) % max(1, steps // 10) == 0:
                progress("BTI-DBF: pre-training the generator", (step + 1) / steps)
    return generator.eval()


def _objective(
    classifier: Classifier,
    decoupled: Decoupled,
    batch: Tensor,
    found: Inverted,
    limit: float,
    settings: GeneratorInversion,
    front: Front | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    """Eq. (2) of one batch, logits, the movement of both halves, and whether it was pulled back."""
    with torch.no_grad():
        maps = decoupled.split.front(batch)
    made = found.generator(batch)
    shown = bounded(batch, made, found.bound) if settings.constraint == "scaled" else made
    seen = shown if front is None else front(shown)
    new, logits = decoupled.split.both(seen)
    away = new - maps
    moved = _size((1 - decoupled.mask) * away, settings.distance)
    benign = _size(decoupled.mask * away, settings.distance)
    loss, back = settings.benign_weight * benign - moved, False
    if settings.constraint == "switch":
        pixels = F.mse_loss(classifier.normalise(seen), classifier.normalise(batch))
        back = bool((pixels > limit**2) | (benign > settings.benign_limit))
        loss = pixels if back else loss
    return loss, logits, moved.detach(), benign.detach(), back


def natural_spread(decoupled: Decoupled, images: Tensor) -> float:
    """How far apart the maps of images (n, c, h, w) lie: the mean norm of a(x) - mean a."""
    with torch.no_grad():
        maps = torch.cat([decoupled.split.front(part) for part in torch.split(images, BATCH)])
    return float((maps - maps.mean(0)).flatten(1).norm(dim=1).mean())


def _above(logits: Tensor, forbidden: Tensor) -> Tensor:
    """How far each forbidden class (n,) is from losing by a margin of 1, (n,), at least 0."""
    place = forbidden[:, None]
    others = logits.scatter(1, place, -torch.inf).amax(1)
    return (logits.gather(1, place)[:, 0] - others + 1).clamp(min=0)


def _size(maps: Tensor, distance: Literal["norm", "mean square"]) -> Tensor:
    """Of the changes of maps (n, ...), averaged over the images."""
    if distance == "mean square":
        return maps.square().mean()
    # At zero the norm has no slope; the start is near it.
    return maps.flatten(1).square().sum(1).clamp(min=1e-12).sqrt().mean()


def _batches(images: Tensor, settings: GeneratorInversion, draws: torch.Generator) -> Any:
    """Shuffled, augmented mini-batches and the indices of their images, without end."""
    for part in index_batches(len(images), settings.batch_size, draws):
        chosen = part.to(images.device)
        batch = images[chosen]
        if settings.flip or settings.crop_padding:
            batch = crop_and_flip(
                batch, padding=settings.crop_padding, flip=settings.flip, generator=draws
            )
        yield batch.contiguous(memory_format=torch.channels_last), chosen
