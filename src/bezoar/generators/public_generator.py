"""A generator that stands for natural images: x = G(z), z ~ N(0, I), learned from public images.

Where no image of the task is at hand, samples can be searched in the latent space of a generator
that was trained on other images (Chen et al., "Turning a Curse into a Blessing: Enabling
In-Distribution-Data-Free Backdoor Removal via Stabilized Model Inversion", TMLR 2023, arXiv
2206.07018). The paper's abstract says that such samples hold no backdoor, although the gradients of
the backdoored network lead the search. Its proof could not be read; the argument here is ours:

* Images of G are all that the search can reach, and G was made before it and without the network.
* G moves in at most k = dim z directions near a point, so of a trigger that has nothing to do with
  G it can reproduce about sqrt(k / d) of its length, d being the number of pixel values.

It does not hold, and ``independence`` says so, for a generator that the suspect network helped to
train. Nor does it hold for triggers that public images have too (glasses, colours, weather, smooth
or blended patterns, warps), or if the attacker could put images among the public ones.

How natural a point is: the score of the critic that G was trained against, or without one the
latent vector's own density, ||z||^2 / k, which is 1 on average.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bezoar.device import seeded
from bezoar.errors import InputError
from bezoar.images import ImageSet

_TOLERANCE = 1e-3  # of rounding, in pixel values: a quarter of a step of 8-bit images
_TRIED = 4  # latent vectors


@dataclass(frozen=True, eq=False)
class PublicGenerator:
    """A frozen generator and what is known of it.

    Networks are copied, frozen and put in eval mode; those that were given stay as they are.

    Attributes:
        network: latent vectors (n, latent), drawn from N(0, 1), to images (n, c, h, w) in [0, 1].
        latent: length of a latent vector.
        shape: (c, h, w) of the images.
        critic: images (n, c, h, w) in [0, 1] to scores (n,), higher is more natural; None where
            there is none, as with autoencoders.
        apart: True: trained without the suspect network; False: with it; None: not known.
        origin: JSON-able: kind, settings, and the public images by number, hash and name.
        images: public images beside it, of its shape, where the user has some; their labels are
            dropped.

    Raises:
        InputError: a few latent vectors show that the networks do not do what is said above.

    >>> flat = nn.Sequential(nn.Linear(5, 12), nn.Sigmoid(), nn.Unflatten(1, (3, 2, 2)))
    >>> generator = PublicGenerator(flat, 5, (3, 2, 2))
    >>> z = generator.latents(7, torch.Generator().manual_seed(0))
    >>> generator(z).shape, generator.unnaturalness(z, generator(z)).shape
    (torch.Size([7, 3, 2, 2]), torch.Size([7]))
    """

    network: nn.Module
    latent: int
    shape: tuple[int, int, int]
    critic: nn.Module | None = None
    apart: bool | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    images: ImageSet | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        for name in ("network", "critic"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, copy.deepcopy(given).eval().requires_grad_(False))
        if self.images is not None:
            bare = ImageSet(self.images.images, notices=self.images.notices)
            object.__setattr__(self, "images", bare)
        _try_out(self)

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws (count, latent) from N(0, 1), on the generator network's device.

        Args:
            count: how many.
            generator: of the draws; one on the CPU gives the same vectors for every device.
        """
        drawn = torch.randn(count, self.latent, generator=generator, device=generator.device)
        return drawn.to(self.device)

    def __call__(self, z: Tensor) -> Tensor:
        """The images (n, c, h, w) in [0, 1] of ``z`` (n, latent), with gradients to ``z``.

        Raises:
            InputError: ``z`` has another shape.
        """
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise InputError(
                f"latent vectors have shape {tuple(z.shape)}; this generator takes (n, "
                f"{self.latent}), as its method latents draws them"
            )
        images: Tensor = self.network(z)
        return images

    def unnaturalness(self, z: Tensor, images: Tensor) -> Tensor:
        """The prior (n,), lower is more natural: -critic(x), or ||z||^2 / latent without a critic.

        Scores of a critic have no unit and no bounds.
        """
        if self.critic is None:
            return z.square().mean(1)
        scores: Tensor = self.critic(images)
        return -scores

    @property
    def device(self) -> torch.device:
        """Where the network is; the CPU if it has neither parameters nor buffers."""
        held = (*self.network.parameters(), *self.network.buffers())
        return held[0].device if held else torch.device("cpu")

    def to(self, device: torch.device) -> PublicGenerator:
        """The same generator on ``device``; this one stays where it is."""
        network, critic = copy.deepcopy((self.network, self.critic))
        return replace(
            self, network=network.to(device), critic=None if critic is None else critic.to(device)
        )

    @property
    def independence(self) -> str:
        """One sentence on whether the argument stands that its images hold no trigger."""
        if self.apart:
            return (
                "The generator was trained without the suspect model, so that its images can show "
                "a trigger only as far as public images do."
            )
        if self.apart is None:
            return (
                "It is not known whether the generator was trained without the suspect model; if "
                "it was not, its images may hold the trigger."
            )
        return (
            "The generator was trained with the suspect model, so that nothing keeps the trigger "
            "out of its images."
        )


def _try_out(generator: PublicGenerator) -> None:
    """Refuses networks that do not do what a generator and a critic must."""
    latent, shape = generator.latent, generator.shape
    if type(latent) is not int or latent < 1:
        raise InputError(f"the latent size is {latent!r}; expected a whole number of 1 or more")
    if len(shape) != 3 or any(type(side) is not int or side < 1 for side in shape):
        raise InputError(f"the shape of images is {shape!r}; expected (channels, height, width)")
    z = generator.latents(_TRIED, torch.Generator().manual_seed(0)).requires_grad_()
    with torch.enable_grad():
        images = tried(generator.network, z)
    if images.shape != (_TRIED, *shape):
        raise InputError(
            f"the generator makes a tensor of shape {tuple(images.shape)} of {_TRIED} latent "
            f"vectors; expected images of shape {(_TRIED, *shape)}"
        )
    if not bool(torch.isfinite(images).all()):
        raise InputError(
            "the generator makes images with NaN or infinite values; check its weights"
        )
    low, high = float(images.detach().min()), float(images.detach().max())
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise InputError(
            f"the generator makes pixel values from {low:.3g} to {high:.3g}; expected [0, 1]; for "
            'values in [-1, 1] its description can say output = "-1..1"'
        )
    if not images.requires_grad:
        raise InputError(
            "the generator gives no gradients to its latent vectors, which the search for samples "
            "needs; take torch.no_grad and the like out of it"
        )
    alone = tried(generator.network, z[-1:].detach())
    if float((alone - images[-1:]).detach().abs().max()) > _TOLERANCE:
        raise InputError(
            "the generator makes another image of the same latent vector when it is alone; switch "
            "off the noise of its own, or the statistics that it takes from a batch"
        )
    if generator.critic is not None:
        scores = tried(generator.critic, images.detach())
        if scores.shape != (_TRIED,) or not bool(torch.isfinite(scores).all()):
            raise InputError(
                f"the critic gives a tensor of shape {tuple(scores.shape)} for {_TRIED} images; "
                "expected one finite score for each"
            )


def tried(network: nn.Module, given: Tensor) -> Tensor:
    """The tensor that a network makes of a tensor; global random numbers stay as they were.

    Raises:
        InputError: it makes none, or fails.
    """
    try:
        with seeded(given.device, 0):
            made = network(given)
    except InputError:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or ["no message"])[0]
        raise InputError(
            f"the network cannot work on a tensor of shape {tuple(given.shape)} "
            f"({type(error).__name__}: {said}); is this the latent size that it was made for?"
        ) from error
    if not isinstance(made, Tensor):
        raise InputError(f"the network returned a {type(made).__name__}; expected one tensor")
    return made
