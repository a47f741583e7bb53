"""A network behind a purifier: y = f(Q(x)), with the weights of f untouched.

Q takes a trigger off an image, or leaves the image as it is; BTI-DBF (P) trains one (Xu et al.,
"Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features", ICLR
2024, openreview.net/forum?id=Tw9wemV6cb). It works on pixels in [0, 1]; the whole takes what f
took, normalised images, and so stands in the place of f:

    z = clamp(Q(x · std + mean + noise · ε), 0, 1),    y = f((z − mean) / std),    ε ~ N(0, 1)

The clamp is ours. So is the unit of the noise, pixels; the released code adds 0.03 to normalised
images. With noise the answers are random: ``torch.manual_seed`` repeats them.

A state dict of it is the whole of its file: ``network.*``, ``purifier.*``, ``mean``, ``std``, and
``configuration``, JSON as bytes, from which ``load`` rebuilds Q. Nothing in a file is executed.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from bezoar.errors import InputError
from bezoar.networks.trigger_generators import built, configuration

FORMAT = 1
_LONGEST = 10_000  # bytes of a configuration; ours have some hundred
_MOST_FRONTS = 8  # purifiers one in front of the other


class Purified(nn.Module):
    """Takes the place of a network: normalised images (n, c, h, w) to logits, purified before.

    Args:
        network: what classifies; it is kept, not copied.
        purifier: a generator of ``bezoar.networks.trigger_generators``, pixels to pixels.
        mean: of the images that the network takes; one number, or one for each channel.
        std: the same.
        noise: standard deviation of what is added to the pixels in front of the purifier.

    Attributes:
        network: as given.
        purifier: as given.
        mean: (c,) or (1,).
        std: (c,) or (1,).
        configuration: JSON as uint8, from which a file brings the purifier back.

    Raises:
        InputError: the purifier is no such generator, or a number is out of its range.
    """

    mean: Tensor
    std: Tensor
    configuration: Tensor

    def __init__(
        self,
        network: nn.Module,
        purifier: nn.Module,
        *,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.purifier = purifier
        self._noise = _checked_noise(noise)
        self.register_buffer("mean", _row("mean", mean))
        self.register_buffer("std", _row("std", std))
        if bool((self.std <= 0).any()):
            raise InputError(f"std of a purified network is {std}; expected numbers above 0")
        facts = {"format": FORMAT, "noise": self.noise, "purifier": configuration(purifier)}
        # not torch.frombuffer, which warns that bytes cannot be written to
        row = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
        self.register_buffer("configuration", row)

    @property
    def noise(self) -> float:
        """As given; ``configuration`` says the same, so it stays as it is."""
        return self._noise

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a network behind that has no weight to train always runs in eval mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.network.parameters()):
            self.network.eval()  # else its statistics would change, and dropout would act
        return self

    def purify(self, pixels: Tensor) -> Tensor:
        """What the network gets to see of images (n, c, h, w) in [0, 1], in [0, 1] as well."""
        if self.noise:
            pixels = pixels + self.noise * torch.randn_like(pixels)
        purified: Tensor = self.purifier(pixels)
        return purified.clamp(0, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits for images as the network itself takes them."""
        mean, std = self.mean.view(-1, 1, 1), self.std.view(-1, 1, 1)
        logits: Tensor = self.network((self.purify(images * std + mean) - mean) / std)
        return logits


def load(network: nn.Module, weights: str | Path | Mapping[str, Tensor]) -> Purified:
    """The purified network in a file, in eval mode, on the device of ``network``.

    Args:
        network: of the class whose weights are in the file; it is filled and becomes a part.
        weights: the file (``.pt``, ``.pth`` or ``.safetensors``), or what is in it.

    Raises:
        InputError: this is no file of a purified network; the message says what is wrong.
        RuntimeError: the file's weights do not fit ``network``.
    """
    if isinstance(weights, Mapping):
        state = weights
    elif Path(weights).suffix.lower() == ".safetensors":
        from safetensors.torch import load_file  # needed for this container only

        state = load_file(weights)
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    purified = fronted(network, state)
    if not hasattr(state, "_metadata"):  # versions of modules, which some ask for
        state = OrderedDict(state)
        state._metadata = getattr(purified.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    purified.load_state_dict(state)
    return purified.to(device).eval()


def described(state: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """What a state dict says about its purifiers, the outermost first; none where it has none.

    Each is ``{"format": 1, "noise": ..., "purifier": {"kind": ..., ...}}``.

    Raises:
        InputError: one of them is malformed.
    """
    return [_facts(state[f"{prefix}configuration"]) for prefix in _prefixes(state)]


def inner_network(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network behind all purifiers, under its own names."""
    prefix = "network." * len(_prefixes(state))
    return {n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)}


def fronted(network: nn.Module, state: Mapping[str, Tensor]) -> Purified:
    """``network`` behind the purifiers of a state dict, whose weights are not yet in it.

    Raises:
        InputError: there is no purifier, its description is malformed, or its tensors are not those
            of what is described.
    """
    found: nn.Module = network
    for prefix in reversed(_prefixes(state)):
        facts = _facts(state[f"{prefix}configuration"])
        own = {
            name.removeprefix(f"{prefix}purifier."): tensor
            for name, tensor in state.items()
            if name.startswith(f"{prefix}purifier.")
        }
        found = Purified(
            found,
            _empty(facts["purifier"], own),
            mean=_numbers(state, f"{prefix}mean"),
            std=_numbers(state, f"{prefix}std"),
            noise=facts["noise"],
        )
        found.configuration = state[f"{prefix}configuration"].clone()
    if not isinstance(found, Purified):
        raise InputError(
            "these weights are not those of a purified network: there is no 'configuration'; "
            "load them into the network itself"
        )
    return found


def _empty(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A purifier with memory for the tensors, only where they are those of what is described."""
    with torch.device("meta"):  # shapes only, whatever sizes a stranger has written down
        purifier = built(facts)
    wanted = {name: tuple(tensor.shape) for name, tensor in purifier.state_dict().items()}
    found = {
        name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.is_floating_point()
    }
    if wanted != found:
        wrong = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise InputError(
            f"the purifier's tensors are not those of a {facts['kind']} generator as described: "
            f"{', '.join(wrong[:5])}; get a complete copy of the file"
        )
    return purifier.to_empty(device="cpu")


def _numbers(state: Mapping[str, Tensor], name: str) -> list[float]:
    row = state.get(name)
    if row is None or row.ndim != 1 or not row.is_floating_point():
        raise InputError(f"a purified network has no row of numbers {name!r}; get a complete copy")
    return [float(value) for value in row]


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """What stands before the names of each purified network in a state dict, outermost first."""
    prefixes = [""]
    while len(prefixes) <= _MOST_FRONTS:
        told = state.get(f"{prefixes[-1]}configuration")
        # other people's networks may have a parameter of that name
        if not isinstance(told, Tensor) or told.dtype != torch.uint8 or told.ndim != 1:
            return prefixes[:-1]
        prefixes.append(f"{prefixes[-1]}network.")
    raise InputError(f"there are {_MOST_FRONTS} purifiers or more, one in front of the other")


def _facts(told: Tensor) -> dict[str, Any]:
    """The checked content of a ``configuration``, but for the purifier's own arguments."""
    wrong = "the 'configuration' of a purified network"
    if not 0 < len(told) <= _LONGEST:
        raise InputError(f"{wrong} has {len(told)} bytes; expected 1 to {_LONGEST}")
    try:
        facts = json.loads(bytes(told.tolist()))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{wrong} is no JSON ({error}); get a complete copy of it") from error
    if not isinstance(facts, dict) or facts.keys() != {"format", "noise", "purifier"}:
        raise InputError(f"{wrong} does not say format, noise and purifier, and nothing else")
    if facts["format"] != FORMAT:
        raise InputError(
            f"{wrong} is of format {facts['format']!r}, and this version reads {FORMAT}; use a "
            "later version"
        )
    if not isinstance(facts["purifier"], dict):
        raise InputError(f"{wrong} does not describe the purifier; get a complete copy of it")
    _checked_noise(facts["noise"])
    return facts


def _checked_noise(noise: Any) -> float:
    if type(noise) not in (int, float) or not 0 <= noise <= 1:
        raise InputError(f"noise of a purified network is {noise!r}; expected a number in [0, 1]")
    return float(noise)


def _row(name: str, values: float | Sequence[float]) -> Tensor:
    """One number, or one for each channel, as (c,)."""
    row = torch.tensor(values, dtype=torch.float32).flatten()
    if not len(row) or not bool(torch.isfinite(row).all()):
        raise InputError(f"{name} of a purified network is {values}; expected finite numbers")
    return row
