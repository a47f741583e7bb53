"""The settings of a method or an attack as a Markdown table, read from its class.

Names with dots are those that ``--set`` takes. What a setting means is the sentence about it in the
``Attributes:`` of the class that has it, so that it is written once.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from page_tables import NONE, markdown

_ENTRY = re.compile(r"^    (\w[\w, ]*): ")


def settings_table(default: msgspec.Struct, published: msgspec.Struct | None) -> str:
    """Every hyper-parameter with its default, its published value and its meaning.

    Args:
        default: what the bare constructor gives.
        published: the paper's settings; None leaves out their column.
    """
    rows = list(_rows(default, published, ""))
    if published is None:
        rows = [{k: v for k, v in row.items() if k != "published"} for row in rows]
    return markdown(rows)


def parameters_table(kind: type[msgspec.Struct], shared: type[msgspec.Struct]) -> str:
    """The parameters of ``kind`` that ``shared`` does not have; empty where there is none."""
    told = meanings(kind)
    return markdown(
        [
            {"parameter": f"`{f.name}`", "default": _field_default(f), "meaning": told[f.name]}
            for f in msgspec.structs.fields(kind)
            if f.name not in shared.__struct_fields__
        ]
    )


def meanings(kind: type) -> dict[str, str]:
    """Name → what the docstrings of the class and of its bases say of it."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, attributes = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
        names: list[str] = []
        for line in attributes.splitlines():
            if line.strip() and not line.startswith(" "):
                break
            if entry := _ENTRY.match(line):
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, line[entry.end() :])
            else:
                found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return {name: text.replace("``", "`") for name, text in found.items()}


def _rows(
    default: msgspec.Struct | None, published: msgspec.Struct | None, prefix: str
) -> Iterator[dict[str, str]]:
    kind = type(published if default is None else default)
    told = meanings(kind)
    for name in kind.__struct_fields__:
        ours, papers = (getattr(one, name, NONE) for one in (default, published))
        inner = [one if isinstance(one, msgspec.Struct) else None for one in (ours, papers)]
        if None in (ours, papers) or inner == [None, None]:
            yield {
                "setting": f"`{prefix}{name}`",
                "default": _shown(ours),
                "published": _shown(papers),
                "meaning": told[name],
            }
        if inner != [None, None]:
            yield from _rows(inner[0], inner[1], f"{prefix}{name}.")


def _field_default(field: msgspec.structs.FieldInfo) -> str:
    return "to be given" if field.default is msgspec.NODEFAULT else _shown(field.default)


def _shown(value: Any) -> str:
    """A value as ``--set`` takes it; a table of settings of its own as a hint."""
    if isinstance(value, msgspec.Struct):
        return "see below"
    plain = msgspec.to_builtins(value)
    if isinstance(plain, tuple | list):
        return ", ".join(map(_shown, plain)) or "empty"
    if plain is None or isinstance(plain, bool):
        return str(plain).lower()
    return str(plain)
