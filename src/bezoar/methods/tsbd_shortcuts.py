"""Which convolutions are projection shortcuts, told from one forward pass (ours).

Released code of TSBD leaves out what has ``shortcut`` in its name. By what it does, a shortcut is a
convolution whose output is added to something (by way of norms and activations at most), where
another convolution that reads the same tensor leads to that something through further layers, or
has the larger kernel.

Known limits: a shortcut that reads a pooled copy of what the other way reads (ResNet-D) is not
seen, nor one that is cut, padded or reshaped before the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from bezoar.classifier import Classifier
from bezoar.unit_provenance import argument, tensors_in
from bezoar.unit_tracing import CONVOLUTIONS

_SUMS = {"add", "iadd", "radd", "sub", "isub", "rsub"}


def shortcuts(classifier: Classifier) -> set[str]:
    """The names of the weights of a traced ``classifier`` that project a shortcut."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand((2, *classifier.input_shape), generator=generator).to(classifier.device)
    pass_ = _Pass({id(p): name for name, p in classifier.network.named_parameters()})
    with classifier.evaluating(), torch.no_grad(), parametrize.cached(), pass_:
        classifier(probe)
    return pass_.found - {""}


@dataclass(frozen=True)
class _Call:
    """A convolution in the pass: its weight, the tensor it reads, and the size of its kernel."""

    weight: str
    reads: int
    kernel: int


@dataclass(frozen=True)
class _Origin:
    """The convolutions that lead to a tensor, and the one whose shape and channels it still has."""

    calls: frozenset[_Call] = frozenset()
    last: _Call | None = None


class _Pass(TorchFunctionMode):
    """Follows one forward pass while active; ``found`` are the weights of shortcuts."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._names = names
        self._known: dict[int, tuple[Tensor, _Origin]] = {}  # holds the tensors: ids stay theirs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(tensors_in((*args, kwargs.get("input"), *kwargs.values())))
        origins = [self._origin(tensor) for tensor in tensors]  # the call may change its input
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        if not tensors or not isinstance(output, Tensor):
            return output
        calls = frozenset[_Call]().union(*(origin.calls for origin in origins))
        last = origins[0].last if output.shape == tensors[0].shape else None
        if name in CONVOLUTIONS:
            weight = argument(args, kwargs, 1, "weight")
            last = _Call(self._names.get(id(weight), ""), id(tensors[0]), weight[0, 0].numel())
            calls |= {last}
        elif name in _SUMS and len(tensors) > 1:
            self._judge(origins[0], origins[1])
            self._judge(origins[1], origins[0])
            last = None
        self._known[id(output)] = (output, _Origin(calls, last))
        return output

    def _judge(self, short: _Origin, long: _Origin) -> None:
        """Whether one operand of a sum is a shortcut past the other."""
        call = short.last
        if call is None:
            return
        for other in long.calls - {call}:
            if other.reads == call.reads and (other != long.last or other.kernel > call.kernel):
                self.found.add(call.weight)

    def _origin(self, tensor: Tensor) -> _Origin:
        known = self._known.get(id(tensor))
        if known is None:  # an input or a parameter; held, as what is made later must not be it
            known = self._known[id(tensor)] = (tensor, _Origin())
        return known[1]
