"""Attacks as text and as files: ``NAME:key=value,…`` and ``trigger.safetensors``.

A trigger file holds the configuration (as JSON in the header) and every array that the stamp needs,
so it works without the training that made it and whatever random generator comes later.
"""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch

from bezoar.attacks.attack import Attack, attacks
from bezoar.errors import InputError
from bezoar.records import to_json, write_bytes

SUFFIX = ".safetensors"
_KEY = "bezoar.attack"


def parse_attack(spec: str, *, num_classes: int | None = None) -> Attack:
    """Reads an attack from text, ``NAME`` or ``NAME:key=value,key=value``, or from a trigger file.

    Several values of one parameter are joined with ``+``: ``sources=1+4``. Where the mode needs the
    number of classes and the text does not say it, ``num_classes`` does.

    >>> parse_attack("bad-nets:target=3,size=4")
    BadNets(target=3, size=4)

    Raises:
        InputError: there is no such attack or file, or it has no such parameter.
    """
    if spec.endswith(SUFFIX):
        return load_attack(Path(spec))
    name, _, rest = spec.partition(":")
    kind = attacks.get(name.strip())
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"trigger {spec!r}: {part!r} is no key=value pair")
        values[key.strip()] = value.strip()
    if num_classes is not None and values.get("mode") == "all-to-all":
        values.setdefault("num_classes", num_classes)
    for field in msgspec.structs.fields(kind):
        if field.name in values and _is_tuple(field.type):
            values[field.name] = [v for v in values[field.name].split("+") if v]
    return make_attack(name.strip(), values, f"trigger {spec!r}")


def make_attack(name: str, values: dict[str, Any], what: str) -> Attack:
    """The attack called ``name`` with the parameters ``values`` (text is converted).

    Raises:
        InputError: there is no such attack or parameter; the message begins with ``what``.
    """
    kind = attacks.get(name)
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        fields = ", ".join(field.name for field in msgspec.structs.fields(kind))
        raise InputError(f"{what}: {error} (parameters: {fields})") from None


def configuration(attack: Attack) -> dict[str, Any]:
    """Name and all parameters in plain values; ``make_attack`` reads them back."""
    return {"name": attack.name, **to_json(msgspec.to_builtins(attack))}


def to_be_planted(attack: Attack) -> dict[str, Any]:
    """Its ``configuration``, from which a model with the same trigger can be made.

    Raises:
        InputError: it holds a trigger that was learned, and planting would learn another.
    """
    if attack.learned and "held" in attack.__dict__:
        raise InputError(
            f"the trigger file of {attack.name} holds a trigger that was learned with its own "
            "model, and another model learns another one; name the attack and its parameters"
        )
    return configuration(attack)


def save_attack(attack: Attack, path: Path, shape: tuple[int, int, int]) -> None:
    """Writes the trigger for images of ``shape`` (c, h, w), beside and renamed.

    Raises:
        InputError: the trigger has still to be learned, or the file cannot be written.
    """
    tensors = {name: array.contiguous() for name, array in attack.tensors(shape).items()}
    header = json.dumps({"attack": configuration(attack), "shape": list(shape)}, sort_keys=True)
    write_bytes(path, safetensors.torch.save(tensors, {_KEY: header}))


def load_attack(path: Path) -> Attack:
    """Reads a trigger file of ``save_attack``; nothing in it is executed.

    Raises:
        InputError: it is missing, broken, or not a trigger file.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"trigger file {path} cannot be read: {error}") from error
    try:
        facts = json.loads(header or "")
        values, shape = dict(facts["attack"]), tuple(int(size) for size in facts["shape"])
        name = values.pop("name")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no trigger file of bezoar; `bezoar attack` writes one beside each model"
        ) from error
    attack = make_attack(name, values, f"trigger file {path}")
    halves = (torch.float16, torch.bfloat16)
    full = {n: array.float() if array.dtype in halves else array for n, array in tensors.items()}
    return attack.holding(full, shape)  # type: ignore[arg-type]  # compared with the images' later


def _is_tuple(annotation: Any) -> bool:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(_is_tuple(part) for part in typing.get_args(annotation))
    return typing.get_origin(annotation) is tuple
