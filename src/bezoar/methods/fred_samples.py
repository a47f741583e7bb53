"""Inverted samples and what can be said of each: certainty, realism, and two stabilities.

Nothing here is used by the search. The divergence under noise is taken under random signs times the
bound (ours), another noise than the search's own, so that numbers of different searches compare;
the loss after a step of the weights is judged on the half that did not move them, as in L_par, for
both halves in turn. Numbers that the network gives on images found by its own gradients do not
prove that the images show its classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bezoar.errors import InputError
from bezoar.methods.fred_input_stability import divergences
from bezoar.methods.fred_objective import Objective, Stopwatch, halves
from bezoar.methods.fred_parameter_stability import parameter_instability

_NOISES = 4  # draws for the divergence under noise


@dataclass(frozen=True)
class Inverted:
    """What was found, in the order of the labels; everything is on the CPU.

    Attributes:
        latents: (n, latent).
        images: (n, c, h, w) float in [0, 1].
        labels: the classes that were wanted, (n,).
        diagnostics: numbers for each sample, (n,): ``confidence``, the probability of its class;
            ``unnaturalness``, the generator's prior; ``noise``, the divergence of the answer under
            random signs times the bound of adversarial noise; ``moved loss``, the cross-entropy
            after the step of the weights of ``settings.parameter`` on the other half, where there
            is one; ``steps``, iterations of the search.
        record: seconds, each part's share of them, and curves; JSON-able.
    """

    latents: Tensor
    images: Tensor
    labels: Tensor
    diagnostics: Mapping[str, Tensor]
    record: dict[str, Any]


def examined(objective: Objective, z: Tensor, steps: int) -> Inverted:
    """The samples at ``z`` (n, latent), and what can be said of each."""
    classifier, settings, labels = objective.classifier, objective.settings, objective.labels
    with objective.watch.part("diagnostics"), torch.no_grad():
        images = objective.generator(z)
        logits = classifier(images)
        seen = {
            "confidence": logits.softmax(1).gather(1, labels[:, None])[:, 0],
            "unnaturalness": objective.generator.unnaturalness(z, images),
        }
        noises, draws = [], torch.Generator(z.device).manual_seed(0)  # the same for all searches
        for _ in range(_NOISES):
            uniform = torch.rand(images.shape, generator=draws, device=z.device, dtype=z.dtype)
            noisy = images + settings.input.bound * (2 * uniform - 1).sign()
            noises.append(divergences(logits, classifier(noisy.clamp(0, 1))))
        seen["noise"] = torch.stack(noises).mean(0)
        if len(labels) > 1:
            seen["moved loss"] = _losses_after_steps(objective, images)
    seen["steps"] = torch.full((len(labels),), float(steps))
    found = (images, *seen.values())
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found):
        raise InputError(
            "the inversion left all finite numbers; use a smaller learning rate than "
            f"{settings.learning_rate:g}, or check the generator"
        )
    return Inverted(
        latents=z.cpu(),
        images=images.contiguous().cpu(),
        labels=labels.cpu(),
        diagnostics={name: values.cpu() for name, values in seen.items()},
        record={"seconds": dict(objective.watch.seconds), "curves": _curves(objective)},
    )


def _losses_after_steps(objective: Objective, images: Tensor) -> Tensor:
    """The loss of each image after a step on the half that it is not in."""
    losses = images.new_empty(len(images))
    first, second = halves(objective.labels)
    for support, query in ((first, second), (second, first)):
        found = parameter_instability(
            objective.classifier,
            images,
            objective.labels,
            support,
            query,
            objective.settings.parameter,
            pattern=objective.pattern,
        )
        losses[query] = found.detach().to(losses.dtype)
    return losses


def joined(parts: Sequence[Inverted], batches: Sequence[Tensor], watch: Stopwatch) -> Inverted:
    """One of all ``parts``, whose rows ``batches`` says; their seconds are added to ``watch``'s."""
    back = torch.argsort(torch.cat(list(batches)))

    def together(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))[back]

    for part in parts:
        for name, spent in part.record["seconds"].items():
            watch.seconds[name] = watch.seconds.get(name, 0.0) + spent
    total = sum(watch.seconds.values())
    return Inverted(
        latents=together([part.latents for part in parts]),
        images=together([part.images for part in parts]),
        labels=together([part.labels for part in parts]),
        diagnostics={
            name: together([part.diagnostics[name] for part in parts])
            for name in parts[0].diagnostics
        },
        record={
            "batches": [len(rows) for rows in batches],
            "seconds": total,
            "images per minute": 60 * len(back) / total,
            "shares": {name: spent / total for name, spent in watch.seconds.items()},
            "synchronised": watch.synchronised,
            "curves": _averaged(parts),
        },
    )


def _curves(objective: Objective) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "x_name": "iteration",
            "x": [iteration for iteration, _ in points],
            "y": [float(value) for _, value in points],
        }
        for name, points in objective.curves.items()
    ]


def _averaged(parts: Sequence[Inverted]) -> list[dict[str, Any]]:
    """Curves over all samples; those of the parts have their points at the same iterations."""
    sizes = torch.tensor([float(len(part.labels)) for part in parts])
    curves = []
    for same in zip(*(part.record["curves"] for part in parts), strict=True):
        values = torch.tensor([curve["y"] for curve in same])
        mean = (sizes @ values / sizes.sum()).tolist()
        curves.append({**same[0], "y": mean})
    return curves
