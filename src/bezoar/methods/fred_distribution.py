"""Distributional model inversion: for each class a normal distribution of latent vectors.

    min over mu_k, s_k of  E L(G(clip(mu_k + exp(s_k / 2) eps))),   eps ~ N(0, I)

with s_k = log sigma_k^2, mu_k = 0 and s_k = 1 at the start, by Adam. Samples of a class are then
drawn from what was found, so that another sample costs nothing.

Source: KED-DMI (Chen et al. 2021, arXiv 2010.04092) and its released code: one draw for each class
and step, 2,400 steps, and no clip that has an effect. Latent vectors must be drawn anew *inside*
the loop with gradients to mu and s; later code that detaches them never moves either. Ours: several
draws, so that L_par has two halves of a class, and the clip, whose gradient is 0 beyond it.

Known failures: nothing in L asks for width, so that s can fall until all samples of a class look
alike (the record has the mean deviation); one bump does not cover a class of several looks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.device import own_stream
from bezoar.errors import InputError
from bezoar.generators.public_generator import PublicGenerator
from bezoar.methods.fred_inversion import arranged, prepared
from bezoar.methods.fred_objective import Objective, Stopwatch
from bezoar.methods.fred_samples import Inverted, examined, joined
from bezoar.methods.fred_settings import Inversion
from bezoar.training import Progress, no_progress

_WHAT = "FreD: inverting the model"


def invert_distributions(
    classifier: Classifier,
    generator: PublicGenerator,
    labels: Tensor,
    settings: Inversion,
    *,
    seed: int,
    draws: int = 8,
    pattern: Tensor | None = None,
    synchronised: bool = False,
    progress: Progress = no_progress,
) -> Inverted:
    """Finds a distribution for each class of ``labels`` and draws a sample for each label.

    ``settings.candidates`` plays no part, and ``settings.optimizer`` must be Adam. The record also
    has, for each class, the mean over the latent vector of |mu| and of sigma.

    Args:
        classifier: whose classes are searched; it stays as it is.
        generator: makes the images, of a size that the classifier takes; it stays as it is.
        labels: (n,) wanted classes, in any order.
        settings: how.
        seed: of all draws.
        draws: of each class in each step.
        pattern: (c, h, w), added to the images of the virtual removal step; None adds nothing.
        synchronised: as for ``invert``.
        progress: called after each iteration.

    Raises:
        InputError: as for ``invert``; or fewer than one draw, or another optimizer.
    """
    if draws < 1:
        raise InputError(f"draws is {draws}; expected 1 or more of each class in a step")
    if settings.optimizer != "adam":
        raise InputError(
            f"the optimizer is {settings.optimizer!r}; distributions are searched with 'adam'"
        )
    if draws < 2 and settings.parameter_weight:
        raise InputError(
            "one draw of a class does not make two halves; give draws 2 or more, or "
            "parameter_weight 0"
        )
    frozen, generator = prepared(classifier, generator, labels, settings, pattern)
    device = frozen.device
    pattern = None if pattern is None else pattern.to(device)
    watch = Stopwatch(device, synchronised=synchronised)
    classes = torch.bincount(labels.cpu()).nonzero().flatten().to(device)
    at_once = torch.split(classes, max(1, settings.batch_size // draws))
    found = []  # (classes, latent) means and log variances
    for number, some in enumerate(at_once):
        noise = own_stream(seed, number, device)
        objective = Objective(
            frozen,
            generator,
            some.repeat_interleave(draws),
            settings,
            noise,
            pattern=pattern,
            watch=watch,
        )
        mean = torch.zeros(len(some), generator.latent, device=device).requires_grad_()
        log_variance = torch.ones_like(mean).requires_grad_()
        optimizer = torch.optim.Adam([mean, log_variance], settings.learning_rate)
        for iteration in range(settings.iterations):
            z = _drawn(mean, log_variance, draws, settings.clip, noise)
            slope = objective.gradient(z)
            with watch.part("optimizer"):
                optimizer.zero_grad(set_to_none=True)
                z.backward(slope)  # type: ignore[no-untyped-call]  # torch's stub lacks the type
                optimizer.step()
            progress(_WHAT, (number + (iteration + 1) / settings.iterations) / len(at_once))
        found.append((mean.detach(), log_variance.detach()))
    mean, log_variance = (torch.cat(both) for both in zip(*found, strict=True))
    batches = arranged(labels, settings.batch_size, seed)
    parts = []
    for number, rows in enumerate(batches):
        noise = own_stream(seed, len(at_once) + number, device)
        wanted = labels[rows].to(device)
        which = torch.searchsorted(classes, wanted)
        z = _drawn(mean[which], log_variance[which], 1, settings.clip, noise)
        own = Stopwatch(device, synchronised=synchronised)
        last = Objective(frozen, generator, wanted, settings, noise, pattern=pattern, watch=own)
        parts.append(examined(last, z, settings.iterations))
    whole = joined(parts, batches, watch)
    whole.record["classes"] = classes.tolist()
    whole.record["mean size of mu"] = mean.abs().mean(1).tolist()
    whole.record["mean sigma"] = (0.5 * log_variance).exp().mean(1).tolist()
    return whole


def _drawn(
    mean: Tensor, log_variance: Tensor, each: int, clip: float, draws: torch.Generator
) -> Tensor:
    """Latent vectors (classes · each, latent), class by class, with gradients to both."""
    mean, log_variance = (both.repeat_interleave(each, 0) for both in (mean, log_variance))
    noise = torch.randn(mean.shape, generator=draws, device=mean.device, dtype=mean.dtype)
    return (mean + (0.5 * log_variance).exp() * noise).clamp(-clip, clip)
