"""A generator from public images by a game against a critic: a small GAN.

    Wasserstein: min_G max_D  E D(x) − E D(G(z)) − w E (‖∇D(x̂)‖₂ − 1)²      x̂ = εx + (1 − ε)G(z)
    hinge:       D: min E max(0, 1 − D(x)) + E max(0, 1 + D(G(z)));   G: min −E D(G(z))

Wasserstein with gradient penalty (Gulrajani et al. 2017, arXiv 1704.00028) is what the first author
of FreD (Chen et al. 2023, arXiv 2206.07018) released for model inversion; ``published`` has those
settings. That the paper's own generator was made with them is inferred from that code, not read.

The default (ours) costs a fraction of it: hinge loss and spectral norms (Miyato et al. 2018, arXiv
1802.05957) in place of penalty and five critic steps, a critic that learns twice as fast as the
generator (Heusel et al. 2017, arXiv 1706.08500), and a moving average of the generator's weights,
whose BatchNorm statistics are taken anew from its own draws. Ours with either: batches are drawn
with replacement, and the generator learns from the images that the critic saw last, which saves a
forward.

Known failures: too few images (hundreds) are learned by heart; the critic wins, and images stop
changing; a generator leaves out kinds of images, which nothing here measures. Mirrored images are
wrong for signs and digits (``flip``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Adam

from bezoar.device import seeded, to_fast_layout, to_plain_layout
from bezoar.errors import InputError
from bezoar.generators.critics import CriticLoss, LearningCritic
from bezoar.generators.curves import Curves, worth_saving
from bezoar.generators.public_batches import PublicBatches
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.networks.image_generators import ImageCritic, ImageGenerator
from bezoar.resuming import Checkpoint, TrainingState
from bezoar.training import Progress, gradients_only_for, no_progress

KIND = "adversarial training on public images"
_RECALIBRATION = 32  # batches


class AdversarialTraining(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a generator and its critic are trained.

    Attributes:
        loss: ``hinge`` or ``wasserstein``.
        steps: of the generator.
        epochs: how often the critic sees all images; where given, it decides in place of ``steps``.
        critic_steps: of the critic for each of the generator.
        gradient_penalty: w.
        norm: of the critic, ``spectral`` or ``instance``.
        batch_size: images in a step.
        learning_rate: of the generator's Adam.
        critic_learning_rate: of the critic's.
        betas: of both.
        latent: length of a latent vector.
        width: of both networks.
        ema: share of the old value in the moving average of the generator; 0 keeps the last one.
        flip: mirror public images at random; not for digits and signs.
    """

    loss: CriticLoss = "hinge"
    steps: int = 5_000
    epochs: float | None = None
    critic_steps: int = 1
    gradient_penalty: float = 0.0
    norm: Literal["spectral", "instance"] = "spectral"
    batch_size: int = 64
    learning_rate: float = 2e-4
    critic_learning_rate: float = 4e-4
    betas: tuple[float, float] = (0.5, 0.999)
    latent: int = 100
    width: int = 48
    ema: float = 0.999
    flip: bool = True

    @classmethod
    def published(cls) -> AdversarialTraining:
        """The released settings for CIFAR-10 and signs."""
        return cls(
            loss="wasserstein",
            epochs=100,
            critic_steps=5,
            gradient_penalty=10.0,
            norm="instance",
            critic_learning_rate=2e-4,
            width=64,
            ema=0.0,
            flip=False,
        )

    def __post_init__(self) -> None:
        least = {"steps": 1, "critic_steps": 1, "batch_size": 2, "latent": 1, "width": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"{name} is {getattr(self, name)}; expected {smallest} or more")
        for name in ("learning_rate", "critic_learning_rate", "gradient_penalty"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for value in (self.ema, *self.betas):
            if not 0 <= value < 1:
                raise InputError(f"ema or one of betas is {value}; expected 0 or more, below 1")
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise InputError(f"epochs is {self.epochs}; expected more than 0")
        if self.loss == "hinge" and self.gradient_penalty:
            raise InputError("a gradient_penalty belongs to the loss wasserstein; leave it out")

    def generator_steps(self, images: int) -> int:
        """Steps of the generator on so many public images."""
        if self.epochs is None:
            return self.steps
        return max(1, math.ceil(self.epochs * images / (self.batch_size * self.critic_steps)))


def train_generator(
    images: ImageSet,
    size: tuple[int, int] | None,
    settings: AdversarialTraining,
    *,
    seed: int,
    device: torch.device | None = None,
    progress: Progress = no_progress,
    resume: Path | None = None,
) -> PublicGenerator:
    """Trains a generator and its critic on public images, apart from any classifier.

    Args:
        images: public images; labels play no part.
        size: (height, width) of what is made; None is the images' own.
        settings: how.
        seed: of weights and draws.
        device: where to train; the CPU by default.
        progress: called after each step, with the mean losses of the last fiftieth.
        resume: a file that is renewed every hundred steps or more. Where it is there at the
            start, training goes on from it and ends as if it had not been interrupted. The caller
            removes it once the generator is safe.

    Returns:
        The generator with its critic; ``origin`` holds settings, images, seed, losses (means of
        fiftieths) and seconds.

    Raises:
        InputError: fewer images than a batch, a ``resume`` of another training, or it diverged.
    """
    device = device or torch.device("cpu")
    draws = torch.Generator().manual_seed(seed)
    public = PublicBatches(
        images,
        size,
        device=device,
        batch_size=settings.batch_size,
        flip=settings.flip,
        generator=draws,
    )
    steps = settings.generator_steps(len(images))
    curves = Curves("training a generator", ("critic", "generator"), steps)
    with seeded(device, seed):
        network = ImageGenerator(public.shape, latent=settings.latent, width=settings.width)
        judge = ImageCritic(public.shape, width=settings.width, norm=settings.norm)
        for module in (network, judge):
            to_fast_layout(module.to(device).train(), device)
        optimizer = Adam(network.parameters(), settings.learning_rate, settings.betas)
        of_critic = Adam(judge.parameters(), settings.critic_learning_rate, settings.betas)
        kind, penalty = settings.loss, settings.gradient_penalty
        critic = LearningCritic(judge, of_critic, kind, penalty, draws, curves)
        run = TrainingState(network, optimizer, draws, critic, settings.ema)
        facts = {"settings": settings, "seed": seed, "kind": KIND}
        saved = Checkpoint(resume, run, public.images, facts)
        started = time.perf_counter()

        def made() -> Tensor:
            z = torch.randn(settings.batch_size, settings.latent, generator=draws)
            images: Tensor = network(z.to(device))
            return images

        for step in range(run.steps, steps):
            for turn in range(settings.critic_steps):
                with torch.set_grad_enabled(turn + 1 == settings.critic_steps):
                    fake = made()
                critic_loss = critic.learn(public.draw(), fake.detach())
            with gradients_only_for(judge, []):
                loss = -judge(fake).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            optimizer.step()
            run.count_step()
            if curves.add(critic_loss, loss) and worth_saving(step + 1, steps, curves.block):
                run.history.seconds += time.perf_counter() - started
                started = time.perf_counter()
                saved.write()
            progress(curves.said, (step + 1) / steps)
        curves.close()
        if settings.ema:
            run.take_average()
            _recalibrate(network, made)
    run.history.seconds += time.perf_counter() - started
    to_plain_layout(network)
    origin = {
        "kind": KIND,
        "settings": msgspec.to_builtins(settings),
        "images": public.described(),
        "seed": seed,
        "steps": steps,
        "losses": curves.means,
        "seconds": run.history.seconds,
    }
    return PublicGenerator(
        network, settings.latent, public.shape, judge.settled(), apart=True, origin=origin
    )


def _recalibrate(network: nn.Module, made: Callable[[], Tensor]) -> None:
    """Averaged weights have statistics of their own: plain averages over fresh draws."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for _ in range(_RECALIBRATION):
            made()
