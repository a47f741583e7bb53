"""Reading fields of a record whose text and numbers come from a stranger's model.

Every function takes any JSON value and answers with something safe to show: a field that is
missing or of another type is empty, never an exception.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# No quantity of a record is that large; beyond it the arithmetic of the axes would overflow.
LARGEST = 1e100

_EMPTY: Mapping[str, Any] = {}


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else _EMPTY


def items(value: Any) -> Sequence[Any]:
    """The value where it is a list or tuple, else an empty one."""
    return value if isinstance(value, list | tuple) else ()


def number(value: Any) -> float | None:
    """The value as a finite float, or None for anything else (null, NaN, infinity, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not -LARGEST < value < LARGEST:  # also False for NaN
        return None
    return float(value)


def numbers(value: Any) -> list[float | None]:
    """The value as a list of finite floats, None where one is missing."""
    return [number(item) for item in items(value)]


def at(values: Sequence[float | None], index: int) -> float | None:
    """The value at ``index``, or None beyond the ends."""
    return values[index] if 0 <= index < len(values) else None


def index(value: Any) -> int | None:
    """The value as a class index, or None."""
    found = number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def text(value: Any, longest: int = 400) -> str:
    """The value as one line of printable text, at most ``longest`` characters.

    Control and direction-changing characters become U+FFFD: a class name must not be able to
    reorder the words around it.
    """
    if value is None or isinstance(value, Mapping | list | tuple):
        return ""
    return _shortened(_printable(str(value)).replace("\n", " ").strip(), longest)


def texts(value: Any, longest: int = 400) -> list[str]:
    """The non-empty lines of a list of texts."""
    return [line for line in (text(item, longest) for item in items(value)) if line]


def block(value: Any, longest: int = 4000) -> str:
    """Text whose line breaks matter; anything that is no text is shown as indented JSON."""
    if value is None or (isinstance(value, Mapping | list | tuple) and not value):
        return ""
    if not isinstance(value, str):
        value = json.dumps(value, indent=1, ensure_ascii=False, default=str, skipkeys=True)
    return _shortened(_printable(value), longest)


def name_of(names: Sequence[Any], position: int) -> str:
    """The name of class ``position``, or ``class 5`` where it has none."""
    name = text(names[position], 80) if 0 <= position < len(names) else ""
    return name or f"class {position}"


def ratio(value: float, whole: float) -> float:
    """``value / whole``, 0 where that is no finite number."""
    share = value / whole if whole else 0.0
    return share if math.isfinite(share) else 0.0


def _printable(value: str) -> str:
    return "".join(
        character
        if character == "\n" or unicodedata.category(character) not in {"Cc", "Cf", "Cs"}
        else " "
        if character in "\t\r"
        else "\ufffd"
        for character in value
    )


def _shortened(value: str, longest: int) -> str:
    return value if len(value) <= longest else value[: longest - 1] + "…"
