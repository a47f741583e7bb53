"""BTI-DBF, first step: which entries of the deepest feature map are benign.

One mask m for all images, an entry for each channel and position of the map S_a(x), such that the
masked map alone suffices to classify and what is left misclassifies:

    min_m  sum CE(S_b(m a), y) - CE(S_b((1 - m) a), y) + lambda mean(m),   a = S_a(x), m in [0, 1]

with m = sigmoid(2 p), Adam on p from N(0, 1). Paper: Xu et al., "Towards Reliable and Efficient
Backdoor Trigger Inversion via Decoupling Benign Features", ICLR 2024 (OpenReview Tw9wemV6cb), eq.
(1); schedule of its official code, which has no lambda (0) and learns the mask in train mode.

Ours: eval mode, so that the map of each image is computed once and dropout does not hide what the
complement still knows; lambda = 2, since without it the mask calls three quarters of the map
benign, whatever they do, and too little is left for a trigger to live in (the penalty is an idea of
BAN, Zhu et al. 2024, arXiv 2405.19928); where a map has negative entries, 0 does not mean "absent",
and the mask mixes with the mean map b instead: m a + (1 - m) b; the separation is measured on
images that had no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.augmentation import crop_and_flip
from bezoar.classifier import BATCH, Classifier
from bezoar.device import seeded
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.statistics_prior import batch_norms
from bezoar.splitting import Split
from bezoar.training import Progress, no_progress


class Decoupling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the mask is learned.

    Attributes:
        layer: the module whose output is masked; None takes the deepest feature map.
        steps: of Adam; None takes ``epochs`` passes over the images.
        epochs: passes, where ``steps`` is None.
        batch_size: images in a step.
        learning_rate: of Adam, for p.
        sparsity: lambda, at least 0.
        statistics: ``eval`` uses the network as it runs; ``train`` its batch statistics and dropout
            (the official code).
        centre: ``mean`` mixes a map that has negative entries with its mean, ``zero`` never does.
        flip: mirror half of the images; needs ``train``, where each step runs the whole network.
        crop_padding: pixels that images may shift, the same.
    """

    layer: str | None = None
    steps: int | None = 400
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 0.05
    sparsity: float = 2.0
    statistics: Literal["eval", "train"] = "eval"
    centre: Literal["mean", "zero"] = "mean"
    flip: bool = False
    crop_padding: int = 0

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch_size, 1 if self.steps is None else self.steps)
        if min(counts) < 1 or self.crop_padding < 0:
            raise InputError(
                f"steps is {self.steps}, epochs {self.epochs}, batch_size {self.batch_size} and "
                f"crop_padding {self.crop_padding}; expected at least 1 each, and 0 for the last"
            )
        if not (0 < self.learning_rate < math.inf and 0 <= self.sparsity < math.inf):
            raise InputError(
                f"learning_rate is {self.learning_rate} and sparsity {self.sparsity}; expected "
                "more than 0, and 0 or more"
            )
        if self.statistics == "eval" and (self.flip or self.crop_padding):
            raise InputError(
                "flip and crop_padding need statistics=train: in eval mode the map of each image "
                "is computed once"
            )

    @classmethod
    def published(cls) -> Decoupling:
        """The official code's settings for CIFAR-10; without its flip, as signs and digits mind."""
        return cls(
            steps=None,
            learning_rate=0.01,
            sparsity=0.0,
            statistics="train",
            centre="zero",
            crop_padding=4,
        )


@dataclass(frozen=True)
class Half:
    """What a part of the map is worth.

    Attributes:
        accuracy: of the answers from it, in [0, 1].
        cross_entropy: of them, in nats.
    """

    accuracy: float
    cross_entropy: float


@dataclass(frozen=True)
class Decoupled:
    """A mask and how well it separates.

    Attributes:
        split: the network, cut at the layer.
        mask: m, (1, ...) in [0, 1], shaped like one map.
        centre: b, (1, ...): what stands for an absent entry.
        whole: the unmasked network.
        benign: what the benign half m knows.
        rest: what the other half 1 - m knows.
        measured_on: how many images say so; without held-out images, those that the mask is from.
        held_out: whether they had no part in the mask.
        classes: how many the network has.
    """

    split: Split
    mask: Tensor
    centre: Tensor
    whole: Half
    benign: Half
    rest: Half
    measured_on: int
    held_out: bool
    classes: int

    def kept(self, maps: Tensor) -> Tensor:
        """The benign half of maps (n, ...), the rest replaced by the centre."""
        return mixed(maps, self.mask, self.centre)

    def left(self, maps: Tensor) -> Tensor:
        """The other half."""
        return mixed(maps, 1 - self.mask, self.centre)

    def weakness(self) -> str | None:
        """Why the separation should not be trusted, as a sentence; None where it is sound.

        The rest must know less than chance says (CE above ln K), since it votes against the true
        class where the separation worked, or nothing (within a tenth of the way from chance to
        always right); and the benign half most of what the network knows.
        """
        chance = 1 / self.classes
        knows = self.rest.accuracy > chance + 0.1 * (1 - chance)
        if knows and self.rest.cross_entropy <= math.log(self.classes):
            return (
                f"Benign features were hardly separated at {self.split.layer}: what is left still "
                f"answers {100 * self.rest.accuracy:.0f} % of the images rightly (cross-entropy "
                f"{self.rest.cross_entropy:.2f}, chance is {math.log(self.classes):.2f})."
            )
        if self.benign.accuracy < 0.75 * self.whole.accuracy:
            return (
                f"The benign features found at {self.split.layer} answer only "
                f"{100 * self.benign.accuracy:.0f} % of the images rightly, the network "
                f"{100 * self.whole.accuracy:.0f} %."
            )
        return None

    def as_record(self) -> dict[str, Any]:
        """The figures."""
        halves = {"whole": self.whole, "benign": self.benign, "rest": self.rest}
        return {
            "layer": self.split.layer,
            "map": list(self.mask.shape[1:]),
            "share of the map": float(self.mask.mean()),
            "images": self.measured_on,
            "held out": self.held_out,
            "weakness": self.weakness(),
        } | {
            name: {"accuracy": half.accuracy, "cross-entropy": half.cross_entropy}
            for name, half in halves.items()
        }


def mixed(maps: Tensor, mask: Tensor, centre: Tensor) -> Tensor:
    """Maps (n, ...) where the mask is 1, and the centre where it is 0; both (1, ...)."""
    return centre + mask * (maps - centre)


def decouple(
    classifier: Classifier,
    clean: ImageSet,
    held_out: ImageSet | None,
    settings: Decoupling,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> Decoupled:
    """Learns the mask on ``clean`` and measures the separation on ``held_out``.

    Args:
        classifier: the network; it stays as it is.
        clean: labelled images; without labels the network's own answers stand in (eval mode only).
        held_out: others, to measure; None, or an empty set, measures on ``clean``.
        settings: how.
        seed: of the start and the order.
        progress: called after each tenth.

    Raises:
        InputError: no images, no labels where they are needed, no layer that cuts the network, or
            no such layer.
    """
    if not len(clean):
        raise InputError("there are no clean images; the mask needs at least one")
    classifier.trace(clean.shape)
    split = classifier.split(settings.layer)
    with classifier.evaluating():
        maps, labels = _maps(classifier, split, clean)
        signed = settings.centre == "mean" and bool((maps < 0).any())
        centre = maps.mean(0, keepdim=True) if signed else torch.zeros_like(maps[:1])
        generator = torch.Generator().manual_seed(seed)
        free = torch.randn(maps[:1].shape, generator=generator).to(maps)
        if settings.statistics == "eval":
            apart = normalises_by_batch(classifier.network)
            answers = _from_maps(split, maps, labels, centre, settings, generator, apart=apart)
        else:
            answers = _from_images(classifier, clean, centre, settings, generator)
        with seeded(classifier.device, seed):  # dropout, in train mode
            _learn(free, answers, settings, len(clean), progress)
        mask = torch.sigmoid(2 * free)
        tested = held_out is not None and len(held_out) > 0
        if tested and held_out is not None:
            maps, labels = _maps(classifier, split, held_out)
        return Decoupled(
            split=split,
            mask=mask,
            centre=centre,
            whole=_judged(split, maps, labels),
            benign=_judged(split, mixed(maps, mask, centre), labels),
            rest=_judged(split, mixed(maps, 1 - mask, centre), labels),
            measured_on=len(maps),
            held_out=tested,
            classes=classifier.num_classes,
        )


def normalises_by_batch(network: nn.Module) -> bool:
    """Whether it has a BatchNorm that takes its statistics from each batch in eval mode, too."""
    return any(norm.running_mean is None for norm in batch_norms(network))


Answers = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""A mask → logits of the benign half, logits of the rest, and labels of a mini-batch."""


def _learn(
    free: Tensor, answers: Answers, settings: Decoupling, images: int, progress: Progress
) -> None:
    """Minimises eq. (1) over ``free``, in place."""
    steps = settings.steps or settings.epochs * -(-images // settings.batch_size)
    free.requires_grad_(True)
    optimizer = torch.optim.Adam([free], settings.learning_rate)
    for step in range(steps):
        mask = torch.sigmoid(2 * free)
        benign, rest, labels = answers(mask)
        loss = F.cross_entropy(benign, labels) - F.cross_entropy(rest, labels)
        (free.grad,) = torch.autograd.grad(loss + settings.sparsity * mask.mean(), [free])
        optimizer.step()
        if (step + 1) % max(1, steps // 10) == 0:
            progress("BTI-DBF: decoupling benign features", (step + 1) / steps)
    free.requires_grad_(False)


def _from_maps(
    split: Split,
    maps: Tensor,
    labels: Tensor,
    centre: Tensor,
    settings: Decoupling,
    generator: torch.Generator,
    *,
    apart: bool,
) -> Answers:
    """Mini-batches of maps that are already there: only the layers behind the cut run.

    Both halves go through these in one pass, unless rows are not treated each by itself (apart).
    """
    stream = index_batches(len(maps), settings.batch_size, generator)

    def answers(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen = next(stream).to(maps.device)
        few = maps[chosen]
        halves = mixed(few, mask, centre), mixed(few, 1 - mask, centre)
        if apart:
            benign, rest = map(split.back, halves)
        else:
            benign, rest = split.back(torch.cat(halves)).chunk(2)
        return benign, rest, labels[chosen]

    return answers


def _from_images(
    classifier: Classifier,
    clean: ImageSet,
    centre: Tensor,
    settings: Decoupling,
    generator: torch.Generator,
) -> Answers:
    """The official code's way: augmented images through a copy in train mode, twice a step."""
    clean.require_labels("learning the mask in train mode")
    copy = classifier.copy()
    split = copy.split(settings.layer)
    copy.network.train()
    resident = clean.to(classifier.device)
    stream = index_batches(len(clean), settings.batch_size, generator)

    def answers(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen = next(stream)
        if len(chosen) == 1 < settings.batch_size:
            chosen = next(stream)  # batch statistics of one image are no statistics
        part = resident.subset(chosen)
        images = part.images.float() / 255
        if settings.flip or settings.crop_padding:
            images = crop_and_flip(
                images, padding=settings.crop_padding, flip=settings.flip, generator=generator
            )
        labels = part.require_labels("learning the mask")
        benign = split.edited(images, lambda maps: mixed(maps, mask, centre))
        rest = split.edited(images, lambda maps: mixed(maps, 1 - mask, centre))
        return benign, rest, labels

    return answers


def index_batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled mini-batches of indices without end; each image once before any comes again."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), size)


def _maps(classifier: Classifier, split: Split, images: ImageSet) -> tuple[Tensor, Tensor]:
    """The maps (n, ...) of all images, and their labels or else the network's answers (n,)."""
    maps, answers = [], []
    with torch.no_grad():
        for batch, _ in images.batches(BATCH, device=classifier.device):
            found, logits = split.both(batch)
            maps.append(found)
            answers.append(logits.argmax(1))
    labels = torch.cat(answers) if images.labels is None else images.labels
    return torch.cat(maps), labels.to(classifier.device)


def _judged(split: Split, maps: Tensor, labels: Tensor) -> Half:
    with torch.no_grad():
        logits = torch.cat([split.back(part) for part in torch.split(maps, BATCH)])
    return Half(
        accuracy=float((logits.argmax(1) == labels).float().mean()),
        cross_entropy=float(F.cross_entropy(logits.float(), labels)),
    )
