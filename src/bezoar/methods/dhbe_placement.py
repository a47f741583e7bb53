"""Where DHBE puts a generated pattern: a window of the image, zero outside it.

    pad(p)[:, :, top : top + k, left : left + l] = p,   0 elsewhere
    x_p = Norm(Norm⁻¹(x) + pad(p)) = x + pad(p) / std

The second line holds as Norm is affine: neither direction of it has to be run. Nothing is clipped:
a pattern may lead out of [0, 1], and clipping would stop its gradient there.

Source: the released code of Yan et al. 2023, arXiv 2306.08009: one uniform position for the whole
batch, from a generator of the host. A position for each image is ours, so are patterns that are not
square, and positions drawn on the device: no number of the host enters and none is read back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bezoar.errors import InputError

Size = tuple[int, int]
"""Height and width in pixels."""


def placed(
    patterns: Tensor, image: Size, generator: torch.Generator, *, each: bool = False
) -> Tensor:
    """pad(p) at random: patterns (n, c, k, l) to (n, c, height, width), zero outside the window.

    Args:
        patterns: any values; gradients flow back into them.
        image: height and width of what is returned.
        generator: on the device of the patterns. Nothing is drawn where a pattern covers all.
        each: a position for each image (ours); otherwise one for the whole batch (published).

    Raises:
        InputError: a pattern is larger than the image, or not of shape (n, c, k, l).
    """
    if patterns.ndim != 4:
        raise InputError(
            f"patterns have shape {tuple(patterns.shape)}; expected (images, channels, height, "
            "width)"
        )
    window = (patterns.shape[2], patterns.shape[3])
    if window == tuple(image):
        return patterns
    return placed_at(patterns, image, positions(len(patterns), window, image, generator, each=each))


def positions(
    count: int, window: Size, image: Size, generator: torch.Generator, *, each: bool
) -> Tensor:
    """Top left corners, uniform over the (H - k + 1) (W - l + 1) ones at which a window fits.

    Args:
        count: how many images there are.
        window: k and l, of the pattern.
        image: H and W.
        generator: of the draws; the corners lie on its device.
        each: ``count`` independent corners; otherwise a single one.

    Returns:
        ``int64`` (count, 2) or (1, 2): top and left.
    """
    _check(window, image)
    corners = [
        torch.randint(
            whole - part + 1, (count if each else 1,), generator=generator, device=generator.device
        )
        for part, whole in zip(window, image, strict=True)
    ]
    return torch.stack(corners, 1)


def placed_at(patterns: Tensor, image: Size, corners: Tensor) -> Tensor:
    """pad(p) with the given corners: patterns (n, c, k, l) to (n, c, height, width).

    Args:
        patterns: any values; gradients flow back into them.
        image: height and width of what is returned.
        corners: ``int64`` (n, 2), or (1, 2) for all: top and left, where the window fits; they are
            not checked, as reading them would wait for the device.

    >>> placed_at(torch.ones(1, 1, 1, 2), (2, 3), torch.tensor([[1, 1]]))
    tensor([[[[0., 0., 0.],
              [0., 1., 1.]]]])
    """
    count, channels, k, l = patterns.shape  # noqa: E741 (the pattern is k x l)
    height, width = image
    _check((k, l), image)
    device = patterns.device
    top, left = corners[:, 0].view(-1, 1, 1), corners[:, 1].view(-1, 1, 1)
    rows = top + torch.arange(k, device=device).view(1, k, 1)  # (n or 1, k, 1)
    columns = left + torch.arange(l, device=device)  # (n or 1, 1, l)
    # A scatter over flat pixels, whose gradient is a gather: 1.5 to 4 times faster on a CPU than
    # products with one-hot rows and columns, a masked gather, or index_put.
    where = (rows * width + columns).view(len(corners), 1, k * l).expand(count, channels, -1)
    empty = patterns.new_zeros(count, channels, height * width)
    return empty.scatter(2, where, patterns.flatten(2)).view(count, channels, height, width)


def _check(window: Size, image: Size) -> None:
    if not 0 < window[0] <= image[0] or not 0 < window[1] <= image[1]:
        raise InputError(
            f"a pattern of {window[0]}x{window[1]} pixels does not fit into images of "
            f"{image[0]}x{image[1]}; choose one that is no larger than the images"
        )
