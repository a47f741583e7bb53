"""DHBE's game as a plain loop, slow on purpose: what the library's game is compared with.

    k times:  x = G(z), p = G_p(z2);  S on mean|T(x) - S(x)| + λ mean|S(x) (constant) - S(x_p)|
    once:     x = G(z);               G on -mean|T(x) - S(x)| + alpha_2 TV_2(x)
    once:     x = G(z), p = G_p(z2);  G_p on -mean|S(x) - S(x_p)|
    with      x_p = Norm(Norm⁻¹(x) + pad(p)),  T in eval and all others in train mode

Source: Yan et al. 2023, arXiv 2306.08009, as a description of the released code has it, of which
nothing is copied. Nothing is saved: each batch goes through each network on its own, upsampling
comes before convolution, constants are made with a graph and cut off, and every backward pass also
makes the gradients of networks that do not learn, which nobody uses. ``benchmarks/dhbe_speed.py``
and ``tests/methods/test_dhbe_game.py`` give it the draws of the game that it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.networks.latent_decoder import LatentDecoder
from bezoar.networks.pattern_generators import PatternGenerator
from bezoar.networks.sample_generators import SampleGenerator
from bezoar.networks.upsampled_convolution import UpsampledConvolution


@dataclass(frozen=True)
class Settings:
    """The published numbers.

    Attributes:
        iterations: of the game; rates fall to a tenth at 60 % and again at 80 % of them.
        student_steps: in each iteration.
        insensitivity: λ.
        roughness_norm: alpha_2.
        student_rate: of SGD, with momentum 0.9 and weight decay 5e-4.
        generator_rate: of Adam, for both generators.
    """

    iterations: int = 15_000
    student_steps: int = 5
    insensitivity: float = 0.1
    roughness_norm: float = 1e-4
    student_rate: float = 0.1
    generator_rate: float = 1e-3


class PlainGame:
    """The four players and their optimizers; they are changed in place.

    Args:
        teacher: T. Its mode becomes eval, its parameters collect gradients nobody uses.
        student: S.
        sampler: G.
        patterner: G_p.
        mean: of the normalisation, (c, 1, 1).
        std: of the normalisation, (c, 1, 1).
        latents: for each call of G, the next z.
        pattern_latents: for each call of G_p, the next z2.
        corners: for each call of G_p, the next (top, left), one for the batch.
        settings: the numbers.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        sampler: SampleGenerator,
        patterner: PatternGenerator,
        *,
        mean: Tensor,
        std: Tensor,
        latents: Iterator[Tensor],
        pattern_latents: Iterator[Tensor],
        corners: Iterator[tuple[int, int]],
        settings: Settings,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(True)
        self.student = student.train().requires_grad_(True)
        self.sampler, self.patterner = sampler.train(), patterner.train()
        self.mean, self.std, self.settings = mean, std, settings
        self.latents, self.pattern_latents, self.corners = latents, pattern_latents, corners
        self.student_optimizer = torch.optim.SGD(
            student.parameters(), settings.student_rate, momentum=0.9, weight_decay=5e-4
        )
        self.sampler_optimizer = torch.optim.Adam(sampler.parameters(), settings.generator_rate)
        self.patterner_optimizer = torch.optim.Adam(patterner.parameters(), settings.generator_rate)

    def play(self, iteration: int) -> tuple[Tensor, Tensor]:
        """One iteration, counted from 0; returns the last D of S and the R of G_p."""
        self._set_rates(iteration)
        for _ in range(self.settings.student_steps):
            distance = self._student_step()
        self._sampler_step()
        return distance, self._patterner_step()

    def _student_step(self) -> Tensor:
        x = images_of(self.sampler, next(self.latents)).detach()
        x_p = self._stamped(x).detach()
        wanted = self.teacher(x).detach()
        clean = self.student(x)
        distance = (clean - wanted).abs().mean()
        change = (self.student(x_p) - clean.detach()).abs().mean()
        _minimise(distance + self.settings.insensitivity * change, self.student_optimizer)
        return distance.detach()

    def _sampler_step(self) -> None:
        x = images_of(self.sampler, next(self.latents))
        distance = (self.student(x) - self.teacher(x)).abs().mean()
        loss = -distance + self.settings.roughness_norm * roughness_norm(x)
        _minimise(loss, self.sampler_optimizer)

    def _patterner_step(self) -> Tensor:
        x = images_of(self.sampler, next(self.latents)).detach()
        change = (self.student(x) - self.student(self._stamped(x))).abs().mean()
        _minimise(-change, self.patterner_optimizer)
        return change.detach()

    def _stamped(self, x: Tensor) -> Tensor:
        p = patterns_of(self.patterner, next(self.pattern_latents))
        top, left = next(self.corners)
        bottom, right = x.shape[2] - top - p.shape[2], x.shape[3] - left - p.shape[3]
        pixels = x * self.std + self.mean
        return (pixels + F.pad(p, (left, right, top, bottom)) - self.mean) / self.std

    def _set_rates(self, iteration: int) -> None:
        s = self.settings
        drops = (5 * iteration >= 3 * s.iterations) + (5 * iteration >= 4 * s.iterations)
        for optimizer, rate in (
            (self.student_optimizer, s.student_rate),
            (self.sampler_optimizer, s.generator_rate),
            (self.patterner_optimizer, s.generator_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.1**drops


def images_of(generator: SampleGenerator, z: Tensor) -> Tensor:
    """G(z): decoder, 3×3 convolution, tanh, BatchNorm."""
    made: Tensor = generator.norm(torch.tanh(generator.last(_decoded(generator.decoder, z))))
    return made


def patterns_of(generator: PatternGenerator, z: Tensor) -> Tensor:
    """G_p(z): decoder, 3×3 convolution, BatchNorm, tanh."""
    return torch.tanh(generator.norm(generator.last(_decoded(generator.decoder, z))))


def roughness_norm(x: Tensor) -> Tensor:
    """TV_2: the norms of the whole batch's differences to the right, down and diagonally."""
    return (
        (x[:, :, :, 1:] - x[:, :, :, :-1]).norm()
        + (x[:, :, 1:, :] - x[:, :, :-1, :]).norm()
        + (x[:, :, 1:, 1:] - x[:, :, :-1, :-1]).norm()
        + (x[:, :, 1:, :-1] - x[:, :, :-1, 1:]).norm()
    )


def upsampled_then_convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What an ``UpsampledConvolution`` computes, in two steps."""
    enlarged = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(enlarged, layer.weight, layer.bias, padding=1)


def _decoded(decoder: LatentDecoder, z: Tensor) -> Tensor:
    maps = decoder.norm(decoder.linear(z).unflatten(1, (-1, *decoder.base)))
    block: Any  # of a convolution, a norm and a leaky ReLU
    for block in decoder.blocks:
        convolution, norm, activation = block
        if isinstance(convolution, UpsampledConvolution):
            maps = upsampled_then_convolved(convolution, maps)
        else:
            maps = convolution(maps)
        maps = activation(norm(maps))
    height, width = decoder.size
    top, left = (maps.shape[2] - height) // 2, (maps.shape[3] - width) // 2
    return maps[:, :, top : top + height, left : left + width]


def _minimise(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
