"""A linear polarizer before one layer, and how it becomes part of that layer's weight (ours).

A polarizer P is a 1x1 convolution without bias: it maps the channels at each position of a layer's
input. The layer that follows is linear in its input, so that both together are that layer with

    W'[o, i, ...] = sum_c W[o, c, ...] P[c, i]

exactly, at the borders, too, since padding with zeros (or with the image's own values) and P
commute. So P is trained through this product, with nothing attached to the network, and in the end
the product is written into the weight. A *constant* before a layer that pads with zeros would be no
such thing: the padding lies behind it, and the bias that folds it inside the image is wrong at the
borders.

The layer is found by tracing one forward pass: the last convolution with a kernel larger than 1x1,
one group, and an input that is no image; or, in the paper's place, the first such convolution of
the block that it lies in (the two convolutions of a residual block), at the same resolution: that
is ``layer4.1.conv1`` of a PreActResNet-18. Where there is no such convolution, or more than half of
the network comes after it (the stem before a transformer), it is the last hidden linear layer or
1x1 convolution, else the final linear layer.

Known limits: a layer that runs twice, or computes its weight at every call, is passed over, as are
the layers inside of torch's fused attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.other_weights import logits_with
from bezoar.unit_provenance import argument

Late = Literal["convolution", "block"]

_GROUPS = {"conv1d": 6, "conv2d": 6, "conv3d": 6}  # where the groups stand among the arguments


@dataclass(frozen=True)
class Place:
    """A layer that a polarizer can stand before.

    Attributes:
        weight: the parameter's name.
        layer: the module's name, or the parameter's where it is no ``weight``.
        channels: of the layer's input.
        kernel: the kernel's size, empty for a linear layer.
        positions: shape of the output behind its channels, empty for a linear layer.
        reads_image: whether its input is the image.
        is_head: whether it is the final linear layer.
    """

    weight: str
    layer: str
    channels: int
    kernel: tuple[int, ...]
    positions: tuple[int, ...]
    reads_image: bool
    is_head: bool

    @property
    def spatial(self) -> bool:
        """Whether it is a convolution that mixes positions."""
        return any(side > 1 for side in self.kernel)


def polarized(weight: Tensor, polarizer: Tensor) -> Tensor:
    """W' of a weight (o, c, ...) and P (c, i), in the weight's dtype.

    >>> polarized(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [10.0, 1.0]]))
    tensor([[21.,  2.]])
    """
    product = torch.tensordot(weight.to(polarizer.dtype), polarizer, dims=([1], [0]))
    # Contiguous: its layout becomes that of the maps, and not every network takes another.
    return torch.movedim(product, -1, 1).to(weight.dtype).contiguous()


class PolarizedNetwork:
    """A classifier with a polarizer before one of its layers; the network itself stays."""

    def __init__(self, classifier: Classifier, place: Place) -> None:
        self.classifier = classifier
        self._name = place.weight
        self._weight = classifier.network.get_parameter(place.weight)

    def logits(self, images: Tensor, polarizer: Tensor) -> Tensor:
        """Logits (n, C) of images in [0, 1], in the network's current mode."""
        product = polarized(self._weight, polarizer)
        return logits_with(self.classifier, images, {self._name: product})


def fold(classifier: Classifier, place: Place, polarizer: Tensor) -> Classifier:
    """A copy in eval mode whose layer has the polarizer in its weight; the rest is the same."""
    twin = classifier.copy()
    weight = twin.network.get_parameter(place.weight)
    with torch.no_grad():
        weight.copy_(polarized(weight.double(), polarizer.double()))
    twin.network.eval()
    return twin


def find_place(
    classifier: Classifier, layer: str | None = None, late: Late = "convolution"
) -> Place:
    """The layer to stand before, in a traced classifier.

    Args:
        classifier: any network; it runs once on two random images, in eval mode.
        layer: the module's name; None finds one.
        late: which one is found: the last convolution, or the first of its ``block``.

    Raises:
        InputError: there is no such layer, or none that can be used; the message names those that
            can.
    """
    network = classifier.network
    places, passed_over = _traced(classifier)
    usable = [place for place in places if not place.reads_image]
    if layer is not None:
        for place in usable:
            if layer in (place.layer, place.weight):
                return place
        raise InputError(
            f"no polarizer can stand before {layer!r}: {_why(layer, places)}"
            + _list(usable, passed_over)
        )
    if not usable:
        raise InputError(
            f"{type(network).__name__} has no layer that a polarizer can stand before: "
            "it needs a convolution of one group or a linear layer that runs once and does not "
            "read the image" + _list(usable, passed_over)
        )
    spatial = [place for place in usable if place.spatial]
    if spatial and 2 * (len(places) - 1 - places.index(spatial[-1])) <= len(places):
        return spatial[-1] if late == "convolution" else _first_of_block(network, spatial)
    hidden = [place for place in usable if not place.spatial and not place.is_head]
    return (hidden or usable)[-1]


def _first_of_block(network: nn.Module, spatial: Sequence[Place]) -> Place:
    """The first convolution in the block of the last one, at the same resolution."""
    last = spatial[-1]
    block = last.layer.rpartition(".")[0]
    holder = network.get_submodule(block)
    if not block or isinstance(holder, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return last
    alike = [
        place
        for place in spatial
        if place.layer.rpartition(".")[0] == block and place.positions == last.positions
    ]
    return alike[0]


# -- the traced pass -------------------------------------------------------------------------------


class _LinearMaps(TorchFunctionMode):
    """Records the calls of convolutions and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor, int]] = []  # input, weight, output, groups

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        called = getattr(func, "__name__", "")
        if called == "linear" or called in _GROUPS:
            given, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
            groups = argument(args, kwargs, _GROUPS[called], "groups") if called in _GROUPS else 1
            self.calls.append((given, weight, output, 1 if groups is None else groups))
        return output


def _traced(classifier: Classifier) -> tuple[list[Place], list[tuple[str, str]]]:
    """The places in the order of the pass, and (layer, reason) of those passed over."""
    shape, head = classifier.input_shape, classifier.head.name
    probe = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0))
    maps = _LinearMaps()
    with classifier.evaluating(), torch.no_grad(), maps:
        classifier(probe.to(classifier.device))
    names = {id(tensor): name for name, tensor in classifier.network.named_parameters()}
    found, passed_over = [], []
    for order, (given, weight, output, groups) in enumerate(maps.calls):
        name = names.get(id(weight))
        if name is None:
            passed_over.append(("a layer without a plain weight", "it is computed at every call"))
            continue
        layer = name.removesuffix(".weight")
        if sum(other is weight for _, other, _, _ in maps.calls) > 1:
            passed_over.append((layer, "it runs several times in one pass"))
            continue
        if groups != 1:
            passed_over.append((layer, f"a convolution of {groups} groups"))
            continue
        flat = weight.ndim == 2 and weight.shape[1] == torch.Size(shape).numel()
        found.append(
            Place(
                weight=name,
                layer=layer,
                channels=weight.shape[1],
                kernel=tuple(weight.shape[2:]),
                positions=tuple(output.shape[2:]) if weight.ndim > 2 else (),
                reads_image=order == 0 or flat or tuple(given.shape[1:]) == shape,
                is_head=name == head,
            )
        )
    return found, list(dict.fromkeys(passed_over))


def _why(layer: str, places: Sequence[Place]) -> str:
    if any(layer in (place.layer, place.weight) for place in places):
        return "it reads the image itself"
    return "it is no convolution of one group and no linear layer that runs once"


def _list(usable: Sequence[Place], passed_over: Sequence[tuple[str, str]]) -> str:
    can = ", ".join(place.layer for place in usable[-8:])
    cannot = "; ".join(f"{layer}: {reason}" for layer, reason in passed_over[:5])
    return (f"; possible are {can}" if can else "") + (
        f" (passed over: {cannot})" if cannot else ""
    )
