"""Networks that put a trigger on an image, or take it off again: x → G(x), of the same shape.

Two forms, both for images (n, c, h, w) in [0, 1]:

* ``ResidualGenerator`` (ours): G(x) = x + u + U(x − 1/2, P). The pattern u and the planes P belong
  to the position, U is a small U-Net. u and U's last layer start at zero, so G starts as the
  identity, exactly, and needs no pre-training.
* ``PublishedGenerator``: the U-Net that the code released with BTI-DBF uses (Xu et al., "Towards
  Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features", ICLR 2024,
  openreview.net/forum?id=Tw9wemV6cb). Nothing leads from its input straight to its output, and its
  norms take every image's brightness and contrast away, so it has to learn the identity first,
  and on small images it never quite does.

Neither clamps: who uses a generator bounds what it may change and keeps it within [0, 1].
``configuration`` says in JSON's types how a generator was made, and ``built`` makes it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.errors import InputError
from bezoar.networks.generators import UNet

_PLANE_STD = 0.1  # below the contrast of images, so that these still lead
_PUBLISHED_WIDTHS = (32, 64, 128, 256, 512)
_PUBLISHED_MULTIPLE = 2 ** (len(_PUBLISHED_WIDTHS) - 1)


class ResidualGenerator(nn.Module):
    """Images (n, c, h, w) to x + u + U(x − 1/2, P), the identity until it is trained (all ours).

    A fixed pattern in a fixed place is the commonest trigger, and a convolution hardly knows where
    it is: hence the free pattern u and the planes P, which U sees beside the image.

    Args:
        channels: colour channels c, 1 to 64.
        height: of the images it is for, in pixels, up to 4096.
        width: the same.
        features: channels of the U-Net's first level, up to 256; each further one has twice as
            many. With 0 there is no U-Net and no plane, only the pattern: G(x) = x + u.
        depth: levels of the U-Net, 1 to 8.
        planes: how many maps of the position it learns, 0 to 64; they start as N(0, 0.1²).

    Raises:
        InputError: an argument is out of its range, or images are not of the size that was said.

    >>> x = torch.rand(2, 3, 8, 8)
    >>> bool((ResidualGenerator(3, 8, 8)(x) == x).all())
    True
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        *,
        features: int = 8,
        depth: int = 3,
        planes: int = 4,
    ) -> None:
        super().__init__()
        self.channels = whole_number("channels", channels, 1, 64)
        self.height = whole_number("height", height, 1, 4096)
        self.width = whole_number("width", width, 1, 4096)
        self.features = whole_number("features", features, 0, 256)
        self.depth = whole_number("depth", depth, 1, 8)
        self.pattern = nn.Parameter(torch.zeros(channels, height, width))
        planes = whole_number("planes", planes, 0, 64) if features else 0
        self.planes = nn.Parameter(_PLANE_STD * torch.randn(planes, height, width))
        self.unet: UNet | None = None
        if features:
            self.unet = UNet(channels + planes, channels, width=features, depth=depth)
            for parameter in self.unet.last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (n, c, h, w) in [0, 1] to (n, c, h, w), not clamped."""
        if images.shape[1:] != self.pattern.shape:
            raise InputError(
                f"the generator was made for images of shape {tuple(self.pattern.shape)} and got "
                f"{tuple(images.shape[1:])}; resize the images"
            )
        if self.unet is None:
            return images + self.pattern
        planes = self.planes.expand(images.shape[0], -1, -1, -1)  # torch.export reads no len
        made: Tensor = self.unet(torch.cat((images - 0.5, planes), 1))
        return images + self.pattern + made


class PublishedGenerator(nn.Module):
    """The U-Net of the code released with BTI-DBF: 5 levels, 32 to 512 channels.

    A level is twice a 3×3 convolution, an affine instance norm without running statistics, and a
    leaky ReLU of slope 0.01. Max-pooling halves; on the way up a 3×3 transposed convolution of
    stride 2 that keeps the channels, and a leaky ReLU, double; a 1×1 convolution ends it. For 3
    channels that is 10,987,011 parameters: the released one has 14.12 M, of which 3.13 M belong to
    a path that it never uses. Convolutions have biases (PyTorch's default; the sources are silent).

    The published network takes and makes normalised images. This one takes images in [0, 1],
    normalises them, and undoes that with what comes out.

    Args:
        channels: colour channels, 1 to 64.
        mean: one value a channel, subtracted from images in [0, 1].
        std: one value a channel, then divided by.

    Raises:
        InputError: an argument is out of its range.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int = 3, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.channels = whole_number("channels", channels, 1, 64)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, _for_channels(name, values, channels))
        if min(std) <= 0:
            raise InputError(f"std of the generator is {list(std)}; expected numbers above 0")
        self.normalisation = {"mean": list(mean), "std": list(std)}
        widths = _PUBLISHED_WIDTHS
        self.down = nn.ModuleList(
            _published_level(before, after)
            for before, after in zip((channels, *widths[:-1]), widths, strict=True)
        )
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(wide, wide, 3, stride=2, padding=1, output_padding=1)
            for wide in widths[:0:-1]
        )
        self.up = nn.ModuleList(
            _published_level(wide + narrow, narrow)
            for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(widths[0], channels, 1)

    @staticmethod
    def check_size(height: int, width: int) -> None:
        """Tells before any work whether images of this size can be taken.

        Raises:
            InputError: a side is below 32 or no multiple of 16.
        """
        for side in (height, width):
            if side < 2 * _PUBLISHED_MULTIPLE or side % _PUBLISHED_MULTIPLE:
                raise InputError(
                    f"the published generator got images of {height}x{width} and takes sides of "
                    f"{2 * _PUBLISHED_MULTIPLE} or more that are multiples of "
                    f"{_PUBLISHED_MULTIPLE}; pad or resize the images, or use the residual one"
                )

    def forward(self, images: Tensor) -> Tensor:
        """Maps (n, c, h, w) in [0, 1] to (n, c, h, w), not clamped.

        Raises:
            InputError: images of another number of channels, or of a size it cannot take.
        """
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise InputError(
                f"the generator takes images of {self.channels} channels and got a tensor of shape "
                f"{tuple(images.shape)}; expected (n, {self.channels}, height, width)"
            )
        self.check_size(*images.shape[2:])
        x = (images - self.mean) / self.std
        passed: list[Tensor] = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if passed else x)
            passed.append(x)
        for enlarge, level, counterpart in zip(self.enlarge, self.up, passed[-2::-1], strict=True):
            x = level(torch.cat((F.leaky_relu(enlarge(x), 0.01), counterpart), 1))
        made: Tensor = self.last(x) * self.std + self.mean
        return made


def configuration(generator: nn.Module) -> dict[str, Any]:
    """How a generator was made, in JSON's types: its kind and its arguments.

    Raises:
        InputError: the module is of no kind that ``built`` makes.

    >>> configuration(ResidualGenerator(1, 8, 8, planes=2))["planes"]
    2
    """
    if isinstance(generator, ResidualGenerator):
        names = ("channels", "height", "width", "features", "depth")
        arguments = {name: getattr(generator, name) for name in names}
        return {"kind": "residual", **arguments, "planes": len(generator.planes)}
    if isinstance(generator, PublishedGenerator):
        return {"kind": "published", "channels": generator.channels, **generator.normalisation}
    raise InputError(
        f"a {type(generator).__name__} is no generator that a file could describe; expected a "
        "ResidualGenerator or a PublishedGenerator"
    )


def built(configuration: Mapping[str, Any]) -> nn.Module:
    """The generator that ``configuration`` describes, newly drawn.

    Every value is checked, and sizes have upper limits: a configuration may come from a stranger.

    Raises:
        InputError: an unknown kind, an unknown or missing argument, or a value out of its range.
    """
    kinds: dict[str, type[nn.Module]] = {
        "residual": ResidualGenerator,
        "published": PublishedGenerator,
    }
    arguments = dict(configuration)
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"the generator is of kind {kind!r}; expected one of {', '.join(kinds)}")
    try:
        return kinds[kind](**arguments)
    except TypeError as error:
        raise InputError(
            f"the arguments of the {kind} generator are not those it takes: {error}"
        ) from error


def whole_number(name: str, value: Any, least: int, most: int) -> int:
    """``value`` where it is a whole number from ``least`` to ``most``.

    Raises:
        InputError: it is not.
    """
    if type(value) is not int or not least <= value <= most:
        raise InputError(
            f"{name} of the generator is {value!r}; expected a whole number from {least} to {most}"
        )
    return value


def _for_channels(name: str, values: Any, channels: int) -> Tensor:
    """One number a channel, as (channels, 1, 1)."""
    if (
        not isinstance(values, Sequence)
        or len(values) != channels
        or not all(type(value) in (int, float) and abs(value) < 1e30 for value in values)
    ):
        raise InputError(
            f"{name} of the generator is {values!r}; expected {channels} finite numbers, one for "
            "each channel"
        )
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def _published_level(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.InstanceNorm2d(outputs, affine=True),
        nn.LeakyReLU(0.01),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.InstanceNorm2d(outputs, affine=True),
        nn.LeakyReLU(0.01),
    )
