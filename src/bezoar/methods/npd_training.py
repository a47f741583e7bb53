"""The loss of NPD, and the training of a polarizer with everything else frozen.

    l1 CE(f_P(x), y) + l2 CE(f_P(x + delta), y) - l3 log(1 - p_k) - l4 log(1 - p_t)

Zhu et al. 2023, arXiv 2306.16697, by the authors' code; the samples x + delta are in
``npd_ascent``, P's place in the network in ``npd_layer``. delta is found anew in each step, for the
polarizer of that step, and P gets no gradient through it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods.npd_ascent import Ascent, led_astray, most_likely_wrong
from bezoar.methods.npd_layer import Place, PolarizedNetwork
from bezoar.training import History, Progress, Recipe, fit

TERMS = ("plain images", "changed images", "likeliest wrong class", "target class")
Wanted = Literal["label", "answer"]


def minus_log_not(logits: Tensor, classes: Tensor) -> Tensor:
    """-log(1 - p_k) of each row of logits (n, C) for its class k (n,), averaged.

    From the logits: log(1 - p_k) is logsumexp of the others minus logsumexp of all.
    """
    others = logits.scatter(1, classes[:, None], -math.inf)
    return (logits.logsumexp(1) - others.logsumexp(1)).mean()


def terms(
    plain: Tensor, astray: Tensor, labels: Tensor, wanted: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four terms of the loss, each smaller where the polarizer works better.

    Args:
        plain: logits (n, C) of the images.
        astray: of the changed images.
        labels: y of both, (n,).
        wanted: what the changed ones are to be taken for, (n,).
        targets: t, (n,).
    """
    return (
        F.cross_entropy(plain, labels),
        F.cross_entropy(astray, wanted),
        minus_log_not(astray, most_likely_wrong(astray, labels)),
        minus_log_not(astray, targets),
    )


class Polarizer(nn.Module):
    """P = diag(scale) matrix, (channels, channels); the identity at first."""

    def __init__(self, channels: int, device: torch.device) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(channels, device=device))
        self.scale = nn.Parameter(torch.ones(channels, device=device))

    def forward(self) -> Tensor:
        """P."""
        return self.scale[:, None] * self.matrix


class PolarizerTraining:
    """A polarizer, the loss that trains it, and what happened in each epoch.

    Args:
        classifier: it is only read, but for its layout in memory: give a copy.
        place: where the polarizer stands.
        ascent: how samples are led astray.
        weights: l1 to l4.
        wanted: see ``NPD``.

    Attributes:
        polarizer: what is trained.
        terms: of each epoch against samples, the means of ``TERMS``.
        led: of each of these epochs, the share of the samples that reached their target class.
    """

    def __init__(
        self,
        classifier: Classifier,
        place: Place,
        ascent: Ascent,
        weights: Sequence[float],
        wanted: Wanted,
    ) -> None:
        self.classifier = classifier
        self.ascent, self.weights, self.wanted = ascent, weights, wanted
        self.network = PolarizedNetwork(classifier, place)
        self.polarizer = Polarizer(place.channels, classifier.device)
        self._steps: list[tuple[list[Tensor], Tensor]] = []
        self.terms: list[list[float]] = []
        self.led: list[float] = []

    def run(
        self, clean: ImageSet, recipe: Recipe, against: bool, seed: int, progress: Progress
    ) -> History:
        """Trains the polarizer, ``against`` samples that are led astray or on plain images."""
        parameters = list(self.polarizer.parameters())
        history = fit(
            self.classifier,
            clean,
            recipe,
            seed=seed,
            loss=self._against if against else self._plain,
            parameters=parameters,
            optimizer=torch.optim.SGD(
                parameters, recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
            ),
            before_epoch=lambda _epoch: self._end_epoch(),
            progress=progress,
            what="NPD: training the polarizer" if against else "NPD: warming up",
        )
        self._end_epoch()
        return history

    def _plain(
        self, classifier: Classifier, images: Tensor, labels: Tensor, _generator: torch.Generator
    ) -> Tensor:
        with classifier.evaluating():
            return F.cross_entropy(self.network.logits(images, self.polarizer()), labels)

    def _against(
        self, classifier: Classifier, images: Tensor, labels: Tensor, _generator: torch.Generator
    ) -> Tensor:
        with classifier.evaluating():
            polarizer = self.polarizer()
            fixed = polarizer.detach()
            plain = self.network.logits(images, polarizer)
            targets = most_likely_wrong(plain, labels)
            shown = led_astray(
                lambda changed: self.network.logits(changed, fixed),
                images,
                targets,
                self.ascent,
            )
            astray = self.network.logits(shown, polarizer)
        wanted = labels if self.wanted == "label" else plain.detach().argmax(1)
        found = terms(plain, astray, labels, wanted, targets)
        led = (astray.detach().argmax(1) == targets).float().mean()
        self._steps.append(([term.detach() for term in found], led))
        weighted = [w * term for w, term in zip(self.weights, found, strict=True)]
        return torch.stack(weighted).sum()

    def _end_epoch(self) -> None:
        if self._steps:
            found = torch.stack([torch.stack(row) for row, _ in self._steps])
            self.terms.append(found.mean(0).tolist())
            self.led.append(float(torch.stack([led for _, led in self._steps]).mean()))
            self._steps = []
