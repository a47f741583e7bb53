"""What a model is, beside its weights: a ``ModelDescription``, as ``model.toml`` says it."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import msgspec

from bezoar.errors import InputError
from bezoar.records import read_toml


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything needed to run a file of weights.

    Attributes:
        architecture: "timm:NAME", "torchvision:NAME", "bezoar:NAME" or "path/to/file.py:function".
        weights: the file of weights.
        entry: which set of weights, where the file holds several.
        input_size: height and width of the images; one number for squares.
        channels: colour channels of the images; read off the weights where None.
        mean: subtracted from images in [0, 1]; one number, or one for each channel.
        std: then divided by; the same.
        classes: names in the order of the logits.
        arguments: keyword arguments for the architecture function.
    """

    architecture: str
    weights: str
    entry: str | None = None
    input_size: int | tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] | None = None
    arguments: dict[str, Any] = {}

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """The input size as a pair."""
        size = self.input_size
        return (size, size) if isinstance(size, int) else size


FIELDS = ModelDescription.__struct_fields__


def read_description(path: str | Path) -> ModelDescription:
    """Reads a ``model.toml``; paths in it are relative to its folder.

    Raises:
        InputError: the file is missing or no TOML, or a field is missing, unknown or wrong (the
            message has the field's path).
    """
    return describe(read_fields(path), str(path))


def read_fields(path: str | Path) -> dict[str, Any]:
    """The fields of a ``model.toml`` before validation, with its paths made absolute."""
    path = Path(path)
    fields = read_toml(path)
    folder = path.resolve().parent
    for name in ("weights", "architecture"):
        value = fields.get(name)
        # "timm:resnet18" is no path; "networks/net.py:build" is.
        if isinstance(value, str) and (name == "weights" or ".py:" in value):
            fields[name] = str(folder / value)
    return fields


def describe(fields: dict[str, Any], where: str, *, to_run: bool = True) -> ModelDescription:
    """Validates the fields of a description.

    Args:
        fields: as a ``model.toml`` has them.
        where: how messages name their source.
        to_run: whether the model is to run; otherwise ``mean`` and ``std`` may be missing, and are
            empty then.

    Raises:
        InputError: a field is missing, unknown or wrong.
    """
    for name in fields:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"perhaps you meant {near[0]!r}" if near else f"known: {', '.join(FIELDS)}"
            raise InputError(f"{where} has an unknown field {name!r}; {hint}")
    if "architecture" not in fields:
        raise InputError(
            f"{where} does not say which network the weights belong to; give the architecture: "
            "timm:NAME, torchvision:NAME, bezoar:NAME or path/to/file.py:function"
        )
    if not to_run:
        fields = {"mean": (), "std": (), **fields}
    for name in ("mean", "std"):
        if name not in fields:
            raise InputError(
                f"{where} does not say how images are normalised ({name} is missing); give the "
                "mean and std of the training; if the network takes images in [0, 1] as they are, "
                "pass --mean 0 --std 1"
            )
        if isinstance(fields[name], int | float):
            fields = {**fields, name: (fields[name],)}
    try:
        description = msgspec.convert(fields, ModelDescription)
    except msgspec.ValidationError as error:
        raise InputError(f"{where} is not a valid model description: {error}") from error
    _check_values(description, where, to_run=to_run)
    return description


def _check_values(description: ModelDescription, where: str, *, to_run: bool) -> None:
    mean, std = description.mean, description.std
    missing = to_run and not (mean and std)
    if missing or not all(map(math.isfinite, (*mean, *std))) or min(std, default=1) <= 0:
        raise InputError(
            f"{where} has mean {mean} and std {std}; expected finite numbers, std above 0"
        )
    size = description.height_and_width
    if size is not None and min(size) < 1:
        raise InputError(f"{where} has input_size {size}; expected a height and a width above 0")
    if description.channels is not None and description.channels < 1:
        raise InputError(f"{where} has {description.channels} channels; expected 1 or more")
    if description.classes is not None and len(description.classes) < 2:
        raise InputError(f"{where} names {len(description.classes)} class; expected 2 or more")


def broadcast(values: tuple[float, ...], channels: int, name: str, where: str) -> tuple[float, ...]:
    """One value for each channel; none where there is none.

    Raises:
        InputError: there are several, and not ``channels`` of them.
    """
    if len(values) not in (0, 1, channels):
        raise InputError(
            f"{where} gives {len(values)} values as {name}, and the network takes images of "
            f"{channels} channels; give one value, or one for each channel"
        )
    return values * channels if len(values) == 1 else values
