"""What a search in latent space descends, and its gradient: realism, class, and two stabilities.

    L(z) = w L_prior / |grad L_prior| + c CE(f(x), y) + c a L_in(x) + c b L_par(x),    x = G(z)

Prior and class term, and the weight c = 100 between them, are those of the released code of KED-DMI
(Chen et al. 2021, arXiv 2010.04092, by the first author of the paper below), where the prior is not
normalised. Chen et al. 2023 (arXiv 2206.07018) add input and parameter stability; their weights and
schedule could not be read. Ours: a and b as shares of c; the prior is divided by a running mean of
the norm of its own gradient, for each sample, because a critic's scores have no unit; that norm is
taken at the image (at z where the prior is a function of z), which saves a pass through G; the
stabilities wait until a class is found, then grow; where they are computed at every k-th iteration
only, they count k-fold, and the query half counts for the whole batch.

All terms give gradients with respect to x, which are summed; then there is one pass back through f
and one through G. A sample feels no other sample, but through L_par.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.generators.public_generator import PublicGenerator
from bezoar.methods.fred_input_stability import input_instability
from bezoar.methods.fred_parameter_stability import parameter_instability
from bezoar.methods.fred_settings import Inversion

_MEMORY = 0.9  # of the running mean of the prior's slope: about ten iterations
_TINY = 1e-12  # keeps a slope of zero from dividing


class Stopwatch:
    """Seconds of each part of the work.

    Attributes:
        synchronised: where work is queued on an accelerator, wait for it at the end of each part;
            otherwise the seconds of a part are those of putting it into the queue.
        seconds: by part.
    """

    def __init__(self, device: torch.device, *, synchronised: bool = False) -> None:
        self.synchronised = synchronised and device.type != "cpu"
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to ``name``; not to be nested."""
        started = time.perf_counter()
        yield
        if self.synchronised:
            torch.accelerator.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Objective:
    """L and its gradient for one batch of samples, iteration after iteration.

    Args:
        classifier: frozen and in eval mode.
        generator: on the classifier's device.
        labels: wanted classes (n,), on the classifier's device.
        settings: how.
        draws: of the noise, on the classifier's device.
        pattern: (c, h, w), added to the images of the virtual removal step; None adds nothing.
        watch: gets the seconds of each term.

    Attributes:
        curves: mean of each term over the batch, as (iteration, value) by the term's name.
    """

    def __init__(
        self,
        classifier: Classifier,
        generator: PublicGenerator,
        labels: Tensor,
        settings: Inversion,
        draws: torch.Generator,
        *,
        pattern: Tensor | None = None,
        watch: Stopwatch,
    ) -> None:
        self.classifier, self.generator, self.labels = classifier, generator, labels
        self.settings, self.draws, self.pattern, self.watch = settings, draws, pattern, watch
        self.curves: dict[str, list[tuple[int, Tensor]]] = {}
        self._halves = halves(labels)
        self._slope: Tensor | None = None  # of the prior: the running norm (n,)
        self._iteration = 0

    def gradient(self, z: Tensor) -> Tensor:
        """The gradient of the sum of L over the batch at ``z`` (n, latent): one iteration."""
        s, watch = self.settings, self.watch
        z = z.detach().requires_grad_()
        with watch.part("generator"):
            made = self.generator(z)
            images = made.detach().requires_grad_()
        total, by_latents = torch.zeros_like(images), torch.zeros_like(z)
        if s.prior_weight:
            with watch.part("prior"):
                total, by_latents = self._prior(z, images)
        with watch.part("class"):
            logits = self.classifier(images)
            answers = logits.detach().requires_grad_()
            losses = F.cross_entropy(answers, self.labels, reduction="none")
            (by_answers,) = torch.autograd.grad(s.class_weight * losses.sum(), answers)
            self._note("class", losses)
        weight = self._stability_weight()
        if weight * s.input_weight:
            with watch.part("input stability"):
                losses = input_instability(
                    self.classifier, images, self.labels, answers, s.input, self.draws
                )
                more = torch.autograd.grad(
                    weight * s.input_weight * losses.sum(),
                    (images, answers),
                    allow_unused=True,
                    materialize_grads=True,
                )
                total, by_answers = total + more[0], by_answers + more[1]
                self._note("input stability", losses)
        if weight * s.parameter_weight:
            with watch.part("parameter stability"):
                total = total + weight * s.parameter_weight * self._parameter(images)
        with watch.part("class"):
            (through,) = torch.autograd.grad(logits, images, by_answers)
        with watch.part("generator"):
            (gradient,) = torch.autograd.grad(made, z, total + through)
        self._iteration += 1
        found: Tensor = gradient + by_latents
        return found

    def _stability_weight(self) -> float:
        s = self.settings
        if self._iteration % s.stability_every:
            return 0.0
        factor = s.stability(self._iteration / s.iterations)
        return s.class_weight * s.stability_every * factor

    def _prior(self, z: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted gradients with respect to the images and, past them, to ``z``."""
        s = self.settings
        losses = self.generator.unnaturalness(z, images)
        by_images, by_latents = torch.autograd.grad(
            losses.sum(), (images, z), allow_unused=True, materialize_grads=True
        )
        self._note("prior", losses)
        if not s.normalise_prior:
            return s.prior_weight * by_images, s.prior_weight * by_latents
        squares = by_images.flatten(1).square().sum(1) + by_latents.square().sum(1)
        now = squares.sqrt()
        self._slope = now if self._slope is None else _MEMORY * self._slope + (1 - _MEMORY) * now
        scale = s.prior_weight / self._slope.clamp(min=_TINY)
        return scale.view(-1, 1, 1, 1) * by_images, scale[:, None] * by_latents

    def _parameter(self, images: Tensor) -> Tensor:
        """The gradient of L_par with respect to the images; the halves change places each time."""
        support, query = self._halves
        self._halves = query, support
        losses = parameter_instability(
            self.classifier,
            images,
            self.labels,
            support,
            query,
            self.settings.parameter,
            pattern=self.pattern,
        )
        self._note("parameter stability", losses)
        whole = len(images) / len(query) * losses.sum()
        (gradient,) = torch.autograd.grad(whole, images)
        return gradient

    def _note(self, name: str, losses: Tensor) -> None:
        self.curves.setdefault(name, []).append((self._iteration, losses.detach().mean()))


def halves(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of two halves of a batch in which each class counts the same, or one more or less.

    >>> [half.tolist() for half in halves(torch.tensor([0, 1, 0, 1, 2, 2]))]
    [[0, 1, 4], [2, 3, 5]]
    """
    order = torch.argsort(labels, stable=True)
    return order[0::2], order[1::2]
