"""Writes the ``model.toml`` of a model that was made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.records import write_text


def write_description(
    path: Path,
    *,
    architecture: str,
    arguments: dict[str, Any],
    weights: str,
    classifier: Classifier,
    shape: tuple[int, int, int],
) -> None:
    """Writes what ``load_model`` needs to know, paths relative to the file's folder.

    Raises:
        InputError: an argument has no TOML form.
    """
    file, colon, function = architecture.rpartition(":")
    if file.endswith(".py"):  # found from anywhere
        architecture = f"{Path(file).resolve()}{colon}{function}"
    lines = [
        f"architecture = {_toml(architecture)}",
        f"weights = {_toml(weights)}",
        f"input_size = {_toml(list(shape[1:]))}",
        f"mean = {_toml(list(classifier.mean))}",
        f"std = {_toml(list(classifier.std))}",
    ]
    if classifier.classes is not None:
        lines.append(f"classes = {_toml(list(classifier.classes))}")
    if arguments:
        lines.append("[arguments]")
        lines += [f"{name} = {_toml(value)}" for name, value in arguments.items()]
    write_text(path, "\n".join(lines) + "\n")


def _toml(value: Any) -> str:
    """A value in TOML; JSON writes text, numbers and truth values the same way."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str | bool | int | float):
        return json.dumps(value, ensure_ascii=False)
    raise InputError(f"the argument {value!r} cannot be written to a model.toml")
