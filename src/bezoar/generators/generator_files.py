"""Generators as files: a description in TOML, with the weights beside it.

``write_generator`` writes a generator that was trained here, ``load_generator`` reads it, and any
generator of the user's own: weights and ``path/to/file.py:function``, which is code that the user
names and that runs; nothing from a file of weights is ever executed. Such a generator takes latent
vectors (n, latent), or (n, latent, 1, 1) as DCGANs often do, and its images may lie in [-1, 1].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bezoar.device import resolve_device
from bezoar.errors import InputError
from bezoar.generators.generator_descriptions import FIELDS, GeneratorDescription, described
from bezoar.generators.public_generator import PublicGenerator, tried
from bezoar.intake import WeightsFile, check_finite, load_into, read_weights
from bezoar.intake.writing import save_safetensors
from bezoar.networks.architectures import build_network
from bezoar.networks.image_generators import ImageCritic, ImageGenerator
from bezoar.records import to_json, write_text

OWN = "bezoar:image-generator"


def load_generator(
    source: str | Path, *, device: torch.device | None = None, **overrides: Any
) -> PublicGenerator:
    """Loads a generator from its description, or from a file of weights and the same facts.

    Args:
        source: a ``.toml`` with a description, paths in it relative to its folder, or a file of
            weights.
        device: where it goes; by default the accelerator, else the CPU.
        **overrides: fields of ``GeneratorDescription`` that replace those of the file; None is
            "not given".

    Raises:
        UnsafeFileError: the file of weights needs code to be executed.
        InputError: anything else that does not fit; the message says what.
    """
    description = described(Path(source), overrides)
    weights = read_weights(description.weights, entry=description.entry)
    check_finite(weights)
    if description.architecture == OWN:
        network, critic = _own(description, weights)
    else:
        network, critic = _of_user(description, weights), None
    origin = {
        "kind": "a generator of the user's",
        **description.origin,
        "file": {"weights": str(weights.path), "sha256": weights.sha256},
    }
    made = tried(network, torch.zeros(1, description.latent))
    if made.ndim != 4:
        raise InputError(
            f"the generator makes a tensor of shape {tuple(made.shape)} of one latent vector; "
            "expected one image, (1, channels, height, width)"
        )
    generator = PublicGenerator(
        network,
        description.latent,
        (made.shape[1], made.shape[2], made.shape[3]),
        critic,
        apart=description.apart,
        origin=origin,
    )
    return generator.to(device or resolve_device())


def write_generator(generator: PublicGenerator, path: Path) -> None:
    """Writes ``path``, the description, and the weights beside it, as ``.safetensors``.

    Raises:
        InputError: the networks are not of ``bezoar.networks.image_generators``, the name does not
            end in .toml, or nothing can be written there.
    """
    network, critic = generator.network, generator.critic
    if not isinstance(network, ImageGenerator) or not isinstance(critic, ImageCritic | None):
        raise InputError(
            "only generators that were trained here can be written; keep the files of others, and "
            f"name them in a description with architecture and weights ({', '.join(FIELDS)})"
        )
    check_description_path(path)
    parts: dict[str, nn.Module] = {"generator": network}
    fields: dict[str, Any] = {
        "architecture": OWN,
        "weights": weights_beside(path).name,
        "latent": generator.latent,
        "apart": generator.apart,
        "arguments": {"shape": generator.shape, "width": network.width},
    }
    if critic is not None:
        critic = critic.settled()
        parts["critic"] = critic
        fields["critic"] = {"width": critic.width, "norm": critic.norm}
    lines = [f"{name} = {_toml(value)}" for name, value in fields.items() if value is not None]
    lines.append("[origin]")
    lines += [f"{_toml(str(name))} = {_toml(value)}" for name, value in _told(generator.origin)]
    tensors = {
        f"{part}.{name}": tensor.detach().cpu()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    save_safetensors(tensors, weights_beside(path))
    write_text(path, "\n".join(lines) + "\n")


def check_description_path(path: Path) -> None:
    """Refuses a name that does not end in .toml."""
    if path.suffix.lower() != ".toml":
        raise InputError(f"{path} is no name for a generator's description; end it in .toml")


def weights_beside(path: Path) -> Path:
    """Where the weights of the generator described in ``path`` are written."""
    return path.with_suffix(".safetensors")


class _Adapted(nn.Module):
    """A user's network for latent vectors (n, latent), with images in [0, 1]."""

    def __init__(self, network: nn.Module, description: GeneratorDescription) -> None:
        super().__init__()
        self.network, self.centred = network, description.output == "-1..1"
        z = torch.zeros(1, description.latent)
        self.as_maps = not _takes(network, z) and _takes(network, z[:, :, None, None])

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.network(z[:, :, None, None] if self.as_maps else z)
        return (images + 1) / 2 if self.centred else images


def _takes(network: nn.Module, z: Tensor) -> bool:
    try:
        tried(network, z)
    except InputError:
        return False
    return True


def _of_user(description: GeneratorDescription, weights: WeightsFile) -> nn.Module:
    if description.critic is not None:
        raise InputError(
            f"a critic can be named only with the architecture {OWN}; leave it out, and latent "
            "vectors are kept where such vectors are drawn"
        )
    network = build_network(description.architecture, description.arguments)
    load_into(network, weights)
    return _Adapted(network.float().eval(), description)


def _own(
    description: GeneratorDescription, weights: WeightsFile
) -> tuple[nn.Module, nn.Module | None]:
    arguments = dict(description.arguments)
    shape = arguments.pop("shape", None)
    if not isinstance(shape, list | tuple):
        raise InputError(
            f"the architecture {OWN} needs arguments with the shape of its images, as in "
            f"arguments = {{shape = [3, 32, 32], width = 48}}; got {description.arguments!r}"
        )
    given = {"shape": tuple(shape), **arguments, "latent": description.latent}
    network = _filled(ImageGenerator, given, "generator.", weights)
    if description.critic is None:
        return network, None
    given = {"shape": tuple(shape), **description.critic}
    return network, _filled(ImageCritic, given, "critic.", weights)


def _filled(
    kind: type[nn.Module], arguments: dict[str, Any], part: str, weights: WeightsFile
) -> nn.Module:
    """A network of our own with its part of the weights."""
    try:
        network = kind(**arguments).eval()
    except TypeError as error:
        raise InputError(f"{kind.__name__} cannot be built of {arguments!r}: {error}") from error
    own = {n.removeprefix(part): t for n, t in weights.tensors.items() if n.startswith(part)}
    load_into(network, replace(weights, tensors=own, keys={name: part + name for name in own}))
    return network


def _told(origin: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in to_json(dict(origin)).items() if value is not None]


def _toml(value: Any) -> str:
    """A value of JSON in TOML, on one line; entries that are None are left out."""
    if isinstance(value, dict):
        items = (f"{_toml(name)} = {_toml(v)}" for name, v in value.items() if v is not None)
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
