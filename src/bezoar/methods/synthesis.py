"""Images of a network's classes without any data: a generator that the network itself teaches.

    L(G) = a KL(statistics) + b (ln C - H(mean softmax)) + c CE(T(x), argmax T(x)) + TV terms

with x = G(z) in the network's normalised input space and T the network, which stays as it is. The
first term makes T's BatchNorms see what they saw in training (``statistics_prior``), the second
spreads a batch over the classes, the third makes T sure of each image (``dhbe_losses``). The
released code of DHBE (Yan et al. 2023, arXiv 2306.08009) has the generator and the last terms only;
there the generator puts whole batches into one to three classes.

Statistics and class terms are known from DAFL (Chen et al. 2019, arXiv 1904.01186) and
DeepInversion (Yin et al. 2020, arXiv 1912.08795); weights are ours, chosen on networks that no
table reports. A high c gives sure answers and images that are no help: on them, a student loses its
accuracy on real ones.

Known failures: images show what excites the network, not what its classes look like to a person;
classes can be missing, and the record counts those that were made; without BatchNorm only the class
terms are left, which noise can satisfy.
"""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from bezoar.classifier import Classifier
from bezoar.device import seeded
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.dhbe_losses import (
    class_imbalance,
    indecision,
    total_variation,
    total_variation_norm,
)
from bezoar.methods.statistics_prior import StatisticsPrior
from bezoar.networks.sample_generators import SampleGenerator
from bezoar.training import Progress, no_progress

_WHAT = "making images without data"


class Synthesis(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How images are made.

    Attributes:
        steps: of the generator on the priors alone, before anything else happens.
        batch_size: images in a step, 2 or more.
        learning_rate: of Adam.
        latent: length of the generator's latent vectors.
        width: of the generator.
        statistics: weight of the divergence from the BatchNorm statistics.
        balance: weight of the uneven spread over the classes.
        decision: weight of the cross-entropy to the network's own answer.
        roughness: weight of TV_1.
        roughness_norm: weight of TV_2, which grows with batch and resolution as published.
        bounded: hold images where pixels are, in [0, 1], also while the generator learns (ours).
    """

    steps: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    latent: int = 64
    width: int = 16
    statistics: float = 20.0
    balance: float = 3.0
    decision: float = 0.1
    roughness: float = 0.0
    roughness_norm: float = 0.0
    bounded: bool = True

    def __post_init__(self) -> None:
        least = {"steps": 0, "batch_size": 2, "latent": 1, "width": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"{name} is {getattr(self, name)}; expected {smallest} or more")
        weights = ("statistics", "balance", "decision", "roughness", "roughness_norm")
        for name in ("learning_rate", *weights):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")


class SampleSource:
    """A sample generator and how it learns; the network it serves is in eval mode and frozen.

    Args:
        network: the frozen network, from normalised images to logits.
        shape: (c, h, w) of the images.
        settings: how.
        draws: of the latent vectors, on the network's device.
        bounds: the least and the largest normalised value of each channel, (c, 1, 1); images are
            held in between, also while the generator learns. None, as published, leaves them free.

    Attributes:
        network: the frozen network.
        settings: how.
        generator: the network that makes the images, in training mode.
        optimizer: of the generator.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, int, int],
        settings: Synthesis,
        draws: torch.Generator,
        bounds: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.settings = settings
        self.network = network
        self._draws = draws
        self._bounds = bounds
        self.generator = SampleGenerator(shape, latent=settings.latent, width=settings.width)
        self.generator.to(draws.device).train()
        self.optimizer = torch.optim.Adam(self.generator.parameters(), settings.learning_rate)

    def latents(self, count: int) -> Tensor:
        """Latent vectors (count, latent), from N(0, I)."""
        size = (count, self.settings.latent)
        return torch.randn(size, generator=self._draws, device=self._draws.device)

    @torch.no_grad()
    def images(self, batches: int = 1, *, together: bool = False) -> Tensor:
        """Normalised images (batches · batch size, c, h, w), a constant.

        Args:
            batches: how many, each standardised over itself.
            together: in one call, to the same numbers; faster where calls cost more than sums.
        """
        latents = [self.latents(self.settings.batch_size) for _ in range(batches)]
        if together:
            return self._made(torch.cat(latents), groups=batches)
        return torch.cat([self._made(z) for z in latents])

    def _made(self, latents: Tensor, groups: int = 1) -> Tensor:
        images: Tensor = self.generator(latents, groups=groups)
        return images if self._bounds is None else images.clamp(*self._bounds)

    def step(self, student: nn.Module | None = None, weight: float = 0.0) -> Tensor:
        """One step of the generator; returns the network's logits on its images.

        Args:
            student: a frozen network whose distance from the first one is to become large.
            weight: of that distance, mean |T(x) - S(x)|.
        """
        s = self.settings
        images = self._made(self.latents(s.batch_size))
        terms: list[tuple[float, Tensor]] = []
        if s.statistics:
            with StatisticsPrior(self.network) as prior:
                logits = self.network(images)
                terms.append((s.statistics, prior.distance()))
        else:
            logits = self.network(images)
        if s.balance:
            terms.append((s.balance, class_imbalance(logits)))
        if s.decision:
            terms.append((s.decision, indecision(logits)))
        if s.roughness:
            terms.append((s.roughness, total_variation(images)))
        if s.roughness_norm:
            terms.append((s.roughness_norm, total_variation_norm(images)))
        if student is not None and weight:
            terms.append((-weight, (student(images) - logits).abs().mean()))
        if terms:
            loss = torch.stack([factor * term for factor, term in terms]).sum()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
            self.optimizer.step()
        found: Tensor = logits.detach()
        return found

    def learn(self, steps: int, progress: Progress = no_progress, what: str = _WHAT) -> None:
        """So many steps on the priors alone."""
        for step in range(steps):
            self.step()
            progress(what, (step + 1) / steps)


def source_for(classifier: Classifier, settings: Synthesis, seed: int) -> SampleSource:
    """A new generator for a copy of the classifier's network, frozen and in eval mode.

    Args:
        classifier: of a known input size.
        settings: how.
        seed: of the generator's weights and of the latent vectors.
    """
    frozen = classifier.copy()
    frozen.to_fast_layout()
    network = frozen.network.requires_grad_(False)
    network.eval()
    draws = torch.Generator(classifier.device).manual_seed(seed)
    bounds = None
    if settings.bounded:
        channels = classifier.input_shape[0]
        ends = torch.tensor([0.0, 1.0], device=classifier.device).view(2, 1, 1, 1)
        low, high = classifier.normalise(ends.expand(2, channels, 1, 1))
        bounds = (low, high)
    with seeded(classifier.device, seed):
        return SampleSource(network, classifier.input_shape, settings, draws, bounds=bounds)


def pixels(classifier: Classifier, normalised: Tensor) -> Tensor:
    """Normalised images as pixels, ``x * std + mean``, not clipped: undoes ``normalise``."""
    std = torch.tensor(classifier.std, device=normalised.device).view(1, -1, 1, 1)
    mean = torch.tensor(classifier.mean, device=normalised.device).view(1, -1, 1, 1)
    return normalised * std + mean


def as_image_set(classifier: Classifier, normalised: Tensor) -> ImageSet:
    """Normalised images (n, c, h, w) as pixels, with the classifier's answers to these as labels.

    Values outside [0, 1], where the source is not bounded, are clipped, so that an answer can
    differ from the one to the normalised image.
    """
    pictures = pixels(classifier, normalised).clamp(0, 1).mul(255).round().byte()
    answers = classifier.logits(ImageSet(pictures)).argmax(1)
    return ImageSet(pictures, answers, classifier.classes)
