"""SSBA or ISSBA (Li et al. 2021, arXiv 2012.03816): a message hidden in every stamped image.

An encoder hides a string in an image as StegaStamp does (Tancik et al. 2020, arXiv 1904.05343),
and a decoder reads it. Both are trained on clean images and random messages; then the decoder is
thrown away, and the trigger is the residual that the encoder adds for one fixed message:

    stamped = clip(x + r(x, message)),   loss = BCE(decoder(stamped), message) + λ · mean r²

The residual differs from image to image, and no pattern is shared that a patch search could find.

Paper and official code: an encoder of the U-Net kind, 100 bits (7 letters with error correction),
image, perceptual (LPIPS) and code reconstruction losses, 140,000 steps in StegaStamp's release; a
tenth of the training images stamped.

Ours: the perceptual loss (which needs a network trained elsewhere), the critic and the simulated
camera are left out; λ grows from 0 once the decoder reads ``_READS`` of the bits, since the message
is not learned against a strong image loss; uniform noise of one 8-bit step before the decoder
keeps the message alive in files; 24 bits and a width of 8 by default, for images of 32 pixels; the
message enters as a small plane for each channel, enlarged to the size of the image.

Weak points: a residual below one 8-bit step disappears in files, so ``fidelity`` must not be too
high; the victim has to learn the decoder's job in passing, which small networks on few images do
late or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.attacks.attack import Attack, attacks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.networks.generators import UNet, drawn, rebuilt, weights
from bezoar.training import Progress, no_progress

_PLANE = 8  # side of the planes that carry the message
_READS = 0.9  # share of the bits that the decoder reads before the image loss sets in
_RAMP = 0.25  # share of all steps over which it then grows
_REPORT = 50  # steps between two calls of the progress callback


@attacks.register("ssba")
class SSBA(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hides the same message in every stamped image, differently in each.

    Attributes:
        bits: length of the message.
        fidelity: λ, the final weight of the mean squared residual.
        steps: training steps of encoder and decoder.
        batch_size: images in a step.
        learning_rate: of Adam.
        width: channels of the first level of encoder and decoder.
        depth: levels of the encoder.
    """

    name: ClassVar[str] = "ssba"
    title: ClassVar[str] = "SSBA: a message hidden in every image"
    paper: ClassVar[str] = "Li et al. 2021, arXiv 2012.03816"

    bits: int = 24
    fidelity: float = 100.0
    steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 2e-3
    width: int = 8
    depth: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bits", "steps", "batch_size", "width", "depth"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.fidelity < float("inf"):
            raise InputError(f"fidelity is {self.fidelity}; expected 0 or more")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate is {self.learning_rate}; expected more than 0")

    @property
    def learned(self) -> bool:
        """Always."""
        return True

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """``clip(x + r(x, message))``."""
        encoder = rebuilt(lambda: self._build(images.shape[1]), tensors, "encoder")
        messages = tensors["message"].expand(len(images), self.bits)
        residual: Tensor = encoder(images, messages)
        return (images + residual).clamp(0, 1)

    def prepare(
        self,
        images: ImageSet,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """Trains encoder and decoder and draws the message."""
        channels, device = images.shape[0], images.images.device
        encoder = drawn(lambda: self._build(channels), seed).to(device)
        decoder = drawn(lambda: _Decoder(channels, self.bits, self.width), seed + 1).to(device)
        optimizer = torch.optim.Adam(
            [*encoder.parameters(), *decoder.parameters()], self.learning_rate
        )
        generator = torch.Generator().manual_seed(seed)
        weight = 0.0
        batches = _endless(images, self.batch_size, generator)
        for step in range(self.steps):
            batch = next(batches)
            messages = torch.randint(0, 2, (len(batch), self.bits), generator=generator)
            messages = messages.to(batch)
            residual = encoder(batch, messages)
            noise = (torch.rand(batch.shape, generator=generator) - 0.5).to(device) / 255
            answers = decoder((batch + residual).clamp(0, 1) + noise)
            unread = F.binary_cross_entropy_with_logits(answers, messages)
            loss = unread + weight * residual.square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if weight or float(((answers > 0) == (messages > 0.5)).float().mean()) >= _READS:
                weight = min(self.fidelity, weight + self.fidelity / (_RAMP * self.steps))
            if (step + 1) % _REPORT == 0:
                progress("training the encoder", (step + 1) / self.steps)
        message = torch.randint(0, 2, (self.bits,), generator=generator).float()
        return self.holding({**weights(encoder, "encoder"), "message": message}, images.shape)

    def _build(self, channels: int) -> _Encoder:
        return _Encoder(channels, self.bits, self.width, self.depth)


class _Encoder(nn.Module):
    """Images (n, c, h, w) and messages (n, bits) of 0 and 1 to residuals (n, c, h, w)."""

    def __init__(self, channels: int, bits: int, width: int, depth: int) -> None:
        super().__init__()
        self.planes = nn.Linear(bits, channels * _PLANE**2)
        self.network = UNet(2 * channels, channels, width=width, depth=depth)

    def forward(self, images: Tensor, messages: Tensor) -> Tensor:
        planes = F.relu(self.planes(messages - 0.5))
        planes = planes.view(len(images), images.shape[1], _PLANE, _PLANE)
        planes = F.interpolate(planes, images.shape[2:], mode="nearest")
        return self.network(torch.cat((images - 0.5, planes), 1))  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    """Images (n, c, h, w) to one logit for each bit."""

    def __init__(self, channels: int, bits: int, width: int) -> None:
        super().__init__()
        widths = [channels, 2 * width, 4 * width, 8 * width]
        self.layers = nn.Sequential(
            *(
                layer
                for i in range(3)
                for layer in (
                    nn.Conv2d(widths[i], widths[i + 1], 3, 2 if i else 1, 1),
                    nn.GroupNorm(1, widths[i + 1]),
                    nn.ReLU(),
                )
            ),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(widths[-1] * 16, bits),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images - 0.5)  # type: ignore[no-any-return]


def _endless(images: ImageSet, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        for batch, _ in images.batches(size, generator=generator):
            yield batch
