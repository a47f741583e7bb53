"""Images of given classes by descent on their pixels: the control that needs no generator.

    L(x) = CE(f(roll(x)), y) + a_s D(statistics) + a_v TV_2(x) + a_2 |x|_2

with x the normalised image, rolled by the same random offset for the whole batch in each step. D is
how far the batch is from the statistics that the BatchNorms remember: in DeepInversion

    D = sum_layers |m - mu|_2 + |v - r|_2        (``distance="norms"``, ``statistics_norms``)

Source: Yin et al. 2020, DeepInversion, arXiv 1912.08795, and the settings of its script for
CIFAR-10 (NVlabs/DeepInversion): ``PixelInversion.published()``. Its readme calls a_s = 10 with a
learning rate of 0.05 those of the paper, and a_v = 1e-3 better to look at. The script's "best"
batch is the last one, whose memory it shares; here, too, the last one is returned.

From us: D as a divergence without unit (``statistics_prior``), pixels held in [0, 1] while they are
searched for, fewer steps with a rate that falls along a cosine, a TV whose size does not depend on
batch and resolution, an offset that grows with the image, weights that were chosen on one network
of 8x8 digits; and each batch has its share of every class, as the statistics are those of all.

Known failures: nothing keeps a trigger out of the images, for it is a short way to the target
class, and the statistics were computed with poisoned images, too; without BatchNorm only CE and TV
are left, and the record says so; images of one batch are searched for together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, Self

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods.dhbe_losses import total_variation_norm
from bezoar.methods.float_samples import check_labels
from bezoar.methods.statistics_norms import StatisticsNorms
from bezoar.methods.statistics_prior import StatisticsPrior
from bezoar.training import Progress, no_progress

NO_STATISTICS = (
    "The network has no BatchNorm that remembers its training images, so that only its answers "
    "and smoothness guided the pixels; images that look like noise can satisfy these."
)
_WHAT = "inverting in pixels"


class PixelInversion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How images are searched for.

    Attributes:
        iterations: steps of Adam.
        batch_size: the most images searched for together, 2 or more.
        learning_rate: of Adam, in units of the normalised image.
        schedule: whether the rate stays, or falls to 0 along half a cosine.
        statistics: weight of the distance from the BatchNorm statistics.
        distance: which: a mean divergence in nats, or DeepInversion's sum of norms.
        roughness: weight of TV_2.
        as_published: TV_2 grows with batch and resolution; otherwise it is scaled to 256 images of
            32x32.
        magnitude: weight of the batch's l2 norm.
        jitter: the largest offset, as a share of the side: 2 pixels of 32.
        bounded: hold images where pixels are after every step; otherwise they are clipped at the
            end.
    """

    iterations: int = 200
    batch_size: int = 256
    learning_rate: float = 0.1
    schedule: Literal["constant", "cosine"] = "cosine"
    statistics: float = 20.0
    distance: Literal["divergence", "norms"] = "divergence"
    roughness: float = 2.5e-4
    as_published: bool = False
    magnitude: float = 0.0
    jitter: float = 1 / 16
    bounded: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch_size < 2:
            raise InputError(
                f"iterations is {self.iterations} and batch_size {self.batch_size}; expected 1 or "
                "more, and 2 or more"
            )
        for name in ("learning_rate", "statistics", "roughness", "magnitude"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.jitter < 1:
            raise InputError(f"jitter is {self.jitter}; expected a share of the side below 1")

    @classmethod
    def published(cls) -> Self:
        """The defaults of DeepInversion's script for CIFAR-10, without its optional student."""
        return cls(
            iterations=2000,
            schedule="constant",
            statistics=100.0,
            distance="norms",
            roughness=2.5e-5,
            as_published=True,
            bounded=False,
        )


@dataclass(frozen=True)
class Inverted:
    """Images that were found.

    Attributes:
        images: ``float32``, (n, c, h, w), in [0, 1], on the CPU.
        record: settings, sizes of the batches, the losses of the last step (means over batches),
            ``answered`` (the share of images that the network answers as asked), ``clipped`` (the
            share of numbers that lay outside [0, 1]), notices, seconds.
    """

    images: Tensor
    record: dict[str, Any]


def invert_pixels(
    classifier: Classifier,
    labels: Tensor,
    settings: PixelInversion,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> Inverted:
    """Searches for one image for each label; the classifier stays as it is.

    Args:
        classifier: of a known input size.
        labels: ``int64``, (n,), at least two.
        settings: how.
        seed: of the first images, the batches and the offsets.
        progress: called after every step.

    Raises:
        InputError: fewer than two labels, or one that is no class of the network.
    """
    if labels.ndim != 1 or len(labels) < 2:
        raise InputError(
            f"labels have shape {tuple(labels.shape)}; expected (n,), two or more, one for each "
            "image that is searched for"
        )
    shape = classifier.input_shape
    check_labels(classifier, labels, len(labels))
    started = time.perf_counter()
    network = classifier.copy().network.requires_grad_(False)
    network.eval()
    draws = torch.Generator().manual_seed(seed)
    parts = balanced_batches(labels.cpu(), settings.batch_size, draws)
    images = torch.empty((len(labels), *shape))
    ends = torch.tensor([0.0, 1.0], device=classifier.device).view(2, 1, 1, 1)
    low, high = classifier.normalise(ends.expand(2, shape[0], 1, 1))
    curves, outside, hits = [], 0, 0
    for number, part in enumerate(parts):
        wanted = labels[part.to(labels.device)].to(classifier.device)

        def shown(what: str, share: float, done: int = number) -> None:
            progress(what, (done + share) / len(parts))

        start = torch.randn((len(part), *shape), generator=draws).to(classifier.device)
        found, losses = _descend(
            network, start, wanted, settings, (low, high), draws=draws, progress=shown
        )
        curves.append(losses)
        outside += int(((found < low) | (found > high)).sum())
        pixels = ((found - low) / (high - low)).clamp(0, 1)
        with torch.no_grad():
            hits += int((network(classifier.normalise(pixels)).argmax(1) == wanted).sum())
        images[part] = pixels.cpu()
    with StatisticsPrior(network) as prior:
        without = prior.empty
    return Inverted(
        images,
        {
            "settings": msgspec.to_builtins(settings),
            "batches": [len(part) for part in parts],
            "losses": {
                name: sum(curve[name] for curve in curves) / len(curves) for name in curves[0]
            },
            "answered": hits / len(labels),
            "clipped": outside / images.numel(),
            "notices": [NO_STATISTICS] if without else [],
            "seconds": time.perf_counter() - started,
        },
    )


def _descend(
    network: nn.Module,
    start: Tensor,
    labels: Tensor,
    settings: PixelInversion,
    bounds: tuple[Tensor, Tensor],
    *,
    draws: torch.Generator,
    progress: Progress,
) -> tuple[Tensor, dict[str, float]]:
    """The normalised images of one batch, and the losses of the last step."""
    s = settings
    x = (start.clamp(*bounds) if s.bounded else start).requires_grad_()
    optimizer = torch.optim.Adam([x], s.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.iterations)
    reach = [round(s.jitter * side) for side in x.shape[2:]]
    prior = (StatisticsPrior if s.distance == "divergence" else StatisticsNorms)(network)
    losses: dict[str, Tensor] = {}
    with prior, torch.enable_grad():
        for step in range(s.iterations):
            offset = [int(torch.randint(-r, r + 1, (), generator=draws)) for r in reach]
            rolled = x.roll(offset, (2, 3))
            losses = {"class": F.cross_entropy(network(rolled).float(), labels)}
            losses["statistics"] = prior.distance()
            losses["roughness"] = total_variation_norm(rolled, as_published=s.as_published)
            weights = {"class": 1.0, "statistics": s.statistics, "roughness": s.roughness}
            if s.magnitude:
                losses["magnitude"] = torch.linalg.vector_norm(rolled)
                weights["magnitude"] = s.magnitude
            loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
            optimizer.step()
            if s.schedule == "cosine":
                schedule.step()
            if s.bounded:
                with torch.no_grad():
                    x.copy_(x.clamp(*bounds))
            progress(_WHAT, (step + 1) / s.iterations)
    return x.detach(), {name: float(value.detach()) for name, value in losses.items()}


def balanced_batches(labels: Tensor, size: int, draws: torch.Generator) -> list[Tensor]:
    """Indices (n,) in batches of nearly equal size, at most ``size``, each class spread evenly.

    >>> batches = balanced_batches(torch.tensor([0, 0, 0, 1, 1, 1]), 2, torch.Generator())
    >>> [sorted((part >= 3).tolist()) for part in batches]
    [[False, True], [False, True], [False, True]]
    """
    keys = torch.empty(len(labels))
    for k in torch.unique(labels):
        members = torch.nonzero(labels == k).flatten()
        # The i-th of m members at (i + 1/2) / m: cutting anywhere takes equal shares.
        ranks = torch.randperm(len(members), generator=draws)
        keys[members] = (ranks + 0.5) / len(members)
    return list(keys.argsort(stable=True).tensor_split(-(-len(labels) // size)))
