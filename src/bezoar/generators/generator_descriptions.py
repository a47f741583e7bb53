"""What a generator is, beside its weights: a ``GeneratorDescription``, as a TOML file says it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from bezoar.errors import InputError
from bezoar.records import read_toml


class GeneratorDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a generator is, beside its weights.

    Attributes:
        architecture: "bezoar:image-generator", or "path/to/file.py:function".
        weights: the file of weights.
        latent: length of a latent vector.
        output: the range of the pixel values that the network makes.
        entry: which set of weights, where the file holds several ("ema").
        arguments: keyword arguments for the architecture function.
        critic: those of the critic, whose weights are in the same file; only with our own.
        apart: whether it was trained without the suspect model; left out where that is not known.
        origin: where it came from, for the record.
    """

    architecture: str
    weights: str
    latent: int
    output: Literal["0..1", "-1..1"] = "0..1"
    entry: str | None = None
    arguments: dict[str, Any] = {}
    critic: dict[str, Any] | None = None
    apart: bool | None = None
    origin: dict[str, Any] = {}


FIELDS = GeneratorDescription.__struct_fields__


def described(source: Path, overrides: Mapping[str, Any]) -> GeneratorDescription:
    """The description in a ``.toml``, or of a file of weights, with the overrides put in.

    Paths in a ``.toml`` are relative to its folder.

    Raises:
        InputError: the file cannot be read, or a field is missing, unknown or wrong.
    """
    if source.suffix.lower() == ".toml":
        fields = read_toml(source)
        folder = source.resolve().parent
        for name in ("weights", "architecture"):
            value = fields.get(name)
            if isinstance(value, str) and (name == "weights" or ".py:" in value):
                fields[name] = str(folder / value)
    else:
        fields = {"weights": str(source)}
    fields |= {name: value for name, value in overrides.items() if value is not None}
    for name in fields:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"perhaps you meant {near[0]!r}" if near else f"known: {', '.join(FIELDS)}"
            raise InputError(f"{source} has an unknown field {name!r}; {hint}")
    for name, example in (("architecture", '"path/to/file.py:function"'), ("latent", "100")):
        if name not in fields:
            raise InputError(
                f"{source} does not say the {name} of the generator; give it, as in "
                f"{name} = {example}"
            )
    try:
        description = msgspec.convert(fields, GeneratorDescription)
    except msgspec.ValidationError as error:
        raise InputError(f"{source} is no valid description of a generator: {error}") from error
    if description.latent < 1:
        raise InputError(f"{source} has latent = {description.latent}; expected 1 or more")
    return description
