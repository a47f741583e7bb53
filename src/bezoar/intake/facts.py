"""What can be read off weights alone, without their architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from bezoar.intake.weights import SAFETENSORS, WeightsFile, nonfinite_names
from bezoar.networks.purified import described, inner_network

HEAD_NAME = re.compile(r"^(.*\.)?(fc|linear|classifier|heads?|logits|output|last_linear|pred)\b")
AUXILIARY_NAME = re.compile(r"aux|head_dist|decoder|projector", re.IGNORECASE)
INNER_NAME = re.compile(r"\b(attn|attention|self_attn|mlp|se|gate|qkv|proj|blocks?|encoder)\b")
STEM_NAME = re.compile(
    r"(^|\.)(conv1|conv_?stem|stem|patch_embed|conv_proj|conv_?0|conv_1a|first|features\.0\.)"
)
WEIGHT_ENDINGS = ("weight", "weight_v", "weight_orig", "parametrizations.weight.original1")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class WeightsFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a file of weights; every field can be written as JSON.

    Attributes:
        path: the file.
        sha256: its hash.
        file_bytes: its size.
        container: "safetensors", "torch zip" or "torch legacy".
        nesting: the keys that lead to the weights in the file.
        prefix: what stands before every key, such as "module.".
        others: further sets of weights in the file.
        tensors: how many there are.
        parameters: numbers in them, without the statistics of batch normalisation.
        tensor_bytes: bytes of all tensors.
        dtypes: dtype → how many tensors.
        head: the name of the final linear layer's weight; None where none was recognised.
        num_classes: its rows.
        input_channels: of the first convolution; None where there is none.
        purifiers: what stands in front of the network, with the number of its parameters; the head
            and the channels are those of the network itself.
        unknown: full sentences on what could not be told.
        extras: key → short description, of everything else that is in the file.
        nonfinite: names of tensors with NaN or infinite values.
        notices: full sentences from reading.
    """

    path: str
    sha256: str
    file_bytes: int
    container: str
    nesting: tuple[str, ...]
    prefix: str
    others: tuple[str, ...]
    tensors: int
    parameters: int
    tensor_bytes: int
    dtypes: dict[str, int]
    head: str | None
    num_classes: int | None
    input_channels: int | None
    purifiers: tuple[dict[str, Any], ...]
    unknown: tuple[str, ...]
    extras: dict[str, str]
    nonfinite: tuple[str, ...]
    notices: tuple[str, ...]


def facts(weights: WeightsFile) -> WeightsFacts:
    """Reads the facts off ``weights``; the number of classes and channels by structure and name.

    Raises:
        InputError: the file is that of a purified network, and what it says of it is malformed.
    """
    tensors = weights.tensors
    purifiers = purifier_facts(tensors)
    own = inner_network(tensors)
    in_file_order = weights.container != SAFETENSORS  # safetensors sorts its keys
    head = find_head(own, in_file_order=in_file_order)
    stem = find_stem(own, in_file_order=in_file_order)
    unknown = []
    if head is None:
        unknown.append("No final linear layer was recognised, so the number of classes is unknown.")
    if stem is None:
        unknown.append("There is no convolution over images, so the input channels are unknown.")
    dtypes: dict[str, int] = {}
    for tensor in tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    return WeightsFacts(
        path=str(weights.path),
        sha256=weights.sha256,
        file_bytes=weights.size,
        container=weights.container,
        nesting=tuple(map(str, weights.nesting)),
        prefix=weights.prefix,
        others=weights.others,
        tensors=len(tensors),
        parameters=sum(t.numel() for n, t in tensors.items() if not n.endswith(STATISTICS)),
        tensor_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        dtypes=dtypes,
        head=head,
        num_classes=None if head is None else own[head].shape[0],
        input_channels=None if stem is None else own[stem].shape[1],
        purifiers=purifiers,
        unknown=tuple(unknown),
        extras=_extras(weights),
        nonfinite=nonfinite_names(tensors),
        notices=weights.notices,
    )


def purifier_facts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], ...]:
    """What stands in front of the network: kind, parameters, noise and arguments of each."""
    result = []
    for depth, told in enumerate(described(tensors)):
        start = "network." * depth + "purifier."
        count = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(start))
        purifier = told["purifier"]
        first = {"kind": purifier.get("kind"), "parameters": count, "noise": told["noise"]}
        result.append({**first, **purifier})
    return tuple(result)


def find_head(tensors: Mapping[str, Tensor], *, in_file_order: bool = True) -> str | None:
    """The name of the final linear layer's weight, (classes, d) or (classes, d, 1, 1).

    Its outputs are nobody's inputs, its bias has one value a row, and people call it fc, linear,
    classifier or head; heads inside blocks and auxiliary heads count against.

    Args:
        tensors: name → tensor.
        in_file_order: whether the order means something; otherwise names are sorted naturally.

    >>> import torch
    >>> find_head({"fc1.weight": torch.zeros(8, 4), "fc2.weight": torch.zeros(3, 8)})
    'fc2.weight'
    """
    consumed = {t.shape[1] for n, t in tensors.items() if _is_weight(n, t)}
    normalised = {len(t) for n, t in tensors.items() if n.endswith("running_mean")}
    best: tuple[int, int] | None = None
    head = None
    for position, name in enumerate(_ordered(tensors, in_file_order)):
        tensor = tensors[name]
        pointwise = tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1)
        if not _is_weight(name, tensor) or not (tensor.ndim == 2 or pointwise):
            continue
        owner = _owner(name)
        bias = tensors.get(owner + "bias")
        if pointwise and bias is None:
            continue
        if bias is not None and tuple(bias.shape) != tuple(tensor.shape[:1]):
            continue
        last_part = owner.rstrip(".")
        score = 2 * bool(HEAD_NAME.match(last_part)) + 2 * (tensor.shape[0] not in consumed)
        score += int(tensor.ndim == 2) + int(bias is not None)
        score -= 3 * (pointwise and len(tensor) in normalised)
        score -= 6 * bool(AUXILIARY_NAME.search(last_part)) + 3 * bool(INNER_NAME.search(last_part))
        if best is None or (score, position) > best:
            best, head = (score, position), name
    return head


def find_stem(tensors: Mapping[str, Tensor], *, in_file_order: bool = True) -> str | None:
    """The name of the first convolution's weight, (filters, channels, height, width).

    Its inputs are nobody's outputs, it looks at more than one pixel, and people call it conv1 or
    stem. Depthwise and grouped convolutions, which also have few inputs a filter, count less: a
    filter over images sees 1 channel (grey), 3 (colour) or 4, but depthwise filters see 1 too.
    """
    produced = {len(t) for n, t in tensors.items() if _is_weight(n, t) and t.ndim != 3}
    best: tuple[int, int] | None = None
    stem = None
    for position, name in enumerate(_ordered(tensors, in_file_order)):
        tensor = tensors[name]
        if tensor.ndim != 4 or not _is_weight(name, tensor):
            continue
        channels = tensor.shape[1]
        score = 4 * (channels not in produced) + 4 * bool(STEM_NAME.search(name))
        score += 2 * (channels in (3, 4)) + int(channels == 1) + (tuple(tensor.shape[2:]) != (1, 1))
        if best is None or (score, -position) > best:
            best, stem = (score, -position), name
    return stem


def _is_weight(name: str, tensor: Tensor) -> bool:
    """Also for whom its shape is no proof: an empty tensor declares any number of rows for free."""
    named = name in WEIGHT_ENDINGS or name.endswith(_DOTTED_ENDINGS)
    return named and tensor.ndim >= 2 and tensor.numel() > 0


def _owner(name: str) -> str:
    for ending in WEIGHT_ENDINGS:
        if name == ending or name.endswith("." + ending):
            return name.removesuffix(ending)
    return name


def _ordered(tensors: Mapping[str, Tensor], in_file_order: bool) -> list[str]:
    if in_file_order:
        return list(tensors)
    return sorted(tensors, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer10 after layer9."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _extras(weights: WeightsFile) -> dict[str, str]:
    """Everything beside the chosen weights, along the way that leads to them."""
    described: dict[str, str] = {key: _short(value) for key, value in weights.metadata.items()}
    node: Any = weights.document
    used = set(weights.keys.values())
    for depth in range(len(weights.nesting) + 1):
        if not isinstance(node, dict):
            break
        here = weights.nesting[depth] if depth < len(weights.nesting) else None
        path = "".join(f"{part}." for part in weights.nesting[:depth])
        for key, value in node.items():
            is_used = here is None and isinstance(key, str) and key in used
            if not is_used and (here is None or key != here):
                described[f"{path}{key}"] = _short(value)
        node = node[here] if here is not None else None
    return described


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str | Path):
        text = str(value)
        return text if len(text) <= 80 else text[:77] + "..."
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict | list | tuple | set):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


_DOTTED_ENDINGS = tuple("." + ending for ending in WEIGHT_ENDINGS)
