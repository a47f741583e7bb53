"""Seeing the linear layers of a network run, at the level of torch functions.

No hook is attached and no module is looked up, so it does not matter whether a layer is an
``nn.Linear``, a module of the user's own, or a bare call of ``F.linear``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class LinearCall:
    """One call: the weight, (out, in) or (out, in, 1, 1), the bias if any, and what came out."""

    weight: Tensor
    bias: Tensor | None
    output: Tensor


def _linear_weight(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """The weight of a linear layer or a 1x1 convolution, None for every other torch function."""
    if func is not F.linear and func is not torch.conv2d:
        return None
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    if not isinstance(weight, Tensor):
        return None
    if weight.ndim == 4 and tuple(weight.shape[2:]) != (1, 1):
        return None
    return weight


class LinearCalls(TorchFunctionMode):
    """Records every linear call while active; nothing is attached to the network."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[LinearCall] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        weight = _linear_weight(func, args, kwargs or {})
        if weight is not None:
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            self.calls.append(LinearCall(weight, bias, output))
        return output


class HeadInput(TorchFunctionMode):
    """Passes the input of one linear layer through ``edit`` while active."""

    def __init__(self, weight: Tensor, edit: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = weight
        self.edit = edit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _linear_weight(func, args, kwargs) is self.weight:
            if args:
                args = (self.edit(args[0]), *args[1:])
            else:
                kwargs = {**kwargs, "input": self.edit(kwargs["input"])}
        return func(*args, **kwargs)
