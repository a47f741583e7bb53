"""Networks that turn images into images: trigger generators, masks, residuals.

An encoder–decoder of the U-Net family (Ronneberger et al. 2015, arXiv 1505.04597): ``depth`` levels
of two convolutions, each followed by average pooling, one convolution in the middle, and one for
each level on the way back, after bilinear upsampling. Level i has ``width · 2^i`` channels. With
``skips`` each level also sees what its counterpart on the way down made; without, it is a plain
encoder–decoder.

Group normalisation (Wu & He 2018, arXiv 1803.08494) instead of batch normalisation: what is made
of an image then depends on this image alone, in training and afterwards, whatever shares its batch.

These are no classifiers, so ``bezoar:NAME`` does not know them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Output = Literal["linear", "tanh", "unit"]

_GROUP = 8  # channels that share a mean and a variance, where there are so many

_OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda made: made,
    "tanh": torch.tanh,
    "unit": torch.sigmoid,
}

M = TypeVar("M", bound=nn.Module)


class UNet(nn.Module):
    """Images (n, inputs, h, w) to images (n, outputs, h, w), of any height and width.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        width: channels of the first level; each further level has twice as many.
        depth: levels, each of half the size of the one before (rounded up).
        skips: whether each level on the way up also gets what its counterpart made.
        output: ``linear`` is any number, ``tanh`` lies in [-1, 1] and ``unit`` in [0, 1].

    >>> UNet(3, 1, width=8, depth=2, output="unit")(torch.zeros(2, 3, 9, 7)).shape
    torch.Size([2, 1, 9, 7])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 16,
        depth: int = 3,
        skips: bool = True,
        output: Output = "linear",
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        before = [inputs, *widths]
        self.down = nn.ModuleList(
            nn.Sequential(_block(before[i], widths[i]), _block(widths[i], widths[i]))
            for i in range(depth)
        )
        self.middle = _block(widths[-1], widths[-1])
        after = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            _block(after[i] + (widths[i] if skips else 0), widths[i]) for i in range(depth)
        )
        self.last = nn.Conv2d(width, outputs, 1)
        self.skips = skips
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, inputs, h, w) to (n, outputs, h, w)."""
        passed = []
        for level in self.down:
            x = level(x)
            passed.append(x)
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        x = self.middle(x)
        for level, counterpart in zip(reversed(self.up), reversed(passed), strict=True):
            x = F.interpolate(x, counterpart.shape[2:], mode="bilinear", align_corners=False)
            x = level(torch.cat((x, counterpart), 1) if self.skips else x)
        return _OUTPUTS[self.output](self.last(x))


def drawn(build: Callable[[], M], seed: int) -> M:
    """The module that ``build`` makes, with weights that ``seed`` draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def weights(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Everything that a module remembers, as copies named ``prefix.…``."""
    state = module.state_dict()
    return {f"{prefix}.{name}": value.detach().clone() for name, value in state.items()}


def rebuilt(build: Callable[[], M], tensors: Mapping[str, Tensor], prefix: str) -> M:
    """The module that ``build`` makes, in eval mode, using the tensors named ``prefix.…``.

    It draws nothing at random and lies where the tensors lie.
    """
    with torch.device("meta"):  # shapes only: the weights come from the tensors
        module = build()
    start = f"{prefix}."
    found = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
    module.load_state_dict(found, assign=True)
    return module.eval().requires_grad_(False)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),  # the norm has a bias of its own
        nn.GroupNorm(math.gcd(max(1, outputs // _GROUP), outputs), outputs),
        nn.ReLU(),
    )
