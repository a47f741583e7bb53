"""How firmly a network holds on to the label of a sample: the stability score of FreD's step D.

    s(x) = mean_a p(y | a(x)) - max(0, p(y | x) - mean_r p_r(y | x))

over random augmentations a (a window of the image, shifted, with Gaussian noise, mirrored where
allowed) and random perturbations r of the weights, theta_r = theta + radius |theta_f| d_f / |d_f|
for every filter f, with normal directions d. Biases and norms' scales stay, as is usual with
filter-normalised directions (Li et al. 2018, arXiv 1712.09913).

Source: Chen et al. 2023, arXiv 2206.07018, say that predictions should be stable under input and
under parameter perturbation. How samples are selected could not be read; score and all its numbers
are ours (the idea to select by confidence over random crops is known from Struppek et al. 2022,
Plug & Play Attacks, arXiv 2201.12179).

Known failures: a score is the suspect's own opinion. It tells what lies near a boundary from what
does not, and nothing else: an image that carries a strong trigger, or is plain noise, can hold on
to its label as well as a real one. Shifts and crops lower the score of networks that were trained
without; the smallest filters of very wide layers are perturbed as much as the largest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import BATCH, Classifier
from bezoar.errors import InputError
from bezoar.methods.float_samples import batches, check_samples, logits_of
from bezoar.training import Progress, no_progress

_WHAT = "scoring samples"


class Scoring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a label has to withstand (ours throughout).

    Attributes:
        augmentations: random ones of each image.
        shift: the largest, as a share of the side: 2 pixels of 32.
        crop: the smallest window, as a share of the side; the largest is the image.
        noise: standard deviation, in units of the pixel range.
        flip: whether every second one is mirrored; not for digits and signs.
        perturbations: random ones of the weights.
        radius: of these, relative to each filter's norm.
    """

    augmentations: int = 20
    shift: float = 1 / 16
    crop: float = 0.85
    noise: float = 4 / 255
    flip: bool = False
    perturbations: int = 3
    radius: float = 0.1

    def __post_init__(self) -> None:
        if self.augmentations < 1 or self.perturbations < 0:
            raise InputError(
                f"augmentations is {self.augmentations} and perturbations {self.perturbations}; "
                "expected 1 or more, and 0 or more"
            )
        if not 0 < self.crop <= 1 or not 0 <= self.shift < 0.5:
            raise InputError(
                f"crop is {self.crop} and shift {self.shift}; expected shares of the side: a crop "
                "above 0 up to 1, a shift from 0 to below 0.5"
            )
        for name in ("noise", "radius"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")


@dataclass(frozen=True)
class Scores:
    """What is known of each sample; all (n,), on the CPU.

    Attributes:
        score: s(x), from -1 to 1.
        confidence: p(y | x) of the plain image.
        augmented: its mean over the augmentations.
        drop: how much the perturbed weights take from it, 0 or more.
        answers: the classes that the network gives.
    """

    score: Tensor
    confidence: Tensor
    augmented: Tensor
    drop: Tensor
    answers: Tensor


def score_samples(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    settings: Scoring,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> Scores:
    """Scores of images (n, c, h, w) in [0, 1] for labels (n,); the classifier stays as it is.

    Raises:
        InputError: they are no samples of the classifier's classes.
    """
    check_samples(classifier, images, labels)
    labels = labels.cpu()
    draws = torch.Generator(classifier.device).manual_seed(seed)
    plain = logits_of(classifier, images)
    confidence = _of(plain, labels)
    augmented, size = [], max(1, BATCH // settings.augmentations)
    with classifier.evaluating(), torch.no_grad():
        for done, batch in enumerate(batches(classifier, images, size), 1):
            logits = classifier(augment(batch, settings, draws)).float().cpu()
            many = labels[(done - 1) * size : done * size].repeat_interleave(settings.augmentations)
            augmented.append(_of(logits, many).view(len(batch), -1).mean(1))
            progress(_WHAT, min(1.0, done * size / len(images)))
    survived = torch.cat(augmented)
    drop = torch.zeros_like(confidence)
    if settings.perturbations:
        others = perturbed(classifier, settings.perturbations, settings.radius, draws)
        kept = torch.stack([_of(logits_of(other, images), labels) for other in others]).mean(0)
        drop = (confidence - kept).clamp_min(0)
    return Scores(survived - drop, confidence, survived, drop, plain.argmax(1))


def augment(images: Tensor, settings: Scoring, draws: torch.Generator) -> Tensor:
    """Random augmentations of images (n, c, h, w), those of one image side by side.

    Each is a square window of the image at a random place, moved by up to the shift, stretched to
    the image's size (bilinear; mirrored at the edges), with noise, held in [0, 1].

    Args:
        images: in [0, 1].
        settings: which.
        draws: on the images' device.

    Returns:
        Shape (n · augmentations, c, h, w).
    """
    many = images.repeat_interleave(settings.augmentations, 0)

    def uniform(low: float, high: float, columns: int = 1) -> Tensor:
        size = (len(many), columns)
        return low + (high - low) * torch.rand(size, generator=draws, device=many.device)

    side = uniform(settings.crop, 1)
    # The grid goes from -1 to 1: a window of share s has room for its centre within 1 - s of 0.
    centre = (1 - side) * uniform(-1, 1, 2) + 2 * settings.shift * uniform(-1, 1, 2)
    mirror = 1 - 2 * (uniform(0, 1) < 0.5).to(side) if settings.flip else torch.ones_like(side)
    zero = torch.zeros_like(side)
    across = torch.cat([mirror * side, zero, centre[:, :1]], 1)
    down = torch.cat([zero, side, centre[:, 1:]], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(many.shape), align_corners=False)
    windows = F.grid_sample(many, grid, padding_mode="reflection", align_corners=False)
    noise = torch.randn(windows.shape, generator=draws, device=windows.device)
    return (windows + settings.noise * noise).clamp(0, 1)


def perturbed(
    classifier: Classifier, count: int, radius: float, draws: torch.Generator
) -> Iterator[Classifier]:
    """Yields ``count`` times one and the same copy, each time with other weights.

    Args:
        classifier: stays as it is.
        count: how often.
        radius: norm of each filter's perturbation, relative to the filter's own.
        draws: of the directions, on the classifier's device.
    """
    twin = classifier.copy()
    own = dict(classifier.network.named_parameters())
    for _ in range(count):
        with torch.no_grad():
            for name, weight in twin.network.named_parameters():
                if weight.ndim > 1:
                    noise = torch.randn(weight.shape, generator=draws, device=weight.device)
                    # A filter of zeros stays: its norm multiplies.
                    lengths = own[name].flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
                    shaped = lengths.view(-1, *[1] * (weight.ndim - 1))
                    weight.copy_(own[name] + radius * shaped * noise)
        yield twin


def _of(logits: Tensor, labels: Tensor) -> Tensor:
    """The probability of each label (n,)."""
    return logits.softmax(1).gather(1, labels[:, None]).flatten()
