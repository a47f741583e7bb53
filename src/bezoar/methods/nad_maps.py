"""Which feature maps of a network attention is compared on, and the attention in them.

    A(F) = sum_c |F_c|^p,    one number for each position, divided by its L2 norm over the positions

Li et al. 2021, arXiv 2101.05930, take the outputs of the three groups of a wide ResNet. For any
network (ours): one forward pass is traced, and of each spatial resolution the last map counts; the
deepest three resolutions are taken. The tokens (n, t, c) of a transformer are positions. A network
that works at one resolution throughout, as transformers do, gives the outputs of its blocks after
each third of its depth.

Maps of one position are never taken: their normalised attention is 1, whatever the network does.
Where a network has blocks, what lies inside one is no map of its own, since information passes
around it. A map that only a ReLU reads (many networks call it as a function, behind a norm) is
rectified first: what is below zero there goes nowhere.

Known limits: maps with channels last are told by the image's proportions, so of square images
alone they are not where all three axes are equal; modules that run twice in a pass are passed over;
a module that holds a whole stack of blocks at one resolution (``nn.TransformerEncoder``) counts as
one block.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bezoar.classifier import Classifier
from bezoar.errors import InputError

_EPS = 1e-6  # beside the norm of an attention map (released code)
_NO_MAP = re.compile("pool|drop|flatten", re.IGNORECASE)  # layers that only pass on what was made

Positions = tuple[int, ...]
"""(height, width), or (tokens,)."""


@dataclass(frozen=True)
class FeatureMap:
    """A map that a module gives in every forward pass.

    Attributes:
        layer: the module's name.
        positions: how many there are along each axis.
        channels: the axis of the channels in the batch of maps.
        rectified: whether only a ReLU reads it.
    """

    layer: str
    positions: Positions
    channels: int
    rectified: bool


def attention(maps: Tensor, power: float = 2.0, channels: int = 1) -> Tensor:
    """The normalised attention (n, positions) of maps with their channels on axis ``channels``.

    >>> attention(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]))  # one image, 2 channels, 2 positions
    tensor([[0.9138, 0.4061]])
    """
    exact = maps if maps.element_size() >= 4 else maps.float()  # sums of squares overflow in half
    found = exact.abs().pow(power).sum(channels).flatten(1)
    return torch.div(found, found.norm(dim=1, keepdim=True) + _EPS)


def find_maps(classifier: Classifier, images: Tensor, count: int = 3) -> tuple[FeatureMap, ...]:
    """The maps of a traced classifier, the deepest last.

    Args:
        classifier: any network; it runs once, in eval mode.
        images: some to run it on, (n, c, h, w) in [0, 1].
        count: how many at most.

    Raises:
        InputError: no layer gives a map with more than one position.
    """
    outputs = _traced(classifier, images)
    blocks = [one for one in outputs if one.block]
    visible = [one for one in outputs if one.positions and not any(b.hides(one) for b in blocks)]
    last: dict[Positions, _Output] = {}
    for one in visible:
        before = last.get(one.positions)
        if before is None or one.block or not before.block:
            last[one.positions] = one
    chosen = sorted(last.values(), key=lambda one: one.order)[-count:]
    alike = [one for one in visible if one.block]
    if len(alike) > 1 and len({one.positions for one in alike}) == 1:
        parts = min(count, len(alike))
        chosen = [alike[-(-len(alike) * part // parts) - 1] for part in range(1, parts + 1)]
    if not chosen:
        raise InputError(
            f"{type(classifier.network).__name__} has no feature map with more than one position, "
            "neither (channels, height, width) nor tokens; there is no attention to align, so use "
            "another method, for example ft"
        )
    return tuple(FeatureMap(one.name, one.positions, one.channels, one.rectified) for one in chosen)


@contextlib.contextmanager
def watched(network: nn.Module, maps: Sequence[FeatureMap]) -> Iterator[dict[str, Tensor]]:
    """Inside the block, layer → its map in the latest forward pass, with its graph."""
    seen: dict[str, Tensor] = {}
    handles = []

    def watch(one: FeatureMap) -> None:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[one.layer] = F.relu(output) if one.rectified else output

        handles.append(network.get_submodule(one.layer).register_forward_hook(keep))

    try:
        for one in maps:
            watch(one)
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        seen.clear()


# -- the traced pass -------------------------------------------------------------------------------


@dataclass
class _Output:
    """What a module gave in the pass.

    Attributes:
        order: of the call's end.
        name: of the module.
        output: its tensor.
        positions: of the output; empty where it is no map.
        channels: the axis of its channels.
        entered: positions of the input; empty where it is no map, or the image itself.
        block: whether it is a module with layers of its own that reads a map.
        rectified: whether only a ReLU reads it.
    """

    order: int
    name: str
    output: Tensor
    positions: Positions
    channels: int
    entered: Positions
    block: bool
    rectified: bool = False

    def hides(self, other: _Output) -> bool:
        """Whether ``other`` lies inside, where the resolution is that of what goes in or comes out.

        Inside a block that keeps the resolution, any other one is passing, too.
        """
        inside = other.name.startswith(f"{self.name}.")
        kept = self.entered == self.positions
        return inside and (kept or other.positions in (self.entered, self.positions))


class _Readers(TorchFunctionMode):
    """Records which functions read each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[int, tuple[Tensor, set[str]]] = {}  # holds the tensors: ids stay theirs

    def of(self, tensor: Tensor) -> set[str]:
        """The names of the functions that read ``tensor``."""
        return self._of.setdefault(id(tensor), (tensor, set()))[1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):  # and not a shape or a device
            for value in (*args, *(kwargs or {}).values()):
                for one in value if isinstance(value, (tuple, list)) else (value,):
                    if isinstance(one, Tensor):
                        called = getattr(func, "__name__", "").rstrip("_")
                        self.of(one).add(called)
        return output


def _traced(classifier: Classifier, images: Tensor) -> list[_Output]:
    """The outputs of all modules that ran once, but the head's, in the order of their ends."""
    network, shape = classifier.network, classifier.input_shape
    head = classifier.head.name.rpartition(".")[0]
    calls: list[tuple[str, Tensor | None, Tensor | None]] = []

    def record(name: str) -> Any:
        def keep(_module: nn.Module, inputs: Any, output: Any) -> None:
            first = inputs[0] if inputs else None
            calls.append((name, _tensor(first), _tensor(output)))

        return keep

    readers, handles = _Readers(), []
    try:
        for name, module in network.named_modules():
            if name and name != head:
                handles.append(module.register_forward_hook(record(name)))
        with classifier.evaluating(), torch.no_grad(), readers:
            classifier(images)
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, _, _ in calls]
    found = []
    for order, (name, given, output) in enumerate(calls):
        module = network.get_submodule(name)
        chain = type(module).forward is nn.Sequential.forward  # its last layer gives the same map
        passes_on = not list(module.parameters()) and _NO_MAP.search(type(module).__name__)
        if output is None or chain or passes_on or names.count(name) > 1:
            continue
        is_image = given is None or tuple(given.shape[1:]) == shape
        entered = () if is_image else _layout(given, shape)[0]
        block = bool(entered) and bool(list(module.children()))
        positions, channels = _layout(output, shape)
        rectified = readers.of(output) == {"relu"}
        found.append(_Output(order, name, output, positions, channels, entered, block, rectified))
    return found


def _tensor(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None


def _layout(maps: Tensor | None, image: tuple[int, int, int]) -> tuple[Positions, int]:
    """The positions of a batch of maps, empty where there is at most one, and the channels' axis.

    Four axes are (n, c, h, w), or (n, h, w, c) where only that has the image's proportions.
    """
    shape = () if maps is None else tuple(maps.shape)
    positions: Positions = ()
    channels = 1
    if len(shape) == 3:
        positions, channels = shape[1:2], 2
    elif len(shape) == 4:
        positions = shape[2:]
        if _alike(shape[1:3], image[1:]) and not _alike(positions, image[1:]):
            positions, channels = shape[1:3], 3
    many = torch.Size(positions).numel() > 1 if positions else False
    return (positions, channels) if many else ((), channels)


def _alike(positions: Positions, image: Positions) -> bool:
    """Whether both have the same proportions, up to rounding of the smaller one."""
    (height, width), (full_height, full_width) = positions, image
    return abs(height * full_width - width * full_height) < max(full_height, full_width)
