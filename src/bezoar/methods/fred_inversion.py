"""Model inversion: images of each class of a network, searched in a generator's latent space.

    z* = argmin_z L(z),    x* = G(z*),    labels as wanted                    (``fred_objective``)

Nobody's image of the task is needed: the network's gradients lead a latent vector of a generator
that was trained on other images. Of many random vectors, those that a class likes best are its
starting points, as in Plug & Play Attacks (Struppek et al. 2022, arXiv 2201.12179); each step ends
with a clip to [-c, c], as in the released code of KED-DMI (Chen et al. 2021, arXiv 2010.04092).

Paper: Chen et al. 2023 (TMLR), "Turning a Curse into a Blessing: Enabling In-Distribution-Data-Free
Backdoor Removal via Stabilized Model Inversion", arXiv 2206.07018. Only its abstract could be read.
Ours are numbers and sizes, Adam, and the arrangement: all classes at once in batches in which each
class has its share. Batches do not feel each other: each has its own seed, and what it found can be
saved before the next one.

Assumes that the images of G can look like the classes. Known failures: classes that nothing in the
public images resembles get poor samples, of full confidence all the same; an answer of the network
that is searched in its own gradients proves nothing about the image (``fred_selection``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bezoar.classifier import BATCH, Classifier
from bezoar.device import own_stream
from bezoar.errors import InputError
from bezoar.generators.public_generator import PublicGenerator
from bezoar.methods.fred_objective import Objective, Stopwatch
from bezoar.methods.fred_samples import Inverted, examined, joined
from bezoar.methods.fred_settings import Inversion
from bezoar.training import Progress, no_progress

__all__ = ["Inversion", "Inverted", "arranged", "invert"]

_WHAT = "FreD: inverting the model"


def invert(
    classifier: Classifier,
    generator: PublicGenerator,
    labels: Tensor,
    settings: Inversion,
    *,
    seed: int,
    pattern: Tensor | None = None,
    finished: Callable[[int, Tensor, Inverted], None] | None = None,
    synchronised: bool = False,
    progress: Progress = no_progress,
) -> Inverted:
    """Searches one image for each label; the classifier and the generator stay as they are.

    Args:
        classifier: whose classes are searched.
        generator: makes the images, of a size that the classifier takes.
        labels: (n,) wanted classes, in any order, repeated as often as wanted.
        settings: how.
        seed: of the starting points and the noise.
        pattern: (c, h, w), added to the images of the virtual removal step; None adds nothing.
        finished: called after each batch with its number, the rows of ``labels`` in it, and what
            it found.
        synchronised: wait for an accelerator after each part, so that seconds are those of the
            part; it slows the search down.
        progress: called after each iteration.

    Raises:
        InputError: labels that the network does not have or no pair of them for the two halves,
            images of another size, fewer candidates than samples of a class, a pattern that does
            not fit, or a search that left all finite numbers.
    """
    frozen, generator = prepared(classifier, generator, labels, settings, pattern)
    watch = Stopwatch(frozen.device, synchronised=synchronised)
    with watch.part("start"):
        starts = _starting_points(frozen, generator, labels, settings, seed)
    batches = arranged(labels, settings.batch_size, seed)
    parts = []
    for number, rows in enumerate(batches):
        own = Stopwatch(frozen.device, synchronised=synchronised)
        draws = own_stream(seed, number, frozen.device)
        wanted = labels[rows].to(frozen.device)
        objective = Objective(
            frozen, generator, wanted, settings, draws,
            pattern=None if pattern is None else pattern.to(frozen.device), watch=own,
        )  # fmt: skip

        def told(share: float, number: int = number) -> None:
            progress(_WHAT, (number + share) / len(batches))

        z = descended(objective, starts[rows], settings, told)
        part = examined(objective, z, settings.iterations)
        parts.append(part)
        if finished is not None:
            finished(number, rows, part)
    return joined(parts, batches, watch)


def prepared(
    classifier: Classifier,
    generator: PublicGenerator,
    labels: Tensor,
    settings: Inversion,
    pattern: Tensor | None,
) -> tuple[Classifier, PublicGenerator]:
    """A frozen copy of the classifier and the generator beside it, once everything fits."""
    classifier.trace(generator.shape)
    if labels.ndim != 1 or not len(labels) or labels.is_floating_point():
        raise InputError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected at least one "
            "class index, of shape (samples,)"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classifier.num_classes:
        raise InputError(
            f"labels go from {int(labels.min())} to {int(labels.max())} and the network has "
            f"{classifier.num_classes} classes"
        )
    if settings.parameter_weight and len(labels) < 2:
        raise InputError(
            "parameter stability is judged on another half of the samples than the one that moves "
            "the weights, and there is one sample; give at least two, or parameter_weight 0"
        )
    if pattern is not None and tuple(pattern.shape) != generator.shape:
        raise InputError(
            f"the pattern has shape {tuple(pattern.shape)}; expected {generator.shape}, as the "
            "generator's images"
        )
    frozen = classifier.copy()
    frozen.network.requires_grad_(False).eval()
    frozen.to_fast_layout()
    return frozen, generator.to(frozen.device)


def arranged(labels: Tensor, batch_size: int, seed: int) -> list[Tensor]:
    """Rows of ``labels`` (n,) in batches of nearly one size, each with its share of each class.

    Classes are dealt in pairs, one for either half, in an order of the classes that ``seed`` draws;
    with more classes than pairs fit into a batch, a batch holds some of them.

    >>> [batch.tolist() for batch in arranged(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 4, 0)]
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    labels = labels.cpu()
    draws = torch.Generator().manual_seed(seed)
    place = torch.randperm(int(labels.max()) + 1, generator=draws)
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    within = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    key = (within // 2) * len(place) + place[labels[by_class]]
    order = by_class[torch.argsort(key, stable=True)]
    number, pairs = -(-len(labels) // batch_size), -(-len(labels) // 2)
    ends = [2 * (index * pairs // number) for index in range(1, number)]
    return list(torch.tensor_split(order, ends))


def descended(
    objective: Objective, start: Tensor, settings: Inversion, told: Callable[[float], None]
) -> Tensor:
    """The latent vectors (n, latent) at the end of the search from ``start``."""
    z = start.clone()
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam([z], settings.learning_rate)
    else:
        optimizer = torch.optim.SGD([z], settings.learning_rate, momentum=0.9, nesterov=True)
    # Adam does not care for the size of its gradients; SGD got the batch's mean in released code.
    scale = 1.0 if settings.optimizer == "adam" else 1 / len(z)
    for iteration in range(settings.iterations):
        z.grad = scale * objective.gradient(z)
        with objective.watch.part("optimizer"):
            optimizer.step()
            z.clamp_(-settings.clip, settings.clip)
        told((iteration + 1) / settings.iterations)
    return z.detach()


@torch.no_grad()
def _starting_points(
    classifier: Classifier,
    generator: PublicGenerator,
    labels: Tensor,
    settings: Inversion,
    seed: int,
) -> Tensor:
    """A latent vector (n, latent) for each label; no two samples of a class get the same."""
    draws = torch.Generator().manual_seed(seed)
    if not settings.candidates:
        return generator.latents(len(labels), draws)
    counts = torch.bincount(labels.cpu())
    if int(counts.max()) > settings.candidates:
        raise InputError(
            f"class {int(counts.argmax())} needs {int(counts.max())} samples and there are "
            f"{settings.candidates} candidates; give at least as many, or candidates 0"
        )
    drawn = generator.latents(settings.candidates, draws).clamp(-settings.clip, settings.clip)
    # Logarithms, because probabilities of different candidates can all be rounded to 0.
    likings = torch.cat(
        [classifier(generator(part)).log_softmax(1) for part in torch.split(drawn, BATCH)]
    )
    starts = drawn.new_empty(len(labels), generator.latent)
    for k in torch.nonzero(counts).flatten().tolist():
        best = likings[:, k].topk(int(counts[k])).indices
        starts[(labels == k).to(starts.device)] = drawn[best]
    return starts
