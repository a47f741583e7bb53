"""Networks differentiated twice: the few operations without a second derivative, in other words.

Attention picks a fused kernel that PyTorch can differentiate only once (on a CPU as on a GPU), and
``hardsigmoid`` (MobileNetV3) has no second derivative at all. Inside ``second_derivatives`` both
are computed by plain operations, to the same values up to rounding. In-place activations need no
such care: PyTorch keeps versions, and raises where a value that is needed was overwritten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from bezoar.classifier import Classifier
from bezoar.errors import InputError

_NO_SECOND = ("is not implemented", "differentiate twice")  # what PyTorch says then


@contextlib.contextmanager
def second_derivatives() -> Iterator[None]:
    """Inside the block a forward pass is made of what can be differentiated twice.

    Only the forward belongs in it; the derivatives may be taken anywhere.

    >>> x = torch.tensor(1.0, requires_grad=True)
    >>> with second_derivatives():
    ...     y = F.hardsigmoid(x) ** 2
    >>> (slope,) = torch.autograd.grad(y, x, create_graph=True)
    >>> torch.autograd.grad(slope, x)[0]  # 2 (1/6)²
    tensor(0.0556)
    """
    with sdpa_kernel(SDPBackend.MATH), _PlainHardsigmoid():
        yield


class _PlainHardsigmoid(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            x = args[0] if args else (kwargs or {})["input"]
            return F.relu6(x + 3) / 6
        return func(*args, **(kwargs or {}))


def check_twice_differentiable(classifier: Classifier, images: Tensor, *, instead: str) -> None:
    """Differentiates the network twice on a few images, and says where that cannot be done.

    Args:
        classifier: in eval mode; its gradients are None afterwards.
        images: (n, c, h, w) in [0, 1]; one or two are enough.
        instead: what the user can do about it, as the end of the message.

    Raises:
        InputError: an operation has no second derivative; the message names it.
    """
    images = images.detach().requires_grad_(True)
    try:
        with torch.enable_grad():
            with second_derivatives():
                loss = classifier(images).logsumexp(1).sum()
            (slope,) = torch.autograd.grad(loss, images, create_graph=True)
            # Through the whole graph: asked for one tensor only, PyTorch silently leaves out
            # operations that say that they are differentiable once.
            torch.autograd.backward(slope.square().sum())
    except RuntimeError as error:
        if not any(words in str(error) for words in _NO_SECOND):
            raise
        raise InputError(
            f"the network cannot be differentiated twice: {str(error).splitlines()[0]}; {instead}"
        ) from error
    finally:
        classifier.network.zero_grad(set_to_none=True)
