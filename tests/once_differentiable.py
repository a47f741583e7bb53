"""A layer of somebody's own that can be differentiated once."""

import torch
from torch import nn


class _Cubed(torch.autograd.Function):
    """x to the third power."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, slope):
        return 3 * context.saved_tensors[0] ** 2 * slope


class Once(nn.Module):
    """The same as a layer."""

    def forward(self, x):
        return _Cubed.apply(x)
