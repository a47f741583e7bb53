"""Families of patterns: what DHBE's student must not react to.

    small:  p = G_p(z)            k×k pixels within (-1, 1), somewhere on the image
    large:  p = sigma/(H·W) G_p(z)    as large as the image, and faint

Source: Yan et al. 2023, arXiv 2306.08009: both branches are in its overview figure, the first one
in the released code. sigma and how the branches mix are known from neither. With tanh's outputs
sigma is the largest sum of |p| over a channel, and k² the mass of a k×k pattern (derived). Ours:
several sizes of small patterns in one batch, each family with its generator and an even share of
the batch, and sides that grow with the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bezoar.errors import InputError
from bezoar.methods.dhbe_placement import Size, placed
from bezoar.networks.pattern_generators import PatternGenerator

_SHARES = (0.1, 0.16)  # of the shorter side: 3 and 5 pixels of 32
_SMALLEST = (2, 3)  # pixels; so that small images have two sizes as well


class PatternFamily:
    """A generator of patterns, how they are put on images, and how it learns.

    Args:
        generator: of patterns (c, k, l), no larger than the images.
        image: height and width of the images.
        scale: factor of the patterns, (c, 1, 1) or a number: their size in the images' units.
        each: a position for each image (ours); otherwise one for the whole batch (published).
        learning_rate: of Adam.
        device: where.
        seed: of latent vectors and positions.
    """

    def __init__(
        self,
        generator: PatternGenerator,
        image: Size,
        *,
        scale: Tensor,
        each: bool,
        learning_rate: float,
        device: torch.device,
        seed: int,
    ) -> None:
        self.generator = generator.to(device).train()
        self.optimizer = torch.optim.Adam(generator.parameters(), learning_rate)
        self._image, self._each, self._scale = image, each, scale.to(device)
        self._latents = torch.Generator(device).manual_seed(seed)
        self._places = torch.Generator(device).manual_seed(seed + 1)

    def stamps(self, count: int, batches: int = 1, *, together: bool = False) -> list[Tensor]:
        """For each batch, what is added to its images: (count, c, h, w), pad(p) times the scale.

        Args:
            count: images a batch, 2 or more.
            batches: how many; in each the patterns are standardised over it.
            together: generate them in one call, to the same numbers.
        """
        device, length = self._latents.device, self.generator.decoder.latent
        latents = [
            torch.randn((count, length), generator=self._latents, device=device)
            for _ in range(batches)
        ]
        if together:
            patterns = self.generator(torch.cat(latents), groups=batches).chunk(batches)
        else:
            patterns = tuple(self.generator(z) for z in latents)
        return [
            placed(self._scale * pattern, self._image, self._places, each=self._each)
            for pattern in patterns
        ]


def ascend(families: Sequence[PatternFamily], change: Tensor) -> None:
    """One step of every family's generator, up the scalar ``change`` that its patterns made."""
    for family in families:
        family.optimizer.zero_grad(set_to_none=True)
    (-change).backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
    for family in families:
        family.optimizer.step()


def mixed_stamps(
    families: Sequence[PatternFamily], count: int, batches: int = 1, *, together: bool = False
) -> list[Tensor]:
    """What is added to batches of ``count`` normalised images, of which each family has a share.

    Raises:
        InputError: a share is below two images.
    """
    made = [
        family.stamps(share, batches, together=together)
        for family, share in zip(families, shares(count, len(families)), strict=True)
    ]
    return [torch.cat(parts) for parts in zip(*made, strict=True)]


def shares(count: int, families: int) -> list[int]:
    """How many images of a batch of ``count`` each family has, as evenly as can be.

    Raises:
        InputError: one has fewer than two, and of one image patterns cannot be standardised.

    >>> shares(8, 3)
    [3, 3, 2]
    """
    parts = [len(part) for part in torch.arange(count).tensor_split(families)]
    if parts[-1] < 2:
        raise InputError(
            f"a batch of {count} is shared by {families} families of patterns, and each needs two "
            f"images or more; use a batch_size of at least {2 * families}"
        )
    return parts


def fitting_sizes(image: Size) -> tuple[int, ...]:
    """Sides of small patterns for images of a size: a tenth and a sixth of the shorter side (ours).

    >>> [fitting_sizes((side, side)) for side in (8, 28, 32, 64, 224)]
    [(2, 3), (3, 4), (3, 5), (6, 10), (22, 36)]
    """
    side = min(image)
    sizes = {
        min(side, max(least, round(share * side)))
        for share, least in zip(_SHARES, _SMALLEST, strict=True)
    }
    return tuple(sorted(sizes))
