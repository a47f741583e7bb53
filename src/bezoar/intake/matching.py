"""Which tensor of a file belongs to which name of a network: by name and shape, never by position.

A match is all or nothing. The same weights may be spelled in several ways (with a wrapper's prefix
or without it); each spelling is tried as a whole, and the network's own names decide.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from bezoar.errors import InputError
from bezoar.intake.facts import find_head
from bezoar.intake.weights import WeightsFile

SHOWN = 10  # names of each kind in a message
COUNTER = "num_batches_tracked"


def load_into(network: nn.Module, weights: WeightsFile) -> tuple[str, ...]:
    """Copies the weights into ``network``, in place, converted to the network's dtypes.

    Every tensor of the file must have its place and every place its tensor. One gap is tolerated:
    files older than torch 0.4.1 lack the batch counters of batch normalisation, which play no part
    in what a trained network computes.

    Returns:
        Sentences on what was tolerated.

    Raises:
        InputError: names or shapes differ, and the message lists how; or the network has shapes
            that are still unknown. It is unchanged.
    """
    places = {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)}
    if any(nn.parameter.is_lazy(place) for place in places.values()):
        raise InputError(
            "the network has lazy layers, whose shapes are known only after a first image; let the "
            "function that builds it run one before it returns the network"
        )
    best: dict[str, str] = {}
    for spelling in spellings(weights):
        gaps = _Gaps(places, spelling)
        if not gaps.unexpected and not gaps.missing:
            _check_shapes(places, spelling, weights)
            _check_kinds(places, spelling, weights)
            state = OrderedDict((name, weights.tensors[own]) for name, own in spelling.items())
            # Without versions some modules take the weights for old ones, and convert or refuse
            # them. Names and shapes fit the network as it is, so its versions hold; those of the
            # file are mostly lost, and a stranger may have written them.
            state._metadata = getattr(network.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
            network.load_state_dict(state, strict=False)
            if not gaps.counters:
                return ()
            return (
                f"The file lacks the batch counters of {len(gaps.counters)} batch normalisation "
                "layers, as old files do; they play no part in the network's answers.",
            )
        if not best or len(places.keys() & spelling) > len(places.keys() & best):
            best = spelling
    gaps = _Gaps(places, best)
    wrong = [n for n in best if n in places and places[n].shape != weights.tensors[best[n]].shape]
    raise InputError(_difference(gaps.missing, gaps.unexpected, wrong, places, best, weights))


def spellings(weights: WeightsFile) -> list[dict[str, str]]:
    """The ways to name the weights: each maps a name to one of ``weights.tensors``.

    From all wrapper prefixes taken off to none; last with the wrappers gone everywhere in a name,
    as where only a part of the network was run in parallel ("features.module.0.weight").
    """
    parts = weights.prefix.split(".")[:-1]
    result = []
    for kept in range(len(parts) + 1):
        prefix = "".join(part + "." for part in parts[len(parts) - kept :])
        result.append({prefix + name: name for name in weights.tensors})
    bare = {
        ".".join(part for part in name.split(".") if part not in {"module", "_orig_mod"}): name
        for name in weights.tensors
    }
    if len(bare) == len(weights.tensors) and bare not in result:
        result.append(bare)
    return result


def difference(expected: Iterable[str], found: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names only in ``expected``, and the names only in ``found``, each in its own order."""
    left, right = dict.fromkeys(expected), dict.fromkeys(found)
    return [n for n in left if n not in right], [n for n in right if n not in left]


class _Gaps:
    """What a spelling leaves open: names without a tensor, tensors without a name."""

    def __init__(self, places: Mapping[str, Tensor], spelling: Mapping[str, str]) -> None:
        missing, self.unexpected = difference(places, spelling)
        self.counters = [name for name in missing if name.endswith(COUNTER)]
        self.missing = [name for name in missing if not name.endswith(COUNTER)]


def _check_shapes(
    places: Mapping[str, Tensor], spelling: Mapping[str, str], weights: WeightsFile
) -> None:
    wrong = [n for n in spelling if places[n].shape != weights.tensors[spelling[n]].shape]
    if wrong:
        raise InputError(_difference([], [], wrong, places, spelling, weights))


def _check_kinds(
    places: Mapping[str, Tensor], spelling: Mapping[str, str], weights: WeightsFile
) -> None:
    for name, source in spelling.items():
        place, tensor = places[name], weights.tensors[source]
        if place.is_floating_point() != tensor.is_floating_point():
            raise InputError(
                f"{weights.path} has {tensor.dtype} values in {name}, and the network "
                f"{place.dtype}; whole numbers, real and complex ones are not converted into each "
                "other, so give the weights before they were quantized"
            )


def _difference(
    missing: list[str],
    unexpected: list[str],
    wrong: list[str],
    places: Mapping[str, Tensor],
    spelling: Mapping[str, str],
    weights: WeightsFile,
) -> str:
    lines = [f"the weights in {weights.path} do not fit the network, and none were loaded:"]
    lines += _listed("missing in the file", missing)
    lines += _listed("not in the network", unexpected)
    shapes = [
        f"{name} (file {_size(weights.tensors[spelling[name]])}, network {_size(places[name])})"
        for name in wrong
    ]
    lines += _listed("of another shape", shapes)
    lines += [f"  hint: {hint}" for hint in _hints(missing, unexpected, wrong, places, weights)]
    return "\n".join(lines)


def _listed(title: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"  {title} ({len(names)}): {', '.join(names[:SHOWN])}{more}"]


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _hints(
    missing: list[str],
    unexpected: list[str],
    wrong: list[str],
    places: Mapping[str, Tensor],
    weights: WeightsFile,
) -> list[str]:
    hints = []
    head = find_head(weights.tensors)
    for name in wrong:
        in_file = next((t for n, t in weights.tensors.items() if name.endswith(n)), None)
        if in_file is None or in_file.ndim < 2 or in_file.shape[1:] != places[name].shape[1:]:
            continue
        if head is not None and name.endswith(head):
            hints.append(
                f"the head has {len(in_file)} rows, the architecture was built with "
                f"{len(places[name])}; give num_classes={len(in_file)}"
            )
    prefix = _prefix_between(missing, unexpected)
    if prefix is not None:
        hints.append(prefix)
    if unexpected and not missing and not wrong:
        hints.append(
            "the file has more than the network; save it without these, or use the architecture "
            "that has them"
        )
    elif missing and len(missing) > 0.8 * len(places) and prefix is None:
        hints.append("almost no name fits; the file seems to belong to another architecture")
    return hints


def _prefix_between(missing: list[str], unexpected: list[str]) -> str | None:
    if not missing or not unexpected:
        return None
    wanted, given = ({n for n in side if not n.endswith(COUNTER)} for side in (missing, unexpected))
    for one, other, side in ((wanted, given, "the file"), (given, wanted, "the network")):
        for longer in sorted(other)[:50]:
            for shorter in one:
                if not longer.endswith("." + shorter):
                    continue
                prefix = longer.removesuffix(shorter)
                fitting = sum(prefix + name in other for name in one)
                if fitting == len(one) == len(other):
                    return f"these names differ only by the prefix {prefix!r}, which {side} has"
                if fitting > 0.8 * len(one):
                    return f"most of these names differ by the prefix {prefix!r}, which {side} has"
    return None


def matching_state(source: WeightsFile, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``state`` under the names of ``source.tensors``, all of them, shapes checked.

    Raises:
        InputError: a name or a shape differs.
    """
    return {own: state[name] for name, own in matching_names(source, state).items()}


def matching_names(source: WeightsFile, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in ``state`` → name in ``source.tensors``, for all of these, shapes checked.

    Batch counters that the source lacks are left out.

    Raises:
        InputError: a name or a shape differs.
    """
    for spelling in spellings(source):
        missing, unexpected = difference(spelling, state)
        if missing or any(not name.endswith(COUNTER) for name in unexpected):
            continue
        for name, own in spelling.items():
            if state[name].shape != source.tensors[own].shape:
                raise InputError(
                    f"{name} has shape {_size(state[name])} and {_size(source.tensors[own])} in "
                    f"{source.path}; a file of the same form takes weights of the same shapes"
                )
        return spelling
    missing, unexpected = difference(source.tensors, state)
    lines = [f"the weights to write do not have the names of {source.path}:"]
    lines += _listed("missing", missing) + _listed("unexpected", unexpected)
    raise InputError("\n".join(lines))


def converted(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """``tensor`` on the CPU in ``dtype``.

    Raises:
        InputError: a finite value becomes infinite in that format.
    """
    result = tensor.detach().to("cpu").to(dtype)
    if dtype.is_floating_point and result.element_size() < 4:
        lost = ~torch.isfinite(result.float()) & torch.isfinite(tensor.detach().cpu())
        if bool(lost.any()):
            raise InputError(
                f"{name} has values that the file's format {dtype} cannot hold (largest "
                f"{float(tensor.detach().abs().max()):.3g}); convert the source to float32 first"
            )
    return result
