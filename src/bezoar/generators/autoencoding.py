"""A generator from public images by a variational autoencoder: the quickest, and blurred.

    min_{E,G}  d/2 · ln(mean (x − G(z))²) + KL(N(m, s²) ‖ N(0, I)),     (m, s) = E(x),  z = m + s ε

per image of d values, ε ~ N(0, I) (Kingma and Welling 2014, arXiv 1312.6114). The first term is the
likelihood of pixels with Gaussian noise whose variance is the batch's own squared error, so that
nothing weighs the two terms (Rybkin et al. 2021, arXiv 2006.13202). As a generator for samples of
a classifier this is ours (the spec of FreD, arXiv 2206.07018, names GANs only), with every setting.

There is no critic: how natural G(z) is follows from z alone, ‖z‖² / k. Encoder and decoder are
those of ``bezoar.networks.image_generators``; the learning rate falls linearly to 0.

Known failures: what the squared error does not see (texture, edges) is missing, so that a
classifier may take all images for the classes that are smooth; draws of z can lie where no image
was encoded.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Adam

from bezoar.device import seeded, to_fast_layout, to_plain_layout
from bezoar.errors import InputError
from bezoar.generators.curves import Curves, worth_saving
from bezoar.generators.public_batches import PublicBatches
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.networks.image_generators import ImageEncoder, ImageGenerator
from bezoar.resuming import Checkpoint, TrainingState
from bezoar.training import Progress, no_progress

KIND = "autoencoding of public images"
_LEAST_ERROR = 1e-6  # below the rounding of 8-bit images, (1/255)² / 12


class Autoencoding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an autoencoder is trained.

    Attributes:
        steps: of encoder and generator together.
        batch_size: images in a step.
        learning_rate: of Adam at the start.
        latent: length of a latent vector.
        width: of both networks.
        flip: mirror public images at random; not for digits and signs.
    """

    steps: int = 3_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    latent: int = 100
    width: int = 32
    flip: bool = True

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "batch_size": 2, "latent": 1, "width": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if not 0 <= self.learning_rate < float("inf"):
            raise InputError(f"learning_rate is {self.learning_rate}; expected 0 or more")


def train_autoencoder(
    images: ImageSet,
    size: tuple[int, int] | None,
    settings: Autoencoding,
    *,
    seed: int,
    device: torch.device | None = None,
    progress: Progress = no_progress,
    resume: Path | None = None,
) -> PublicGenerator:
    """Trains an autoencoder on public images; its decoder is the generator, without a critic.

    Arguments, result and errors are those of ``adversarial_training.train_generator``. The losses
    in ``origin`` are the root of the mean squared error, in pixel values, and the KL in nats.
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
    curves = Curves("training an autoencoder", ("error", "divergence"), settings.steps)
    with seeded(device, seed):
        encoder = ImageEncoder(public.shape, latent=settings.latent, width=settings.width)
        decoder = ImageGenerator(public.shape, latent=settings.latent, width=settings.width)
        both = nn.ModuleList([encoder, decoder])
        to_fast_layout(both.to(device).train(), device)
        optimizer = Adam(both.parameters(), settings.learning_rate)
        run = TrainingState(both, optimizer, draws, curves, ema=0.0)
        facts = {"settings": settings, "seed": seed, "kind": KIND}
        saved = Checkpoint(resume, run, public.images, facts)
        started = time.perf_counter()
        for step in range(run.steps, settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1 - step / settings.steps)
            batch = public.draw()
            mean, log_variance = encoder(batch)
            noise = torch.randn(mean.shape, generator=draws).to(device)
            made = decoder(mean + (log_variance / 2).exp() * noise)
            error = (made - batch).square().mean()
            divergence = divergence_from_normal(mean, log_variance).mean()
            loss = batch[0].numel() / 2 * error.clamp_min(_LEAST_ERROR).log() + divergence
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            run.count_step()
            full = curves.add(error.sqrt(), divergence)
            if full and worth_saving(run.steps, settings.steps, curves.block):
                run.history.seconds += time.perf_counter() - started
                started = time.perf_counter()
                saved.write()
            progress(curves.said, run.steps / settings.steps)
        curves.close()
        run.history.seconds += time.perf_counter() - started
    to_plain_layout(decoder)
    origin = {
        "kind": KIND,
        "settings": msgspec.to_builtins(settings),
        "images": public.described(),
        "seed": seed,
        "steps": settings.steps,
        "losses": curves.means,
        "seconds": run.history.seconds,
    }
    return PublicGenerator(decoder, settings.latent, public.shape, apart=True, origin=origin)


def divergence_from_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(m, diag e^l) ‖ N(0, I)) in nats, (n,), of m and l, (n, k) each.

    >>> divergence_from_normal(torch.tensor([[2.0]]), torch.tensor([[0.0]])).item()
    2.0
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
