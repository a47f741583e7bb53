"""Records as files: JSON that every reader accepts, written beside and renamed; TOML read."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import tomllib
from pathlib import Path
from typing import Any

from bezoar.errors import InputError


def to_json(value: Any) -> Any:
    """The same record with plain lists, and None for infinite and NaN numbers, as JSON needs it.

    What is no text, as a file name in another encoding, is spelled out.

    >>> to_json({"norms": (1.5, float("inf"))})
    {'norms': [1.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {to_json(str(key)): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def write_json(path: Path, record: Any) -> None:
    """Writes the record beside ``path`` and renames, indented, with a newline at the end.

    Raises:
        InputError: nothing can be written there.
    """
    write_text(path, json.dumps(to_json(record), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 beside ``path`` and renames, so that no half file is ever there.

    What is no text is spelled out, as in ``to_json``.

    Raises:
        InputError: nothing can be written there.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def beside(place: Path) -> Path:
    """A new name in the same folder: a rename within one folder cannot be half done.

    Random, and not the process id: containers that share a folder have equal ones.
    """
    return place.with_name(f".bezoar-{secrets.token_hex(8)}.part")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes beside ``path`` and renames, so that no half file is ever there.

    A link stays, and what it leads to is renewed; a pipe or a device is written to as it is.

    Raises:
        InputError: nothing can be written there.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file in it")
        if path.exists() and not path.is_file():  # a pipe or a device
            path.write_bytes(content)
            return
        place = Path(os.path.realpath(path))
        partial = beside(place)
        try:
            partial.write_bytes(content)
            partial.replace(place)
        finally:
            with contextlib.suppress(OSError):  # what kept it from being written is told
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}; give a file in an existing "
            "folder that you may write to"
        ) from error


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, unless it is there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"the folder {path} cannot be made: {reason}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        InputError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a mark
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no valid TOML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path} is no valid TOML: its values are nested too deeply") from error
