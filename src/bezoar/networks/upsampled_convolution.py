"""Nearest upsampling by 2 and a 3×3 convolution as one layer that never makes the enlarged map.

Upsampling repeats rows and columns, so each output pixel sees 2×2 pixels of the small map, with
taps of the 3×3 kernel summed where they fall on the same one. Along one axis, with taps k₀ k₁ k₂
on the rows below, at and above:

    y[2i]     =  k₀ x[i−1]  +  (k₁ + k₂) x[i]
    y[2i + 1] =  (k₀ + k₁) x[i]  +  k₂ x[i+1]

That is the transposed convolution of stride 2 and padding 1 whose kernel is (k₂, k₁+k₂, k₀+k₁, k₀)
along each axis. Exact, the zero border included, with 4/9 of the multiply-adds (ours; on the
kinship of resizing with transposed convolution see Aitken et al. 2017, arXiv 1707.02937).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UpsampledConvolution(nn.Conv2d):
    """Maps (n, inputs, h, w) to (n, outputs, 2h, 2w).

    Weights, their names and their initialisation are those of
    ``nn.Conv2d(inputs, outputs, 3, padding=1)``.

    >>> UpsampledConvolution(8, 4)(torch.zeros(2, 8, 5, 7)).shape
    torch.Size([2, 4, 10, 14])
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name that nn.Conv2d gives it)
        """Maps (n, inputs, h, w) to (n, outputs, 2h, 2w), in the memory format of the input."""
        # Sums, not matrix products: those would be rounded under autocast and TF32.
        kernel = _merged(_merged(self.weight, 2), 3)  # (outputs, inputs, 4, 4)
        return F.conv_transpose2d(input, kernel.transpose(0, 1), self.bias, stride=2, padding=1)


def _merged(weight: Tensor, axis: int) -> Tensor:
    """Three taps along ``axis`` to the four of the transposed convolution."""
    first, middle, last = weight.unbind(axis)
    return torch.stack((last, middle + last, first + middle, first), axis)
